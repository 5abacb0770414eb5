"""Which plan a card gets, what is said about it, and how it is kept.

It is long: one card after another, by the same facts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from ltx2_train.config import make_run
from ltx2_train.errors import ConfigError, RunError
from ltx2_train.events import Events
from ltx2_train.models.transformer import TransformerConfig
from ltx2_train.sampling.decoded import decode_bytes
from ltx2_train.shapes import LatentShape, VideoShape
from ltx2_train.training.fit import Facts, MemoryPlan, make_plan, parse_workload
from ltx2_train.training.fit import machine as machine_module
from ltx2_train.training.fit.choose import fitted
from ltx2_train.training.fit.estimate import Traffic, between_cards, device_parts, moved_for_samples, predict
from ltx2_train.training.fit.machine import CARD_SIZES, GIB, Machine, Rates, available_ram, card, measure, this_machine
from ltx2_train.training.fit.memory_plan import Choice
from ltx2_train.training.fit.pace import Pace
from ltx2_train.training.fit.report import make_report
from ltx2_train.training.fit.speed import flops
from ltx2_train.training.fit.work import Workload

RAM, DISK = 64e9, 1e12
FULL = TransformerConfig()


@lru_cache
def full(mode="video", bucket="512x512x121"):
    run = make_run({"model": {"mode": mode}})
    return Facts.published("2.3", run, parse_workload(bucket, mode))


def plan_for(size, facts=None, ram=RAM, stored=None, machine=None, **settings):
    facts = facts or full()
    run = make_run({"model": {"mode": facts.work.mode}, **settings})
    return make_plan(run, replace(facts, run=run), machine or card(size, ram, DISK), stored)


# arithmetic done by hand for the full size: tokens of picture and sound, TFLOP of a forward pass, of a step without
# recompute, with all of it, and with all but the products nobody reads at the tightest bound for attention
TABLE = [
    (4096, 0, 112.2, 247.8, 360.6, 325.9),
    (4096, 126, 127.5, 279.5, 408.0, 373.0),
    (6144, 0, 176.5, 404.5, 582.0, 525.1),
    (6144, 126, 198.7, 450.6, 650.8, 593.3),
    (1792, 0, 47.7, 99.0, 147.0, 133.4),
    (1792, 51, 54.7, 112.9, 168.1, 154.5),
    (256, 0, 9.3, 16.0, 25.4, 23.7),
]


@pytest.mark.parametrize(("tokens", "sound", "forward", "plain", "again", "tight"), TABLE)
def test_arithmetic_of_a_step(tokens, sound, forward, plain, again, tight):
    work = Workload("av" if sound else "video", LatentShape(1, 1, tokens), sound)
    lora = replace(full("av" if sound else "video"), work=work).sizes("none").lora_of
    found, bound = flops(FULL, work, lora), flops(FULL, work, lora, attention_backward=2.0)
    assert flops(FULL, work).forward / 1e12 == pytest.approx(forward, rel=0.006)
    assert found.total() / 1e12 == pytest.approx(plain, rel=0.006)
    assert (found.total(1.0) + found.unread) / 1e12 == pytest.approx(again, rel=0.006)
    assert bound.total(1.0) / 1e12 == pytest.approx(tight, rel=0.006)


def test_sizes_of_the_published_model():
    video, av = full().sizes("none"), full("av").sizes("none")
    assert video.block / 1e6 == pytest.approx(537, rel=0.01)
    assert av.block / 1e6 == pytest.approx(772, rel=0.01)
    assert full("av").sizes("int8_rotated").block / 1e6 == pytest.approx(386, rel=0.02)
    assert full("av").lora_values / 1e6 == pytest.approx(214, rel=0.03)
    assert full().context_bytes == 1024 * 4096 * 2


def test_every_card_gets_a_plan_and_a_smaller_one_is_never_faster():
    previous = 0.0
    for size in CARD_SIZES:
        plan = plan_for(size)
        assert plan.prediction.vram <= plan.limit < size * GIB
        assert plan.format == "none", "RAM is plenty, so the base stays as it is"
        per_card = plan_for(0, machine=replace(card(size, RAM, DISK), rates=card(24, RAM, DISK).rates))
        assert per_card.prediction.seconds >= previous * 0.95
        previous = per_card.prediction.seconds
    assert plan_for(80).choice == Choice("none", pinned=True)
    assert plan_for(8).blocks_to_swap > plan_for(12).blocks_to_swap > plan_for(24).blocks_to_swap


def test_parts_add_up():
    plan = plan_for(24)
    assert sum(plan.prediction.parts.values()) == pytest.approx(plan.prediction.vram)
    more = device_parts(full(), replace(plan.choice, blocks_to_swap=plan.blocks_to_swap + 1))
    assert plan.prediction.parts["weights"] - more["weights"] == full().sizes("none").block


def test_clips_held_out_cost_time_and_memory():
    plain, work = plan_for(24), replace(full().work, held_out=8, held_out_tokens=full().work.video_tokens)
    facts = replace(full(), work=work, run=make_run({"validation": {"levels": 4}}))
    measured = predict(facts, plain.choice, card(24, RAM, DISK))
    assert measured.seconds == plain.prediction.seconds
    assert plain.prediction.seconds * 8 < measured.validation < plain.prediction.seconds * 20  # 32 forward passes
    assert plain.prediction.validation == 0
    large = replace(facts, work=replace(work, held_out_tokens=30 * work.video_tokens))
    more = predict(large, plain.choice, card(24, RAM, DISK))
    assert more.validation == pytest.approx(30 * measured.validation)
    assert more.parts["samples"] > measured.parts["samples"]
    assert more.parts["step"] == measured.parts["step"]
    told = make_plan(facts.run, facts, card(24, RAM, DISK)).reasons
    assert any(text.startswith("Each validation (8 clips at 4 noise levels) takes about") for text in told)


def test_full_finetuning_counts_weights_gradients_and_state():
    settings = {"train": {"what": "full", "clip_norm": 0}, "optimizer": {"name": "adafactor"}}
    released = plan_for(80, full_weights(released=True), **settings, full={"release_gradients": True})
    assert (released.format, released.blocks_to_swap) == ("none", 0)
    values = full_weights(released=True).lora_values
    assert values == pytest.approx(48 * full().sizes("none").block / 2, rel=0.1)
    parts = released.prediction.parts
    assert parts["trained"] == 2 * values
    assert parts["weights"] < 1e6
    assert parts["optimizer"] < 0.3 * values
    lean = replace(released.choice, recompute_blocks=48)  # else what is kept for backward is more than all gradients
    kept, let_go = (device_parts(full_weights(released=way), lean) for way in (False, True))
    assert kept["step"] - let_go["step"] == pytest.approx(2 * values, rel=0.1)
    with pytest.raises(ConfigError, match=r"let gradients go \(full\.release_gradients\), or train a LoRA"):
        plan_for(24, full_weights(released=True), **settings, full={"release_gradients": True})


@lru_cache
def full_weights(released):
    run = make_run(
        {"train": {"what": "full"}, "full": {"release_gradients": released}, "optimizer": {"name": "adafactor"}}
    )
    return replace(full(), run=run, _sizes={}, _profiles={})


def test_little_ram_makes_the_base_smaller_and_never_four_bits_where_eight_fit():
    plan = plan_for(12, ram=20e9)
    assert plan.format == "int8_rotated"
    assert any("times as long" in text for text in plan.rejected), "the base as it is would be read from the file"
    assert plan_for(80, ram=12e9).format == "none"


def test_nothing_fits_says_the_need_and_the_remedy():
    with pytest.raises(ConfigError) as caught:
        plan_for(0, machine=replace(card(8, RAM, DISK), limit=2e9), quant={"format": "none"})
    text = str(caught.value)
    for words in ("512 x 512", "target_frames", "GB on the card", 'quant.format to "auto"'):
        assert words in text
    with pytest.raises(ConfigError, match="RAM"):
        plan_for(8, ram=4e9, quant={"format": "none"})


def test_settings_that_the_user_made_stay():
    plan = plan_for(24, memory={"blocks_to_swap": 40, "pinned": False})
    assert (plan.blocks_to_swap, plan.pinned) == (40, False)
    assert set(plan.fixed) == {"blocks_to_swap", "pinned"}
    assert plan_for(80, memory={"recompute_blocks": 48}).recompute_blocks == 48
    assert plan_for(80, memory={"gradient_checkpointing": False}).recompute_blocks == 0
    assert plan_for(24, quant={"format": "nf4"}).format == "nf4"
    assert plan_for(80, memory={"offload_activations": True}).offload_activations
    with pytest.raises(ConfigError, match="must be recomputed"):
        plan_for(24, memory={"blocks_to_swap": 40, "recompute_blocks": 3})
    with pytest.raises(ConfigError, match="at most 47"):
        plan_for(24, memory={"blocks_to_swap": 48})


def test_fit_bounds_a_larger_card():
    run = make_run({"memory": {"fit": 16}})
    big = card(80, RAM, DISK)
    assert fitted(run, big).limit == card(16, RAM, DISK).limit
    crowded = replace(big, limit=5e9)
    assert fitted(run, crowded).limit == 5e9


def test_a_card_that_others_fill_is_named():
    machine = replace(card(24, RAM, DISK), limit=12e9, taken=12e9)
    plan = plan_for(0, machine=machine)
    assert plan.prediction.vram <= 12e9
    assert plan.reasons[0].startswith("Other programs hold 12.0 of the 25.8 GB of the card")


def test_custom_takes_the_settings_as_they_are():
    plan = plan_for(8, memory={"fit": "custom", "blocks_to_swap": 3})
    assert (plan.format, plan.blocks_to_swap, plan.recompute_blocks) == ("none", 3, 48)
    assert any("may fail" in reason for reason in plan.reasons)
    assert plan.notch_down() is None


def test_a_quantized_file_is_kept():
    plan = plan_for(24, facts=replace(full(), stored_as="fp8_cast"))
    assert plan.format == "kept"
    run = make_run({})
    assert plan.quant_settings(run.quant) == run.quant
    assert plan_for(24, quant={"format": "fp8"}).quant_settings(run.quant).format == "fp8"


def test_on_a_cpu_the_model_lies_in_ram():
    machine = Machine("cpu", "cpu", 100e9, 100e9, DISK, Rates(1e11, 1e10))
    facts = replace(full("video", "128x128x9"), device_type="cpu", _sizes={}, _profiles={})
    plan = plan_for(0, facts=facts, machine=machine)
    assert (plan.blocks_to_swap, plan.recompute_blocks, plan.format) == (0, 48, "none")
    with pytest.raises(ConfigError, match="RAM"):
        plan_for(0, facts=facts, machine=replace(machine, limit=8e9, ram=8e9))


def test_a_slow_link_makes_eight_bits_worth_their_loss():
    slow = card(24, RAM, DISK)
    slow = replace(slow, limit=9e9, rates=replace(slow.rates, pinned=2e9, pageable=2e9))
    plan = plan_for(0, facts=full("video", "512x512x49"), machine=slow)
    assert plan.format == "int8_rotated"
    assert any("times as long" in text for text in plan.rejected)


def test_notches_never_repeat_and_end():
    plan, seen, last = plan_for(48), [], float("inf")
    assert plan.recompute_blocks < 48
    while plan is not None:
        assert plan.choice not in seen
        assert plan.format == "none"
        assert len(plan.recomputed()) >= plan.blocks_to_swap
        assert set(plan.streamed()) <= plan.recomputed()
        assert plan.prediction.vram <= last * 1.001
        seen.append(plan.choice)
        last, end, plan = plan.prediction.vram, plan, plan.notch_down()
    assert (end.blocks_to_swap, end.choice.ff_chunk, end.offload_activations) == (47, 256, True)
    assert 5 < len(seen) < 25


def test_a_notch_leaves_fixed_settings_alone():
    plan = plan_for(24, memory={"blocks_to_swap": 30})
    while (leaner := plan.notch_down()) is not None:
        assert leaner.blocks_to_swap == 30
        assert plan.difference(leaner) != "nothing changes"
        plan = leaner


def test_memory_settings_have_every_field():
    plan = plan_for(12)
    settings = plan.memory_settings(make_run({"memory": {"context_gb": 2, "split_attention": "query"}}).memory)
    assert (settings.fit, settings.context_gb, settings.split_attention) == ("custom", 2, "query")
    for name in ("recompute_blocks", "blocks_to_swap", "pinned", "offload_activations"):
        assert getattr(settings, name) is not None
        assert getattr(settings, name) == getattr(plan, name)


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 12, 16])
def test_samples_find_room_on_a_small_card_and_in_32_gb_of_ram(size):
    """A PC of 32 GB has 27 free. While samples are decoded, blocks of the card wait there beside those that are
    swapped."""
    ram = 27.2e9
    plan, none = plan_for(size, full("av"), ram=ram), plan_for(size, full("av"), ram=ram, sample={"every": 0})
    facts = replace(full("av"), run=make_run({"model": {"mode": "av"}, "optimizer": {"name": plan.optimizer}}))
    assert plan.prediction.ram <= ram
    assert plan.prediction.vram <= plan.limit
    sizes, moved = facts.sizes(plan.format), moved_for_samples(facts, plan.choice, plan.limit)
    there = plan.prediction.parts
    left = plan.limit - there["weights"] - there["LoRA"] - there["optimizer"] + moved
    decoder = decode_bytes(make_run({}).sample.tiles, VideoShape(49, 512, 768))
    assert left >= decoder or moved == (48 - plan.blocks_to_swap) * sizes.block
    assert moved - sizes.block < decoder, "no more blocks leave than must"
    assert none.prediction.parts["samples"] == 0


def test_an_upsampler_of_samples_needs_its_room_too(monkeypatch):
    monkeypatch.setattr("ltx2_train.training.fit.estimate.upsampling_bytes", lambda path, shape: 20e9)
    plan, facts = plan_for(16, full(), ram=64e9), full()
    two = replace(facts, run=make_run({"sample": {"upsampler": "x2.safetensors"}}))
    before, after = (moved_for_samples(one, plan.choice, plan.limit) for one in (facts, two))
    assert before < after


def test_a_sample_larger_than_the_clips_is_reckoned_with():
    large = {"width": 2048, "height": 1152, "frames": 257}
    choice = Choice("none", 47, 48, offload_activations=True)
    usual, more = (replace(full(), run=make_run({"sample": one})) for one in ({}, large))
    assert device_parts(usual, choice)["samples"] == 0
    assert device_parts(more, choice)["samples"] > 1e9
    assert device_parts(replace(more, run=make_run({"sample": {**large, "every": 0}})), choice)["samples"] == 0


def test_norms_are_made_once_more_only_where_memory_asks_for_it():
    assert not plan_for(80).choice.lean
    lean = plan_for(0, machine=replace(card(8, RAM, DISK), limit=4.2e9))
    assert lean.choice.lean
    assert lean.prediction.vram <= 4.2e9


def test_what_may_not_be_locked_comes_slowly_and_inputs_are_locked_first():
    memory = {"blocks_to_swap": 40, "offload_activations": True, "recompute_blocks": 48}
    stays, machine = {"format": "none"}, card(12, RAM, DISK)
    machine = replace(machine, rates=replace(machine.rates, pinned=5e9, pageable=2e9))
    block, inputs = full().sizes("none").block, 48 * full().profile("none").recomputed.saved
    whole = plan_for(0, machine=machine, memory=memory, quant=stays)
    some = plan_for(0, machine=replace(machine, lockable=inputs + 10 * block), memory=memory, quant=stays)
    none = plan_for(0, machine=replace(machine, lockable=inputs / 2), memory=memory, quant=stays)
    assert (whole.pinned, whole.choice.pinned_gb) == (True, None)
    assert some.pinned
    assert some.choice.pinned_gb == pytest.approx(10 * block / GIB, abs=0.01)
    assert "partly pinned RAM" in some.describe()
    assert some.memory_settings(make_run({}).memory).pinned_gb == some.choice.pinned_gb
    assert not none.pinned
    assert whole.prediction.seconds < some.prediction.seconds < none.prediction.seconds
    unlocked = predict(full(), replace(some.choice, pinned=False), machine).seconds
    kept = predict(full(), replace(some.choice, pinned=False, offload_activations=False), machine).seconds
    assert unlocked - kept > 1.9 * inputs / machine.rates.pageable, "copies of what is not locked overlap with nothing"


def test_windows_and_a_host_keep_more_of_the_card_free(monkeypatch):
    here = machine_module
    assert here.reserve(12e9) == 0.3e9
    asked = []

    class Host(Events):
        def kept_free(self, device):
            return 3 * GIB

        def may_lock(self):
            return 5 * GIB

    card_of = Machine("cuda", "", 10e9, RAM, DISK, Rates(1e12, 1e11), total=16e9, held=2e9)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: asked.append(share))
    here.hold_to(card_of, torch.device("cuda"))
    assert asked == [], "elsewhere the driver says that a card is full"
    monkeypatch.setattr(here.sys, "platform", "win32")
    assert here.reserve(12e9) == 0.7e9
    here.hold_to(card_of, torch.device("cuda"))
    here.lift_limit(torch.device("cuda"))
    assert asked == [12 / 16, 1.0]
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (14 * GIB, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    for name in ("memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(here, "measure", lambda device: Rates(1e12, 1e11))
    found = here.this_machine(torch.device("cuda"), Path(), Host())
    assert found.limit == 11 * GIB
    assert found.lockable <= 5 * GIB


def test_ram_is_what_every_control_group_round_the_process_leaves(tmp_path):
    own = tmp_path / "cgroup"
    for name, most, used, cached in (("a", "max", 9, 0), ("a/b", 100, 70, 20), ("a/b/c", 90, 20, 0)):
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    own.write_text("0::/a/b/c\n")
    assert machine_module._container_ram(tmp_path / "groups", own) == 50
    own.write_text("0::/\n")
    assert machine_module._container_ram(tmp_path / "groups", own) == float("inf")


def test_steps_that_take_twice_as_long_as_the_trial_are_named_once():
    told = []

    class Told(Events):
        def message(self, text, level="info"):
            told.append((level, text))

    pace = Pace(torch.device("cpu"), 1.0, Told())
    for taken in (9.0, 1.1, 1.2, 1.1, 9.0, 1.1):
        pace.step(taken)
    assert told == []
    for _ in range(9):
        pace.step(3.0)
    assert len(told) == 1
    assert told[0][0] == "warning"
    assert "Steps take 3.0 s, and the trial took 1.00 s." in told[0][1]


def test_the_optimizer_is_the_fast_one_unless_memory_asks_for_the_other(monkeypatch):
    pytest.importorskip("bitsandbytes")
    large, small = plan_for(80), plan_for(8, full("av"))
    assert (large.optimizer, small.optimizer) == ("adamw", "adamw8bit")
    assert "Optimizer adamw8bit, whose state takes 1.3 GB less" in small.reasons[-1]
    assert plan_for(8, full("av"), optimizer={"name": "adamw8bit"}).choice == small.choice
    facts = replace(full("av"), run=make_run({"optimizer": {"name": "adamw8bit"}}))
    plain = replace(facts, run=make_run({"optimizer": {"name": "adamw"}}))
    machine = card(80, RAM, DISK)
    more = predict(facts, large.choice, machine).seconds - predict(plain, large.choice, machine).seconds
    assert more > 0.04, "2304 tensors, and after each of them the host waits"
    monkeypatch.setattr("ltx2_train.optim.optimizers.why_missing", lambda name: "is not installed")
    assert plan_for(8, full("av")).optimizer == "adamw"


def test_plan_json_and_what_a_resumed_run_keeps(tmp_path):
    plan = plan_for(12, ram=20e9)
    assert plan.format == "int8_rotated"
    assert MemoryPlan.load(tmp_path) is None
    plan.save(tmp_path)
    again = MemoryPlan.load(tmp_path)
    assert again == plan
    resumed = plan_for(80, stored=again)
    assert (resumed.format, resumed.blocks_to_swap) == ("int8_rotated", 0)
    assert any("keeps it" in reason for reason in resumed.reasons)
    with pytest.raises(ConfigError, match="began with int8_rotated"):
        plan_for(80, stored=again, quant={"format": "nf4"})
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(RunError, match="Delete it"):
        MemoryPlan.load(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json() | {"version": 99}))
    with pytest.raises(RunError, match="another version"):
        MemoryPlan.load(tmp_path)


def test_settings_of_swapped_blocks_are_told_where_none_is_swapped():
    memory = {"swap_ahead": 3, "swap_from": "file", "pinned_gb": 2.0}
    told = "memory.swap_ahead and memory.swap_from and memory.pinned_gb have no effect: no block is swapped."
    assert told in plan_for(80, memory=memory).reasons
    assert "memory.pinned has no effect: no block is swapped." in plan_for(80, memory={"pinned": True}).reasons
    swapped = plan_for(80, memory={"swap_ahead": 3, "blocks_to_swap": 4})
    assert not any("no block is swapped" in reason for reason in swapped.reasons)


def test_a_size_that_the_model_does_not_have_is_said():
    assert "65x64x18, which is not a size of the model" in parse_workload("65x64x18", "video").source
    assert parse_workload("64x64x17", "video").source == "the size that was given"


def test_report_has_a_row_a_size_and_marks_the_chosen():
    facts = full()
    nowhere = Machine("none", "", 0.0, RAM, DISK, Rates(1e12, 1e11))
    run = make_run({"memory": {"fit": 24}})
    report = make_report(run, replace(facts, run=run), nowhere, sizes=(80, 24, 8))
    assert [row.size for row in report.rows] == [80, 24, 8]
    assert report.chosen.size == 24
    assert [line for line in report.text().splitlines() if line.startswith("> ")][0].startswith("> 24 GB")
    assert json.loads(json.dumps(report.to_json()))["rows"][1]["plan"]["choice"]["format"] == "none"


def test_rates_and_memory_of_this_machine(tmp_path):
    rates = measure(torch.device("cpu"))
    assert min(rates.matmul, rates.bandwidth) > 1e8
    assert 0 < available_ram() < 1e14
    here = this_machine(torch.device("cpu"), tmp_path / "not" / "yet")
    assert here.device_type == "cpu"
    assert here.disk > 0


def test_a_rate_is_that_of_a_tenth_of_a_second_on_random_numbers(monkeypatch):
    """A card runs its first milliseconds faster than the rest, and ones faster than random numbers."""
    clock, runs = [0.0], []

    def run():
        runs.append(clock[0])
        clock[0] += 0.001 if clock[0] < 0.010 else 0.002

    monkeypatch.setattr(machine_module.time, "perf_counter", lambda: clock[0])
    cpu = torch.device("cpu")
    assert machine_module._seconds(run, cpu) == pytest.approx(0.001)
    clock[0] = 0.0
    assert machine_module._seconds(run, cpu, sustained=0.1) == pytest.approx(0.002, rel=0.03)
    assert all(factor.std() > 0.9 for factor in machine_module._factors(64, cpu, torch.float32))


def test_accumulation_multiplies_the_time():
    facts = full()
    choice = plan_for(24).choice
    more = replace(facts, run=make_run({"train": {"accumulation": 4}}))
    one, four = (predict(f, choice, card(24, RAM, DISK)) for f in (facts, more))
    assert four.seconds == pytest.approx(4 * one.seconds, rel=0.05)
    assert four.vram >= one.vram


def test_blocks_that_the_phase_before_left_in_the_slots_do_not_cross_the_link():
    machine = card(80, RAM, DISK)
    slow = replace(machine, rates=replace(machine.rates, pinned=1e9))
    block = full().sizes("none").block / 1e9

    def taken(swapped, **more):
        choice = Choice("none", blocks_to_swap=swapped, recompute_blocks=48, pinned=True, **more)
        return predict(full(), choice, slow).seconds

    assert taken(12) == pytest.approx(2 * (12 - 2) * block, rel=0.01)
    assert taken(12, swap_ahead=3) == pytest.approx(2 * (12 - 4) * block, rel=0.01)
    assert taken(2) == taken(0), "as many as there are slots for never leave"


def test_what_cards_send_each_other_takes_the_time_of_their_link():
    two = {"train": {"processes": 2, "accumulation": 3}}
    alone, joined = full(), replace(full(), run=make_run(two))
    link = card(80, RAM, DISK).rates.pinned
    halves = 4.0 * alone.lora_values  # gradients in float32: half of them to the other, and half of the sums back
    assert between_cards(alone, Choice("none")).of_step(1) == 0
    assert between_cards(joined, Choice("none")) == Traffic(averaged=halves)

    block = alone.sizes("none").block
    shared = Choice("none", recompute_blocks=48, shards=2)
    assert between_cards(joined, shared) == Traffic(gathered=47 * block / 2, averaged=halves)
    assert between_cards(joined, shared).of_step(3) == 3 * 47 * block + halves

    def seconds(facts, choice, rate):
        machine = card(80, RAM, DISK)
        return predict(facts, choice, replace(machine, rates=replace(machine.rates, pinned=rate))).seconds

    whole = replace(shared, shards=1)
    assert seconds(joined, whole, link) - seconds(joined, whole, 1e30) == pytest.approx(halves / link)
    slow = 1e6  # bytes a second: all else passes meanwhile
    assert seconds(joined, shared, slow) == pytest.approx((3 * 47 * block + halves) / slow, rel=1e-3)
    assert seconds(joined, shared, link) < seconds(joined, whole, link) * 1.5  # gathered beside the work


def test_of_trained_blocks_that_are_shared_out_gradients_travel_too():
    run = make_run({"train": {"what": "full", "processes": 4}, "memory": {"shard": True}})
    facts = Facts.published("2.3", run, parse_workload("512x512x121", "video"))
    sent = between_cards(facts, Choice("none", recompute_blocks=48, shards=4))
    outside = facts.sizes("none").outside_values
    inside = (facts.lora_values - outside) / 48
    assert sent.gathered == pytest.approx(0.75 * 47 * (2 * inside + facts.sizes("none").block))
    assert sent.scattered == pytest.approx(0.75 * 47 * 2 * inside)  # gradients in bf16
    assert sent.averaged == pytest.approx(2 * 0.75 * 2 * (outside + inside))  # the last block is whole everywhere


def test_a_report_says_what_cards_send_each_other():
    run = make_run({"train": {"processes": 2}, "memory": {"shard": True}})
    text = make_report(run, replace(full(), run=run), card(80, RAM, DISK), (80,)).text()
    sent = between_cards(replace(full(), run=run), Choice("none", shards=2)).of_step(1)
    assert f"Each receives {sent / 1e9:.1f} GB a step from the others" in text
    assert "a card's link to RAM, 52 GB/s here" in text


def test_the_header_of_a_quantized_file_is_understood(tiny, tmp_path):
    from ltx2_train.quant.settings import QuantSettings
    from ltx2_train.weights.quantized_file import quantize_checkpoint

    quantize_checkpoint(tiny.checkpoint, tmp_path / "small.safetensors", QuantSettings(format="int8"))
    run = make_run({"model": {"checkpoint": str(tmp_path / "small.safetensors")}})
    facts = Facts.read(run, parse_workload("64x64x9", "video"), "cuda")
    assert (facts.stored_as, facts.total) == ("int8", 4)
    assert make_plan(run, facts, card(8, RAM, DISK)).format == "kept"
    assert facts.sizes("kept").block < 0.6 * facts.sizes("none").block


def test_blocks_that_are_quantized_while_loading_take_disk_where_they_wait_in_a_file():
    facts, machine = full(), card(24, RAM, DISK)
    choice = replace(plan_for(24).choice, blocks_to_swap=40)

    def disk(**changes):
        return predict(facts, replace(choice, **changes), machine).disk

    in_ram = disk(format="int8", swap_from="ram")
    assert disk(format="none", swap_from="file") == in_ram
    assert disk(format="int8", swap_from="file") - in_ram == pytest.approx(40 * facts.sizes("int8").block)
