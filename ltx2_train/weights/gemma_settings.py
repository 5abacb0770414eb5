"""How the text encoder is held in memory; it is needed for caching and for new prompts alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..settings import Settings, dtype_name


class GemmaSettings(Settings):
    """How Gemma is stored and where it runs while captions are encoded."""

    precision: Literal["stored", "8bit", "nf4", "fp4"] = Field(
        default="stored",
        description="Storage of Gemma's weights: as stored in the file (bf16, or fp8 kept); 8bit, nf4, fp4 = by "
        "bitsandbytes, for a smaller card at some loss.",
        json_schema_extra={"advanced": True},
    )
    double_quant: bool = Field(
        default=True,
        description="Quantize the scales of nf4 and fp4 as well.",
        json_schema_extra={"counts_with": ".precision = nf4 | fp4", "advanced": True},
    )
    compute_dtype: Annotated[Literal["auto", "bf16", "fp16", "fp32"], BeforeValidator(dtype_name)] = Field(
        default="auto",
        description="Precision that Gemma computes in; auto: bf16, fp32 on a CPU.",
        json_schema_extra={"community": "gemma_bnb_4bit_compute_dtype", "advanced": True},
    )
    placement: Literal["auto", "device", "stream", "layers"] = Field(
        default="auto",
        description="device = all of Gemma on the card; stream = weights in RAM, each layer visits the card; layers = "
        "each layer is read once and all captions pass it before the next one, for small cards and little RAM; auto = "
        "device where it fits, else layers.",
        json_schema_extra={"advanced": True},
    )

    tokenizer: Path | None = Field(
        default=None,
        description="Tokenizer of T5, the text encoder of LTX-Video, which ComfyUI's files of it lack: spiece.model or "
        "tokenizer.json, or the folder of one, such as comfy/text_encoders/t5_tokenizer of ComfyUI.",
        json_schema_extra={"advanced": True, "since": "0.2"},
    )

    @model_validator(mode="before")
    @classmethod
    def _community_values(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        eight, four = values.pop("gemma_load_in_8bit", False), values.pop("gemma_load_in_4bit", False)
        kind = values.pop("gemma_bnb_4bit_quant_type", "nf4")  # says which 4 bits, not that there are 4
        if load := values.pop("load_text_encoder_in_8bit", False):
            eight = load
        if values.pop("gemma_bnb_4bit_disable_double_quant", False):
            values["double_quant"] = False
        if eight and four:
            raise ValueError("gemma_load_in_8bit and gemma_load_in_4bit exclude each other; keep one of them")
        if eight:
            values["precision"] = "8bit"
        elif four:
            values.setdefault("precision", kind)
        return values

    @model_validator(mode="after")
    def _goes_together(self) -> GemmaSettings:
        if self.precision != "stored" and self.placement in ("stream", "layers"):
            raise ValueError(
                f"gemma.placement = {self.placement} and gemma.precision = {self.precision} exclude each other: with "
                "one layer on the card at a time nothing has to be quantized. Set gemma.precision to stored, or "
                "gemma.placement to device"
            )
        return self


def told_precision(settings: GemmaSettings | None) -> str:
    """What of `settings` changes the numbers beyond rounding."""
    if settings is None:
        return "stored"
    single = settings.precision in ("nf4", "fp4") and not settings.double_quant
    return f"{settings.precision} single" if single else settings.precision


# switches of the community and the official trainer that the settings above take up
GEMMA_SWITCHES = (
    "gemma_load_in_8bit",
    "gemma_load_in_4bit",
    "gemma_bnb_4bit_quant_type",
    "gemma_bnb_4bit_disable_double_quant",
    "load_text_encoder_in_8bit",
)
