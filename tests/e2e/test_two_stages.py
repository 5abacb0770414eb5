"""Samples in two stages: half the size, enlarged, refined; against steps made by hand."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ltx2_train import load_run, sample
from ltx2_train.cli import main
from ltx2_train.config.base_files import BaseFiles
from ltx2_train.events import Events
from ltx2_train.sampling.denoise import Pair, denoise
from ltx2_train.sampling.studio import _contexts
from ltx2_train.weights.load import load_transformer, load_video_vae
from ltx2_train.weights.upsampler import load_upsampler

PROMPT = "a red ball bounces"
SIZES = ["sample.width=128", "sample.height=64", "sample.frames=9"]


@pytest.fixture
def drawn(tiny, sound_run_file, tmp_path):
    """Draws the prompt of mode av with settings."""

    def draw(*settings, line=PROMPT, folder="out"):
        run = load_run(sound_run_file, ["sample.guidance=1.5", "sample.rescale=0.0", *SIZES, *settings])
        return sample(run, None, tmp_path / folder, prompts=[line])[0]

    return draw


def test_a_sample_is_drawn_small_enlarged_and_refined(tiny, drawn, sound_run_file):
    made = drawn(f"sample.upsampler='{tiny.upsampler.as_posix()}'")
    small = drawn("sample.width=64", "sample.height=32", folder="small")
    assert made.latents.shape == (128, 2, 2, 4)
    assert small.latents.shape == (128, 2, 1, 2)
    assert torch.equal(made.audio_latents, small.audio_latents), "the sound is that of the first stage"
    assert made.info["stages"] == 2

    statistics = load_video_vae(tiny.checkpoint, encoder=False, decoder=False).per_channel_statistics
    upsampler = load_upsampler(tiny.upsampler, torch.float32)
    with torch.no_grad():
        large = statistics.normalize(upsampler(statistics.unnormalize(small.latents[None])))
    generator = torch.Generator().manual_seed(42)
    torch.randn(1, 128, 2, 1, 2, generator=generator)
    steps = small.audio_latents.shape[1]
    torch.randn(1, 8, steps, 16, generator=generator)
    noise = torch.randn(1, 128, 2, 2, 4, generator=generator), torch.randn(1, 8, steps, 16, generator=generator)
    level = 0.909375
    start = Pair(*((1 - level) * there + level * fresh for there, fresh in zip(
        (large, small.audio_latents[None]), noise, strict=True)))  # fmt: skip
    model = load_transformer(tiny.checkpoint, "av", torch.float32)

    run = load_run(sound_run_file)
    device = torch.device("cpu")
    base = BaseFiles.find(run, Events())
    folder = sound_run_file.parent / "texts"
    context = Pair(*(one[None] for one in _contexts(run, base, [PROMPT], folder, device, Events())[PROMPT]))
    sigmas = torch.tensor([level, 0.725, 0.421875, 0.0])
    with torch.no_grad():
        wanted = denoise(model, start, sigmas, context, fps=25.0).video
    assert (made.latents - wanted[0]).abs().max() < 1e-4


@pytest.mark.slow
def test_a_first_frame_is_given_in_both_stages(tiny, drawn, sound_run_file, tmp_path):
    Image.new("RGB", (128, 64), (200, 30, 30)).save(tmp_path / "red.png")
    two = f"sample.upsampler='{tiny.upsampler.as_posix()}'"
    made = drawn(two, line=f"{PROMPT} --i {tmp_path / 'red.png'}")
    one = drawn(line=f"{PROMPT} --i {tmp_path / 'red.png'}", folder="one")
    assert torch.equal(made.latents[:, 0], one.latents[:, 0])
    assert not torch.allclose(made.latents[:, 1], one.latents[:, 1], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "line", "said"),
    [
        ((), "--w 96 --h 64", "it is 96x64, and half of that is not made of whole latents of 32 pixels"),
        (("model.mode=audio",), "", "sample.upsampler is set, and model.mode is audio, which draws no picture"),
        ((), "--v {clip}", "--v clip.mp4: two stages (sample.upsampler) are given first frames and sounds"),
        (("sample.upsampler='{base}'",), "", "ltx-2.3-tiny.safetensors is no latent upsampler, but a checkpoint"),
        (("sample.upsampler='gone.safetensors'",), "", "gone.safetensors does not exist"),
    ],
)
def test_what_two_stages_cannot_do_is_refused_by_name(tiny, sound_run_file, tmp_path, capsys, settings, line, said):
    where = {"clip": sound_run_file.parent / "clips" / "clip.mp4", "base": tiny.checkpoint.as_posix()}
    given = [f"sample.upsampler='{tiny.upsampler.as_posix()}'", *SIZES, *(one.format(**where) for one in settings)]
    given = given[1:] if any("upsampler" in one for one in settings) else given
    sets = [part for one in given for part in ("--set", one)]
    prompt = f"{PROMPT} {line.format(**where)}".strip()
    code = main(["sample", str(sound_run_file), "--out", str(tmp_path / "out"), "--prompt", prompt, *sets])
    assert code in (1, 2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
