"""Which run it is: every field counts, whatever is put back to its default; records of earlier versions go on."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltx2_train.config import RunConfig, make_run
from ltx2_train.errors import RunError
from ltx2_train.feed.loader import SoundBuckets
from ltx2_train.files import digest
from ltx2_train.training import identity
from ltx2_train.training.identity import Identity, changes, recorded_optimizer, require_same
from ltx2_train.training.state import save_state, state_name

BASE = {"file": "ltx.safetensors", "fingerprint": "0123456789abcdef", "version": "2.3"}
LAYERS = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k"]
SAMPLE = SimpleNamespace(key="clip", shape="(2, 2, 2)", repeats=1, fps=25.0, audio_steps=6)
DATA: Any = SimpleNamespace(samples=(SAMPLE,), batch_sizes=(1,), buckets=(SoundBuckets(),))


def config(**groups: dict[str, Any]) -> RunConfig:
    return make_run({"optimizer": {"name": "adamw"}, **groups})


def of(run: RunConfig, base=BASE) -> Identity:
    return Identity.of(run, base, DATA, LAYERS)


def stored(one: Identity) -> dict[str, Any]:
    """The record as it comes back from the manifest."""
    return json.loads(json.dumps(one.record()))


def other(value: Any) -> Any:
    """Another value of the same kind; one that is not set becomes set, and the other way round."""
    if value is None:
        return 1
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else [*value, "x"] if isinstance(value, list) else None


FULL = config(
    model={"mode": "av"},
    quant={"format": "nf4", "loftq": True, "awq": False},
    optimizer={"name": "adamw", "args": {"amsgrad": True}},
    train={"loraplus_ratio": 16, "lr_args": {"attn1": 1e-3}, "audio_learning_rate": 1e-4},
)


@pytest.mark.parametrize("run", [config(), FULL])
def test_a_record_agrees_with_itself(run):
    assert changes(stored(of(run)), of(run).record()) == []


@pytest.mark.parametrize("field", [one.name for one in fields(Identity)])
@pytest.mark.parametrize("run", [config(), FULL], ids=["defaults", "everything on"])
def test_every_field_that_is_dropped_or_changed_is_noticed_by_name(field, run):
    now = of(run)
    setting = next(one.metadata["setting"] for one in fields(Identity) if one.name == field)
    changed = stored(replace(now, **{field: other(getattr(now, field))}))
    dropped = stored(now)
    del dropped[setting]
    for before, after in ((changed, now.record()), (dropped, now.record()), (now.record(), dropped)):
        assert [line.partition(":")[0] for line in changes(before, after)] == [setting]


@pytest.mark.parametrize(
    ("begun", "named"),
    [
        ({"quant": {"format": "nf4", "loftq": True}}, "quant.loftq: was on (loftq_iters 2), now off"),
        ({"lora": {"algo": "loha"}}, "lora.algo: was loha, now lora"),
        ({"quant": {"block_size": 64}}, "quant.block_size: was 64, now 32"),
        ({"quant": {"format": "nf4", "awq": True}}, "quant.awq: was on (awq_alpha 0.25, awq_batches 8), now off"),
        ({"train": {"loraplus_ratio": 16}}, "train.loraplus_ratio: was on, now off"),
        ({"train": {"audio_learning_rate": 1e-4}}, "train.audio_learning_rate: was on, now off"),
        ({"train": {"lr_args": {"attn1": 1e-3}}}, "train.lr_args: was ['attn1'], now []"),
        ({"optimizer": {"name": "adamw", "args": {"amsgrad": True}}}, "optimizer.args: was {'amsgrad': True}, now {}"),
    ],
)
def test_what_is_put_back_to_its_default_is_refused_by_name(begun, named, tmp_path):
    with pytest.raises(RunError) as caught:
        require_same(tmp_path, stored(of(config(**begun))), of(config()), config(), DATA)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [named]


def test_rates_and_numbers_of_the_optimizer_may_change(tmp_path):
    begun = config(train={"learning_rate": 1e-4, "loraplus_ratio": 4, "lr_args": {"attn1": 1e-3}})
    now = config(
        train={"learning_rate": 2e-4, "loraplus_ratio": 8, "lr_args": {"attn1": 1e-2}},
        optimizer={"name": "adamw", "weight_decay": 1.0},
    )
    require_same(tmp_path, stored(of(begun)), of(now), now, DATA)


def test_a_renamed_checkpoint_is_the_same_and_another_under_the_same_name_is_not(tmp_path):
    before = stored(of(config()))
    require_same(tmp_path, before, of(config(), {**BASE, "file": "renamed.safetensors"}), config(), DATA)
    with pytest.raises(RunError, match=r"model\.checkpoint: was ltx\.safetensors \(01234567\), now ltx\.safetensors"):
        require_same(tmp_path, before, of(config(), {**BASE, "fingerprint": "f" * 16}), config(), DATA)


def test_a_field_that_came_later_is_known_for_runs_of_the_version_before(monkeypatch):
    now = of(config()).record()
    before = {name: value for name, value in now.items() if name != "schedule.name"}
    later = identity.VERSION + 1
    monkeypatch.setattr(identity, "VERSION", later)
    monkeypatch.setattr(identity, "FORMER", {later: {"schedule.name": "linear"}})
    assert changes(before, now) == []
    assert changes({**before, "version": later}, now) == ["schedule.name: was not recorded, now linear"]


def test_the_noise_that_a_lokr_begins_with_is_part_of_the_run_where_its_record_tells_it(tmp_path):
    noisy, without = (config(lora={"algo": "lokr", "lokr_norm": norm}) for norm in (1e-3, 0.0))
    with pytest.raises(RunError, match=r"lora\.lokr_norm: was 0\.001, now 0"):
        require_same(tmp_path, stored(of(noisy)), of(without), without, DATA)
    of_version_3 = {name: value for name, value in stored(of(noisy)).items() if name != "lora.lokr_norm"}
    require_same(tmp_path, {**of_version_3, "version": 3}, of(noisy), noisy, DATA)


def test_a_record_of_a_later_version_is_refused(tmp_path):
    with pytest.raises(RunError, match="newer version"):
        require_same(tmp_path, {"version": identity.VERSION + 1}, of(config()), config(), DATA)


def record_of_version_1(run: RunConfig) -> dict[str, str]:
    """What a manifest held before records had a version: words, those at their default left out."""
    samples = [f"{sample.key} {sample.shape} {sample.repeats} {sample.fps:g}" for sample in DATA.samples]
    more = {}
    if run.model.mode != "video":
        samples = [f"{text} {sample.audio_steps}" for text, sample in zip(samples, DATA.samples, strict=True)]
        more = {
            "audio.independent_timestep": str(run.audio.independent_timestep),
            "loss.balance.mode": run.loss.balance.mode,
            "batches of sound": digest(str(DATA.buckets), str(run.audio.min_batches), str(run.audio.batch_probability))[
                :8
            ],
        }
    quant = run.quant
    if quant.loftq or quant.awq or quant.block_size != 32:
        made = (quant.block_size, quant.loftq, quant.loftq_iters, quant.awq, quant.awq_alpha, quant.awq_batches)
        more["quant: nf4"] = digest(str(made))[:8]
    rates = (run.train.audio_learning_rate, run.train.lr_args, run.train.loraplus_ratio)
    if any(rates):
        more["train: rates of parts"] = digest(str(rates))[:8]
    return {
        "model.checkpoint": "ltx.safetensors (01234567)",
        "model.mode": run.model.mode,
        "model.precision": run.model.precision,
        "dataset": f"{len(samples)} clips ({digest(*samples, str(DATA.batch_sizes))[:8]})",
        "lora.rank": str(run.lora.rank),
        "lora.alpha": f"{run.lora.effective_alpha:g}",
        "lora targets": digest(
            run.lora.target,
            *("-", *run.lora.include_patterns),
            *("-", *run.lora.exclude_patterns),
            *("-", *run.lora.target_modules),
        )[:8],
        "train.learning_rate": str(run.train.learning_rate),
        "train.accumulation": str(run.train.accumulation),
        "train.seed": str(run.train.seed),
        "optimizer.name": run.optimizer.name,
        "schedule.name": run.schedule.name,
        **more,
    }


@pytest.mark.parametrize("run", [config(), FULL, config(lora={"include_patterns": [".*attn1.*"]})])
def test_a_run_of_version_1_goes_on(run, tmp_path):
    require_same(tmp_path, record_of_version_1(run), of(run), run, DATA)
    slower = run.model_copy(update={"train": run.train.model_copy(update={"learning_rate": 1e-6})})
    require_same(tmp_path, record_of_version_1(run), of(slower), slower, DATA)


@pytest.mark.parametrize(
    ("begun", "named"),
    [
        ({"quant": {"format": "nf4", "loftq": True}}, "quant: nf4"),
        ({"train": {"loraplus_ratio": 16}}, "train: rates of parts"),
        ({"lora": {"rank": 4}}, "lora.rank"),
        ({"lora": {"target": "full"}}, "lora targets"),
        ({"model": {"mode": "av"}}, "model.mode"),
        ({"optimizer": {"name": "adamw8bit"}}, "optimizer.name"),
    ],
)
def test_a_run_of_version_1_is_compared_as_a_whole(begun, named, tmp_path):
    with pytest.raises(RunError, match=f"  {named}: was"):
        require_same(tmp_path, record_of_version_1(config(**begun)), of(config()), config(), DATA)


@pytest.mark.parametrize(("key", "name"), [("exp_avg", "adamw"), ("state1", "adamw8bit")])
def test_an_optimizer_recorded_as_auto_is_told_from_the_state(key, name, tmp_path):
    import torch

    before = {"optimizer.name": "auto"}
    assert recorded_optimizer(before, tmp_path) is None
    save_state(tmp_path / state_name(3), {"step": 3, "optimizer": {"state": {0: {key: torch.ones(2)}}}})
    save_state(tmp_path / state_name(4), {"step": 4, "optimizer": None})
    assert recorded_optimizer(before, tmp_path) == name
    assert recorded_optimizer({"version": 2, "optimizer.name": "adamw"}, tmp_path) == "adamw"


def test_an_optimizer_that_auto_did_not_stand_for_is_refused(tmp_path):
    import torch

    run: Path = tmp_path / "run"
    save_state(run / "states" / state_name(3), {"step": 3, "optimizer": {"state": {0: {"state1": torch.ones(2)}}}})
    before = {**record_of_version_1(config()), "optimizer.name": "auto"}
    with pytest.raises(RunError, match=r"optimizer\.name: was adamw8bit, now adamw"):
        require_same(run, before, of(config()), config(), DATA)


SLIDER = {"targets": [{"positive": "sharp", "negative": "blurry"}], "guidance": 1.0, "width": 64, "height": 64}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"guidance": 3.0}, "slider.guidance: was 1, now 3"),
        ({"width": 128}, "slider.width: was 64, now 128"),
        ({"targets": [{"positive": "new", "negative": "old"}]}, "slider.targets: was "),
    ],
)
def test_what_was_changed_of_a_slider_is_refused_by_its_setting(changed, named, tmp_path):
    begun, now = config(slider=SLIDER), config(slider={**SLIDER, **changed})
    other_data: Any = SimpleNamespace(
        samples=(SimpleNamespace(**{**vars(SAMPLE), "key": "other"}),), batch_sizes=(1,), buckets=(SoundBuckets(),)
    )
    record, identity_now = stored(of(begun)), Identity.of(now, BASE, other_data, LAYERS)
    with pytest.raises(RunError) as caught:
        require_same(tmp_path, record, identity_now, now, other_data)
    (line,) = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert line.startswith(named)
    del record["slider"]
    with pytest.raises(RunError, match=r"slider\.targets, guidance, frames, width or height, or .*: was 1 clips"):
        require_same(tmp_path, {**record, "version": 5}, identity_now, now, other_data)
    require_same(tmp_path, {**record, "version": 5}, of(begun), begun, DATA)


def test_a_slider_and_a_lora_do_not_go_on_with_each_other(tmp_path):
    for before, now, text in (
        (config(), config(slider=SLIDER), "a LoRA's, not a slider's"),
        (config(slider=SLIDER), config(), "a slider's, not a LoRA's"),
    ):
        with pytest.raises(RunError, match=rf"^The run in .* is {text}\. Choose another run\.name, or set [^{{]*$"):
            require_same(tmp_path, stored(of(before)), of(now), now, DATA)
