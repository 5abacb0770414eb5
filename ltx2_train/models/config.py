"""The transformer's part of a checkpoint's embedded config.

LTX-Video, which came before LTX-2 and has no sound, is a variant of the same network: see LTX_VIDEO.

Files carry many keys that never vary; those that would change the computation if they did are checked, not read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError

# what this model computes; a file that says otherwise is of another family
FIXED: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "av_cross_ada_norm": True,
    "double_self_attention": False,
    "norm_elementwise_affine": False,
    "only_cross_attention": False,
    "positional_embedding_theta": 10000,
    "positional_embedding_type": "rope",
    "qk_norm": "rms_norm",
    "share_ff": False,
    "standardization_norm": "rms_norm",
    "timestep_scale_multiplier": 1000,
    "use_audio_video_cross_attention": True,
}
# What LTX-Video computes in its own way; its headers say nothing of it. Pairs of features side by side are rotated, by
# frequencies in float32 and where a token's cell begins, and the text is asked with the stream as it is.
LTX_VIDEO: dict[str, Any] = {
    "has_sound": False,
    "frequencies_precision": "float32",
    "norm_before_text": False,
    "qk_norm_eps": 1e-5,
    "rope_type": "interleaved",
    "use_middle_indices_grid": False,
}
_SOUND = "audio_adaln_single."  # begins the name of a tensor of every LTX-2 transformer
# A variant is a matter of tensors: flag -> the tensor that only one kind of file has, and what stands beside it in any.
VARIANTS: dict[str, tuple[str, str]] = {
    "ff_bias": ("transformer_blocks.0.ff.net.0.proj.bias", "transformer_blocks.0.ff.net.0.proj."),
    "audio_ff_bias": ("transformer_blocks.0.audio_ff.net.0.proj.bias", "transformer_blocks.0.audio_ff.net.0.proj."),
    "use_prompt_adaln_single": (
        "prompt_adaln_single.linear.weight",
        "transformer_blocks.0.prompt_scale_shift_table",
    ),
    "use_keyframes_abs_pos_embedding": ("keyframes_abs_pos_embedding", "patchify_proj."),
}
NEEDED = ("num_layers", "num_attention_heads", "attention_head_dim")


@dataclass(frozen=True)
class Side:
    """The sizes of one modality's stream."""

    heads: int
    head_width: int
    context_width: int
    in_channels: int
    out_channels: int
    max_pos: tuple[float, ...]
    ff_bias: bool = True

    @property
    def width(self) -> int:
        return self.heads * self.head_width


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and variants, named as in the checkpoint's `config.transformer`. The defaults are those of LTX-2.3."""

    num_layers: int = 48
    num_attention_heads: int = 32
    attention_head_dim: int = 128
    in_channels: int = 128
    out_channels: int = 128
    cross_attention_dim: int = 4096
    audio_num_attention_heads: int = 32
    audio_attention_head_dim: int = 64
    audio_in_channels: int = 128
    audio_out_channels: int = 128
    audio_cross_attention_dim: int = 2048
    caption_channels: int = 3840
    norm_eps: float = 1e-6
    positional_embedding_theta: float = 10000.0
    positional_embedding_max_pos: tuple[float, ...] = (20, 2048, 2048)
    audio_positional_embedding_max_pos: tuple[float, ...] = (20,)
    timestep_scale_multiplier: float = 1000.0
    av_ca_timestep_scale_multiplier: float = 1000.0
    rope_type: str = "split"
    frequencies_precision: str = "float64"
    cross_attention_adaln: bool = True
    apply_gated_attention: bool = True
    caption_proj_before_connector: bool = True
    ff_bias: bool = True
    audio_ff_bias: bool = True
    use_prompt_adaln_single: bool = True
    use_keyframes_abs_pos_embedding: bool = False
    has_sound: bool = True
    norm_before_text: bool = True
    qk_norm_eps: float | None = None
    use_middle_indices_grid: bool = True

    @classmethod
    def from_checkpoint(cls, section: Mapping[str, Any], names: Collection[str] = ()) -> TransformerConfig:
        """Read `config.transformer`. Keys we do not know are ignored.

        `names` are those of the transformer's tensors in the file, which decide what 2.5 brought and whether it is
        LTX-Video; without them `section` does. Raises CheckpointError where a needed key is missing, where the file
        describes another network, or where `section` and `names` contradict each other.
        """
        missing = [key for key in NEEDED if key not in section]
        if missing:
            raise CheckpointError(
                f"The checkpoint's embedded config lacks {', '.join(missing)} in its transformer section. "
                "Expected an LTX-2 or LTX-2.3 checkpoint with its metadata; use the original file."
            )
        for key, expected in FIXED.items():
            if key in section and section[key] != expected:
                raise CheckpointError(
                    f"The checkpoint's embedded config says {key} = {section[key]!r}; LTX-2 and LTX-2.3 have "
                    f"{expected!r}. This is another model family, which cannot be trained here; choose an LTX-2 file."
                )
        # files older than 2.3 do not mention the variants that 2.3 brought
        values: dict[str, Any] = dict.fromkeys(
            ("cross_attention_adaln", "apply_gated_attention", "caption_proj_before_connector"), False
        )
        if is_ltx_video(section, names):
            values |= LTX_VIDEO
        elif section.get("use_middle_indices_grid") is False:
            raise CheckpointError(
                "The checkpoint's embedded config says use_middle_indices_grid = False; LTX-2 and LTX-2.3 have True. "
                "This is another model family, which cannot be trained here; choose an LTX-2 file."
            )
        for name in cls.__dataclass_fields__:
            if section.get(name) is not None:
                value = section[name]
                values[name] = tuple(value) if isinstance(value, list) else value
        values |= _variants(section, names)
        config = cls(**values)
        config.check()
        return config

    def check(self) -> None:
        """Raise CheckpointError where sizes contradict each other, or one is no number that a size can be."""
        for name, field in self.__dataclass_fields__.items():
            value, kind = getattr(self, name), str(field.type)
            for one in value if isinstance(value, tuple) else (value,):
                number = isinstance(one, (int, float)) and not isinstance(one, bool) and one > 0
                if (kind in ("int", "float") or kind.startswith("tuple")) and not number:
                    raise CheckpointError(
                        f"The checkpoint's embedded config says {name} = {value!r}; expected a number above 0. The "
                        "file is damaged or was repacked with a wrong header. Use an original LTX-2 checkpoint."
                    )
        if self.rope_type not in ("split", "interleaved"):
            raise CheckpointError(
                f"The checkpoint's rope_type is {self.rope_type!r}; expected split or interleaved. Use an LTX-2 file."
            )
        if self.has_sound and self.num_attention_heads != self.audio_num_attention_heads:
            raise CheckpointError(
                f"The checkpoint has {self.num_attention_heads} video heads and {self.audio_num_attention_heads} audio "
                "heads; LTX-2 has as many of each. Use an LTX-2 file."
            )
        for width in (self.attention_head_dim, self.audio_attention_head_dim):
            if width % 2:
                raise CheckpointError(f"The checkpoint's attention head width is {width}; expected an even number.")

    @property
    def is_v23(self) -> bool:
        """True for LTX-2.3: the text attention is modulated."""
        return self.cross_attention_adaln

    @property
    def qk_eps(self) -> float:
        """What keeps the norms of queries and keys from dividing by zero."""
        return self.norm_eps if self.qk_norm_eps is None else self.qk_norm_eps

    @property
    def gated(self) -> bool:
        return self.apply_gated_attention

    @property
    def projects_captions(self) -> bool:
        """True for LTX-2.0 and LTX-Video: the transformer itself projects the text features to its width."""
        return not self.caption_proj_before_connector

    def read_width(self, side: Side) -> int:
        """How wide the text is that the stream `side` is given."""
        return self.caption_channels if self.projects_captions else side.context_width

    @property
    def video(self) -> Side:
        return Side(
            self.num_attention_heads,
            self.attention_head_dim,
            self.cross_attention_dim,
            self.in_channels,
            self.out_channels,
            tuple(self.positional_embedding_max_pos),
            self.ff_bias,
        )

    @property
    def audio(self) -> Side:
        return Side(
            self.audio_num_attention_heads,
            self.audio_attention_head_dim,
            self.audio_cross_attention_dim,
            self.audio_in_channels,
            self.audio_out_channels,
            tuple(self.audio_positional_embedding_max_pos),
            self.audio_ff_bias,
        )


def is_ltx_video(section: Mapping[str, Any], names: Collection[str] = ()) -> bool:
    """Whether a transformer with the tensors `names` is LTX-Video, which knows no sound; without them `section` says
    it."""
    if "patchify_proj.weight" in names:
        newer = "transformer_blocks.0.prompt_scale_shift_table" in names
        return not newer and not any(name.startswith(_SOUND) for name in names)
    return section.get("_class_name") == "Transformer3DModel"


def _variants(section: Mapping[str, Any], names: Collection[str]) -> dict[str, bool]:
    """The flags of VARIANTS that `names` settle."""
    settled: dict[str, bool] = {}
    for flag, (tensor, beside) in VARIANTS.items():
        if not any(name.startswith(beside) for name in names):
            continue
        settled[flag] = tensor in names
        if section.get(flag) is not None and bool(section[flag]) != settled[flag]:
            raise CheckpointError(
                f"The checkpoint contradicts itself: its embedded config says {flag} = {section[flag]!r}, but the "
                f"tensor {tensor} is {'there' if settled[flag] else 'missing'}. It was repacked with the header of "
                "another file. Download the original."
            )
    return settled
