"""A host that fails at showing what goes on never ends the work; what it asks for still counts."""

import logging

import pytest

from ltx2_train.errors import Stopped
from ltx2_train.events import Events, Passing, shielded

TOLD = [
    ("stage", ("train", 3)),
    ("progress", (1, 3, "x")),
    ("step", ({"step": 1},)),
    ("sample", ("a.mp4", {})),
    ("saved", ("lora", "a.safetensors")),
    ("message", ("Hello.", "warning")),
]


class Recorder(Events):
    def __init__(self, error=None):
        self.heard, self.error = [], error

    def __getattribute__(self, name):
        if name not in dict(TOLD):
            return super().__getattribute__(name)

        def told(*arguments):
            self.heard.append((name, arguments))
            if self.error is not None:
                raise self.error

        return told

    def should_stop(self):
        return True


def test_all_is_passed_on():
    host = Recorder()
    events = shielded(host)
    for name, arguments in TOLD:
        getattr(events, name)(*arguments)
    assert host.heard == TOLD
    assert events.should_stop()
    with pytest.raises(Stopped):
        events.check_stop()


def test_a_closed_terminal_is_logged_once_and_ends_nothing(caplog):
    events = shielded(Recorder(BrokenPipeError(32, "Broken pipe")))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for name, arguments in TOLD:
                getattr(events, name)(*arguments)
    assert len(caplog.records) == len(TOLD)


def test_what_a_host_raises_on_purpose_passes():
    with pytest.raises(Stopped):
        shielded(Recorder(Stopped("enough"))).progress(1, 2)
    with pytest.raises(KeyboardInterrupt):
        shielded(Recorder(KeyboardInterrupt())).progress(1, 2)


def test_a_filter_passes_what_it_names_and_all_that_is_asked():
    host = Recorder()
    events = Passing(host, ("stage", "saved"))
    for name, arguments in TOLD:
        getattr(events, name)(*arguments)
    assert [name for name, _ in host.heard] == ["stage", "saved"]
    assert events.should_stop()


def test_every_method_of_events_is_passed_on():
    """A method that is added to Events is passed on too, and not answered by the silent one."""
    methods = {name for name, value in vars(Events).items() if callable(value)}
    methods -= {"check_stop", "heeded"}  # which ask should_stop
    assert methods <= set(vars(Passing))
