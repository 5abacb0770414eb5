"""From Gemma's hidden states to the text a transformer attends to.

Two steps. The feature extractor normalises all hidden states (the embeddings and one a layer, L in all), lays them side
by side with the channel first and the state second (column d * L + l), and projects them. The connector is a small
transformer over the sequence: the caption's tokens first, then learned registers up to a fixed length, everything
attends to everything.

    2.0   8 (x - mean) / (max - min + 1e-6) over tokens and channels of one state, one projection for both streams
    2.3   RMS norm of each token and state, a projection per stream, inputs scaled by sqrt(width / hidden)

Statistics are over valid tokens only, and rows of padding never leave the extractor, so a caption's features do not
depend on how it was padded or on its neighbours in the batch. They are what the caches hold: they are short, and
serve every mode.

B batch, T tokens, D width, L hidden states, N context length.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..errors import CheckpointError
from ..shapes import MODES
from .attention import Attention
from .blocks import FeedForward
from .rope import Rope, rope_table

_EPSILON = 1e-6
_ROWS = 32  # of a projection that are turned at a time


@dataclass(frozen=True)
class TextFeatures:
    """One caption before the connectors: its valid tokens in order, [T, D] a stream; 2.0 has one tensor for both."""

    video: torch.Tensor
    audio: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.video.shape[0]

    @property
    def shared(self) -> bool:
        """Whether both streams are one tensor, as in 2.0."""
        return self.video is self.audio

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextFeatures:
        """The same features elsewhere or in another type."""
        video = self.video.to(device=device, dtype=dtype)
        return TextFeatures(video, video if self.shared else self.audio.to(device=device, dtype=dtype))


class FeatureExtractor(nn.Module):
    """Hidden states to features. `audio_width` None is 2.0: one projection without bias for both streams."""

    def __init__(self, columns: int, video_width: int, audio_width: int | None = None) -> None:
        super().__init__()
        self.columns = columns
        self.hidden = 0  # set by `lay_by_state`
        self.is_v23 = audio_width is not None
        if audio_width is None:
            self.aggregate_embed = nn.Linear(columns, video_width, bias=False)
        else:
            self.video_aggregate_embed = nn.Linear(columns, video_width)
            self.audio_aggregate_embed = nn.Linear(columns, audio_width)

    @property
    def heads(self) -> list[nn.Linear]:
        """The projections: one for both streams, or one of each."""
        return [self.video_aggregate_embed, self.audio_aggregate_embed] if self.is_v23 else [self.aggregate_embed]

    @torch.no_grad()
    def lay_by_state(self, states: int) -> None:
        """Turn the projections from channel first (column d * L + l) to state first, in place, for `column_slices`.

        What meets one state is then a run of memory a row instead of single numbers all over gigabytes. No second copy
        is made. `forward` cannot be used afterwards.
        """
        if self.hidden:
            return
        hidden = self.columns // states
        for head in self.heads:
            for rows in head.weight.split(_ROWS):
                rows.copy_(rows.view(-1, hidden, states).transpose(1, 2).reshape(rows.shape))
        self.hidden = hidden

    def column_slices(self, number: int, states: int, device: torch.device | str) -> list[torch.Tensor]:
        """What of each projection [width, D] meets state `number` of `states`, in float32 on `device`."""
        assert self.hidden, "lay_by_state comes first"
        parts = (head.weight.view(-1, states, self.hidden)[:, number] for head in self.heads)
        # gathered before it travels, and widened after: half the bytes on the way, and one copy
        return [
            (part if part.device == torch.device(device) else part.contiguous().to(device)).float() for part in parts
        ]

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> FeatureExtractor:
        """Sized by tensors named as in the checkpoint after `text_embedding_projection.`.

        Raises CheckpointError where neither version's set is complete.
        """
        single = shapes.get("aggregate_embed.weight")
        video, audio = shapes.get("video_aggregate_embed.weight"), shapes.get("audio_aggregate_embed.weight")
        if single is not None:
            return cls(single[1], single[0])
        if video is not None and audio is not None and video[1] == audio[1]:
            return cls(video[1], video[0], audio[0])
        raise CheckpointError(
            "The text projection is missing: expected text_embedding_projection.aggregate_embed.weight (LTX-2) or "
            "text_embedding_projection.video_aggregate_embed and audio_aggregate_embed (LTX-2.3). "
            "Choose the full checkpoint, or name a checkpoint that has the text projection for the text encoder."
        )

    def forward(self, states: Sequence[torch.Tensor], mask: torch.Tensor) -> list[TextFeatures]:
        """`states`: L tensors [B, T, D]; `mask` [B, T], nonzero where a token is valid, on whichever side."""
        assert not self.hidden, "the projections were laid out for column_slices"
        return [self._one(states, sample, valid) for sample, valid in enumerate(mask.bool().unbind(0))]

    def _one(self, states: Sequence[torch.Tensor], sample: int, valid: torch.Tensor) -> TextFeatures:
        head = self.video_aggregate_embed if self.is_v23 else self.aggregate_embed
        tokens, hidden = int(valid.sum()), states[0].shape[-1]
        if hidden * len(states) != self.columns:
            raise CheckpointError(
                f"The text encoder gives {len(states)} x {hidden} = {len(states) * hidden} values a token, "
                f"the checkpoint's text projection takes {self.columns}. Choose the text encoder made for this model."
            )
        # at full size this is 188160 columns: the only large tensor, filled state by state
        packed = torch.empty(tokens, hidden, len(states), dtype=head.weight.dtype, device=states[0].device)
        for column, state in enumerate(states):
            rows = state[sample][valid].float()
            packed[:, :, column] = _per_token(rows) if self.is_v23 else _per_state(rows)
        flat = packed.view(tokens, self.columns)
        if not self.is_v23:
            video = head(flat)
            return TextFeatures(video, video)
        return TextFeatures(
            _scaled(flat, self.video_aggregate_embed, hidden), _scaled(flat, self.audio_aggregate_embed, hidden)
        )


class PartialFeatures:
    """One caption's features, added up state by state as they come, so that the states need not be kept.

    Equal to `FeatureExtractor.forward` but for the order of the sum, which is in float32 throughout.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self._extractor = extractor
        self._sums: list[torch.Tensor] | None = None

    def add(self, rows: torch.Tensor, slices: Sequence[torch.Tensor]) -> None:
        """Take in one state of the valid tokens [T, D]; `slices` are the projections' for it (`column_slices`)."""
        rows = rows.float()
        rows = _per_token(rows) if self._extractor.is_v23 else _per_state(rows)
        parts = [(rows @ part.t()).cpu() for part in slices]
        self._sums = parts if self._sums is None else [a.add_(b) for a, b in zip(self._sums, parts, strict=True)]

    def finish(self, dtype: torch.dtype) -> TextFeatures:
        """The features on the CPU, when every state was added."""
        assert self._sums is not None, "no state was added"
        heads, out = self._extractor.heads, []
        for total, head in zip(self._sums, heads, strict=True):
            if self._extractor.is_v23:
                total = total * math.sqrt(head.out_features / self._extractor.hidden) + head.bias.float().cpu()
            out.append(total.to(dtype))
        return TextFeatures(out[0], out[-1])


def _per_state(state: torch.Tensor) -> torch.Tensor:
    if not state.numel():
        return state
    low, high = torch.aminmax(state)
    return (state - state.mean()) * (8.0 / (high - low + _EPSILON))


def _per_token(state: torch.Tensor) -> torch.Tensor:
    return state * torch.rsqrt(state.square().mean(-1, keepdim=True) + _EPSILON)


def _scaled(flat: torch.Tensor, projection: nn.Linear, hidden: int) -> torch.Tensor:
    """`projection(flat * s)` without a scaled copy of `flat`."""
    scale = math.sqrt(projection.out_features / hidden)
    result = functional.linear(flat, projection.weight) * scale
    return result if projection.bias is None else result + projection.bias


class Connector(nn.Module):
    """One stream's connector. Frozen: no gradient passes through it.

    The registers fill by absolute position, p -> registers[p % count], so they do not begin anew after the text.
    """

    def __init__(
        self,
        heads: int,
        head_width: int,
        layers: int,
        registers: int = 128,
        *,
        gated: bool = False,
        max_pos: Sequence[float] = (4096,),
        theta: float = 10000.0,
        interleaved: bool = False,
        double: bool = True,
        ff_bias: bool = True,
    ) -> None:
        super().__init__()
        self.width = heads * head_width
        self.heads = heads
        self.max_pos = tuple(max_pos)
        self.theta = theta
        self.interleaved = interleaved
        self.float64_angles = double
        self.transformer_1d_blocks = nn.ModuleList([_Block(self.width, heads, gated, ff_bias) for _ in range(layers)])
        self.learnable_registers = nn.Parameter(torch.randn(registers, self.width))

    @torch.no_grad()
    def forward(self, features: Sequence[torch.Tensor], length: int) -> torch.Tensor:
        """`features`: a tensor [T, D] a sample; `length` N is not below any T. Returns [B, N, D], every row valid."""
        registers = self.learnable_registers
        repeats = -(-length // registers.shape[0])
        x = registers.repeat(repeats, 1)[:length].expand(len(features), -1, -1).to(features[0].dtype, copy=True)
        for sample, tokens in enumerate(features):
            x[sample, : tokens.shape[0]] = tokens
        positions = (
            torch.arange(length, dtype=torch.float32, device=x.device).view(1, 1, length, 1).expand(-1, -1, -1, 2)
        )
        rope = rope_table(
            positions, self.width, self.heads, self.max_pos, self.theta, self.interleaved, self.float64_angles
        )
        for block in self.transformer_1d_blocks:
            x = block(x, rope)
        return functional.rms_norm(x, (self.width,), eps=_EPSILON)


class TextConnectors(nn.Module):
    """The connectors of the streams that `mode` ("video", "audio", "av") uses, named as in the checkpoint.

    `section` is the checkpoint's config.transformer, `names` those of its tensors, which say whether feed-forwards have
    biases; without them `section` does. The context has `minimum` rows or more, always a multiple of the registers.
    """

    def __init__(
        self, section: Mapping[str, Any], mode: str = "av", minimum: int = 1024, names: Collection[str] = ()
    ) -> None:
        super().__init__()
        assert mode in MODES, mode
        self.minimum = minimum
        beside = "transformer_1d_blocks.0.ff.net.0.proj."
        found = {name.rpartition(".")[2] for name in names if beside in name}
        self.ff_bias = "bias" in found if found else bool(section.get("connector_ff_bias", True))
        self.registers = int(section.get("connector_num_learnable_registers") or 128)
        self.video_embeddings_connector = self._connector(section, "") if mode != "audio" else None
        self.audio_embeddings_connector = self._connector(section, "audio_") if mode != "video" else None

    def _connector(self, section: Mapping[str, Any], prefix: str) -> Connector:
        def value(name: str, default: int) -> int:
            # 2.0 states one size for both
            return int(section.get(f"{prefix}connector_{name}", section.get(f"connector_{name}", default)))

        return Connector(
            heads=value("num_attention_heads", 30),
            head_width=value("attention_head_dim", 128),
            layers=value("num_layers", 2),
            registers=self.registers,
            gated=bool(section.get("connector_apply_gated_attention", False)),
            max_pos=section.get("connector_positional_embedding_max_pos") or (4096,),
            interleaved=section.get("rope_type", "split") == "interleaved",
            double=section.get("frequencies_precision", "float64") == "float64",
            ff_bias=self.ff_bias,
        )

    @property
    def widths(self) -> dict[str, int]:
        """How wide the features of each stream are."""
        found = {"video": self.video_embeddings_connector, "audio": self.audio_embeddings_connector}
        return {stream: connector.width for stream, connector in found.items() if connector is not None}

    def length(self, features: Sequence[TextFeatures]) -> int:
        """The context length N of a batch."""
        longest = max((one.tokens for one in features), default=0)
        return -(-max(self.minimum, longest) // self.registers) * self.registers

    def forward(self, features: Sequence[TextFeatures]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Video and audio context, [B, N, D] each, None for a stream that is absent. Every row is to be attended to."""
        length = self.length(features)
        return (
            self._run(self.video_embeddings_connector, [one.video for one in features], length),
            self._run(self.audio_embeddings_connector, [one.audio for one in features], length),
        )

    def _run(self, connector: Connector | None, features: list[torch.Tensor], length: int) -> torch.Tensor | None:
        if connector is None:
            return None
        width = features[0].shape[-1]
        if width != connector.width:
            raise CheckpointError(
                f"The text features are {width} wide, this checkpoint's connector takes {connector.width}: they were "
                "made for another version of the model. Build the text cache again with this checkpoint."
            )
        return connector(features, length)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, gated: bool, ff_bias: bool) -> None:
        super().__init__()
        self.width = width
        self.attn1 = Attention(width, width, heads, width // heads, gated, _EPSILON)
        self.ff = FeedForward(width, ff_bias)

    def forward(self, x: torch.Tensor, rope: Rope) -> torch.Tensor:
        x = x + self.attn1(functional.rms_norm(x, (self.width,), eps=_EPSILON), rope=rope)
        return x + self.ff(functional.rms_norm(x, (self.width,), eps=_EPSILON))
