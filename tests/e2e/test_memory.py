"""Memory in whole runs: out of memory, going on, quantized bases that begin with LoftQ or AWQ, swapped samples."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from ltx2_train import ConfigError, Events, OutOfMemory, load_run, sample, train
from ltx2_train.training import loop


class Listener(Events):
    """Keeps what was said, and stops before step `last` + 1."""

    def __init__(self, last: int | None = None) -> None:
        self.said: list[str] = []
        self.steps: list[dict] = []
        self.last = last

    def message(self, text, level="info"):
        self.said.append(text)

    def step(self, metrics):
        self.steps.append(metrics)

    def should_stop(self):
        return self.last is not None and len(self.steps) >= self.last


def losses(events: Listener) -> list[float]:
    return [row["loss"] for row in events.steps]


def out_of_memory_at(monkeypatch, *calls: int) -> list[int]:
    """Let the training step number `calls` (counted over the run, tries included) end for want of memory."""
    count = [0]
    real = loop.ready_step

    def step(*args, **more):
        terms = real(*args, **more)
        count[0] += 1
        if count[0] in calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return terms

    monkeypatch.setattr(loop, "ready_step", step)
    return count


@pytest.mark.exact_plan
def test_out_of_memory_costs_a_notch_and_not_a_step(run_file, monkeypatch):
    plain = Listener()
    train(load_run(run_file, ["run.name=plain", "memory.recompute_blocks=4"]), plain)
    count = out_of_memory_at(monkeypatch, 3)
    events = Listener()
    config = load_run(run_file, ["run.name=tight", "train.save_every=0"])
    train(config, events)
    assert count[0] == 7  # six steps, one of them twice
    assert [row["step"] for row in events.steps] == [1, 2, 3, 4, 5, 6]
    assert losses(events) == losses(plain)  # the same batches, the same noise
    told = [text for text in events.said if "Out of memory" in text]
    assert len(told) == 1
    assert "State and LoRA are saved" in told[0]
    folder = config.run.folder / "tight"
    assert (folder / "states" / "state_00000002.safetensors").exists()
    assert json.loads((folder / "plan.json").read_text())["notches"] == 1


@pytest.mark.exact_plan
def test_each_notch_is_taken_once_and_the_end_is_an_error_with_everything_saved(run_file, monkeypatch):
    out_of_memory_at(monkeypatch, *range(2, 200))
    events = Listener()
    config = load_run(run_file, ["run.name=full"])
    with pytest.raises(OutOfMemory, match="nothing left to give up"):
        train(config, events)
    told = [text for text in events.said if "Out of memory" in text]
    assert len(told) == len(set(told)) >= 1
    assert (config.run.folder / "full" / "states" / "state_00000001.safetensors").exists()


@pytest.mark.parametrize("format", ["int8_rotated", "nf4"])
@pytest.mark.parametrize(
    "more", [[], ["memory.blocks_to_swap=2", "memory.swap_from=file"]], ids=["resident", "swapped"]
)
def test_a_quantized_run_goes_on_to_the_bit(run_file, format, more):
    settings = [f"quant.format={format}", "memory.fit=custom", *more]
    whole = Listener()
    train(load_run(run_file, ["run.name=whole", *settings]), whole)
    first = Listener(last=3)
    with pytest.raises(Exception, match="Stopped"):
        train(load_run(run_file, ["run.name=parts", *settings]), first)
    rest = Listener()
    config = load_run(run_file, ["run.name=parts", *settings])
    train(config, rest)
    assert losses(first) + losses(rest) == losses(whole)
    ours = load_file(config.run.folder / "parts" / "lora" / "parts.safetensors")
    theirs = load_file(config.run.folder / "whole" / "lora" / "whole.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_format_is_another_run(run_file):
    with pytest.raises(Exception, match="Stopped"):
        train(load_run(run_file, ["quant.format=fp8"]), Listener(last=2))
    written = (began := load_run(run_file).run.folder / load_run(run_file).run.name / "run.toml").read_text()
    with pytest.raises(ConfigError, match=r"quant\.format is nf4, but the run began with fp8"):
        train(load_run(run_file, ["quant.format=nf4"]), Listener())
    assert began.read_text() == written, "a start that is refused changes nothing"
    train(load_run(run_file), Listener())  # auto: what it began with


def test_loftq_counts_resumes_and_leaves_a_lora_for_the_original(run_file):
    """That its layers begin nearer to the original is in unit/lora/test_loftq.py."""
    settings = ["quant.format=nf4", "quant.loftq=true", "lora.rank=24", "train.learning_rate=1e-6"]
    bare, helped = Listener(), Listener()
    train(load_run(run_file, ["run.name=bare", *settings, "quant.loftq=false"]), bare)
    config = load_run(run_file, ["run.name=helped", *settings])
    train(config, helped)
    assert losses(helped)[0] != losses(bare)[0]
    written = load_file(config.run.folder / "helped" / "lora" / "helped.safetensors")
    size = sum(
        float((written[name.replace("lora_A", "lora_B")].float() @ down.float()).square().sum())
        for name, down in written.items()
        if "lora_A" in name
    )
    begun = load_file(config.run.folder / "helped" / "loftq.safetensors")
    taken = sum(
        float((begun[name.replace("lora_A", "lora_B")].float() @ down.float()).square().sum())
        for name, down in begun.items()
        if "lora_A" in name
    )
    assert size < 1e-3 * taken  # what was learned in six tiny steps, not what makes up for nf4
    first = Listener(last=3)
    with pytest.raises(Exception, match="Stopped"):
        train(load_run(run_file, ["run.name=parts", *settings]), first)
    rest = Listener()
    train(load_run(run_file, ["run.name=parts", *settings]), rest)
    assert losses(first) + losses(rest) == losses(helped)


def test_awq_measures_this_dataset_once(run_file):
    settings = ["quant.format=nf4", "quant.awq=true", "quant.awq_batches=2"]
    whole = Listener()
    config = load_run(run_file, ["run.name=awq", *settings])
    train(config, whole)
    scales = config.run.folder / "awq" / "awq_scales.safetensors"
    before = scales.stat().st_mtime_ns
    plain = Listener()
    train(load_run(run_file, ["run.name=plain", "quant.format=nf4"]), plain)
    assert losses(whole) != losses(plain)
    more = Listener()
    train(load_run(run_file, ["run.name=awq", *settings, "train.steps=8"]), more)
    assert [row["step"] for row in more.steps] == [7, 8]
    assert scales.stat().st_mtime_ns == before


def test_samples_of_swapped_blocks_are_those_of_resident_ones(run_file, tmp_path):
    train(load_run(run_file, ["train.steps=2"]), Events())
    config = load_run(run_file)
    lora = config.run.folder / "r" / "lora" / "r.safetensors"
    drawn = [
        sample(load_run(run_file, settings), lora, tmp_path / str(index), prompts=["a red ball"])[0]
        for index, settings in enumerate(
            ([], ["memory.blocks_to_swap=3"], ["memory.blocks_to_swap=3", "memory.swap_from=file"])
        )
    ]
    assert torch.equal(drawn[0].latents, drawn[1].latents)
    assert torch.equal(drawn[0].latents, drawn[2].latents)
