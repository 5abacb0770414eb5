"""Frames, sizes, rates and colours of videos.

It is long: each kind of colour, size and end has its file.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from media import grey_levels, moving_square, numbers, real_clip, tone, truncate, write_image, write_video
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ltx2_train.errors import DataError
from ltx2_train.media import frame_folder, probe
from ltx2_train.media.frame_folder import probe_frame_folder
from ltx2_train.media.images import MAYBE_OVER_BLACK, TURNED_BY_XMP
from ltx2_train.media.video import probe_media, read_frames


def test_probe_of_real_clips():
    bunny = probe_media(real_clip("bigbuckbunny.mp4"))
    assert (bunny.kind, bunny.frames, bunny.width, bunny.height, bunny.fps) == ("video", 132, 1280, 720, 25.0)
    assert bunny.has_audio
    assert bunny.duration == pytest.approx(5.28, abs=0.01)
    bikes = probe_media(real_clip("bikes.mp4"))
    assert (bikes.frames, bikes.width, bikes.height, bikes.has_audio) == (250, 640, 272, False)


def test_pixel_aspect_ratio_gives_the_shown_width():
    phone = probe_media(real_clip("carphone_pristine.mp4"))
    assert (phone.width, phone.height) == (round(176 * 128 / 117), 144)
    assert read_frames(phone, [0]).shape == (1, 144, 193, 3)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "libx264"), ("a.avi", "mpeg4"), ("a.flv", "flv")],
)
def test_every_frame_in_order_of_presentation(tmp_path, name, codec):
    options = {"bf": "2", "g": "8"} if codec == "libx264" else {}
    if codec == "libx264":
        options["preset"] = "medium"
    path = write_video(tmp_path / name, grey_levels(25), codec=codec, options=options)
    info = probe_media(path)
    assert info.frames == 25
    assert numbers(read_frames(info)) == list(range(25))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "10", "bf": "3", "preset": "medium"}),
        ("a.mkv", "libx264", {"g": "10", "bf": "3", "preset": "medium"}),
        ("open.mov", "libx264", {"g": "30", "bf": "3", "preset": "medium", "x264-params": "open-gop=1"}),
        ("a.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
        ("a.avi", "mpeg4", {"g": "12", "bf": "2"}),
        ("a.wmv", "wmv2", {"g": "12"}),
    ],
)
def test_picks_anywhere_are_those_of_a_full_decode(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, moving_square(70, 64, 48), codec=codec, options=options)
    info = probe_media(path)
    everything = read_frames(info)
    for start in range(28, 66):
        picks = [start, start, start + 1, start + 4]
        np.testing.assert_array_equal(read_frames(info, picks), everything[picks])


def test_head_stops_decoding_when_it_has_enough(tmp_path, monkeypatch):
    from ltx2_train.media import video as media

    info = probe_media(write_video(tmp_path / "a.mp4", grey_levels(25), options={"g": "5"}))
    seen = []
    real = media.decoded

    def counting(*arguments):
        for frame in real(*arguments):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(media, "decoded", counting)
    assert numbers(read_frames(info, [0, 1, 2])) == [0, 1, 2]
    assert len(seen) == 3


def test_a_seek_avoids_decoding_what_comes_before(tmp_path, monkeypatch):
    from ltx2_train.media import video as media

    info = probe_media(write_video(tmp_path / "a.mp4", moving_square(200, 64, 48), options={"g": "10"}))
    seen = []
    real = media.decoded

    def counting(*arguments):
        for frame in real(*arguments):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(media, "decoded", counting)
    read_frames(info, [185, 186])
    assert len(seen) < 50


def test_cover_then_centre_crop(tmp_path):
    clip = np.zeros((2, 64, 128, 3), np.uint8)
    clip[:, :, 32:96] = 200
    path = write_video(tmp_path / "wide.mp4", clip)
    square = read_frames(path, size=(64, 64))
    assert square.shape == (2, 64, 64, 3)
    assert square[:, 8:-8, 4:-4].min() > 180, "only the bright middle is left"


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_in_the_metadata_is_applied(tmp_path, rotation):
    clip = np.zeros((3, 48, 96, 3), np.uint8)
    clip[:, :24, :24] = 255
    path = write_video(tmp_path / "turned.mp4", clip, rotation=rotation)
    info = probe_media(path)
    upright = np.rot90(clip, info.rotation // 90, axes=(1, 2))
    assert (info.height, info.width) == upright.shape[1:3]
    frames = read_frames(info)
    assert np.abs(frames.astype(int) - upright).mean() < 4


@pytest.mark.parametrize(("degrees", "used", "beyond"), [(30, 0, 30), (100, 90, 10), (90, 90, 0)])
def test_a_turn_that_is_no_quarter_is_told(tmp_path, degrees, used, beyond):
    info = probe_media(write_video(tmp_path / "slanted.mp4", np.zeros((2, 48, 96, 3), np.uint8), rotation=degrees))
    assert info.rotation == used
    told = [remark for remark in info.remarks if f"turned by {beyond} degrees more than it is used here" in remark]
    assert len(told) == (beyond > 0)


def test_rotation_turns_the_way_players_do(tmp_path):
    # The display matrix of a phone held upright: players turn the stored picture by 90 degrees clockwise.
    clip = np.zeros((2, 48, 96, 3), np.uint8)
    clip[:, :, :20] = 255
    info = probe_media(write_video(tmp_path / "phone.mp4", clip, rotation=-90))
    frames = read_frames(info)
    assert frames.shape[1:3] == (96, 48)
    assert frames[0, 5, 24].min() > 200, "the left edge is now the top"
    assert frames[0, 90, 24].max() < 40


def test_varying_frame_rate_keeps_its_timestamps(tmp_path):
    times = [0, 0.04, 0.08, 0.4, 0.44, 1.0]
    path = write_video(tmp_path / "vfr.mkv", grey_levels(6), times=times)
    info = probe_media(path)
    assert info.times == pytest.approx(times, abs=0.002)


def test_frames_that_are_counted_begin_with_the_first_time_stamp(tmp_path):
    """FFmpeg's program streams of H.264 have few stamps, and their picture begins as late as their sound."""
    path = write_video(
        tmp_path / "a.mpg",
        grey_levels(30, step=8),
        options={"bf": "2", "preset": "veryfast"},
        sound=tone(1.2),
        sound_codec="mp2",
    )
    media = probe_media(path)
    assert media.stamps is None
    assert numbers(read_frames(media, [0, 29]), step=8) == [0, 29]
    with av.open(str(path)) as container:
        sound = float(container.streams.audio[0].start_time * container.streams.audio[0].time_base)
    assert sound == pytest.approx(media.times[0], abs=0.05)
    assert media.times[0] > 0.4
    assert media.duration == pytest.approx(1.2, abs=0.01)


@pytest.mark.parametrize(("width", "height"), [(63, 47), (65, 49), (33, 31)])
def test_odd_sizes(tmp_path, width, height):
    path = write_video(tmp_path / "odd.mkv", moving_square(3, width, height), codec="ffv1", pixel_format="yuv444p")
    info = probe_media(path)
    assert (info.width, info.height) == (width, height)
    np.testing.assert_allclose(read_frames(info).astype(int), moving_square(3, width, height), atol=4)
    assert read_frames(info, size=(64, 32)).shape == (3, 32, 64, 3)


def test_ten_bits_become_eight(tmp_path):
    path = write_video(tmp_path / "deep.mkv", grey_levels(8, step=30), codec="ffv1", pixel_format="yuv420p10le")
    assert probe_media(path).pixel_format == "yuv420p10le"
    frames = read_frames(path)
    assert frames.dtype == np.uint8
    assert numbers(frames, step=30) == list(range(8))


def _with_alpha(frames: int = 3) -> np.ndarray:
    clip = np.full((frames, 64, 64, 4), 255, np.uint8)
    clip[:, :, :32, 3] = 0
    return clip


def test_alpha_of_mov_is_laid_over_black(tmp_path):
    path = write_video(tmp_path / "a.mov", _with_alpha(), codec="qtrle", pixel_format="argb")
    info = probe_media(path)
    assert info.has_alpha
    frames = read_frames(info)
    assert frames[:, :, :32].max() == 0
    assert frames[:, :, 32:].min() == 255


def test_alpha_of_webm_is_laid_over_black(tmp_path):
    import av

    if "libvpx-vp9" not in av.codecs_available:
        pytest.skip("this FFmpeg has no libvpx")
    path = write_video(tmp_path / "a.webm", _with_alpha(5), codec="libvpx-vp9", pixel_format="yuva420p")
    info = probe_media(path)
    assert info.has_alpha
    frames = read_frames(info)
    assert len(frames) == 5
    assert frames[:, :, :28].max() < 10
    assert frames[:, :, 36:].min() > 245


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
def test_colours_follow_the_matrix_of_the_file(tmp_path, matrix):
    import av

    clip = np.zeros((2, 64, 64, 3), np.uint8)
    clip[...] = (200, 40, 90)
    path = tmp_path / "tagged.mkv"
    code = {"bt709": 1, "smpte170m": 6}[matrix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.colorspace = code
        for index, picture in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv444p", dst_colorspace={"bt709": "itu709", "smpte170m": "itu601"}[matrix]
            )
            frame.colorspace = code
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(read_frames(path).astype(int), clip, atol=4)


@pytest.mark.parametrize(
    ("pixel_format", "tagged", "stored", "shown"),
    [("gray", 1, 33, 20), ("gray", 2, 33, 33), ("gray", 0, 33, 33), ("gray10le", 1, 132, 20), ("gray", 1, 250, 255)],
)
def test_grey_without_colour_has_the_range_of_its_tag(tmp_path, pixel_format, tagged, stored, shown):
    import av

    path, kind = tmp_path / "grey.mkv", np.uint8 if pixel_format == "gray" else np.uint16
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixel_format
        stream.codec_context.color_range = tagged
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64), stored, kind), format=pixel_format)
            frame.pts, frame.color_range = index, tagged
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for size in ((64, 64), (32, 32)):
        assert set(read_frames(path, size=size).ravel().tolist()) == {shown}


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (128, 128)])
def test_colours_are_exact_at_every_size(tmp_path, size):
    # 8-bit limited range stores about 1.16 levels a step, so half of that and a rounding is what may differ.
    path = write_video(tmp_path / "a.mkv", _patches(), codec="ffv1", pixel_format="yuv420p")
    error = read_frames(path, size=size)[:, size[1] // 2, size[0] // 2].astype(float) - _patches()[:, 32, 32]
    assert abs(error.mean()) < 0.3, "no darker and no lighter"
    assert np.abs(error).max() < 3


def _patches() -> np.ndarray:
    colours = np.random.default_rng(0).integers(40, 220, (30, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (30, 64, 64, 3)).copy()


def test_truncated_file_is_named(tmp_path):
    path = truncate(write_video(tmp_path / "cut.mp4", moving_square(60, 96, 64)), 0.5)
    with pytest.raises(DataError, match="cut.mp4") as caught:
        probe_media(path)
    assert caught.value.path == path
    assert "cut short" in str(caught.value)


def test_truncated_matroska_is_named(tmp_path):
    path = truncate(write_video(tmp_path / "cut.mkv", moving_square(100, 96, 64)), 0.5)
    with pytest.raises(DataError, match="cut short"):
        probe_media(path)


@pytest.mark.parametrize("name", ["text.mp4", "text.png"])
def test_something_else_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_text("this is not a medium")
    with pytest.raises(DataError, match=name):
        probe_media(path)


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "zero.mp4").touch()
    with pytest.raises(DataError, match="0 bytes"):
        probe_media(tmp_path / "zero.mp4")
    with pytest.raises(DataError, match="does not exist"):
        probe_media(tmp_path / "none.mp4")


def test_sound_alone_is_refused(tmp_path):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="no video"):
        probe_media(path)


def _gradient() -> np.ndarray:
    return np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_image_modes_without_alpha(tmp_path, mode):
    stored = Image.fromarray(_gradient()).convert("RGB").convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    stored.save(path)
    frames = read_frames(path)
    assert frames.shape == (1, 48, 64, 3)
    np.testing.assert_allclose(frames[0].astype(int), np.asarray(stored.convert("RGB")), atol=8)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_images_lie_over_black(tmp_path, mode):
    rgba = np.full((48, 64, 4), 255, np.uint8)
    rgba[:, :32, 3] = 0
    picture = Image.fromarray(rgba)
    path = tmp_path / "a.png"
    if mode == "P":
        indexed = Image.fromarray((rgba[..., 3] // 255).astype(np.uint8)).convert("P")
        indexed.putpalette([255, 0, 0, 255, 255, 255])
        indexed.save(path, transparency=0)
    else:
        picture.convert(mode).save(path)
    assert probe_media(path).has_alpha
    frame = read_frames(path)[0]
    assert frame[:, :32].max() == 0
    assert frame[:, 32:].min() == 255


@pytest.mark.parametrize(("opacity", "told"), [(0, True), (255, False)])
def test_a_channel_of_transparency_is_told_where_something_is_transparent(tmp_path, monkeypatch, opacity, told):
    clip = np.full((9, 64, 64, 4), 255, np.uint8)
    clip[..., :3] = moving_square(9, 64, 64)
    clip[:, 3, 5, 3] = opacity
    pictures = [Image.fromarray(picture) for picture in clip]
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / "frames" / f"{number}.png")
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=40)
    write_video(tmp_path / "a.mkv", clip, codec="ffv1", pixel_format="bgra")
    found = [probe_media(tmp_path / name) for name in ("a.gif", "a.mkv")] + [probe_frame_folder(tmp_path / "frames")]
    assert [(one.has_alpha, "has transparency; it is laid over black" in one.remarks) for one in found] == [
        (True, told)
    ] * 3
    monkeypatch.setattr(probe, "WHOLE_PIXELS", 0)  # of a long one nobody has looked at the pixels
    assert probe_media(tmp_path / "a.mkv").remarks == (MAYBE_OVER_BLACK,)
    monkeypatch.setattr(frame_folder, "WHOLE_PIXELS", 0)
    assert probe_frame_folder(tmp_path / "frames").remarks == (MAYBE_OVER_BLACK,)


def test_a_turn_that_imagemagick_wrote_is_not_laid_to_xmp(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data, notes = exif.tobytes(), PngInfo()
    notes.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    Image.new("RGB", (80, 40), "red").save(tmp_path / "a.png", pnginfo=notes)
    info = probe_media(tmp_path / "a.png")
    assert (info.width, info.height, info.remarks) == (40, 80, ())


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(_gradient().astype(np.uint16) * 257).save(path)
    np.testing.assert_allclose(read_frames(path)[0, ..., 0], _gradient(), atol=1)


def test_exif_orientation_is_applied(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.jpg"
    Image.fromarray(picture).save(path, exif=exif, quality=95)
    info = probe_media(path)
    assert (info.width, info.height) == (40, 80)
    frame = read_frames(info)[0]
    assert frame[:15].min() > 200, "the left edge is now the top"
    assert frame[25:].max() < 60


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_orientation_that_stands_in_xmp_alone_is_applied_and_told(tmp_path, ending):
    words = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :20] = 255
    text, exif = PngInfo(), Image.Exif()
    text.add_itxt("XML:com.adobe.xmp", words)
    options = {"pnginfo": text} if ending == "png" else {"xmp": words.encode()}
    path = tmp_path / f"a.{ending}"
    Image.fromarray(picture).save(path, quality=95, **options)
    info = probe_media(path)
    with Image.open(path) as image:
        if image.getexif().get(0x0112) is None:
            pytest.skip("this Pillow does not look into the XMP of such a file")
    assert (info.width, info.height, info.remarks) == (40, 80, (TURNED_BY_XMP,))
    assert read_frames(info)[0][:15].min() > 200
    exif[0x0112] = 6
    Image.fromarray(picture).save(path, quality=95, exif=exif, **options)
    assert probe_media(path).remarks == ()


def test_image_is_scaled_to_its_bucket(tmp_path):
    path = write_image(tmp_path / "a.png", 200, 100)
    assert read_frames(path, size=(64, 64)).shape == (1, 64, 64, 3)
    assert read_frames(path, size=(256, 256)).shape == (1, 256, 256, 3)


def test_truncated_image_is_named(tmp_path):
    path = write_image(tmp_path / "cut.png", 300, 300)
    truncate(path, 0.5)
    with pytest.raises(DataError, match="cut.png"):
        read_frames(path)


def test_pixel_aspect_of_written_clip(tmp_path):
    path = write_video(tmp_path / "wide.mp4", moving_square(3, 64, 48), aspect=Fraction(4, 3))
    assert (probe_media(path).width, probe_media(path).height) == (85, 48)


UNBEGUN = "begins with {} frames before its first key frame, which lean on what is not there and are not used"


def _copied(source, target, first=0, earlier=0.0):
    """Copy the packets of `source` from number `first` on, with times `earlier` by that many seconds."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        shift = round(earlier / stream.time_base)
        for packet in [packet for packet in old.demux(stream) if packet.size][first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            new.mux(packet)
    return target


def test_what_a_phone_trimmed_away_is_not_shown(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", grey_levels(24), options={"g": "8", "preset": "medium", "bf": "2"})
    # Times below zero are stored with an edit list that hides them.
    path = _copied(whole, tmp_path / "trimmed.mp4", earlier=5 / 25)
    info = probe_media(path)
    assert (info.frames, info.remarks) == (19, ())
    assert numbers(read_frames(info)) == list(range(5, 24))


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts"])
def test_a_clip_cut_without_reencoding_begins_at_its_first_key_frame(tmp_path, ending):
    whole = write_video(tmp_path / "whole.mp4", grey_levels(24), options={"g": "8", "preset": "medium", "bf": "2"})
    info = probe_media(_copied(whole, tmp_path / f"cut{ending}", first=3))
    assert info.frames == 16
    assert numbers(read_frames(info)) == list(range(8, 24))
    assert info.remarks == (UNBEGUN.format(5),)


@pytest.mark.parametrize("ending", [".avi", ".mkv"])
def test_what_a_decoder_makes_of_frames_without_their_key_frame_is_not_shown(tmp_path, ending):
    options = {"g": "8", "bf": "0", "sc_threshold": "1000000000"}
    whole = write_video(tmp_path / "whole.mp4", grey_levels(24), codec="mpeg4", options=options)
    info = probe_media(_copied(whole, tmp_path / f"cut{ending}", first=3))
    assert info.remarks == (UNBEGUN.format(5),)
    assert numbers(read_frames(info)) == list(range(8, 24))


def test_damage_in_the_middle_is_an_error_or_shows_the_right_number_of_frames(tmp_path):
    path = write_video(tmp_path / "hurt.mp4", moving_square(60, 96, 64), options={"g": "60"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(bytes(data))
    outcome = ""
    try:
        outcome = f"{len(read_frames(path))} frames"
    except DataError as error:
        outcome = str(error)
    assert outcome == "60 frames" or "hurt.mp4" in outcome


def test_full_range_video_is_not_stretched(tmp_path):
    path = write_video(tmp_path / "full.mp4", grey_levels(6, step=50), pixel_format="yuvj420p")
    np.testing.assert_allclose(read_frames(path)[:, 24, 32, 0], np.arange(6) * 50, atol=3)


def test_times_of_decoding_in_place_of_those_of_showing_leave_the_order_of_frames(tmp_path):
    """As libxvid has them written into MP4 and Matroska."""
    shown = write_video(tmp_path / "a.mp4", moving_square(20, 96, 64), codec="mpeg4", options={"bf": "2", "q": "2"})
    path = tmp_path / "b.mp4"
    with av.open(str(shown)) as source, av.open(str(path), "w") as made:
        stream = made.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        first = packets[0].dts
        for packet in packets:
            packet.pts = packet.dts = packet.dts - first
            packet.stream = stream
            made.mux(packet)
    right, media = probe_media(shown), probe_media(path)
    assert len(media.remarks) == 1
    assert media.remarks[0].startswith("has the times of decoding in place of those of its frames")
    assert np.diff(media.times).max() == pytest.approx(0.04, abs=0.001)
    assert np.array_equal(read_frames(media, range(20)), read_frames(right, range(20)))
