"""What the official trainer of LTX-2 makes of each condition, frozen as a few numbers a case.

    python tests/parity/official_conditions.py CHECKOUT    # of github.com/Lightricks/LTX-2

runs its strategy and its model, as the checkout has them, on the inputs below and a tiny checkpoint of ours, and writes
official_conditions.json. test_official_conditions.py makes the same inputs our way. Inputs are sine waves and weights
whole numbers over a power of two, so that no generator of random numbers and no processor has a say.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

NUMBERS = Path(__file__).with_suffix(".json")
FPS = 25.0
SIGMAS = (0.3, 0.8)  # of the two samples of each case
TEXT = 8  # tokens
STEPS = 12  # of sound
REFERENCE_STEPS = 7


@dataclass(frozen=True)
class Case:
    """Conditions of both streams in the official trainer's words, and the latent sizes (frames, rows, columns)."""

    video: list[dict[str, Any]] | None = None
    audio: list[dict[str, Any]] | None = None
    generated: tuple[bool, bool] = (True, True)
    size: tuple[int, int, int] = (3, 4, 4)
    reference: tuple[int, int, int] | None = None
    temporal_scale: int = 1
    second: tuple[int, int, int] | None = None  # of a second reference

    @property
    def present(self) -> list[str]:
        return [name for name in ("video", "audio") if getattr(self, name) is not None]

    def made(self, stream: str) -> bool:
        return self.generated[("video", "audio").index(stream)]


REFERENCE = {"type": "reference"}
CASES = {
    "picture alone": Case([]),
    "first frame": Case([{"type": "first_frame"}]),
    "prefix": Case([{"type": "prefix", "temporal_boundary": 2}]),
    "suffix": Case([{"type": "suffix", "temporal_boundary": 1}]),
    "spatial crop": Case([{"type": "spatial_crop", "spatial_region": [0, 32, 64, 120]}]),
    "mask": Case([{"type": "mask"}]),
    "reference": Case([REFERENCE], reference=(3, 4, 4)),
    "still reference": Case([REFERENCE], reference=(1, 4, 4)),
    "small reference": Case([REFERENCE], reference=(3, 2, 2)),
    "slow reference": Case([REFERENCE], size=(5, 4, 4), reference=(3, 4, 4), temporal_scale=2),
    "small and slow reference": Case([REFERENCE], size=(5, 4, 4), reference=(3, 2, 2), temporal_scale=2),
    "several together": Case(
        [{"type": "first_frame"}, {"type": "suffix", "temporal_boundary": 1}, {"type": "mask"}, REFERENCE],
        reference=(3, 2, 2),
    ),
    "sound alone": Case(audio=[]),
    "prefix of sound": Case(audio=[{"type": "prefix", "temporal_boundary": 3}]),
    "suffix of sound": Case(audio=[{"type": "suffix", "temporal_boundary": 4}]),
    "mask of sound": Case(audio=[{"type": "mask"}]),
    "reference sound": Case(audio=[REFERENCE]),
    "picture and sound": Case([], []),
    "sound given": Case([], [], generated=(True, False)),
    "picture given": Case([], [], generated=(False, True)),
    "sound given and first frame": Case([{"type": "first_frame"}], [], generated=(True, False)),
    "references of both": Case([REFERENCE], [REFERENCE], reference=(3, 4, 4)),
    "two references": Case([REFERENCE, REFERENCE], reference=(3, 4, 4), second=(1, 4, 4)),
    "two small and slow references": Case(
        [REFERENCE, REFERENCE], size=(5, 4, 4), reference=(3, 2, 2), temporal_scale=2, second=(3, 2, 2)
    ),
    "two references among others": Case(
        [REFERENCE, {"type": "first_frame"}, REFERENCE, {"type": "mask"}],
        [REFERENCE],
        reference=(1, 4, 4),
        second=(3, 4, 4),
    ),
    "two reference sounds": Case(audio=[REFERENCE, REFERENCE]),
    "two references of both": Case([REFERENCE] * 2, [REFERENCE] * 2, reference=(3, 4, 4), second=(2, 4, 4)),
    "reference beside a given sound": Case([REFERENCE], [], generated=(True, False), reference=(3, 2, 2)),
}


def wave(*shape: int, phase: float) -> Tensor:
    """Numbers of about the spread of latents, float32."""
    count = torch.Size(shape).numel()
    return (1.4 * torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + phase)).float().reshape(shape)


def exact_weights(checkpoint: Path) -> None:
    """Replace the weights of the transformer in a checkpoint by numbers that bf16 holds exactly."""
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(checkpoint)
    for number, name in enumerate(sorted(name for name in tensors if name.startswith("model.diffusion_model."))):
        old = tensors[name]
        place = torch.arange(old.numel(), dtype=torch.int64) + 7919 * number
        whole = ((place * place % 65_521 * 31 + place * 17) % 127 - 63).reshape(old.shape)
        if old.ndim < 2:
            one = 1.0 if name.endswith("_norm.weight") else 0.0
            new = one + whole.double() / 1024 * (8 if one else 1)
        else:
            new = whole.double() / 32 / 2 ** round(math.log2(old[0].numel()) / 2)
        tensors[name] = new.to(old.dtype)
        assert torch.equal(tensors[name].double(), new), name
    save_file(tensors, checkpoint, metadata)


def inputs(case: Case) -> dict[str, Tensor]:
    """Everything that a case is made of: latents, references, masks (true where given), texts."""
    frames, rows, columns = case.size
    tokens = frames * rows * columns
    found = {
        "video": wave(2, 128, frames, rows, columns, phase=0.1),
        "audio": wave(2, 8, STEPS, 16, phase=0.2),
        "video_mask": (wave(2, tokens, phase=0.3) > 0.4).reshape(2, frames, rows, columns),
        "audio_mask": wave(2, STEPS, phase=0.4) > 0.4,
        "audio_reference": wave(2, 8, REFERENCE_STEPS, 16, phase=0.5),
        "audio_reference_2": wave(2, 8, REFERENCE_STEPS - 2, 16, phase=0.51),
    }
    if case.reference is not None:
        found["video_reference"] = wave(2, 128, *case.reference, phase=0.6)
    if case.second is not None:
        found["video_reference_2"] = wave(2, 128, *case.second, phase=0.61)
    return found


def text_of(stream: str, width: int) -> Tensor:
    return wave(2, TEXT, width, phase=0.7 if stream == "video" else 0.8)


def noise_of(stream: str, tokens: int, channels: int) -> Tensor:
    return wave(2, tokens, channels, phase=1.1 if stream == "video" else 1.2)


def prediction_of(stream: str, tokens: int, channels: int) -> Tensor:
    """A prediction of no model, reference tokens included."""
    return wave(2, tokens, channels, phase=2.1 if stream == "video" else 2.2)


def marks(value: Tensor) -> list[float]:
    """A few numbers that change with any entry of `value` and with their order."""
    flat = value.detach().double().flatten()
    place = torch.arange(len(flat), dtype=torch.float64)
    return [float(flat.mean()), *(float((flat * torch.cos(step * place)).mean()) for step in (0.7, 1.9))]


# --- what follows runs the official trainer


def _official_config(case: Case) -> dict[str, Any]:
    config: dict[str, Any] = {"name": "flexible"}
    for stream in case.present:
        conditions = []
        names = iter((f"{stream}_reference", f"{stream}_reference_2"))
        for one in getattr(case, stream):
            places = {"mask": {"mask_dir": f"{stream}_mask"}}
            if one["type"] == "reference":
                places["reference"] = {"latents_dir": next(names)}
            conditions.append({**one, **places.get(one["type"], {})})
        config[stream] = {"is_generated": case.made(stream), "latents_dir": stream, "conditions": conditions}
    return config


def _official_batch(case: Case, widths: dict[str, int]) -> dict[str, Any]:
    made = inputs(case)

    def video(latents: Tensor, fps: float) -> dict[str, Any]:
        _, _, frames, rows, columns = latents.shape
        numbers = {"fps": fps, "num_frames": frames, "height": rows, "width": columns}
        return {"latents": latents, **{name: torch.tensor([number] * 2) for name, number in numbers.items()}}

    batch: dict[str, Any] = {
        "video_latents": video(made["video"], FPS),
        "audio_latents": {"latents": made["audio"]},
        "video_mask": {"mask": made["video_mask"].float()},
        "audio_mask": {"mask": made["audio_mask"].float()},
        "audio_reference": {"latents": made["audio_reference"]},
        "audio_reference_2": {"latents": made["audio_reference_2"]},
        "conditions": {
            "video_prompt_embeds": text_of("video", widths["video"]),
            "audio_prompt_embeds": text_of("audio", widths["audio"]),
            "prompt_attention_mask": torch.ones(2, TEXT, dtype=torch.int64),
        },
    }
    for name in ("video_reference", "video_reference_2"):
        if name in made:
            batch[name] = video(made[name], FPS / case.temporal_scale)
    return batch


def freeze(checkout: Path) -> dict[str, Any]:
    """The numbers of all cases."""
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(checkout / "packages" / name / "src") for name in ("ltx-core", "ltx-trainer")] + [str(root)]
    from ltx_core.loader.single_gpu_model_builder import SingleGPUModelBuilder
    from ltx_core.model.transformer.model_configurator import LTXV_MODEL_COMFY_RENAMING_MAP, LTXModelConfigurator
    from ltx_trainer.training_strategies.flexible import FlexibleStrategy, FlexibleStrategyConfig

    from ltx2_train.models.config import TransformerConfig
    from ltx2_train.weights.load import load_transformer
    from ltx2_train.weights.tiny import make_tiny

    checkpoint = make_tiny(Path(tempfile.mkdtemp()), version="2.3").checkpoint
    exact_weights(checkpoint)
    config = load_transformer(checkpoint, "av", torch.float32).config
    assert isinstance(config, TransformerConfig)
    widths = {"video": config.video.width, "audio": config.audio.width}
    model = SingleGPUModelBuilder(
        model_path=str(checkpoint),
        model_class_configurator=LTXModelConfigurator,
        model_sd_ops=LTXV_MODEL_COMFY_RENAMING_MAP,
    ).build(device=torch.device("cpu"), dtype=torch.float32)
    real_noise = torch.randn_like

    class Fixed:
        def sample_for(self, batch: Tensor) -> Tensor:
            return torch.tensor(SIGMAS)

    frozen: dict[str, Any] = {}
    for name, case in CASES.items():
        strategy = FlexibleStrategy(FlexibleStrategyConfig(**_official_config(case)))
        if case.reference is not None:
            strategy.reference_spatial_scale_factor = case.size[1] // case.reference[1]
            strategy.reference_temporal_scale_factor = case.temporal_scale
        order = iter([stream for stream in case.present if case.made(stream)])
        torch.randn_like = lambda like, order=order: noise_of(next(order), like.shape[1], like.shape[2])
        try:
            prepared = strategy.prepare_training_inputs(_official_batch(case, widths), Fixed())
        finally:
            torch.randn_like = real_noise
        given = {stream: getattr(prepared, stream) for stream in case.present}
        entry: dict[str, Any] = {}
        for stream, modality in given.items():
            entry[stream] = {
                "shape": list(modality.latent.shape),
                "sigma": modality.sigma.tolist(),
                "latent": marks(modality.latent),
                "timesteps": marks(modality.timesteps),
                "positions": marks(modality.positions),
            }
        waves = {one: prediction_of(one, *modality.latent.shape[1:]) for one, modality in given.items()}
        entry["loss_of_wave"] = strategy.compute_loss(waves.get("video"), waves.get("audio"), prepared).tolist()
        with torch.no_grad():
            video, audio = model(video=prepared.video, audio=prepared.audio, perturbations=None)
        entry["loss_of_model"] = strategy.compute_loss(video, audio, prepared).tolist()
        frozen[name] = entry
    return frozen


if __name__ == "__main__":
    NUMBERS.write_text(json.dumps(freeze(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
