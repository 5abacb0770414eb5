"""`data check --run` is red for what caching and training would refuse of a dataset as a whole."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from media import tone, write_image, write_sound

from ltx2_train.config import make_run
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import ConfigError, DataError
from ltx2_train.training.check_plan import RunProblems, idle_in_mode, require_media_of_mode, require_plan
from ltx2_train.training.unused import require_items_used
from ltx2_train.workshop.check import check_dataset

REFERENCE = {"type": "reference"}


@pytest.mark.parametrize(
    ("row", "conditions", "said"),
    [
        ({"reference_path": ""}, [REFERENCE], "asks for a reference"),
        (
            {"reference_path": "b.png", "reference_path_2": "b.png"},
            [REFERENCE],
            "2 references, of which 1 would not be",
        ),
        ({"reference_path": "b.png"}, [], "No condition uses references"),
        ({"reference_path": "b.png"}, [REFERENCE], ""),
    ],
)
def test_what_a_run_cannot_serve_in_a_list_is_red(tmp_path, row, conditions, said):
    for name in "ab":
        write_image(tmp_path / f"{name}.png", 64, 64, caption=None)
    (tmp_path / "list.jsonl").write_text(json.dumps({"image_path": "a.png", "caption": "a fox", **row}))
    file = tmp_path / "dataset.toml"
    file.write_text('[[datasets]]\nimage_jsonl_file = "list.jsonl"\ncache_directory = "c"\nresolution = [64, 64]\n')
    run = make_run({"model": {"mode": "video"}, "video": {"conditions": conditions}})
    report = check_dataset(file, problems=RunProblems(run, file))
    red = [finding.reason for finding in report.findings if finding.level == "red"]
    plan = plan_dataset(DatasetConfig.read(file))
    if not said:
        assert red == []
        require_plan(run, plan)
        return
    assert any(said in reason for reason in red)
    with pytest.raises(ConfigError, match=said):
        require_plan(run, plan)


def test_a_run_with_sound_and_a_dataset_without_are_red(tmp_path):
    write_image(tmp_path / "a.png", 64, 64, caption="a fox")
    file = tmp_path / "dataset.toml"
    file.write_text('[[datasets]]\nimage_directory = "."\nresolution = [64, 64]\n')
    report = check_dataset(file, problems=RunProblems(make_run({"model": {"mode": "av"}}), file))
    assert any("not one of the 1 samples has sound" in one.reason for one in report.findings if one.level == "red")


@pytest.mark.parametrize(("mode", "idle"), [("video", "v.wav"), ("audio", "a.png"), ("av", "")])
def test_media_that_a_mode_does_not_train_on_are_told(tmp_path, mode, idle):
    write_image(tmp_path / "a.png", 64, 64, caption="a fox")
    write_sound(tmp_path / "v.wav", tone(2), caption='she says: "hello"')
    file = tmp_path / "dataset.toml"
    entries = "".join(
        f'[[datasets]]\n{kind}_directory = "."\nresolution = [64, 64]\ncache_directory = "{kind}"\n'
        for kind in ("image", "audio")
    )
    file.write_text(entries)
    run = make_run({"model": {"mode": mode}})
    told = idle_in_mode(run, plan_dataset(DatasetConfig.read(file)))
    lacking = "picture" if mode == "video" else "sound"
    assert told == (f"1 files have no {lacking} and are not used in mode {mode}: {idle}" if idle else None)
    found = check_dataset(file, problems=RunProblems(run, file)).findings
    assert [one.reason for one in found if one.rule == "mode"] == [told] * bool(idle)
    assert ("speaker" in {one.rule for one in found}) == (mode != "video")
    file.write_text(entries[entries.rindex("[[") :])
    with pytest.raises(DataError, match="hold sound alone") if mode == "video" else nullcontext():
        require_media_of_mode(run, plan_dataset(DatasetConfig.read(file)))


def test_clips_to_measure_that_lack_what_conditions_give_are_refused_before_they_are_encoded(tmp_path):
    for name, width in (("a/a", 64), ("refs/a", 64), ("held/b", 96)):
        write_image(tmp_path / f"{name}.png", width, 64, "a fox")
    table = {
        "general": {"resolution": 64},
        "datasets": [{"image_directory": "a", "reference_directory": "refs"}],
        "validation_datasets": [{"image_directory": "held"}],
    }
    plan = plan_dataset(DatasetConfig.from_table(table, tmp_path))
    given = {"model": {"mode": "video"}, "video": {"conditions": [REFERENCE]}}
    require_plan(make_run(given), plan)
    said = "asks for a reference, and not one sample of validation_datasets has any. Set reference_directory for those"
    with pytest.raises(ConfigError, match=said):
        require_plan(make_run({**given, "validation": {"every": 1}}), plan)


def test_what_a_mode_has_no_stream_for_gets_no_advice_on_conditions():
    row = SimpleNamespace(key="a", kind="video", references=("b.png",), reference_audios=(), mask=None, audio_mask=None)
    with pytest.raises(ConfigError, match="reference of a: Mode audio makes no picture, so nothing uses it. Leave it"):
        require_items_used(make_run({"model": {"mode": "audio"}}), [row])
