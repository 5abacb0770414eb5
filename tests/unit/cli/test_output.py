"""Printing never ends a command: narrow consoles, readers that go away, streams that are closed."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys

import pytest

from ltx2_train.cli import main
from ltx2_train.cli.console import ConsoleEvents
from ltx2_train.cli.output import Lasting, print_json

FOX = "狐"


class Narrow(io.TextIOWrapper):
    """A console with the letters of `encoding` alone, as a pipe on Windows or LC_ALL=C."""

    def __init__(self, encoding: str = "ascii") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)


class Gone(io.StringIO):
    """A stream that fails with `number` once its reader has had the first line."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.calls = number, 0

    def write(self, text: str) -> int:
        self.calls += 1
        if self.calls > 1:
            raise OSError(self.number, "gone")
        return super().write(text)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_the_console_has_not_become_escapes(encoding):
    stream = Narrow(encoding)
    print(f"clip {FOX}.mp4", file=Lasting(stream))
    assert stream.text() == "clip \\u72d0.mp4\n"


def test_a_name_that_is_no_text_is_shown(tmp_path):
    stream = Narrow("utf-8")
    print(b"clip\xff.mp4".decode("utf-8", "surrogateescape"), file=Lasting(stream))
    assert stream.text() == "clip\\udcff.mp4\n"


def test_json_can_be_read_back_from_a_narrow_console(monkeypatch):
    value = {"file": f"{FOX}\U0001f98a"}
    for encoding, as_is in (("ascii", False), ("utf-8", True)):
        stream = Narrow(encoding)
        monkeypatch.setattr(sys, "stdout", Lasting(stream))
        print_json(value)
        assert json.loads(stream.text()) == value
        assert (FOX in stream.text()) is as_is


@pytest.mark.parametrize(("number", "told"), [(errno.EPIPE, False), (errno.EIO, False), (errno.ENOSPC, True)])
def test_a_reader_that_goes_away_is_written_to_no_more(number, told):
    stream = Gone(number)
    lasting = Lasting(stream)
    for line in ("one", "two", "three"):
        lasting.write(line)
        lasting.flush()
    assert stream.getvalue() == "one"
    assert stream.calls == 2
    assert (lasting.lost is not None) is told


def test_a_signal_in_the_middle_of_a_line_costs_that_line_alone():
    class Busy(io.StringIO):
        def write(self, text: str) -> int:
            if text == "two":
                raise RuntimeError("reentrant call inside <_io.BufferedWriter>")
            return super().write(text)

    stream = Busy()
    lasting = Lasting(stream)
    for word in ("one", "two", "three"):
        lasting.write(word)
    assert stream.getvalue() == "onethree"


def test_progress_is_told_to_nobody_where_both_streams_were_closed(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    events = ConsoleEvents()
    events.stage("train", 2)
    events.message("nobody reads this", "warning")
    events.finish()
    assert main(["config", "--defaults"]) == 0
    assert main(["probe", str(tmp_path / "none.safetensors")]) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_commands_do_their_work_under_a_path_that_the_console_cannot_show(encoding, tmp_path, tiny, monkeypatch):
    folder = tmp_path / FOX
    clips = folder / "clips"
    clips.mkdir(parents=True)
    (clips / f"{FOX}.mp4").write_bytes(b"no video")
    (folder / "data.toml").write_text('[[datasets]]\nvideo_directory = "clips"\n', encoding="utf-8")
    (folder / "run.toml").write_text(f"[run]\nname = '{FOX}'\n", encoding="utf-8")
    out, err = Narrow(encoding), Narrow(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for arguments, code in (
        (["config", "--run", str(folder / "run.toml")], 0),
        (["config", "--run", str(folder / "none.toml")], 2),
        (["probe", str(folder / "none.safetensors")], 1),
        (["data", "check", str(folder / "data.toml")], 1),
        (["data", "check", str(folder / "data.toml"), "--json"], 1),
        (["lora", "inspect", str(clips / f"{FOX}.mp4")], 1),
    ):
        assert main(arguments) == code, (arguments, err.text())
    assert "\\u72d0.mp4" in out.text()
    assert "Traceback" not in err.text()


def test_what_could_not_be_written_is_an_error_of_a_command_whose_product_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Gone(errno.ENOSPC))
    monkeypatch.setattr(sys, "stderr", errors := io.StringIO())
    assert main(["config", "--defaults"]) == 1
    assert "The output could not be written" in errors.getvalue()
    monkeypatch.setattr(sys, "stdout", Gone(errno.EPIPE))
    assert main(["config", "--defaults"]) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_asks_for_a_stop_however_often_it_says_so():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests
        events = ConsoleEvents(io.StringIO())
        events.catch_interrupt()
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert events.should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
        patient = ConsoleEvents(io.StringIO())
        patient.catch_interrupt()
        signal.raise_signal(signal.SIGHUP)
        assert not patient.should_stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
