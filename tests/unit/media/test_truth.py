"""Videos as they come: the frames that a clip gives are the right ones at the right time, or it is refused by name.

It is long: each way in which a container can say one thing and hold another.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from media import grey_levels, moving_square, numbers, tone, write_video

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import DataError
from ltx2_train.media import probe
from ltx2_train.media.video import probe_media, read_frames, source_frames
from ltx2_train.workshop.check import check_dataset
from ltx2_train.workshop.cut import cut_videos

LONG = {"g": "20", "keyint_min": "20", "sc_threshold": "0", "bf": "2", "preset": "medium"}


def textured(frames, width=96, height=64):
    """Frames that cost some bytes, each of another level."""
    noise = np.random.default_rng(0).integers(0, 90, (height, width, 3), dtype=np.uint8)
    return np.stack([np.roll(noise, 2 * k, axis=1) + np.uint8(k) for k in range(frames)])


def hurt(path, share=0.5, count=512, data=None):
    """Zeros, or `data`, in the midst of a file."""
    whole = bytearray(path.read_bytes())
    at = int(len(whole) * share)
    whole[at : at + count] = bytes(count) if data is None else data
    path.write_bytes(bytes(whole))
    return path


def remuxed(source, target, start=0.0):
    """The packets of a video in another container, later by `start` seconds."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        shift = round(start / stream.time_base)
        annexb = BitStreamFilterContext("h264_mp4toannexb", stream) if target.suffix == ".avi" else None
        for packet in old.demux(stream):
            for part in annexb.filter(packet) if annexb else [packet]:
                if part.size:
                    part.pts, part.dts, part.stream = part.pts + shift, part.dts + shift, copy
                    new.mux(part)
    return target


def planned(folder, **entry):
    table = {
        "general": {"resolution": [96, 64]},
        "datasets": [{"video_directory": "m", "cache_directory": "k", **entry}],
    }
    return DatasetConfig.from_table(table, folder)


# --- times -----------------------------------------------------------------------------------------------------------


def test_an_avi_with_frames_in_another_order_keeps_its_rate(tmp_path):
    source = write_video(tmp_path / "x.mp4", grey_levels(25), options={"bf": "2", "preset": "medium"})
    info = probe_media(remuxed(source, tmp_path / "x.avi", start=2 / 25))
    assert (info.frames, info.fps) == (25, 25.0)
    assert info.duration == pytest.approx(1.0)
    assert numbers(read_frames(info)) == list(range(25))


def test_an_avi_that_lost_frames_shows_the_others_at_their_time(tmp_path):
    path = tmp_path / "lost.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, picture in enumerate(grey_levels(25)):
            if not 8 <= index < 13:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe_media(path)
    assert info.times[8] - info.times[7] == pytest.approx(6 / 25)
    assert numbers(read_frames(info)) == [*range(8), *range(13, 25)]


def test_time_that_begins_anew_is_refused(tmp_path):
    parts = [write_video(tmp_path / f"{name}.ts", grey_levels(25), options={"g": "5", "bf": "0"}) for name in "ab"]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(DataError, match=r"time stamps go back after 0\.80 s.*Export it again, or cut it there"):
        probe_media(path)


def test_time_stamps_that_come_twice_are_named_and_the_frames_are_the_right_ones(tmp_path):
    source = write_video(tmp_path / "x.mp4", grey_levels(25), options={"g": "5", "bf": "0"})
    path = tmp_path / "twice.mkv"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy, held = new.add_stream_from_template(stream), 0
        for number, packet in enumerate(old.demux(stream)):
            if packet.size:
                if number == 12:
                    packet.pts = packet.dts = held
                held, packet.stream = packet.pts, copy
                new.mux(packet)
    info = probe_media(path)
    assert info.remarks[0].startswith("has 1 frames with the time stamp of another")
    assert info.frames == 25
    assert numbers(read_frames(info)) == list(range(25))


@pytest.mark.parametrize(("codec", "kind"), [("libx264", "yuv420p"), ("mjpeg", "yuvj420p")])
def test_time_stamps_in_another_order_than_the_frames_are_refused(tmp_path, codec, kind):
    options = {"g": "5", "bf": "0"} if codec == "libx264" else {}
    source = write_video(tmp_path / "x.mov", grey_levels(25), codec=codec, pixel_format=kind, options=options)
    with av.open(str(source)) as old:
        stream = old.streams.video[0]
        packets = [packet for packet in old.demux(stream) if packet.size]
        late, step = 10 * packets[1].pts, packets[1].pts
        for name, order in (("straight", range(25)), ("swapped", [*range(11), 12, 11, *range(13, 25)])):
            with av.open(str(tmp_path / f"{name}.mkv"), "w") as new:
                copy = new.add_stream_from_template(stream)
                for number, packet in zip(order, packets, strict=True):
                    again = av.Packet(bytes(packet))
                    again.dts, again.pts = step * packets.index(packet), step * number + late
                    again.time_base, again.is_keyframe, again.stream = packet.time_base, packet.is_keyframe, copy
                    new.mux(again)
    assert numbers(read_frames(tmp_path / "straight.mkv")) == list(range(25))
    with pytest.raises(DataError, match=r"time stamps go back after 0\.48 s, against the order of its frames"):
        probe_media(tmp_path / "swapped.mkv")


def test_a_second_video_track_is_named(tmp_path):
    source = write_video(tmp_path / "x.mp4", grey_levels(9))
    path = tmp_path / "two.mp4"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        copies = [new.add_stream_from_template(old.streams.video[0]) for _ in range(2)]
        for packet in old.demux(video=0):
            for copy in copies if packet.size else ():
                again = av.Packet(bytes(packet))
                again.pts, again.dts, again.time_base = packet.pts, packet.dts, packet.time_base
                again.is_keyframe, again.stream = packet.is_keyframe, copy
                new.mux(again)
    assert probe_media(source).remarks == ()
    assert probe_media(path).remarks == ("has 2 video tracks, of which number 1 is used, as the file prefers it",)


@pytest.mark.parametrize(("element", "name"), [(b"\x73\xc5", "Tracks"), (b"\x4d\x80", "Info")])
def test_a_matroska_header_that_fails_its_check_sum_is_refused(tmp_path, element, name):
    path = write_video(tmp_path / "x.mkv", grey_levels(9))
    assert probe_media(path).frames == 9
    data = bytearray(path.read_bytes())
    data[data.index(element) + 4] ^= 0x01
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=rf"is damaged: the check sum of its header \({name}\) is wrong"):
        probe_media(path)


def test_raw_video_without_timestamps_keeps_all_its_frames(tmp_path):
    source = write_video(tmp_path / "x.mp4", grey_levels(25), options={"g": "10", "bf": "2", "preset": "medium"})
    path = tmp_path / "raw.mpeg"
    with av.open(str(source)) as old:
        stream = old.streams.video[0]
        annexb = BitStreamFilterContext("h264_mp4toannexb", stream)
        data = b"".join(bytes(part) for packet in old.demux(stream) for part in annexb.filter(packet))
    path.write_bytes(data)
    info = probe_media(path)
    assert (info.frames, info.fps, info.duration) == (25, 25.0, pytest.approx(1.0))
    assert numbers(read_frames(info)) == list(range(25))


@pytest.mark.parametrize("start", [0.0, 10.0])
@pytest.mark.parametrize("name", ["x.mkv", "x.ts", "x.flv", "x.mov"])
def test_a_file_may_begin_late(tmp_path, name, start):
    source = write_video(tmp_path / "x.mp4", grey_levels(25), options={"bf": "2", "preset": "medium"})
    info = probe_media(remuxed(source, tmp_path / name, start=start))
    assert (info.frames, info.duration) == (25, pytest.approx(1.0, abs=0.01))
    assert numbers(read_frames(info)) == list(range(25))


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "libx264"), ("a.mts", "libx264"), ("a.3gp", "libx264")])
def test_endings_that_docs_promise_are_media(tmp_path, name, codec):
    kind = "mpegts" if name != "a.3gp" else "3gp"
    (tmp_path / "m").mkdir()
    source = write_video(tmp_path / "x.mp4", grey_levels(12), codec=codec)
    with av.open(str(source)) as old, av.open(str(tmp_path / "m" / name), "w", format=kind) as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    (tmp_path / "m" / "a.txt").write_text("x")
    (item,) = plan_dataset(planned(tmp_path, target_frames=[9])).items
    assert numbers(read_frames(item.source.media, item.picks)) == list(range(9))


@pytest.mark.parametrize(("scale", "rate", "words"), [(2**31 - 1, 1, "days"), (1, 2**31 - 1, "frames a second")])
def test_an_absurd_rate_is_refused(tmp_path, scale, rate, words):
    path = write_video(tmp_path / "x.avi", grey_levels(25), codec="mpeg4")
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 20  # dwScale and dwRate of the stream
    data[at : at + 8] = scale.to_bytes(4, "little") + rate.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=words):
        probe_media(path)


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mirrored_picture_is_shown_as_players_do(tmp_path, turns, mirrored):
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:24, :24], picture[24:, :24] = 255, 120
    path = tmp_path / "in" / "x.mp4"
    path.parent.mkdir()
    # (x, y) is shown at (a x + c y, b x + d y), by quarter turns with the clock, then left for right
    (a, b), side = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns], -1 if mirrored else 1
    matrix = [a * side, b, 0, -b * side, a, 0, 0, 0, 1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        stream.set_display_matrix([v << (30 if i in (2, 5, 8) else 16) for i, v in enumerate(matrix)])
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shown = np.rot90(picture, -turns)
    shown = shown[:, ::-1] if mirrored else shown
    info = probe_media(path)
    assert info.reading == (("mirrored",) if mirrored else ())
    assert np.abs(read_frames(info).astype(int) - shown).mean() < 4
    (clip,) = cut_videos(path, tmp_path / "out", seconds=0.08, shortest=0.08).clips
    assert np.abs(read_frames(clip.path).astype(int) - shown).mean() < 4, "cut as it is shown"


def test_the_cover_of_a_sound_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    write_video(tmp_path / "cover.mp4", grey_levels(1), codec="mjpeg", pixel_format="yuvj420p")
    with av.open(str(tmp_path / "cover.mp4")) as picture, av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48000, layout="mono")
        cover = container.add_stream_from_template(picture.streams.video[0])
        cover.disposition = 0x400
        for packet in picture.demux(video=0):
            if packet.size:
                packet.stream = cover
                container.mux(packet)
        frame = av.AudioFrame.from_ndarray(tone(1.0)[:, :1024], format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(DataError, match="only sound and its cover picture"):
        probe_media(path)


def test_a_picture_that_changes_its_size_is_refused(tmp_path):
    parts = [
        write_video(tmp_path / f"{size}.mpg", moving_square(12, size, 64), codec="mpeg2video") for size in (96, 64)
    ]
    path = tmp_path / "m" / "joined.mpg"
    path.parent.mkdir()
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    path.with_suffix(".txt").write_text("x")
    with pytest.raises(DataError, match="its picture changes from 96x64 to 64x64"):
        read_frames(path)
    report = check_dataset(planned(tmp_path, target_frames=[17]))
    assert any("changes from 96x64" in finding.reason for finding in report.findings)


def test_a_picture_that_changes_its_size_where_files_were_joined_is_not_called_damaged(tmp_path, monkeypatch):
    parts = [
        write_video(tmp_path / f"{size}.mpg", moving_square(12, size, 64), codec="mpeg2video") for size in (96, 64)
    ]
    path = tmp_path / "joined.mpg"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    plain = probe._read_packets

    def with_a_broken_one(*arguments):
        found = plain(*arguments)
        found[0].broken[-1] = True  # as the container of a camera says it
        return found

    monkeypatch.setattr(probe, "_read_packets", with_a_broken_one)
    with pytest.raises(DataError, match="its picture changes from 96x64 to 64x64"):
        probe_media(path)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [("x.mp4", "libx264"), ("x.mkv", "libx264"), ("x.avi", "mpeg4"), ("x.webm", "libvpx-vp9"), ("x.mp4", "libx265")],
)
def test_damage_inside_a_file_is_named_and_never_used(tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    given = {
        "libx264": LONG,
        "libx265": {"x265-params": "keyint=20:log-level=none"},
        "mpeg4": {"g": "20", "qmin": "2", "qmax": "4"},
        "libvpx-vp9": {"g": "20"},
    }
    options = given[codec]
    clip = textured(60)
    path = write_video(tmp_path / "m" / name, clip, codec=codec, options=options)
    whole = read_frames(path)
    hurt(path, 0.8)
    info = probe_media(path)
    assert info.damage or len(info.times) < 60
    assert "is damaged from" in info.remarks[-1]
    edges = [0, *(edge for span in info.damage for edge in span), info.frames]
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        stamps = [round((time - info.times[0]) * 25) for time in info.times[first:last]]
        if stamps:
            np.testing.assert_array_equal(read_frames(info, range(first, last)), whole[stamps])
    with pytest.raises(DataError, match="is damaged from"):
        read_frames(info, [info.damage[0][0]])
    path.with_suffix(".txt").write_text("x")
    report = check_dataset(planned(tmp_path, target_frames=[9]))
    assert report.level == "red"


def test_windows_that_are_whole_stay(tmp_path):
    path = hurt(write_video(tmp_path / "m" / "x.mp4", textured(60), options=LONG))
    path.with_suffix(".txt").write_text("x")
    plan = plan_dataset(planned(tmp_path, target_frames=[9, 49]))
    assert [item.window.count for item in plan.items] == [9], "the smaller one, which is whole"
    assert any("is damaged from" in warning for warning in plan.warnings)
    chunks = plan_dataset(planned(tmp_path, target_frames=[9], frame_extraction="chunk"))
    assert [item.window.start for item in chunks.items] == [0, 9, 45]
    (full,) = plan_dataset(planned(tmp_path, frame_extraction="full")).items
    assert full.window.count == 17
    with pytest.raises(DataError, match="none of its windows is whole"):
        plan_dataset(planned(tmp_path, target_frames=[49]))


def test_a_long_clip_is_looked_at_where_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "WHOLE_PIXELS", 0)
    path = write_video(tmp_path / "m" / "x.mp4", textured(60), options=LONG)
    hurt(path, data=np.random.default_rng(1).integers(1, 255, 512, dtype=np.uint8).tobytes())
    path.with_suffix(".txt").write_text("x")
    info = probe_media(path)
    assert not info.whole
    assert len(read_frames(info, range(9))) == 9
    with pytest.raises(DataError, match="is damaged from|can be decoded"):
        read_frames(info)
    report = check_dataset(planned(tmp_path, target_frames=[49]))
    assert report.level == "red"


def test_damage_is_not_cut_into_clips(tmp_path):
    path = hurt(write_video(tmp_path / "in" / "x.mp4", textured(60), options=LONG))
    report = cut_videos(path, tmp_path / "out", seconds=0.4)
    assert [clip.path.name for clip in report.clips] == ["x_0001.mp4", "x_0002.mp4", "x_0005.mp4", "x_0006.mp4"]
    assert len(report.failed) == 2
    assert "x_0003.mp4 is not written" in report.failed[0][1]
    assert len(list(source_frames(probe_media(path), 0, 60, lenient=True))) > 40


def test_a_gif_behind_a_gif_is_read_and_told(tmp_path):
    path = write_video(tmp_path / "x.gif", textured(3), codec="gif", pixel_format="rgb8")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() * 2)
    media = probe_media(path)
    told = f"holds a second film from byte {size:,} on; both are read, one after the other"
    assert (media.frames, media.remarks) == (6, (told,))


def test_a_gif_that_breaks_off_or_has_a_hole_is_named(tmp_path):
    path = write_video(tmp_path / "x.gif", textured(12), codec="gif", pixel_format="rgb8")
    assert (probe_media(path).frames, probe_media(path).damage) == (12, ())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match="damaged"):
        read_frames(path)
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        read_frames(hurt(path))
