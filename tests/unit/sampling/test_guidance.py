"""How strongly picture and sound are guided, and which blocks are skipped."""

import pytest

from ltx2_train.config import DrawSettings, SampleSettings, make_run
from ltx2_train.errors import ConfigError
from ltx2_train.sampling.denoise import Guidance
from ltx2_train.sampling.guidance import guidance_of, require_stg_block, stg_blocks
from ltx2_train.sampling.prompts import parse_prompt
from ltx2_train.settings import parse


def both(**settings):
    chosen = DrawSettings(guidance=3.0, stg=1.0, rescale=0.7, **settings)
    prompt = parse_prompt("a fox", chosen, plain=True)
    return guidance_of(prompt, chosen), guidance_of(prompt, chosen, of_sound=True)


def test_what_is_not_set_for_the_sound_is_as_for_the_picture():
    assert both() == (Guidance(3.0, 1.0, 1.0, 0.7),) * 2
    assert both(modality_guidance=2.0)[1] == Guidance(3.0, 1.0, 2.0, 0.7)


def test_the_sound_has_numbers_of_its_own_and_zero_is_one_of_them():
    seen, heard = both(audio_guidance=7.0, audio_stg=0.0, modality_guidance=3.0, audio_modality_guidance=1.0)
    assert (seen, heard) == (Guidance(3.0, 1.0, 3.0, 0.7), Guidance(7.0, 0.0, 1.0, 0.7))


def test_the_guidance_of_a_prompt_is_that_of_its_picture_where_the_sound_has_its_own():
    settings = DrawSettings(audio_guidance=7.0)
    prompt = parse_prompt("a fox --g 1", settings)
    assert (prompt.guidance, prompt.audio_guidance, prompt.needs_negative) == (1.0, 7.0, True)


def guidance_on(version, line="a fox", **settings):
    chosen = DrawSettings.of(SampleSettings(**settings), version)
    prompt = parse_prompt(line, chosen)
    return guidance_of(prompt, chosen), guidance_of(prompt, chosen, of_sound=True)


def test_what_nobody_sets_is_that_of_the_version():
    assert guidance_on("2.3") == guidance_on("2.0") == (Guidance(4.0, 1.0, 1.0, 0.0),) * 2
    assert guidance_on("2.5") == (Guidance(3.0, 1.0, 3.0, 0.7), Guidance(7.0, 1.0, 3.0, 0.7))
    assert guidance_on("ltxv-2b") == guidance_on("ltxv-13b") == (Guidance(3.0, 1.0, 1.0, 0.7),) * 2
    assert DrawSettings.of(SampleSettings(), "ltxv-2b").image_crf == 29
    old, new = (DrawSettings.of(SampleSettings(), version) for version in ("2.3", "2.5"))
    assert (old.fps, old.image_crf, old.negative_prompt) == (25.0, 33, "")
    assert (new.fps, new.image_crf) == (24.0, 18)
    assert new.negative_prompt.startswith("has_subtitles, has_blurbox, transition from black")
    assert DrawSettings.of(new, "2.3") == new  # nothing is left to the model


def test_what_is_set_stands_on_every_version_even_where_it_is_what_another_has():
    plain = {"fps": 25.0, "guidance": 4.0, "modality_guidance": 1.0, "rescale": 0.0, "image_crf": 33}
    run = make_run({"sample": {**plain, "negative_prompt": ""}})
    drawn = DrawSettings.of(run.sample, "2.5")
    assert {name: getattr(drawn, name) for name in plain} == plain
    assert drawn.negative_prompt == ""
    again = make_run({"sample": {key: value for key, value in drawn.model_dump().items() if value is not None}})
    assert DrawSettings.of(again.sample, "2.5") == drawn


def test_a_guidance_that_is_set_is_that_of_the_sound_too_unless_that_has_its_own():
    assert guidance_on("2.5", guidance=2.0)[1].cfg == 2.0
    assert guidance_on("2.5", "a fox --g 1")[1].cfg == 1.0
    assert guidance_on("2.5", "a fox --g 1", audio_guidance=5.0)[1].cfg == 5.0


def test_several_blocks_are_skipped_or_the_usual_one():
    assert stg_blocks(SampleSettings(), "2.3", 48) == [28]
    assert stg_blocks(SampleSettings(stg_block=5), "2.3", 48) == [5]
    assert stg_blocks(SampleSettings(stg_blocks=[28, 29]), "2.3", 48) == [28, 29]
    with pytest.raises(ConfigError, match=r"sample.stg_blocks is \[2, 9\], but the blocks of this model are 0 to 3"):
        require_stg_block(SampleSettings(stg_blocks=[2, 9]), 4)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"stg_block": 1, "stg_blocks": [2]}, "stg_block and stg_blocks are both set; keep one of them"),
        ({"stg_blocks": []}, "name one block or more"),
        ({"stg_blocks": [-1]}, "name one block or more, counted from 0"),
    ],
)
def test_blocks_are_named_once(given, says):
    with pytest.raises(ConfigError, match=says):
        parse(SampleSettings, given, "sample")


def test_the_block_that_is_skipped_is_the_models_own():
    settings = SampleSettings()
    usual = {"2.0": (29, 48), "2.3": (28, 48), "2.5": (28, 48), "ltxv-2b": (19, 28), "ltxv-13b": (28, 48)}
    for version, (block, blocks) in usual.items():
        assert stg_blocks(settings, version, blocks) == [block]
