"""The memory that is predicted for a step against what real steps hold, measured in two ways that share nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ltx2_train.config import make_run
from ltx2_train.models.transformer import TransformerConfig
from ltx2_train.sizes import meta_model
from ltx2_train.training.fit import simulate
from ltx2_train.training.fit.facts import Facts
from ltx2_train.training.fit.tracker import LiveBytes
from ltx2_train.training.fit.work import Workload, parse_workload

TOTAL = 7  # the simulation has three
CONFIG = TransformerConfig(
    num_layers=TOTAL,
    num_attention_heads=4,
    attention_head_dim=64,
    cross_attention_dim=256,
    audio_num_attention_heads=4,
    audio_attention_head_dim=32,
    audio_cross_attention_dim=128,
)
SETS = {"all": tuple(range(TOTAL)), "none": (), "first": (0, 1, 2, 3), "spread": (0, 2, 5)}
BUCKETS = {"video": "192x128x33", "av": "192x128x33", "audio": "192x128x121"}


def run_of(mode, **more):
    return make_run({"model": {"mode": mode, "precision": "fp32"}, "lora": {"rank": 8}, **more})


def work_of(mode, **more):
    work = parse_workload(BUCKETS[mode], mode)
    return Workload(mode, work.shape, work.sound, text=256, **{"given": work.given, **more})


@lru_cache
def predicted(mode, format="none", batch=1):
    return simulate.simulate(CONFIG, run_of(mode), work_of(mode, batch=batch), format, device_type="cpu")


def real_model(run, recomputed, format="none", text_kv=False):
    torch.manual_seed(0)
    model, _ = meta_model(CONFIG, run, format, TOTAL, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    simulate.set_memory(model, run, run.memory.ff_chunk)
    model.set_recompute(recomputed)
    model.keep_text_kv = text_kv
    return model


class NoMarks:
    def mark(self, name):
        pass


def tracked(run, work, recomputed, format="none", text_kv=False):
    """The peak by our own tracker, on the CPU, above what was there before."""
    model, (batch, contexts) = (
        real_model(run, recomputed, format, text_kv),
        simulate.meta_batch(CONFIG, run, work, "cpu"),
    )
    if format != "none":  # tables that are made once and kept
        simulate.take_step(model, batch, contexts, run, NoMarks(), work.sound)
    tracker = LiveBytes("cpu")
    with tracker:
        simulate.take_step(model, batch, contexts, run, tracker, work.sound)
    assert tracker.live < 4096, "something of the step is left, besides small tables that are made once"
    return tracker.peak


def profiled(run, work, recomputed, format="none"):
    """The same by the allocator's own record."""
    model, (batch, contexts) = real_model(run, recomputed, format), simulate.meta_batch(CONFIG, run, work, "cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        simulate.take_step(model, batch, contexts, run, NoMarks(), work.sound)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize("recomputed", list(SETS))
@pytest.mark.parametrize("mode", ["video", "av", "audio"])
def test_peak_of_a_step_is_predicted(mode, recomputed):
    chosen = SETS[recomputed]
    found = tracked(run_of(mode), work_of(mode), chosen)
    assert predicted(mode).peak(TOTAL, chosen) == pytest.approx(found, rel=0.04)


@pytest.mark.parametrize("recomputed", ["all", "none"])
def test_the_allocator_agrees(recomputed):
    found = profiled(run_of("av"), work_of("av"), SETS[recomputed])
    assert predicted("av").peak(TOTAL, SETS[recomputed]) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("format", ["fp8", "int8_rotated", "nf4"])
def test_peak_over_a_quantized_base_is_predicted(format, monkeypatch):
    # the library's kernel, where it is there, saves some temporaries of the size of a layer's weight
    monkeypatch.setattr("ltx2_train.quant.nf4._library_agrees", lambda *_: False)
    found = tracked(run_of("video"), work_of("video"), SETS["first"], format)
    assert predicted("video", format).peak(TOTAL, SETS["first"]) == pytest.approx(found, rel=0.05)


def test_batches_and_a_first_frame_that_is_never_given():
    run, work = run_of("video"), work_of("video", batch=2, given=False)
    found = tracked(run, work, SETS["all"])
    profile_ = simulate.simulate(CONFIG, run, work, device_type="cpu")
    assert profile_.peak(TOTAL, SETS["all"]) == pytest.approx(found, rel=0.04)


CONDITIONS = {
    "video": {"conditions": [{"type": "reference", "probability": 0.5}]},
    "audio": {"conditions": [{"type": "reference", "probability": 0.5}]},
}


def test_references_in_front_of_picture_and_sound_are_counted():
    recomputed = "spread"
    run, plain = run_of("av", **CONDITIONS), work_of("av")
    work = replace(plain, references=(plain.shape,), reference_sound=plain.sound)
    found = tracked(run, work, SETS[recomputed])
    profile_ = simulate.simulate(CONFIG, run, work, device_type="cpu")
    assert profile_.peak(TOTAL, SETS[recomputed]) == pytest.approx(found, rel=0.05)
    assert profile_.peak(TOTAL, SETS[recomputed]) > 1.4 * predicted("av").peak(TOTAL, SETS[recomputed])


def test_norms_that_are_kept_in_a_replay_are_counted(monkeypatch):
    run, work, lean = run_of("video"), work_of("video"), False
    profile_ = simulate.simulate(CONFIG, run, work, device_type="cpu", lean=lean)
    real = simulate.set_memory
    monkeypatch.setattr(simulate, "set_memory", lambda model, *rest: (real(model, *rest), model.set_lean(lean)))
    found = tracked(run, work, SETS["all"])
    assert profile_.peak(TOTAL, SETS["all"]) == pytest.approx(found, rel=0.04)


def test_text_keys_and_values_that_are_kept():
    run, work = run_of("av"), work_of("av")
    found = tracked(run, work, SETS["all"], text_kv=True)
    facts = Facts(CONFIG, run, work, "cpu")
    assert predicted("av").peak(TOTAL, SETS["all"], text_kv=facts.text_kv_bytes) == pytest.approx(found, rel=0.04)


def test_settings_that_save_memory_are_simulated():
    work = work_of("video", batch=2)
    small, whole = (simulate.simulate(CONFIG, run_of("video"), work, ff_chunk=chunk) for chunk in (64, 0))
    # at this size the text holds more than a feed-forward, so it is the number of its slices that shows it
    assert small.recomputed.forward_operations > whole.recomputed.forward_operations
    step = predicted("video")
    assert step.peak(48, range(47), offloaded=True) <= step.peak(48, range(47)) < step.peak(48, ())
    assert step.peak(TOTAL, SETS["all"], held_gradients=True) >= step.peak(TOTAL, SETS["all"])


def test_live_bytes_counts_what_is_new_and_forgets_what_is_freed():
    weight = torch.ones(1000)
    with LiveBytes("cpu") as tracker:
        a = weight * 2
        view = a[:10]
        tracker.mark("second")
        b = a + 1
        del a, view
        assert tracker.live == 4000
        del b
    assert tracker.peak == 8000
    assert [s.name for s in tracker.segments] == ["before", "second"]
    assert (tracker.segments[0].end, tracker.segments[1].rise, tracker.live) == (4000, 4000, 0)
    assert tracker.segments[0].traffic == 8000
