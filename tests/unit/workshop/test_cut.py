"""Cutting long videos: which frames a clip holds, that its sound fits, that nothing is done twice or to the source."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import av
import av.error
import media
import numpy as np
import pytest

from ltx2_train.cli import main
from ltx2_train.errors import ConfigError, DataError, Stopped
from ltx2_train.events import Events
from ltx2_train.media.scenes import scene_starts
from ltx2_train.media.sound_media import probe_sound, read_sound
from ltx2_train.media.video import probe_media, read_frames
from ltx2_train.workshop.cut import _every, cut_videos, divide
from ltx2_train.workshop.cut_speech import cut_recordings
from ltx2_train.workshop.cut_video import can_copy, read_index

KEYS = {"g": "10", "keyint_min": "10", "sc_threshold": "0", "bf": "2"}
PLAIN = {"g": "250"}


class Said(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append(text)


def two_scenes(first=30, second=40, width=64, height=48):
    red = media.moving_square(first, width, height)
    blue = 255 - media.moving_square(second, width, height)[:, ::-1]
    return np.concatenate([red, blue])


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sweep(seconds, rate=48000):
    """A tone whose level tells the time: [1, N]."""
    at = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * 440 * at) * (0.1 + 0.8 * at / seconds)).astype(np.float32)[None]


def test_a_scene_begins_where_the_picture_changes(tmp_path):
    path = media.write_video(tmp_path / "in" / "a film.mp4", two_scenes(), sound=media.tone(2.8))
    assert scene_starts(probe_media(path)) == [0, 30]
    before = digest(path)
    report = cut_videos(path, tmp_path / "out")
    assert [clip.path.name for clip in report.clips] == ["a film_0001.mp4", "a film_0002.mp4"]
    assert [round(clip.seconds, 3) for clip in report.clips] == [1.2, 1.6]
    assert digest(path) == before
    for clip, begin in zip(report.clips, (0, 30), strict=True):
        got, there = read_frames(clip.path), read_frames(path, range(begin, begin + len(read_frames(clip.path))))
        assert len(got) == (30, 40)[begin > 0]
        assert np.abs(got.astype(int) - there).mean() < 3
        assert probe_sound(clip.path).duration == pytest.approx(clip.seconds, abs=0.03)


def test_scenes_are_found_in_a_video_whose_frame_rate_varies(tmp_path):
    times = [*np.arange(30) / 25, *(1.2 + np.arange(40) / 10)]
    path = media.write_video(tmp_path / "in" / "v.mp4", two_scenes(), times=times)
    assert scene_starts(probe_media(path)) == [0, 30]
    report = cut_videos(path, tmp_path / "out")
    second = probe_media(report.clips[1].path)
    assert np.diff(second.times) == pytest.approx(np.full(39, 0.1), abs=2e-3)


def test_long_scenes_become_equal_parts_and_flashes_are_left_out(tmp_path):
    info = probe_media(media.write_video(tmp_path / "v.mp4", media.grey_levels(25, step=5)))
    assert divide(info, [0, 5], 0.3, 0.4) == ([(5, 15), (15, 25)], 1)
    assert divide(info, [0], 0.6, 0.8) == ([(0, 20)], 1)
    assert divide(info, [0, 5], 0.1, None) == ([(0, 5), (5, 25)], 0)


@pytest.mark.parametrize("options", [KEYS, PLAIN])
def test_seconds_give_exactly_their_frames(tmp_path, options):
    path = media.write_video(tmp_path / "in" / "v.mp4", media.grey_levels(25, step=10), options=options)
    report = cut_videos(path, tmp_path / "out", seconds=0.4)
    assert [media.numbers(read_frames(clip.path)) for clip in report.clips] == [
        list(range(10)),
        list(range(10, 20)),
    ]
    assert report.short == 1
    assert all(clip.copied for clip in report.clips) == (options is KEYS)


def test_a_copy_holds_the_very_packets(tmp_path):
    path = media.write_video(tmp_path / "in" / "v.mp4", media.moving_square(30, 64, 48), options=KEYS)
    report = cut_videos(path, tmp_path / "out", seconds=0.4)
    assert [clip.copied for clip in report.clips] == [True, True, True]
    joined = np.concatenate([read_frames(clip.path) for clip in report.clips])
    assert np.array_equal(joined, read_frames(path))
    times = np.array(probe_media(report.clips[1].path).times)
    assert times == pytest.approx(np.arange(10) / 25, abs=1e-3)


@pytest.mark.parametrize("frames", [25, 50])
def test_a_copy_of_a_matroska_has_the_first_key_frame(tmp_path, frames):
    """Its first packets have no time of decoding where frames reach forward."""
    levels = media.grey_levels(50, step=5)
    film = media.write_video(tmp_path / "in" / "film.mkv", levels, options={**KEYS, "g": "25", "keyint_min": "25"})
    with av.open(str(film)) as container:
        assert next(container.demux(video=0)).dts is None
    report = cut_videos(film, tmp_path / "out", seconds=frames / 25)
    assert [clip.copied for clip in report.clips] == [True] * (50 // frames)
    for number, clip in enumerate(report.clips):
        got = read_frames(clip.path)
        assert media.numbers(got, 5) == list(range(number * frames, (number + 1) * frames))
        assert probe_media(clip.path).times[0] == 0


def test_what_is_not_read_of_a_film_is_told(tmp_path):
    film = media.write_video(tmp_path / "in" / "film.mp4", media.grey_levels(20), options=KEYS)
    film.write_bytes(film.read_bytes() * 2)
    events = Said()
    cut_videos(film, tmp_path / "out", seconds=0.4, events=events)
    assert any(text.startswith("film.mp4 holds a second film from byte") for text in events.texts)
    voice = media.write_sound(tmp_path / "voice" / "a.flac", sweep(2.0), codec="flac")
    voice.write_bytes(voice.read_bytes() * 2)
    cut_recordings(voice, tmp_path / "spoken", events=events)
    assert any(text.startswith("a.flac holds a second recording from byte") for text in events.texts)


def test_what_of_a_folder_is_not_cut_is_told(tmp_path):
    folder, said = tmp_path / "in", Said()
    media.write_video(folder / "film.mp4", two_scenes(30, 5))
    for name in ("talk.wav", "old.rm", "notes.txt", "clips/out.mp4", "more/x.mp4", "texts/x.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    cut_videos(folder, folder / "clips", seconds=1, events=said)
    assert said.texts == [
        f"{folder} holds what is not used here: old.rm, talk.wav.",
        f"Sub-folders of {folder} are not looked into: more. Name each of them.",
    ]


def test_a_copy_that_would_lack_frames_is_encoded(tmp_path, monkeypatch):
    film = media.write_video(tmp_path / "in" / "film.mkv", media.grey_levels(20, step=5), options=KEYS)
    monkeypatch.setattr("ltx2_train.workshop.cut_video._with_dts", lambda packets, video: packets)
    (clip,) = cut_videos(film, tmp_path / "out", seconds=0.8).clips
    assert not clip.copied
    assert len(read_frames(clip.path)) == 20


def test_packets_that_cannot_be_copied_are_encoded(tmp_path, monkeypatch):
    """As the last of some MP4 files with a fragment for each frame: the film was called damaged."""

    def refused(packets, video):
        raise av.error.ArgumentError(errno.EINVAL, "Invalid argument")

    film = media.write_video(tmp_path / "in" / "film.mkv", media.grey_levels(20, step=5), options=KEYS)
    monkeypatch.setattr("ltx2_train.workshop.cut_video._with_dts", refused)
    (clip,) = cut_videos(film, tmp_path / "out", seconds=0.8).clips
    assert not clip.copied
    assert len(read_frames(clip.path)) == 20


def test_only_key_frames_that_nothing_reaches_across_are_cut_at(tmp_path):
    closed = media.write_video(tmp_path / "closed.mp4", media.moving_square(30, 64, 48), options=KEYS)
    opened = media.write_video(
        tmp_path / "open.mp4", media.moving_square(30, 64, 48), options={**KEYS, "flags": "-cgop", "preset": "medium"}
    )
    info = probe_media(closed)
    assert can_copy(info, read_index(info), 10, 20)
    assert not can_copy(info, read_index(info), 10, 21)
    assert not can_copy(info, read_index(info), 9, 20)
    info = probe_media(opened)
    assert can_copy(info, read_index(info), 0, 10)
    assert not can_copy(info, read_index(info), 10, 20)  # frame 19 is stored behind key frame 20


@pytest.mark.parametrize("options", [KEYS, PLAIN])
def test_sound_stays_with_its_pictures(tmp_path, options):
    sound = sweep(4.0)
    path = media.write_video(tmp_path / "in" / "v.mp4", media.moving_square(100, 64, 48), options=options, sound=sound)
    there = read_sound(path, of_clip=True).samples[0]
    report = cut_videos(path, tmp_path / "out", seconds=1.2)
    assert [round(clip.start, 2) for clip in report.clips] == [0, 1.2, 2.4]
    for clip in report.clips:
        got = read_sound(clip.path, 0.1, 1.0, of_clip=True).samples[0]
        first = round((clip.start + 0.1) * 48000)
        wanted = there[first : first + 48000]
        assert np.corrcoef(got, wanted)[0, 1] > 0.99
        assert got.std() == pytest.approx(wanted.std(), rel=0.02)  # a shift of whole waves would show here
        assert probe_sound(clip.path).duration == pytest.approx(1.2, abs=0.05)


def test_sound_that_ends_early_or_mp4_cannot_hold_is_kept_as_far_as_it_goes(tmp_path):
    clip = media.moving_square(50, 64, 48)
    early = media.write_video(tmp_path / "in" / "early.mp4", clip, sound=media.tone(0.7))
    pcm = media.write_video(
        tmp_path / "in" / "pcm.mov", clip, options=KEYS, sound=media.tone(2.0, channels=6), sound_codec="pcm_s16le"
    )
    report = cut_videos(tmp_path / "in", tmp_path / "out", seconds=1.0)
    assert not report.failed
    assert {clip.source for clip in report.clips} == {early, pcm}
    by_name = {clip.path.name: clip.path for clip in report.clips}
    assert 0.6 < probe_sound(by_name["early_0001.mp4"]).duration < 1.05
    assert not probe_media(by_name["early_0002.mp4"]).has_audio
    heard = probe_sound(by_name["pcm_0002.mp4"])
    assert (heard.channels, heard.duration) == (6, pytest.approx(1.0, abs=0.05))


def test_odd_rates_of_sound_are_resampled(tmp_path):
    path = media.write_video(
        tmp_path / "in" / "v.avi",
        media.grey_levels(25),
        codec="mpeg4",
        sound=media.tone(1.0, rate=10000),
        sound_rate=10000,
        sound_codec="pcm_s16le",
    )
    (clip,) = cut_videos(path, tmp_path / "out", seconds=5).clips
    assert not clip.copied  # an AVI has no times of its own
    sound = read_sound(clip.path, of_clip=True)
    assert sound.rate == 48000
    assert media.pitch(sound.samples, sound.rate) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("options", [KEYS, PLAIN])
def test_a_turned_picture_is_shown_as_before(tmp_path, rotation, options):
    path = media.write_video(
        tmp_path / "in" / "v.mp4", media.moving_square(20, 64, 48), rotation=rotation, options=options
    )
    report = cut_videos(path, tmp_path / "out", seconds=0.4)
    got, wanted = read_frames(report.clips[1].path), read_frames(path, range(10, 20))
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).mean() < 4


def test_transparency_odd_sides_and_depth(tmp_path):
    clear = np.concatenate([media.moving_square(20, 64, 48), np.full((20, 48, 64, 1), 128, np.uint8)], axis=-1)
    media.write_video(
        tmp_path / "in" / "alpha.webm", clear, codec="libvpx-vp9", pixel_format="yuva420p", options={"crf": "4"}
    )
    media.write_video(
        tmp_path / "in" / "odd.mkv", media.moving_square(20, 65, 49), codec="ffv1", pixel_format="yuv444p"
    )
    report = cut_videos(tmp_path / "in", tmp_path / "out", seconds=0.4)
    assert not report.failed
    by_name = {clip.path.name: clip for clip in report.clips}
    got, wanted = read_frames(by_name["alpha_0002.mp4"].path), read_frames(tmp_path / "in" / "alpha.webm")[10:]
    assert np.abs(got.astype(int) - wanted).mean() < 4
    got, wanted = read_frames(by_name["odd_0002.mp4"].path), read_frames(tmp_path / "in" / "odd.mkv")[10:]
    assert got.shape == (10, 48, 64, 3)
    assert np.abs(got.astype(int) - wanted[:, :48, :64]).mean() < 4


def test_a_second_run_writes_only_what_is_missing(tmp_path, monkeypatch):
    path = media.write_video(tmp_path / "in" / "v.mp4", two_scenes(), sound=media.tone(2.8))
    out = tmp_path / "out"
    cut_videos(path, out)
    (out / "v_0002.mp4").unlink()
    first = (out / "v_0001.mp4").stat().st_mtime_ns
    monkeypatch.setattr("ltx2_train.workshop.cut.scene_starts", lambda *_: pytest.fail("scenes were looked for again"))
    report = cut_videos(path, out)
    assert (len(report.clips), report.kept) == (1, 1)
    assert (out / "v_0001.mp4").stat().st_mtime_ns == first
    assert "1 clips were there already" in report.text()
    report = cut_videos(path, out, seconds=1.0)
    assert not report.clips
    assert "seconds was None, is 1.0" in report.failed[0][1]


def test_clips_that_were_spoilt_since_are_named(tmp_path):
    path = media.write_video(tmp_path / "in" / "v.mp4", media.grey_levels(75, step=3), options=KEYS)
    out = tmp_path / "out"
    assert not cut_videos(path, out, seconds=1.0).failed
    (out / "v_0001.mp4").write_bytes(b"")
    media.write_video(out / "v_0002.mp4", media.grey_levels(20, step=3))
    report = cut_videos(path, out, seconds=1.0)
    assert (len(report.clips), report.kept) == (0, 3)
    assert [reason.split("v_", 1)[1] for _, reason in report.failed] == [
        "0001.mp4 was there already, and it cannot be read. Delete it, and cut again.",
        "0002.mp4 was there already, and it has 20 frames, not 25. Delete it, and cut again.",
    ]


@pytest.mark.parametrize(
    ("rate", "frames", "seconds", "wanted"),
    [
        (25, 62, 0.5, [13, 12, 13, 12, 12]),  # of the last the rest: 0.48 s
        (25, 60, 0.5, [13, 12, 13, 12]),
        (29.97, 1049, 1.0, [30] * 32 + [29, 30, 30]),
    ],
)
def test_a_piece_that_lacks_a_part_of_a_frame_is_a_whole_one(rate, frames, seconds, wanted):
    times = np.arange(frames) / rate
    info = SimpleNamespace(times=times, frames=frames, fps=rate)
    pieces, short = divide(info, _every(info, seconds), min(1.0, seconds), None, even=True)
    assert [stop - first for first, stop in pieces] == wanted
    assert short == (frames == 60)
    scene, short = divide(info, [0], seconds, seconds)
    assert ([stop - first for first, stop in scene], short) == (wanted, frames == 60)


def test_a_length_beyond_the_film_gives_one_piece_and_one_below_a_frame_is_refused():
    info = SimpleNamespace(times=np.arange(500) / 25, frames=500, fps=25, path=Path("film.mp4"))
    assert [_every(info, seconds) for seconds in (100.0, 1e5, 1e9)] == [[0]] * 3
    with pytest.raises(DataError, match=r"film\.mp4: its frames last 0\.04 s, so no piece of it can last 0\.01 s"):
        _every(info, 0.01)
    assert len(_every(info, 0.04)) == 500


def test_what_is_no_video_and_no_folder_is_called_so(tmp_path):
    voice = media.write_sound(tmp_path / "voice.wav", media.tone(1))
    with pytest.raises(DataError, match=r"voice\.wav is a recording.*Use --speech"):
        cut_videos(voice, tmp_path / "out", seconds=1.0)
    path = media.write_video(tmp_path / "in" / "v.mp4", media.grey_levels(25, step=3))
    with pytest.raises(ConfigError, match=r"--out: .*clips cannot be made, since .*voice\.wav is a file"):
        cut_videos(path, voice / "clips", seconds=1.0)


def test_a_stop_leaves_no_half_clip(tmp_path):
    path = media.write_video(tmp_path / "in" / "v.mp4", two_scenes(), options=PLAIN)
    out = tmp_path / "out"

    class StopLater(Events):
        asked = 0

        def should_stop(self):
            self.asked += (out / "v_0001.mp4").exists()
            return self.asked > 10  # in the second clip

    with pytest.raises(Stopped):
        cut_videos(path, out, seconds=1.2, events=StopLater())
    assert sorted(file.name for file in out.iterdir()) == ["cut.json", "v_0001.mp4"]
    assert len(cut_videos(path, out, seconds=1.2).clips) == 1


def test_a_video_that_cannot_be_read_does_not_end_the_others(tmp_path):
    media.write_video(tmp_path / "in" / "good.mp4", media.grey_levels(25))
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no video at all")
    (tmp_path / "in" / "empty.mkv").touch()
    (tmp_path / "in" / "notes.txt").write_text("x")
    report = cut_videos(tmp_path / "in", tmp_path / "out", seconds=1)
    assert [clip.path.name for clip in report.clips] == ["good_0001.mp4"]
    assert [path.name for path, _ in report.failed] == ["bad.mp4", "empty.mkv"]


def test_output_that_would_mix_with_the_source_is_refused(tmp_path):
    path = media.write_video(tmp_path / "in" / "v.mp4", media.grey_levels(25))
    for source, out in ((path, path), (path, tmp_path / "in"), (tmp_path / "in", tmp_path / "in" / ".." / "in")):
        with pytest.raises(ConfigError, match="--out"):
            cut_videos(source, out, seconds=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "v_0001.mp4").write_bytes(b"of somebody else")
    report = cut_videos(path, tmp_path / "out", seconds=1)
    assert "does not say" in report.failed[0][1]
    assert (tmp_path / "out" / "v_0001.mp4").read_bytes() == b"of somebody else"
    media.write_video(tmp_path / "in" / "V.mkv", media.grey_levels(25))
    with pytest.raises(DataError, match="same names"):
        cut_videos(tmp_path / "in", tmp_path / "out", seconds=1)
    (tmp_path / "none").mkdir()
    for missing in ("none", "gone"):
        with pytest.raises(DataError, match=missing):
            cut_videos(tmp_path / missing, tmp_path / "out", seconds=1)


@pytest.mark.parametrize(
    "lengths",
    [
        {"seconds": 0},
        {"seconds": float("nan")},
        {"shortest": -1},
        {"seconds": 2, "longest": 3},
        {"seconds": 2, "shortest": 3},
        {"longest": 2, "shortest": 3},
    ],
)
def test_lengths_that_make_no_sense_are_refused(tmp_path, lengths):
    with pytest.raises(ConfigError, match="--"):
        cut_videos(tmp_path / "v.mp4", tmp_path / "out", **lengths)


def test_without_the_library_the_pip_line_is_named(tmp_path, monkeypatch):
    path = media.write_video(tmp_path / "in" / "v.mp4", media.grey_levels(25))
    real = builtins.__import__

    def absent(name, *args, **more):
        if name.split(".")[0] == "scenedetect":
            raise ImportError("No module named 'scenedetect'")
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match="pip install scenedetect"):
        cut_videos(path, tmp_path / "out")


def test_the_command(tmp_path, capsys):
    path = media.write_video(tmp_path / "in" / "v.mp4", two_scenes())
    assert (
        main(["data", "cut", str(path), "--out", str(tmp_path / "out"), "--scenes", "--max", "1.2", "--min", "0.5"])
        == 0
    )
    assert "3 clips written" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "cut.json").read_text())["v"]["pieces"] == [
        [0, 30],
        [30, 50],
        [50, 70],
    ]
    with av.open(str(tmp_path / "out" / "v_0001.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    (tmp_path / "in" / "bad.mp4").write_bytes(b"x")
    assert main(["data", "cut", str(tmp_path / "in"), "--out", str(tmp_path / "two"), "--seconds", "1"]) == 1
    with pytest.raises(SystemExit):
        main(["data", "cut", str(path), "--out", str(tmp_path / "out")])


def film_of_colours(path, codec, pixel_format, matrix, colour_range, options):
    """Red, green, blue and grey side by side; `matrix` and `colour_range` by their numbers in files, 0 for no word."""
    colours = np.repeat(np.uint8([[220, 30, 30], [30, 200, 40], [40, 50, 220], [150, 150, 150]]), 32, axis=0)
    picture = np.ascontiguousarray(np.broadcast_to(colours, (64, 128, 3)))
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 64, pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, colour_range
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if pixel_format.startswith(("yuv", "gray")):
                frame = frame.reformat(
                    format=pixel_format,
                    dst_colorspace="itu709" if matrix == 1 else "itu601",
                    dst_color_range="JPEG" if colour_range == 2 else "MPEG",
                )
            else:
                frame = frame.reformat(format=pixel_format)
            frame.pts, frame.colorspace, frame.color_range = index, matrix, colour_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("ending", "codec", "pixel_format", "matrix", "colour_range"),
    [
        *((".mp4", "libx264", "yuv420p", matrix, 1) for matrix in (0, 1, 6)),
        *((".mp4", "libx264", "yuvj420p", matrix, 2) for matrix in (0, 1, 6)),
        (".mp4", "libx264", "yuvj444p", 1, 2),
        (".mp4", "libx264", "yuv420p10le", 1, 2),
        (".mp4", "libx265", "yuvj420p", 1, 2),
        (".mkv", "libx264rgb", "rgb24", 0, 2),
        (".avi", "utvideo", "gbrp", 0, 2),
        (".mkv", "ffv1", "bgr0", 0, 0),
        (".mkv", "ffv1", "gray", 0, 1),
        (".mkv", "ffv1", "gray", 0, 2),
        (".mkv", "ffv1", "yuv422p12le", 1, 1),
    ],
)
def test_what_is_encoded_anew_keeps_its_colours(tmp_path, ending, codec, pixel_format, matrix, colour_range):
    options = {"libx265": {"x265-params": "log-level=none:qp=4"}, "ffv1": {}, "utvideo": {}}.get(codec, {"qp": "4"})
    path = tmp_path / "in" / f"film{ending}"
    film = film_of_colours(path, codec, pixel_format, matrix, colour_range, options)
    clip = cut_videos(film, tmp_path / "out", seconds=0.2).clips[1]
    assert not clip.copied
    places = (0, 32, slice(16, 128, 32))
    there, got = read_frames(film, [5])[places].astype(int), read_frames(clip.path, [0])[places].astype(int)
    assert np.abs(got - there).max() <= 3
