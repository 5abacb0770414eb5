"""One block of the audio-video transformer: what it does to the video stream, the audio stream, and between them.

In this order, n being the RMS norm without a weight:
 1. video self-attention    x += gate * attn1(n(x) modulated)
 2. video text attention    x += gate * attn2(n(x) modulated, context modulated)      2.0: no modulation, no gate
                                                                                       LTX-Video: no norm either
 3. the same two for audio
 4. audio to video and video to audio, both from the streams as they are after step 3
 5. video feed-forward, audio feed-forward

The feed-forward comes last, so when a block is run again for its gradient the value of the second linear is not
needed; `replay` leaves it out and defers the whole sublayer (see recompute.py).

Shape letters: B batch, T tokens, S context tokens, D width, R distinct timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from .adaln import Rows
from .attention import Attention
from .fused import Fused
from .kernels import Way
from .norms import RowIndex, branched_norm, device_type, gated_sum, modulated, modulated_norm, plain_norm
from .recompute import Kept, Remade, deferred, trainable, unread_gelu
from .rope import Rope

if TYPE_CHECKING:
    from .config import TransformerConfig

# Tokens of a feed-forward at a time: what a processor's cache holds; elsewhere as many as fill the device well.
FEED_FORWARD_TOKENS = {"cpu": 256}
FEED_FORWARD_TOKENS_ELSEWHERE = 4096
BASE_ROWS, TEXT_ROWS = 6, 3

Note = Callable[..., Tensor]  # makes a tensor, as `Remade.note`


@dataclass(frozen=True)
class Stream:
    """What is constant over the blocks for one modality."""

    ada: Rows
    embedded: Rows
    context: Tensor
    context_mask: Tensor | None
    attention_mask: Tensor | None
    rope: Rope
    enabled: bool
    prompt: Rows | None = None
    cross: Rows | None = None
    cross_gate: Rows | None = None
    cross_rope: Rope | None = None
    unseen: int = 0  # tokens at the start that the other modality does not attend to
    textless: int = 0  # tokens at the start that do not attend to the text

    def tensors(self) -> list[Tensor | None]:
        """Those that may need a gradient, when the layers that make them are trained."""
        rows = (self.ada, self.prompt, self.cross, self.cross_gate)
        return [self.context, *(None if r is None else r.values for r in rows)]

    def with_tensors(self, tensors: Iterator[Tensor | None]) -> Stream:
        """The same with the next five of `tensors` in their places."""
        found: dict[str, Any] = {"context": next(tensors)}
        for name in ("ada", "prompt", "cross", "cross_gate"):
            values, rows = next(tensors), getattr(self, name)
            if rows is not None:
                assert values is not None, name
                rows = Rows(values, rows.index)
            found[name] = rows
        return replace(self, **found)


@dataclass(frozen=True)
class SkipLayers:
    """Blocks whose attention is left out in one call, by index: a set, or "all".

    `video_self` and `audio_self` pass the values through unattended (spatio-temporal guidance); `a2v` and `v2a` drop
    that direction between the modalities (modality isolation).
    """

    video_self: Iterable[int] | Literal["all"] | None = None
    audio_self: Iterable[int] | Literal["all"] | None = None
    a2v: Iterable[int] | Literal["all"] | None = None
    v2a: Iterable[int] | Literal["all"] | None = None

    def at(self, block: int) -> frozenset[str]:
        """Names of the attentions that block number `block` skips."""
        return frozenset(field.name for field in fields(self) if _chosen(getattr(self, field.name), block))


class Keeping(NamedTuple):
    """What one run of a block keeps for backward: `recipes` of norms instead of norms, keys and values of the text and
    results of attentions for a second run, and, where `slim`, as little as it can."""

    recipes: bool
    text_kv: Kept | None
    results: Kept | None
    slim: bool

    def result_of(self, attention: Attention, x: Tensor, context: Tensor) -> bool:
        """Whether the result of `x` attending to `context` is kept, and worked out from only for its gradient.

        On a processor, in blocks that are recomputed, where that result is not larger than keys and values are.
        """
        again = self.results is not None or (self.slim and torch.is_grad_enabled())
        return again and device_type(x) == "cpu" and attention.way == Way() and x.shape[1] <= context.shape[1]


class Projection(nn.Module):
    """The first linear of a feed-forward, under the checkpoint's name."""

    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner, bias=bias)


class FeedForward(nn.Module):
    """Linear to four times the width, GELU (tanh form), linear back."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [Projection(width, 4 * width, bias), nn.Identity(), nn.Linear(4 * width, width, bias=bias)]
        )

    def forward(self, x: Tensor, value_unread: bool = False) -> Tensor:
        first = self.net[0]
        assert isinstance(first, Projection)
        hidden = first.proj(x)
        return unread_gelu(self.net[2], hidden) if value_unread else self.net[2](gelu(hidden, approximate="tanh"))


class Block(nn.Module):
    """One transformer block with the modules of the modalities in `mode`."""

    def __init__(self, config: TransformerConfig, mode: str) -> None:
        super().__init__()
        self.eps, self.text_modulated = config.norm_eps, config.cross_attention_adaln
        self.norm_before_text, qk_eps = config.norm_before_text, config.qk_eps
        self.ff_chunk = {"": 0, "audio_": 0}  # tokens of a feed-forward at a time, by prefix; 0: by device
        self.fused: Fused | None = None
        self.lean = True  # whether a replay keeps recipes of norms, too, and makes them a third time for its gradient
        rows = BASE_ROWS + (TEXT_ROWS if self.text_modulated else 0)
        for name, prefix, side in (("video", "", config.video), ("audio", "audio_", config.audio)):
            if mode not in (name, "av"):
                continue
            self_attention = Attention(side.width, side.width, side.heads, side.head_width, config.gated, qk_eps)
            text_attention = Attention(
                side.width, side.context_width, side.heads, side.head_width, config.gated, qk_eps
            )
            setattr(self, f"{prefix}attn1", self_attention)
            setattr(self, f"{prefix}attn2", text_attention)
            setattr(self, f"{prefix}ff", FeedForward(side.width, side.ff_bias))
            setattr(self, f"{prefix}scale_shift_table", nn.Parameter(torch.zeros(rows, side.width)))
            if self.text_modulated:
                setattr(self, f"{prefix}prompt_scale_shift_table", nn.Parameter(torch.zeros(2, side.width)))
        if mode == "av":
            v, a = config.video, config.audio
            # both directions attend in the audio width
            self.audio_to_video_attn = Attention(v.width, a.width, a.heads, a.head_width, config.gated, qk_eps)
            self.video_to_audio_attn = Attention(a.width, v.width, a.heads, a.head_width, config.gated, qk_eps)
            self.scale_shift_table_a2v_ca_video = nn.Parameter(torch.zeros(5, v.width))
            self.scale_shift_table_a2v_ca_audio = nn.Parameter(torch.zeros(5, a.width))

    def forward(
        self,
        vx: Tensor | None,
        ax: Tensor | None,
        video: Stream | None,
        audio: Stream | None,
        skip: frozenset[str] = frozenset(),
        replay: bool = False,
        slim: bool = False,
        text_kv: Kept | None = None,
        results: Kept | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Update the streams [B, T, D] that are there and enabled.

        In a `replay` the values returned are stand-ins. `slim` keeps nothing of the feed-forward for backward.
        `text_kv` keeps keys and values of the text from one run to the next, `results` what attentions came to.
        """
        keeping = Keeping(self.lean or not replay, text_kv, results, slim)
        v_rows = None if video is None or not video.enabled else video.ada.plus(self._table(""))
        a_rows = None if audio is None or not audio.enabled else audio.ada.plus(self._table("audio_"))
        if video is not None and v_rows is not None:
            assert vx is not None
            vx = self._attend(vx, video, v_rows, "", "video_self" in skip, keeping)
        if audio is not None and a_rows is not None:
            assert ax is not None
            ax = self._attend(ax, audio, a_rows, "audio_", "audio_self" in skip, keeping)
        if video is not None and audio is not None:
            assert vx is not None
            assert ax is not None
            before, reads = (vx, ax), (video.enabled and "a2v" not in skip, audio.enabled and "v2a" not in skip)
            rows = self._cross_rows(video, audio) if any(reads) else {}
            if reads[0]:
                vx = self._cross(vx, before[1], video, audio, rows, "video", 0, keeping)
            if reads[1]:
                ax = self._cross(ax, before[0], audio, video, rows, "audio", 2, keeping)
        if v_rows is not None:
            assert vx is not None
            vx = self._feed_forward(vx, v_rows, "", replay, slim)
        if a_rows is not None:
            assert ax is not None
            ax = self._feed_forward(ax, a_rows, "audio_", replay, slim)
        return vx, ax

    def _table(self, prefix: str) -> Tensor:
        return getattr(self, f"{prefix}scale_shift_table")

    def _attend(self, x: Tensor, stream: Stream, ada: Rows, prefix: str, skip: bool, keeping: Keeping) -> Tensor:
        """Self-attention, then attention to the text; `ada` are the rows of `stream` in this block."""
        rows, index = ada
        shift, scale, gate = rows[:, 0], rows[:, 1], rows[:, 2]
        attention = getattr(self, f"{prefix}attn1")

        def read(note: Note, x: Tensor, scale: Tensor, shift: Tensor) -> Sequence[Tensor]:
            normal, x = note(branched_norm, x, scale, shift, index, self.eps, self.fused)
            return x, normal

        with Remade(keeping.recipes) as remade:
            if not skip and stream.attention_mask is None and keeping.result_of(attention, x, x):
                out = attention.with_result_kept(read, (x, scale, shift), stream.rope, None, remade, keeping.results)
            else:
                x, *normal = read(remade.note, x, scale, shift)
                out = attention(*normal, rope=stream.rope, mask=stream.attention_mask, skip=skip, remade=remade)
                del normal
        x = gated_sum(x, out, gate, index, fused=self.fused)
        del out

        if not stream.textless:
            return self._read(x, stream, prefix, rows, index, keeping)
        textless, x = x[:, : stream.textless], x[:, stream.textless :]
        behind = None if index is None else index.part(slice(stream.textless, None))
        return torch.cat((textless, self._read(x, stream, prefix, rows, behind, keeping)), dim=1)

    def _read(
        self,
        x: Tensor,
        stream: Stream,
        prefix: str,
        rows: Tensor,
        index: RowIndex | None,
        keeping: Keeping,
    ) -> Tensor:
        """`x` attends to the text; `rows` [R, n, D] and `index` are its modulation."""
        attention, context, text_kv = getattr(self, f"{prefix}attn2"), stream.context, keeping.text_kv
        with Remade(keeping.recipes) as remade:
            if stream.prompt is None:
                query = remade.note(plain_norm, x, self.eps, self.fused) if self.norm_before_text else x
                return x + attention(query, context, mask=stream.context_mask, remade=remade, kept=text_kv)
            prompt = stream.prompt.plus(getattr(self, f"{prefix}prompt_scale_shift_table")).values
            context = remade.note(modulated, context, prompt[:, 1], prompt[:, 0], self.fused)
            normal, x = remade.note(branched_norm, x, rows[:, 7], rows[:, 6], index, self.eps, self.fused)
            out = attention(normal, context, mask=stream.context_mask, remade=remade, kept=text_kv)
        return gated_sum(x, out, rows[:, 8], index, fused=self.fused)

    def _cross_rows(self, video: Stream, audio: Stream) -> dict[str, Rows]:
        """Scale and shift of either side, for audio to video, then for video to audio."""
        assert video.cross is not None
        assert audio.cross is not None
        return {
            "video": video.cross.plus(self.scale_shift_table_a2v_ca_video[:4]),
            "audio": audio.cross.plus(self.scale_shift_table_a2v_ca_audio[:4]),
        }

    def _cross(
        self,
        x: Tensor,
        other: Tensor,
        own: Stream,
        its: Stream,
        cross: Mapping[str, Rows],
        side: str,
        first: int,
        keeping: Keeping,
    ) -> Tensor:
        """`x` attends to the other modality; `first` is the first of the direction's two rows (scale, then shift)."""
        table = getattr(self, f"scale_shift_table_a2v_ca_{side}")
        assert own.cross_gate is not None
        (rows, index), (its_rows, its_index) = cross[side], cross["audio" if side == "video" else "video"]
        scale, shift, its_scale, its_shift = (r[:, i] for r in (rows, its_rows) for i in (first, first + 1))
        attention = self.audio_to_video_attn if side == "video" else self.video_to_audio_attn
        its_rope = its.cross_rope
        if its.unseen:
            assert its_rope is not None
            other, its_rope = other[:, its.unseen :], its_rope.part(slice(its.unseen, None))
            its_index = None if its_index is None else its_index.part(slice(its.unseen, None))
        tensors = x, scale, shift, other, its_scale, its_shift

        def read(note: Note, x: Tensor, scale: Tensor, shift: Tensor, *its: Tensor) -> Sequence[Tensor]:
            query, x = note(branched_norm, x, scale, shift, index, self.eps, self.fused)
            return x, query, note(modulated_norm, *its, its_index, self.eps, self.fused)

        with Remade(keeping.recipes) as remade:
            if keeping.result_of(attention, x, other):
                out = attention.with_result_kept(read, tensors, own.cross_rope, its_rope, remade, keeping.results)
            else:
                x, *normal = read(remade.note, *tensors)
                out = attention(*normal, rope=own.cross_rope, context_rope=its_rope, remade=remade)
                del normal
        gate, gate_index = own.cross_gate.plus(table[4:])
        return gated_sum(x, out, gate[:, 0], gate_index, fused=self.fused)

    def _feed_forward(self, x: Tensor, ada: Rows, prefix: str, replay: bool, slim: bool) -> Tensor:
        rows, index = ada
        shift, scale, gate = rows[:, 3], rows[:, 4], rows[:, 5]
        ff = getattr(self, f"{prefix}ff")

        def run(x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, part: slice, unread: bool) -> Tensor:
            own = None if index is None else index.part(part)
            unread = unread and not gate.requires_grad  # a gate that is trained needs the value it multiplies
            normal, x = branched_norm(x, scale, shift, own, self.eps, self.fused)
            y = ff(normal, unread)
            del normal
            return gated_sum(x, y, gate, own, unread, self.fused)

        if torch.is_grad_enabled() and not (replay or slim):
            return run(x, shift, scale, gate, slice(None), False)
        step = self.ff_chunk[prefix] or FEED_FORWARD_TOKENS.get(device_type(x), FEED_FORWARD_TOKENS_ELSEWHERE)
        return deferred(run, x, (shift, scale, gate), trainable(ff), step, value=not replay)


def _chosen(blocks: Iterable[int] | Literal["all"] | None, block: int) -> bool:
    return blocks is not None and (blocks == "all" or block in blocks)
