"""Samples with sound: which caches are accepted, what shares a batch, and where batches with sound stand.

It is long: one table of samples, and all that is drawn from it.
"""

from __future__ import annotations

import json
import wave
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from media import moving_square, write_captioned, write_image

from ltx2_train.caching import cache_file as caches
from ltx2_train.caching.encode_sound import SoundLatents
from ltx2_train.caching.notes import FAILED
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.dataset.sources import source_record
from ltx2_train.errors import CacheError, ConfigError
from ltx2_train.events import Events
from ltx2_train.feed.batches import Batches, BatchOrder, load_batch, sound_key
from ltx2_train.feed.loader import Sample, SoundBuckets, TrainingSet
from ltx2_train.files import write_tensors
from ltx2_train.objective.audio import AudioSettings
from ltx2_train.shapes import LatentShape

SETTINGS = CacheSettings()


def sample(number, steps=0, kind="video", shape=(2, 2, 2), dataset=0, repeats=1):
    return Sample(
        str(number), LatentShape(*shape), 25.0, "", None, None, dataset, repeats, kind=kind, audio_steps=steps
    )


def batched(samples, *rules):
    """The samples with the rule of their dataset for batches of sound."""
    return [replace(one, buckets=rules[one.dataset]) for one in samples]


def silent_and_heard(silent, heard):
    return [sample(i, shape=(1, 2, 2)) for i in range(silent)] + [sample(silent + i, 8) for i in range(heard)]


# --- order -----------------------------------------------------------------------------------------------------------


def test_without_sound_the_order_is_the_one_runs_have_always_had():
    plain = [sample(i, shape=(1 + i % 2, 2, 2), repeats=1 + i % 3) for i in range(11)]
    plain += [sample(i, shape=(1, 2, 2), dataset=1) for i in range(11, 15)]
    first = [(7, 5, 3), (5, 5, 1), (8, 2, 2), (6, 10, 2), (1, 7, 9), (10, 0, 8), (14, 13), (12, 11), (4, 4, 8)]
    eighth = [(6, 4, 2), (7, 1, 7), (12, 11), (13, 14), (5, 5, 3), (8, 10, 8), (2, 2, 4), (0, 8, 10), (5, 1, 9)]
    apart = batched(plain, SoundBuckets(), SoundBuckets(separate=True))
    for order in (BatchOrder(plain, (3, 2), 5), BatchOrder(apart, (3, 2), 5, AudioSettings(), 4)):
        assert order.epoch(0) == first
        assert order.epoch(7) == eighth


@pytest.mark.parametrize(
    ("steps", "pad", "truncate"),
    [
        (1, 50, 1),
        (49, 50, 49),
        (50, 50, 50),
        (74, 50, 50),
        (75, 100, 50),
        (99, 100, 50),
        (100, 100, 100),
        (130, 150, 100),
    ],
)
def test_sounds_are_grouped_by_the_nearest_or_the_lower_bound(steps, pad, truncate):
    assert sound_key(steps, SoundBuckets("pad", 2.0)) == pad
    assert sound_key(steps, SoundBuckets("truncate", 2.0)) == truncate


def test_an_interval_below_one_latent_is_one_latent():
    assert sound_key(7, SoundBuckets("pad", 0.001)) == 7
    assert sound_key(7, SoundBuckets("truncate", 0.001)) == 7


def test_recordings_never_share_a_batch_with_anything_else_and_split_by_length():
    samples = [sample(0), sample(1, 8), sample(2, 8, "audio"), sample(3, 50, "audio"), sample(4, 60, "audio")]
    batches = BatchOrder(batched(samples, SoundBuckets("pad", 1.0)), 8, 0).epoch(0)
    assert sorted(map(sorted, batches)) == [[0, 1], [2], [3, 4]]


def test_clips_with_sound_and_silent_ones_are_kept_apart_where_asked():
    samples = [sample(i, 8 * (i % 2)) for i in range(6)]
    together = BatchOrder(samples, 6, 0).epoch(0)
    apart = BatchOrder(batched(samples, SoundBuckets(separate=True)), 6, 0).epoch(0)
    assert [len(batch) for batch in together] == [6]
    assert sorted(map(sorted, apart)) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("options", [{"min_batches": 1}, {"min_batches": 3}, {"batch_probability": 0.8}])
@pytest.mark.parametrize(("silent", "heard"), [(20, 11), (5, 26), (30, 1)])
def test_moving_batches_neither_loses_nor_repeats_a_sample_and_is_a_function_of_the_epoch(options, silent, heard):
    samples = silent_and_heard(silent, heard)
    make = lambda: BatchOrder(samples, 2, 3, AudioSettings(**options), 4)  # noqa: E731
    for epoch in range(4):
        batches = make().epoch(epoch)
        assert len(batches) == len(make())
        assert sorted(i for batch in batches for i in batch) == list(range(len(samples)))
        assert batches == make().epoch(epoch)
    assert make().epoch(0) != make().epoch(1)
    walk, order = make().walk(), make()
    places = [next(walk) for _ in range(3 * len(order))]
    resumed = order.walk(*order.following(*places[len(order)][:2]))
    assert [next(resumed) for _ in range(5)] == places[len(order) + 1 : len(order) + 6]


@pytest.mark.parametrize(("length", "heard", "accumulation", "wanted"), [(22, 9, 4, 1), (23, 14, 4, 2), (31, 20, 5, 3)])
def test_every_step_gets_its_batches_with_sound_across_epochs_too(length, heard, accumulation, wanted):
    samples = silent_and_heard(length - heard, heard)
    order = BatchOrder(samples, 1, 7, AudioSettings(min_batches=wanted), accumulation)
    walk = order.walk()
    carried = [order.with_sound(next(walk)[2]) for _ in range(4 * accumulation * length)]
    steps = [sum(carried[at : at + accumulation]) for at in range(0, len(carried), accumulation)]
    assert min(steps) >= wanted
    # what there is more of is spread, not left for the end of the epoch
    assert max(steps) < accumulation


def test_where_sound_is_too_rare_the_first_steps_get_it_and_the_report_says_so():
    samples = silent_and_heard(18, 2)
    order = BatchOrder(samples, 1, 0, AudioSettings(min_batches=1), 4)
    steps = [sum(map(order.with_sound, order.epoch(0)[at : at + 4])) for at in range(0, 20, 4)]
    assert steps == [1, 1, 0, 0, 0]
    assert "takes 5" in order.describe_sound()
    assert "num_repeats" in order.describe_sound()


def test_the_coin_brings_sound_to_the_front_as_often_as_it_says():
    samples = silent_and_heard(400, 400)
    for probability in (0.0, 0.3, 1.0):
        order = BatchOrder(samples, 1, 0, AudioSettings(batch_probability=probability))
        carried = [order.with_sound(batch) for batch in order.epoch(0)]
        assert sum(carried[:400]) / 400 == pytest.approx(probability, abs=0.08)
        assert sum(carried) == 400


def test_wishes_that_cannot_be_met_are_errors():
    with pytest.raises(ConfigError, match=r"min_batches is 3.*only 2.*train\.accumulation"):
        BatchOrder(silent_and_heard(2, 2), 1, 0, AudioSettings(min_batches=3), 2)
    with pytest.raises(ConfigError, match="not one sample has sound"):
        BatchOrder(silent_and_heard(2, 0), 1, 0, AudioSettings(min_batches=1), 2)


def test_the_share_of_sound_is_told():
    order = BatchOrder(silent_and_heard(6, 2), 1, 0)
    assert order.share_of_sound() == 0.25
    assert "2 of 8 batches" in order.describe_sound()
    assert "30 to 50 %" in order.describe_sound()
    assert "30 to 50 %" not in BatchOrder(silent_and_heard(2, 2), 1, 0).describe_sound()


# --- batches ---------------------------------------------------------------------------------------------------------


class Stored:
    """A training set whose latents hold the number of the sample."""

    def load_latents(self, one):
        return torch.full((128, one.shape.frames, one.shape.height, one.shape.width), float(one.key))

    def load_audio(self, one):
        assert one.audio_steps
        return torch.full((8, one.audio_steps, 16), 1.0 + float(one.key))


def test_shorter_sounds_are_filled_up_outside_the_mask():
    samples = [sample(0, 5, "audio"), sample(1, 9, "audio")]
    batch = load_batch(Stored(), batched(samples, SoundBuckets("pad")))
    assert not batch.has_video
    assert batch.audio.shape == (2, 8, 9, 16)
    assert batch.audio.dtype == torch.float32
    assert batch.audio_mask.sum(dim=1).tolist() == [5, 9]
    assert batch.audio_mask[0].tolist() == [True] * 5 + [False] * 4
    assert batch.audio[0, :, :5].eq(1).all()
    assert batch.audio[0, :, 5:].eq(0).all()


def test_truncated_sounds_have_one_length_and_no_padding():
    samples = [sample(0, 27, "audio"), sample(1, 40, "audio")]
    batch = load_batch(Stored(), batched(samples, SoundBuckets("truncate", 1.0)))
    assert batch.audio.shape == (2, 8, 25, 16)
    assert batch.audio_mask.all()
    short = load_batch(Stored(), batched(samples, SoundBuckets("truncate", 4.0))[:1])
    assert short.audio.shape == (1, 8, 27, 16)


def test_the_sound_of_a_clip_is_never_cut_to_an_interval():
    samples = [sample(0, 27), sample(1, 28)]
    batch = load_batch(Stored(), batched(samples, SoundBuckets("truncate", 1.0)))
    assert batch.audio_mask.sum(dim=1).tolist() == [27, 28]


def test_a_silent_clip_among_others_is_masked_and_silent_ones_have_no_sound():
    samples = [sample(0), sample(1, 8)]
    batch = load_batch(Stored(), samples)
    assert batch.has_video
    assert batch.has_audio
    assert batch.latents.shape == (2, 128, 2, 2, 2)
    assert batch.audio_mask.sum(dim=1).tolist() == [0, 8]
    assert batch.audio[0].eq(0).all()
    assert not load_batch(Stored(), samples[:1]).has_audio


# --- samples from caches ---------------------------------------------------------------------------------------------


def write_wave(path, seconds, caption=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = (8000 * np.sin(np.arange(int(seconds * 16000)) * 0.2)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(tone.tobytes())
    if caption:
        path.with_suffix(".txt").write_text(caption)


@pytest.fixture
def config(tmp_path):
    """Clips a (with a sound file) and b (without), an image, and recordings of 1 s and 1.4 s."""
    for name in "ab":
        write_captioned(tmp_path / "clips" / f"{name}.mp4", moving_square(9, 64, 64), f"clip {name}")
    write_wave(tmp_path / "clips" / "a.wav", 1)
    write_image(tmp_path / "pics" / "p.png", caption="a picture")
    write_wave(tmp_path / "voice" / "u.wav", 1.0, "someone speaks")
    write_wave(tmp_path / "voice" / "v.wav", 1.4, "someone sings")
    table = {
        "general": {"resolution": 64, "batch_size": 2, "target_frames": [9]},
        "datasets": [
            {
                "video_directory": "clips",
                "cache_directory": "cache1",
                "audio_source": "audio_files",
                "audio_loss_weight": 0.5,
            },
            {"image_directory": "pics", "cache_directory": "cache2"},
            {"audio_directory": "voice", "cache_directory": "cache3", "audio_bucket_interval": 4},
        ],
    }
    return DatasetConfig.from_table(table, tmp_path)


def build(config, ours=True, length=None, full_text=True, vae="audio vae"):
    """Caches by hand, as this program (`ours`) or the community trainer writes them; latents hold their length."""
    plan = plan_dataset(config)
    for item in plan.items:
        if item.kind != "audio":
            shape = item.shape
            key = f"latents_{shape.frames}x{shape.height}x{shape.width}_bfloat16"
            write_tensors(item.latent_path, {key: torch.ones(128, shape.frames, shape.height, shape.width)})
        text = {"video_prompt_embeds_bf16": torch.ones(8, 24), "prompt_attention_mask": torch.ones(8)}
        if full_text:
            text["audio_prompt_embeds_bf16"] = torch.ones(8, 16)
        write_tensors(item.source.text_path("full"), text, {"caption1": item.caption})
        if item.sound is None:
            continue
        steps = item.sound.steps
        stored = steps if length is None else length
        tensors = {
            f"audio_latents_{stored}x16x8_{'fp16' if ours else 'float16'}": torch.full((8, stored, 16), float(steps)),
            "audio_lengths_int32": torch.tensor(steps, dtype=torch.int32),
        }
        metadata = {"architecture": "ltx2"}
        if ours:
            metadata |= {
                "format_version": caches.CACHE_FORMAT,
                "checkpoint": vae,
                "source": json.dumps(source_record(item.sound.path)),
                "settings": json.dumps(SoundLatents(plan, CacheRecipe(SETTINGS)).made_from(item)),
            }
        write_tensors(item.audio_path, tensors, metadata)
    return plan


def opened(config, mode="av", settings=SETTINGS, **more):
    return TrainingSet.open(config, CacheRecipe(settings, mode, audio_vae="audio vae"), **more)


def heard_events():
    messages = []
    events = Events()
    events.message = lambda text, level="info": messages.append((level, text))
    return events, messages


def test_each_mode_takes_what_it_can_train(config):
    build(config)
    video, av, audio = (opened(config, mode) for mode in ("video", "av", "audio"))
    assert [(one.caption, one.kind, one.audio_steps) for one in video.samples] == [
        ("clip a", "video", 0),
        ("clip b", "video", 0),
        ("a picture", "image", 0),
    ]
    assert [(one.caption, one.kind, one.audio_steps) for one in av.samples] == [
        ("clip a", "video", 10),
        ("clip b", "video", 0),
        ("a picture", "image", 0),
        ("someone speaks", "audio", 26),
        ("someone sings", "audio", 36),
    ]
    assert [(one.caption, one.kind) for one in audio.samples] == [
        ("clip a", "audio"),
        ("someone speaks", "audio"),
        ("someone sings", "audio"),
    ]
    assert {one.audio_loss_weight for one in av.samples if one.dataset == 0} == {0.5}
    assert av.buckets == (SoundBuckets(), SoundBuckets(), SoundBuckets(interval=4))
    assert av.samples[1].audio_path is None


def test_video_mode_never_looks_at_sound(config):
    plan = build(config)
    for item in plan.items:
        if item.audio_path is not None:
            item.audio_path.write_bytes(b"damaged")
    data = opened(config, "video")
    assert not any(load_batch(data, [one]).has_audio for one in data.samples)


def test_audio_mode_needs_no_latents_of_the_picture(config):
    plan = build(config)
    for item in plan.items:
        item.latent_path.unlink(missing_ok=True)
    data = opened(config, "audio")
    assert data.load_audio(data.samples[0]).shape == (8, 10, 16)
    assert not load_batch(data, data.samples[:1]).has_video


def test_noise_levels_of_sound_alone_follow_a_small_imagined_picture(config):
    build(config)
    for mode, at in (("av", 3), ("audio", 1)):
        one = opened(config, mode).samples[at]
        assert (one.caption, one.shape) == ("someone speaks", LatentShape(4, 2, 2))
    clip = opened(config, "audio").samples[0]
    assert clip.shape == LatentShape(2, 2, 2)
    wide = opened(config, "audio", audio=AudioSettings(sequence_resolution=128)).samples
    assert [one.shape for one in wide] == [LatentShape(2, 4, 4), LatentShape(4, 4, 4), LatentShape(5, 4, 4)]


def test_buckets_of_the_run_count_where_a_dataset_does_not_say(config):
    build(config)
    run = AudioSettings(bucket_strategy="truncate", bucket_interval=1, separate_buckets=True)
    found = opened(config, audio=run).buckets
    assert found == (*(SoundBuckets("truncate", 1.0, True),) * 2, SoundBuckets("truncate", 4.0, True))


def test_a_validation_sample_is_batched_as_its_own_dataset_says(tmp_path):
    """Datasets are counted apart in both lists, and number 1 of validation may have no like in training."""
    for name in ("heard", "first", "second"):
        write_wave(tmp_path / name / "u.wav", 1.4, "someone sings")
    entry = {"audio_bucket_strategy": "truncate", "audio_bucket_interval": 1}
    table = {
        "general": {"resolution": 64},
        "datasets": [{"audio_directory": "heard", "cache_directory": "cache0", "num_repeats": 5}],
        "validation_datasets": [
            {"audio_directory": "first", "cache_directory": "cache1", **entry},
            {"audio_directory": "second", "cache_directory": "cache2", **entry},
        ],
    }
    config = DatasetConfig.from_table(table, tmp_path)
    build(config)
    data = opened(config, "audio")
    train, (first, second) = data.samples[0], data.validation
    assert [load_batch(data, [one]).audio.shape[2] for one in (train, first, second)] == [36, 25, 25]
    assert len(BatchOrder(data.validation, 1, 0)) == 2  # the five repeats are of training


def test_images_clips_and_recordings_train_in_one_run_without_errors_of_shape(config):
    build(config)
    data = opened(config)
    order = BatchOrder(data.samples, data.batch_sizes, 0)
    with Batches(partial(load_batch, data), order, prefetch=0) as batches:
        epoch = [next(batches) for _ in range(len(order))]
    found = Counter((batch.has_video, batch.has_audio, len(batch.samples)) for batch in epoch)
    assert found == {(True, True, 2): 1, (True, False, 1): 1, (False, True, 2): 1}
    for batch in epoch:
        for row, one in enumerate(batch.samples):
            if batch.has_audio:
                assert batch.audio_mask[row].sum() == one.audio_steps
                assert (batch.audio[row, :, : one.audio_steps] == one.audio_steps).all()


@pytest.mark.parametrize("mode", ["av", "audio"])
def test_sound_that_is_missing_is_an_error_that_names_the_command(config, mode):
    plan = build(config)
    plan.items[0].audio_path.unlink()
    with pytest.raises(CacheError, match=r"a_.*_ltx2_audio\.safetensors: missing") as caught:
        opened(config, mode)
    assert "ltx2-train cache build" in str(caught.value)


@pytest.mark.parametrize("mode", ["av", "audio"])
def test_sound_that_failed_when_caching_makes_a_clip_silent_and_leaves_a_recording_out(config, mode):
    plan = build(config)
    for item in (plan.items[0], plan.items[3]):
        item.audio_path.unlink()
        FAILED.put(item.source.folder, item.audio_path.name, "cannot be decoded", item.sound.path)
    events, messages = heard_events()
    data = opened(config, mode, events=events)
    warned = [text for level, text in messages if level == "warning" and "cannot be decoded" in text]
    assert len(warned) == 2
    assert "someone speaks" not in [one.caption for one in data.samples]
    assert [one.audio_steps for one in data.samples if one.caption == "clip a"] == ([0] if mode == "av" else [])


def test_stale_sound_is_an_error_with_the_reason(config, tmp_path):
    build(config)
    with pytest.raises(CacheError, match="another audio VAE"):
        TrainingSet.open(config, CacheRecipe(mode="av", audio_vae="other"))
    with pytest.raises(CacheError, match="audio_vae_dtype changed"):
        opened(config, settings=CacheSettings(audio_vae_dtype="bf16"))
    write_wave(tmp_path / "clips" / "a.wav", 1.1)
    with pytest.raises(CacheError, match=r"a\.wav changed"):
        opened(config)


def test_sound_of_another_kind_or_damaged_is_named(config):
    plan = build(config)
    write_tensors(plan.items[0].audio_path, {"audio_latents_9x8x8_fp16": torch.ones(8, 9, 8)})
    with pytest.raises(CacheError, match="8 channels of 8 bins"):
        opened(config)
    write_tensors(plan.items[0].audio_path, {"audio_latents_9x16x8_fp16": torch.ones(8, 7, 16)})
    with pytest.raises(CacheError, match="damaged"):
        opened(config)


def test_sound_of_the_community_trainer_is_read_and_its_padding_dropped(config):
    build(config, ours=False, length=60)
    events, messages = heard_events()
    data = opened(config, events=events)
    assert any("another program" in text for _, text in messages)
    assert [one.audio_steps for one in data.samples] == [10, 0, 0, 26, 36]
    assert data.load_audio(data.samples[3]).shape == (8, 26, 16)
    assert load_batch(data, data.samples[3:]).audio.shape == (2, 8, 36, 16)


@pytest.mark.parametrize("mode", ["av", "audio"])
def test_text_that_was_cached_for_video_alone_is_refused(config, mode):
    build(config, full_text=False)
    assert opened(config, "video").samples
    with pytest.raises(CacheError, match="video alone"):
        opened(config, mode)


def test_a_set_without_what_the_mode_trains_says_which_mode_it_fits(tmp_path):
    write_wave(tmp_path / "voice" / "u.wav", 1.0, "someone speaks")
    recordings = DatasetConfig.from_table({"datasets": [{"audio_directory": "voice"}]}, tmp_path)
    build(recordings)
    with pytest.raises(CacheError, match=r"model\.mode = video.*audio"):
        opened(recordings, "video")
    write_image(tmp_path / "pics" / "p.png", caption="a picture")
    table = {"general": {"resolution": 64}, "datasets": [{"image_directory": "pics"}]}
    pictures = DatasetConfig.from_table(table, tmp_path)
    build(pictures)
    with pytest.raises(CacheError, match="Not one sample with sound"):
        opened(pictures, "audio")
