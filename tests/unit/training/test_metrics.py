"""Rows survive a kill, never hold NaN, and the chart shows what they say."""

import errno
import json

import numpy as np
import pytest
from PIL import Image

from ltx2_train import Events, RunError
from ltx2_train.training import metrics
from ltx2_train.training.chart import draw_chart
from ltx2_train.training.metrics import MetricsLog, newest_step, read_rows, smooth, terms_of, terms_text


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_was_taken_away_is_written_on_and_told(tmp_path, how):
    told, events, path = [], Events(), tmp_path / "m.jsonl"
    events.message = lambda text, level="info": told.append((level, text))
    log = MetricsLog(path, 0, events)
    log.append({"step": 1})
    if how == "replaced":
        (tmp_path / "copy").write_bytes(path.read_bytes())
        (tmp_path / "copy").replace(path)
    else:
        path.unlink()
    for step in (2, 3):
        log.append({"step": step})
    log.close()
    assert [row["step"] for row in read_rows(path)] == ([1, 2, 3] if how == "replaced" else [2, 3])
    assert [level for level, _ in told] == ["warning"]
    assert "was replaced or deleted while the run went on" in told[0][1]


def test_the_newest_step_is_that_of_the_last_whole_row(tmp_path):
    path = tmp_path / "m.jsonl"
    assert newest_step(path) == 0
    log = MetricsLog(path, 0)
    for step in range(1, 4000):
        log.append({"step": step, "loss": float(step)})
    log.close()
    assert newest_step(path) == 3999
    path.write_bytes(path.read_bytes()[:-5])  # cut by a kill
    assert newest_step(path) == 3998


def test_rows_after_the_saved_step_go_on_resume(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", 0)
    for step in range(1, 6):
        log.append({"step": step, "loss": float(step)})
    log.close()
    log = MetricsLog(tmp_path / "m.jsonl", 3)
    log.append({"step": 4, "loss": 40.0})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "m.jsonl")] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_numbers_that_json_cannot_carry_become_null(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", 0)
    row = log.append({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "lr": 1e-4})
    log.close()
    assert row == {"step": 1, "loss": None, "grad_norm": None, "lr": 1e-4}
    assert "NaN" not in (tmp_path / "m.jsonl").read_text()


def test_a_line_cut_short_is_left_out(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + '\n{"step": 2, "lo')
    assert [row["step"] for row in read_rows(tmp_path / "m.jsonl")] == [1]


class Full:
    """A file on a disk that takes `room` bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        taken = min(len(data), self.room)
        self.room -= taken
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data[:taken])

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_rows_that_the_disk_refuses_wait_and_are_told_of_once(tmp_path):
    path, told = tmp_path / "m.jsonl", []
    events = Events()
    events.message = lambda text, level="info": told.append((level, text))
    log = MetricsLog(path, 0, events)
    log.append({"step": 1, "loss": 1.0})
    whole = path.read_bytes()
    log._file = disk = Full(log._file, room=10)
    log.append({"step": 2, "loss": 2.0})
    log.append({"step": 3, "loss": 3.0})
    assert path.read_bytes() == whole, "no half row"
    assert len(told) == 1
    assert told[0][0] == "warning"
    assert "m.jsonl" in told[0][1]
    disk.room = 10_000
    log.append({"step": 4, "loss": 4.0})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]
    disk.room = 0
    log.append({"step": 5, "loss": 5.0})
    assert len(told) == 2
    disk.room = 10_000
    log.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5]


def test_rows_that_are_refused_to_the_end_are_told_as_lost(tmp_path):
    path, told = tmp_path / "m.jsonl", []
    events = Events()
    events.message = lambda text, level="info": told.append((level, text))
    log = MetricsLog(path, 0, events)
    log.append({"step": 1, "loss": 1.0})
    path.unlink()
    path.mkdir()
    for step in (2, 3):
        log.append({"step": step, "loss": 1.0})
    log.close()
    advice = "A folder lies where the file goes: move it away, or choose another name."
    assert told == [
        ("warning", f"Could not write {path}: Is a directory. Its rows wait. {advice}"),
        ("warning", f"The last 2 rows of {path} could not be written and are lost: Is a directory."),
    ]


def test_rows_that_are_whole_are_not_written_again(tmp_path):
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path, 0)
    log.append({"step": 1, "loss": 1.0})
    log.close()
    before = path.stat().st_ino
    MetricsLog(path, 1).close()
    assert path.stat().st_ino == before
    path.write_text(path.read_text() + '{"step": 2, "lo')
    log = MetricsLog(path, 1)
    log.append({"step": 2, "loss": 2.0})
    log.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_a_file_that_cannot_be_opened_is_a_plain_error(tmp_path):
    (tmp_path / "m.jsonl").mkdir()
    with pytest.raises(RunError, match=r"m\.jsonl"):
        MetricsLog(tmp_path / "m.jsonl", 0)


def test_smoothing_has_no_bias_and_keeps_gaps():
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([None, 1.0, None]) == [None, pytest.approx(1.0), pytest.approx(1.0)]


def test_the_chart_shows_a_falling_line(tmp_path):
    rows = [{"step": step, "loss": 2.0 - step / 100} for step in range(1, 101)]
    path = draw_chart(rows, tmp_path / "loss.png", "run")
    blue = np.asarray(Image.open(path).convert("RGB")).astype(int)
    line = (blue[..., 2] > 150) & (blue[..., 0] < 90)
    columns = np.flatnonzero(line.any(0))
    heights = [np.flatnonzero(line[:, column]).mean() for column in (columns[5], columns[-5])]
    assert heights[1] > heights[0] + 100  # image rows grow downwards


def test_a_chart_without_a_finite_loss_is_still_drawn(tmp_path):
    assert draw_chart([{"step": 1, "loss": None}], tmp_path / "loss.png").exists()


def test_picture_and_sound_are_drawn_apart(tmp_path):
    def inked(**losses):
        """Whether the chart has a blue line, and whether it has an orange one."""
        rows = [{"step": step, "loss": 1.0, **losses} for step in range(1, 40)]
        pixels = np.asarray(Image.open(draw_chart(rows, tmp_path / "loss.png")).convert("RGB")).astype(int)
        near = [np.abs(pixels - colour).max(axis=2) < 12 for colour in ((31, 95, 191), (208, 114, 26))]
        return [bool(found[60:].sum() > 100) for found in near]

    assert inked(loss_video=0.5, loss_audio=1.5) == [True, True]
    for alone in ({}, {"loss_video": 1.0, "loss_audio": None}, {"loss_video": None, "loss_audio": 1.0}):
        assert inked(**alone) == [True, False]


def test_every_term_is_told_and_drawn_by_its_column_alone(tmp_path):
    rows = [
        {"step": step, "loss": 1.0, "loss_video": 0.5, "loss_audio": None, "loss_prior": 0.2 if step % 2 else None}
        for step in range(1, 40)
    ]
    assert terms_of(rows) == ["video", "prior"]
    assert [terms_text(row) for row in rows[:2]] == [" (video 0.5000, prior 0.2000)", ""]
    pixels = np.asarray(Image.open(draw_chart(rows, tmp_path / "loss.png")).convert("RGB")).astype(int)
    for colour in ((31, 95, 191), (208, 114, 26)):
        assert (np.abs(pixels - colour).max(axis=2) < 12)[60:].sum() > 50


def test_more_terms_than_colours_are_drawn_all_the_same(tmp_path):
    rows = [{"step": step, "loss": 1.0, **{f"loss_{name}": 0.1 for name in "abcdefg"}} for step in (1, 2)]
    assert draw_chart(rows, tmp_path / "loss.png").exists()


def test_what_is_remembered_of_a_long_run_is_bounded(tmp_path, monkeypatch):
    """The file holds every row; in memory the whole curve stays, thinned, and no column but the losses."""
    monkeypatch.setattr(metrics, "KEPT_ROWS", 100)
    log = MetricsLog(tmp_path / "m.jsonl", 0)
    for step in range(1, 1001):
        log.append({"step": step, "loss": 1.0, "loss_video": 1.0, "lr": 1e-4, "skipped": None})
        assert len(log.rows) <= 100
    log.close()
    for one in (log, MetricsLog(tmp_path / "m.jsonl", 1000)):
        steps = [row["step"] for row in one.rows]
        assert len(steps) > 50
        assert steps[0] <= 16
        assert steps[-1] > 980
        assert one.rows[0].keys() == {"step", "loss", "loss_video"}
        assert one.last is not None
        assert (one.last["step"], one.last["lr"]) == (1000, 1e-4)
        one.close()
    assert len(read_rows(tmp_path / "m.jsonl")) == 1000
