"""Chooses how a run uses memory: the fastest that fits, at the best quality that is worth its time.

Formats are tried in the order of what they keep of the weights: as they are; then those that are `planned`, by their
signal to noise: int8 after a rotation (41 dB), fp8 (32 dB), nf4 (21 dB). A worse one is taken where the better one does
not fit, or takes more than SLOWER times as long; one below 8 bits only where nothing in 8 bits fits. Within a format
every number of swapped blocks is tried, each with as few recomputed blocks as fit. Settings that the user made are kept
as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...config import RunConfig
from ...errors import ConfigError
from ...offload.settings import MemorySettings
from ...optim import find_optimizer
from ...quant.formats import FORMATS, planned_formats
from .estimate import device_parts, offloaded_bytes, predict, ram_bytes
from .facts import KEPT, Facts
from .machine import GB, GIB, PLENTY, Machine, card
from .memory_plan import CHUNKS, Choice, MemoryPlan, Prediction, seconds

WHOLE = 16  # bits of a base that is not quantized
LEAST_WORTH_IT = 8  # below so many bits a format is taken only where nothing else fits
# text keys and values of recomputed blocks, and whether they are lean, in the order of what it costs
KEPT_OF_REPLAYS = ((True, False), (False, False), (False, True))
SLOWER = 1.5
PLAIN, LEANER = "adamw", "adamw8bit"  # optimizers that `auto` comes to
AS_FAST = 1.05  # within this share of the fastest the choice with the fewest moving parts is better
TAKEN = 1.5 * GB  # what others hold of a card before it is worth a word


@dataclass(frozen=True)
class Candidate:
    """A choice with its prediction."""

    choice: Choice
    prediction: Prediction


def make_plan(config: RunConfig, facts: Facts, machine: Machine, stored: MemoryPlan | None = None) -> MemoryPlan:
    """The plan of a run. `stored` is that of the run folder, whose format stays where the settings leave it open.

    Where the optimizer is open, it is AdamW, which is fast; the one with a state of 8 bits is taken where AdamW does
    not fit, or where what it saves is worth more than its launches cost. Raises ConfigError where nothing fits, with
    the smallest need and what to change.
    """
    if config.optimizer.name != "auto":
        return _make_plan(config, facts, machine, stored)
    runs = {name: _with_optimizer(config, name) for name in (PLAIN, LEANER)}
    leaner_there = (
        facts.device_type == "cuda" and config.memory.fit != "custom" and not find_optimizer(LEANER).missing()
    )
    plain: MemoryPlan | None = None
    try:
        plain = _make_plan(runs[PLAIN], replace(facts, run=runs[PLAIN]), machine, stored)
        if not leaner_there or not _hampered(plain.choice):
            return plain
    except ConfigError:
        if not leaner_there:
            raise
    lean = _make_plan(runs[LEANER], replace(facts, run=runs[LEANER]), machine, stored)
    both = [replace(facts, run=runs[name]).state_bytes for name in (PLAIN, LEANER)]
    saved = facts.lora_values * (both[0] - both[1]) / GB
    if plain is None:
        why = f"Optimizer {LEANER}, whose state takes {saved:.1f} GB less; with {PLAIN} nothing fits."
    elif plain.format != lean.format or lean.prediction.seconds * AS_FAST < plain.prediction.seconds:
        why = (
            f"Optimizer {LEANER}, whose state takes {saved:.1f} GB less; with {PLAIN} it would be "
            f"{plain.choice.describe(plain.total)} and {seconds(plain.prediction.seconds)} a step."
        )
    else:
        return plain
    return replace(lean, reasons=(*lean.reasons, why))


def _with_optimizer(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"name": name})})


def _make_plan(config: RunConfig, facts: Facts, machine: Machine, stored: MemoryPlan | None) -> MemoryPlan:
    """The same, with an optimizer that is chosen."""
    machine = fitted(config, machine)
    memory = config.memory
    formats = _formats(config, facts, stored)
    if memory.fit == "custom" or facts.device_type != "cuda":
        return _as_given(config, facts, machine, formats[0])
    search = _Search(config, facts, machine)
    chosen, rejected, why = _by_quality(search, formats)
    if chosen is None:
        raise ConfigError(_too_small(search, formats))
    reasons = [why] if why else []
    if (text := taken(machine)) is not None:
        reasons.insert(0, text)
    if stored is not None and stored.format == chosen.choice.format and config.quant.format == "auto":
        reasons.append("The run began with this format and keeps it.")
    reasons += _words(chosen, facts)
    return _plan(chosen, facts, machine, tuple(reasons), tuple(rejected), search.fixed)


def fitted(config: RunConfig, machine: Machine) -> Machine:
    """`machine` as far as memory.fit lets the run use it."""
    fit = config.memory.fit
    if fit in ("auto", "custom") or machine.device_type != "cuda":
        return machine
    return replace(machine, limit=min(card(int(fit), machine.ram, machine.disk).limit, machine.limit))


def taken(machine: Machine) -> str | None:
    """A sentence where other programs hold much of the card."""
    if machine.taken < TAKEN:
        return None
    return (
        f"Other programs hold {machine.taken / GB:.1f} of the {machine.total / GB:.1f} GB of the card; the plan is "
        f"made for the {max(0.0, machine.limit) / GB:.1f} GB that are free."
    )


class _Search:
    """The choices that the settings leave open, and which of them fit."""

    def __init__(self, config: RunConfig, facts: Facts, machine: Machine) -> None:
        self.config, self.facts, self.machine, self.total = config, facts, machine, facts.total
        self.memory = config.memory
        self.fixed = fixed_settings(config, self.total)
        self._best: dict[str, Candidate | None] = {}

    def best(self, format: str) -> Candidate | None:
        """The fastest choice of `format` that fits; None where none does."""
        if format not in self._best:
            candidates: list[Candidate] = []
            for chunk in self._chunks():
                candidates = [candidate for swap in self._swaps() for candidate in self._fitting(format, swap, chunk)]
                if candidates:
                    break
            self._best[format] = _least_of_fast(candidates) if candidates else None
        return self._best[format]

    def leanest(self, format: str) -> Candidate:
        """The choice that takes least of the device, whether it fits or not."""
        swap, again = self._swaps()[-1], self._recomputes(self._swaps()[-1])[-1]
        choice = self._choice(format, swap, again, self._offloads()[-1], (False, True), self._chunks()[-1])
        return Candidate(choice, predict(self.facts, choice, self.machine))

    def _fitting(self, format: str, swap: int, chunk: int) -> Iterator[Candidate]:
        for offload in self._offloads():
            for replays in KEPT_OF_REPLAYS:
                counts = self._recomputes(swap)
                low, high, fewest = 0, len(counts) - 1, None
                while low <= high:  # more recomputed takes less memory and more time
                    middle = (low + high) // 2
                    choice = self._choice(format, swap, counts[middle], offload, replays, chunk)
                    if self._fits(choice):
                        fewest, high = choice, middle - 1
                    else:
                        low = middle + 1
                if fewest is not None:
                    yield Candidate(fewest, predict(self.facts, fewest, self.machine))
                    break

    def _choice(
        self, format: str, swap: int, again: int, offload: bool, replays: tuple[bool, bool], chunk: int
    ) -> Choice:
        memory, ram, (text_kv, lean) = self.memory, self.machine.ram, replays
        choice = Choice(
            format, swap, again, offload, False, "ram", memory.swap_ahead, text_kv and again > 0, chunk, lean
        )
        choice = replace(choice, shards=shards_of(self.config))
        if memory.swap_from != "auto":
            choice = replace(choice, swap_from=memory.swap_from)
        elif swap and ram_bytes(self.facts, choice, self.machine.limit) > ram:
            choice = replace(choice, swap_from="file")
        if memory.pinned is not None:
            return replace(choice, pinned=memory.pinned, pinned_gb=memory.pinned_gb)
        return replace(choice, **self._locked(choice))

    def _locked(self, choice: Choice) -> dict[str, Any]:
        """What of the RAM of `choice` is locked: inputs of blocks first, since copies of those that are not hold up the
        thread that launches; then as many swapped blocks as there is room for."""
        left = min(self.machine.lockable, PLENTY * self.machine.ram) - offloaded_bytes(self.facts, choice)
        swapped = choice.blocks_to_swap * self.facts.sizes(choice.format).block if choice.swap_from == "ram" else 0.0
        if left < 0 or choice.swap_from == "file":
            return {"pinned": False}
        most = self.memory.pinned_gb
        left = left if most is None else min(left, most * GIB)
        return {"pinned": True, "pinned_gb": None if swapped <= left else round(left / GIB, 2)}

    def _fits(self, choice: Choice) -> bool:
        limit = self.machine.limit
        vram = sum(device_parts(self.facts, choice).values())
        return vram <= limit and ram_bytes(self.facts, choice, limit) <= self.machine.ram

    def _chunks(self) -> tuple[int, ...]:
        """Tokens of a feed-forward at a time: what the device chooses, and what is tried where that does not fit."""
        return (self.memory.ff_chunk,) if self.memory.ff_chunk else (0, CHUNKS[0])

    def _swaps(self) -> list[int]:
        given = self.memory.blocks_to_swap
        if self.config.train.what == "full" or self.memory.shard:
            return [0]
        if given is not None:
            return [given]
        most = self._recomputes(0)[-1]  # what is swapped is recomputed
        return list(range(min(most, self.total - 1) + 1))

    def _recomputes(self, swap: int) -> list[int]:
        """Numbers of recomputed blocks, fewest first; those that are swapped must be."""
        if not self.memory.gradient_checkpointing:
            return [0]
        if self.memory.shard:
            return [self.total]
        given = self.memory.recompute_blocks
        if given is not None:
            return [min(given, self.total)]
        return list(range(swap, self.total + 1))

    def _offloads(self) -> list[bool]:
        given = self.memory.offload_activations
        return [False, True] if given is None else [given]


def shards_of(config: RunConfig) -> int:
    """How many cards the blocks are shared out over."""
    return config.train.processes if config.memory.shard else 1


def fixed_settings(config: RunConfig, total: int) -> tuple[str, ...]:
    """Fields of a choice that the user decided. Raises ConfigError where they contradict each other."""
    memory = config.memory
    recompute = memory.recompute_blocks if memory.gradient_checkpointing else 0
    swap = memory.blocks_to_swap
    if swap is not None and swap > total - 1:
        raise ConfigError(
            f"memory.blocks_to_swap is {swap}, but the model has {total} blocks and one stays on the card. Set it to "
            f"at most {total - 1}, or leave it out: the plan finds the number that is needed."
        )
    if swap and recompute is not None and min(recompute, total) < swap:
        what = "memory.gradient_checkpointing is off" if not memory.gradient_checkpointing else (
            f"memory.recompute_blocks is {recompute}"
        )  # fmt: skip
        raise ConfigError(
            f"memory.blocks_to_swap is {swap} and {what}: blocks that are swapped must be recomputed, since their "
            f"weights are gone when backward comes. Set memory.recompute_blocks to at least {swap}, or swap fewer."
        )
    given = {
        "blocks_to_swap": swap is not None or config.train.what == "full",
        "recompute_blocks": recompute is not None,
        "offload_activations": memory.offload_activations is not None,
        "pinned": memory.pinned is not None,
        "swap_from": memory.swap_from != "auto",
        "ff_chunk": memory.ff_chunk != 0,
    }
    return tuple(name for name, there in given.items() if there)


def require_format(config: RunConfig, stored: MemoryPlan | None) -> None:
    """Raise ConfigError where quant.format is not that of the plan `stored`, which the run began with."""
    if stored is None or config.train.what == "full" or config.quant.format in ("auto", stored.format):
        return
    raise ConfigError(
        f"quant.format is {config.quant.format}, but the run began with {stored.format}, and its LoRA was trained on "
        "that base. Put the setting back (or to auto), choose another run.name, or set run.if_exists to 'new'."
    )


def _formats(config: RunConfig, facts: Facts, stored: MemoryPlan | None) -> tuple[str, ...]:
    if config.train.what == "full":
        return ("none",)
    found = _known_formats(config, facts, stored)
    if not config.memory.shard:
        return found
    if "none" not in found:
        raise ConfigError(
            f"memory.shard is on, and the run began with a base in {found[0]}: only weights as they are can be shared "
            "out. Switch memory.shard off, so that each card holds the base whole, or choose another run.name."
        )
    return ("none",)


def _known_formats(config: RunConfig, facts: Facts, stored: MemoryPlan | None) -> tuple[str, ...]:
    require_format(config, stored)
    given = config.quant.format
    if given != "auto":
        return (given,)
    if stored is not None:
        return (stored.format,)
    if facts.stored_as:
        return (KEPT,)
    return ("none", *planned_formats())


def _by_quality(search: _Search, formats: tuple[str, ...]) -> tuple[Candidate | None, list[str], str]:
    """(the candidate, sentences on those that were passed over, why it is this one)."""
    chosen: Candidate | None = None
    rejected: list[str] = []
    why = ""
    tried: set[int] = set()
    for format in formats:
        bits = FORMATS.get(format).storage.bits if format in FORMATS else WHOLE
        if chosen is not None and (bits < LEAST_WORTH_IT or not _hampered(chosen.choice)):
            break
        if bits in tried:
            continue  # as large as the other and further from the original
        candidate = search.best(format)
        if candidate is None:
            need = search.leanest(format).prediction
            short = f"{_name(format)} does not fit: it needs at least {need.vram / GB:.1f} GB on the card and "
            rejected.append(f"{short}{need.ram / GB:.0f} GB of RAM.")
            continue
        tried.add(bits)
        if chosen is None:
            chosen = candidate
            why = "" if not rejected else f"{_name(format)} is the closest to the original that fits."
        else:
            times = chosen.prediction.seconds / candidate.prediction.seconds
            if times > SLOWER:
                rejected.append(
                    f"{_name(chosen.choice.format)} would take {seconds(chosen.prediction.seconds)} a step, "
                    f"{times:.1f} times as long."
                )
                why = f"{_name(format)}, because the better format is {times:.1f} times slower here."
                chosen = candidate
            else:
                saved = chosen.prediction.seconds - candidate.prediction.seconds
                gain = f"would save {seconds(saved)} a step" if saved > 0.005 else "would not be faster"
                rejected.append(f"{_name(format)} {gain}: not worth what is lost of the weights.")
    return chosen, rejected, why


def _hampered(choice: Choice) -> bool:
    """Whether more memory could make it faster."""
    return bool(choice.blocks_to_swap or choice.recompute_blocks or choice.offload_activations)


def _least_of_fast(candidates: list[Candidate]) -> Candidate:
    fastest = min(candidate.prediction.seconds for candidate in candidates)
    fast = [candidate for candidate in candidates if candidate.prediction.seconds <= AS_FAST * fastest]
    return min(fast, key=lambda c: (c.choice.offload_activations, c.choice.blocks_to_swap, c.choice.recompute_blocks))


def _as_given(config: RunConfig, facts: Facts, machine: Machine, format: str) -> MemoryPlan:
    """What the settings say, planned no further: memory.fit = custom, and devices whose memory is the RAM."""
    memory, total = config.memory, facts.total
    fixed_settings(config, total)
    custom = memory.fit == "custom"
    recompute = total if memory.recompute_blocks is None else min(memory.recompute_blocks, total)
    choice = Choice(
        format,
        memory.blocks_to_swap or 0,
        recompute if memory.gradient_checkpointing else 0,
        bool(memory.offload_activations),
        bool(memory.pinned),
        "ram" if memory.swap_from == "auto" else memory.swap_from,
        memory.swap_ahead,
        ff_chunk=memory.ff_chunk,
        lean=custom,
        pinned_gb=memory.pinned_gb,
        shards=shards_of(config),
    )
    candidate = Candidate(choice, predict(facts, choice, machine))
    if not custom and not choice.lean and candidate.prediction.ram > machine.ram:
        choice = replace(choice, lean=True)
        candidate = Candidate(choice, predict(facts, choice, machine))
    reasons, need = [], candidate.prediction
    if custom:
        reasons.append("The settings are taken as they are (memory.fit = custom).")
        if need.vram > machine.limit:
            reasons.append(
                f"{need.vram / GB:.1f} GB are predicted and {machine.limit / GB:.1f} GB are free: it may fail."
            )
    elif need.ram > machine.ram:
        raise ConfigError(_too_little_ram(need.ram, machine.ram))
    else:
        reasons.append(f"On {machine.device_type} the whole model lies in RAM.")
    reasons += _of_validation(facts, candidate.prediction)
    fixed = tuple(Choice.__dataclass_fields__) if custom else fixed_settings(config, total)
    return _plan(candidate, facts, machine, tuple(reasons), (), fixed)


def _plan(
    chosen: Candidate,
    facts: Facts,
    machine: Machine,
    reasons: tuple[str, ...],
    rejected: tuple[str, ...],
    fixed: tuple[str, ...],
) -> MemoryPlan:
    if chosen.choice.shards > 1:  # a card that went on with another plan by itself would leave the others waiting
        fixed = tuple(Choice.__dataclass_fields__)
    return MemoryPlan(
        choice=chosen.choice,
        optimizer=facts.run.optimizer.name,
        total=facts.total,
        prediction=chosen.prediction,
        limit=machine.limit,
        ram_limit=machine.ram,
        device_type=facts.device_type,
        reasons=(*reasons, *_unused(facts.run.memory, chosen.choice)),
        rejected=rejected,
        fixed=fixed,
        predict=lambda choice: predict(facts, choice, machine),
    )


def _unused(memory: MemorySettings, choice: Choice) -> list[str]:
    """A sentence on the settings of swapped blocks where the plan swaps none."""
    if choice.blocks_to_swap:
        return []
    given = {
        "swap_ahead": memory.swap_ahead != 1,
        "swap_from": memory.swap_from != "auto",
        "pinned": bool(memory.pinned) and not choice.offload_activations,
        "pinned_gb": memory.pinned_gb is not None,
    }
    names = [f"memory.{name}" for name, there in given.items() if there]
    have = "has" if len(names) == 1 else "have"
    return [f"{' and '.join(names)} {have} no effect: no block is swapped."] if names else []


def _words(chosen: Candidate, facts: Facts) -> list[str]:
    choice, total = chosen.choice, facts.total
    reasons = []
    if choice.swap_from == "file" and choice.blocks_to_swap:
        reasons.append(
            "RAM is too small for the swapped blocks, so they are read from the file each time, which is slow."
        )
    if choice.blocks_to_swap == 0 and choice.recompute_blocks == 0:
        reasons.append("Everything fits; nothing is swapped or recomputed.")
    elif choice.blocks_to_swap >= total - 1:
        reasons.append("As many blocks as possible are swapped.")
    return [*reasons, *_of_validation(facts, chosen.prediction)]


def _of_validation(facts: Facts, prediction: Prediction) -> list[str]:
    """What a measurement of the clips held out takes, where there are any."""
    count, levels = facts.work.held_out, facts.run.validation.levels
    if not count:
        return []
    times = f"{count} clip{'s' if count > 1 else ''} at {levels} noise level{'s' if levels > 1 else ''}"
    return [f"Each validation ({times}) takes about {seconds(prediction.validation)}."]


def _too_small(search: _Search, formats: tuple[str, ...]) -> str:
    leanest = min((search.leanest(format) for format in formats), key=lambda c: c.prediction.vram)
    machine, need = search.machine, leanest.prediction
    if need.vram <= machine.limit and need.ram > machine.ram:
        return _too_little_ram(need.ram, machine.ram)
    sentence = (
        f"The largest batch of the run ({search.facts.work.describe()}) does not fit: the leanest plan "
        f"({leanest.choice.describe(search.total)}) needs {need.vram / GB:.1f} GB on the card and "
        f"{need.ram / GB:.0f} GB of RAM; {max(0.0, machine.limit) / GB:.1f} and {machine.ram / GB:.0f} GB can be used. "
        "Make the clips shorter (target_frames), smaller (resolution) or fewer at a time (batch_size) in the dataset"
    )
    full = search.config.train.what == "full"
    if full:
        sentence += (
            ", train fewer weights (full.include_patterns), let gradients go (full.release_gradients), or train a LoRA"
        )
    elif search.config.lora.rank > 16:
        sentence += f", lower lora.rank ({search.config.lora.rank})"
    if fixed := [name for name in search.fixed if not (full and name == "blocks_to_swap")]:
        sentence += f", leave out the settings of memory that you fixed ({', '.join(fixed)})"
    if search.config.quant.format == "none":
        sentence += ', or set quant.format to "auto"'
    other = taken(machine)
    return f"{sentence}.{' ' + other if other else ''}"


def _too_little_ram(need: float, there: float) -> str:
    return (
        f"The run needs about {need / GB:.1f} GB of RAM and {there / GB:.1f} GB can be used. Close other programs, set "
        "quant.format to int8_rotated or nf4, or lower memory.blocks_to_swap."
    )


def _name(format: str) -> str:
    return {"none": "The unquantized base", KEPT: "The quantized file"}.get(format, format)
