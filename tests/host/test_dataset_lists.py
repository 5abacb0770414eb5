"""What Dataset from Lists makes of files, parts of files, and odd pictures and sounds of other nodes."""

from __future__ import annotations

import math
import shutil
import types
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import fake_comfy
import media
import numpy as np
import pytest
import torch
from PIL import Image

from ltx2_train.media.sound import to_stereo
from ltx2_train.media.sound_media import Sound, read_sound
from ltx2_train.media.video import probe_media


@pytest.fixture
def lists(nodes):
    """Runs the node with the sockets that matter."""

    def run(**sockets):
        given = {"captions": ["all"], "name": ["made"], "batches": ["pictures"], "trigger_word": [""], "fps": [25.0]}
        return nodes.DatasetFromLists.execute(**given, **sockets).args

    return run


def made(comfy) -> Path:
    return comfy.folder("output", "ltx2_runs", "datasets", "made", "media")


def uneven(path: Path) -> Path:
    """Frames that are held for different times, as recordings of a screen have them."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("h264", rate=60, width=64, height=64, pix_fmt="yuv420p", options={"g": "8"})
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(media.moving_square(24, 64, 64)):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = (100 * number if number < 12 else 600 + 50 * number), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def test_a_video_that_is_a_file_is_laid_in_as_it_is_and_a_part_of_it_is_cut_by_its_times(lists, comfy, tmp_path):
    source = uneven(tmp_path / "screen.mkv")
    of = fake_comfy.VideoFromFile
    inside = BytesIO(source.read_bytes())
    videos = [of(str(source)), of(inside), of(str(source), start_time=0.5, duration=1.0), of(inside, start_time=1.3)]
    lists(videos=videos)
    paths = sorted(path for path in made(comfy).iterdir() if path.suffix != ".txt")
    assert [path.suffix for path in paths] == [".mkv", ".mkv", ".mp4", ".mp4"]
    assert [path.read_bytes() == source.read_bytes() for path in paths] == [True, True, False, False]
    whole = probe_media(source).times
    for path, (begin, end) in zip(paths[2:], ((0.5, 1.5), (1.3, 9)), strict=True):
        expected = [time - begin for time in whole if begin <= time < end]
        times = np.array(probe_media(path).times)
        assert times - times[0] == pytest.approx(np.array(expected) - expected[0], abs=2e-3)
    with pytest.raises(
        RuntimeError,
        match=r"video 1 of `videos`: .*screen.mkv has no frame from 7 s to 8 s; its frames are from 0.00 s",
    ):
        lists(videos=[of(str(source), start_time=7, duration=1)])
    shutil.copy2(source, tmp_path / "screen.xyz")
    with pytest.raises(RuntimeError, match=r"video 2 of `videos` \(screen.xyz\) is a .xyz file, which is not read"):
        lists(videos=[of(str(source)), of(str(tmp_path / "screen.xyz"))])


def test_sounds_of_many_channels_are_mixed_as_those_of_files_and_told(lists, comfy):
    wave = np.zeros((6, 16000), np.float32)
    wave[0], wave[1] = media.tone(1.0, 440, 16000)[0], media.tone(1.0, 900, 16000)[0]
    audio = {"waveform": torch.from_numpy(wave)[None], "sample_rate": 16000}
    loud = {"waveform": torch.from_numpy(media.tone(1.0, 440, 16000) * 8)[None], "sample_rate": 16000}
    lists(audios=[audio, loud])
    expected = to_stereo(Sound(wave, 16000, "5.1"))
    assert np.abs(read_sound(made(comfy) / "made_0001.wav").samples - expected).max() < 1e-4
    assert [media.pitch(side[None], 16000) for side in expected] == [
        pytest.approx(440, abs=2),
        pytest.approx(900, abs=2),
    ]
    heard = read_sound(made(comfy) / "made_0002.wav").samples
    assert np.abs(heard).max() == pytest.approx(1, abs=1e-3)
    assert np.sqrt(np.square(heard).mean()) == pytest.approx(0.707, abs=0.01), "nothing is clipped"
    said = comfy.texts[-1][1]
    assert "sound 1 of `audios`: its 6 channels are mixed down to two" in said
    assert "sound 2 of `audios` (4 times): goes beyond full scale, and is made quieter as a whole" in said


def test_pictures_are_taken_as_those_of_files_and_what_is_changed_is_told(lists, comfy):
    grey, alpha = torch.full((1, 32, 32, 1), 0.4), torch.full((2, 32, 32, 4), 0.8)
    alpha[1, :, :, 3] = 0.5
    bright = torch.full((1, 32, 32, 3), 0.5)
    bright[:, :8] = 1.2
    lists(images=[grey, alpha, bright])
    seen = [np.asarray(Image.open(path)) for path in sorted(made(comfy).glob("*.png"))]
    assert [int(picture[20, 20, 1]) for picture in seen] == [102, 163, 102, 128]
    assert {picture.shape for picture in seen} == {(32, 32, 3)}
    said = comfy.texts[-1][1]
    assert "picture 2 of `images`, picture 3 of `images`: has transparency; it is laid over black" in said
    assert "picture 4 of `images` (25.0% of them): values below black or above white are clipped" in said


NAN = torch.full((1, 32, 32, 3), math.nan)


def film(images: torch.Tensor) -> types.SimpleNamespace:
    """A VIDEO that is no file."""
    made = types.SimpleNamespace(images=images, audio=None, frame_rate=Fraction(25))
    return types.SimpleNamespace(get_components=lambda: made)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"images": [torch.zeros(2, 32, 32, 3), NAN]}, "picture 3 of `images` holds values that are not numbers"),
        ({"images": [torch.full((1, 32, 32, 3), 255.0)]}, "picture 1 of `images` has values from 255 to 255"),
        ({"images": [torch.zeros(1, 32, 32, 3) - 1]}, "picture 1 of `images` has values from -1 to -1"),
        ({"images": [torch.zeros(1, 32, 32, 5)]}, r"picture 1 of `images` has the shape \[1, 32, 32, 5\]"),
        (
            {"videos": [film(torch.zeros(1, 32, 32, 3)), film(NAN)]},
            "frame 1 of video 2 of `videos` holds values that are not numbers",
        ),
        (
            {"audios": [{"waveform": torch.tensor([[[0.0]], [[math.inf]]]), "sample_rate": 16000}]},
            "sound 2 of `audios` holds values that are not numbers",
        ),
        ({"audios": [{"waveform": torch.zeros(1, 2, 0), "sample_rate": 16000}]}, r"has the shape \[1, 2, 0\]"),
    ],
)
def test_what_is_no_picture_and_no_sound_is_refused_by_its_number_before_anything_is_written(lists, comfy, given, says):
    with pytest.raises(RuntimeError, match=says):
        lists(**given)
    assert not [path for path in comfy.base.rglob("*") if path.suffix in (".png", ".wav", ".mp4")]


def test_files_of_others_with_a_name_that_is_wanted_are_refused_by_it(lists, comfy):
    folder = made(comfy)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("made_0002.png", "made_0002.txt", "mine.png"):
        (folder / name).write_text("mine")
    with pytest.raises(Exception, match=r"files of yours .* would write: made_0002.png, made_0002.txt. Rename them"):
        lists(images=[torch.zeros(2, 32, 32, 3)])
    assert sorted(path.name for path in folder.iterdir()) == ["made_0002.png", "made_0002.txt", "mine.png"]
    assert {path.read_text() for path in folder.iterdir()} == {"mine"}


def test_a_caption_that_was_changed_by_hand_is_named_as_it_is_replaced(lists, comfy):
    lists(images=[torch.zeros(2, 32, 32, 3)])
    (made(comfy) / "made_0001.txt").write_text("my words")
    comfy.texts.clear()
    lists(images=[torch.ones(2, 32, 32, 3)])
    assert (made(comfy) / "made_0001.txt").read_text() == "all"
    assert any("made_0001.txt had been changed since this node wrote them" in str(text) for text in comfy.texts)
    comfy.texts.clear()
    lists(images=[torch.zeros(1, 32, 32, 3)])
    assert not any("had been changed" in str(text) for text in comfy.texts)
    assert not (made(comfy) / "made_0002.png").exists()
