"""Pictures whose file is damaged: never taken for whole, as far as the file shows it, and no whole one refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from media import moving_square
from PIL import Image

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import DataError
from ltx2_train.media.frame_folder import probe_frame_folder
from ltx2_train.media.images import picture_doubts, read_image
from ltx2_train.media.jpeg import is_broken, without_extras
from ltx2_train.media.still import why_damaged
from ltx2_train.media.video import read_frames
from ltx2_train.workshop.check import check_dataset

TEXTURE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
FORMATS = {
    "a.jpg": {"quality": 90},
    "progressive.jpg": {"quality": 90, "progressive": True},
    "restarts.jpg": {"quality": 90, "restart_marker_rows": 1},
    "a.webp": {"quality": 90},
    "a.avif": {"quality": 90},
    "a.png": {},
}


def written(path, picture=TEXTURE, **options):
    Image.fromarray(picture).save(path, **options)
    return path


def hurt(path, share=0.6, count=512):
    data = bytearray(path.read_bytes())
    at = int(len(data) * share)
    data[at : at + count] = bytes(count)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_a_hole_of_zeros_is_red(tmp_path, name):
    path = written(tmp_path / name, **FORMATS[name])
    assert why_damaged(path) == ""
    read_image(path)
    with pytest.raises(DataError, match=f"{name}.*(is damaged|cannot be read)"):
        read_image(hurt(path))


@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str
)
def test_a_jpeg_that_holds_less_than_its_picture_is_red(tmp_path, options):
    """Its coding ends early, and an end is written behind it: Pillow fills the rest with grey."""
    path = written(tmp_path / "a.jpg", **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4] + data[-2:])
    Image.open(path).load()
    with pytest.raises(DataError, match="does not come out as a whole picture|breaks off inside"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 100}], ids=str)
@pytest.mark.parametrize("picture", [TEXTURE, np.zeros((480, 640, 3), np.uint8)], ids=["texture", "plain"])
def test_whole_jpegs_are_whole(tmp_path, mode, options, picture):
    Image.fromarray(picture).convert(mode).save(tmp_path / "a.jpg", **options)
    assert why_damaged(tmp_path / "a.jpg") == ""


def test_what_is_odd_beside_the_picture_is_no_damage(tmp_path):
    file = io.BytesIO()
    Image.fromarray(TEXTURE).save(file, "JPEG", comment="a word", icc_profile=b"rubbish", exif=b"Exif\0\0" + bytes(200))
    data, path = file.getvalue(), tmp_path / "a.jpg"
    assert len(without_extras(data)) < len(data) - 200
    tables = data.index(b"\xff\xdb")
    for odd in (
        data + b"\xff\xd8\xff\xe1a film of a phone" + bytes(500),
        data[:tables] + bytes(100) + data[tables:],
        data[:2] + b"\xff\xe1\x00\x04ab" + data[2:],
    ):
        path.write_bytes(odd)
        assert why_damaged(path) == ""
        assert not is_broken(odd, alone=True)


def png(path, header, rows):
    """A PNG of the bytes `rows`, all check sums right."""
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    sums = ((kind + body, struct.pack(">I", zlib.crc32(kind + body))) for kind, body in chunks)
    parts = (struct.pack(">I", len(body) - 4) + body + crc for body, crc in sums)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_png_of_fewer_rows_than_its_picture_is_red(tmp_path, mode):
    picture = Image.fromarray(TEXTURE).resize((83, 61))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 256)
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "a.png")
    assert why_damaged(tmp_path / "a.png") == ""
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"IDAT")
    rows = zlib.decompress(data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at], "big")])
    path = png(tmp_path / "b.png", data[16:29], rows[: len(rows) // 2])
    with pytest.raises(DataError, match=r"b\.png is damaged: it holds \S+ of the \S+ bytes of its picture"):
        read_image(path)


@pytest.mark.parametrize("kind", [b"IDAT", b"PLTE"])
def test_a_png_whose_check_sum_is_wrong_is_red(tmp_path, kind):
    path = tmp_path / "a.png"
    Image.fromarray(TEXTURE).convert("P").save(path)
    data = bytearray(path.read_bytes())
    at = data.index(kind)
    data[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="a.png is damaged: the check sum of its|cannot be read"):
        read_image(path)


def joined(path, *pictures):
    path.write_bytes(b"".join(picture.read_bytes() for picture in pictures))
    return path


def without_scans(path):
    """A progressive JPEG without its last scan."""
    data = written(path, progressive=True).read_bytes()
    path.write_bytes(data[: data.rindex(b"\xff\xda")] + b"\xff\xd9")
    return path


def more_rows(path):
    header = struct.pack(">IIBBBBB", 4, 2, 8, 0, 0, 0, 0)
    return png(path, header, (b"\0" + bytes(range(4))) * 3)


def endless(path):
    path.write_bytes(written(path).read_bytes()[:-12])
    return path


def two_views(path):
    Image.fromarray(TEXTURE).save(path, "MPO", save_all=True, append_images=[Image.fromarray(TEXTURE[::-1].copy())])
    return path


def bitmap(path):
    pixels = np.dstack([TEXTURE, TEXTURE[..., :1]]).tobytes()
    head = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    path.write_bytes(head + struct.pack("<IiiHHIIiiII", 40, 128, 96, 1, 32, 0, len(pixels), 0, 0, 0, 0) + pixels)
    return path


ODD = {
    "scans": (lambda f: without_scans(f / "a.jpg"), "lacks scans that would make its picture sharp"),
    "joined": (lambda f: joined(f / "a.jpg", written(f / "b.jpg"), written(f / "c.jpg")), "holds a second picture of"),
    "views": (lambda f: two_views(f / "a.jpg"), "holds a second picture of its size behind the first"),
    "rows": (lambda f: more_rows(f / "a.png"), "holds 15 bytes of a picture that has 10 by its header; the rest is"),
    "end": (lambda f: endless(f / "a.png"), r"lacks its end (IEND)"),
    "alpha": (lambda f: bitmap(f / "a.bmp"), "has a fourth channel, which is not used"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_about_a_picture_is_told(tmp_path, case):
    make, words = ODD[case]
    path = make(tmp_path)
    read_image(path)
    assert [doubt[: len(words)] for doubt in picture_doubts(path)] == [words]


@pytest.mark.parametrize("name", [*FORMATS, "a.bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_nothing_is_told_of_whole_pictures(tmp_path, name, mode):
    Image.fromarray(TEXTURE).convert(mode).save(tmp_path / name, **FORMATS.get(name, {}))
    assert picture_doubts(tmp_path / name) == []


def test_a_picture_that_is_black_is_told_and_so_is_what_is_odd_about_it(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) // 4).save(folder / "ten.png")
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(folder / "twelve.png")
    without_scans(folder / "b.jpg")
    written(folder / "good.png")
    for path in [*folder.iterdir()]:
        path.with_suffix(".txt").write_text(f"picture {path.stem}")
    table = {"general": {"resolution": 64}, "datasets": [{"image_directory": "m", "cache_directory": "k"}]}
    report = check_dataset(DatasetConfig.from_table(table, tmp_path))
    told = {found.path.name: found.reason for found in report.findings if found.rule == "picture"}
    dark = "its picture is nearly black, as where 10 or 12 bits lie in 16"
    assert told == {"ten.png": dark, "twelve.png": dark, "b.jpg": told["b.jpg"]}
    assert told["b.jpg"].startswith("lacks scans")


def test_an_interlaced_png_is_whole_with_all_its_passes(tmp_path):
    levels = TEXTURE[:29, :43]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in levels[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", 43, 29, 8, 2, 0, 0, 1)
    assert np.array_equal(read_image(png(tmp_path / "a.png", header, rows)), levels)
    assert why_damaged(png(tmp_path / "a.png", header, rows[:-1])) == "it holds 3,796 of the 3,797 bytes of its picture"


def test_a_webp_that_is_cut_short_is_red(tmp_path):
    path = written(tmp_path / "a.webp", quality=90)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError):
        read_image(path)
    assert why_damaged(path).startswith("it has ")


def test_a_damaged_picture_is_red_in_the_check_and_so_is_a_damaged_frame(tmp_path):
    for place, picture in enumerate(moving_square(4, 128, 96)):
        noisy = np.clip(picture.astype(int) + TEXTURE // 4, 0, 255).astype(np.uint8)
        for folder in ("m", "frames"):
            (tmp_path / folder).mkdir(exist_ok=True)
            written(tmp_path / folder / f"{place}.jpg", noisy, quality=90)
        (tmp_path / "m" / f"{place}.txt").write_text(f"picture {place}")
    hurt(tmp_path / "m" / "2.jpg")
    table = {"general": {"resolution": 64}, "datasets": [{"image_directory": "m", "cache_directory": "k"}]}
    report = check_dataset(DatasetConfig.from_table(table, tmp_path))
    assert [(found.path.name, found.rule) for found in report.findings if found.level == "red"] == [
        ("2.jpg", "unreadable")
    ]
    frames = probe_frame_folder(tmp_path / "frames")
    (tmp_path / "list.jsonl").write_text('{"video_path": "frames", "caption": "four pictures"}')
    entry = {"video_jsonl_file": "list.jsonl", "cache_directory": "k", "pad_short": "pad", "target_frames": [9]}
    of_frames = DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, tmp_path)
    assert check_dataset(of_frames).level == "amber", "few and short, and nothing else"
    hurt(tmp_path / "frames" / "3.jpg")
    assert any("3.jpg is damaged" in found.reason for found in check_dataset(of_frames).findings)
    read_frames(frames, range(3))
    with pytest.raises(DataError, match=r"3\.jpg is damaged"):
        read_frames(frames, range(4))
