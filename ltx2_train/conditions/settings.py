"""Conditions as a user writes them: `[[video.conditions]]` and `[[audio.conditions]]` of a run file.

Names and numbers are those of the official trainer. Each condition has its own coin for each sample, and they compose:
what any of them gives is given.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from ..settings import Settings
from ..shapes import StreamName

Range = tuple[int, int]
Seconds = tuple[float, float]


class Condition(Settings):
    """What every condition has."""

    probability: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="How often it is given; each sample has its own coin.",
        json_schema_extra={},
    )


class FirstFrame(Condition):
    """The first latent frame is given: image to video. Clips of one frame are left alone."""

    type: Literal["first_frame"] = "first_frame"


class Boundary(Condition):
    """How long the part is that is given, in latents or in seconds; two numbers draw a length between them."""

    temporal_boundary: Range | None = Field(
        default=None,
        description="Length of the part that is given: latent frames of video (the first is one frame, each later one "
        "eight), latent steps of sound (25 a second). [2, 6] draws from 2 to 6.",
        json_schema_extra={"unit": "latents"},
    )
    seconds: Seconds | None = Field(
        default=None,
        description="Length of the part that is given, instead of temporal_boundary. [0.5, 2.0] draws between them.",
        json_schema_extra={"unit": "s"},
    )

    @model_validator(mode="before")
    @classmethod
    def _one_number_is_both_ends(cls, values: Any) -> Any:
        if isinstance(values, dict):
            both = {}
            for key in ("temporal_boundary", "seconds"):
                value = values.get(key)
                if isinstance(value, (list, tuple)) and len(value) == 1:
                    value = value[0]
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    both[key] = (value, value)
            return {**values, **both}
        return values

    @model_validator(mode="after")
    def _a_length(self) -> Boundary:
        if (self.temporal_boundary is None) == (self.seconds is None):
            raise ValueError("give either temporal_boundary or seconds")
        low, high = self.temporal_boundary or self.seconds or (0, 0)
        if low <= 0 or high < low:
            raise ValueError(f"a length above 0, or two in ascending order, is needed, and not [{low}, {high}]")
        return self


class Prefix(Boundary):
    """The start is given: extend forward."""

    type: Literal["prefix"] = "prefix"


class Suffix(Boundary):
    """The end is given: extend backward."""

    type: Literal["suffix"] = "suffix"


class SpatialCrop(Condition):
    """A rectangle of every frame is given: outpainting."""

    type: Literal["spatial_crop"] = "spatial_crop"
    spatial_region: tuple[int, int, int, int] = Field(
        description="The rectangle [top, left, bottom, right] of the picture as cached, in whole latents of 32 pixels.",
        json_schema_extra={"unit": "pixels"},
    )

    @model_validator(mode="after")
    def _a_rectangle(self) -> SpatialCrop:
        top, left, bottom, right = self.spatial_region
        if not (0 <= top < bottom and 0 <= left < right):
            raise ValueError(
                f"[top, left, bottom, right] with top < bottom and left < right, and not {[*self.spatial_region]}"
            )
        return self


class Mask(Condition):
    """What the mask of the sample says is given: inpainting. Masks come from mask_directory, audio_mask_directory."""

    type: Literal["mask"] = "mask"


class Reference(Condition):
    """A picture or clip of its own goes in front (IC-LoRA). It comes from reference_directory; those of a second, third
    ... condition of this type from more_reference_directories."""

    type: Literal["reference"] = "reference"
    temporal_scale_factor: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="How many times fewer frames a second the reference has than the clip. Not set: as the dataset "
        "says (reference_temporal_scale), which it must agree with.",
    )


class AudioReference(Condition):
    """A sound of its own goes in front (IC-LoRA of voices). It comes from reference_audio_directory; those of a second,
    third ... condition of this type from more_reference_audio_directories."""

    type: Literal["reference"] = "reference"
    negative_positions: bool = Field(
        default=False,
        description="Place the reference before time 0, so that the sound keeps the picture's clock.",
        json_schema_extra={"community": "audio_ref_use_negative_positions"},
    )
    hide_from_video: bool = Field(
        default=False,
        description="The picture does not attend to the reference.",
        json_schema_extra={"community": "audio_ref_mask_cross_attention_to_reference"},
    )
    hide_text: bool = Field(
        default=False,
        description="The reference does not attend to the text.",
        json_schema_extra={"community": "audio_ref_mask_reference_from_text_attention"},
    )


SWITCHES = ("negative_positions", "hide_from_video", "hide_text")  # of a reference sound


def _type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def _by_type(stream: str, types: str) -> Discriminator:
    words = f"a condition of {stream} is a table whose type is one of {types}"
    return Discriminator(_type_of, custom_error_type="condition_type", custom_error_message=words)


VideoCondition = Annotated[
    Annotated[FirstFrame, Tag("first_frame")]
    | Annotated[Prefix, Tag("prefix")]
    | Annotated[Suffix, Tag("suffix")]
    | Annotated[SpatialCrop, Tag("spatial_crop")]
    | Annotated[Mask, Tag("mask")]
    | Annotated[Reference, Tag("reference")],
    _by_type("video", "first_frame, prefix, suffix, spatial_crop, mask, reference"),
]
AudioCondition = Annotated[
    Annotated[Prefix, Tag("prefix")]
    | Annotated[Suffix, Tag("suffix")]
    | Annotated[Mask, Tag("mask")]
    | Annotated[AudioReference, Tag("reference")],
    _by_type("audio", "prefix, suffix, mask, reference"),
]


def condition_kinds(stream: StreamName) -> dict[str, type[Condition]]:
    """Type -> class of each condition of the stream, in the order in which they are named."""
    union = get_args(VideoCondition if stream == "video" else AudioCondition)[0]
    classes = (get_args(tagged)[0] for tagged in get_args(union))
    return {one.model_fields["type"].default: one for one in classes}


class VideoStream(Settings):
    """What the picture is given, and whether it is what the model learns to make."""

    generated: bool = Field(
        default=True,
        description="Whether the picture is made. If not it is given whole, and only sound is learned from it (foley).",
        json_schema_extra={"advanced": True},
    )
    conditions: list[VideoCondition] = Field(
        default_factory=list,
        description="What of the picture is given: tables of type first_frame, prefix, suffix, spatial_crop, mask or "
        "reference, each with its probability.",
        json_schema_extra={"advanced": True},
    )


class AudioStream(Settings):
    """What the sound is given, and whether it is what the model learns to make."""

    generated: bool = Field(
        default=True,
        description="Whether the sound is made. If not it is given whole, and only the picture is learned from it.",
        json_schema_extra={"advanced": True},
    )
    conditions: list[AudioCondition] = Field(
        default_factory=list,
        description="What of the sound is given: tables of type prefix, suffix, mask or reference, each with its "
        "probability.",
        json_schema_extra={"advanced": True},
    )
