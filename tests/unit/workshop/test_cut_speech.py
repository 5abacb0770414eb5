"""Long recordings become spoken segments: the same samples, at the pauses, and a stopped run goes on."""

from __future__ import annotations

import json

import media
import numpy as np
import pytest

from ltx2_train.cli import main
from ltx2_train.errors import ConfigError, DataError, Stopped
from ltx2_train.events import Events
from ltx2_train.media.sound_media import probe_sound, read_sound
from ltx2_train.workshop.cut_speech import cut_recordings

QUIET = np.zeros((1, 36000), np.float32)


def talk(path, seconds=(2.5, 2.5)):
    parts = [part for length in seconds for part in (media.tone(length), QUIET)]
    return media.write_sound(path, np.concatenate(parts, axis=1))


@pytest.fixture
def folder(tmp_path):
    talk(tmp_path / "in" / "talk.wav")
    speech = np.concatenate([media.tone(2.5), QUIET], axis=1)
    media.write_video(tmp_path / "in" / "film.mp4", media.grey_levels(80, step=3), sound=speech)
    (tmp_path / "in" / "notes.txt").write_text("x")
    return tmp_path / "in"


def test_segments_hold_the_samples_of_their_seconds(folder, tmp_path):
    before = (folder / "talk.wav").read_bytes()
    report = cut_recordings(folder, tmp_path / "out", longest=3.0)
    assert [clip.path.name for clip in report.clips] == ["film_0001.wav", "talk_0001.wav", "talk_0002.wav"]
    whole = read_sound(folder / "talk.wav").samples
    for clip in report.clips[1:]:
        part = read_sound(clip.path).samples
        begin = round(clip.start * 48000)
        assert part == pytest.approx(whole[:, begin : begin + part.shape[1]], abs=1e-4)
        assert probe_sound(clip.path).duration == pytest.approx(2.65, abs=0.1)
    assert (folder / "talk.wav").read_bytes() == before


def test_a_stopped_run_goes_on_and_another_way_is_refused(folder, tmp_path):
    out = tmp_path / "out"

    class StopSoon(Events):
        def should_stop(self):
            return (out / "film_0001.wav").exists()

    with pytest.raises(Stopped):
        cut_recordings(folder, out, longest=3.0, events=StopSoon())
    report = cut_recordings(folder, out, longest=3.0)
    assert (report.kept, len(report.clips)) == (1, 2)
    again = cut_recordings(folder, out, longest=8.0)
    assert [path.name for path, _ in again.failed] == ["film.mp4", "talk.wav"]
    (out / "speech.json").write_text("{")
    with pytest.raises(DataError, match=r"speech\.json"):
        cut_recordings(folder, out, longest=3.0)


def test_segments_that_were_spoilt_since_are_named(folder, tmp_path):
    out = tmp_path / "out"
    cut_recordings(folder / "talk.wav", out, longest=3.0)
    (out / "talk_0001.wav").write_bytes(b"")
    media.write_sound(out / "talk_0002.wav", media.tone(1.0))
    report = cut_recordings(folder / "talk.wav", out, longest=3.0)
    assert (len(report.clips), report.kept) == (0, 2)
    (empty, _), (other, _) = ((reason, path) for path, reason in report.failed)
    assert "talk_0001.wav was there already, and it cannot be read. Delete it, and cut again." in empty
    assert "talk_0002.wav was there already, and it lasts 1.00 s, not 2." in other


def test_silence_and_files_without_sound_are_named(folder, tmp_path):
    media.write_sound(folder / "quiet.wav", np.zeros((1, 96000), np.float32))
    media.write_video(folder / "mute.mp4", media.grey_levels(30))
    report = cut_recordings(folder, tmp_path / "out", longest=3.0)
    assert [path.name for path, _ in report.failed] == ["mute.mp4", "quiet.wav"]
    assert len(report.clips) == 3
    assert "quiet" not in json.loads((tmp_path / "out" / "speech.json").read_text())


def test_what_makes_no_sense_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="make no sense"):
        cut_recordings(folder, tmp_path / "out", shortest=5, longest=3)
    with pytest.raises(ConfigError, match="--out"):
        cut_recordings(folder, folder)
    with pytest.raises(DataError, match="does not exist"):
        cut_recordings(tmp_path / "none", tmp_path / "out")
    media.write_sound(folder / "Talk.mka", media.tone(1))
    with pytest.raises(DataError, match="same names"):
        cut_recordings(folder, tmp_path / "out")


def test_the_command(folder, tmp_path, capsys):
    assert (
        main(["data", "cut", str(folder / "talk.wav"), "--out", str(tmp_path / "out"), "--speech", "--max", "3"]) == 0
    )
    assert "2 clips written" in capsys.readouterr().out
