"""Fixtures that many tests share: tiny checkpoints in the real format, and a run on one drawn clip."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from pathlib import Path

# Tiny models are faster on one thread, and workers that run side by side must not fight for the cores. Set before torch
# is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import plan_memo
import pytest

# Else each of the processes that tests start, and the pack under a name of its own, would compile the program anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_modules_frozen = 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    global _modules_frozen
    plan_memo.install(rough=item.path.parent.name in ("e2e", "host") and item.get_closest_marker("exact_plan") is None)
    # a run collects garbage as it lets go of a model, and most of such a collection is the walk through all that torch
    # and transformers made at import: half a second each time, in thousands of runs
    if len(sys.modules) > _modules_frozen + 50:
        _modules_frozen = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """A tiny LTX-2.3 checkpoint with its Gemma; read only."""
    from ltx2_train.weights.tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny23"), version="2.3")


@pytest.fixture(scope="session")
def tiny20(tmp_path_factory: pytest.TempPathFactory):
    """A tiny LTX-2.0 checkpoint with its Gemma; read only."""
    from ltx2_train.weights.tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny20"), version="2.0")


@pytest.fixture(scope="session")
def tiny25(tmp_path_factory: pytest.TempPathFactory):
    """The four files of a tiny LTX-2.5; read only."""
    from ltx2_train.weights.tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny25"), version="2.5")


@pytest.fixture(scope="session")
def drawn_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 40 frames with motion and a tone; read only."""
    from ltx2_train.cli.demo import draw_clip

    return draw_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


RUN = """\
[run]
name = "r"
[model]
checkpoint = '{checkpoint}'
text_encoder = '{encoder}'
precision = "fp32"
device = "cpu"
[data]
config = "dataset.toml"
[cache]
vae_dtype = "fp32"
latents_dtype = "fp32"
[lora]
rank = 4
[train]
steps = 6
learning_rate = 1e-3
save_every = 0
[sample]
every = 0
width = 64
height = 64
frames = 9
steps = 2
guidance = 1.0
stg = 0.0
"""

DATASET = """\
[general]
resolution = [64, 64]
target_frames = [9]
frame_extraction = "uniform"
frame_sample = 3
[[datasets]]
video_directory = "clips"
cache_directory = "cache"
"""


def _run_folder(folder: Path, tiny, clip: Path, caption: str = "a red ball bounces", model: str = "") -> Path:
    """`folder` with one captioned clip, its dataset.toml and its run.toml; the lines `model` are added to [model]."""
    (folder / "clips").mkdir()
    shutil.copy2(clip, folder / "clips" / "clip.mp4")
    (folder / "clips" / "clip.txt").write_text(caption)
    (folder / "dataset.toml").write_text(DATASET)
    text = RUN.format(checkpoint=tiny.checkpoint, encoder=tiny.text_encoder)
    (folder / "run.toml").write_text(text.replace("[model]\n", f"[model]\n{model}", 1))
    return folder


@pytest.fixture(scope="session")
def cached_folder(tiny, drawn_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.toml, dataset.toml, one clip (three windows) and its caches; read only, see `run_file`."""
    from ltx2_train import build_caches, load_run

    folder = _run_folder(tmp_path_factory.mktemp("run"), tiny, drawn_clip)
    build_caches(load_run(folder / "run.toml"))
    return folder


@pytest.fixture(scope="module")
def folder25(tiny25, drawn_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one clip and the files of a run of LTX-2.5, for the tests of one module."""
    vaes = f"video_vae = '{tiny25.video_vae}'\naudio_vae = '{tiny25.audio_vae}'\n"
    return _run_folder(tmp_path_factory.mktemp("run25"), tiny25, drawn_clip, model=vaes)


@pytest.fixture
def all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of data that a dataset file can give has a use, as if there were a feature for each."""
    from ltx2_train.training import unused

    monkeypatch.setattr(unused, "CONSUMERS", {one: [lambda run: True] for one in unused.CONSUMERS})


@pytest.fixture
def run_file(cached_folder: Path, tmp_path: Path) -> Path:
    """A run file of its own for one test, with clip and caches in place."""
    shutil.copytree(cached_folder, tmp_path / "work")
    return tmp_path / "work" / "run.toml"


@pytest.fixture(scope="session")
def cached_sound_folder(tiny, drawn_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `cached_folder`, for the mode av: the caches hold the sound too; read only, see `sound_run_file`."""
    from ltx2_train import build_caches, load_run

    caption, model = "a red ball bounces to a tune", 'mode = "av"\n'
    folder = _run_folder(tmp_path_factory.mktemp("sound_run"), tiny, drawn_clip, caption, model)
    build_caches(load_run(folder / "run.toml"))
    return folder


@pytest.fixture
def sound_run_file(cached_sound_folder: Path, tmp_path: Path) -> Path:
    """A run file of mode av of its own for one test, with clip and caches in place."""
    shutil.copytree(cached_sound_folder, tmp_path / "work")
    return tmp_path / "work" / "run.toml"
