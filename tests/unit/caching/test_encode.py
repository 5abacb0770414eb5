"""Clips and images to caches of latents: names, contents, what stays, what is made again and what is refused.

It is long: one kind of cache from its file to what is said of it.
"""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from fake_encoders import Connectors, CountingEncoder, PoolingVAE
from fill_caches import encode_latents, encode_text
from media import moving_square, write_captioned, write_image
from safetensors import safe_open

from ltx2_train.caching.cache_file import Fingerprints
from ltx2_train.caching.encode import as_bytes, tiles_on, to_pixels
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.caching.status import cache_status
from ltx2_train.dataset.cache_names import text_cache_name
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import DataError, OutOfMemory, Stopped
from ltx2_train.events import Events
from ltx2_train.models.text import TextFeatures
from ltx2_train.models.tiling import TileSettings

WEIGHTS = Fingerprints("ckpt-1", "gemma-1")


@pytest.fixture
def dataset(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(17, 96, 64), caption="first clip here")
    write_captioned(tmp_path / "clips" / "b.mp4", moving_square(12, 64, 96), caption="second")
    write_image(tmp_path / "pics" / "p.png", caption="second")
    table = {
        "general": {"resolution": 64},
        "datasets": [
            {"video_directory": "clips", "cache_directory": "cache", "target_frames": [9, 17]},
            {"image_directory": "pics", "cache_directory": "cache2"},
        ],
    }
    return lambda **general: DatasetConfig.from_table({**table, "general": {"resolution": 64, **general}}, tmp_path)


def build(config, vae="vae-1", weights=WEIGHTS, **settings):
    plan = plan_dataset(config)
    opened = []

    def opener(kind):
        opened.append(kind())
        return opened[-1]

    settings = CacheSettings(**settings)
    latents = encode_latents(plan, lambda: opener(PoolingVAE), vae, settings)
    text = encode_text(plan, lambda: opener(CountingEncoder), weights, settings, open_connectors=Connectors)
    return plan, latents, text, opened


def metadata(path):
    with safe_open(str(path), "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}


def test_files_keys_and_metadata(dataset, tmp_path):
    plan, latents, text, _ = build(dataset())
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "a_00000-009_0064x0064_ltx2.safetensors",
        "a_00000-017_0064x0064_ltx2.safetensors",
        "a_ltx2_te_compact.safetensors",
        "b_00000-009_0064x0064_ltx2.safetensors",
        "b_ltx2_te_compact.safetensors",
    ]
    assert sorted(path.name for path in (tmp_path / "cache2").iterdir()) == [
        "p_0080x0060_ltx2.safetensors",
        "p_ltx2_te_compact.safetensors",
    ]
    strings, tensors = metadata(tmp_path / "cache" / "a_00000-017_0064x0064_ltx2.safetensors")
    assert {key: value.shape for key, value in tensors.items()} == {"latents_3x2x2_bfloat16": (128, 3, 2, 2)}
    assert strings["frame_count"] == "17"
    assert (strings["width"], strings["height"], strings["fps"]) == ("64", "64", "25.0")
    assert strings["checkpoint"] == "vae-1"
    assert set(json.loads(strings["source"])) == {"size", "mtime_ns", "sha256"}
    strings, tensors = metadata(tmp_path / "cache" / "a_ltx2_te_compact.safetensors")
    assert {key: value.shape for key, value in tensors.items()} == {
        "video_features_bfloat16": (4, 24),
        "audio_features_bfloat16": (4, 16),
    }
    assert strings["caption"] == "first clip here"
    assert (latents.made, text.made) == (4, 3)
    assert latents.bytes > 0
    assert "4 made" in latents.summary()


def test_latents_are_those_of_the_pixels(dataset, tmp_path):
    build(dataset(), latents_dtype="fp32", vae_dtype="fp32")
    _, tensors = metadata(tmp_path / "cache2" / "p_0080x0060_ltx2.safetensors")
    from ltx2_train.media.video import read_frames

    picture = read_frames(tmp_path / "pics" / "p.png", size=(64, 64))[0].astype("float32") / 127.5 - 1
    expected = torch.from_numpy(picture[:32, :32]).mean(dim=(0, 1))
    torch.testing.assert_close(tensors["latents_1x2x2_float32"][:3, 0, 0, 0], expected, atol=1e-4, rtol=1e-4)


def test_nothing_is_opened_when_all_is_fresh(dataset):
    build(dataset())
    _, latents, text, opened = build(dataset())
    assert opened == []
    assert (latents.made, latents.kept, text.made, text.kept) == (0, 4, 0, 3)


def test_models_are_closed_and_each_distinct_caption_is_encoded_once(dataset):
    _, _, _, (vae, encoder) = build(dataset())
    assert vae.closed
    assert encoder.closed
    assert encoder.captions == ["first clip here", "second"]


def test_the_text_encoder_is_not_opened_before_the_vae_is_closed(dataset):
    plan = plan_dataset(dataset())
    vae = PoolingVAE()
    encode_latents(plan, lambda: vae, "v", CacheSettings())

    def open_encoder():
        assert vae.closed
        return CountingEncoder()

    assert encode_text(plan, open_encoder, WEIGHTS, CacheSettings()).made == 3


@pytest.mark.parametrize(
    ("change", "made"),
    [
        ({"vae": "vae-2"}, 4),
        ({"latents_dtype": "fp32"}, 4),
        ({"vae_dtype": "fp32"}, 4),
        ({"skip_existing": False}, 4),
        ({"tiles": {"spatial_tile": 64, "spatial_overlap": 32}}, 4),
        ({"tiles": {"chunk_size": 8}}, 0),
    ],
)
def test_what_makes_latents_stale(dataset, change, made):
    build(dataset())
    _, latents, _, _ = build(dataset(), **change)
    assert latents.made == latents.stale == made


def test_resolution_of_images_is_noticed_although_the_name_stays(dataset):
    build(dataset())
    messages = []
    events = Events()
    events.message = lambda text, level="info": messages.append(text)
    plan = plan_dataset(dataset(resolution=96))
    report = encode_latents(plan, PoolingVAE, "vae-1", CacheSettings(), events)
    assert report.stale == 1, "videos get another name, the image does not"
    (line,) = [text for text in messages if "made again" in text]
    assert "p_0080x0060_ltx2.safetensors" in line
    assert "resolution" in line


def test_touching_a_source_is_harmless_and_changing_it_is_not(dataset, tmp_path):
    build(dataset())
    picture = tmp_path / "pics" / "p.png"
    os.utime(picture, (1, 1))
    assert build(dataset())[1].made == 0
    data = bytearray(picture.read_bytes())
    write_image(picture, 80, 60, caption="second")
    # Same size, other content: the last bytes of a PNG are not read, so the picture still opens.
    picture.write_bytes(bytes(data[:-1]) + bytes([data[-1] ^ 1]))
    os.utime(picture, (2, 2))
    assert build(dataset())[1].stale == 1


@pytest.mark.parametrize("weights", [Fingerprints("ckpt-2", "gemma-1"), Fingerprints("ckpt-1", "gemma-2")])
def test_other_text_weights_make_text_stale(dataset, weights):
    build(dataset())
    assert build(dataset(), weights=weights)[2].stale == 3


def test_caption_and_trigger_make_text_stale_but_not_latents(dataset, tmp_path):
    build(dataset())
    (tmp_path / "clips" / "a.txt").write_text("another")
    _, latents, text, _ = build(dataset())
    assert (latents.made, text.stale) == (0, 1)
    assert build(dataset(trigger_word="sks"))[2].stale == 3


def test_damaged_caches_are_made_again(dataset, tmp_path):
    build(dataset())
    for name in ("a_00000-009_0064x0064_ltx2.safetensors", "a_ltx2_te_compact.safetensors"):
        path = tmp_path / "cache" / name
        path.write_bytes(path.read_bytes()[:-10])
    _, latents, text, _ = build(dataset())
    assert (latents.stale, text.stale) == (1, 1)
    assert build(dataset())[3] == []


def test_at_most_one_clip_is_decoded_ahead(dataset, monkeypatch):
    from ltx2_train.dataset import augment

    real, started, encoded = augment.read_frames, [], []
    monkeypatch.setattr(augment, "read_frames", lambda *arguments: started.append(1) or real(*arguments))

    class Watching(PoolingVAE):
        def encode_piece(self, pixels, stream):
            assert len(started) <= len(encoded) + 2
            encoded.append(1)
            return super().encode_piece(pixels, stream)

    report = encode_latents(plan_dataset(dataset()), Watching, "v", CacheSettings())
    assert report.made == len(started) == 4


def test_no_more_than_two_decoded_clips_are_in_memory(dataset, monkeypatch):
    from ltx2_train.caching import encode

    real, lock, alive, most = encode.Latents.read, threading.Lock(), [0], [0]

    def change(by):
        with lock:
            alive[0] += by
            most[0] = max(most[0], alive[0])

    def read(kind, job, model):
        change(1)  # what is being decoded counts
        clip = real(kind, job, model)
        weakref.finalize(clip, change, -1)
        return clip

    class Slow(PoolingVAE):
        def encode_piece(self, pixels, stream):
            time.sleep(0.05)  # the next clip is ready before this one is done
            return super().encode_piece(pixels, stream)

    monkeypatch.setattr(encode.Latents, "read", read)
    assert encode_latents(plan_dataset(dataset(flip=True)), Slow, "v", CacheSettings()).made == 8
    assert (most[0], alive[0]) == (2, 0)


def test_bytes_become_the_same_pixels_piece_by_piece_or_at_once():
    clip = torch.randint(0, 256, (9, 32, 64, 3), dtype=torch.uint8)
    expected = clip.permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(to_pixels(clip.numpy(), dtype), expected.to(dtype))
        assert torch.equal(to_pixels(as_bytes(clip.numpy())[:, :, 1:5], dtype), expected[:, :, 1:5].to(dtype))


def test_one_bad_file_is_named_and_left_out(dataset, monkeypatch, tmp_path):
    from ltx2_train.dataset import augment

    real = augment.read_frames

    def failing(media, *arguments):
        if media.path.name == "a.mp4":
            raise DataError(f"{media.path}: broken in the middle", media.path)
        return real(media, *arguments)

    monkeypatch.setattr(augment, "read_frames", failing)
    _, latents, _, _ = build(dataset())
    assert latents.made == 2
    assert [failure.path.name for failure in latents.failed] == ["a.mp4"], "named once, not once a window"
    assert "broken in the middle" in latents.summary()


def test_nothing_left_is_an_error(dataset, monkeypatch):
    from ltx2_train.dataset import augment

    def failing(media, *arguments):
        raise DataError(f"{media.path}: broken", media.path)

    monkeypatch.setattr(augment, "read_frames", failing)
    with pytest.raises(DataError, match="Not one clip"):
        build(dataset())


def test_numbers_that_are_not_finite_are_refused(dataset):
    class Broken(PoolingVAE):
        def encode_piece(self, pixels, stream):
            return super().encode_piece(pixels, stream) * float("nan")

    plan = plan_dataset(dataset())
    with pytest.raises(DataError, match="fp32"):
        encode_latents(plan, Broken, "v", CacheSettings())
    assert not any(item.latent_path.is_file() for item in plan.items)


def test_out_of_memory_says_what_to_make_smaller(dataset):
    class Huge(PoolingVAE):
        def encode_piece(self, pixels, stream):
            raise torch.OutOfMemoryError("no")

    vae = Huge()
    with pytest.raises(OutOfMemory, match="chunk_size"):
        encode_latents(plan_dataset(dataset()), lambda: vae, "v", CacheSettings())
    assert vae.closed


@pytest.mark.parametrize(
    ("device", "given", "able", "chunk"),
    [("cuda", None, True, 16), ("cuda", 32, True, 32), ("cuda", None, False, None), ("cpu", None, True, None)],
)
def test_a_card_encodes_in_chunks_where_the_settings_leave_it_open(device, given, able, chunk):
    vae = SimpleNamespace(config=SimpleNamespace(encodes_in_pieces=able))
    tiles = tiles_on(device, TileSettings(chunk_size=given, spatial_tile=512), vae)
    assert (tiles.chunk_size, tiles.spatial_tile) == (chunk, 512)


def test_stop_keeps_what_is_done_and_the_next_build_goes_on(dataset):
    plan = plan_dataset(dataset())
    events = Events()
    done = []
    events.progress = lambda number, total, text="": done.append(text)
    events.should_stop = lambda: len(done) >= 2
    vae = PoolingVAE()
    with pytest.raises(Stopped):
        encode_latents(plan, lambda: vae, "v", CacheSettings(), events)
    assert vae.closed
    report = encode_latents(plan, PoolingVAE, "v", CacheSettings())
    assert (report.kept, report.made) == (2, 2)


def test_a_stop_ends_the_clip_that_is_being_encoded(dataset):
    plan, events, passed = plan_dataset(dataset()), Events(), []

    class Layer(torch.nn.Module):
        def forward(self, x):
            passed.append(x)
            return x

    class DeepVAE(PoolingVAE):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(Layer() for _ in range(3))

        def encode_piece(self, pixels, stream):
            for layer in self.layers:
                pixels = layer(pixels)
            return super().encode_piece(pixels, stream)

    vae = DeepVAE()
    events.should_stop = lambda: len(passed) == 2
    with pytest.raises(Stopped):
        encode_latents(plan, lambda: vae, "v", CacheSettings(), events)
    assert len(passed) == 2
    assert not any(layer._forward_pre_hooks for layer in vae.layers)
    assert encode_latents(plan, DeepVAE, "v", CacheSettings()).made == 4


def test_full_form_has_the_keys_of_the_community_trainer(dataset, tmp_path):
    _, _, text, _ = build(dataset(), text_form="full")
    assert text.made == 3
    _, tensors = metadata(tmp_path / "cache" / "a_ltx2_te.safetensors")
    assert {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()} == {
        "video_prompt_embeds_bfloat16": ((128, 24), torch.bfloat16),
        "audio_prompt_embeds_bfloat16": ((128, 16), torch.bfloat16),
        "prompt_attention_mask": ((128,), torch.int64),
        "text_bfloat16": ((128, 40), torch.bfloat16),
        "text_mask": ((128,), torch.int64),
    }
    assert not (tmp_path / "cache" / "a_ltx2_te_compact.safetensors").exists(), "scratch files go"
    assert build(dataset(), text_form="full")[3] == []


def test_an_encoder_of_many_captions_gets_them_together_and_keeps_the_good_ones(dataset, tmp_path):
    asked = []

    class Together(CountingEncoder):
        def groups(self, captions):
            return [list(captions)]

        def encode(self, captions):
            raise AssertionError("one by one")

        def encode_each(self, captions, events=None):
            asked.append(captions)
            for caption in captions:
                (features,) = CountingEncoder().encode([caption])
                yield caption, DataError("no numbers for 'second'") if caption == "second" else features
                made = (tmp_path / "cache" / "a_ltx2_te_compact.safetensors").exists()
                assert made, "written as soon as it is there"

    report = encode_text(plan_dataset(dataset()), Together, WEIGHTS, CacheSettings())
    assert asked == [["first clip here", "second"]]
    assert report.made == 1
    assert [(failed.path.name, failed.reason) for failed in report.failed] == [
        ("b.mp4", "no numbers for 'second'"),
        ("p.png", "no numbers for 'second'"),
    ]


def test_full_form_closes_the_encoder_before_the_connectors_open(dataset):
    encoder = CountingEncoder()

    def open_connectors():
        assert encoder.closed
        return Connectors()

    encode_text(
        plan_dataset(dataset()), lambda: encoder, WEIGHTS, CacheSettings(text_form="full"),
        open_connectors=open_connectors,
    )  # fmt: skip


def test_full_form_reuses_compact_caches(dataset, tmp_path):
    build(dataset())
    opened = build(dataset(), text_form="full")[3]
    assert opened == [], "no text encoder is needed"
    assert (tmp_path / "cache" / "a_ltx2_te_compact.safetensors").exists()


def test_shared_features_are_stored_once(dataset):
    plan = plan_dataset(dataset())
    encode_text(plan, lambda: CountingEncoder(shared=True), WEIGHTS, CacheSettings())
    _, tensors = metadata(plan.sources[0].text_path("compact"))
    assert list(tensors) == ["video_features_bfloat16"]


def test_compact_text_of_200_tokens_stays_below_3_mb(tmp_path):
    from ltx2_train.caching.encode_text import compact_tensors
    from ltx2_train.files import write_tensors

    features = TextFeatures(torch.randn(200, 4096), torch.randn(200, 2048))
    path = tmp_path / text_cache_name("a", "compact")
    write_tensors(path, compact_tensors(features, torch.bfloat16), {"caption": "a " * 200})
    assert path.stat().st_size < 3_000_000


def test_leftovers_are_listed_and_never_deleted(dataset, tmp_path):
    build(dataset())
    plan = plan_dataset(dataset(resolution=96))
    assert [row.path.name for row in cache_status(plan, CacheRecipe()).of("orphaned")] == [
        "a_00000-009_0064x0064_ltx2.safetensors",
        "a_00000-017_0064x0064_ltx2.safetensors",
        "b_00000-009_0064x0064_ltx2.safetensors",
    ]
