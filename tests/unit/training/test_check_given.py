"""What conditions give is found before anything is loaded.

The file is long as its code looks at settings, samples and prompts.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lora_files import BLOCK, pair, write_lora
from unit.training.step_parts import make_sample

from ltx2_train.caching.cache_file import MASK_KEY, SILENCE
from ltx2_train.cli import main
from ltx2_train.conditions.trained import Trained
from ltx2_train.config import load_run, make_run
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError
from ltx2_train.events import Events
from ltx2_train.files import write_tensors
from ltx2_train.shapes import LatentShape
from ltx2_train.training.check_given import (
    as_cached,
    check_samples,
    check_streams,
    check_supplied,
    tell_start_references,
    tell_ungiven,
)
from ltx2_train.training.watch import LossWatch


class Told(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append((level, text))


def run(mode="av", **settings):
    return make_run({"model": {"mode": mode}, **settings})


def given(*conditions):
    return {"conditions": list(conditions)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "video", "audio": given({"type": "mask"})}, "audio.conditions is set, but model.mode is video"),
        ({"mode": "audio", "video": {"generated": False}}, "video.generated is set, but model.mode is audio"),
        ({"mode": "video", "video": {"generated": False}}, "video.generated is false, but model.mode is video"),
        ({"video": {"generated": False}, "audio": {"generated": False}}, "both false"),
        (
            {"audio": given({"type": "reference", "hide_text": True}, {"type": "reference"})},
            "hide_text is true for one reference sound and false for another",
        ),
        ({"video": given({"type": "mask"}, {"type": "mask"})}, "Keep one, with the probability that both together"),
        (
            {"video": {"generated": False, **given({"type": "reference"}, {"type": "first_frame"})}},
            "the whole video is given, and video.conditions of type first_frame would change nothing",
        ),
    ],
)
def test_streams_that_leave_nothing_to_learn_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        check_streams(run(**settings))


def test_a_stream_may_be_given_and_conditions_may_stand_side_by_side():
    check_streams(run(video={"generated": False}))
    check_streams(run(video=given({"type": "first_frame"}, {"type": "suffix", "temporal_boundary": 1})))


@pytest.mark.parametrize(
    ("entry", "serves"),
    [
        ({"video_directory": "a"}, False),
        ({"video_directory": "a", "mask_directory": "m"}, False),
        ({"video_directory": "a", "reference_directory": "r"}, True),
        ({"video_jsonl_file": "a.jsonl", "cache_directory": "c"}, True),  # its lines may name references
        ({"cache_only": True, "cache_directory": "c"}, True),
    ],
)
def test_a_condition_whose_data_no_dataset_can_have_is_refused_before_media_are_looked_at(tmp_path, entry, serves):
    dataset = DatasetConfig.from_table({"datasets": [{"video_directory": "plain"}, entry]}, tmp_path)
    config = run("video", video=given({"type": "first_frame"}, {"type": "reference"}))
    if serves:
        check_supplied(config, dataset)
    else:
        with pytest.raises(ConfigError, match=r"^video\.conditions asks for a reference.*Set reference_directory"):
            check_supplied(config, dataset)


def test_sound_asks_for_sounds(tmp_path):
    dataset = DatasetConfig.from_table({"datasets": [{"video_directory": "a", "reference_directory": "r"}]}, tmp_path)
    with pytest.raises(ConfigError, match="reference sound, .*reference_audio_directory"):
        check_supplied(run(audio=given({"type": "reference"})), dataset)
    with pytest.raises(ConfigError, match="a mask, .*audio_mask_directory"):
        check_supplied(run(audio=given({"type": "mask"})), dataset)


def test_a_prefix_longer_than_a_clip_names_the_clip_and_how_many_more():
    samples = [make_sample("fox"), make_sample("hen")]
    with pytest.raises(ConfigError, match=r"fox: it has 2 latent frames, and a prefix of up to 2.* one more sample"):
        check_samples(run("video", video=given({"type": "prefix", "temporal_boundary": 2})), samples, Events())


@pytest.mark.parametrize(
    ("region", "said"),
    [
        (
            [0, 0, 64, 96],
            r"fox: it is 64x64 as cached, and the crop \[0, 0, 64, 96\].* leads out of it.* one more sample",
        ),
        ([0, 0, 20, 64], "is made of latents of 32 pixels, and the crop .* holds none"),
        ([0, 0, 64, 64], "is given whole by its conditions together, so nothing is left to make"),
    ],
)
def test_a_crop_must_lie_in_the_picture_and_leave_some_of_it(region, said):
    samples = [make_sample("fox"), make_sample("hen")]
    with pytest.raises(ConfigError, match=said):
        check_samples(run("video", video=given({"type": "spatial_crop", "spatial_region": region})), samples, Events())


def test_a_crop_within_latents_says_what_is_given():
    told = Told()
    config = run("video", video=given({"type": "spatial_crop", "spatial_region": [0, 0, 64, 33]}))
    check_samples(config, [make_sample("fox")], told)
    assert len(told.texts) == 1
    assert "[0, 0, 64, 33] has edges within latents of 32 pixels, and [0, 0, 64, 32] is given" in told.texts[0][1]


@pytest.mark.parametrize(
    ("of_datasets", "words"),
    [
        (
            (0.0, 0.0),
            "every dataset says its own first_frame_probability, which counts for its clips: 0, so that no first",
        ),
        ((0.0, 0.3), "every dataset says its own first_frame_probability, which counts for its clips: 0, 0.3."),
        ((None, 1.0), "a dataset says its own first_frame_probability, which counts for its clips: 1."),
        ((None, 0.2), None),
        ((None, None), None),
    ],
)
def test_the_probability_of_a_dataset_in_place_of_that_of_the_condition_is_told(of_datasets, words):
    told = Told()
    samples = [
        replace(make_sample(name), first_frame_probability=own)
        for name, own in zip(("fox", "hen"), of_datasets, strict=True)
    ]
    check_samples(run("video", video=given({"type": "first_frame", "probability": 0.2})), samples, told)
    found = [
        text for _, text in told.texts if text.startswith("The first_frame of video.conditions has probability 0.2")
    ]
    assert [words in text for text in found] == ([] if words is None else [True])


def test_clips_of_one_frame_have_no_beginning_either():
    still = replace(make_sample("fox"), shape=LatentShape(1, 2, 2))
    told = Told()
    check_samples(run("video", train={"first_frame_probability": 0.5}), [still], told)
    assert told.texts[0][1].startswith("first_frame_probability has no effect: all samples are single pictures")
    first = run("video", video=given({"type": "first_frame"}), train={"first_frame_probability": 0.0})
    told = Told()
    check_samples(first, [make_sample("fox")], told)
    assert told.texts[0][1] == (
        "train.first_frame_probability = 0 has no effect: the first_frame of video.conditions has a probability of its "
        "own, 1."
    )
    first = run("video", video=given({"type": "first_frame"}))
    told = Told()
    check_samples(first, [make_sample("fox")], told)
    assert told.texts == []
    with pytest.raises(ConfigError, match=r"asks for first_frame, and all samples are single pictures"):
        check_samples(first, [still], Events())
    check_samples(first, [still, make_sample("hen")], Events())
    recording = replace(make_sample("voice", steps=6), kind="audio")
    sounding = run("av", video=given({"type": "first_frame"}))
    check_samples(sounding, [recording], Events())
    with pytest.raises(ConfigError, match="all samples are single pictures"):
        check_samples(sounding, [recording, still], Events())


@pytest.mark.parametrize("stream", ["video", "audio"])
def test_a_stream_that_is_given_whole_needs_a_clip_with_both(stream, tmp_path):
    config = run("av", **{stream: {"generated": False}})
    message = rf"^{stream}\.generated is false, .* not one has both picture and sound"
    recordings = DatasetConfig.from_table({"datasets": [{"audio_directory": "voice"}]}, tmp_path)
    with pytest.raises(ConfigError, match=message):
        check_supplied(config, recordings)
    voice = replace(make_sample("voice", steps=6), kind="audio")
    alone = voice if stream == "video" else make_sample("mute")
    with pytest.raises(ConfigError, match=message):
        check_samples(config, [alone], Events())
    check_samples(config, [alone, make_sample("heard", steps=6)], Events())


def picture(name):
    return replace(make_sample(name), kind="image", shape=LatentShape(1, 2, 2))


def test_among_clips_a_picture_has_no_beginning_that_could_be_too_long():
    prefix = {"type": "prefix", "temporal_boundary": 1}
    check_samples(run("video", video=given(prefix)), [make_sample("fox"), picture("hen")], Events())
    with pytest.raises(ConfigError, match=r"^video\.conditions asks for prefix, and all samples are single pictures"):
        check_samples(run("video", video=given(prefix)), [picture("hen")], Events())
    crop = {"type": "spatial_crop", "spatial_region": [0, 0, 64, 96]}
    with pytest.raises(ConfigError, match="hen: it is 64x64 as cached, and the crop .* leads out of it"):
        check_samples(run("video", video=given(crop)), [picture("hen")], Events())


def test_a_clip_that_lacks_the_one_stream_that_is_learned_is_named():
    foley, clips = run(video={"generated": False}), [make_sample("heard", steps=9), make_sample("quiet")]
    with pytest.raises(ConfigError, match="quiet: it has no sound, and the picture is given whole"):
        check_samples(foley, clips, Events())
    check_samples(foley, clips[:1], Events())
    check_samples(run(video={"generated": False}, audio={"silence_regularizer": True}), clips, Events())
    with pytest.raises(ConfigError, match="voice: it has no picture, and the sound is given whole"):
        check_samples(run(audio={"generated": False}), [*clips, make_sample("voice", "audio", 9)], Events())


def test_clips_without_sound_train_beside_those_with_reference_sounds(tmp_path):
    voice = tmp_path / "voice.safetensors"
    write_tensors(voice, {"audio_latents_6x16x8_fp32": torch.ones(8, 6, 16), "audio_lengths_int32": torch.tensor([6])})
    told = Told()
    config = run("av", audio=given({"type": "reference"}))
    heard = replace(make_sample("fox", steps=6), reference_audio_paths=(voice,))
    check_samples(config, [heard, make_sample("hen")], told)
    assert told.texts == [], "a silent clip lacks nothing"


def test_sound_is_measured_by_itself():
    with pytest.raises(ConfigError, match="its sound has 6 latent steps"):
        check_samples(
            run("audio", audio=given({"type": "suffix", "seconds": 1})), [make_sample("a", "audio", 6)], Events()
        )


def test_what_no_sample_has_is_an_error_and_what_some_lack_a_warning(tmp_path):
    config = run("video", video=given({"type": "mask"}))
    with pytest.raises(ConfigError, match="not one sample has any.*mask_directory"):
        check_samples(config, [make_sample("fox")], Events())
    mask = tmp_path / "mask.safetensors"
    write_tensors(mask, {"mask": torch.tensor([[[0, 1], [1, 1]], [[1, 1], [1, 1]]], dtype=torch.uint8)})
    told = Told()
    check_samples(config, [replace(make_sample("fox"), mask_path=mask), make_sample("hen")], told)
    assert told.texts == [("warning", "1 of 2 samples have no mask and train without: hen.")]


def test_a_beginning_that_is_shorter_than_a_latent_is_told():
    told = Told()
    for part in ({"type": "prefix", "seconds": 0.01}, {"type": "suffix", "seconds": 0.2}):
        check_samples(run("video", video=given(part)), [make_sample("fox")], told)
    assert told.texts == [
        ("warning", "video.conditions: the prefix of 0.01 s is shorter than one latent, and one is given (0.04 s).")
    ]


def test_two_first_frames_are_told_with_the_chance_of_both():
    told = Told()
    first = {"type": "first_frame", "probability": 0.5}
    check_samples(run("video", video=given(first)), [make_sample("fox")], told)
    assert told.texts == []
    check_samples(run("video", video=given(first, first)), [make_sample("fox")], told)
    assert told.texts == [
        (
            "warning",
            "video.conditions: there are 2 of type first_frame, with probability 0.5 and 0.5; together they give it "
            "with 0.75. Keep one.",
        )
    ]


def test_where_there_are_no_samples_none_is_missed():
    check_samples(run("video", video=given({"type": "reference"})), [], Events())


def test_a_mask_that_gives_everything_is_named(tmp_path):
    mask = tmp_path / "mask.safetensors"
    write_tensors(mask, {"mask": torch.ones(2, 2, 2, dtype=torch.uint8)})
    with pytest.raises(ConfigError, match="fox: its mask is white all over"):
        check_samples(
            run("video", video=given({"type": "mask"})), [replace(make_sample("fox"), mask_path=mask)], Events()
        )


@pytest.mark.parametrize(("asked", "cached", "fits"), [(None, 2, True), (2, 2, True), (2, 1, False), (1, 2, False)])
def test_the_rate_of_references_is_that_of_their_caches(tmp_path, asked, cached, fits):
    path = tmp_path / "reference.safetensors"
    write_tensors(path, {"latents_1x2x2_float32": torch.zeros(128, 1, 2, 2)})
    sample = replace(make_sample("fox"), reference_paths=(path,), reference_temporal_scale=cached)
    config = run("video", video=given({"type": "reference", "temporal_scale_factor": asked}))
    if fits:
        check_samples(config, [sample], Events())
    else:
        with pytest.raises(ConfigError, match=f"fox: its reference has reference_temporal_scale = {cached}"):
            check_samples(config, [sample], Events())


class _Prompt:
    given = ()


def test_samples_that_lack_what_the_lora_is_trained_with_are_told():
    told = Told()
    config = run("av", video=given({"type": "reference"}), audio={"generated": False})
    tell_ungiven(config, [_Prompt()], told)
    assert [text[: text.index(", and")] for _, text in told.texts] == [
        "The LoRA is trained with a reference (--v PATH)",
        "The LoRA is trained with its audio (a condition audio_to_video)",
    ]
    tell_ungiven(run("av"), [_Prompt()], told)
    assert len(told.texts) == 2


@pytest.mark.parametrize(("side", "fits"), [(1, True), (2, True), (3, False)])
def test_a_reference_must_be_smaller_by_a_whole_number(tmp_path, side, fits):
    path = tmp_path / "reference.safetensors"
    write_tensors(path, {f"latents_1x{side}x{side}_float32": torch.zeros(128, 1, side, side)})
    sample = replace(make_sample("fox"), shape=LatentShape(2, 2, 2), reference_paths=(path,))
    config = run("video", video=given({"type": "reference"}))
    if fits:
        check_samples(config, [sample], Events())
    else:
        with pytest.raises(ConfigError, match="fox: its reference is 3x3 latents"):
            check_samples(config, [sample], Events())


@pytest.mark.parametrize("kind", ["reference", "mask"])
def test_what_is_never_given_is_refused(kind):
    with pytest.raises(ConfigError, match=f"the condition of type {kind} has probability 0"):
        check_streams(run("video", video=given({"type": kind, "probability": 0})))


def test_what_needs_no_data_and_is_never_given_is_told():
    told = Told()
    check_samples(run("video", video=given({"type": "first_frame", "probability": 0})), [make_sample("fox")], told)
    assert told.texts == [("info", "video.conditions: the first_frame has probability 0 and is never given.")]


def test_layers_of_an_in_context_lora_without_a_reference_are_told():
    told = Told()
    tell_ungiven(run("video", lora={"target": "v2v"}), [], told)
    assert [level for level, _ in told.texts] == ["warning"]
    assert "no condition gives a reference" in told.texts[0][1]
    tell_ungiven(run("video", lora={"target": "v2v"}, video=given({"type": "reference"})), [], told)
    assert len(told.texts) == 1


def test_a_sound_that_is_to_be_hidden_from_no_picture_is_told():
    told, hidden = Told(), given({"type": "reference", "hide_from_video": True})
    tell_ungiven(run("audio", audio=hidden), [], told)
    assert [text[: text.index(" on")] for _, text in told.texts] == ["audio.conditions: hide_from_video has no effect"]
    tell_ungiven(run("av", audio=hidden), [], told)
    tell_ungiven(run("audio", audio=given({"type": "reference", "hide_text": True})), [], told)
    assert len(told.texts) == 1


def test_a_black_mask_is_named_and_trains(tmp_path):
    mask, told = tmp_path / "mask.safetensors", Told()
    write_tensors(mask, {"mask": torch.zeros(2, 2, 2, dtype=torch.uint8)})
    samples = [replace(make_sample("fox"), mask_path=mask)]
    check_samples(run("video", video=given({"type": "mask"})), samples, told)
    ((level, text),) = told.texts
    assert (level, text[text.index(": ") :]) == ("warning", ": fox. White is given.")
    assert text.startswith("The masks of 1 samples are darker than one half all over")


def test_a_mask_that_gives_nothing_of_the_sound_is_named_and_trains(tmp_path):
    mask, told = tmp_path / "mask.safetensors", Told()
    write_tensors(mask, {"mask": torch.zeros(6, dtype=torch.uint8)})
    samples = [replace(make_sample("fox"), audio_mask_path=mask, audio_steps=6)]
    check_samples(run("av", audio=given({"type": "mask"})), samples, told)
    ((level, text),) = told.texts
    assert level == "warning"
    assert text.startswith("The masks of 1 samples of the sound")
    assert text.endswith("all of the sound is made: fox. Level 1, or a span, is given.")


def test_a_silent_reference_and_a_mask_of_all_the_sound_are_named(tmp_path):
    voice, mask = tmp_path / "voice.safetensors", tmp_path / "mask.safetensors"
    tensors = {"audio_latents_6x16x8_fp32": torch.zeros(8, 6, 16)}
    write_tensors(voice, tensors, {SILENCE: "yes"})
    write_tensors(mask, {"mask": torch.ones(6, dtype=torch.uint8)})
    sample = make_sample("fox", "audio", 6)
    config = run("audio", audio=given({"type": "reference"}))
    with pytest.raises(ConfigError, match="fox: its reference sound is silence"):
        check_samples(config, [replace(sample, reference_audio_paths=(voice,))], Events())
    with pytest.raises(ConfigError, match="fox: the mask of its sound gives all of it"):
        check_samples(run("audio", audio=given({"type": "mask"})), [replace(sample, audio_mask_path=mask)], Events())


def test_references_of_two_sizes_in_one_run_are_refused(tmp_path):
    samples = []
    for side in (1, 2):
        path = tmp_path / f"{side}.safetensors"
        write_tensors(path, {f"latents_1x{side}x{side}_float32": torch.zeros(128, 1, side, side)})
        samples.append(replace(make_sample(f"clip {side}"), reference_paths=(path,)))
    config = run("video", video=given({"type": "reference"}))
    with pytest.raises(ConfigError, match="References are of two kinds: that of clip 1 is 2 times smaller"):
        as_cached(config, samples, Trained())
    assert as_cached(config, samples[:1], Trained()) == Trained(downscale=2)
    assert as_cached(run("video"), samples, Trained()) == Trained()


def test_each_condition_asks_for_a_reference_of_its_own(tmp_path):
    path, small = tmp_path / "reference.safetensors", tmp_path / "small.safetensors"
    write_tensors(path, {"latents_1x2x2_float32": torch.zeros(128, 1, 2, 2)})
    write_tensors(small, {"latents_1x1x1_float32": torch.zeros(128, 1, 1, 1)})
    config = run("video", video=given({"type": "reference"}, {"type": "reference"}))
    one, two = (replace(make_sample(key), reference_paths=paths) for key, paths in (("a", (path,)), ("b", (path,) * 2)))
    with pytest.raises(ConfigError, match="asks for a reference 2, and not one.*Set more_reference_directories"):
        check_samples(config, [one], Events())
    told = Told()
    check_samples(config, [one, two], told)
    assert told.texts == [("warning", "1 of 2 samples have no reference 2 and train without: a.")]
    with pytest.raises(ConfigError, match="References are of two kinds"):
        as_cached(config, [replace(two, reference_paths=(path, small))], Trained())
    dataset = {"video_directory": "clips", "reference_directory": "depth"}
    with pytest.raises(ConfigError, match="asks for a reference 2.*more_reference_directories"):
        check_supplied(config, DatasetConfig.from_table({"datasets": [dataset]}, tmp_path))
    more = {**dataset, "more_reference_directories": ["faces"]}
    check_supplied(config, DatasetConfig.from_table({"datasets": [more]}, tmp_path))


def test_a_mask_that_gives_all_together_with_other_conditions_is_refused(tmp_path):
    shape = LatentShape(2, 2, 2)
    (mask := torch.ones(2, 2, 2))[0] = 0  # black is the first frame alone
    write_tensors(tmp_path / "mask.safetensors", {MASK_KEY: mask})
    sample = replace(make_sample("fox"), shape=shape, mask_path=tmp_path / "mask.safetensors")
    check_samples(run("video", video=given({"type": "mask"})), [sample], Events())
    both = run("video", video=given({"type": "mask"}, {"type": "first_frame"}))
    with pytest.raises(
        ConfigError, match=r"^fox: its mask and what else video\.conditions gives \(first_frame\) may give"
    ):
        check_samples(both, [sample], Events())


@pytest.mark.parametrize("generated", [True, False])
def test_a_step_with_nothing_to_learn_is_told_once_with_its_file(generated):
    told = Told()
    watch = LossWatch(run(video={"generated": generated}), told)
    for step, loss in enumerate((0.5, 0.0, 0.0), start=1):
        watch.step({"step": step, "loss_video": loss, "loss_audio": None}, ["fox.mp4"])
    assert len(told.texts) == generated
    assert not generated or told.texts[0][1].startswith(
        "Step 2: nothing of the picture of fox.mp4 was left to learn, and its loss is 0: all of it was given"
    )


@pytest.mark.parametrize(
    ("conditions", "factor", "said"),
    [
        ([], 2, "was trained with references, and this run gives none"),
        ([{"type": "reference"}], 1, "was trained with reference_downscale = 2, and the dataset has 1. Set it to 2"),
        ([{"type": "reference"}], 2, ""),
    ],
)
def test_a_start_that_learned_from_references_is_gone_on_with_by_them(tmp_path, conditions, factor, said):
    start = write_lora(
        tmp_path / "a.safetensors", {f"{BLOCK}.attn1.to_q": pair(2)}, {"reference_downscale_factor": "2"}
    )
    config = run("video", lora={"weights": start}, video=given(*conditions))
    told = Told()
    tell_start_references(config, Trained(downscale=factor), told)
    assert [text for _, text in told.texts if said and said in text] == [text for _, text in told.texts]
    assert len(told.texts) == bool(said)


def test_the_record_in_a_copied_run_folder_does_not_train_the_other_one(tmp_path):
    folder = tmp_path / "runs" / "fox"
    (folder / "states").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    (folder / "run.toml").write_text(f'[run]\nname = "fox"\nfolder = "{(tmp_path / "runs").as_posix()}"\n')
    check_streams(load_run(folder / "run.toml"))
    copy = folder.rename(tmp_path / "runs" / "copy") / "run.toml"
    with pytest.raises(ConfigError, match=r"lies in .*copy, but says run\.folder and run\.name of .*fox"):
        check_streams(load_run(copy))
    check_streams(load_run(copy, ["run.name=copy"]))


def test_compare_does_not_take_the_loras_of_the_run_that_a_folder_was_copied_from(tmp_path, capsys):
    folder = tmp_path / "runs" / "copy"
    (folder / "states").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    (folder / "run.toml").write_text(f'[run]\nname = "fox"\nfolder = "{(tmp_path / "runs").as_posix()}"\n')
    assert main(["compare", str(folder / "run.toml"), "--out", str(tmp_path / "out"), "--prompt", "a fox"]) == 2
    assert "that folder was copied or moved" in capsys.readouterr().err
