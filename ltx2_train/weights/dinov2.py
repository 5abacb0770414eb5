"""DINOv2 from a folder in the format of Hugging Face, with registers or without.

    config.json  model.safetensors (or its shards)      model_type dinov2 or dinov2_with_registers

Nothing is downloaded and no code from a folder is run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..device import card_is_full
from ..errors import CheckpointError, ConfigError, OutOfMemory
from ..files import digest
from .reader import TensorFile

KINDS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
# By the width of their features, as torch.hub and the community trainer call them, and where they are on Hugging Face.
HUB_NAMES = {384: "dinov2_vits14", 768: "dinov2_vitb14", 1024: "dinov2_vitl14", 1536: "dinov2_vitg14"}
REPOSITORIES = {
    "dinov2_vits14": "facebook/dinov2-small",
    "dinov2_vitb14": "facebook/dinov2-base",
    "dinov2_vitl14": "facebook/dinov2-large",
    "dinov2_vitg14": "facebook/dinov2-giant",
}
# What else in config.json changes the features; sizes are told by the tensors.
_NUMBERS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "num_register_tokens", "patch_size", "model_type")
_BYTES = 4096


@dataclass(frozen=True)
class Dinov2Folder:
    """What the files of a model tell: features are `width` wide, one for each square of `patch` pixels."""

    path: Path
    kind: str
    width: int
    patch: int
    registers: int
    nbytes: int

    @property
    def name(self) -> str:
        """As torch.hub calls it (dinov2_vitb14, with _reg for registers); of other sizes, the name of the folder."""
        known = HUB_NAMES.get(self.width) if self.patch == 14 else None
        return self.path.name if known is None else known + ("_reg" if self.registers else "")

    def patches(self, size: int) -> int:
        """How many features a picture of `size` x `size` pixels has."""
        return (size // self.patch) ** 2


def inspect_dinov2(folder: Path, key: str) -> Dinov2Folder:
    """Read config.json and the headers. Raises ConfigError that speaks of the setting `key`."""
    config = _config(folder, key)
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ConfigError(
            f"{key}: {folder} holds a model of type {kind!r}, not DINOv2 ({' or '.join(KINDS)}). "
            f"Choose a folder such as that of {REPOSITORIES['dinov2_vitb14']}."
        )
    patch = config.get("patch_size", 14 if kind == "dinov2" else 16)
    width, registers = config.get("hidden_size", 768), config.get("num_register_tokens", 4)
    if not all(isinstance(value, int) and value >= least for value, least in ((patch, 1), (width, 1), (registers, 0))):
        raise ConfigError(
            f"{key}: {folder / 'config.json'} has no usable patch_size or hidden_size. Download it again."
        )
    files = _weights(folder)
    if not files:
        raise ConfigError(
            f"{key}: {folder} has no model.safetensors. Download the model with its safetensors file; "
            "weights of other formats (.bin, .pth) are not read."
        )
    registers = registers if kind == "dinov2_with_registers" else 0
    return Dinov2Folder(folder, kind, width, patch, registers, sum(file.stat().st_size for file in files))


def dinov2_fingerprint(folder: Dinov2Folder) -> str:
    """A short text that stands for the weights: all names, shapes and types, and the first bytes of each tensor.

    Copies of a folder have the same. Raises CheckpointError where a file is damaged.
    """
    config = _config(folder.path, "")
    pieces: list[str | bytes] = ["dinov2 1", *(f"{name} {config.get(name)}" for name in _NUMBERS)]
    tensors: dict[str, list[str | bytes]] = {}
    for path in _weights(folder.path):
        with TensorFile(path) as file:
            for name, info in file.tensors.items():
                count = min(_BYTES, info.nbytes)
                tensors[name] = [name, info.dtype, str(list(info.shape)), file.read_bytes(name, 0, count)]
    for name in sorted(tensors):
        pieces += tensors[name]
    return digest(*pieces)


def load_dinov2(folder: Dinov2Folder, device: torch.device | str, key: str) -> Any:
    """The model in float32 on `device`, ready to be asked. Raises ConfigError, CheckpointError, OutOfMemory."""
    import transformers

    kind = getattr(transformers, KINDS[folder.kind])
    try:
        model, report = kind.from_pretrained(
            folder.path, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        model = model.to(device).eval().requires_grad_(False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        if card_is_full(error):
            raise OutOfMemory(f"{key}: {folder.path} does not fit on {device}. Use a smaller model.") from error
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{key}: {folder.path} cannot be loaded as {kind.__name__}: {reason}.") from error
    # what a file lacks would silently be random numbers; the mask token alone is of no use here
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("mask_token"))
    if missing:
        more = f" and {len(missing) - 1} more weights" if missing[1:] else ""
        raise CheckpointError(f"{key}: {folder.path} lacks {missing[0]}{more}. Download the model again.")
    return model


def _config(folder: Path, key: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "is not a folder"
        repository = REPOSITORIES.get(folder.name.removesuffix("_reg"), REPOSITORIES["dinov2_vitb14"])
        raise ConfigError(
            f"{key}: {folder} {what}. Nothing is downloaded: name the folder of a DINOv2 model in the format of "
            f"Hugging Face, such as {repository}, with its config.json and model.safetensors."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error}. Download the model again.") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{key}: {path} is not the description of a model. Download the model again.")
    return config


def _weights(folder: Path) -> list[Path]:
    """The file of the weights, or its shards."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
