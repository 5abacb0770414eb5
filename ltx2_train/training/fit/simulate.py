"""What one training step holds in memory and moves about, found by running it where tensors have sizes only.

The real model, the real LoRA layers, the real step and the real loss run on the meta device with three blocks instead
of 48, once with the blocks recomputed in backward and once with them kept. Marks between the blocks cut each run into
pieces, and from the pieces the peak of any number of blocks, recomputed in any combination, is put together:

    forward of block j     F + sum of saved(i), i < j, + rise of its forward pass
    last block and loss    F + sum of saved(i) of all before it + rise of that piece
    backward of block j    F + sum of saved(i), i < j, + (blocks after j) * LoRA gradient + what it starts with + rise

F is what the blocks share (contexts, rotations, modulation rows, the batch itself).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...config import RunConfig
from ...device import DTYPES
from ...feed.batches import Batch, GivenData
from ...feed.loader import Sample
from ...models.norms import meta_is
from ...models.transformer import LTXTransformer, Modality, Output, TransformerConfig
from ...shapes import AUDIO_BINS, AUDIO_CHANNELS, LatentShape
from ...sizes import meta_model
from ...threads import heed
from ..contexts import streams_of
from ..step import training_step
from .tracker import LiveBytes, Segment
from .work import Workload, at_worst

BLOCKS = 3
ON_THEIR_WAY = 3  # inputs of blocks that are on the device although they wait elsewhere
_MIDDLE = 1  # the block that stands for all but the last


@dataclass(frozen=True)
class BlockCost:
    """One block, recomputed or kept: bytes it leaves until backward, and the rises of its two passes."""

    saved: int
    forward_rise: int
    begins_with: int
    backward_rise: int
    forward_traffic: int
    backward_traffic: int
    forward_operations: int
    backward_operations: int


@dataclass(frozen=True)
class StepProfile:
    """A step in pieces, in bytes. `gradient` is that of what is trained of one block, 0 where none stays, `stored` what
    `activations` may take away."""

    fixed: int
    recomputed: BlockCost
    kept: BlockCost
    tail_recomputed: Segment
    tail_kept: Segment
    head: Segment
    gradient: int

    def peak(
        self,
        total: int,
        recomputed: Collection[int],
        offloaded: bool = False,
        held_gradients: bool = False,
        text_kv: int = 0,
    ) -> int:
        """Most live bytes of a step of `total` blocks of which those in `recomputed` are worked out again.

        `offloaded`: inputs of recomputed blocks wait elsewhere, but for some on their way. `held_gradients`: those of
        earlier batches of the step are there already. `text_kv`: bytes of text keys and values kept a recomputed block.
        """
        count = total - 1
        costs = [self.recomputed if number in recomputed else self.kept for number in range(count)]
        base = self.fixed + (total * self.gradient if held_gradients else 0)
        tail = self.tail_recomputed if count in recomputed else self.tail_kept
        before = inputs = most = 0  # what blocks before this one left; how many of them their inputs alone
        for number, cost in enumerate(costs):
            live = base + before + (min(inputs, ON_THEIR_WAY) if offloaded else inputs) * self.recomputed.saved
            gradients = 0 if held_gradients else (count - number) * self.gradient
            most = max(most, live + max(cost.forward_rise, gradients + cost.begins_with + cost.backward_rise))
            if cost is self.recomputed:
                inputs, before = inputs + 1, before + text_kv
            else:
                before += cost.saved
        live = base + before + (min(inputs, ON_THEIR_WAY) if offloaded else inputs) * self.recomputed.saved
        return max(most, live + tail.rise)

    def traffic(self, total: int, recomputed: int) -> tuple[int, int]:
        """Bytes read and written outside of matrix products, forward and backward (with what is recomputed)."""
        return self._sums(total, recomputed, "traffic")

    def operations(self, total: int, recomputed: int) -> tuple[int, int]:
        """Operations that are launched, forward and backward."""
        return self._sums(total, recomputed, "operations")

    def _sums(self, total: int, recomputed: int, measure: str) -> tuple[int, int]:
        again = min(recomputed, total - 1)
        plain = total - 1 - again
        tail = self.tail_recomputed if recomputed >= total else self.tail_kept
        forward, backward = (
            again * getattr(self.recomputed, f"{way}_{measure}") + plain * getattr(self.kept, f"{way}_{measure}")
            for way in ("forward", "backward")
        )
        whole = getattr(tail, measure)  # forward and backward of the last block, and the loss
        return forward + getattr(self.head, measure) + whole // 3, backward + whole - whole // 3


def simulate(
    config: TransformerConfig,
    run: RunConfig,
    work: Workload,
    format: str = "none",
    ff_chunk: int = 0,
    device_type: str = "cuda",
    like: StepProfile | None = None,
    lean: bool = True,
) -> StepProfile:
    """The pieces of a step on a device of `device_type`; takes a second or two and next to no memory.

    `like` is the same with another `ff_chunk` or `lean`, which concern recomputed blocks alone: of the others it is
    taken over.
    """
    again = _pieces(config, run, work, format, ff_chunk, device_type, True, lean)
    if like is not None:
        cost = _cost(again, again["f0"].start, again["lora"])
        return replace(like, recomputed=cost, tail_recomputed=again[f"f{BLOCKS - 1}"])
    kept = _pieces(config, run, work, format, ff_chunk, device_type, False, lean)
    fixed = again["f0"].start
    gradient = again["lora"]
    return StepProfile(
        fixed=fixed,
        recomputed=_cost(again, fixed, gradient),
        kept=_cost(kept, fixed, gradient),
        tail_recomputed=again[f"f{BLOCKS - 1}"],
        tail_kept=kept[f"f{BLOCKS - 1}"],
        head=again["head"],
        gradient=0 if run.train.what == "full" and run.full.release_gradients else gradient,
    )


def _cost(pieces: dict[str, Any], fixed: int, gradient: int) -> BlockCost:
    forward, backward = pieces[f"f{_MIDDLE}"], pieces[f"b{_MIDDLE}"]
    before = forward.start - fixed  # saved by the block before
    return BlockCost(
        saved=pieces[f"f{_MIDDLE + 1}"].start - forward.start,
        forward_rise=forward.rise,
        begins_with=backward.start - fixed - before - gradient,
        backward_rise=backward.rise,
        forward_traffic=forward.traffic,
        backward_traffic=backward.traffic,
        forward_operations=forward.operations,
        backward_operations=backward.operations,
    )


def _pieces(
    config: TransformerConfig,
    run: RunConfig,
    work: Workload,
    format: str,
    ff_chunk: int,
    device_type: str,
    recompute: bool,
    lean: bool,
) -> dict[str, Any]:
    model, _ = meta_model(config, run, format, BLOCKS)
    trained = [one for block in model.transformer_blocks for one in block.parameters() if one.requires_grad]
    set_memory(model, run, ff_chunk)
    model.set_lean(lean)
    model.set_recompute(None if recompute else 0)
    batch, contexts = meta_batch(config, run, work)
    tracker = LiveBytes("meta", accelerator=device_type != "cpu")
    with model.polled(heed), meta_is(device_type), tracker:  # a plan asks for many of them
        take_step(model, batch, contexts, run, tracker, work.sound)
    pieces: dict[str, Any] = {segment.name: segment for segment in tracker.segments}
    return {**pieces, "lora": sum(one.nbytes for one in trained) // BLOCKS}


def set_memory(model: LTXTransformer, run: RunConfig, ff_chunk: int) -> None:
    """Those settings of the run's memory that change what a step holds."""
    memory = run.memory
    model.set_ff_chunk(ff_chunk, memory.ff_chunk_target)
    model.set_split(memory.split_attention, memory.split_attention_size, memory.split_attention_target)


def take_step(
    model: LTXTransformer, batch: Batch, contexts: dict[str, torch.Tensor], run: RunConfig, marks: LiveBytes, sound: int
) -> None:
    """Forward, loss and backward of the real step, with a mark at every block."""
    model.train()
    marked = _Marked(model, marks)
    marks.mark("head")
    silent = _Sound(batch) if sound else None
    with marked:
        terms = training_step(marked, batch, contexts, at_worst(run), "2.3", torch.Generator().manual_seed(0), silent)
        terms.loss.mean().backward()
    del terms
    for parameter in model.parameters():
        parameter.grad = None


def meta_batch(
    config: TransformerConfig, run: RunConfig, work: Workload, device: str = "meta"
) -> tuple[Batch, dict[str, torch.Tensor]]:
    """A batch of the sizes of `work` and the text contexts of its streams."""
    dtype, count = DTYPES[run.model.precision], work.batch
    shape = work.shape or LatentShape(1, 1, 1)
    nowhere = Path("-")
    kind = "audio" if work.shape is None else "video"
    sample = Sample("-", shape, work.fps, "", nowhere, nowhere, kind=kind, audio_steps=work.sound,
                    first_frame_probability=float(work.given))  # fmt: skip
    latents = audio = mask = None
    if work.shape is not None:
        latents = torch.zeros(count, shape.channels, shape.frames, shape.height, shape.width, device=device)
    if work.sound:
        audio = torch.zeros(count, AUDIO_CHANNELS, work.sound, AUDIO_BINS, device=device)
        mask = torch.ones(count, work.sound, dtype=torch.bool)
    given: tuple[GivenData, ...] = ()
    if work.references or work.reference_sound or work.slots:
        seen = tuple(
            torch.zeros(size.channels, size.frames, size.height, size.width, device=device) for size in work.references
        )
        heard: tuple[torch.Tensor, ...] = ()
        if work.reference_sound:  # all of them as one, which is as many tokens
            heard = (torch.zeros(AUDIO_CHANNELS, work.reference_sound, AUDIO_BINS, device=device),)
        frames = None
        if work.slots:
            frames = torch.zeros(shape.channels, work.slots, shape.height, shape.width, device=device)
        given = (GivenData(seen, heard, keyframes=frames),) * count
    batch = Batch(latents, [sample] * count, work.fps, 0, 0, audio, mask, given)
    contexts = {
        stream: torch.zeros(count, work.text, width, dtype=dtype, device=device)
        for stream, width in context_widths(config, work.mode).items()
    }
    return batch, contexts


def context_widths(config: TransformerConfig, mode: str) -> dict[str, int]:
    """Width of the text contexts of each stream: as the blocks read them, or (2.0) as they are before a projection."""
    widths = {"video": config.video.context_width, "audio": config.audio.context_width}
    return {s: config.caption_channels if config.projects_captions else widths[s] for s in streams_of(mode)}


class _Marked:
    """The model with marks: "f0", "f1" ... where the forward pass of a block begins, "b1" ... where backward does."""

    def __init__(self, model: LTXTransformer, marks: LiveBytes) -> None:
        self.model, self.marks = model, marks
        self.has_video, self.has_audio = model.has_video, model.has_audio
        self.replaying = False
        self._hooks: list[Any] = []

    def __enter__(self) -> _Marked:
        for number, block in enumerate(self.model.transformer_blocks):
            self._hooks.append(block.register_forward_pre_hook(lambda *_, number=number: self._forward(number)))
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def __call__(self, video: Modality | None, audio: Modality | None, /, **options: Any) -> Output:
        assert not options, "the cost of regularizers is reckoned apart"
        stream = "audio" if video is None else "video"
        last = len(self.model.transformer_blocks) - 1
        out = self.model(video, audio, keep_hidden=[f"{stream}.{number}" for number in range(last)])
        for number in range(last):
            out.hidden[f"{stream}.{number}"].register_hook(lambda _, number=number: self._backward(number))
        self.replaying = True  # from here on blocks run for their gradient
        return Output(out.video, out.audio)

    def _forward(self, number: int) -> None:
        if not self.replaying:
            self.marks.mark(f"f{number}")

    def _backward(self, number: int) -> None:
        self.marks.mark(f"b{number}")


class _Sound:
    """Stands in for what a run keeps about sound. Its samples count as silence: what is logged of real ones is a
    number a sample, and picking them out needs values."""

    silence_weight = 1.0

    def __init__(self, batch: Batch) -> None:
        count = len(batch.samples)
        assert batch.audio is not None
        self._latents = batch.audio
        self._lengths = [batch.audio.shape[2]] * count

    def latents(self, batch: Batch) -> tuple[torch.Tensor | None, list[int], list[bool]]:
        return self._latents, self._lengths, [False] * len(self._lengths)

    def weight(self, *_: Any) -> float:
        return 1.0
