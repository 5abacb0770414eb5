"""Every ending that FFmpeg reads is a medium or is named for what it is; none is left over."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from media import grey_levels, numbers, tone, write_image, write_sound, write_video

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.dataset.scan import MEDIA_SUFFIXES, unread_kind
from ltx2_train.errors import ConfigError, DataError
from ltx2_train.media import decoding
from ltx2_train.media.sound_media import probe_sound, read_sound
from ltx2_train.media.video import probe_media, read_frames
from ltx2_train.workshop.check import check_dataset

ROOT = Path(__file__).parents[3]
SOUNDS = {
    "a.w64": "pcm_s16le", "a.caf": "pcm_s16le", "a.au": "pcm_s16be", "a.tta": "tta", "a.wv": "wavpack",
    "a.ac3": "ac3", "a.eac3": "eac3", "a.voc": "pcm_s16le", "a.mp2": "mp2",
}  # fmt: skip


def planned(folder, **entry):
    return plan_dataset(DatasetConfig.from_table({"datasets": [{"cache_directory": "k", **entry}]}, folder))


@pytest.mark.parametrize(("name", "codec"), SOUNDS.items())
def test_sounds_of_other_endings_are_where_they_were(tmp_path, name, codec):
    silence = np.zeros((1, 24000), np.float32)
    write_sound(tmp_path / "m" / name, np.hstack([silence, tone(0.5), silence]), codec=codec, caption="a tone")
    (item,) = planned(tmp_path, audio_directory="m").items
    heard = read_sound(item.source.path)
    loud = np.flatnonzero(np.abs(heard.samples).max(axis=0) > 0.2) / heard.rate
    assert abs(loud[0] - 0.5) < 0.012
    assert abs(loud[-1] - 1.0) < 0.012


@pytest.mark.parametrize("name", ["a.qt", "a.m2t", "a.mk3d", "a.insv"])
def test_videos_of_other_endings_have_their_frames(tmp_path, name):
    like = {"qt": "mov", "m2t": "ts", "mk3d": "mkv", "insv": "mp4"}[name.partition(".")[2]]
    write_video(tmp_path / f"a.{like}", grey_levels(12, step=20))
    (tmp_path / "m").mkdir()
    shutil.move(tmp_path / f"a.{like}", tmp_path / "m" / name)
    (tmp_path / "m" / "a.txt").write_text("grey")
    (item,) = planned(tmp_path, video_directory="m", resolution=64).items
    assert numbers(read_frames(probe_media(item.source.path)), step=20) == list(range(12))


def test_what_is_not_read_is_named_in_a_folder_of_its_kind_and_in_any_other(tmp_path):
    write_sound(tmp_path / "m" / "a.wav", tone(2.0), caption="a tone")
    write_image(tmp_path / "m" / "p.jfif")
    for name in ("b.amr", "c.h264", "d.psd", "a.aax", "e.blend"):
        (tmp_path / "m" / name).write_bytes(b"0" * 99)
    (tmp_path / "m" / "b.txt").write_text("a voice")
    dataset = DatasetConfig.from_table({"datasets": [{"audio_directory": "m", "cache_directory": "k"}]}, tmp_path)
    reasons = {skip.path.name: skip.reason for skip in plan_dataset(dataset).skipped}
    assert reasons == {"b.amr": "is AMR, which is not read; save it as WAV or FLAC"}
    said = {one.path.name: f"{one.reason} {one.remedy}" for one in check_dataset(dataset).findings if one.path}
    assert said["c.h264"].startswith("is a raw H.264 video, a kind that is not read Save it as MP4 at its frame rate")
    assert said["d.psd"].startswith("is a Photoshop picture")
    assert said["p.jfif"].startswith("an image is not used here")
    assert "not a medium" in said["e.blend"]
    assert "b.txt" not in said


def test_no_ending_is_read_and_not_read():
    read = {ending for endings in MEDIA_SUFFIXES.values() for ending in endings}
    assert not [ending for ending in read if unread_kind(Path(f"a{ending}"))]


def test_a_stream_without_time_stamps_says_what_rate_is_assumed(tmp_path):
    write_video(tmp_path / "a.h264", grey_levels(12, step=20), fps=30)
    media = probe_media(tmp_path / "a.h264")
    assert any(f"so {media.fps:g} frames a second are assumed" in remark for remark in media.remarks)


@pytest.mark.parametrize(
    ("ending", "read"),
    [("mp4", "only the first is read"), ("wmv", "only the first is read"), ("avi", "both are read"), ("mkv", "")],
)
def test_a_film_behind_the_first_is_told_or_refused(tmp_path, ending, read):
    codec = "wmv2" if ending == "wmv" else "libx264"
    path = write_video(tmp_path / f"a.{ending}", grey_levels(12, step=20), codec=codec)
    whole = path.read_bytes()
    assert not any("second film" in remark for remark in probe_media(path).remarks)
    path.write_bytes(whole + whole)
    told = f"holds a second film from byte {len(whole):,} on"
    if not read:
        with pytest.raises(DataError, match=f"{told}, whose times begin anew"):
            probe_media(path)
        return
    found = probe_media(path)
    assert [remark for remark in found.remarks if told in remark and read in remark]
    assert found.frames == (24 if ending == "avi" else 12)


@pytest.mark.parametrize("read", [probe_media, probe_sound])
def test_an_old_pyav_is_refused_with_what_to_do(tmp_path, monkeypatch, read):
    path = write_video(tmp_path / "a.mp4", grey_levels(3), sound=tone(0.2))
    decoding.require_av.cache_clear()
    monkeypatch.setattr(av, "__version__", "16.1.0")
    with pytest.raises(ConfigError, match=r"PyAV 17\.1 or newer is needed, and this is PyAV 16\.1\.0"):
        read(path)
    monkeypatch.setattr(av, "__version__", "18.0.0")
    read(path)
    assert f'"av>={".".join(map(str, decoding.OLDEST_AV))}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
