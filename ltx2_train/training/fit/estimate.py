"""From a choice to bytes and seconds.

Device, in bytes:

    weights     blocks that stay, what is outside of the blocks, and the slots through which swapped blocks pass; of
                blocks that are shared out over cards, the part of one card
    LoRA        4 for each trainable number, and 2 for its copy in bf16 or fp16; their gradients are part of the step
    trained     instead of the LoRA, where the weights themselves are: as they are stored, 4 more with float32 copies
    optimizer   what it keeps for each trainable number
    step        the peak of the simulated step
    regularizers    hidden states and what is compared with them, and what is trained beside the LoRA
    workspace   of cuBLAS and kernels, 0.4 GB: an assumption
    samples     what one forward pass for a sample, or for a clip of the validation, takes more than a step
    fragments   5 % of LoRA, optimizer and step, which an allocator loses in holes: an assumption

RAM: blocks that are swapped, inputs of blocks that wait there, text contexts (up to memory.context_gb; the rest is a
file), batches read ahead, and the process itself; instead of what training has, while loading one block in full and
half a GB, and while samples are decoded the weights that make room on the card.

Disk: saved states and LoRAs, contexts that spill over, and 3 MB for each sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...config import DrawSettings
from ...families import VERSIONS
from ...objective.audio import audio_steps
from ...sampling.decoded import decode_bytes
from ...sampling.two_stages import upsampling_bytes
from ...shapes import VideoShape, floor_frames
from .facts import KEPT, Facts
from .machine import GB, GIB, Machine, Rates
from .memory_plan import Choice, Prediction
from .simulate import StepProfile
from .speed import step_seconds

WORKSPACE = 0.4 * GB
FRAGMENTS = 0.05
PROCESS = {"cuda": 3.0 * GB}  # Python, torch and the libraries of the device; 1 GB elsewhere
LOADING = 0.5 * GB
SAMPLE = 3e6
NUMBER = 4  # bytes of a trainable number and of its gradient
COPIES = 4  # of one weight in float32 while its optimizer works: itself, gradient, update and what that is made of


def predict(facts: Facts, choice: Choice, machine: Machine) -> Prediction:
    """What a run of `facts` with `choice` takes on `machine`."""
    parts, ram = device_parts(facts, choice), ram_bytes(facts, choice, machine.limit)
    vram = sum(parts.values())
    if facts.device_type != "cuda":  # the device is the RAM
        vram = ram = vram + ram
    step, forward = _seconds(facts, choice, machine)
    measured = facts.work.held_out * facts.run.validation.levels * forward * _held_out_share(facts)
    return Prediction(vram, ram, _disk(facts, choice), step, parts, measured)


def device_parts(facts: Facts, choice: Choice) -> dict[str, float]:
    """Bytes on the device by what they are for."""
    sizes, total, swap = facts.sizes(choice.format), facts.total, choice.blocks_to_swap
    profile = facts.profile(choice.format, choice.ff_chunk, choice.lean)
    slots = choice.slots
    inside = profile.gradient  # of one block
    profile = replace(profile, gradient=inside // choice.shards)
    step = profile.peak(
        total,
        choice.recomputed(total),
        choice.offload_activations,
        facts.run.train.accumulation > 1 or facts.regularizers.steps > 0,  # gradients of an earlier backward pass
        facts.text_kv_bytes if choice.keep_text_kv else 0,
    )
    values = _values_here(facts, choice)
    lora, state = values * facts.value_bytes, values * facts.state_bytes
    if facts.full:
        step += sizes.outside_values * facts.gradient_bytes
        state += COPIES * NUMBER * sizes.largest
    whole, parted = (1, total - 1) if choice.shards > 1 else (total - swap, 0)
    gathered = sizes.block
    if parted:  # the block at work, what it is gathered into, and the next one on its way
        slots = min(3, parted)
        if facts.full:
            gathered += (facts.lora_values - sizes.outside_values) // total * facts.itemsize
            step += 2 * inside  # the gradient of a whole block, and what it is sent in
    parts = {
        "weights": float((whole + parted / choice.shards) * sizes.block + sizes.outside),
        "slots": float(slots * gathered),
        "trained" if facts.full else "LoRA": float(lora),
        "optimizer": state,
        "step": float(step),
    }
    beside = facts.regularizers
    if held := beside.bytes + beside.trained * (2 * NUMBER + facts.state_bytes):  # with its gradient
        parts["regularizers"] = float(held)
    if facts.device_type != "cuda":
        return parts
    measuring = (profile.fixed + profile.recomputed.forward_rise) * _held_out_share(facts)
    drawing = max(0.0, denoise_bytes(facts, profile) - step, measuring - step)
    return {**parts, "samples": drawing, "workspace": WORKSPACE, "fragments": FRAGMENTS * (lora + state + step)}


def _values_here(facts: Facts, choice: Choice) -> float:
    """Trained numbers that one card holds: of weights that are shared out its part."""
    if choice.shards == 1 or not facts.full:
        return facts.lora_values
    outside, total = facts.sizes(choice.format).outside_values, facts.total
    return outside + (facts.lora_values - outside) * (1 + (total - 1) / choice.shards) / total


def ram_bytes(facts: Facts, choice: Choice, limit: float = float("inf")) -> float:
    """Bytes in RAM besides what is on a device that has memory of its own, of which `limit` may be used."""
    sizes, run = facts.sizes(choice.format), facts.run
    slots = choice.swap_ahead + 2
    swapped = choice.blocks_to_swap if choice.swap_from == "ram" else min(slots, choice.blocks_to_swap)
    inputs = offloaded_bytes(facts, choice)
    contexts = min(run.memory.context_gb * GIB, facts.work.captions * facts.context_bytes)
    training = inputs + contexts + (run.data.prefetch + 1) * facts.work.latent_bytes
    loading = facts.sizes("none").block + LOADING
    drawing = contexts + moved_for_samples(facts, choice, limit)
    return PROCESS.get(facts.device_type, 1.0 * GB) + swapped * sizes.block + max(training, loading, drawing)


def offloaded_bytes(facts: Facts, choice: Choice) -> float:
    """Of the inputs of blocks that wait in RAM."""
    if not choice.offload_activations:
        return 0.0
    profile = facts.profile(choice.format, choice.ff_chunk, choice.lean)
    return float(len(choice.recomputed(facts.total)) * profile.recomputed.saved)


def moved_for_samples(facts: Facts, choice: Choice, limit: float) -> float:
    """Bytes of weights that make room for the decoder of samples, or for their upsampler: resident blocks, one by one,
    once the slots are free."""
    if not facts.run.sample.wanted or facts.work.mode == "audio" or facts.device_type != "cuda":
        return 0.0
    sample, shape = facts.run.sample, _sample_shape(facts)
    sizes, decoder = facts.sizes(choice.format), decode_bytes(sample.tiles, shape)
    if sample.upsampler is not None:
        decoder = max(decoder, upsampling_bytes(sample.upsampler, shape.latent()))
    resident = facts.total - choice.blocks_to_swap
    there = resident * sizes.block + sizes.outside + facts.lora_values * (NUMBER + facts.state_bytes)
    lacking = there + decoder - limit
    return float(min(resident, max(0, math.ceil(lacking / max(1, sizes.block)))) * sizes.block)


def denoise_bytes(facts: Facts, profile: StepProfile) -> float:
    """What a forward pass for a sample takes on a card, reckoned from that of training in proportion to its tokens."""
    sample, work = facts.run.sample, facts.work
    if not sample.wanted:
        return 0.0
    shape = _sample_shape(facts)
    tokens = shape.latent().tokens if work.mode != "audio" else audio_steps(shape.frames, shape.fps)
    trained = work.batch * (work.video_tokens or work.audio_tokens)
    return (profile.fixed + profile.recomputed.forward_rise) * tokens / max(1, trained)


def _held_out_share(facts: Facts) -> float:
    """How much larger the largest clip of the validation is than the largest batch."""
    work = facts.work
    return work.held_out_tokens / max(1, work.batch * (work.video_tokens or work.audio_tokens))


def _sample_shape(facts: Facts) -> VideoShape:
    sample = DrawSettings.of(facts.run.sample, VERSIONS[-1])  # the rate alone is of the model, and counts for sound
    return VideoShape(floor_frames(sample.frames), sample.height, sample.width, sample.fps)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a card receives from the others: `gathered` in each pass over the blocks, `scattered` more of
    gradients in each backward pass, and `averaged` once a step. It sends as many."""

    gathered: float = 0.0
    scattered: float = 0.0
    averaged: float = 0.0

    def of_step(self, batches: int) -> float:
        """Bytes of a step of so many batches."""
        return batches * (2 * self.gathered + self.scattered) + self.averaged


def between_cards(facts: Facts, choice: Choice) -> Traffic:
    """What the cards of a run send each other. Of what is shared out each lacks the parts of the others; of what all
    have, gradients are added up in parts, and the sums of the parts sent round."""
    count, shards = facts.run.train.processes, choice.shards
    if count == 1:
        return Traffic()
    lacking, apart = 1 - 1 / count, facts.total - 1 if shards > 1 else 0
    sizes, parted = facts.sizes(choice.format), 0.0
    block = float(sizes.block)
    if facts.full:
        per_block = (facts.lora_values - sizes.outside_values) / facts.total
        block, parted = block + per_block * facts.itemsize, apart * per_block
    return Traffic(
        gathered=lacking * apart * block,
        scattered=lacking * parted * facts.gradient_bytes,
        averaged=2 * lacking * (facts.lora_values - parted) * facts.gradient_bytes,
    )


def _link(facts: Facts, choice: Choice, rates: Rates) -> float:
    """Bytes a second over which swapped blocks come: some perhaps from locked RAM, the others not. Between cards it is
    the rate of locked RAM, since a card has that link at least."""
    if choice.shards > 1:
        return rates.pinned
    whole = choice.blocks_to_swap * facts.sizes(choice.format).block
    if not choice.pinned or choice.pinned_gb is None or not whole:
        return rates.pinned if choice.pinned else rates.pageable
    locked = min(1.0, choice.pinned_gb * GIB / whole)
    return 1 / (locked / rates.pinned + (1 - locked) / rates.pageable)


def _disk(facts: Facts, choice: Choice) -> float:
    run, values = facts.run, facts.lora_values
    as_in_file = choice.format == KEPT or (choice.format == "none" and run.model.precision == "bf16")
    scratch = 0 if choice.swap_from == "ram" or as_in_file else choice.blocks_to_swap * facts.sizes(choice.format).block
    train = run.train
    saves = 1 + (train.steps // train.save_every if train.save_every else 0)
    number = facts.value_bytes if facts.full else NUMBER
    states = min(train.keep_states, saves) * values * (number + facts.state_bytes)
    loras = (min(train.keep_loras, saves) if train.keep_loras else saves) * values * 2 * (2 if run.ema.decay else 1)
    if facts.full:
        loras = min(run.full.keep, saves) * facts.file_bytes
    drawn = train.steps // run.sample.every + 1 if run.sample.every else 0
    contexts = max(0.0, facts.work.captions * facts.context_bytes - run.memory.context_gb * GIB)
    return states + loras + drawn * 2 * SAMPLE + contexts + scratch


def _seconds(facts: Facts, choice: Choice, machine: Machine) -> tuple[float, float]:
    """Of a step, and of a forward pass alone."""
    sizes, rates = facts.sizes(choice.format), machine.rates
    link = _link(facts, choice, rates)
    if choice.swap_from == "file":
        link = min(link, rates.disk)
    profile = facts.profile(choice.format, choice.ff_chunk, choice.lean)
    inputs = offloaded_bytes(facts, choice)
    held_up = inputs if not choice.pinned else 0
    traffic = between_cards(facts, choice)
    forward, micro = step_seconds(
        facts.flops,
        profile,
        rates,
        total=facts.total,
        recomputed=choice.recompute_blocks,
        streamed_bytes=choice.blocks_to_swap * sizes.block + traffic.gathered,
        staying_bytes=choice.slots * sizes.block,
        link=link,
        offloaded_bytes=inputs - held_up,
        blocking_bytes=held_up,
        scattered_bytes=traffic.scattered,
        text_kv=choice.keep_text_kv,
        compiled=bool(facts.run.memory.compile),  # what a trial will find is not known yet
    )
    micro += facts.regularizers.forwards * forward + facts.regularizers.steps * micro
    # gradient read, value and state read and written
    number = facts.value_bytes if facts.full else NUMBER
    update = (facts.gradient_bytes + 2 * number + 2 * facts.state_bytes) * _values_here(facts, choice)
    launches = facts.update_seconds if facts.device_type == "cuda" else 0.0
    update_seconds = update / rates.bandwidth + launches + traffic.averaged / rates.pinned
    return micro * facts.run.train.accumulation + update_seconds, forward
