"""Jobs in turn: read ahead by one and no more, shared with others, progress by their size."""

from __future__ import annotations

import io
import threading
import time
import weakref

import numpy as np
import pytest

from ltx2_train.caching.due import Due
from ltx2_train.caching.kind import CacheState, Job
from ltx2_train.caching.locks import Claims
from ltx2_train.caching.turns import Turns
from ltx2_train.caching.work import PARTS, Work
from ltx2_train.cli.console import ConsoleEvents
from ltx2_train.errors import DataError, Stopped
from ltx2_train.events import Events


class Plain:
    """A kind whose caches are fresh where there is a file."""

    def __init__(self, folder, names, weights):
        self.folder, self.names, self.weights = folder, names, weights

    def jobs(self):
        return [Job(self, None, self.folder / name, self.folder / name, {}) for name in self.names]

    def state(self, job):
        return CacheState(missing=not job.path.is_file())

    def weight(self, job):
        return self.weights.get(job.path.name, 1.0)


class Heard(Events):
    def __init__(self):
        self.said, self.seen, self.stop = [], [], False

    def message(self, text, level="info"):
        self.said.append(text)

    def progress(self, done, total, text=""):
        self.seen.append((done, total, text))

    def should_stop(self):
        return self.stop


def due(folder, names="abcd", skip_existing=True, **weights):
    return Due.find([Plain(folder, names, weights)], skip_existing)


def turns_of(found, read=lambda job: job, events=None):
    return Turns(found, read, "work", events or Events())


def run(found, read=lambda job: job, make=lambda job, was_read: job.path.write_text("x"), events=None):
    with turns_of(found, read, events) as turns:
        if turns.begin():
            turns.each(make)
    return turns


def test_all_are_made_in_order_and_nothing_else_stays_in_the_folder(tmp_path):
    made = []
    run(due(tmp_path), make=lambda job, _: (made.append(job.path.name), job.path.write_text("x")))
    assert made == ["a", "b", "c", "d"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]
    assert due(tmp_path).jobs == []


def test_no_more_than_two_read_jobs_are_alive_at_any_time(tmp_path):
    alive, most, lock = [0], [0], threading.Lock()

    def change(by):
        with lock:
            alive[0] += by
            most[0] = max(most[0], alive[0])

    def read(job):
        change(1)  # what is being read counts
        clip = np.zeros(8)
        weakref.finalize(clip, change, -1)
        time.sleep(0.002)
        return clip

    def make(job, clip):
        time.sleep(0.004)  # the reader is always ahead, and must wait
        assert isinstance(clip, np.ndarray)

    run(due(tmp_path, [f"{number}" for number in range(12)]), read, make)
    assert (most[0], alive[0]) == (2, 0)


def test_reading_and_making_go_on_at_the_same_time(tmp_path):
    wait = 0.05
    started = time.monotonic()
    run(due(tmp_path, "abcdefgh"), lambda job: time.sleep(wait), lambda job, _: time.sleep(wait))
    assert time.monotonic() - started < 16 * wait / 1.3, "one after the other it takes 16 times as long as one"


def test_a_job_that_cannot_be_read_is_handed_over_as_the_error(tmp_path):
    def read(job):
        raise DataError("broken", job.path)

    seen = []
    run(due(tmp_path, "ab"), read, lambda job, was_read: seen.append(str(was_read)))
    assert seen == ["broken", "broken"]


def test_any_other_error_ends_the_work_and_frees_the_claims(tmp_path):
    def make(job, was_read):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(due(tmp_path), make=make)
    assert list(tmp_path.iterdir()) == []


def test_without_reading_ahead_of_the_model_nothing_is_read_before_it_is_there(tmp_path):
    order = []
    with turns_of(due(tmp_path, "a"), lambda job: order.append("read")) as turns:
        assert turns.begin(reading=False)
        time.sleep(0.05)
        order.append("model")
        turns.each(lambda job, _: order.append("made"))
    assert order == ["model", "read", "made"]


# --- several processes -----------------------------------------------------------------------------------------------


def test_what_another_process_makes_is_passed_over_then_waited_for_and_not_made_again(tmp_path):
    found, events, order = due(tmp_path), Heard(), []
    with Claims() as other:
        assert other.take(tmp_path / "b")

        def finish():
            (tmp_path / "b").write_text("theirs")
            other.free(tmp_path / "b")

        def make(job, _):
            order.append(job.path.name)
            job.path.write_text("ours")
            if job.path.name == "d":
                threading.Timer(0.5, finish).start()

        turns = run(found, make=make, events=events)
    assert order == ["a", "c", "d"]
    assert turns.others == 1
    assert (tmp_path / "b").read_text() == "theirs"
    (line,) = [text for text in events.said if "Waiting" in text]
    assert line.startswith("Waiting for process ")
    assert line.endswith("which is making b.")
    assert events.seen[-1] == (PARTS, PARTS, "4/4 b")


def test_what_another_process_gave_up_is_made_here(tmp_path):
    found, order = due(tmp_path, "ab"), []
    with Claims() as other:
        assert other.take(tmp_path / "a")
        timer = threading.Timer(0.3, other.free, [tmp_path / "a"])
        timer.start()
        turns = run(found, make=lambda job, _: order.append(job.path.name))
        timer.join()
    assert (order, turns.others) == (["b", "a"], 0)


def test_nothing_is_begun_where_others_make_all_of_it(tmp_path):
    found = due(tmp_path, "ab")
    for name in "ab":
        (tmp_path / name).write_text("theirs")
    with turns_of(found) as turns:
        assert not turns.begin()
    assert turns.others == 2


def test_making_all_again_makes_each_once_among_two(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("old")
    found = due(tmp_path, "ab", skip_existing=False)
    assert len(found.jobs) == 2
    (tmp_path / "new").write_text("theirs")
    (tmp_path / "new").replace(tmp_path / "a")
    made = []
    turns = run(found, make=lambda job, _: made.append(job.path.name))
    assert (made, turns.others) == (["b"], 1)


def test_a_stop_is_heard_while_waiting(tmp_path):
    events = Heard()
    with Claims() as other:
        other.take(tmp_path / "a")
        threading.Timer(0.3, setattr, [events, "stop", True]).start()
        with pytest.raises(Stopped):
            run(due(tmp_path, "a"), events=events)


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_is_by_work_and_the_text_counts(tmp_path):
    events = Heard()
    run(due(tmp_path, "abc", a=1, b=1, c=8), events=events)
    assert events.seen == [
        (100_000, PARTS, "1/3 a"),
        (200_000, PARTS, "2/3 b"),
        (PARTS, PARTS, "3/3 c"),
    ]


def test_the_time_left_is_that_of_the_work_not_of_the_count():
    now = [1000.0]
    stream = io.StringIO()
    events = ConsoleEvents(stream, every=0.0, clock=lambda: now[0])
    # nine pictures of 1 and one clip of 91: at 1 s a unit of work
    work = Work(events, "encode video", [1.0] * 9 + [91.0])
    work.begin()
    now[0] += 50  # the model is loaded, which says nothing of the pace
    work.begin()
    for number in range(9):
        now[0] += 1
        work.finished(1.0, f"p{number}.png")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "-- encode video"
    assert lines[-1] == "   9% 9/10 p8.png, 1 min 31 s left"
    now[0] += 91
    work.finished(91.0, "clip.mp4")
    assert stream.getvalue().splitlines()[-1] == "   100% 10/10 clip.mp4"


def test_work_of_no_known_size_counts_up_to_the_end():
    events = Heard()
    work = Work(events, "x", [0.0, 0.0])
    work.finished(0.0, "a")
    work.finished(0.0, "b")
    assert [done for done, *_ in events.seen] == [PARTS - 1, PARTS]
