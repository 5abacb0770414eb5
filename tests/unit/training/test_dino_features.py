"""DINOv2 features that CREPA compares with: missing, of something else, or replaced while a run trains."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from unit.training.regularized import make_batch
from unit.training.step_parts import SHAPE

from ltx2_train.caching.dino import DINO_KEY, dino_path
from ltx2_train.caching.notes import note_damage
from ltx2_train.config import make_run
from ltx2_train.errors import CacheError
from ltx2_train.feed.loader import TrainingSet
from ltx2_train.files import write_tensors
from ltx2_train.training.regularizers import checks
from ltx2_train.training.regularizers.checks import check_samples_of
from ltx2_train.training.regularizers.crepa import Crepa

BLOCKS = {"student_block": 1, "teacher_block": 2}


@pytest.fixture
def samples(tmp_path):
    """Two clips with latents, and features of 3 x 3 patches."""
    made = [
        replace(one, latent_path=tmp_path / f"{one.key}_64x64_ltx2.safetensors") for one in make_batch([0, 0]).samples
    ]
    for sample in made:
        write_tensors(sample.latent_path, {"latents_2x2x2_float32": torch.zeros(1, 2, 2, 2)})
        write_tensors(dino_path(sample.latent_path), {DINO_KEY: torch.zeros(SHAPE.video().frames, 9, 16).half()})
    return made


def test_clips_without_features_or_with_others_are_refused(samples):
    run = make_run({"regularizers": {"crepa": {"weight": 1, "mode": "dino", **BLOCKS}}})
    first, second = samples

    def check(*samples):
        check_samples_of(run, TrainingSet(samples, (), (1,)), None)

    check(first, second)
    missing = replace(second, latent_path=second.latent_path.with_name("other_64x64_ltx2.safetensors"))
    with pytest.raises(CacheError, match="1 of 2 clips have no DINOv2 features"):
        check(first, missing)
    with pytest.raises(CacheError, match="are of 9 frames, and the clip has 17"):
        check(replace(first, shape=replace(SHAPE, frames=3)))
    write_tensors(dino_path(second.latent_path), {DINO_KEY: torch.zeros(SHAPE.video().frames, 9, 8).half()}, {})
    with pytest.raises(CacheError, match="of several models"):
        check(first, second)


def crepa_of(run, data):
    return SimpleNamespace(settings=run.regularizers.crepa, kit=SimpleNamespace(data=data))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"source": '{"sha256": "b"}'}, "are of another clip than its latents"),
        ({"settings": '{"window": "00000-009", "dino_size": 28}'}, r"made otherwise: window changed"),
        ({"settings": '{"window": "00008-009", "dino_size": 42}'}, r"dino_size changed \(42 -> 28\)"),
        ({"checkpoint": "another"}, "made with another DINOv2 model"),
    ],
)
def test_features_of_something_else_are_refused(samples, tmp_path, monkeypatch, said, words):
    model = SimpleNamespace(fingerprint="the model", size=28)
    monkeypatch.setattr(checks.DinoModel, "find", lambda settings: model)
    dino = {"model": str(tmp_path), "size": 28}
    crepa = {"weight": 1, "mode": "dino", **BLOCKS}
    run = make_run({"regularizers": {"crepa": crepa}, "cache": {"dino": dino}})
    sample = samples[0]
    of_both = {"format_version": "1", "source": '{"sha256": "a"}'}
    latents = {**of_both, "settings": '{"window": "00008-009", "vae_dtype": "fp32"}'}
    write_tensors(sample.latent_path, {"latents_2x2x2_float32": torch.zeros(1, 2, 2, 2)}, latents)
    features = {**of_both, "settings": '{"window": "00008-009", "dino_size": 28}', "checkpoint": "the model"}
    path, tensors = dino_path(sample.latent_path), {DINO_KEY: torch.zeros(9, 9, 16).half()}
    data = TrainingSet((sample,), (), (1,))
    write_tensors(path, tensors, features)
    check_samples_of(run, data, None)
    data.opened(path)
    write_tensors(path, tensors, {**features, **said})
    with pytest.raises(CacheError, match=words):
        check_samples_of(run, data, None)
    with pytest.raises(CacheError, match="was replaced while the run was trained"):
        Crepa.draw(crepa_of(run, data), SimpleNamespace(video=1, samples=[sample]), None, 1)
    write_tensors(path, tensors, features)
    note_damage(path, "its bytes are not those that were written")
    with pytest.raises(CacheError, match="its bytes are not those that were written"):
        check_samples_of(run, data, None)
