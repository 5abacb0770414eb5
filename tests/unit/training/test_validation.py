"""When the validation loss is said to rise, and what is kept and drawn of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from ltx2_train.config import make_run
from ltx2_train.errors import ConfigError
from ltx2_train.events import Events
from ltx2_train.files import write_tensors
from ltx2_train.training import metrics
from ltx2_train.training.chart import chart_image
from ltx2_train.training.held_out import require_apart, require_media_apart, tell_drawn_apart, tell_fewer
from ltx2_train.training.metrics import KEPT_ROWS, MetricsLog
from ltx2_train.training.validation import rising, sigmas_of


def rows_of(validation: dict[int, float], training) -> list[dict]:
    steps = range(max(validation) + 1)
    return [
        {"step": step, "loss": training(step), **({"val_loss": validation[step]} if step in validation else {})}
        for step in steps
    ]


def falling(step: int) -> float:
    return 1.0 - step / 100


def test_a_rise_is_said_when_the_best_lies_three_back_and_training_falls():
    rows = rows_of({0: 0.9, 10: 0.8, 20: 0.82, 30: 0.84, 40: 0.85}, falling)
    step, text = rising(rows)
    assert step == 10
    assert "0.8000 after step 10, 0.8500 now" in text
    assert "in training 0.9450 then, 0.6450 now" in text  # means over steps 1 to 10 and 31 to 40
    assert rising(rows[:31]) == (10, ""), "only two since the best"


def test_no_rise_is_said_where_there_is_none():
    assert rising([]) == (-1, "")
    assert rising(rows_of({0: 0.9, 10: 0.8, 20: 0.82, 30: 0.84, 40: 0.79}, falling)) == (40, "")
    assert rising(rows_of({0: 0.9, 10: 0.8, 20: 0.801, 30: 0.802, 40: 0.803}, falling)) == (10, ""), "within a percent"
    assert rising(rows_of({0: 0.9, 10: 0.8, 20: 0.82, 30: 0.84, 40: 0.85}, lambda step: 1.0)) == (10, "")


def test_levels_are_the_middles_of_the_range():
    assert sigmas_of(make_run({})) == [0.125, 0.375, 0.625, 0.875]
    narrow = {"objective": {"min_timestep": 500, "max_timestep": 700}, "validation": {"levels": 2}}
    assert sigmas_of(make_run(narrow)) == [0.55, 0.65]


def test_measurements_stay_when_the_rows_of_a_long_run_are_thinned(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for step in range(1, KEPT_ROWS + 100):
        log._keep({"step": step, "loss": 1.0, "lr": 1.0, **({"val_loss": 2.0} if step % 333 == 0 else {})})
    log.close()
    kept = log.rows
    assert len(kept) < 0.6 * KEPT_ROWS
    assert [row["step"] for row in kept if "val_loss" in row] == list(range(333, KEPT_ROWS + 100, 333))
    assert set(kept[0]) == {"step", "loss"}


def test_a_run_that_measures_at_every_step_keeps_no_more_rows_than_another(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "KEPT_ROWS", 64)
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for step in range(1, 1001):
        log._keep({"step": step, "loss": 1.0, "lr": 1.0, "val_loss": 2.0})
    log.close()
    steps = [row["step"] for row in log.rows]
    assert 32 <= len(steps) <= 64
    assert steps == list(range(steps[0], 1001, steps[0])), "they lie evenly over the whole run"


def test_the_chart_has_a_line_of_it():
    training = [{"step": step, "loss": 1.0, "loss_video": 1.0, "loss_audio": None} for step in range(1, 40)]
    measured = [{**row, "val_loss": 0.5, "val_loss_video": 0.5} if row["step"] % 13 == 0 else row for row in training]
    assert chart_image(training).tobytes() != chart_image(measured).tobytes()
    colours = [colour for _, colour in chart_image(measured).getcolors(1 << 20)]
    assert any(red > 190 and blue < 60 for red, _, blue in colours), "the line of the validation is orange"


def test_clips_of_caches_alone_may_be_what_the_mode_measures(tmp_path):
    """Of them nothing is known before the caches are read."""
    run = make_run({"model": {"mode": "audio"}, "validation": {"every": 1}})
    (tmp_path / "a.mp4").write_bytes(b"film")
    media = SimpleNamespace(path=tmp_path / "a.mp4")
    silent = SimpleNamespace(
        dataset=SimpleNamespace(validation=True),
        source=SimpleNamespace(media=media),
        serves=lambda mode: mode != "audio",
    )
    with pytest.raises(ConfigError, match=r"model\.mode = audio"):
        require_media_apart(run, SimpleNamespace(items=[silent], from_caches=()))
    require_media_apart(run, SimpleNamespace(items=[silent], from_caches=("caches",)))


def test_more_clips_than_are_held_out_are_told():
    said = []
    events = Events()
    events.message = lambda text, level="info": said.append(text.split(":")[0])
    for tables in ({"validation": {"every": 1, "clips": 3}}, {"sample": {"validation_clips": 3}}):
        for count in (3, 2):
            tell_fewer(make_run(tables), count, events)
    tell_fewer(make_run({"validation": {"clips": 3}, "sample": {"every": 0, "validation_clips": 3}}), 2, events)
    assert said == [
        "validation.clips is 3, and the [[validation_datasets]] hold 2",
        "sample.validation_clips is 3, and the [[validation_datasets]] hold 2",
    ]


def test_clips_that_samples_are_drawn_of_and_that_are_trained_on_are_told(tmp_path):
    samples = []
    for name, source in (("a", "1"), ("b", "2"), ("c", "2")):
        write_tensors(tmp_path / name, {"x": torch.zeros(1)}, {"source": json.dumps({"sha256": source})})
        samples.append(SimpleNamespace(key=name, kind="video", latent_path=tmp_path / name, audio_path=None))
    data, said, events = SimpleNamespace(samples=samples[:2], validation=samples[2:]), [], Events()
    events.message = lambda text, level="info": said.append(text)
    for every, told in ((1, 1), (0, 0)):
        said.clear()
        tell_drawn_apart(make_run({"sample": {"every": every, "validation_clips": 1}}), data, events)
        assert (
            len([text for text in said if text.startswith("c of the validation is made from the same file as b")])
            == told
        )
    with pytest.raises(ConfigError, match="c of the validation is made from the same file as b"):
        require_apart(make_run({"validation": {"every": 1}}), data)
