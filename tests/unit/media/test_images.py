"""Pictures: what they look like to a person is what is trained, or they are refused by name."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from media import DISPLAY_P3, SRGB, colour_profile, moving_square, write_image
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ltx2_train.caching.encode import Latents
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import DataError
from ltx2_train.media.buckets import MIDDLE
from ltx2_train.media.coded_colours import picture_remark
from ltx2_train.media.frame_folder import frame_files, probe_frame_folder
from ltx2_train.media.images import glances, image_header, read_image
from ltx2_train.media.video import probe_media, read_frames

# Colours of Display P3 and what they are in sRGB, which the matrices of the two standards give for gamma 2.2.
P3_RED, SRGB_RED = (200, 100, 100), (217, 94, 97)


def patch(colour, mode="RGB", size=(64, 48)):
    return Image.new(mode, size, colour)


def planned(folder, **entry):
    table = {"general": {"resolution": 64}, "datasets": [{"image_directory": "m", "cache_directory": "k", **entry}]}
    return plan_dataset(DatasetConfig.from_table(table, folder))


def reasons(plan):
    return {skip.path.name: skip.reason for skip in plan.skipped}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_colours_of_a_profile_become_srgb(tmp_path, name):
    profile = colour_profile(DISPLAY_P3, "Display P3")
    more = {"lossless": True} if name.endswith("webp") else {"quality": 100, "subsampling": 0}
    patch(P3_RED).save(tmp_path / name, icc_profile=profile, **more)
    np.testing.assert_allclose(read_image(tmp_path / name)[10, 10], SRGB_RED, atol=3)
    assert probe_media(tmp_path / name).reading == ("colours of Display P3",)


def test_transparency_of_a_picture_with_a_profile_stays(tmp_path):
    picture = patch((*P3_RED, 255), "RGBA")
    picture.paste((*P3_RED, 0), (0, 0, 32, 48))
    picture.save(tmp_path / "a.png", icc_profile=colour_profile(DISPLAY_P3, "Display P3"))
    shown = read_image(tmp_path / "a.png")
    assert shown[:, :32].max() == 0
    np.testing.assert_allclose(shown[10, 50], SRGB_RED, atol=3)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_what_is_srgb_by_any_name_stays_as_it_is(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "a.png", icc_profile=colour_profile(SRGB, "camera RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(picture.convert("RGB")))
    assert probe_media(tmp_path / "a.png").reading == ()


def test_a_grey_profile_is_of_grey_pictures_alone(tmp_path):
    grey = colour_profile((), "grey", gamma=1.0)
    patch(P3_RED).save(tmp_path / "red.png", icc_profile=grey)
    patch(P3_RED).convert("L").save(tmp_path / "grey.png", icc_profile=grey)
    assert "colour profile that cannot be read" in probe_media(tmp_path / "red.png").remarks[0]
    assert tuple(read_image(tmp_path / "red.png")[0, 0]) == P3_RED
    plain = np.asarray(Image.open(tmp_path / "grey.png"))[0, 0]
    assert read_image(tmp_path / "grey.png")[0, 0, 0] > plain + 20, "linear light"


def test_a_profile_that_cannot_be_read_is_mentioned(tmp_path):
    patch(P3_RED).save(tmp_path / "a.png", icc_profile=b"rubbish" * 50)
    assert "colour profile that cannot be read" in probe_media(tmp_path / "a.png").remarks[0]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, 0], P3_RED)


@pytest.mark.parametrize(("space", "interop", "told"), [(65535, "R03", True), (1, "R98", False), (65535, "R98", False)])
def test_adobe_rgb_that_only_exif_tells_of_is_mentioned(tmp_path, space, interop, told):
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: space, 0xA005: {1: interop}})
    patch(P3_RED).save(tmp_path / "a.jpg", exif=exif)
    assert any("Adobe RGB" in remark for remark in probe_media(tmp_path / "a.jpg").remarks) == told


@pytest.mark.parametrize(
    ("chunks", "told"), [({"gAMA": 100000}, True), ({"gAMA": 45455}, False), ({"gAMA": 100000, "sRGB": 0}, False)]
)
def test_a_gamma_that_is_not_applied_is_mentioned(tmp_path, chunks, told):
    extra = PngInfo()
    for name, value in chunks.items():
        extra.add(name.encode(), value.to_bytes(1 if name == "sRGB" else 4, "big"))
    patch(P3_RED).save(tmp_path / "a.png", pnginfo=extra)
    assert any("gAMA" in remark for remark in probe_media(tmp_path / "a.png").remarks) == told


def test_caches_of_pictures_with_wide_colours_are_made_again_and_no_others(tmp_path):
    write_image(tmp_path / "m" / "plain.png")
    write_image(tmp_path / "m" / "wide.png")
    Image.open(tmp_path / "m" / "wide.png").save(
        tmp_path / "m" / "wide.png", icc_profile=colour_profile(DISPLAY_P3, "Display P3")
    )
    plan = planned(tmp_path)
    made = {item.source.path.name: Latents(plan, CacheRecipe()).made_from(item)["reading"] for item in plan.items}
    assert made == {"plain.png": [], "wide.png": ["colours of Display P3"]}


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.avif"])
def test_an_animation_is_refused_by_name(tmp_path, name):
    frames = [Image.fromarray(frame) for frame in moving_square(3, 64, 48)]
    (tmp_path / "m").mkdir()
    frames[0].save(tmp_path / "m" / name, save_all=True, append_images=frames[1:], duration=40)
    (tmp_path / "m" / "a.txt").write_text("it moves")
    write_image(tmp_path / "m" / "still.png")
    assert f"{name} is an animation of 3 pictures" in reasons(planned(tmp_path))[name]


def test_a_photo_with_its_preview_is_one_picture(tmp_path):
    frames = [Image.fromarray(frame) for frame in moving_square(2, 64, 48)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert image_header(tmp_path / "a.jpg").width == 64


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jxl", JXL, "is a JPEG XL picture, .* pip install pillow-jxl-plugin"),
        ("a.jxl", b"\xff\x0a" + bytes(50), "is a JPEG XL picture"),
        ("a.jpg", HEIC, "is a HEIC picture, .* pip install pillow-heif"),
        ("a.png", b"rubbish" * 20, "damaged or of another format"),
    ],
)
def test_formats_that_pillow_does_not_read_are_named(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words):
        probe_media(tmp_path / name)


def test_pictures_of_kinds_that_are_not_read_are_named_unless_their_twin_is(tmp_path):
    write_image(tmp_path / "m" / "a.png")
    write_image(tmp_path / "m" / "b.jpg")
    for name in ("b.HEIC", "c.heic", "d.tif"):
        (tmp_path / "m" / name).write_bytes(HEIC)
        (tmp_path / "m" / name).with_suffix(".txt").write_text("x")
    assert reasons(planned(tmp_path)) == {
        "c.heic": "is a HEIC picture, a kind that is not read; save it as PNG or JPEG",
        "d.tif": "is a TIFF picture, a kind that is not read; save it as PNG or JPEG",
    }


def test_a_rough_look_shows_the_same_picture(tmp_path):
    pixels = np.zeros((600, 900, 3), np.uint8)
    pixels[:, 450:] = (200, 120, 40)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    ((rough,), smooth) = glances(tmp_path / "a.jpg", ((16, 16), MIDDLE)), read_image(tmp_path / "a.jpg", (16, 16))
    rough, smooth = rough.astype(int), smooth.astype(int)
    assert np.abs(rough - smooth).mean() < 1


# --- folders of frames -----------------------------------------------------------------------------------------------


def frames_named(folder, names):
    for level, name in enumerate(names):
        folder.mkdir(parents=True, exist_ok=True)
        patch((level * 10,) * 3).save(folder / name)
    return folder


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    folder = frames_named(tmp_path / "f", [f"shot2_{number}.png" for number in range(1, 13)])
    info = probe_frame_folder(folder)
    assert [int(level) for level in read_frames(info)[:, 0, 0, 0]] == [10 * number for number in range(12)]
    assert info.reading == ("frames in the order of their numbers",)


def test_frames_with_zeros_before_their_numbers_are_as_they_were(tmp_path):
    folder = frames_named(tmp_path / "f", [f"{number:03d}.png" for number in range(12)])
    assert probe_frame_folder(folder).reading == ()
    assert [path.name for path in frame_files(folder)] == sorted(path.name for path in folder.iterdir())


def test_odd_names_of_frames_are_sorted_too(tmp_path):
    names = ["a.png", "a1.png", "a2b.png", "a10.png", "B.png", "7.png", "07.png"]
    folder = frames_named(tmp_path / "f", names)
    wanted = ["07.png", "7.png", "B.png", "a1.png", "a2b.png", "a10.png", "a.png"]
    assert [path.name for path in frame_files(folder)] == wanted


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["f0.png", "f1.png", "f1.jpg", "f2.png"], r"f1\.jpg and f1\.png are the same frame"),
        (["f1.png", "f2.png", "f02.png"], r"f02\.png and f2\.png are the same frame"),
        (["f1.png", "f2.png", "x7.png", "f3.png"], r"x7\.png is not named as the others are \(f1\.png\)"),
        (["f1.png", "f2.png", "cover.png"], r"cover\.png is not named as the others"),
    ],
)
def test_a_frame_whose_place_is_not_known_is_refused_by_name(tmp_path, names, words):
    with pytest.raises(DataError, match=words):
        probe_frame_folder(frames_named(tmp_path / "f", names))


def test_a_frame_of_another_size_is_refused_by_name(tmp_path):
    folder = frames_named(tmp_path / "f", [f"f{number}.png" for number in range(4)])
    Image.new("RGB", (20, 50)).save(folder / "f0.png")
    with pytest.raises(DataError, match=r"f0\.png has 20x50, and others \d+x\d+"):
        probe_frame_folder(folder)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        (range(1, 6), ()),
        (range(0, 50, 10), ()),
        ((0, 33, 67, 100), ()),
        ((1, 2, 4, 5), ("lacks a frame by its numbers, first behind f2.png; the next is shown there",)),
        (
            (1, 2, 3, 6, 7, 9),
            ("lacks 3 frames by its numbers, first behind f3.png; the next is shown there",),
        ),
    ],
)
def test_numbers_that_are_missing_between_frames_are_told(tmp_path, numbers, told):
    assert probe_frame_folder(frames_named(tmp_path / "f", [f"f{number}.png" for number in numbers])).remarks == told


def test_frames_without_numbers_and_folders_among_frames_are_told(tmp_path):
    folder = frames_named(tmp_path / "f", ["one.png", "two.png", "three.png"])
    frames_named(folder / "more", ["a.png"])
    (folder / "empty").mkdir()
    assert probe_frame_folder(folder).remarks == (
        "has pictures without numbers, shown in the order of the alphabet: one.png, three.png ...",
        "holds more/ with pictures beside its frames, which are not used",
    )
    assert probe_frame_folder(frames_named(tmp_path / "g", ["one.png"])).remarks == ()


def test_a_frame_that_is_given_another_name_is_looked_at_again(tmp_path):
    folder = frames_named(tmp_path / "f", ["f1.png", "f2.png", "f3.png"])
    (tmp_path / "list.jsonl").write_text('{"video_path": "f", "caption": "x"}\n')
    entry = {"video_jsonl_file": "list.jsonl", "cache_directory": "k", "target_frames": [1]}
    config = DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, tmp_path)
    (tmp_path / "k").mkdir()
    assert len(plan_dataset(config).items) == 1
    (folder / "f3.png").rename(folder / "x3.png")
    with pytest.raises(DataError, match=r"x3\.png is not named as the others"):
        plan_dataset(config)


def test_the_words_of_a_picture_that_is_too_large_end_once(tmp_path, monkeypatch):
    patch((0, 0, 0)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(DataError, match="attack. Make it smaller"):
        read_image(tmp_path / "a.png")


def test_frames_whose_names_are_no_utf8_are_read(tmp_path):
    import os

    from ltx2_train.dataset.sources import source_record

    folder = frames_named(tmp_path / "f", ["1.png", "2.png"])
    os.rename(os.fsencode(folder / "2.png"), os.fsencode(folder) + b"/2\xe9.png")
    assert probe_frame_folder(folder).frames == 2
    assert len(source_record(folder)["sha256"]) == 64
    assert read_frames(probe_frame_folder(folder))[1, 0, 0, 0] == 10


@pytest.mark.parametrize(("level", "words"), [(np.nan, "not numbers"), (np.inf, "not numbers"), (8.0, "is HDR.*8.00")])
def test_levels_that_nobody_can_tell_are_refused(tmp_path, level, words):
    levels = np.full((48, 64), 0.5, np.float32)
    Image.fromarray(levels).save(tmp_path / "a.png", format="TIFF")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [128, 128, 128]
    levels[3, 3] = level
    Image.fromarray(levels).save(tmp_path / "a.png", format="TIFF")
    with pytest.raises(DataError, match=words):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (b"cICP" + bytes((9, 16, 0, 1)), "is HDR"),
        (b"cICP" + bytes((12, 13, 0, 1)), "has the colours of Display P3"),
        (b"cICP" + bytes((1, 13, 0, 1)), ""),
        (b"cHRM" + struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000), "primaries of its own"),
        (b"cHRM" + struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000), ""),
    ],
)
def test_colours_that_a_png_names_and_nobody_converts_are_told(tmp_path, chunk, said):
    write_image(tmp_path / "a.png", 64, 32)
    data = (tmp_path / "a.png").read_bytes()
    told = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(data[:33] + told + data[33:])
    remarks = image_header(tmp_path / "a.png").remarks
    assert [said in one for one in remarks] == ([True] if said else [])


def test_colours_that_an_avif_names_are_told(tmp_path):
    head = b"\0\0\0\x1cftypavif" + bytes(20) + b"\0\0\0\x13colrnclx" + struct.pack(">HHHB", 12, 1, 1, 128)
    (tmp_path / "a.avif").write_bytes(head)
    assert "Display P3" in picture_remark(tmp_path / "a.avif")
