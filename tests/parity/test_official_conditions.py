"""Each condition beside the official trainer: what the model is shown, and the loss. Its numbers are frozen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.official_conditions import (
    CASES,
    FPS,
    NUMBERS,
    SIGMAS,
    STEPS,
    Case,
    exact_weights,
    inputs,
    marks,
    noise_of,
    prediction_of,
    text_of,
)
from torch import Tensor

from ltx2_train.config import RunConfig, make_run
from ltx2_train.feed.batches import Batch, GivenData
from ltx2_train.feed.loader import Sample
from ltx2_train.shapes import LatentShape
from ltx2_train.training.noised import Noised, noised_audio, noised_video
from ltx2_train.weights.load import load_transformer

OFFICIAL = json.loads(NUMBERS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("exact") / "tiny.safetensors"
    shutil.copyfile(tiny.checkpoint, checkpoint)
    exact_weights(checkpoint)
    return {mode: load_transformer(checkpoint, mode, torch.float32) for mode in ("video", "av", "audio")}


def settings_of(case: Case) -> dict[str, Any]:
    tables: dict[str, Any] = {"train": {"first_frame_probability": 0.0}}
    for stream in case.present:
        tables[stream] = {"generated": case.made(stream), "conditions": getattr(case, stream)}
    return tables


def batch_of(case: Case) -> Batch:
    made = inputs(case)
    shape = LatentShape(*case.size)
    asked = {(stream, one["type"]) for stream in case.present for one in getattr(case, stream)}

    def of(row: int, name: str, stream: str, kind: str) -> Tensor | None:
        return made[name][row] if (stream, kind) in asked else None

    def references(row: int, stream: str) -> tuple[Tensor, ...]:
        count = sum(one["type"] == "reference" for one in getattr(case, stream) or ())
        return tuple(made[f"{stream}_reference{number}"][row] for number in ("", "_2")[:count])

    samples, given = [], []
    for row in range(2):
        place = Path(f"{row}")
        samples.append(
            Sample(
                str(row), shape, FPS, "", place, place, kind="audio" if case.video is None else "video",
                audio_steps=0 if case.audio is None else STEPS, reference_temporal_scale=case.temporal_scale,
            )
        )  # fmt: skip
        given.append(
            GivenData(
                references(row, "video"),
                references(row, "audio"),
                of(row, "video_mask", "video", "mask"),
                of(row, "audio_mask", "audio", "mask"),
            )
        )
    latents = None if case.video is None else made["video"]
    audio = None if case.audio is None else made["audio"]
    return Batch(latents, samples, FPS, 0, 0, audio, None, given)


def noised(case: Case, run: RunConfig) -> dict[str, Noised]:
    """Both streams with the noise and the levels of the case."""
    batch, generator = batch_of(case), torch.Generator().manual_seed(1)
    found: dict[str, Noised] = {}
    if case.video is not None:
        found["video"] = noised_video(batch, run, "2.3", generator, 0)
    if batch.audio is not None:
        lengths = [STEPS, STEPS]
        found["audio"] = noised_audio(batch, batch.audio, lengths, found.get("video"), run, "2.3", generator, 0)
    return {
        stream: replace(
            one,
            noise=noise_of(stream, *one.clean.shape[1:]),
            sigma=torch.tensor(SIGMAS) if case.made(stream) else torch.zeros(2),
        )
        for stream, one in found.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_condition_is_prepared_as_the_official_trainer_prepares_it(name, models):
    case, theirs = CASES[name], OFFICIAL[name]
    mode = "av" if len(case.present) == 2 else case.present[0]
    run, model = make_run({"model": {"mode": mode}, **settings_of(case)}), models[mode]
    streams = noised(case, run)
    widths = {"video": model.config.video.width, "audio": model.config.audio.width}
    shown = {stream: one.modality(text_of(stream, widths[stream])) for stream, one in streams.items()}
    for stream, modality in shown.items():
        expected = theirs[stream]
        assert list(modality.latent.shape) == expected["shape"]
        assert modality.sigma.tolist() == expected["sigma"]
        timesteps = modality.token_timesteps.expand(modality.latent.shape[:2])
        positions = modality.positions.expand(2, -1, -1, -1)
        assert marks(modality.latent) == pytest.approx(expected["latent"], abs=1e-6)
        assert marks(timesteps) == pytest.approx(expected["timesteps"], abs=1e-6)
        assert marks(positions) == pytest.approx(expected["positions"], abs=1e-6, rel=1e-6)

    def loss(predictions: dict[str, Tensor]) -> list[float]:
        parts = [one.losses(predictions[stream], run) for stream, one in streams.items() if case.made(stream)]
        return torch.stack(parts).sum(0).tolist()

    waves = {stream: prediction_of(stream, *modality.latent.shape[1:]) for stream, modality in shown.items()}
    assert loss(waves) == pytest.approx(theirs["loss_of_wave"], abs=1e-6, rel=1e-6)
    with torch.no_grad():
        out = model(shown.get("video"), shown.get("audio"))
    predicted = {stream: value for stream in shown if (value := getattr(out, stream)) is not None}
    assert loss(predicted) == pytest.approx(
        theirs["loss_of_model"], abs=1e-6, rel=2e-5
    )  # the order of sums is the processor's
