"""Frames that are not in the file: told by the numbers of the others, and never where nothing is missing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from media import grey_levels, write_video

from ltx2_train.media.h264 import Bits, LostReferences, PictureSet, SequenceSet, Slice
from ltx2_train.media.video import probe_media, read_frames

TICKS = 512  # of a frame, in the files that are written here


def h264_clip(path, params="", frames=40, **options):
    return write_video(path, grey_levels(frames, step=5), options={"x264-params": params, **options})


def without(source, target, lost, closed=False):
    """A copy of the packets of a video but for the numbers `lost`; `closed`: the hole in its time stamps is closed."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for place, packet in enumerate(one for number, one in enumerate(packets) if number not in lost):
            packet.stream = stream
            if closed:
                packet.pts = packet.dts = place * TICKS
                packet.time_base = Fraction(1, 25 * TICKS)
            new.mux(packet)
    return target


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("closed", [True, False])
def test_what_leans_on_a_lost_frame_is_never_used(tmp_path, ending, closed):
    source = h264_clip(tmp_path / "a.mp4", "keyint=20:scenecut=0:bframes=0")
    info = probe_media(without(source, tmp_path / f"b{ending}", [8], closed))
    assert info.damage == ((8, 19),), "up to the next key frame"
    assert info.remarks[0].startswith("is damaged from 0.")


def test_what_leans_on_a_lost_frame_of_hevc_is_never_used(tmp_path):
    options = {"x265-params": "keyint=20:scenecut=0:bframes=0:open-gop=0:log-level=none", "preset": "ultrafast"}
    source = write_video(tmp_path / "a.mp4", grey_levels(40, step=5), codec="libx265", options=options)
    assert probe_media(source).damage == ()
    assert probe_media(without(source, tmp_path / "b.mp4", [8])).damage == ((8, 19),)


@pytest.mark.parametrize(
    ("ending", "rate", "frames", "lost", "closed", "damage"),
    [
        (".mp4", 25, 0, 28, True, ((28, 39),)),
        (".avi", 25, 0, 28, True, ((20, 59),)),  # what is counted is off behind it
        (".mp4", Fraction(30000, 1001), 0, 28, True, ((28, 39),)),
        (".mp4", 25, 2, 25, False, ((25, 38),)),  # between its neighbours lie frames that are behind both
        (".mp4", 25, 0, 28, False, ()),  # it may have been held; the hole is told
        (".mp4", 25, 2, 26, False, ()),  # none leans on it
    ],
)
def test_what_leans_on_a_lost_frame_of_mpeg4_is_never_used(tmp_path, ending, rate, frames, lost, closed, damage):
    options = {"g": "20", "bf": str(frames), "sc_threshold": "1000000000"}
    clip = grey_levels(60, step=4)
    source = write_video(tmp_path / f"a{ending}", clip, rate, codec="mpeg4", options=options)
    assert probe_media(source).damage == ()
    assert probe_media(without(source, tmp_path / f"b{ending}", [lost], closed)).damage == damage
    assert probe_media(without(source, tmp_path / "c.mkv", range(lost, 60))).damage == (), "cut off, not lost"


@pytest.mark.parametrize("rate", [24, 30000 / 1001, 30, 12])
def test_nothing_is_told_of_whole_mpeg4_whose_steps_are_rounded(tmp_path, rate):
    """A clock of milliseconds has steps of 41 and 42 for 24 frames a second."""
    clip, times = grey_levels(120, step=2), [number / rate for number in range(120)]
    path = write_video(tmp_path / "a.mp4", clip, rate, codec="mpeg4", times=times, options={"g": "250", "bf": "0"})
    assert probe_media(path).damage == ()


@pytest.mark.parametrize("params", ["", "interlaced=1"])
def test_a_lost_key_frame_is_told(tmp_path, params):
    source = h264_clip(tmp_path / "a.mp4", f"keyint=20:scenecut=0:bframes=0:{params}")
    info = probe_media(without(source, tmp_path / "b.mp4", [20], closed=True))
    assert info.damage == ((20, 39),)


def test_damage_goes_on_until_a_gradual_refresh_has_come_round(tmp_path):
    source = h264_clip(tmp_path / "a.mp4", "keyint=10:intra-refresh=1:bframes=0:scenecut=0")
    assert probe_media(source).damage == ()
    info = probe_media(without(source, tmp_path / "b.mp4", [13]))
    assert len(info.damage) == 1
    first, last = info.damage[0]
    assert first == 13
    assert 25 < last < 39


@pytest.mark.parametrize(
    "params",
    [
        "bframes=5:b-pyramid=normal:open-gop=1:keyint=12:scenecut=0",
        "bframes=3:b-pyramid=strict:weightp=2:weightb=1:keyint=15:ref=5",
        "slices=4:aud=1:keyint=10:repeat-headers=1",
        "tff=1:bframes=3:b-pyramid=normal:keyint=12",
        "intra-refresh=1:keyint=12",
        "keyint=infinite:ref=16:bframes=8",
    ],
)
def test_nothing_is_told_of_whole_files(tmp_path, params):
    source = h264_clip(tmp_path / "a.mp4", params)
    assert probe_media(source).damage == ()
    for ending in (".mkv", ".ts"):
        copy = without(source, tmp_path / f"b{ending}", [])
        assert probe_media(copy).damage == ()


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts"])
def test_the_holes_that_a_cut_without_encoding_leaves_at_the_end_are_not_shown(tmp_path, ending):
    params = "bframes=3:b-pyramid=normal:b-adapt=0:scenecut=0"
    source = h264_clip(tmp_path / "a.mp4", params, preset="medium")
    whole = probe_media(source).times
    holes = 0
    for stop in range(30, 34):
        cut = without(source, tmp_path / f"b{ending}", range(stop, 40))
        info = probe_media(cut)
        assert stop - 3 <= info.frames <= stop
        assert [round(25 * (time - info.times[0])) for time in info.times] == list(range(info.frames))
        assert read_frames(info).shape[0] == info.frames
        holes += info.frames < stop
    assert holes >= 2
    lost = probe_media(without(source, tmp_path / f"c{ending}", [34])).times
    assert round(25 * (lost[-1] - lost[0])) == round(25 * whole[-1]), "what was lost on the way leaves its hole"
    assert len(lost) == 39


def test_a_lost_frame_on_which_none_leans_does_no_harm(tmp_path):
    source = h264_clip(tmp_path / "a.mp4", "bframes=2:b-pyramid=none:b-adapt=0:scenecut=0")
    assert probe_media(without(source, tmp_path / "b.mp4", [2])).damage == ()  # decoded third: a B frame


def test_frames_cut_off_before_a_key_frame_are_not_missed(tmp_path):
    params = "bframes=5:b-pyramid=normal:b-adapt=0:open-gop=1:keyint=12:scenecut=0"
    source = h264_clip(tmp_path / "a.mp4", params)
    keys, shown = [], []
    import av

    with av.open(str(source)) as container:
        for packet in container.demux(video=0):
            if packet.size:
                keys.append(packet.is_keyframe)
                shown.append(packet.pts)
    key = keys.index(True, 1)
    leading = [number for number in range(key + 1, len(keys)) if shown[number] < shown[key]]
    assert leading
    assert probe_media(without(source, tmp_path / "b.mp4", [*range(key), *leading])).damage == ()


def test_a_program_that_numbers_as_it_likes_is_not_believed(tmp_path):
    source = h264_clip(tmp_path / "a.mp4", "bframes=0")
    assert probe_media(without(source, tmp_path / "b.mp4", range(5, 39, 2))).damage == ()


@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize("ending", [".mkv", ".ts"])
def test_what_leans_on_a_lost_frame_of_mpeg2_is_never_used(tmp_path, bf, ending):
    import av

    options = {"g": "12", "bf": bf, "q": "2", "sc_threshold": "1000000000"}
    source = write_video(tmp_path / "a.mkv", grey_levels(40, step=5), codec="mpeg2video", options=options)
    assert probe_media(without(source, tmp_path / f"whole{ending}", [])).damage == ()
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    info = probe_media(without(source, tmp_path / f"b{ending}", [keys[1] + 3]))  # a P frame behind the second
    ((first, last),) = info.damage
    assert 10 < first < last < 30
    lost_key = probe_media(without(source, tmp_path / f"key{ending}", [keys[1]]))
    assert lost_key.damage, "what leans on the key frame before"
    if bf == "2":  # between two others, and none leans on it
        assert probe_media(without(source, tmp_path / f"c{ending}", [keys[1] + 4])).damage == ()
    cut = without(source, tmp_path / f"cut{ending}", range(keys[1]))
    assert probe_media(cut).damage == ()


def bits(*numbers):
    """Bytes of (value, bits) and of values in Exp-Golomb."""
    text = ""
    for number in numbers:
        if isinstance(number, tuple):
            text += f"{number[0]:0{number[1]}b}"
        else:
            text += "0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}"
    text += "0" * (-len(text) % 8) + "0" * 64
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\0\0\0", b"\0\0\3\0")


def unit(kind, number, operations):
    """A slice of a P picture that is kept, with `operations` on the references."""
    said = [value for operation in operations for value in operation]
    return bytes([0x60 | kind]) + bits(0, 0, 0, (number, 4), (0, 4), (0, 1), (0, 1), (1, 1), *said, 0)


def test_numbers_may_begin_anew():
    sequence = SequenceSet(b"\x67" + bits((66, 8), (0, 16), 0, 0, 0, 0, 1, (0, 1), 3, 3, (1, 1)))
    picture = PictureSet(b"\x68" + bits(0, 0, (0, 2), 0, 0, 0, (0, 1), (0, 2), 0, 0, 0, (0, 3)))
    assert (sequence.number_bits, sequence.gaps, sequence.fields) == (4, False, False)
    for operations, anew in (([[1, 0]], False), ([[3, 4, 0], [5]], True), ([[5]], True), ([[2, 6]], False)):
        one = Slice(unit(1, 9, operations), {0: sequence}, {0: picture})
        assert (one.number, one.restarts()) == (9, anew), operations


class Packet(bytes):
    is_keyframe = False
    size = property(len)
    anew = b""

    def has_sidedata(self, name):
        return bool(self.anew)

    def get_sidedata(self, name):
        return self.anew


START = b"\0\0\1"


def sets(number_bits, fields):
    """Both parameter sets, where numbers have so many bits."""
    sequence = b"\x67" + bits((66, 8), (0, 16), 0, number_bits - 4, 0, 0, 1, (0, 1), 3, 3, (0 if fields else 1, 1))
    picture = b"\x68" + bits(0, 0, (0, 2), 0, 0, 0, (0, 1), (0, 2), 0, 0, 0, (0, 3))
    return START + sequence + START + picture


def lost_of(packets, extradata):
    references = LostReferences(extradata)
    for number, packet in enumerate(packets):
        references.show(number, packet)
    return references.lost


def test_fields_of_a_film_whose_first_frames_were_cut_off_are_whole():
    def field(kind, number, bottom):
        return Packet(START + b"\x61" + bits(0, kind, 0, (number, 4), (1, 1), (bottom, 1), (0, 4)))

    first = [field(7, 5, 0), field(5, 5, 1)]  # one that is alone, and its second half
    more = [field(5, number, bottom) for number in (8, 9, 10, 11) for bottom in (0, 1)]
    assert lost_of(first + more, sets(4, fields=True)) == []
    assert lost_of(first + more[:4] + more[6:], sets(4, fields=True)) == [6]


def test_what_is_set_anew_on_the_way_counts():
    def slices(number_bits, numbers):
        return [Packet(START + b"\x61" + bits(0, 5, 0, (number, number_bits), (3, 4))) for number in numbers]

    before, behind = slices(8, range(40)), slices(4, range(1, 4))
    behind[0].anew = sets(4, fields=False)
    whole = Packet(START + b"\x65" + bits(0, 7, 0, (0, 4), 20, (0, 4)))
    whole.anew = sets(4, fields=False)
    assert lost_of([*before, whole, *behind], sets(8, fields=False)) == []


def test_a_stream_that_cannot_be_read_is_let_be():
    references = LostReferences(b"\1nonsense")
    for number in range(4):
        references.show(number, Packet(np.random.default_rng(number).bytes(400)))
    assert references.lost == []
    assert Bits(b"\x28").plain() == 4
