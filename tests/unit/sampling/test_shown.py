"""What a prompt is given: read from lines and tables, and refused by name where it cannot be given."""

import json

import numpy as np
import pytest
from media import moving_square, tone, write_image, write_sound, write_video

from ltx2_train.conditions.settings import AudioReference, FirstFrame, Mask, Prefix, Reference, SpatialCrop, Suffix
from ltx2_train.conditions.trained import Trained
from ltx2_train.config import DrawSettings
from ltx2_train.errors import ConfigError
from ltx2_train.sampling.prompts import parse_prompt, prompt_texts, read_prompts, require_drawable

SETTINGS = DrawSettings(width=64, height=64, frames=17)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with a clip of 25 frames, a picture, sounds and masks."""
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "clip.mp4", moving_square(25, 64, 64))
    write_video(folder / "short.mp4", moving_square(9, 64, 64))
    write_image(folder / "a face.png", 64, 64)
    write_sound(folder / "voice.wav", tone(1.0))
    half = np.zeros((1, 64, 64, 3), np.uint8)
    half[:, :, :32] = 255
    for name, picture in (("half", half), ("white", half | 255), ("black", half & 0)):
        from PIL import Image

        Image.fromarray(picture[0]).save(folder / f"{name}.png")
    (folder / "part.json").write_text("[[0, 0.2]]")
    return folder


def given(media, *tables, settings=SETTINGS, line="a fox"):
    return parse_prompt(line, settings, media, tables=list(tables)).given


@pytest.mark.parametrize(
    ("line", "text", "option"),
    [
        ("--v clip.mp4 A fox walks --n blurry", "A fox walks", "--v"),
        ("A fox walks --v clip.mp4", "A fox walks", "--v"),
        ("--ra voice.wav A voice --g 2", "A voice", "--ra"),
        ("--i a face.png A face speaks", "A face speaks", "--i"),
        ('--i "a face.png" A face speaks', "A face speaks", "--i"),
    ],
)
def test_media_may_stand_before_the_prompt_as_in_the_guide(media, line, text, option):
    prompt = parse_prompt(line, SETTINGS, media)
    assert prompt.text == text
    (one,) = prompt.given
    assert one.name.startswith(option)
    kinds = {"--v": Reference, "--ra": AudioReference, "--i": FirstFrame}
    assert isinstance(one.condition, kinds[option])


@pytest.mark.parametrize(
    ("table", "condition"),
    [
        ({"type": "first_frame", "image_or_video": "clip.mp4"}, FirstFrame()),
        ({"type": "prefix", "video": "clip.mp4", "num_frames": 9}, Prefix(temporal_boundary=2)),
        ({"type": "suffix", "video": "clip.mp4", "num_frames": 16}, Suffix(temporal_boundary=2)),
        ({"type": "prefix", "video": "short.mp4"}, Prefix(temporal_boundary=2)),
        ({"type": "suffix", "audio": "voice.wav", "duration": 0.25}, Suffix(seconds=0.25)),
        (
            {"type": "spatial_crop", "video": "clip.mp4", "spatial_region": [0, 0, 64, 32]},
            SpatialCrop(spatial_region=(0, 0, 64, 32)),
        ),
        ({"type": "mask", "video": "clip.mp4", "mask": "half.png"}, Mask()),
        ({"type": "mask", "audio": "voice.wav", "mask": "part.json"}, Mask()),
        ({"type": "reference", "video": "a face.png", "downscale_factor": 2}, Reference()),
        ({"type": "reference", "audio": "voice.wav", "hide_text": True}, AudioReference()),
        ({"type": "video_to_audio", "video": "clip.mp4"}, None),
        ({"type": "audio_to_video", "audio": "voice.wav"}, None),
    ],
)
def test_tables_are_the_conditions_of_training(media, table, condition):
    (one,) = given(media, table)
    assert one.condition == condition
    require_drawable([parse_prompt("x", SETTINGS, media, tables=[table])], "av", Trained())


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"type": "keyframe", "video": "clip.mp4"}, "type"),
        ({"type": "prefix"}, "needs video or audio, one of them, and not none"),
        ({"type": "prefix", "video": "clip.mp4", "audio": "voice.wav"}, "one of them, and not video, audio"),
        ({"type": "first_frame", "audio": "voice.wav"}, "needs image_or_video"),
        ({"type": "first_frame", "image_or_video": "no.png"}, "no.png does not exist"),
        ({"type": "reference", "video": "voice.wav"}, "voice.wav"),
        ({"type": "reference", "audio": "a face.png"}, "a face.png"),
        ({"type": "prefix", "video": "clip.mp4", "num_frames": 10}, r"num_frames is 10.*8n\+1 frames. Use 9"),
        ({"type": "suffix", "video": "clip.mp4", "num_frames": 9}, "num_frames is 9.*8n frames. Use 8"),
        ({"type": "prefix", "video": "short.mp4", "num_frames": 17}, "has 9 frames.*17 are needed"),
        ({"type": "prefix", "video": "clip.mp4"}, "prefix of up to 4 leaves nothing to make"),
        ({"type": "prefix", "audio": "voice.wav"}, "leaves nothing to make"),
        ({"type": "suffix", "audio": "voice.wav", "duration": 3.0}, "lasts 1.00 s"),
        ({"type": "spatial_crop", "video": "clip.mp4"}, "spatial_region is missing"),
        ({"type": "spatial_crop", "video": "clip.mp4", "spatial_region": [0, 0, 64, 96]}, "leads out of it"),
        ({"type": "spatial_crop", "audio": "voice.wav", "spatial_region": [0, 0, 64, 32]}, "needs video"),
        ({"type": "mask", "video": "clip.mp4"}, "mask is missing"),
        ({"type": "video_to_audio", "video": "short.mp4"}, "has 9 frames at 25 a second, and the sample 17"),
        ({"type": "reference", "audio": "voice.wav", "downscale_factor": 2}, "downscale_factor has no meaning"),
        ({"type": "reference", "video": "clip.mp4", "probability": 0.5}, "probability"),
    ],
)
def test_what_cannot_be_given_is_refused_by_name(media, table, says):
    with pytest.raises(ConfigError, match=says):
        given(media, table)


@pytest.mark.parametrize(
    ("tables", "mode", "says"),
    [
        ([{"type": "reference", "audio": "voice.wav"}], "video", "mode is video, which has no audio"),
        ([{"type": "reference", "video": "clip.mp4"}], "audio", "mode is audio, which has no video"),
        ([{"type": "video_to_audio", "video": "clip.mp4"}], "video", "gives all there is in mode video"),
        (
            [{"type": "video_to_audio", "video": "clip.mp4"}, {"type": "audio_to_video", "audio": "voice.wav"}],
            "av",
            "both given whole",
        ),
        ([{"type": "first_frame", "image_or_video": "clip.mp4"}] * 2, "video", "another first_frame of the video"),
        ([{"type": "prefix", "video": "clip.mp4", "num_frames": 9}] * 2, "video", "another prefix of the video"),
        ([{"type": "video_to_audio", "video": "clip.mp4"}] * 2, "av", "another whole of the video"),
        ([{"type": "reference", "video": "clip.mp4", "downscale_factor": 4}], "video", "not made of whole latents"),
        ([{"type": "mask", "video": "clip.mp4", "mask": "white.png"}], "video", "white.png is white all over"),
        ([{"type": "mask", "video": "clip.mp4", "mask": "black.png"}], "video", "black.png is darker than half"),
        (
            [
                {"type": "prefix", "video": "clip.mp4", "num_frames": 9},
                {"type": "suffix", "video": "clip.mp4", "num_frames": 8},
            ],
            "video",
            "given whole by its conditions together",
        ),
    ],
)
def test_what_the_model_cannot_draw_is_refused_with_its_prompt(media, tables, mode, says):
    prompt = parse_prompt("a fox runs", SETTINGS, media, tables=tables)
    with pytest.raises(ConfigError, match=f"The sample 'a fox runs': .*{says}"):
        require_drawable([prompt], mode, Trained())


def test_a_picture_of_one_frame_begins_with_none(media):
    prompt = parse_prompt("a fox --f 1 --i a face.png", SETTINGS, media)
    with pytest.raises(ConfigError, match="a sample of one frame is given whole by it"):
        require_drawable([prompt], "video", Trained())


def test_a_sample_has_a_size_that_its_smaller_reference_can_have(media):
    prompt = parse_prompt("a fox --v clip.mp4 --w 96", SETTINGS, media)
    with pytest.raises(ConfigError, match="a reference 2 times smaller than 96x64 is not made of whole latents"):
        require_drawable([prompt], "video", Trained(downscale=2))
    require_drawable([prompt], "video", Trained())


def test_a_second_first_frame_is_refused(media):
    table = {"type": "first_frame", "image_or_video": "clip.mp4"}
    prompt = parse_prompt("a fox --i a face.png", SETTINGS, media, tables=[table])
    with pytest.raises(ConfigError, match="there is another first_frame of the video already. Keep one"):
        require_drawable([prompt], "video", Trained())


def test_a_library_of_prompts_lists_conditions(media):
    (media / "p.toml").write_text(
        '[[prompt.subset]]\nprompt = "a fox"\nreference = "clip.mp4"\n[[prompt.subset.conditions]]\n'
        'type = "prefix"\nvideo = "clip.mp4"\nnum_frames = 9\n'
    )
    (prompt,) = read_prompts(DrawSettings(prompts=media / "p.toml", frames=17, width=64, height=64))
    assert [one.condition for one in prompt.given] == [Reference(), Prefix(temporal_boundary=2)]
    (media / "p.json").write_text(json.dumps([{"prompt": "a fox", "conditions": "clip.mp4"}]))
    with pytest.raises(ConfigError, match=r"p.json, prompt 1: conditions: expected a list of tables"):
        read_prompts(DrawSettings(prompts=media / "p.json"))


def test_settings_take_tables_too(media):
    table = {"prompt": "a fox", "conditions": [{"type": "reference", "video": str(media / "clip.mp4")}]}
    (prompt,) = read_prompts(DrawSettings(prompts=[table]))
    assert isinstance(prompt.given[0].condition, Reference)


def test_identity_guidance_is_for_samples_with_a_reference_sound(media):
    settings = DrawSettings(identity_guidance=3.0, guidance=1.0)
    plain, voiced = (parse_prompt(line, settings, media) for line in ("a fox", "a fox --ra voice.wav"))
    assert (plain.audio_guidance, plain.needs_negative) == (1.0, False)
    assert (voiced.audio_guidance, voiced.needs_negative) == (3.0, True)
    assert prompt_texts([voiced]) == ["a fox", ""]


def test_a_reference_is_shown_as_the_lora_was_trained_unless_the_prompt_says_otherwise(media):
    trained = Trained(2, 4, 9, 3.0, AudioReference(negative_positions=True))
    plain, other = given(
        media,
        {"type": "reference", "video": "clip.mp4"},
        {"type": "reference", "video": "clip.mp4", "downscale_factor": 1, "temporal_scale_factor": 1},
    )
    assert plain.form(trained) == trained
    assert (other.form(trained).downscale, other.form(trained).temporal_scale) == (1, 1)
    (voice,) = given(media, {"type": "reference", "audio": "voice.wav", "hide_text": True})
    assert voice.form(trained).sound == AudioReference(negative_positions=True, hide_text=True)


@pytest.mark.parametrize(
    ("frames", "still", "count"), [(None, True, 1), (None, False, 25), (0, True, 25), (9, False, 9), (1, False, 1)]
)
def test_a_reference_has_as_many_frames_as_in_training(frames, still, count):
    assert Trained(temporal_scale=2, frames=frames).count(49, still) == count
