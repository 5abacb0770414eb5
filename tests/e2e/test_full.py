"""Full fine-tuning in a whole run: the checkpoint it leaves, resuming, gradients let go of, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltx2_train import (
    CheckpointError,
    ConfigError,
    Events,
    Stopped,
    list_runs,
    load_run,
    pick_loras,
    probe,
    quantize_checkpoint,
    sample,
    train,
)
from ltx2_train.training.metrics import read_rows
from ltx2_train.weights.reader import TensorFile

FULL = ["train.what=full", "lora.rank=32", "train.steps=3", "train.learning_rate=1e-4", "sample.at_start=false"]
PREFIX = "model.diffusion_model."


class StopAt(Events):
    def __init__(self, step: int) -> None:
        self.at, self.done = step, 0

    def step(self, metrics):
        self.done = metrics["step"]

    def should_stop(self):
        return self.done >= self.at


def contents(path: Path) -> dict[str, bytes]:
    with TensorFile(path) as file:
        return {name: file.read_bytes(name) for name in file.tensors}


def about(path: Path) -> tuple[dict[str, tuple], dict[str, str]]:
    with TensorFile(path) as file:
        return {name: (info.dtype, info.shape) for name, info in file.tensors.items()}, file.metadata


@pytest.mark.slow
def test_a_run_leaves_a_checkpoint_like_its_base_and_resumes_to_the_bit(run_file, tiny):
    """bf16 weights rounded by chance, a state in 8 bits, the rate of some weights another."""
    more = [
        *FULL,
        "model.precision=bf16",
        "optimizer.name=adamw8bit",
        "train.save_every=1",
        'train.lr_args=["ff=1e-3"]',
    ]
    whole = train(load_run(run_file, [*more, "run.name=whole", "sample.every=3", "run.export_folder=out"]))
    with pytest.raises(Stopped, match="State and checkpoint are saved"):
        train(load_run(run_file, [*more, "run.name=broken"]), StopAt(2))
    broken = train(load_run(run_file, [*more, "run.name=broken"]))
    rows, expected = (read_rows(result.folder / "metrics.jsonl") for result in (broken, whole))
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in rows] == [row[key] for row in expected], key
    made, base = contents(whole.lora), contents(tiny.checkpoint)
    assert contents(broken.lora) == made

    assert whole.summary.endswith(f"Checkpoint: {whole.lora}")
    assert whole.lora == whole.folder / "checkpoints" / "whole.safetensors"
    assert sorted(path.name for path in whole.lora.parent.glob("*.safetensors")) == [
        "whole.safetensors", "whole_000002.safetensors", "whole_000003.safetensors",
    ]  # fmt: skip
    assert [path.name for path in (run_file.parent / "out" / "whole").iterdir()] == ["whole.safetensors"]
    (stored, told), (expected_stored, expected_told) = about(whole.lora), about(tiny.checkpoint)
    assert stored == expected_stored
    assert {name: told[name] for name in expected_told} == expected_told
    assert json.loads(told["ltx2_train"])["step"] == 3
    assert str(run_file.parent) not in told["ltx2_train"]
    changed = {name for name in base if made[name] != base[name]}
    assert changed == {name for name in changed if name.startswith(PREFIX) and "connector" not in name}
    assert {f"{PREFIX}transformer_blocks.0.attn1.to_q.weight", f"{PREFIX}adaln_single.linear.bias"} <= changed
    assert not any("audio" in name for name in changed)
    assert probe(whole.lora).trainable

    drawn = next((whole.folder / "samples").glob("step_000003*.mp4")).read_bytes()
    again = ["model.precision=bf16", f"model.checkpoint={whole.lora}", "sample.every=1"]
    files = sample(load_run(run_file, again), None, run_file.parent / "drawn", prompts=["a red ball bounces"])
    assert frames(files[0].path) == frames(next((whole.folder / "samples").glob("step_000003*.mp4")))
    assert drawn

    (facts,) = (one for one in list_runs(whole.folder.parent) if one.name == "whole")
    assert [step for step, _ in facts.loras] == [2, 3]
    with pytest.raises(ConfigError, match=r"trains the weights themselves .* it has checkpoints"):
        pick_loras(whole.folder)


def frames(path: Path) -> list[bytes]:
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


def test_gradients_that_are_let_go_of_train_the_same_checkpoint(run_file, tiny):
    """In float32, with all blocks recomputed and with none: the gradients are the same, and so are the weights."""
    more = [*FULL, "train.steps=2", "train.clip_norm=0", "optimizer.name=adamw", "memory.fit=custom"]
    kept = train(load_run(run_file, [*more, "run.name=kept"]))
    other = [*more, "run.name=released", "memory.gradient_checkpointing=false", "full.release_gradients=true"]
    released = train(load_run(run_file, other))
    first, second = (read_rows(result.folder / "metrics.jsonl") for result in (kept, released))
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in second] == pytest.approx([row[key] for row in first], rel=1e-4), key
    assert about(kept.lora)[0] == about(tiny.checkpoint)[0]
    made, base = contents(released.lora), contents(tiny.checkpoint)
    changed = {name for name in base if made[name] != base[name]}
    assert f"{PREFIX}transformer_blocks.0.attn1.to_q.weight" in changed
    assert changed == {name for name, data in contents(kept.lora).items() if data != base[name]}
    assert all(name.startswith(PREFIX) and "audio" not in name and "connector" not in name for name in changed)
    assert released.summary.endswith(f"Checkpoint: {released.folder / 'checkpoints' / 'released.safetensors'}")


@pytest.mark.slow
def test_some_weights_with_float32_copies(sound_run_file, tiny):
    """Patterns choose; with accumulation; a run in av, whose sound is trained too, goes on from its copies."""
    pattern = r"full.include_patterns=['transformer_blocks\.0\..*attn1\..*']"
    more = [*FULL, pattern, "full.master_weights=true", "model.precision=bf16", "train.accumulation=2"]
    more += ["optimizer.name=adafactor", "train.save_every=2", "train.learning_rate=1e-6"]
    whole = train(load_run(sound_run_file, [*more, "run.name=whole"]))
    with pytest.raises(Stopped):
        train(load_run(sound_run_file, [*more, "run.name=broken"]), StopAt(2))
    broken = train(load_run(sound_run_file, [*more, "run.name=broken"]))
    made, base = contents(whole.lora), contents(tiny.checkpoint)
    assert contents(broken.lora) == made
    changed = {name for name in base if made[name] != base[name]}
    assert changed
    assert all(".0.attn1." in name or ".0.audio_attn1." in name for name in changed)
    with pytest.raises(Exception, match=r"full\.master_weights: was on, now off"):
        train(load_run(sound_run_file, [*more, "run.name=whole", "full.master_weights=false", "train.steps=4"]))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["lora.algo=lokr"], r"lora\.algo = lokr has no effect: it counts only with train\.what = lora"),
        (["lora.dropout=0.1"], r"lora\.dropout = 0\.1 has no effect"),
        (["ema.decay=0.9"], r"ema\.decay = 0\.9 has no effect"),
        (["train.keep_loras=3"], r"train\.keep_loras = 3 has no effect"),
        (["train.what=lora", "full.keep=3"], r"full\.keep = 3 has no effect: it counts only with train\.what = full"),
        (["quant.format=int8"], r"quant\.format is int8: weights in few bits cannot be trained"),
        (["memory.blocks_to_swap=1"], r"memory\.blocks_to_swap is 1: blocks that are copied"),
        (["model.precision=fp16"], r"model\.precision is fp16"),
        (["full.release_gradients=true"], r"train\.clip_norm is 1 and train\.accumulation is 1"),
        (["regularizers.prior_divergence.weight=1"], r"regularizers\.prior_divergence needs the model without"),
        (["optimizer.name=prodigy"], r"optimizer\.name = prodigy finds one rate"),
        (["optimizer.name=schedule_free"], r"optimizer\.name = schedule_free saves a mean"),
        (["optimizer.name=muon"], r"optimizer\.args: Muon refused"),
        (["full.include_patterns=['attn9']"], r"full\.include_patterns: 'attn9' matches no weight"),
        (["full.exclude_patterns=['.*']"], r"full\.exclude_patterns takes every weight away"),
        (["full.exclude_patterns=['[']"], r"'\[' is not a regular expression"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name_before_work(run_file, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        train(load_run(run_file, [*FULL, *settings]))
    assert not (run_file.parent / "runs" / "r").exists()


def test_a_quantized_file_is_refused(run_file, tiny, tmp_path):
    int8 = load_run(run_file, ["quant.format=int8"]).quant
    quantize_checkpoint(tiny.checkpoint, tmp_path / "int8.safetensors", int8)
    with pytest.raises(ConfigError, match=r"int8\.safetensors is .* in few bits cannot be trained"):
        train(load_run(run_file, [*FULL, f"model.checkpoint={tmp_path / 'int8.safetensors'}"]))


def test_a_base_that_was_taken_away_costs_no_state(run_file, tiny, tmp_path):
    base = tmp_path / "base.safetensors"
    base.write_bytes(tiny.checkpoint.read_bytes())

    class TakeAway(Events):
        def step(self, metrics):
            if metrics["step"] == 1:
                base.unlink()

    with pytest.raises(CheckpointError, match="Could not open"):
        train(load_run(run_file, [*FULL, "train.steps=1", f"model.checkpoint={base}"]), TakeAway())
    assert list((run_file.parent / "runs" / "r" / "states").glob("state_*"))
