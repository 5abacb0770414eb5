from __future__ import annotations

import threading
import time
from functools import partial

import pytest
import torch
from fill_caches import encode_latents, encode_text
from media import moving_square, write_captioned, write_image

from ltx2_train.caching.cache_file import KEPT_AS, CacheFile, Fingerprints
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import CacheError, DataError
from ltx2_train.events import Events
from ltx2_train.feed.batches import Batches, BatchOrder, load_batch
from ltx2_train.feed.loader import FullText, Sample, TrainingSet, load_text
from ltx2_train.files import CHECK_SUMS, write_tensors
from ltx2_train.models.text import TextFeatures
from ltx2_train.shapes import LatentShape


class FlatVAE(torch.nn.Module):
    """Latents that all hold the mean of the clip."""

    class config:
        latent_channels = 128
        encodes_in_pieces = True

    def encode_piece(self, pixels, stream):
        frames, height, width = (pixels.shape[2] - 1) // 8 + 1, pixels.shape[3] // 32, pixels.shape[4] // 32
        return torch.full((1, 128, frames, height, width), float(pixels.float().mean()))


class Words:
    def encode(self, captions):
        return [TextFeatures(torch.full((3, 24), float(len(c))), torch.full((3, 16), 1.0)) for c in captions]


class Connectors(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, features):
        return features[0].video[None], features[0].audio[None]


WEIGHTS = Fingerprints("ckpt", "gemma")
RECIPE = CacheRecipe(video_vae="vae", text=WEIGHTS)


@pytest.fixture
def config(tmp_path):
    for index, name in enumerate("abc"):
        write_captioned(tmp_path / "clips" / f"{name}.mp4", moving_square(10 + index, 64, 64), f"clip {name}")
    write_image(tmp_path / "pics" / "p.png", caption="a picture")
    return DatasetConfig.from_table(
        {
            "general": {"resolution": 64, "batch_size": 2},
            "datasets": [
                {
                    "video_directory": "clips",
                    "cache_directory": "cache",
                    "target_frames": [9],
                    "num_repeats": 2,
                    "first_frame_probability": 0.25,
                },
                {"image_directory": "pics", "cache_directory": "cache2", "video_loss_weight": 3, "batch_size": 1},
            ],
        },
        tmp_path,
    )


def build(config, settings=None):
    settings = settings or CacheSettings()
    plan = plan_dataset(config)
    encode_latents(plan, FlatVAE, "vae", settings)
    encode_text(plan, Words, WEIGHTS, settings, open_connectors=Connectors)
    return plan


def test_samples_carry_what_training_needs(config):
    build(config)
    data = TrainingSet.open(config, RECIPE)
    assert [sample.caption for sample in data.samples] == ["clip a", "clip b", "clip c", "a picture"]
    clip, picture = data.samples[0], data.samples[3]
    assert clip.shape == LatentShape(2, 2, 2)
    assert (clip.fps, clip.dataset, clip.repeats, clip.first_frame_probability) == (25.0, 0, 2, 0.25)
    assert clip.video_loss_weight is None
    assert (picture.shape, picture.dataset, picture.repeats) == (LatentShape(1, 2, 2), 1, 1)
    assert (picture.first_frame_probability, picture.video_loss_weight) == (None, 3.0)
    assert data.batch_sizes == (2, 1)
    latents = data.load_latents(clip)
    assert latents.shape == (128, 2, 2, 2)
    assert latents.dtype == torch.float32
    text = data.load_text(clip)
    assert isinstance(text, TextFeatures)
    assert (text.video.shape, text.audio.shape) == ((3, 24), (3, 16))


def test_a_cache_that_another_took_the_place_of_since_is_refused(config):
    build(config)
    data = TrainingSet.open(config, RECIPE)
    first, second = data.samples[:2]
    before = data.load_latents(first)
    kept = first.latent_path.read_bytes()
    first.latent_path.write_bytes(second.latent_path.read_bytes())
    with pytest.raises(CacheError, match="was replaced while the run was trained: it is of another source"):
        data.load_latents(first)
    first.latent_path.write_bytes(kept)
    assert torch.equal(data.load_latents(first), before)
    entry = {"cache_only": True, "cache_directory": "cache"}
    caches = DatasetConfig.from_table({"datasets": [entry]}, first.latent_path.parents[1])
    data = TrainingSet.open(caches, RECIPE)
    data.samples[0].latent_path.write_bytes(second.latent_path.read_bytes())
    with pytest.raises(CacheError, match="was replaced while the run was trained"):
        data.load_latents(data.samples[0])


def test_full_text_is_read_whatever_form_is_set(config):
    build(config, CacheSettings(text_form="full"))
    data = TrainingSet.open(config, RECIPE)
    text = data.load_text(data.samples[0])
    assert isinstance(text, FullText)
    assert text.mask.tolist() == [1, 1, 1]
    assert text.audio_context.shape == (3, 16)


def test_missing_caches_are_an_error_that_names_the_command(config):
    with pytest.raises(CacheError, match="ltx2-train cache build") as caught:
        TrainingSet.open(config, RECIPE)
    assert "missing" in str(caught.value)
    assert "Prepare Dataset" in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (CacheRecipe(video_vae="other", text=WEIGHTS), "another VAE"),
        (CacheRecipe(video_vae="vae", text=Fingerprints("other", "gemma")), "another checkpoint"),
        (CacheRecipe(video_vae="vae", text=Fingerprints("ckpt", "other")), "another text encoder"),
        (
            CacheRecipe(CacheSettings(vae_dtype="fp32"), video_vae="vae", text=WEIGHTS),
            "vae_dtype changed (bf16 -> fp32)",
        ),
    ],
)
def test_stale_caches_are_an_error_with_the_reason(config, recipe, reason):
    build(config)
    with pytest.raises(CacheError) as caught:
        TrainingSet.open(config, recipe)
    assert reason in str(caught.value)
    assert "ltx2-train cache build" in str(caught.value)


def test_unknown_fingerprints_are_not_compared(config):
    build(config)
    assert len(TrainingSet.open(config).samples) == 4


def test_a_changed_source_is_an_error(config, tmp_path):
    build(config)
    write_image(tmp_path / "pics" / "p.png", 80, 60, caption="a picture")
    (tmp_path / "pics" / "p.png").write_bytes((tmp_path / "pics" / "p.png").read_bytes() + b"x")
    with pytest.raises(CacheError, match=r"p\.png changed"):
        TrainingSet.open(config, RECIPE)


def test_a_changed_caption_is_an_error(config, tmp_path):
    build(config)
    (tmp_path / "clips" / "a.txt").write_text("new words")
    with pytest.raises(CacheError, match="caption"):
        TrainingSet.open(config, RECIPE)


def test_damaged_caches_are_named_when_opened_and_when_read(config):
    plan = build(config)
    data = TrainingSet.open(config, RECIPE)
    path = plan.items[0].latent_path
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CacheError, match=path.name) as caught:
        data.load_latents(data.samples[0])
    assert "ltx2-train cache build" in str(caught.value)
    with pytest.raises(CacheError, match="damaged") as opened:
        TrainingSet.open(config, RECIPE)
    assert not any("download" in str(error.value) for error in (caught, opened)), "nobody downloads caches"


def test_numbers_that_are_not_finite_are_found(config):
    plan = build(config)
    data = TrainingSet.open(config, RECIPE)
    path = plan.items[0].latent_path
    said = {key: value for key, value in CacheFile(path).metadata.items() if key not in (CHECK_SUMS, KEPT_AS)}
    write_tensors(path, {"latents_2x2x2_bfloat16": torch.full((128, 2, 2, 2), float("nan"))}, said)
    with pytest.raises(CacheError, match="not finite"):
        data.load_latents(data.samples[0])


def test_files_that_failed_when_caching_are_left_out_with_a_warning(config, monkeypatch):
    from ltx2_train.dataset import augment

    real = augment.read_frames

    def failing(media, *arguments):
        if media.path.name == "b.mp4":
            raise DataError("broken in the middle", media.path)
        return real(media, *arguments)

    monkeypatch.setattr(augment, "read_frames", failing)
    build(config)
    messages = []
    events = Events()
    events.message = lambda text, level="info": messages.append((level, text))
    data = TrainingSet.open(config, RECIPE, events=events)
    assert "clip b" not in [sample.caption for sample in data.samples]
    assert any(level == "warning" and "b.mp4" in text and "broken" in text for level, text in messages)


@pytest.mark.parametrize("token", ["bfloat16", "bf16", "float16", "fp16", "float32"])
def test_caches_of_the_community_trainer_are_read(config, token):
    plan = plan_dataset(config)
    for item in plan.items:
        shape = item.shape
        key = f"latents_{shape.frames}x{shape.height}x{shape.width}_{token}"
        write_tensors(item.latent_path, {key: torch.ones(128, shape.frames, shape.height, shape.width)}, {"a": "b"})
        text = {
            f"video_prompt_embeds_{token}": torch.ones(8, 24),
            "prompt_attention_mask": torch.ones(8, dtype=torch.int64),
            f"text_{token}": torch.ones(8, 24),
            "text_mask": torch.ones(8, dtype=torch.int64),
        }
        write_tensors(item.source.text_path("full"), text, {"caption1": item.caption})
    messages = []
    events = Events()
    events.message = lambda text, level="info": messages.append(text)
    data = TrainingSet.open(config, RECIPE, events=events)
    assert any("another program" in text for text in messages)
    assert data.load_latents(data.samples[0]).shape == (128, 2, 2, 2)
    text = data.load_text(data.samples[0])
    assert isinstance(text, FullText)
    assert text.audio_context is None


def test_foreign_latents_of_another_size_are_stale(config):
    plan = build(config)
    write_tensors(plan.items[0].latent_path, {"latents_3x2x2_bf16": torch.ones(128, 3, 2, 2)})
    with pytest.raises(CacheError, match="3x2x2, 2x2x2 are needed"):
        TrainingSet.open(config, RECIPE)


def test_a_file_without_text_is_refused(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"something": torch.ones(1)})
    with pytest.raises(CacheError, match="something"):
        load_text(tmp_path / "a.safetensors")


def test_validation_samples_are_apart(tmp_path):
    write_image(tmp_path / "a" / "p.png", caption="train")
    write_image(tmp_path / "b" / "q.png", caption="validate")
    table = {
        "general": {"resolution": 64},
        "datasets": [{"image_directory": "a"}],
        "validation_datasets": [{"image_directory": "b"}],
    }
    config = DatasetConfig.from_table(table, tmp_path)
    build(config)
    data = TrainingSet.open(config, RECIPE)
    assert [sample.caption for sample in data.samples] == ["train"]
    assert [sample.caption for sample in data.validation] == ["validate"]


# --- order -----------------------------------------------------------------------------------------------------------


def sample(number, shape=(2, 2, 2), dataset=0, repeats=1):
    return Sample(str(number), LatentShape(*shape), 25.0, "", None, None, dataset, repeats)


@pytest.fixture
def mixed():
    samples = [sample(i, (1 + i % 2, 2, 2), repeats=1 + i % 3) for i in range(11)]
    return samples + [sample(i, (1, 2, 2), dataset=1) for i in range(11, 15)]


def test_an_epoch_holds_every_sample_as_often_as_it_repeats(mixed):
    batches = BatchOrder(mixed, (3, 2), seed=1).epoch(0)
    seen = sorted(i for batch in batches for i in batch)
    assert seen == sorted(i for i, one in enumerate(mixed) for _ in range(one.repeats))


def test_batches_never_mix_shapes_or_datasets_and_the_last_may_be_smaller(mixed):
    order = BatchOrder(mixed, (4, 2), seed=1)
    batches = order.epoch(0)
    assert len(batches) == len(order)
    for batch in batches:
        assert len({(mixed[i].shape, mixed[i].dataset) for i in batch}) == 1
        assert 1 <= len(batch) <= (4, 2)[mixed[batch[0]].dataset]
    assert any(len(batch) < 4 for batch in batches if mixed[batch[0]].dataset == 0)


def test_order_depends_on_seed_and_epoch_alone(mixed):
    order = BatchOrder(mixed, 2, seed=5)
    assert order.epoch(3) == BatchOrder(mixed, 2, seed=5).epoch(3)
    assert order.epoch(0) != order.epoch(1)
    assert order.epoch(0) != BatchOrder(mixed, 2, seed=99).epoch(0)


def test_a_walk_continues_where_it_is_told(mixed):
    order = BatchOrder(mixed, 2, seed=5)
    walk = order.walk()
    places = [next(walk) for _ in range(3 * len(order))]
    for at in (0, 4, len(order) - 1, len(order) + 2):
        epoch, index, _ = places[at]
        place = order.following(epoch, index)
        resumed = order.walk(*place)
        assert [next(resumed) for _ in range(5)] == places[at + 1 : at + 6]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_are_read_in_order_and_resume(config, prefetch):
    build(config)
    data = TrainingSet.open(config, RECIPE)
    order = BatchOrder(data.samples, data.batch_sizes, seed=0)
    with Batches(partial(load_batch, data), order, prefetch=prefetch) as batches:
        first = [next(batches) for _ in range(6)]
    with Batches(
        partial(load_batch, data), order, order.following(first[2].epoch, first[2].index), prefetch
    ) as batches:
        again = [next(batches) for _ in range(3)]
    assert [batch.samples for batch in again] == [batch.samples for batch in first[3:]]
    for batch in first:
        size = len(batch.samples)
        shape = batch.samples[0].shape
        assert batch.latents.shape == (size, 128, shape.frames, 2, 2)
        assert not batch.has_audio
        assert batch.fps == 25.0


def test_reading_ahead_is_bounded_and_its_thread_ends(config, monkeypatch):
    build(config)
    data = TrainingSet.open(config, RECIPE)
    reads = []
    real = TrainingSet.load_latents
    monkeypatch.setattr(TrainingSet, "load_latents", lambda self, one: reads.append(one.key) or real(self, one))
    order = BatchOrder(data.samples, 1, seed=0)
    with Batches(partial(load_batch, data), order, prefetch=2):
        deadline = time.monotonic() + 5
        while len(reads) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.15)
        assert len(reads) == 3, "two that wait and the one that was read for the next place"
    assert not any(thread.name == "ltx2-prefetch" for thread in threading.enumerate())


def test_an_error_of_the_thread_reaches_the_caller(config):
    plan = build(config)
    data = TrainingSet.open(config, RECIPE)
    for item in plan.items:
        item.latent_path.unlink()
    order = BatchOrder(data.samples, 1, seed=0)
    with Batches(partial(load_batch, data), order) as batches, pytest.raises(CacheError, match="missing"):
        next(batches)
