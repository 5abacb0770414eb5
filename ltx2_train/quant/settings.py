"""How the frozen base is stored: the settings, and the flags of the community trainer that mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ..settings import Settings
from .formats import FORMATS

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[("auto", "none", *FORMATS)]

_STORAGES = [kind.storage for kind in FORMATS.values()]
_OFFICIAL = {storage.official: storage.name for storage in _STORAGES if storage.official}
_REFINABLE = [storage.name for storage in _STORAGES if storage.refinable]
# switches of the community trainer, which together name one format
QUANT_SWITCHES = ("fp8_base", "fp8_scaled", "nf4_base")


class QuantSettings(Settings):
    """How the weights of the transformer's blocks are stored. Everything else stays as `model.precision` says."""

    format: Format = Field(
        default="auto",
        description="Storage of the frozen base: none = as model.precision says; "
        + "; ".join(f"{storage.name} = {storage.about}" for storage in _STORAGES)
        + ". auto = none where it fits the card. A file that is quantized already is kept as it is.",
        json_schema_extra={"community": "quantization"},
    )
    block_size: Literal[32, 64, 128, 256] = Field(
        default=32,
        description="Values that share one scale in nf4.",
        json_schema_extra={"counts_with": ".format = nf4 | auto", "community": "nf4_block_size", "advanced": True},
    )
    device: str = Field(
        default="auto",
        description="Where weights are quantized: auto = on the training device, piece by piece; cpu, cuda, cuda:1 ...",
        json_schema_extra={"counts_with": ".format != none", "community": "quantize_device", "advanced": True},
    )
    loftq: bool = Field(
        default=False,
        description="nf4: begin with a LoRA that makes up for what quantization loses (LoftQ). The loss of quality is "
        "taken back out of the saved LoRA, so that it fits the unquantized base.",
        json_schema_extra={"community": "loftq_init", "advanced": True},
    )
    loftq_iters: int = Field(
        default=2,
        ge=1,
        le=20,
        description="Rounds of LoftQ.",
        json_schema_extra={"counts_with": ".loftq", "community": "loftq_iters", "advanced": True},
    )
    awq: bool = Field(
        default=False,
        description="nf4: scale the inputs of each layer by how strong they are in batches of this dataset before "
        "quantizing (AWQ), so that the weights that matter lose least.",
        json_schema_extra={"community": "awq_calibration", "advanced": True},
    )
    awq_alpha: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Strength of the AWQ scaling; 0 is none.",
        json_schema_extra={"off": 0, "counts_with": ".awq", "community": "awq_alpha", "advanced": True},
    )
    awq_batches: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Batches of the dataset that AWQ looks at.",
        json_schema_extra={"counts_with": ".awq", "community": "awq_num_batches", "advanced": True},
    )
    matmul: Literal["off", "auto", "on"] = Field(
        default="off",
        description="Multiply in 8 bits where the card can (int8 and fp8): off = never; auto = where a measurement at "
        "the start finds it faster forward and back; on = always. It adds a little noise.",
        json_schema_extra={"advanced": True},
    )

    @model_validator(mode="before")
    @classmethod
    def _community_values(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        switches = {name: values.pop(name) for name in QUANT_SWITCHES if name in values}
        wrong = [name for name, value in switches.items() if not isinstance(value, bool)]
        if wrong:
            raise ValueError(f"{wrong[0]} is a switch: true or false")
        on = {name for name, value in switches.items() if value}
        if on and "format" in values:
            raise ValueError(f"{' and '.join(sorted(on))} and quant.format are the same setting; keep one of them")
        if "nf4_base" in on and on != {"nf4_base"}:
            raise ValueError("nf4_base and fp8_base exclude each other; keep one of them")
        if on == {"fp8_scaled"}:
            raise ValueError('fp8_scaled needs fp8_base beside it; or write quant.format = "fp8"')
        if "nf4_base" in on:
            values["format"] = "nf4"
        elif on:
            values["format"] = "fp8" if "fp8_scaled" in on else "fp8_cast"
        if isinstance(values.get("format"), str):
            values["format"] = _OFFICIAL.get(values["format"], values["format"])
        return values

    @model_validator(mode="after")
    def _possible(self) -> QuantSettings:
        for name in ("loftq", "awq"):
            if getattr(self, name) and self.format not in _REFINABLE:
                known = " or ".join(_REFINABLE)
                raise ValueError(f'{name} is for {known}; set quant.format to "{known}" or switch quant.{name} off')
        if self.loftq and self.awq:
            raise ValueError("loftq and awq change the same weights in two ways; switch one of them off")
        return self
