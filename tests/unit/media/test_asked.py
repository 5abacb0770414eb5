"""What a file asks players to do, and is not done here, is told; what cannot be shown is refused."""

from __future__ import annotations

import mmap
import struct
from types import SimpleNamespace

import pytest
from media import grey_levels, tone, write_sound, write_video

from ltx2_train.errors import DataError
from ltx2_train.media.asked import _paced, _silenced, asked
from ltx2_train.media.probe import _remarks
from ltx2_train.media.sound_media import read_sound
from ltx2_train.media.video import probe_media

PICTURES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")


def with_box(path, parents, box):
    """Put a box at the end of the last of `parents`, each of which lies in the one before, behind the frames."""
    data = bytearray(path.read_bytes())
    at = end = 0
    places = []
    for name in parents:
        at = data.index(name, at) - 4
        places.append(at)
        end = at + int.from_bytes(data[at : at + 4], "big")
    for place in places:
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + len(box)).to_bytes(4, "big")
    first = data.index(b"stco") + 12
    data[first : first + 4] = (int.from_bytes(data[first : first + 4], "big") + len(box)).to_bytes(4, "big")
    path.write_bytes(data[:end] + box + data[end:])
    return path


def test_a_crop_that_a_container_asks_for_is_told(tmp_path):
    path = write_video(tmp_path / "x.mp4", grey_levels(9))
    plain, media = path.read_bytes(), probe_media(path)
    width, height = media.width, media.height
    for wide, told in ((width, ()), (width // 2, (f"show {width // 2}x{height} of its picture (clap)",))):
        path.write_bytes(plain)
        with_box(path, PICTURES, struct.pack(">I4s8I", 40, b"clap", wide, 1, height, 1, 0, 1, 0, 1))
        tail = ", which is not done here; crop it where it is exported"
        assert probe_media(path).remarks == tuple(f"asks players to {text}{tail}" for text in told)

    def element(name, content):
        return bytes.fromhex(name) + bytes([0x80 + len(content)]) + content

    crop = element("54cc", b"\x08") + element("54bb", b"\x00") + element("54aa", b"\x10")
    tracks = element("1654ae6b", element("ae", element("86", b"V") + element("e0", element("b0", b"\x40") + crop)))
    path.write_bytes(element("1a45dfa3", b"") + bytes.fromhex("18538067 01ffffffffffffff") + tracks)
    told = asked(path, frozenset(("matroska",)), SimpleNamespace(side_data={}))
    assert told[0].startswith(
        "asks players to cut off 8 pixels at the left and 16 pixels at the bottom (PixelCrop), which"
    )


@pytest.mark.parametrize(("profile", "others", "alone"), [(5, 0, True), (10, 0, True), (10, 1, False), (8, 4, False)])
def test_colours_of_dolby_vision_alone_are_refused(tmp_path, profile, others, alone):
    said = bytes([1, 0, profile << 1, 0x35, others << 4]) + bytes(19)
    path = with_box(write_video(tmp_path / "x.mp4", grey_levels(5)), PICTURES, struct.pack(">I4s", 32, b"dvcC") + said)
    if alone:
        with pytest.raises(
            DataError, match=f"is Dolby Vision of profile {profile}, whose colours would come out green"
        ):
            probe_media(path)
    else:
        assert probe_media(path).remarks == ()
    head = bytes.fromhex("41e4a7 41e784") + b"dvcC" + bytes.fromhex("41ed98") + said
    tracks = bytes.fromhex("1654ae6b") + bytes([0x80 + len(head)]) + head
    path.write_bytes(bytes.fromhex("1a45dfa380 18538067 01ffffffffffffff") + tracks)
    if alone:
        with pytest.raises(DataError, match=f"profile {profile}"):
            asked(path, frozenset(("matroska",)), SimpleNamespace(side_data={}))


@pytest.mark.parametrize(
    ("offset", "words"), [(3, "is switched off for players; it is used"), (36, "has volume 0 for")]
)
def test_a_sound_track_that_players_do_not_play_is_told(tmp_path, offset, words):
    path = write_video(tmp_path / "x.mp4", grey_levels(9), sound=tone(0.3))
    assert probe_media(path).remarks == ()
    data = bytearray(path.read_bytes())
    head = data.index(b"tkhd", data.index(b"tkhd") + 4) + 4
    if offset == 3:
        data[head + offset] &= 0xFE
    else:
        data[head + offset : head + offset + 2] = bytes(2)
    path.write_bytes(data)
    assert len(probe_media(path).remarks) == 1
    assert words in probe_media(path).remarks[0]


def test_heads_of_tracks_that_are_cut_are_no_reason_to_break_off(tmp_path):
    path = tmp_path / "x.mp4"

    def box(name: bytes, *content: bytes) -> bytes:
        data = b"".join(content)
        return (8 + len(data)).to_bytes(4, "big") + name + data

    track = box(
        b"trak", box(b"tkhd", b"\0\0"), box(b"edts", box(b"elst")), box(b"mdia", box(b"hdlr", bytes(8), b"soun"))
    )
    path.write_bytes(track)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert _silenced(data, 0, len(track)) == _paced(data, 0, len(track)) == ""
        assert _paced(data, 0, len(track) - 1) == ""


@pytest.mark.parametrize("rate", [0.5, 1, 2])
def test_another_speed_that_an_edit_list_asks_for_is_told(tmp_path, rate):
    path = write_video(tmp_path / "x.mp4", grey_levels(9), options={"bf": "2"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    size, count = (20 if data[at] else 12), int.from_bytes(data[at + 4 : at + 8], "big")
    end = at + 8 + size * count
    assert data[end - 4 : end] == b"\0\1\0\0"
    data[end - 4 : end] = round(rate * 65536).to_bytes(4, "big")
    path.write_bytes(data)
    told = (f"asks players to show a part at {rate:g} times its speed, which is not done",) if rate != 1 else ()
    assert probe_media(path).remarks == told


def with_edits(path, edits):
    """The MP4 `path`, of one track, with parts of 0.2 s in its edit list that show it from `edits` seconds on, or, of
    -1, nothing."""
    data = path.read_bytes().replace(b"edts", b"free")
    scale = int.from_bytes(data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20], "big")
    rows = b"".join(struct.pack(">IiI", 200, -1 if at < 0 else round(scale * at), 1 << 16) for at in edits)
    head = struct.pack(">I4sI4sII", 24 + len(rows), b"edts", 16 + len(rows), b"elst", 0, len(edits))
    path.write_bytes(data)
    return with_box(path, (b"moov", b"trak"), head + rows)


@pytest.mark.parametrize("edits", [[0, -1, 0.2], [0, -1]])
def test_a_pause_behind_the_beginning_is_refused(tmp_path, edits):
    film = write_video(tmp_path / "x.mp4", grey_levels(10))
    voice = write_sound(tmp_path / "x.m4a", tone(0.4), codec="aac")
    for path, read in ((film, probe_media), (voice, read_sound)):
        with pytest.raises(DataError, match="has a pause behind its beginning"):
            read(with_edits(path, edits))


def test_pauses_before_the_beginning_delay_it(tmp_path):
    media = probe_media(with_edits(write_video(tmp_path / "x.mp4", grey_levels(10)), [-1, -1, 0, 0.2]))
    assert (media.frames, media.times[0]) == (10, 0.4)


def test_pictures_of_two_eyes_are_told(tmp_path):
    path = write_video(tmp_path / "x.mp4", grey_levels(5), options={"x264-params": "frame-packing=3"})
    assert probe_media(path).remarks == ("shows the pictures of two eyes side by side (3D); cut out one of them",)


@pytest.mark.parametrize(
    ("transfer", "words"),
    [("linear", "the levels of linear light"), ("log100", "a logarithmic scale"), ("smpte428", "digital cinema")],
)
def test_levels_that_do_not_suit_a_screen_are_told(tmp_path, transfer, words):
    path = write_video(tmp_path / "x.mp4", grey_levels(5), options={"x264-params": f"transfer={transfer}"})
    assert len(probe_media(path).remarks) == 1
    assert words in probe_media(path).remarks[0]


@pytest.mark.parametrize("transfer", ["bt470m", "bt470bg", "bt709", "smpte170m", "iec61966-2-1", "bt2020-10"])
def test_levels_that_suit_a_screen_are_not(tmp_path, transfer):
    path = write_video(tmp_path / "x.mp4", grey_levels(5), options={"x264-params": f"transfer={transfer}"})
    assert probe_media(path).remarks == ()


def test_pictures_of_light_are_told():
    frame = SimpleNamespace(format=SimpleNamespace(name="gbrpf32le"), interlaced_frame=False, side_data={})
    assert _remarks(frame) == ("has the levels of linear light, and will look dark; convert it to BT.709 first",)
