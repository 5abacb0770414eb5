"""The whole program on a pretended card: tensors never meet across devices, and the host waits where it must alone.

What a step may wait for is listed in `MAY_WAIT`. Numbers mean nothing here. Not rehearsed is Gemma in 4 and 8 bits:
bitsandbytes makes tensors of its own class, which cannot pretend.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from gpu_pretended.card import CUDA, Mismatch, pretended
from gpu_pretended.counting import train_pretended
from gpu_pretended.making import make_run_file
from gpu_pretended.swapping import swapping

from ltx2_train import build_caches, load_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning"),
]

READ = ("read", "training/reading.py read")  # all numbers of a step
BALANCE = ("read", "training/sound.py weight")  # a weight that follows the losses
MAY_WAIT = {READ: 1, BALANCE: 2}
MOST = 3

RUNS = {
    "video": ("video", ["train.first_frame_probability=1"]),
    "av": ("av", ["train.first_frame_probability=1"]),
    "audio": ("audio", []),
    "av, balanced, two batches a step": ("av", ["loss.balance.mode=ema_mag", "train.accumulation=2"]),
    "fp16": ("video", ["model.precision=fp16"]),
    "a part recomputed": ("av", ["memory.recompute_blocks=1"]),
    "swapped": ("av", ["memory.fit=custom", "memory.blocks_to_swap=2", "memory.pinned=true"]),
    "swapped from the file": ("video", ["memory.fit=custom", "memory.blocks_to_swap=2", "memory.swap_from=file"]),
    "inputs in RAM": ("video", ["memory.fit=custom", "memory.offload_activations=true", "memory.pinned=true"]),
    "nf4": ("av", ["quant.format=nf4"]),
    "nf4 with loftq": ("video", ["quant.format=nf4", "quant.loftq=true"]),
    "nf4 with awq": ("video", ["quant.format=nf4", "quant.awq=true"]),
    "fp8": ("video", ["quant.format=fp8"]),
    "int8 rotated": ("video", ["quant.format=int8_rotated"]),
    "int8 in 8 bits": ("video", ["quant.format=int8", "quant.matmul=on"]),
    "samples": ("av", ["sample.every=2", "sample.guidance=4", "sample.stg=1"]),
}


@pytest.fixture(scope="module")
def folders(tiny, drawn_clip: Path, tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, Path] = {}

    def folder(mode: str) -> Path:
        if mode not in made:
            made[mode] = tmp_path_factory.mktemp(mode) / "run"
            make_run_file(made[mode], tiny, drawn_clip, mode)
        return made[mode]

    return folder


@pytest.fixture
def run_file_of(folders, tmp_path: Path):
    def copy(mode: str) -> Path:
        shutil.copytree(folders(mode), tmp_path / "work")
        return tmp_path / "work" / "run.toml"

    return copy


@pytest.mark.parametrize("name", list(RUNS))
def test_a_step_waits_at_the_listed_places_and_no_large_copy_is_waited_for(run_file_of, name):
    mode, settings = RUNS[name]
    card, steps = train_pretended(run_file_of(mode), "optimizer.name=adamw", *settings)
    waits = steps.second
    assert READ in waits, "nothing waits without being seen"
    assert waits.total() <= MOST, waits
    assert not waits - Counter(MAY_WAIT), waits
    assert not card.large, card.large


def test_a_batch_is_there_before_its_step_and_comes_again_after_a_failure(run_file_of):
    from ltx2_train.training import loop

    calls, real = [], loop.ready_step

    def step(model, ready, *more):
        calls.append(ready)
        assert ready.groups[0].video.clean.device == CUDA
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(model, ready, *more)

    with patch.object(loop, "ready_step", step):
        train_pretended(run_file_of("video"), "optimizer.name=adamw", "train.steps=4")
    keys = [[sample.key for sample in ready.batch.samples] for ready in calls]
    assert keys[1] == keys[2], "the batch of the step that failed comes again"
    assert len(calls) == 5


@pytest.mark.parametrize("gemma", ["stream", "layers", "device"])
def test_captions_are_encoded(tiny, drawn_clip, tmp_path, gemma):
    run_file = make_run_file(tmp_path / "run", tiny, drawn_clip, "av")
    shutil.rmtree(run_file.parent / "cache")
    with pretended() as card, swapping():
        report = build_caches(load_run(run_file, ["model.device=cuda", f"gemma.placement={gemma}"]))
    assert report.kinds["text"].made
    assert not report.kinds["text"].failed
    assert card.waits


def test_features_of_dino_are_encoded(tiny, drawn_clip, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    run_file = make_run_file(tmp_path / "run", tiny, drawn_clip, "video")
    shutil.rmtree(run_file.parent / "cache")
    settings = [f"cache.dino.model={tmp_path / 'dino'}", "cache.dino.size=28"]
    with pretended() as card:
        report = build_caches(load_run(run_file, ["model.device=cuda", *settings]))
    assert report.kinds["dino"].made == 3
    assert card.waits


def test_two_devices_do_not_meet():
    with pretended() as card:
        on_card = torch.ones(3, device="cuda")
        with pytest.raises(Mismatch, match="same device"):
            on_card + torch.ones(3)
        assert not card.waits
        assert float(on_card.sum()) == 0.5
        assert card.waits.total() == 1
