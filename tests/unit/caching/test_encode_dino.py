"""DINOv2 features: equal to the model's own on the same pixels, made when needed, found stale, read and refused.

It is long: a kind of cache from its model to what training reads.
"""

from __future__ import annotations

import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from fill_caches import due_of, encode_dino
from media import moving_square, truncate, write_captioned, write_image
from safetensors import safe_open

from ltx2_train.caching import dino_model, disk
from ltx2_train.caching import encode_dino as module
from ltx2_train.caching.dino import DINO_KEY, DINO_SUFFIX, dino_path, read_dino
from ltx2_train.caching.dino_model import DinoModel
from ltx2_train.caching.disk import CacheNeed
from ltx2_train.caching.encode_dino import DinoFeatures, to_square
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings, DinoSettings
from ltx2_train.caching.status import cache_status, remove_caches
from ltx2_train.dataset.augment import read_clip
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import CacheError, CheckpointError, ConfigError, DataError, OutOfMemory, RunError, Stopped
from ltx2_train.events import Events
from ltx2_train.files import write_tensors

SIZE = 42  # 3 x 3 patches


def save_dino(folder, registers=False, seed=0, **more):
    """A folder as on Hugging Face with a tiny DINOv2 of random weights."""
    import transformers

    name = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14, "image_size": 56}
    config = getattr(transformers, f"{name}Config")(**sizes, **more)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}Model")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return save_dino(tmp_path_factory.mktemp("dino") / "tiny_dino")


@pytest.fixture(scope="module")
def dino_with_registers(tmp_path_factory):
    return save_dino(tmp_path_factory.mktemp("dino") / "tiny_registers", registers=True)


def settings(folder, size=SIZE, batch=4, **more):
    return CacheSettings(dino=DinoSettings(model=folder, size=size, batch=batch), **more)


@pytest.fixture
def dataset(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(9, 96, 64))
    write_image(tmp_path / "pics" / "p.png")
    table = {
        "datasets": [
            {"video_directory": "clips", "cache_directory": "cache", "target_frames": [9], "flip": True},
            {"image_directory": "pics", "cache_directory": "cache_p"},
        ],
        "validation_datasets": [{"video_directory": "clips", "cache_directory": "cache_v", "target_frames": [9]}],
    }
    for name in ("cache", "cache_p", "cache_v"):
        (tmp_path / name).mkdir()
    return lambda **general: DatasetConfig.from_table({**table, "general": {"resolution": 64, **general}}, tmp_path)


def recipe(chosen):
    return CacheRecipe(chosen, dino=DinoModel.find(chosen.dino))


def build(config, chosen, events=None):
    plan = plan_dataset(config)
    return plan, encode_dino(plan, DinoModel.find(chosen.dino), chosen, events)


def bilinear(frame, size):
    """uint8 [H, W, 3] to [size, size, 3] in [0, 1]: between the four nearest pixel centres."""

    def places(length):
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, length - 1), at - low

    (top, bottom, down), (left, right, across) = places(frame.shape[0]), places(frame.shape[1])
    down, across, frame = down[:, None, None], across[None, :, None], frame / 255.0
    upper = frame[top][:, left] * (1 - across) + frame[top][:, right] * across
    lower = frame[bottom][:, left] * (1 - across) + frame[bottom][:, right] * across
    return upper * (1 - down) + lower * down


@pytest.mark.parametrize("registers", [False, True])
def test_features_are_those_of_the_model_on_the_same_pixels(registers, request, dataset):
    folder = request.getfixturevalue("dino_with_registers" if registers else "dino")
    plan, report = build(dataset(), settings(folder))
    assert (report.made, report.kept, report.failed) == (3, 0, [])  # clip, mirrored clip, image; none for validation
    network = DinoModel.find(settings(folder).dino).open("cpu")
    for item in plan.items:
        if item.validation:
            assert not dino_path(item.latent_path).exists()
            continue
        clip = read_clip(item, plan.settings_of(item))
        squares = np.stack([bilinear(frame, SIZE) for frame in clip])
        pixels = (squares - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        pixels = torch.from_numpy(pixels).float().permute(0, 3, 1, 2)
        with torch.no_grad():
            states = network(pixel_values=pixels, output_hidden_states=True).hidden_states
            expected = network.layernorm(states[-1])[:, 5 if registers else 1 :]
        found = read_dino(dino_path(item.latent_path))
        assert found.shape == (item.window.count, 9, 32)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_patches_lie_row_by_row(dino):
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    frame[:, :21, 43:] = 255  # the upper right one of nine
    patches = to_square(torch.from_numpy(frame), SIZE).unfold(2, 14, 14).unfold(3, 14, 14).mean((1, 4, 5)).flatten()
    assert int(patches.argmax()) == 2


def test_the_file_is_that_of_the_community_trainer(dino, dataset, tmp_path):
    plan, _ = build(dataset(), settings(dino))
    assert sorted(path.name for path in tmp_path.glob("cache*/*_dino*")) == [
        "a_00000-009_0064x0064_ltx2_dino.safetensors",
        "a~flip_00000-009_0064x0064_ltx2_dino.safetensors",
        "p_0080x0060_ltx2_dino.safetensors",
    ]
    with safe_open(str(dino_path(plan.items[0].latent_path)), "pt") as file:
        said, tensor = file.metadata(), file.get_tensor(DINO_KEY)
    assert {key: said[key] for key in ("dino_model", "dino_dim", "num_frames", "num_patches")} == {
        "dino_model": "tiny_dino",
        "dino_dim": "32",
        "num_frames": "9",
        "num_patches": "9",
    }
    assert tensor.dtype == torch.float16
    mirrored = read_dino(dino_path(plan.items[1].latent_path))
    assert not torch.allclose(mirrored, tensor.float(), atol=1e-2)


def test_models_of_the_usual_sizes_go_by_their_usual_names(tmp_path):
    save_dino(tmp_path / "x", registers=True)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**config, "hidden_size": 1024}))
    assert DinoModel.find(DinoSettings(model=tmp_path / "x")).folder.name == "dinov2_vitl14_reg"


def test_chosen_frames_can_be_read_alone(dino, dataset):
    plan, _ = build(dataset(), settings(dino))
    path = dino_path(plan.items[0].latent_path)
    assert torch.equal(read_dino(path, [8, 0]), read_dino(path)[[8, 0]])


def test_what_is_fresh_is_kept_and_opens_nothing(dino, dataset, monkeypatch):
    build(dataset(), settings(dino))
    monkeypatch.setattr(dino_model, "load_dinov2", lambda *_: pytest.fail("nothing is to be made"))
    _, again = build(dataset(), settings(dino, batch=2))
    assert (again.made, again.kept, again.stale) == (0, 3, 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"size": 56}, "dino_size changed (42 -> 56)"),
        ({"model": "other"}, "made with another DINOv2 model"),
        ({"general": {"resolution": 96}}, None),
        ({"general": {"color_jitter": 0.1}}, "color_jitter changed"),
        ({"source": True}, "a.mp4 changed"),
        ({"damage": True}, "damaged"),
        ({"skip_existing": False}, "skip_existing is off"),
        ({"vae_dtype": "fp32"}, "fresh"),
    ],
)
def test_what_no_longer_fits_is_made_again_with_the_reason(change, why, dino, dataset, tmp_path):
    plan, _ = build(dataset(), settings(dino))
    folder, first = dino, dino_path(plan.items[0].latent_path)
    if "model" in change:
        folder = save_dino(tmp_path / "other", seed=1)
    if "source" in change:
        write_captioned(tmp_path / "clips" / "a.mp4", moving_square(10, 96, 64))
    if "damage" in change:
        first.write_bytes(first.read_bytes()[:100])
    more = {key: change[key] for key in ("skip_existing", "vae_dtype") if key in change}
    chosen = settings(folder, change.get("size", SIZE), **more)
    plan = plan_dataset(dataset(**change.get("general", {})))
    due = due_of("dino", plan, recipe(chosen))
    job = next(due.kinds[0].jobs())
    if why is None:
        assert job.path in [one.path for one in due.jobs]
        assert job.path not in due.replaced
    elif why == "fresh":
        assert not due.jobs
    else:
        assert why in due.replaced[job.path]
        _, report = build(dataset(**change.get("general", {})), chosen)
        assert report.made
        assert job.kind.check(job).fresh


def test_a_copy_of_the_model_is_the_same_model(dino, tmp_path):
    shutil.copytree(dino, tmp_path / "copy")
    one, other = (DinoModel.find(DinoSettings(model=folder)).fingerprint for folder in (dino, tmp_path / "copy"))
    assert one == other
    config = json.loads((dino / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2}))
    assert DinoModel.find(DinoSettings(model=tmp_path / "copy")).fingerprint != one


# --- refused ---------------------------------------------------------------------------------------------------------


def test_a_size_between_patches_is_refused_with_its_neighbours(dino):
    with pytest.raises(ConfigError, match=r"cache\.dino\.size is 500.*14 pixels\. Set it to 490 or 504"):
        DinoModel.find(DinoSettings(model=dino, size=500))
    assert DinoModel.find(DinoSettings(size=500)) is None  # without a model it is of no concern


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: shutil.rmtree(folder), r"cache\.dino\.model: .*is not a folder.*facebook/dinov2-base"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not the description of a model"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'), "of type 'vit', not DINOv2"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "dinov2", "patch_size": "a"}'),
            "patch_siz",
        ),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), "has no model.safetensors"),
    ],
)
def test_folders_that_hold_no_dinov2_are_refused(spoil, says, dino, tmp_path):
    shutil.copytree(dino, tmp_path / "x")
    spoil(tmp_path / "x")
    with pytest.raises(ConfigError, match=says):
        DinoModel.find(DinoSettings(model=tmp_path / "x"))


def test_a_name_of_torch_hub_says_what_to_download():
    with pytest.raises(ConfigError, match=r"Nothing is downloaded.*facebook/dinov2-large"):
        DinoModel.find(DinoSettings(model="dinov2_vitl14"))


def test_weights_that_lack_a_part_are_refused_instead_of_being_random(dino, tmp_path):
    shutil.copytree(dino, tmp_path / "x")
    with safe_open(str(dino / "model.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != "layernorm.weight"}
    write_tensors(tmp_path / "x" / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks layernorm\.weight"):
        DinoModel.find(DinoSettings(model=tmp_path / "x")).open("cpu")
    truncate(tmp_path / "x" / "model.safetensors")
    with pytest.raises(CheckpointError):
        DinoModel.find(DinoSettings(model=tmp_path / "x"))


# --- work ------------------------------------------------------------------------------------------------------------


def test_few_frames_at_a_time_and_nothing_is_left_behind(dino, dataset):
    model, sizes, networks = DinoModel.find(settings(dino).dino), [], []

    def open_model():
        network = model.open("cpu")
        network.register_forward_pre_hook(lambda _, __, more: sizes.append(len(more["pixel_values"])), with_kwargs=True)
        networks.append(weakref.ref(network))
        return network

    encode_dino(plan_dataset(dataset()), model, settings(dino), open_model=open_model)
    assert sizes == [4, 4, 1, 4, 4, 1, 1]
    gc.collect()
    assert [network() for network in networks] == [None]


def test_features_that_are_not_finite_are_never_stored(dino, dataset, tmp_path):
    with safe_open(str(dino / "model.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    tensors["layernorm.bias"][3] = 1e30  # a number, but none in float16
    shutil.copytree(dino, tmp_path / "x")
    write_tensors(tmp_path / "x" / "model.safetensors", tensors, {"format": "pt"})
    plan, report = build(dataset(), settings(tmp_path / "x"))
    assert report.made == 0
    assert "not finite" in report.failed[0].reason
    assert not list(tmp_path.glob("cache*/*_dino*"))
    chosen = settings(tmp_path / "x")
    rows = cache_status(plan, recipe(chosen)).of("failed")
    assert {row.kind for row in rows} == {"dino"}
    assert "not finite" in rows[0].why


def test_a_clip_that_breaks_is_left_out_and_the_rest_is_made(dino, dataset, monkeypatch):
    real = module.read_clip

    def read(item, entry):
        if item.kind == "video":
            raise DataError("broken", item.source.path)
        return real(item, entry)

    monkeypatch.setattr(module, "read_clip", read)
    _, report = build(dataset(), settings(dino))
    assert (report.made, [failure.path.name for failure in report.failed]) == (1, ["a.mp4"])


def test_a_full_device_names_what_to_lower(dino, dataset):
    model = DinoModel.find(settings(dino).dino)

    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    def open_model():
        network = model.open("cpu")
        network.forward = full
        return network

    with pytest.raises(OutOfMemory, match=r"4 frames of 42x42 together.*cache\.dino\.batch"):
        encode_dino(plan_dataset(dataset()), model, settings(dino), open_model=open_model)


def test_a_stop_costs_one_clip(dino, dataset):
    class Impatient(Events):
        made = 0

        def progress(self, done, total, text=""):
            self.made = done

        def should_stop(self):
            return self.made >= 1

    plan = plan_dataset(dataset())
    with pytest.raises(Stopped):
        encode_dino(plan, DinoModel.find(settings(dino).dino), settings(dino), Impatient())
    _, report = build(dataset(), settings(dino))
    assert (report.made, report.kept) == (2, 1)


def test_the_space_they_take_is_told_before_it_is_taken(dino, dataset, monkeypatch):
    chosen = settings(dino)
    plan = plan_dataset(dataset())

    def need():
        model = DinoModel.find(chosen.dino)
        return CacheNeed.of(plan, CacheRecipe(chosen, dino=model, text_widths=(8,)))

    before = need()
    wanted = {path: size for path, size in before.sizes.items() if path.name.endswith(DINO_SUFFIX)}
    assert len(wanted) == 3
    assert "3 dino" in before.text_line()
    build(dataset(), chosen)
    for path, size in wanted.items():
        assert path.stat().st_size == pytest.approx(size, abs=300)  # the header is estimated
    assert not need().dues["dino"].jobs
    chosen = settings(dino, size=56)
    monkeypatch.setattr(disk, "_free", lambda _: 10)
    with pytest.raises(RunError, match=r"cache\.dino\.size"):
        need().require_room(Events())


# --- beside the other caches -----------------------------------------------------------------------------------------


def community(path, frames=9, patches=9, width=32):
    """A file as the community trainer writes it."""
    metadata = {"dino_model": "dinov2_vitb14", "dino_dim": str(width), "num_frames": "9", "num_patches": str(patches)}
    write_tensors(path, {DINO_KEY: torch.zeros(frames, patches, width, dtype=torch.float16)}, metadata)


def test_a_file_of_the_community_trainer_is_taken_by_its_shape(dino, dataset, monkeypatch):
    plan = plan_dataset(dataset())
    for item in plan.items:
        if not item.validation:
            community(dino_path(item.latent_path), item.window.count)
    monkeypatch.setattr(dino_model, "load_dinov2", lambda *_: pytest.fail("nothing is to be made"))
    assert build(dataset(), settings(dino))[1].kept == 3
    monkeypatch.undo()
    first = dino_path(plan.items[0].latent_path)
    community(first, frames=17)
    job = next(DinoFeatures(plan, recipe(settings(dino))).jobs())
    without_model = DinoFeatures(plan, recipe(settings(None)))
    assert job.kind.check(job).stale == "its features are 17x9x32, 9x9x32 are needed"
    assert without_model.check(job).stale == "its features are 17x9x32, 9x9x32 are needed"
    community(first, patches=16)
    assert without_model.check(job).fresh
    assert job.kind.check(job).stale is not None


def test_status_knows_them_and_clean_takes_none_that_a_sample_has(dino, dataset, tmp_path):
    def rows(state, chosen=None):
        chosen = chosen or settings(dino)
        status = cache_status(plan_dataset(dataset()), recipe(chosen))
        return [row for row in status.of(state) if row.kind == "dino"]

    assert len(rows("missing")) == 3
    assert rows("missing", settings(None)) == []
    plan, _ = build(dataset(), settings(dino))
    assert len(rows("present")) == len(rows("present", settings(None))) == 3
    gone = tmp_path / "cache" / "gone_00000-009_0064x0064_ltx2_dino.safetensors"
    shutil.copy(dino_path(plan.items[0].latent_path), gone)
    for chosen in (settings(dino), settings(None)):
        assert [row.path for row in rows("orphaned", chosen)] == [gone]
    assert len(rows("stale", settings(dino, size=56))) == 3
    assert remove_caches(rows("orphaned")) > 0
    assert not gone.exists()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"other": torch.zeros(2)}, "holds no dino_features"),
        ({DINO_KEY: torch.zeros(9, 32)}, r"has shape \[9, 32\]"),
        ({DINO_KEY: torch.zeros(9, 7, 32)}, "patches of a square"),
        ({DINO_KEY: torch.full((1, 1, 4), float("nan"))}, "not finite"),
    ],
)
def test_files_that_hold_something_else_are_refused(tensors, says, tmp_path):
    write_tensors(tmp_path / "x_ltx2_dino.safetensors", tensors)
    with pytest.raises(CacheError, match=says):
        read_dino(tmp_path / "x_ltx2_dino.safetensors")


def test_a_missing_file_says_how_it_is_made(tmp_path):
    with pytest.raises(CacheError, match=r"missing\. Set cache\.dino\.model.*cache build"):
        read_dino(tmp_path / "x_ltx2_dino.safetensors")
