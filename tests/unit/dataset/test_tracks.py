"""Files with several sound tracks: which one is used is said, can be chosen, and caches know it."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from media import moving_square, pitch, tone

from ltx2_train.caching.encode_sound import SoundLatents
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.events import Events
from ltx2_train.media.sound_media import read_sound
from ltx2_train.workshop.check import check_dataset
from ltx2_train.workshop.cut import cut_videos


class Told(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append(text)


def with_tracks(path, *tracks):
    """A clip of one second with the given sounds [C, N], each a track."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds = [
            container.add_stream("aac", rate=48000, layout=("mono", "stereo")[len(track) - 1]) for track in tracks
        ]
        for index, picture in enumerate(moving_square(25, 64, 48)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for stream, track in zip(sounds, tracks, strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(track), format="fltp", layout=stream.layout.name)
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    path.with_suffix(".txt").write_text("a square moves")
    return path


def config(folder, **entry):
    given = {"video_directory": "m", "cache_directory": "k", "target_frames": [17], **entry}
    return DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [given]}, folder)


def heard(item):
    sound = item.sound
    return read_sound(sound.path, sound.start, sound.seconds, sound.of_clip, sound.tracks)


def test_two_tracks_of_one_channel_are_left_and_right(tmp_path):
    path = with_tracks(tmp_path / "m" / "a.mp4", tone(1.0, 440), tone(1.0, 880))
    plan = plan_dataset(config(tmp_path))
    (item,) = plan.items
    sound = heard(item)
    assert [pitch(side, 48000) for side in sound.samples] == pytest.approx([440, 880], rel=0.01)
    assert any("has 2 sound tracks" in text and "left and right" in text for text in plan.warnings)
    assert SoundLatents(plan, CacheRecipe()).made_from(item)["tracks"] == [1, 2]
    told = Told()
    (clip,) = cut_videos(path, tmp_path / "out", seconds=1, events=told).clips
    assert any("a.mp4 has 2 sound tracks" in text and "the two as left and right" in text for text in told.texts)
    sides = read_sound(clip.path, of_clip=True).samples
    assert [pitch(side, 48000) for side in sides] == pytest.approx([440, 880], rel=0.01)


@pytest.mark.parametrize(("track", "hz"), [(None, 440), (1, 440), (2, 880)])
def test_a_track_can_be_chosen(tmp_path, track, hz):
    with_tracks(tmp_path / "m" / "a.mp4", tone(1.0, 440, channels=2), tone(1.0, 880))
    plan = plan_dataset(config(tmp_path, **({} if track is None else {"audio_track": track})))
    (item,) = plan.items
    assert pitch(heard(item).samples, 48000) == pytest.approx(hz, rel=0.01)
    assert any("has 2 sound tracks (1: " in text for text in plan.warnings) == (track is None)
    assert SoundLatents(plan, CacheRecipe()).made_from(item)["tracks"] == ([] if track is None else [track])


def test_a_track_that_is_not_there_leaves_the_clip_silent_and_says_so(tmp_path):
    with_tracks(tmp_path / "m" / "a.mp4", tone(1.0))
    (item,) = plan_dataset(config(tmp_path, audio_track=2)).items
    assert item.sound is None
    assert item.silence == "audio_track is 2, and it has 1 sound tracks"


def test_a_silent_track_beside_one_that_speaks_is_pointed_out(tmp_path):
    with_tracks(tmp_path / "m" / "a.mp4", tone(1.0, level=0.0, channels=2), tone(1.0, 880))
    report = check_dataset(config(tmp_path))
    (finding,) = [finding for finding in report.findings if finding.rule == "silent"]
    assert finding.remedy == "Its track 2 is not: set audio_track = 2."


def test_one_track_is_read_as_ever(tmp_path):
    with_tracks(tmp_path / "m" / "a.mp4", tone(1.0))
    plan = plan_dataset(config(tmp_path))
    assert plan.items[0].sound.tracks == ()
    assert not any("sound track" in text for text in plan.warnings)
