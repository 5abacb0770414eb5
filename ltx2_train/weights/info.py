"""What a look at a weight file found, and how it is said."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..families import name_of

PART_NAMES = {
    "transformer": "transformer",
    "connectors": "text connectors",
    "text_projection": "text projection",
    "video_vae_encoder": "video VAE encoder",
    "video_vae_decoder": "video VAE decoder",
    "audio_vae": "audio VAE",
    "vocoder": "vocoder",
}


@dataclass(frozen=True)
class PartSize:
    """Size of one part of a file; the scales of quantized weights count as bytes only."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class CheckpointInfo:
    """What a weight file is.

    `kind`: "ltx2" (2.0, 2.3 and 2.5), "ltxv" (LTX-Video, 2B and 13B), "part", "lora", "upsampler", "text_encoder",
    "gguf", "other" (another family, named in `family`) or "unknown". `version`: a key of FAMILIES or None.
    `precision` is that of most of the transformer's bytes; `quant_format` is the quant.format of a file quantized by
    this program (or, nf4, the community trainer). `problems` hinder training, `warnings` do not; each is a sentence
    with its remedy.
    """

    path: Path
    kind: str
    version: str | None = None
    family: str = ""
    parts: dict[str, PartSize] = field(default_factory=dict)
    parameters: int = 0
    bytes: int = 0
    precision: str = ""
    quant_format: str = ""
    blocks: int = 0
    distilled: bool = False
    model_version: str = ""
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        """What the model is called; "" where it is not known."""
        return name_of(self.version) if self.version is not None else ""

    @property
    def trainable(self) -> bool:
        return not self.problems

    @property
    def quantized(self) -> bool:
        return bool(self.quant_format) or self.precision.startswith(("fp8", "int8", "nvfp4", "mxfp8", "4-bit"))

    @property
    def fit(self) -> dict[str, str]:
        """The same as sentences for a reader."""
        lines = {"file": f"{self.path.name}, {_size(self.bytes)}", "kind": _kind_sentence(self)}
        if self.parameters:
            lines["size"] = f"{_billions(self.parameters)} parameters, mostly {self.precision or 'of mixed types'}."
        if self.parts:
            lines["parts"] = (
                ", ".join(
                    f"{PART_NAMES[name]} {_billions(part.parameters)}"
                    for name, part in self.parts.items()
                    if name in PART_NAMES
                )
                + "."
            )
        lines["training"] = "Can be trained on." if self.trainable else " ".join(self.problems)
        if self.trainable and self.missing:
            lacking = ", ".join(PART_NAMES[part] for part in self.missing)
            lines["training"] = f"Can be trained on, together with the files of {self.model} that have the {lacking}."
        if self.warnings:
            lines["note"] = " ".join(self.warnings)
        return lines

    def text(self) -> str:
        """`fit` as lines for a terminal."""
        return "\n".join(f"{name:<9} {line}" for name, line in self.fit.items())

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, with `trainable` and `fit`."""
        value = asdict(self)
        value["path"] = str(self.path)
        return value | {"trainable": self.trainable, "quantized": self.quantized, "fit": self.fit}


def _kind_sentence(info: CheckpointInfo) -> str:
    if info.kind in ("ltx2", "ltxv") and info.version is not None:
        return f"{info.model}{', distilled' if info.distilled else ''}, {info.blocks} blocks."
    return {
        "part": "A part of an LTX-2 checkpoint.",
        "gguf": "A GGUF file.",
        "unknown": "Unknown.",
    }.get(info.kind, f"{info.family[:1].upper()}{info.family[1:]}.")


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
