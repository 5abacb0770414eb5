"""LoRA files that training starts from and samples are drawn with: found good before anything is loaded."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train import Events, Stopped, load_run, sample, train
from ltx2_train.errors import CheckpointError, ConfigError
from ltx2_train.lora.fit import linear_sizes
from ltx2_train.sampling import studio as drawing
from ltx2_train.training import checks
from ltx2_train.weights.load import blueprint
from ltx2_train.weights.reader import TensorFile


class Heard(Events):
    """Keeps what it is told, and stops after `step` steps."""

    def __init__(self, step=99):
        self.said, self.at, self.done = [], step, 0

    def message(self, text, level="info"):
        self.said.append((level, text))

    def step(self, metrics):
        self.done = metrics["step"]

    def should_stop(self):
        return self.done >= self.at

    def warnings(self):
        return [text for level, text in self.said if level == "warning"]


def lora_for(path, checkpoint, mode="video", rank=4, metadata=None, more=None, wide=0):
    """A LoRA on the attention of `checkpoint`, saved at `path`."""
    with TensorFile(checkpoint) as file:
        sizes = linear_sizes(blueprint(file, mode))
    generator = torch.Generator().manual_seed(0)
    tensors = dict(more or {})
    for name, (rows, width) in sizes.items():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            for half, shape in (("A", (rank, width + wide)), ("B", (rows, rank))):
                tensors[f"diffusion_model.{name}.lora_{half}.weight"] = torch.randn(shape, generator=generator) / 10
    save_file(tensors, path, metadata)
    return path


def damaged(path, checkpoint):
    lora_for(path, checkpoint)
    path.write_bytes(path.read_bytes()[:-100])


def of_text(path, checkpoint):
    at = "text_encoder.layers.0.mlp.up_proj.lora_{}.weight"
    save_file({at.format("A"): torch.ones(4, 8), at.format("B"): torch.ones(8, 4)}, path)


def of_other_sizes(path, checkpoint):
    lora_for(path, checkpoint, wide=32)


def of_no_numbers(path, checkpoint):
    lora_for(path, checkpoint)
    tensors = load_file(path)
    next(reversed(tensors.values()))[-1, -1] = float("nan")
    save_file(tensors, path)


def of_no_alpha(path, checkpoint):
    name = "diffusion_model.transformer_blocks.0.attn1.to_q.alpha"
    lora_for(path, checkpoint, more={name: torch.tensor(float("inf"))})


def missing(path, checkpoint):
    pass


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (damaged, CheckpointError, "damaged or still downloading"),
        (of_text, ConfigError, "It is a LoRA of a text encoder"),
        (
            of_no_numbers,
            CheckpointError,
            "cannot be used: .*lora_B.weight holds numbers that are not finite. Its train",
        ),
        (of_no_alpha, ConfigError, "cannot be used: it gives transformer_blocks.0.attn1.to_q the alpha inf"),
        (of_other_sizes, ConfigError, "x.safetensors is for another model"),
        (missing, (ConfigError, CheckpointError), r"x\.safetensors(: No such file| does not exist)"),
    ],
)
def test_an_unfit_lora_is_found_before_anything_is_loaded(run_file, tiny, monkeypatch, spoil, error, words):
    def load(*_, **__):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(drawing, "prompt_features", load)
    monkeypatch.setattr(checks.TrainingSet, "open", load)
    path = run_file.parent / "x.safetensors"
    spoil(path, tiny.checkpoint)
    with pytest.raises(error, match=words):
        sample(load_run(run_file), path, run_file.parent / "out", prompts=["a fox"])
    with pytest.raises(error, match=words):
        train(load_run(run_file, [f"lora.weights={path}"]))
    assert not (run_file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("out", "asked", "words"),
    [
        (
            "out",
            {"lora": "x.safetensors", "strengths": [1.0, float("nan")]},
            "strength of a LoRA is nan; it is a number from -100 to 100",
        ),
        ("out", {"lora": "x.safetensors", "strengths": [1e38]}, "strength of a LoRA is 1e.38; it is a number"),
        ("out", {"beside": [("x.safetensors", float("inf"))]}, "strength of a LoRA is inf"),
        ("out", {"strengths": [0.5, 1.0]}, "--strength is 0.5, 1, and no LoRA is given"),
        ("run.toml", {}, "--out: .*run.toml is a file, not a folder. Name another folder"),
        ("run.toml/x", {}, "--out: .*x cannot be made, since .*run.toml is a file"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_loaded(run_file, monkeypatch, out, asked, words):
    monkeypatch.setattr(drawing, "prompt_features", lambda *_, **__: pytest.fail("something was loaded"))
    with pytest.raises(ConfigError, match=words):
        sample(load_run(run_file), out=run_file.parent / out, prompts=["a fox"], **{"lora": None, **asked})


def test_a_block_that_the_model_has_not_is_refused_for_samples(run_file, monkeypatch):
    monkeypatch.setattr(drawing, "prompt_features", lambda *_, **__: pytest.fail("something was loaded"))
    with pytest.raises(ConfigError, match="sample.stg_block is 4, but the blocks of this model are 0 to 3"):
        sample(load_run(run_file, ["sample.stg_block=4"]), None, run_file.parent / "out", prompts=["a fox"])


def test_a_run_goes_on_without_the_lora_it_started_from(run_file, tiny):
    path = lora_for(run_file.parent / "x.safetensors", tiny.checkpoint)
    more = [f"lora.weights={path}"]
    events = Heard(2)
    with pytest.raises(Stopped):
        train(load_run(run_file, more), events)
    assert ("info", "Starting from the LoRA x.safetensors.") in events.said
    path.unlink()
    assert train(load_run(run_file, more), events := Heard()).step == 6
    assert not any("Starting from" in text for _, text in events.said)
    assert any("lora.weights (x.safetensors) counts where a run begins" in text for _, text in events.said)


def test_what_of_a_lora_does_not_fit_the_base_is_said_in_time(run_file, tiny, monkeypatch):
    def stop(*_, **__):
        raise Stopped("far enough")

    monkeypatch.setattr(drawing, "prompt_features", stop)
    monkeypatch.setattr(checks.TrainingSet, "open", stop)
    more = {
        f"transformer.time_embed.linear.lora_{half}.weight": torch.ones(shape)
        for half, shape in (("A", (4, 160)), ("B", (9 * 160, 4)))
    }
    path = lora_for(run_file.parent / "x.safetensors", tiny.checkpoint, "av", metadata={"ss_ltx_version": "2.0"})
    lora_for(run_file.parent / "y.safetensors", tiny.checkpoint, more=more)
    heard = Heard()
    with pytest.raises(Stopped):
        sample(load_run(run_file), path, run_file.parent / "out", heard, prompts=["a fox"])
    assert any("x.safetensors is a LoRA of LTX-2.0, and the base is LTX-2.3" in text for text in heard.warnings())
    assert any("64 of the 96 layers of x.safetensors are left out" in text for _, text in heard.said)
    heard = Heard()
    with pytest.raises(Stopped):
        sample(load_run(run_file), path.with_name("y.safetensors"), run_file.parent / "out", heard, prompts=["a fox"])
    assert heard.warnings() == []  # the layer of diffusers' name has its place
    for name, words in (("x", "LTX-2.0, and the base"), ("y", "1 of the 33 layers of y.safetensors are not trained")):
        heard = Heard()
        with pytest.raises(Stopped):
            train(load_run(run_file, [f"lora.weights={path.with_name(name + '.safetensors')}"]), heard)
        assert any(words in text for text in heard.warnings()), heard.said
