"""References and masks that do not fit their clips: named and counted, or refused by name.

It is long: every way of not fitting has its sentence.
"""

from __future__ import annotations

import json
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from media import moving_square, tone, write_captioned, write_image, write_sound, write_video
from PIL import Image

from ltx2_train.caching.encode_mask import Masks, SoundMasks, picture_mask
from ltx2_train.caching.kind import Bench
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.events import Events
from ltx2_train.media.coded_colours import lacks_matrix
from ltx2_train.workshop.check import check_dataset


def config(folder, **entry):
    entry = {"video_directory": "clips", "cache_directory": "cache", "target_frames": [17], **entry}
    return DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, folder)


def said(folder, **entry):
    """What is said of pairs, without the name of the dataset; the plan and the check say the same."""
    plan = plan_dataset(config(folder, **entry))
    assert set(plan.pairs) <= set(plan.warnings)
    reasons = {finding.reason for finding in check_dataset(config(folder, **entry)).findings}
    texts = [text.removeprefix("datasets[0]: ") for text in plan.pairs]
    assert set(texts) <= reasons
    return texts


def refused(folder, **entry):
    """The one medium that is left out, and why; the check has it red."""
    (skip,) = plan_dataset(config(folder, **entry)).skipped
    red = [finding for finding in check_dataset(config(folder, **entry)).findings if finding.level == "red"]
    assert [finding.path for finding in red] == [skip.path]
    return skip.path.name, skip.reason


@pytest.fixture
def clips(tmp_path):
    """Clips a and b of 25 frames, 64x64, at 25 a second."""
    for name in "ab":
        write_captioned(tmp_path / "clips" / f"{name}.mp4", moving_square(25, 64, 64), caption=name)
    return tmp_path


def test_as_many_frames_at_another_rate_are_told(clips):
    write_video(clips / "refs" / "a.mp4", moving_square(25, 64, 64), fps=50)
    write_video(clips / "refs" / "b.mp4", moving_square(25, 64, 64))
    texts = said(clips, reference_directory="refs", reference_frames=17)
    rate = "another frame rate than their clips and as many frames, and go with them frame by frame"
    assert f"1 references have {rate}: a.mp4 (50.00 fps, not 25.00)" in texts
    assert f"1 masks have {rate}: a.mp4 (50.00 fps, not 25.00)" in said(clips, mask_directory="refs")


def test_large_films_without_a_colour_matrix_are_told(tmp_path):
    tall = moving_square(17, 32, 736)
    write_captioned(tmp_path / "clips" / "a.mp4", tall, caption="a")
    told = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}
    write_video(tmp_path / "clips" / "b.mp4", tall, options=told).with_suffix(".txt").write_text("b")
    write_captioned(tmp_path / "clips" / "small.mp4", moving_square(17, 64, 64), caption="c")
    for name in ("a", "b", "small"):
        write_video(tmp_path / "refs" / f"{name}.mp4", tall)
    texts = said(tmp_path, reference_directory="refs", reference_frames=17)
    found = [text for text in texts if "say no colour matrix: BT.601 is taken" in text]
    assert [text.split(",")[0] for text in found] == ["1 clips", "3 references"]
    assert [text.rsplit(": ", 1)[1] for text in found] == ["a.mp4", "a.mp4, b.mp4, small.mp4"]
    report = check_dataset(config(tmp_path))
    assert [(one.level, one.path) for one in report.findings if "no colour matrix" in one.reason] == [("amber", None)]


def test_a_film_that_says_or_implies_its_matrix_lacks_none():
    form = SimpleNamespace(is_rgb=False, components=(1, 2, 3))
    frame = SimpleNamespace(colorspace=2, width=1280, height=544, format=form)
    made, copied = {"PROMPT": '{"class_type": "CreateVideo"}'}, {"prompt": '{"class_type": "LoadVideo"}'}
    cases = [("h264", {}), ("h264", copied), ("h264", made), ("mjpeg", {})]
    assert [lacks_matrix(frame, codec, tags) for codec, tags in cases] == [True, True, False, False]
    frame.width = 1024
    assert not lacks_matrix(frame, "h264", {})


def test_references_and_masks_whose_frames_are_uneven_are_told(clips):
    lost = [k / 25 for k in range(25) if not 10 <= k < 14]
    for name in "ab":
        write_video(clips / "refs" / f"{name}.mkv", moving_square(21, 64, 64), times=lost if name == "a" else None)
    uneven = "the {} a.mkv lacks frames after 0.36 s; its timestamps choose the frames"
    texts = said(clips, reference_directory="refs", reference_frames=17)
    assert [text for text in texts if "timestamps" in text] == [uneven.format("reference")]
    assert [text for text in said(clips, mask_directory="refs") if "timestamps" in text] == [uneven.format("mask")]
    assert not [text for text in said(clips, reference_directory="refs", reference_frames=1) if "timestamps" in text]


@pytest.mark.parametrize(
    ("role", "more"),
    [
        ("reference sound", {"reference_audio_directory": "beside"}),
        ("sound", {"audio_files_directory": "beside"}),
        ("mask for sound", {"audio_mask_directory": "beside"}),
    ],
)
def test_tracks_of_a_sound_beside_a_clip_are_told(clips, role, more):
    for name in "ab":
        write_sound(clips / "own" / f"{name}.wav", tone(1), codec="pcm_s16le")
        path = clips / "beside" / f"{name}.mka"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            streams = [container.add_stream("pcm_s16le", rate=48000, layout="mono") for _ in range(1 + (name == "a"))]
            for stream in streams:
                frame = av.AudioFrame.from_ndarray(np.full((1, 48000), 9000, np.int16), format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
                container.mux([*stream.encode(frame), *stream.encode(None)])
    texts = said(clips, audio_source="audio_files", **{"audio_files_directory": "own", **more})
    (told,) = [text for text in texts if "sound tracks" in text]
    assert told.startswith(f"the {role} a.mka has 2 sound tracks (1: ")


def test_a_sound_that_audio_extension_keeps_out_is_told_with_that_setting(clips):
    for name in "ab":
        write_sound(clips / "own" / f"{name}.wav", tone(1), codec="pcm_s16le")
    write_sound(clips / "own" / "a.mp3", tone(1), codec="libmp3lame")
    (clips / "own" / "c.npy").write_text("no sound")
    more = {"audio_source": "audio_files", "audio_files_directory": "own", "audio_extension": ".wav"}
    texts = plan_dataset(config(clips, **more)).warnings
    assert any(text.endswith("not used, since audio_extension names another ending: a.mp3") for text in texts)
    assert any(text.endswith("of a kind that is not read there, and not used: c.npy") for text in texts)
    (found,) = [one for one in check_dataset(config(clips, **more)).findings if one.path and one.path.name == "a.mp3"]
    assert found.reason == 'is a sound, and audio_extension = ".wav" names another ending'


# --- two of one name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "files"),
    [
        ("reference_directory", ["a.jpg", "a.png"]),
        ("reference_directory", ["a.mp4", "a.png"]),
        ("mask_directory", ["a.bmp", "a.webp"]),
        ("reference_audio_directory", ["a.flac", "a.wav"]),
        ("audio_mask_directory", ["a.json", "a.wav"]),
        ("audio_files_directory", ["a.mp3", "a.wav"]),
    ],
)
def test_two_files_of_one_name_are_refused_and_both_named(clips, key, files):
    more = {"audio_source": "audio_files"} if key == "audio_files_directory" else {}
    sounds = "audio" in key
    if key == "audio_mask_directory":
        more = {"audio_source": "audio_files"}
        write_sound(clips / "clips" / "a.wav", tone(1))
    for name in [*files, "b.wav" if sounds else "b.png"]:
        path = clips / "beside" / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".json":
            path.write_text("[[0, 0.5]]")
        elif path.suffix == ".mp4":
            write_video(path, moving_square(25, 64, 64))
        elif sounds:
            write_sound(path, tone(1), codec={".mp3": "libmp3lame", ".flac": "flac"}.get(path.suffix, "pcm_s16le"))
        else:
            write_image(path, 64, 64, caption=None)
    name, reason = refused(clips, **{key: "beside"}, **more)
    assert name == "a.mp4"
    assert reason.startswith("two files could be its ")
    assert all(file in reason for file in files)
    (clips / "beside" / files[1]).unlink()
    assert not plan_dataset(config(clips, **{key: "beside"}, **more)).skipped


def test_case_decides_where_it_is_the_only_difference(clips):
    write_image(clips / "beside" / "a.png", 64, 64, caption=None)
    write_image(clips / "beside" / "A.png", 32, 32, caption=None)
    write_image(clips / "beside" / "b.png", 64, 64, caption=None)
    plan = plan_dataset(config(clips, reference_directory="beside"))
    assert [item.references[0].path.name for item in plan.items] == ["a.png", "b.png"]


def test_a_sound_beside_its_clip_is_found_whatever_the_case_of_its_name(clips):
    for name in ("A.WAV", "b.wav"):
        write_sound(clips / "clips" / name, tone(1))
    plan = plan_dataset(config(clips, audio_source="audio_files"))
    assert [item.sound.path.name for item in plan.items] == ["A.WAV", "b.wav"]


def test_the_ending_that_is_set_chooses_among_sounds(clips):
    for name in ("a.mp3", "a.wav", "b.wav"):
        write_sound(clips / "clips" / name, tone(1), codec="libmp3lame" if name == "a.mp3" else "pcm_s16le")
    plan = plan_dataset(config(clips, audio_source="audio_files", audio_extension=".wav"))
    assert [item.sound.path.name for item in plan.items] == ["a.wav", "b.wav"]


# --- length ----------------------------------------------------------------------------------------------------------


def test_references_of_another_length_are_counted(clips):
    write_video(clips / "refs" / "a.mp4", moving_square(9, 64, 64))
    write_video(clips / "refs" / "b.mp4", moving_square(50, 64, 64))
    assert said(clips, reference_directory="refs", reference_frames=0) == [
        "1 references are shorter than their clips; where they end, their last frame is held: a.mp4 (0.32 s)",
        "1 references are longer than their clips, and only their beginning is used: b.mp4 (1.00 s)",
    ]
    assert said(clips, reference_directory="refs", reference_frames=9) == [], "as many frames as were asked for"


def test_later_windows_that_are_shown_a_beginning_are_counted(clips):
    write_captioned(clips / "clips" / "b.mp4", moving_square(50, 64, 64))
    for name, frames in (("a", 40), ("b", 70)):
        write_video(clips / "refs" / f"{name}.mp4", moving_square(frames, 64, 64))
    shown = {"reference_directory": "refs", "reference_frames": 9, "frame_extraction": "chunk"}
    (text,) = (one for one in said(clips, **shown) if "another length" in one)
    assert text == (
        "1 references have another length than their clips, so that every window is shown their beginning: "
        "b.mp4 (2.80 s, not 2.00 s)"
    ), "a.mp4 has one window, which begins where its clip does"


def test_a_reference_that_is_its_clip_or_transparent_or_shown_for_a_frame_is_told(clips):
    (clips / "refs").mkdir()
    (clips / "refs" / "a.mp4").write_bytes((clips / "clips" / "a.mp4").read_bytes())
    Image.new("RGBA", (64, 64), (200, 0, 0, 100)).save(clips / "refs" / "b.png")
    texts = said(clips, reference_directory="refs")
    assert texts == [
        "1 references are videos of which one frame is shown, since reference_frames is not set; 0 shows all of them: "
        "a.mp4 (25 frames)",
        "the reference b.png has transparency; it is laid over black",
    ]
    copied = "1 references are copies of their clips, so that there is nothing to learn but to repeat them: a.mp4"
    assert copied in said(clips, reference_directory="refs", reference_frames=0)
    assert copied in said(clips, reference_directory="refs", reference_frames=9), "half of what is to be made"
    assert copied not in said(clips, reference_directory="refs", reference_frames=1), "how it goes on is to be learned"
    slower = said(clips, reference_directory="refs", reference_frames=9, reference_temporal_scale=2)
    assert copied not in slower, "what is between the frames is something to learn"
    smaller = said(clips, reference_directory="refs", reference_frames=0, reference_downscale=2)
    assert copied not in smaller, "a picture from a smaller one is something to learn"


def test_a_reference_that_is_given_twice_is_told(clips):
    for name in "ab":
        write_image(clips / "refs" / f"{name}.png", 64, 64, caption=None)
        write_sound(clips / "clips" / f"{name}.wav", tone(1))
        write_sound(clips / "voices" / f"{name}.wav", tone(1, 600))
    twice = {"reference_directory": "refs", "more_reference_directories": ["refs"], "audio_source": "audio_files"}
    voices = {"reference_audio_directory": "voices", "more_reference_audio_directories": ["voices"]}
    assert said(clips, **twice, **voices) == [
        "2 references are the same as another of their clips: a.png, b.png",
        "2 reference sounds are the same as another of their clips: a.wav, b.wav",
    ]
    write_image(clips / "other" / "a.png", 32, 64, caption=None)
    write_image(clips / "other" / "b.png", 32, 64, caption=None)
    assert not any("the same as" in one for one in said(clips, **twice | {"more_reference_directories": ["other"]}))


def test_reference_sounds_that_are_cut_are_counted(clips):
    for name, seconds in (("a", 2), ("b", 0.7)):
        write_sound(clips / "clips" / f"{name}.wav", tone(1))
        write_sound(clips / "voices" / f"{name}.wav", tone(seconds, 600))
    voices = {"audio_source": "audio_files", "reference_audio_directory": "voices"}
    assert said(clips, **voices) == []
    assert said(clips, **voices, reference_audio_max_seconds=2) == []
    assert said(clips, **voices, reference_audio_max_seconds=1) == [
        "1 reference sounds are longer than reference_audio_max_seconds (1), and only their beginning is used: "
        "a.wav (2.00 s)"
    ]


def test_clips_that_are_cut_at_max_frames_are_counted(clips):
    write_captioned(clips / "clips" / "b.mp4", moving_square(50, 64, 64))
    full = {"frame_extraction": "full", "target_frames": [1]}
    assert said(clips, **full, max_frames=25) == [
        "1 clips are longer than max_frames (25), and only their beginning is used: b.mp4 (1.00 s)"
    ]
    assert said(clips, **full, max_frames=49) == [], "whole latents leave out as much"


def test_references_that_fit_are_not_mentioned(clips):
    write_video(clips / "refs" / "a.mp4", moving_square(25, 128, 128))
    write_image(clips / "refs" / "b.png", 64, 64, caption=None)
    assert said(clips, reference_directory="refs", reference_frames=0) == []


def test_a_mask_goes_by_the_time_of_its_clip_and_is_counted_where_it_ends_before(clips):
    write_captioned(clips / "clips" / "b.mp4", moving_square(50, 64, 64))
    frames = np.zeros((30, 64, 64, 3), np.uint8)
    frames[17:] = 255  # the second window of 17 frames
    write_video(clips / "masks" / "b.mp4", frames)
    chunks = {"mask_directory": "masks", "frame_extraction": "chunk"}
    texts = said(clips, **chunks)
    assert texts[-1] == "1 masks are shorter than their clips; where they end, their last frame is held: b.mp4 (0.16 s)"
    plan = plan_dataset(config(clips, **chunks))
    first, second = (item for item in plan.items if item.source.stem == "b")
    assert picture_mask(first.mask, first, plan.settings_of(first)).sum() == 0
    assert picture_mask(second.mask, second, plan.settings_of(second)).float().mean() == 1
    made = [Masks(plan, CacheRecipe()).of(item).made_from for item in (first, second)]
    assert ["mask_times" in one for one in made] == [False, True], "caches that were read from the beginning are stale"


def test_a_mask_in_a_channel_of_transparency_and_one_that_is_a_picture_are_told(clips):
    (clips / "masks").mkdir(exist_ok=True)
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 4))
    ramp[:, :, 3] = 255
    ramp[:, :32, 3] = 0
    Image.fromarray(ramp).save(clips / "masks" / "a.png")
    assert said(clips, mask_directory="masks")[0] == (
        "1 masks have transparency, which is black; how bright their picture is counts, so save the mask itself: a.png"
    )
    ramp[:, :, 3] = 255
    Image.fromarray(ramp).save(clips / "masks" / "a.png")
    plan = plan_dataset(config(clips, mask_directory="masks"))
    kind = Masks(plan, CacheRecipe())
    told = [kind.make(job, kind.read(job, None), Bench(None, "cpu", Events())).remarks for job in kind.jobs()]
    (note,) = (
        text for text in kind.notes({topic: {clips / "a.png": ""} for one in told for topic in one}) if "grey" in text
    )
    assert note == (
        "1 masks are grey or coloured in more than half, as a picture is: white is given, black is generated: a.png"
    )
    soft = np.zeros((64, 64), np.uint8)
    soft[:, 32:] = 255
    soft[:, 20:44] = np.linspace(0, 255, 24)
    Image.fromarray(soft).save(clips / "masks" / "a.png")
    plan = plan_dataset(config(clips, mask_directory="masks"))
    kind = Masks(plan, CacheRecipe())
    assert not any(kind.read(job, None)[1] for job in kind.jobs()), "a soft edge"


def test_a_mask_with_other_bytes_is_made_again_at_once(clips):
    write_image(clips / "masks" / "a.png", 64, 64, caption=None)
    plan = plan_dataset(config(clips, mask_directory="masks"))
    kind = Masks(plan, CacheRecipe())
    job = next(job for job in kind.jobs() if job.source.stem == "a")
    kind.make(job, kind.read(job, None), Bench(None, "cpu", Events()))
    assert kind.state(job).fresh
    data = bytearray(job.path.read_bytes())
    data[-1] ^= 1
    job.path.write_bytes(bytes(data))
    assert kind.state(job).stale == "damaged"


@pytest.mark.parametrize("frames", [9, 60])
def test_a_mask_that_must_be_of_another_clip_is_refused(clips, frames):
    write_video(clips / "masks" / "a.mp4", moving_square(frames, 64, 64))
    name, reason = refused(clips, mask_directory="masks")
    assert name == "a.mp4"
    assert f"lasts {frames / 25:.2f} s, and the clip 1.00 s" in reason


def test_a_sound_mask_that_ends_before_its_clip_is_counted(clips):
    for name in "ab":
        write_sound(clips / "clips" / f"{name}.wav", tone(1.2))
    write_sound(clips / "masks" / "a.wav", tone(0.3))
    text = said(clips, audio_mask_directory="masks", audio_source="audio_files")[0]
    assert text.endswith("what is behind their end is generated: a.wav (0.38 s)")


# --- shape -----------------------------------------------------------------------------------------------------------


def test_references_and_masks_of_another_shape_are_counted(clips):
    write_image(clips / "refs" / "a.png", 128, 64, caption=None)
    write_image(clips / "refs" / "b.png", 200, 200, caption=None)
    write_image(clips / "masks" / "a.png", 128, 128, caption=None)
    assert said(clips, reference_directory="refs", mask_directory="masks") == [
        "1 references have another shape than their clips, and their middle is used: a.png (128x64, 50% is cut away)",
        "1 masks have another size than their clips and are resized: a.png is 128x128, not 64x64",
    ]


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_a_reference_or_mask_that_cannot_be_read_is_refused_before_anything_is_encoded(clips):
    for what in ("reference", "mask"):
        write_image(clips / what / "a.png", 64, 64, caption=None)
        write_image(clips / what / "b.png", 64, 64, caption=None)
        (clips / what / "a.png").write_bytes(b"no picture")
        name, reason = refused(clips, **{f"{what}_directory": what})
        assert (name, reason.startswith(f"no {what}: ")) == ("a.mp4", True)


def test_damage_inside_a_reference_is_red_in_the_check(clips):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    (clips / "refs").mkdir()
    for name in "ab":
        Image.fromarray(noise).save(clips / "refs" / f"{name}.jpg", quality=90)
    data = (clips / "refs" / "b.jpg").read_bytes()
    (clips / "refs" / "b.jpg").write_bytes(data[:2000] + bytes(300) + data[2300:])
    report = check_dataset(config(clips, reference_directory="refs"))
    (red,) = (finding for finding in report.findings if finding.level == "red")
    assert (red.path.name, red.rule) == ("b.mp4", "reference")
    assert "b.jpg is damaged" in red.reason


def test_reference_sounds_are_listened_to(clips):
    write_sound(clips / "voices" / "a.wav", tone(1, level=0))
    bad = tone(1)
    bad[0, 100] = np.nan
    write_sound(clips / "voices" / "b.wav", bad)
    for name in ("a.wav", "b.wav"):
        write_sound(clips / "clips" / name, tone(1))
    report = check_dataset(config(clips, reference_audio_directory="voices", audio_source="audio_files"))
    found = {
        finding.path.name: (finding.level, finding.reason) for finding in report.findings if finding.rule == "reference"
    }
    assert found["a.mp4"] == ("red", "its reference sound a.wav is silence")
    assert found["b.mp4"][0] == "red"
    assert "not numbers" in found["b.mp4"][1]


def test_reference_sounds_and_masks_of_recordings_are_compared_with_them(clips):
    for name in ("a.wav", "b.wav"):
        write_sound(clips / "voices" / name, tone(1))
    (clips / "refs").mkdir()
    (clips / "refs" / "a.wav").write_bytes((clips / "voices" / "a.wav").read_bytes())
    write_sound(clips / "refs" / "b.wav", tone(1, level=0.25))
    write_sound(clips / "masks" / "a.wav", tone(0.5))
    (clips / "masks" / "b.json").write_text("[[0, 0.5]]")
    entry = {"audio_directory": "voices", "reference_audio_directory": "refs", "audio_mask_directory": "masks"}
    for name in ("a", "b"):
        (clips / "voices" / f"{name}.txt").write_text(f"voice {name}")
    texts = plan_dataset(DatasetConfig.from_table({"datasets": [entry]}, clips)).warnings
    assert [text.partition(": ")[2] for text in texts if "copy" not in text] == [
        "1 reference sounds are copies of what is trained, so that there is nothing to learn but to repeat it: a.wav",
        "1 masks for sound are shorter than their clips, and what is behind their end is generated: a.wav (0.50 s)",
    ]


def test_masks_for_sound_that_reach_behind_the_end_are_told(clips):
    (clips / "voices").mkdir()
    (clips / "sounds").mkdir()
    for name in ("a", "b"):
        write_sound(clips / "voices" / f"{name}.wav", tone(1))
        (clips / "voices" / f"{name}.txt").write_text(f"voice {name}")
    write_sound(clips / "sounds" / "a.wav", tone(3))
    (clips / "sounds" / "b.json").write_text("[[0, 0.5], [3, 4]]")
    entry = {"audio_directory": "voices", "audio_mask_directory": "sounds"}
    plan = plan_dataset(DatasetConfig.from_table({"datasets": [entry]}, clips))
    assert [text.partition(": ")[2] for text in plan.pairs] == [
        "1 masks for sound are longer than their clips; what is behind the end is not used: a.wav (2.00 s)"
    ]
    kind = SoundMasks(plan, CacheRecipe())
    assert {job.source.name: kind.read(job, None)[1] for job in kind.jobs()} == {"a.wav": False, "b.json": True}
    report = check_dataset(DatasetConfig.from_table({"datasets": [entry]}, clips))
    assert [one.path.name for one in report.findings if "spans behind the end" in one.reason] == ["b.wav"]


def test_what_goes_with_a_sound_or_a_picture_that_is_not_there_is_said(clips):
    write_sound(clips / "voices" / "a.wav", tone(1))
    (clips / "sounds").mkdir()
    (clips / "sounds" / "a.json").write_text("[[0, 0.5]]")
    assert said(clips, audio_mask_directory="sounds", reference_audio_directory="voices") == [
        "1 masks for sound belong to media without sound, and have no use: a.json",
        "1 reference sounds belong to media without sound, and have no use: a.wav",
    ]
    named = json.dumps({"video_path": "clip.mp4", "audio_path": "voices/a.wav", "caption": "x"})
    write_video(clips / "clip.mp4", moving_square(9, 64, 64))
    (clips / "list.jsonl").write_text(named)
    entry = {"video_jsonl_file": "list.jsonl", "cache_directory": "cache", "audio_source": "none"}
    plan = plan_dataset(DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, clips))
    assert [text.partition(": ")[2] for text in plan.pairs] == [
        '1 sounds are named by a list whose dataset has audio_source = "none", and are not used: a.wav'
    ]
    write_image(clips / "a.png", 64, 64, caption=None)
    rows = [
        {"media_path": "a.png", "caption": "x", "audio_mask": "sounds/a.json"},
        {"media_path": "v.wav", "caption": "x", "video_mask": "a.png", "reference_video": "a.png"},
    ]
    write_sound(clips / "v.wav", tone(1))
    (clips / "list.json").write_text(json.dumps(rows))
    entry = {"dataset_file": "list.json", "cache_directory": "cache"}
    plan = plan_dataset(DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, clips))
    assert [text.partition(": ")[2] for text in plan.pairs] == [
        "1 masks for sound belong to media without sound, and have no use: a.json",
        "1 masks belong to recordings, which have no picture, and have no use: a.png",
        "1 references belong to recordings, which have no picture, and have no use: a.png",
    ]


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("mask_directory", "masks"),
        ("audio_mask_directory", "masks for sound"),
        ("reference_audio_directory", "reference sounds"),
        ("audio_files_directory", "sounds"),
    ],
)
def test_what_lies_beside_no_medium_is_named_whichever_dataset_asks(clips, key, what):
    for name in "abz":
        write_captioned(clips / "more" / f"{name}.mp4", moving_square(25, 64, 64), caption=name)
        write_image(clips / "beside" / f"{name}.png", 64, 64, caption=None)
        write_sound(clips / "beside" / f"{name}.wav", tone(1))
    more = {"audio_source": "audio_files"} if key != "mask_directory" else {}
    if key != "audio_files_directory":
        more |= {"audio_files_directory": "beside"} if more else {}
    first = config(clips, **{key: "beside"}, **more)
    ending = ".png" if key == "mask_directory" else ".wav"
    (text,) = [text for text in plan_dataset(first).warnings if "no medium" in text and f" {what} in" in text]
    assert text == f"datasets[0]: 1 {what} in {clips / 'beside'} have no medium of their name: z{ending}"
    named = [found for found in check_dataset(first).findings if found.reason.endswith("without a target")]
    assert ("z" + ending) in {found.path.name for found in named}
    entry = {key: "beside", "target_frames": [17], **more}
    entries = [entry | {"video_directory": folder, "cache_directory": f"{folder}_c"} for folder in ("clips", "more")]
    both = DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": entries}, clips)
    assert not [text for text in plan_dataset(both).warnings if "no medium" in text]
    assert not [found for found in check_dataset(both).findings if found.reason.endswith("without a target")]


def test_targets_and_references_alone_are_named(clips):
    write_image(clips / "refs" / "a.png", 64, 64, caption=None)
    write_image(clips / "refs" / "z.png", 64, 64, caption=None)
    entry = config(clips, reference_directory="refs")
    plan = plan_dataset(entry)
    assert [(skip.path.name, skip.reason.split(":")[0]) for skip in plan.skipped] == [("b.mp4", "no reference")]
    assert any("1 references in" in text and text.endswith("no medium of their name: z.png") for text in plan.warnings)
    reasons = {
        finding.path.name: finding.level for finding in check_dataset(entry).findings if finding.rule == "reference"
    }
    assert reasons == {"b.mp4": "red", "z.png": "amber"}


def test_sound_of_a_recording_that_is_not_numbers_is_red_wherever_it_is(tmp_path):
    wave = np.zeros((1, 62 * 8000), np.float32)
    wave[:] = tone(62, rate=8000)
    wave[0, -100] = np.inf
    write_sound(tmp_path / "clips" / "a.wav", wave, 8000, caption="x")
    table = {"datasets": [{"audio_directory": "clips", "cache_directory": "cache"}]}
    red = [
        finding
        for finding in check_dataset(DatasetConfig.from_table(table, tmp_path)).findings
        if finding.level == "red"
    ]
    assert len(red) == 1
    assert "not numbers" in red[0].reason


def test_a_mask_of_the_folder_that_a_list_overrides_is_named(clips):
    for name in ("a", "b"):
        write_image(clips / "masks" / f"{name}.png", 64, 64, caption=None)
    row = {"video_path": "clips/a.mp4", "caption": "x", "mask_path": "masks/b.png"}
    (clips / "list.jsonl").write_text(json.dumps(row))
    entry = {"video_jsonl_file": "list.jsonl", "cache_directory": "cache", "mask_directory": "masks"}
    table = {"general": {"resolution": 64, "target_frames": [17]}, "datasets": [entry]}
    told = plan_dataset(DatasetConfig.from_table(table, clips)).warnings
    assert any("are not used, since the lists name others for their media: a.png" in text for text in told)


def test_a_folder_of_which_a_list_uses_nothing_is_told(clips):
    for folder in ("masks", "others"):
        write_image(clips / folder / "a.png", 64, 64, caption=None)
    row = {"video_path": "clips/a.mp4", "caption": "x", "mask_path": "masks/a.png"}
    (clips / "list.jsonl").write_text(json.dumps(row))
    entry = {"video_jsonl_file": "list.jsonl", "cache_directory": "cache", "mask_directory": "others"}
    table = {"general": {"resolution": 64, "target_frames": [17]}, "datasets": [entry]}
    told = plan_dataset(DatasetConfig.from_table(table, clips)).warnings
    folder = clips / "others"
    assert told == (
        f"datasets[0]: mask_directory: no file of {folder} is used; list.jsonl names others, or has no use for them.",
    )


def test_a_setting_of_no_use_to_what_was_found_is_told(clips):
    """Silent clips, and a list whose rows have no references: the settings alone do not tell."""
    (clips / "list.jsonl").write_text(json.dumps({"video_path": "clips/a.mp4", "caption": "x"}))
    lists = {"video_jsonl_file": "list.jsonl", "cache_directory": "cache"}

    def told(*entries, **general):
        general = {"resolution": 64, "target_frames": [17], **general}
        table = {"general": general, "datasets": list(entries)}
        return [text for text in plan_dataset(DatasetConfig.from_table(table, clips)).warnings if "effect" in text]

    assert told(lists | {"reference_frames": 9, "audio_normalize": True}) == [
        "datasets[0]: audio_normalize has no effect with what was found: it counts only with media that have sound.",
        "datasets[0]: reference_frames has no effect with what was found: it counts only with reference_directory, or "
        "references of a list.",
    ]
    folder = {"video_directory": "clips", "cache_directory": "other"}
    heard = {"audio_directory": "voices", "cache_directory": "third"}
    write_sound(clips / "voices" / "a.wav", tone(1), caption="a voice")
    assert len(told(lists, folder, audio_normalize=True)) == 2
    assert told(lists, folder, heard, audio_normalize=True) == [], "it is of use to one of them"
    entry = config(clips, audio_normalize=True)
    assert [found.reason for found in check_dataset(entry).findings if "effect" in found.reason] == [
        "audio_normalize has no effect with what was found: it counts only with media that have sound"
    ]
