"""The validation loss: the same clips at the same noise every time, and nothing of the training is moved by it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltx2_train import Events, build_caches, load_run, train
from ltx2_train.errors import ConfigError
from ltx2_train.lora.file import load_lora_state
from ltx2_train.training.metrics import read_rows

HELD_OUT = """\
[[validation_datasets]]
image_directory = "held_out"
cache_directory = "cache_held_out"
"""


class Heard(Events):
    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []

    def message(self, text, level="info"):
        self.messages.append((level, text))


@pytest.fixture(scope="module")
def held_out_folder(cached_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cached_folder` with two pictures that are not trained on, cached too."""
    folder = tmp_path_factory.mktemp("held_out") / "work"
    shutil.copytree(cached_folder, folder)
    (folder / "held_out").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "held_out" / f"still{index}.png")
        (folder / "held_out" / f"still{index}.txt").write_text(f"a still {index}")
    (folder / "dataset.toml").write_text((folder / "dataset.toml").read_text() + HELD_OUT)
    build_caches(load_run(folder / "run.toml", ["validation.every=1"]))
    return folder


@pytest.fixture
def held_out_run(held_out_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(held_out_folder, tmp_path / "work")
    return tmp_path / "work" / "run.toml"


def weights(path: Path):
    return {name: (entry.down, entry.up) for name, entry in load_lora_state(path).entries.items()}


def test_a_run_that_is_measured_learns_what_one_that_is_not_learns_to_the_bit(held_out_run):
    more = ["train.save_precision=fp32", "lora.dropout=0.1", "train.steps=2"]
    heard = Heard()
    measured = train(load_run(held_out_run, ["run.name=measured", *more, "validation.every=1"]), heard)
    dataset = held_out_run.parent / "dataset.toml"
    dataset.write_text(dataset.read_text().replace(HELD_OUT, ""))
    plain = train(load_run(held_out_run, ["run.name=plain", *more]))

    found = read_rows(measured.folder / "metrics.jsonl")
    expected = read_rows(plain.folder / "metrics.jsonl")
    names = ("step", "loss", "loss_video", "grad_norm", "lr", "sigma")
    assert [[row[name] for name in names] for row in found[1:]] == [[row[name] for name in names] for row in expected]
    for name, (down, up) in weights(plain.lora).items():
        assert down.equal(weights(measured.lora)[name][0])
        assert up.equal(weights(measured.lora)[name][1])

    assert [row["step"] for row in found] == [0, 1, 2]
    levels = [f"val_loss_video_at_{sigma}" for sigma in (0.125, 0.375, 0.625, 0.875)]
    for row in found:
        assert row["val_loss"] == row["val_loss_video"] == pytest.approx(sum(row[name] for name in levels) / 4)
    assert len({row["val_loss"] for row in found}) == 3, "the LoRA moved"
    assert ("info", f"Validation loss before the first step: {found[0]['val_loss']:.4f}, 2 clips.") in heard.messages


def test_the_same_weights_measure_the_same_and_a_failure_is_said(held_out_run):
    """A rate of almost nothing leaves the LoRA where it is."""
    cache = next((held_out_run.parent / "cache_held_out").glob("*_ltx2.safetensors"))

    class Breaks(Heard):
        def step(self, metrics):
            if metrics["step"] == 2:
                cache.write_bytes(cache.read_bytes()[:-4000])

    heard = Breaks()
    more = ["validation.every=1", "train.learning_rate=1e-30", "train.steps=3"]
    result = train(load_run(held_out_run, more), heard)
    rows = read_rows(result.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["val_loss"] == rows[1]["val_loss"] == rows[2]["val_loss"]
    assert "val_loss" not in rows[3]
    assert any(level == "warning" and "after step 3 is left out" in text for level, text in heard.messages)


def test_what_cannot_be_measured_or_means_nothing_is_refused_by_name(held_out_run):
    dataset = held_out_run.parent / "dataset.toml"
    text = dataset.read_text()
    with pytest.raises(ConfigError, match=r"validation_datasets: Set validation\.every"):
        train(load_run(held_out_run))
    dataset.write_text(text.replace(HELD_OUT, ""))
    with pytest.raises(ConfigError, match=r"validation\.every is set, and the dataset file has no"):
        train(load_run(held_out_run, ["validation.every=2"]))
    shutil.copytree(held_out_run.parent / "cache", held_out_run.parent / "cache_held_out", dirs_exist_ok=True)
    dataset.write_text(
        text.replace(HELD_OUT, HELD_OUT.replace('image_directory = "held_out"', 'video_directory = "clips"'))
    )
    with pytest.raises(ConfigError, match=r"clips/clip.mp4 of \[\[validation_datasets\]\] is clip.mp4, which is"):
        build_caches(load_run(held_out_run, ["validation.every=2"]))  # nothing is encoded for nothing
    with pytest.raises(ConfigError, match=r"validation/0/clip_0.* made from the same file as train/0/clip_0.* 2 more"):
        train(load_run(held_out_run, ["validation.every=2"]))
    dataset.write_text(text.replace('"cache_held_out"', '"cache"'))
    with pytest.raises(ConfigError, match=r"share the cache folder"):
        train(load_run(held_out_run, ["validation.every=2"]))
