"""The trial of the largest batch, and steps that run out of memory: on a real tiny run, with failures that are made."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltx2_train import Events, load_run, make_run
from ltx2_train.errors import OutOfMemory, OutOfRam
from ltx2_train.feed.batches import BatchOrder
from ltx2_train.feed.loader import Sample
from ltx2_train.shapes import LatentShape
from ltx2_train.training.checks import check
from ltx2_train.training.fit import Facts, make_plan
from ltx2_train.training.fit import work as work_module
from ltx2_train.training.fit.machine import Machine, Rates, card
from ltx2_train.training.fit.trial import OomGuard, Rewound, guarded, take_guarded, try_largest, unchanged
from ltx2_train.training.fit.work import largest_batch, largest_workload, of_batch
from ltx2_train.training.setup import load


class Told(Events):
    def __init__(self):
        self.warnings, self.messages = [], []

    def message(self, text, level="info"):
        (self.warnings if level == "warning" else self.messages).append(text)


@pytest.fixture
def run(run_file):
    config = load_run(run_file, ["train.caption_dropout=0"])
    checked = check(config, Events())
    run = load(checked, Events())
    yield run
    run.close()


def plan_of(run, size=24):
    """A plan of the tiny run for a card, as small as one can be, so that every notch is there."""
    work = of_batch([run.data.samples[0]], run.config)
    facts = Facts(run.model.config, run.config, work)
    return make_plan(run.config, facts, card(size, 64e9, 1e12))


def full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def snapshot(run):
    weights = [p.detach().clone() for p in run.loras.parameters()]
    draws = [layer.dropout_draws for layer in run.loras.layers.values()]
    return weights, draws, torch.get_rng_state(), [p.grad for p in run.loras.parameters()]


def test_a_trial_changes_nothing_of_the_run(run):
    told, plan = Told(), plan_of(run)
    before = snapshot(run)
    trial = try_largest(run, plan, lambda plan: None, told, forced=True)
    after = snapshot(run)
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])
    assert after[3] == [None] * len(after[3])
    assert trial.seconds > 0
    assert trial.plan == plan
    assert "predicted" in told.messages[-1]


def test_a_trial_is_left_out_on_a_cpu_unless_a_size_is_asked_for(run):
    assert try_largest(run, plan_of(run), lambda plan: None, Events(), step=full) is None
    sized = run.config.model_copy(update={"memory": run.config.memory.model_copy(update={"fit": "8"})})
    run.config = sized
    with pytest.raises(OutOfMemory, match="nothing left to give up"):
        try_largest(run, plan_of(run), lambda plan: None, Events(), step=full)


def test_a_trial_goes_down_until_it_fits(run):
    told, applied, failing = Told(), [], [2]

    def step():
        if failing[0]:
            failing[0] -= 1
            full()

    trial = try_largest(run, plan_of(run), applied.append, told, step=step, forced=True)
    assert len(applied) == 2
    assert trial.plan == applied[-1]
    assert trial.plan.notches == 2
    assert len(told.warnings) == 2
    assert all("From here on" in text for text in told.warnings)


def test_the_same_batches_come_again_after_a_failure(run):
    taken, applied = [], []
    batches = Rewound(iter(["a", "b", "c", "d"]))

    def micro_steps():
        pair = [next(batches), next(batches)]
        taken.append(pair)
        for layer in run.loras.layers.values():
            layer.dropout_draws += 1
        torch.rand(1)
        if len(taken) < 3:
            full()
        return pair

    before = snapshot(run)
    guard = OomGuard(plan_of(run), applied.append, Events(), run.device, save=lambda: "State and LoRA are saved.")
    assert take_guarded(run, batches, guard, micro_steps) == ["a", "b"]
    assert taken == [["a", "b"]] * 3
    assert len({plan.choice for plan in applied}) == 2
    assert [layer.dropout_draws for layer in run.loras.layers.values()] == [draw + 1 for draw in before[1]]
    assert take_guarded(run, batches, guard, lambda: [next(batches), next(batches)]) == ["c", "d"]


def test_other_errors_pass_and_leave_the_batches(run):
    batches = Rewound(iter(["a", "b"]))

    def wrong():
        next(batches)
        raise ValueError("no")

    guard = OomGuard(plan_of(run), lambda plan: None, Events(), run.device)
    with pytest.raises(ValueError, match="no"):
        take_guarded(run, batches, guard, wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        guarded(lambda: (_ for _ in ()).throw(RuntimeError("shapes differ")), guard, "a step")
    assert next(batches) == "a"


def test_what_did_not_fit_is_free_before_the_plan_is_applied(run):
    import weakref

    seen = []

    def step():
        if not seen:
            big = torch.ones(1000)
            seen.append(weakref.ref(big))
            full()

    guard = OomGuard(plan_of(run), lambda plan: seen.append(seen[0]()), Events(), run.device)
    guarded(step, guard, "a step")
    assert seen[1] is None


def test_saved_is_said_and_the_end_is_an_error_with_the_fixed_settings(run):
    told = Told()
    guard = OomGuard(plan_of(run), lambda plan: None, told, run.device, save=lambda: "State and LoRA are saved.")
    with pytest.raises(OutOfMemory, match="ran out of memory while a step.*nothing left"):
        guarded(full, guard, "a step")
    assert told.warnings[0].startswith("Out of memory. State and LoRA are saved. From here on ")
    assert len(set(told.warnings)) == len(told.warnings), "no notch twice"


def test_full_ram_beside_a_card_is_no_reason_to_move_more_there(run):
    applied, text = [], "DefaultCPUAllocator: not enough memory: you tried to allocate 772000000 bytes."

    def step():
        raise RuntimeError(text)

    on_card = OomGuard(plan_of(run), applied.append, Events(), torch.device("cuda"), save=lambda: "Saved.")
    with pytest.raises(OutOfRam, match="RAM of this machine ran out while a step"):
        guarded(step, on_card, "a step")
    assert applied == []
    without = OomGuard(plan_of(run), applied.append, Events(), run.device)
    without.down(OutOfRam(text))  # where there is no card a notch saves RAM
    assert len(applied) == 1


def test_unchanged_gives_gradients_back(run):
    for parameter in run.loras.parameters():
        parameter.grad = torch.ones_like(parameter)
    with unchanged(run):
        for parameter in run.loras.parameters():
            parameter.grad += 1
    assert all(float(p.grad.sum()) == p.numel() for p in run.loras.parameters())


def test_the_largest_batch_is_the_one_with_its_references(monkeypatch):
    """A smaller clip with a reference takes more than a larger one without, if the run shows references at all."""

    def sample(name, frames, reference=None):
        clip = LatentShape(frames, 4, 4)
        return Sample(
            name, clip, 25.0, "", Path(name), Path(name), reference_paths=() if reference is None else (reference,)
        )

    monkeypatch.setattr(work_module, "_latent_shape", lambda path: LatentShape(5, 4, 4))
    samples = [sample("plain", 7), sample("shown", 4, Path("reference")), sample("small", 2)]
    order = BatchOrder(samples, 1, seed=0)
    shown = make_run({"video": {"conditions": [{"type": "reference"}]}})
    assert [one.key for one in largest_batch(order, make_run({}))] == ["plain"]
    (largest,) = largest_batch(order, shown)
    assert largest.key == "shown"
    work = of_batch([largest], shown)
    assert (work.references, work.video_tokens) == ((LatentShape(5, 4, 4),), 9 * 16)
    assert "a reference of 128 x 128, 33 frames" in work.describe()
    assert of_batch([largest], make_run({})).references == ()
    both = make_run({"video": {"conditions": [{"type": "reference"}] * 2}})
    twice = replace(samples[1], reference_paths=(Path("reference"), Path("another")))
    assert of_batch([twice], both).video_tokens == 14 * 16
    assert of_batch([twice], shown).video_tokens == 9 * 16


def test_the_largest_batch_is_found_with_caches_and_without(run_file):
    config = load_run(run_file)
    cached = largest_workload(config)
    assert (cached.shape.frames, cached.shape.height, cached.shape.width) == (2, 2, 2)
    assert cached.captions == 1
    shutil.rmtree(run_file.parent / "cache")
    planned = largest_workload(config)
    assert planned.shape == cached.shape
    assert "not complete" in planned.source
    facts = Facts.read(config, planned, "cpu")
    assert facts.total == 4
    here = Machine("cpu", "cpu", 1e12, 1e12, 1e12, Rates(1e11, 1e10))
    assert make_plan(config, facts, here).recompute_blocks == 4
