"""Other kinds of change than LoRA in a whole run: resumed, swapped, quantized, drawn, started from."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ltx2_train import ConfigError, Events, Stopped, inspect_lora, load_run, mean_of_loras, sample, train
from ltx2_train.lora.file import load_lora_state
from ltx2_train.training.metrics import read_rows

# three kinds in one run, so that one run tells of all
MODULES = 'lora.modules={"*attn1*" = {algo = "lokr"}, "*to_v" = {algo = "loha", rank = 2}, "*.ff.*" = {rank = 3}}'
MIXED = ["lora.algo=dora", "lora.rank=4", "lora.target=v2v", MODULES, "lora.dropout=0.1", "lora.rank_dropout=0.1"]
PLAIN = ["train.steps=3", "sample.every=0", "sample.at_start=false", "train.save_precision=fp32", "train.norms_every=1"]


class StopAt(Events):
    def __init__(self, step: int) -> None:
        self.at, self.done = step, 0

    def step(self, metrics):
        self.done = metrics["step"]

    def should_stop(self):
        return self.done >= self.at


def test_every_kind_resumes_to_the_bit_wherever_its_blocks_wait(run_file):
    more = [*MIXED, *PLAIN, "quant.format=int8", "memory.fit=custom", "ema.decay=0.5", "train.save_every=1"]
    whole = train(
        load_run(run_file, [*more, "run.name=whole", "memory.recompute_blocks=2", "log.report_to=tensorboard"])
    )
    assert list((whole.folder / "tensorboard").glob("events*"))
    swapped = [*more, "run.name=swapped", "memory.blocks_to_swap=1"]
    with pytest.raises(Stopped):
        train(load_run(run_file, swapped), StopAt(2))
    broken = train(load_run(run_file, swapped))
    rows, expected = (read_rows(result.folder / "metrics.jsonl") for result in (broken, whole))
    for key in ("loss", "grad_norm", "norm_video"):
        assert [row[key] for row in rows] == [row[key] for row in expected], key
    for name in ("r.safetensors", "r_ema.safetensors"):
        first, second = (
            load_file(result.lora.with_name(name.replace("r", result.folder.name, 1))) for result in (broken, whole)
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name

    report = inspect_lora(whole.lora)
    assert set(report.kind.split(" and ")) == {"LoKr", "LoHa", "DoRA"}
    assert report.problems == ["Its layers have different ranks: 2, 3, 4."]
    mean = mean_of_loras(sorted(whole.lora.parent.glob("whole_00*.safetensors")), whole.folder / "mean.safetensors")
    assert load_lora_state(mean.path).layers.keys() == load_lora_state(whole.lora).layers.keys()

    base, drawn = (
        sample(load_run(run_file, ["sample.steps=1"]), lora, run_file.parent / "drawn")[0].path.read_bytes()
        for lora in (None, whole.lora)
    )
    assert base != drawn
    again = train(load_run(run_file, [*more, "run.name=again", "train.steps=1", f"lora.weights={whole.lora}"]))
    assert load_file(again.lora).keys() == load_file(whole.lora).keys()
    with pytest.raises(ConfigError, match=r"Set lora\.algo to (dora|lokr|loha)"):
        train(load_run(run_file, [*PLAIN, "run.name=other", "lora.rank=4", f"lora.weights={whole.lora}"]))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["lora.algo=lokr", "train.loraplus_ratio=4"], r"train\.loraplus_ratio is 4, and lora\.algo = lokr has no B"),
        (["lora.algo=loha", "quant.format=nf4", "quant.loftq=true"], r"quant\.loftq is on and lora\.algo is loha"),
        (["lora.algo=lora", "lora.factor=8"], r"lora\.factor = 8 has no effect"),
        (['lora.modules={"*attn9*" = {rank = 2}}'], r"'\*attn9\*' names none of the"),
    ],
)
def test_what_a_kind_cannot_do_is_refused_before_anything_is_loaded(run_file, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        train(load_run(run_file, settings))
