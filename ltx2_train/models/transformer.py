"""The LTX-2 audio-video diffusion transformer (19B), its successors 2.3 and 2.5 (22B) and LTX-Video (2B, 13B) before
it, for training adapters on them.

It predicts velocities (noise minus data) of video tokens, audio tokens, or both at once. Module names are those of
the original checkpoints, so their keys load after the prefix `model.diffusion_model.` is cut off. A modality that the
mode leaves out has no modules and costs nothing.

Timestep of the attention between modalities: shift and scale follow a token's own timestep, the gate follows the
noise level of the other modality ("how much of the other can be trusted"). The first public code used other rules;
this is the one its authors later named as the intended one. All agree where everything has one noise level.

2.5 adds a learned vector to the tokens that stand for a single picture frame: the first latent frame of what is drawn.
LTX-Video has video alone, and differs in what config.LTX_VIDEO lists.

The file is long because a model's switches (recompute, kernels, chunks, compile) stand beside the blocks they set.

LTX-2: HaCohen et al. 2026, arXiv:2601.03233.

Shape letters: B batch, T tokens, S context tokens, C latent channels, D width, R distinct timesteps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from ..shapes import MODES
from .adaln import AdaLN, Rows, distinct, given_or_not, of_two_levels
from .attention import Attention, text_mask, token_mask
from .blocks import BASE_ROWS, TEXT_ROWS, Block, SkipLayers, Stream
from .config import Side, TransformerConfig
from .fused import Fused
from .kernels import QUERIES, SPLITS, find_kernel
from .norms import RowIndex, device_type, rows_of_tokens, slices, wide
from .plain_text import split_marked
from .recompute import Kept, Remade, Shares, Store, recomputed, trainable
from .rope import Rope, rope_table
from .routes import TokenRoute, check_routes, kept_of, put_back, stream_of
from .trial import why_not_compiled

logger = logging.getLogger(__name__)

__all__ = ["LTXTransformer", "Modality", "Output", "SkipLayers", "TransformerConfig"]

# the words that name each attention of a block, and each feed-forward by its prefix
ATTENTIONS = {
    "attn1": ("all", "self", "video"),
    "audio_attn1": ("all", "self", "audio"),
    "attn2": ("all", "cross", "text_cross", "video"),
    "audio_attn2": ("all", "cross", "text_cross", "audio"),
    "audio_to_video_attn": ("all", "cross", "av_cross"),
    "video_to_audio_attn": ("all", "cross", "av_cross"),
}
FEED_FORWARDS = {"all": ("", "audio_"), "video": ("",), "audio": ("audio_",)}


@dataclass(frozen=True)
class Modality:
    """The input of one modality.

    `timesteps` are per token, in 0..1; None means `sigma` for all of them but those that are `given`, which are at 0.
    Given tokens are better told so than by their timesteps, which have to be compared. `context_mask` keeps where it is
    not zero; None keeps all. `attention_mask` weighs whom a token attends to, from 0 (not at all) to 1. A modality that
    is not `enabled` is seen by the other one and left as it is.

    The first `unseen` tokens are not attended to by the other modality, the first `textless` do not attend to the text:
    both are left out of the products, so neither needs a mask.

    `single` are the tokens of the first latent frame, which holds one picture frame; references are none of them. The
    last `slots` tokens are those of keyframe slots, each of which stands for one picture frame too.
    """

    latent: Tensor  # [B, T, C]
    sigma: Tensor  # [B] float32
    timesteps: Tensor | None  # [B, T] or [B, 1] float32
    positions: Tensor  # [B or 1, axes, T, 2] float32
    context: Tensor  # [B, S, D]
    context_mask: Tensor | None = None  # [B, S]
    attention_mask: Tensor | None = None  # [B, T, T], or [B, 1, T] where it is the same for all that attend
    enabled: bool = True
    unseen: int = 0
    textless: int = 0
    given: Tensor | None = None  # [B, T] bool
    lead: int | None = None  # tokens given at the start of every sample, where no others are
    single: slice | None = None
    slots: int = 0
    second: Tensor | None = None  # [B] float32, the noise level of the tokens that are `masked`
    masked: Tensor | None = None  # [B, T] bool

    @property
    def token_timesteps(self) -> Tensor:
        """[B, T] or [B, 1]."""
        if self.timesteps is not None:
            return self.timesteps
        if self.masked is not None:
            values, index = self.levels()
            assert index is not None
            return values[index.rows]
        return self.sigma.unsqueeze(1) if self.given is None else torch.where(self.given, 0.0, self.sigma.unsqueeze(1))

    def levels(self) -> tuple[Tensor, RowIndex | None]:
        """The distinct timesteps [R], and which of them each token has; None where each sample has one (R = B)."""
        if self.timesteps is not None:
            return distinct(self.timesteps)
        if self.masked is not None:
            assert self.second is not None, "masked tokens have a noise level of their own"
            return of_two_levels(self.sigma, self.second, self.masked, self.given)
        return (self.sigma, None) if self.given is None else given_or_not(self.sigma, self.given, self.lead)


@dataclass(frozen=True)
class Output:
    """Velocities [B, T, C] of the modalities given, and the kept hidden states [B, T, D] by name."""

    video: Tensor | None
    audio: Tensor | None
    hidden: dict[str, Tensor] = field(default_factory=dict)


Levels = tuple[Tensor, RowIndex | None]  # distinct timesteps [R], and which each token has


class Residence(Protocol):
    """Where the weights of the blocks are. Inside `visiting`, block `number` is on the device that computes.

    Methods `resident(number) -> bool` and `shares(number) -> Shares | None`, where there are such, are asked too.
    """

    def visiting(self, number: int, backward: bool) -> AbstractContextManager[Any]: ...


class CaptionProjection(nn.Module):
    """Text features to a stream's context width (2.0 and LTX-Video)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(gelu(self.linear_1(x), approximate="tanh"))


class LTXTransformer(nn.Module):
    """The transformer with the modules of `mode`: "video", "audio" or "av".

    `recompute` holds the numbers of the blocks that are worked out again in backward; all of them at first. Of the last
    block this concerns the feed-forward only.

    `residence` is entered round the work of every block: its forward pass, and in backward once round its second run
    and the gradients. A block that is not recomputed in training, and the last one, have no second run, so they must be
    resident. `activations` takes the inputs of recomputed blocks instead of autograd.

    With `keep_text_kv` recomputed blocks keep keys and values of the text, 2 B S D numbers a stream and block, and
    multiply the text once. Gradients stay exact, for adapters on these linears too.
    """

    scale_shift_table: nn.Parameter
    keyframes_abs_pos_embedding: nn.Parameter
    audio_scale_shift_table: nn.Parameter
    patchify_proj: nn.Module
    audio_patchify_proj: nn.Module

    def __init__(self, config: TransformerConfig, mode: str = "av") -> None:
        super().__init__()
        assert mode in MODES, mode
        assert mode == "video" or config.has_sound, f"mode {mode} of a model without sound"
        self.config, self.mode = config, mode
        self.recompute = frozenset(range(config.num_layers))
        self.residence: Residence | None = None
        self._poll: Callable[[], None] | None = None
        self.activations: Store | None = None
        self.keep_text_kv = False
        self._tried_on: tuple[torch.device, torch.dtype] | None = None  # where compiled passes have had their trial
        self.has_video, self.has_audio = mode != "audio", mode != "video"
        rows = BASE_ROWS + (TEXT_ROWS if config.cross_attention_adaln else 0)
        if self.has_video:
            self._add_side("", config.video, rows)
            if config.use_keyframes_abs_pos_embedding:
                self.keyframes_abs_pos_embedding = nn.Parameter(torch.zeros(1, config.video.width))
        if self.has_audio:
            self._add_side("audio_", config.audio, rows)
        if mode == "av":
            self.av_ca_video_scale_shift_adaln_single = AdaLN(config.video.width, 4)
            self.av_ca_audio_scale_shift_adaln_single = AdaLN(config.audio.width, 4)
            self.av_ca_a2v_gate_adaln_single = AdaLN(config.video.width, 1)
            self.av_ca_v2a_gate_adaln_single = AdaLN(config.audio.width, 1)
        self.transformer_blocks = nn.ModuleList(Block(config, mode) for _ in range(config.num_layers))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the streams are computed in."""
        return (self.scale_shift_table if self.has_video else self.audio_scale_shift_table).dtype

    @property
    def device(self) -> torch.device:
        """Where the streams are computed."""
        return (self.scale_shift_table if self.has_video else self.audio_scale_shift_table).device

    def set_recompute(self, blocks: int | Collection[int] | None) -> None:
        """Recompute these blocks in backward: None means all, a number the first so many, else exactly those."""
        count = self.config.num_layers
        if blocks is None or isinstance(blocks, int):
            blocks = range(count if blocks is None else min(blocks, count))
        assert all(0 <= number < count for number in blocks), f"blocks {sorted(blocks)} of a model with {count}"
        self.recompute = frozenset(blocks)

    def set_attention(self, kernel: str) -> str | None:
        """Compute attentions without a mask by "sdpa", "flash2" or "flash3" from now on.

        Returns why it is SDPA nevertheless, else None. To be called when the model is on its device.
        """
        found, reason = find_kernel(kernel, self.device, self.dtype)
        for attention in self._attentions("all"):
            attention.way = attention.way._replace(kernel=found)
        return reason

    def set_split(self, mode: str = "off", size: int = 0, target: str = "all") -> str | None:
        """Compute the attentions that `target` names in pieces: "batch" sample by sample, "query" `size` queries at a
        time (0: 1024); "off" and all others whole. Returns why nothing is split where something was asked for."""
        assert mode in SPLITS, mode
        assert size >= 0, size
        for attention in self._attentions("all"):
            attention.way = attention.way._replace(split="off")
        chosen = self._attentions(target)
        for attention in chosen:
            attention.way = attention.way._replace(split=mode, queries=size or QUERIES)
        if mode == "off" or chosen:
            return None
        return _absent("split_attention_target", target, "attention", self.mode)

    def set_ff_chunk(self, tokens: int = 0, target: str = "all") -> str | None:
        """Pass `tokens` at a time through the feed-forwards of `target` ("all", "video", "audio") where they are
        recomputed or need no gradient. 0, and others, choose by device. Returns why nothing changes, else None."""
        assert tokens >= 0, tokens
        prefixes = FEED_FORWARDS[target]
        for block in self._blocks():
            block.ff_chunk = {prefix: tokens if prefix in prefixes else 0 for prefix in block.ff_chunk}
        there = (self.has_video and "" in prefixes) or (self.has_audio and "audio_" in prefixes)
        return None if there or tokens == 0 else _absent("ff_chunk_target", target, "feed-forward", self.mode)

    def set_lean(self, on: bool = True) -> None:
        """Whether blocks that are worked out again make their norms a third time, rather than keep them for a while."""
        for block in self._blocks():
            block.lean = on

    def set_compile(self, on: bool | None = True) -> str | None:
        """Compile the pointwise work of the blocks with torch.compile, after a small trial on the model's device; and
        the unpacking of stored weights whose modules have an attribute `unpacking`. None lets a longer trial decide on
        CUDA, once, and compiles nothing elsewhere.

        Returns why it is not compiled where it was asked for, else None. What fails later is logged once and runs
        uncompiled from then on.
        """
        here = (self.device, self.dtype)
        if on is None and self._tried_on == here:
            return None
        self._tried_on = here if on is None else None
        wanted = self.device.type == "cuda" if on is None else on
        fused = Fused() if wanted else None
        reason = None if fused is None else fused.try_out(self.device, self.dtype)
        if fused is not None and reason is None and on is None:
            side = self.config.video if self.has_video else self.config.audio
            reason = why_not_compiled(fused, self.device, self.dtype, side.width, side.heads)
        if on is None and wanted:
            logger.info("compiled passes: %s", "taken" if reason is None else f"not taken, {reason}")
        fused = fused if reason is None else None
        for module in (*self._blocks(), *self._attentions("all")):
            module.fused = fused
        # of their own: a card that cannot compile for a storage format goes on with the rest
        unpacking = None if fused is None else Fused()
        for module in self.modules():
            if "unpacking" in vars(module):
                vars(module)["unpacking"] = unpacking
        return None if on is None else reason

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.transformer_blocks))

    def _attentions(self, target: str) -> list[Attention]:
        names = [name for name, targets in ATTENTIONS.items() if target in targets]
        assert names, f"no attentions are called {target!r}"
        return [getattr(block, name) for block in self.transformer_blocks for name in names if hasattr(block, name)]

    def forward(
        self,
        video: Modality | None,
        audio: Modality | None,
        *,
        skip: SkipLayers | None = None,
        keep_hidden: Collection[str] = (),
        routes: Sequence[TokenRoute] = (),
        last: int | None = None,
    ) -> Output:
        """Velocities of the modalities given. `keep_hidden` names streams after blocks: "video.12", "audio.0".

        `routes` lead tokens of the picture around some blocks. `last` ends the pass after that block, for the hidden
        states alone: there are no velocities then.
        """
        assert video is not None or audio is not None, "no modality given"
        assert video is None or self.has_video, f"video given to a model of mode {self.mode}"
        assert audio is None or self.has_audio, f"audio given to a model of mode {self.mode}"
        v = None if video is None else self._stream("", self.config.video, video, audio)
        a = None if audio is None else self._stream("audio_", self.config.audio, audio, video)
        # the first block keeps no input for its second run: it is made again from the latents, which cost less
        embedded = Remade(0 in self.recompute and self.activations is None and not self._embedding_is_trained())
        vx = None if video is None else embedded.note(self._embed_video, video)
        ax = None if audio is None else embedded.note(self._embed_audio, audio)
        hidden: dict[str, Tensor] = {}
        check_routes(routes, len(self.transformer_blocks))
        begins = {} if v is None else {route.first: route for route in routes}
        on: tuple[TokenRoute, Tensor, Stream] | None = None  # the route, all tokens before it, and what holds for them
        for number, block in enumerate(self.transformer_blocks):
            if (route := begins.get(number)) is not None:
                assert vx is not None
                assert v is not None
                on = route, vx, v
                vx, v = kept_of(vx, route.kept), stream_of(v, route.kept)
            left_out = frozenset() if skip is None else skip.at(number)
            saving = torch.is_grad_enabled() and number in self.recompute
            if saving and number + 1 < len(self.transformer_blocks):
                with embedded if number == 0 else nullcontext():
                    vx, ax = self._recomputed(number, block, vx, ax, v, a, left_out)
            else:
                # backward begins at the last block: what it keeps would be there again at once, at the same peak
                assert not torch.is_grad_enabled() or self._is_resident(number), (
                    f"the weights of block {number} come and go, but it is not recomputed in backward, which needs them"
                )
                with self._visit(number, False):
                    vx, ax = block(vx, ax, v, a, left_out, slim=saving)
            if on is not None and number == on[0].last:
                assert vx is not None
                vx, v, on = put_back(vx, on[0].kept, on[1]), on[2], None
            for name, x in ((f"video.{number}", vx), (f"audio.{number}", ax)):
                if name in keep_hidden:
                    assert x is not None, f"{name} is to be kept, but the modality was not given"
                    hidden[name] = x
            if number == last:
                return Output(None, None, hidden)
        assert len(hidden) == len(set(keep_hidden)), f"unknown names in keep_hidden: {set(keep_hidden) - set(hidden)}"
        return Output(self._velocity("", vx, v), self._velocity("audio_", ax, a), hidden)

    def cross_levels(self, own: Modality, other: Modality, levels: Levels) -> tuple[Levels, Levels]:
        """Timesteps that scale and shift `own` between the modalities, and those that gate it; `levels` are its own."""
        return levels, (other.sigma, None)

    def _add_side(self, prefix: str, side: Side, rows: int) -> None:
        setattr(self, f"{prefix}patchify_proj", nn.Linear(side.in_channels, side.width))
        if self.config.projects_captions:
            projection = CaptionProjection(self.config.caption_channels, side.width)
            setattr(self, f"{prefix}caption_projection", projection)
        setattr(self, f"{prefix}adaln_single", AdaLN(side.width, rows))
        if self.config.cross_attention_adaln and self.config.use_prompt_adaln_single:
            setattr(self, f"{prefix}prompt_adaln_single", AdaLN(side.width, 2))
        setattr(self, f"{prefix}scale_shift_table", nn.Parameter(torch.zeros(2, side.width)))
        setattr(self, f"{prefix}proj_out", nn.Linear(side.width, side.out_channels))

    def _stream(self, prefix: str, side: Side, own: Modality, other: Modality | None) -> Stream:
        """Everything about one modality that the blocks share, computed once."""
        config = self.config
        context, context_mask = own.context.to(self.dtype), own.context_mask
        if context.shape[-1] == config.read_width(side) + 1:
            context, context_mask = split_marked(context)
        if config.projects_captions:
            context = getattr(self, f"{prefix}caption_projection")(context)
        levels = own.levels()  # once: comparing them would make a card wait
        ada, embedded = self._rows(f"{prefix}adaln_single", *levels)
        prompt = cross = cross_gate = cross_rope = None
        if config.cross_attention_adaln and config.use_prompt_adaln_single:
            prompt, _ = self._rows(f"{prefix}prompt_adaln_single", own.sigma, None)
        elif config.cross_attention_adaln:  # the tables of the blocks alone, whatever the noise level
            prompt = Rows(wide(context.new_zeros(1, 2, side.width)).expand(len(context), -1, -1), None)
        if other is not None:
            name, direction = ("audio", "v2a") if prefix else ("video", "a2v")
            shifted, (gated, gate_index) = self.cross_levels(own, other, levels)
            factor = config.av_ca_timestep_scale_multiplier / config.timestep_scale_multiplier
            cross, _ = self._rows(f"av_ca_{name}_scale_shift_adaln_single", *shifted)
            cross_gate, _ = self._rows(f"av_ca_{direction}_gate_adaln_single", gated * factor, gate_index)
            # the attention between modalities rotates by time alone, in the audio width
            longest = max(config.video.max_pos[0], config.audio.max_pos[0])
            cross_rope = self._rope(
                prefix, own.positions[:, :1], config.audio_cross_attention_dim, side.heads, (longest,)
            )
        return Stream(
            ada=ada,
            embedded=embedded,
            context=context,
            context_mask=text_mask(context_mask, self.dtype),
            attention_mask=token_mask(own.attention_mask, self.dtype),
            rope=self._rope(prefix, own.positions, side.width, side.heads, side.max_pos),
            enabled=own.enabled,
            prompt=prompt,
            cross=cross,
            cross_gate=cross_gate,
            cross_rope=cross_rope,
            unseen=own.unseen,
            textless=own.textless,
        )

    def _embedding_is_trained(self) -> bool:
        names = ("patchify_proj", "audio_patchify_proj")
        return any(trainable(getattr(self, name)) for name in names if hasattr(self, name))

    def _embed_audio(self, audio: Modality) -> Tensor:
        return self.audio_patchify_proj(audio.latent.to(self.dtype))

    def _embed_video(self, video: Modality) -> Tensor:
        """Video tokens [B, T, D], those that stand for a single picture frame marked as such."""
        x = self.patchify_proj(video.latent.to(self.dtype))
        if video.single is None or not self.config.use_keyframes_abs_pos_embedding:
            return x
        start, stop, slots = video.single.start, video.single.stop, x.shape[1] - video.slots
        mark = self.keyframes_abs_pos_embedding.to(x.dtype)
        parts = (x[:, :start], x[:, start:stop] + mark, x[:, stop:slots], x[:, slots:] + mark)
        return torch.cat(parts if video.slots else (*parts[:2], x[:, stop:]), dim=1)

    def _rows(self, name: str, values: Tensor, index: RowIndex | None) -> tuple[Rows, Rows]:
        rows, embedded = getattr(self, name)(values.float() * self.config.timestep_scale_multiplier, self.dtype)
        return Rows(rows, index), Rows(embedded, index)

    def _rope(self, prefix: str, positions: Tensor, width: int, heads: int, max_pos: tuple[float, ...]) -> Rope:
        config = self.config
        if not config.use_middle_indices_grid:
            positions = positions[..., :1]  # where a cell begins
        return rope_table(
            positions,
            width,
            heads,
            max_pos,
            config.positional_embedding_theta,
            interleaved=config.rope_type == "interleaved",
            double=config.frequencies_precision == "float64",
            # tokens of a picture share their places, those of sound do not; an accelerator has room and no time
            by_place=not prefix and device_type(positions) == "cpu",
        )

    @contextmanager
    def polled(self, poll: Callable[[], None]) -> Iterator[None]:
        """Have `poll` called before each block, forward and in backward where blocks are recomputed: a pass takes
        seconds, and what `poll` raises ends it."""
        self._poll, before = poll, self._poll
        try:
            yield
        finally:
            self._poll = before

    def _visit(self, number: int, backward: bool) -> AbstractContextManager[Any]:
        if self._poll is not None:
            self._poll()
        return nullcontext() if self.residence is None else self.residence.visiting(number, backward)

    def _is_resident(self, number: int) -> bool:
        resident = getattr(self.residence, "resident", None)
        return resident is None or bool(resident(number))

    def _shares(self, number: int) -> Shares | None:
        shares = getattr(self.residence, "shares", None)
        return None if shares is None else shares(number)

    def _recomputed(
        self,
        number: int,
        block: nn.Module,
        vx: Tensor | None,
        ax: Tensor | None,
        video: Stream | None,
        audio: Stream | None,
        skip: frozenset[str],
    ) -> tuple[Tensor | None, Tensor | None]:
        """The block, keeping only what goes into it. A stream that the block leaves alone goes around it."""
        streams = (video, audio)
        changed = [stream is not None and stream.enabled for stream in streams]
        inputs = [vx, ax, *(t for stream in streams if stream is not None for t in stream.tensors())]

        kept = Kept()
        text_kv = kept if self.keep_text_kv else None

        def run(vx: Tensor | None, ax: Tensor | None, *rest: Tensor | None, replay: bool) -> tuple[Tensor, ...]:
            tensors = iter(rest)
            v, a = (None if stream is None else stream.with_tensors(tensors) for stream in streams)
            out = block(vx, ax, v, a, skip, replay, text_kv=text_kv, results=kept)
            return tuple(x for x, new in zip(out, changed, strict=True) if new)

        # a stream that is not changed is the same tensor before every block
        stored = [place for place, new in enumerate(changed) if new]
        scope, shares = partial(self._visit, number), self._shares(number)
        changed_streams = iter(recomputed(run, inputs, trainable(block), scope, self.activations, stored, kept, shares))
        vx, ax = (next(changed_streams) if new else x for x, new in zip((vx, ax), changed, strict=True))
        return vx, ax

    def _velocity(self, prefix: str, x: Tensor | None, stream: Stream | None) -> Tensor | None:
        if stream is None:
            return None
        assert x is not None
        rows, index = stream.embedded
        shift, scale = (rows + row for row in getattr(self, f"{prefix}scale_shift_table").to(rows.dtype))
        parts = list(slices(x, index))  # or three tensors of the size of x would be there at once
        out = []
        for part, piece in zip(parts, x.split([part.stop - part.start for part in parts], dim=1), strict=True):
            normal = layer_norm(piece, x.shape[-1:], eps=self.config.norm_eps)
            factor, added = rows_of_tokens(scale + 1, index, part), rows_of_tokens(shift, index, part)
            out.append(getattr(self, f"{prefix}proj_out")((normal * factor + added).to(x.dtype)))
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)


def _absent(setting: str, target: str, what: str, mode: str) -> str:
    return f"memory.{setting} is {target}, but a model of mode {mode} has no such {what}: nothing is changed by it."
