"""Progress is readable in a file as well as in a terminal."""

import io

import pytest

from ltx2_train.cli.console import ConsoleEvents, duration


class Clock:
    """A clock that tests move by hand; it begins where a machine that has just started is."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (75, "1 min 15 s"), (7260, "2 h 01 min"), (-1, "0 s")])
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def row(step, loss=0.5):
    return {"step": step, "total": 100, "loss": loss, "lr": 1e-4, "seconds": 0.1, "eta": 60.0}


def test_a_file_gets_the_first_and_last_step_and_one_now_and_then(clock):
    stream = io.StringIO()
    events = ConsoleEvents(stream, every=30, clock=clock)
    events.stage("train", 100)
    for step in range(1, 101):
        events.step(row(step))
        clock.now += 1
    lines = stream.getvalue().splitlines()
    shown = [line.split()[1] for line in lines if line.startswith("   step")]
    assert shown == ["1/100", "31/100", "61/100", "91/100", "100/100"]
    assert "1 min 00 s left" in lines[1]


def test_a_terminal_line_is_rewritten_and_closed(clock):
    stream = Terminal()
    events = ConsoleEvents(stream, clock=clock)
    events.step(row(1))
    events.message("careful", "warning")
    assert stream.getvalue().startswith("\r")
    assert "\nwarning: careful\n" in stream.getvalue()


def test_a_loss_that_is_not_finite_is_said_so(clock):
    stream = io.StringIO()
    ConsoleEvents(stream, every=0, clock=clock).step(row(1, None))
    assert "not finite" in stream.getvalue()


def test_losses_of_picture_and_sound_are_shown_apart_where_there_are_both(clock):
    stream = io.StringIO()
    events = ConsoleEvents(stream, every=0.0, clock=clock)
    events.stage("train", 100)
    events.step({**row(1), "loss_video": 0.25, "loss_audio": 0.75})
    events.step({**row(2), "loss_video": 0.25, "loss_audio": None})
    first, second = stream.getvalue().splitlines()[1:]
    assert "(video 0.2500, audio 0.7500)" in first
    assert "audio" not in second
