"""A run folder that the program wrote before is gone on with, and what differs from its settings is named."""

from __future__ import annotations

import json

import pytest
import torch
from old_runs import SETTINGS, STEPS, write_old_plan, write_old_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx2_train import Events, load_run, read_manifest, train
from ltx2_train.errors import RunError
from ltx2_train.training.fit.memory_plan import MemoryPlan
from ltx2_train.training.identity import VERSION
from ltx2_train.training.state import load_state
from ltx2_train.weights.fingerprint import part_fingerprint


class Heard(Events):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        self.texts.append(text)


def _take_the_last_latent(path):
    """Sound had a latent less then, and caches neither check sums nor their names."""
    with safe_open(str(path), "pt") as file:
        (key,) = (name for name in file.keys() if name.startswith("audio_latents"))
        latents, metadata = file.get_tensor(key)[:, :-1].contiguous(), file.metadata()
    del metadata["crc32"], metadata["kept_as"]
    steps = latents.shape[1]
    tensors = {f"audio_latents_{steps}x16x8_fp16": latents, "audio_lengths_int32": torch.tensor(steps).int()}
    save_file(tensors, str(path), metadata)


def test_an_old_run_goes_on_with_its_lora_its_moments_and_its_files(sound_run_file, tiny):
    text = sound_run_file.read_text().replace("[lora]\nrank = 4\n", SETTINGS)
    sound_run_file.write_text(text.replace("steps = 6", f"steps = {STEPS + 1}", 1))
    folder = sound_run_file.parent / "runs" / "r"
    for path in sound_run_file.parent.glob("cache/*_audio.safetensors"):
        _take_the_last_latent(path)
    before = write_old_run(folder, tiny.checkpoint.name, part_fingerprint(tiny.checkpoint, "transformer"))
    rows = (folder / "metrics.jsonl").read_text()
    lora = load_file(folder / "lora" / "r.safetensors")

    changes = {
        ("rank = 1", "rank = 2"): r"lora\.rank: was 1, now 2",
        ("[train]", "[train]\nseed = 7"): r"train\.seed: was 42, now 7",
    }
    for (line, changed), named in changes.items():
        other = sound_run_file.with_name("other.toml")
        other.write_text(sound_run_file.read_text().replace(line, changed))
        with pytest.raises(RunError, match=named):
            train(load_run(other))
    assert (folder / "metrics.jsonl").read_text() == rows

    heard = Heard()
    result = train(load_run(sound_run_file), heard)
    assert result.step == result.total == STEPS + 1
    assert f"Continuing r after step {STEPS} of {STEPS + 1}." in heard.texts
    state = load_state(folder / "states" / f"state_{STEPS + 1:08d}.safetensors")
    for name, tensor in before.items():
        layer, half = name.removeprefix("lora.").rsplit(".", 1)
        moved = (state["lora"][layer][half] - tensor).abs().max()
        assert 0 < moved < 5e-3, name  # one step of the rate 1e-3 away from what was stored
    assert {float(moment["step"]) for moment in state["optimizer"]["state"].values()} == {STEPS + 1}
    assert (folder / "metrics.jsonl").read_text().startswith(rows)
    assert [json.loads(row)["step"] for row in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    kept = load_file(folder / "lora" / f"r_{STEPS:06d}.safetensors")
    assert kept.keys() == lora.keys()
    assert all(torch.equal(kept[name], value) for name, value in lora.items())
    record = read_manifest(folder)["identity"]
    assert (record["version"], record["optimizer.name"], record["lora.rank"]) == (VERSION, "adamw", 1)


def test_an_old_plan_of_memory_is_gone_on_with(tmp_path):
    write_old_plan(tmp_path)
    plan = MemoryPlan.load(tmp_path)
    assert plan is not None
    assert (plan.format, plan.blocks_to_swap, plan.recompute_blocks, plan.pinned) == ("int8_rotated", 20, 48, True)
    assert (plan.choice.ff_chunk, plan.notches, plan.fixed) == (1024, 1, ("ff_chunk",))
    assert (plan.choice.lean, plan.choice.shards, plan.choice.pinned_gb) == (False, 1, None)
    lower = plan.notch_down()
    assert lower is not None
    assert lower.choice.lean
