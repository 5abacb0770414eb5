"""The plan against the device: one step on the largest batch before the first, and what to do when memory runs out.

A trial changes nothing that a run remembers: the LoRA, the optimizer, every random generator and the counts of sound
are afterwards as they were. In a run, a step that fails for want of memory is undone the same way, the plan goes one
notch down, and the same batches are taken again.

An error keeps the frames it passed through alive, and they hold the tensors that did not fit. So nothing is moved or
freed before the error is gone: `guarded` leaves the `except` first.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...device import out_of_memory, release, wait
from ...errors import OutOfMemory, OutOfRam
from ...events import Events
from ...feed.batches import Batch, load_batch
from ...full.optimizer import WeightOptimizer
from ...optim import find_optimizer
from ..contexts import streams_of
from ..ready import Ready, make_ready
from ..step import training_step
from .memory_plan import MemoryPlan, seconds
from .work import at_worst, largest_batch

if TYPE_CHECKING:
    from ..setup import Run

T = TypeVar("T")
Apply = Callable[[MemoryPlan], None]


@dataclass(frozen=True)
class Trial:
    """What a step on the largest batch took: bytes on the device (None where they cannot be measured) and seconds.

    `plan` is the one that was in force when it went through.
    """

    plan: MemoryPlan
    vram: float | None
    seconds: float
    text: str


def try_largest(
    run: Run,
    plan: MemoryPlan,
    apply: Apply,
    events: Events,
    *,
    step: Callable[[], None] | None = None,
    forced: bool | None = None,
) -> Trial | None:
    """Take a step on the largest batch of `run`, twice for the time, without the optimizer; None where it is skipped.

    `apply(plan)` puts a leaner plan in force. Without `forced` it runs on CUDA, and elsewhere where memory.fit names a
    size. Raises OutOfMemory where the leanest plan does not do.
    """
    if forced is None:
        forced = run.device.type == "cuda" or run.config.memory.fit not in ("auto", "custom")
    if not forced:
        return None
    events.stage("try the largest batch")
    take = step
    if take is None:
        take = partial(_forward_and_backward, run, load_batch(run.data, largest_batch(run.order, run.config)), events)
    guard = OomGuard(plan, apply, events, run.device)
    # its state now, so that the trial holds all that a step does, and memory that runs out over it costs a notch
    prepare = find_optimizer(run.config.optimizer.name).prepare
    if prepare is not None:
        optimizer = run.optimizer
        whole = isinstance(optimizer, WeightOptimizer)
        make = partial(optimizer.prepare, prepare) if whole else partial(prepare, optimizer)
        guarded(make, guard, "making the optimizer's state")

    def attempt() -> tuple[float | None, float]:
        with unchanged(run):  # the first step on a device compiles and tunes, the second tells how long one takes
            _reset_peak(run.device)
            take()
            for parameter in moved_parameters(run):
                parameter.grad = None
            wait(run.device)
            begun = time.perf_counter()
            take()
            wait(run.device)
            return _peak(run.device), time.perf_counter() - begun

    while True:
        peak, taken = guarded(attempt, guard, "trying the largest batch")
        if peak is not None:
            peak += _moments_to_come(run, guard.plan)
        if peak is None or guard.plan.limit <= 0 or peak <= guard.plan.limit or guard.plan.notch_down() is None:
            break
        # nothing failed, since the card is larger than what the run may use of it
        guard.too_much(peak)
    text = _compare(guard.plan, peak, taken)
    events.message(text)
    return Trial(guard.plan, peak, taken, text)


class OomGuard:
    """Holds the plan that is in force and puts the next leaner one in its place when memory runs out.

    `save` is called first, where given, and says what it saved.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        apply: Apply,
        events: Events,
        device: torch.device,
        save: Callable[[], str] | None = None,
    ) -> None:
        self.plan, self.device = plan, device
        self._apply, self._events, self._save = apply, events, save

    def caught(self, error: BaseException, doing: str) -> OutOfMemory | None:
        """`error` as one for the user where memory ran out, and nothing holds on to its tensors; else None."""
        found = error if isinstance(error, OutOfMemory) else out_of_memory(error, doing)
        if found is not None:
            _let_go(error)
        return found

    def down(self, error: OutOfMemory) -> None:
        """One notch down. Raises `error` where nothing is left to give up, or where RAM is full beside a card: what
        a notch takes from the card goes to RAM."""
        saved = self._save() if self._save is not None else ""
        if isinstance(error, OutOfRam) and self.device.type == "cuda":
            raise error
        leaner = self.plan.notch_down()
        if leaner is None:
            fixed = f" Settings that you fixed were kept: {', '.join(self.plan.fixed)}." if self.plan.fixed else ""
            raise OutOfMemory(f"{error} The plan has nothing left to give up.{fixed}")
        self._put(leaner, f"Out of memory. {saved} ".replace("  ", " "))

    def too_much(self, peak: float) -> None:
        """One notch down because more was used than the run may."""
        leaner = self.plan.notch_down()
        assert leaner is not None
        self._put(leaner, f"{peak / 1e9:.1f} GB were used and {self.plan.limit / 1e9:.1f} GB are to be used at most. ")

    def _put(self, leaner: MemoryPlan, before: str) -> None:
        release(self.device)
        self._events.message(f"{before}From here on {self.plan.difference(leaner)}.", "warning")
        self._apply(leaner)
        self.plan = leaner
        release(self.device)


def guarded(step: Callable[[], T], guard: OomGuard, doing: str) -> T:
    """The result of `step()`, taken again with the next leaner plan as long as memory runs out.

    `step` must undo what it did when it fails; `unchanged` helps. Raises OutOfMemory where no leaner plan is left.
    """
    while True:
        try:
            return step()
        except (RuntimeError, MemoryError, OutOfMemory) as error:
            full = guard.caught(error, doing)
            if full is None:
                raise
        guard.down(full)


@contextmanager
def unchanged(run: Run, keep: bool = False) -> Iterator[None]:
    """Put gradients, dropout draws, random generators and the counts of sound of `run` back afterwards.

    With `keep` only where an error comes out of it, for a step that is taken again.
    """
    loras, sound = run.loras, run.sound
    draws = {path: layer.dropout_draws for path, layer in loras.layers.items()}
    gradients = (
        [None if p.grad is None else p.grad.detach().clone() for p in moved_parameters(run)] if not keep else None
    )
    heard = None if sound is None else (sound.balance.state_dict(), sound.monitor.state_dict())
    random = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None
    done = False
    try:
        yield
        done = True
    finally:
        if not (done and keep):
            for path, layer in loras.layers.items():
                layer.dropout_draws = draws[path]
            for index, parameter in enumerate(moved_parameters(run)):
                parameter.grad = None if gradients is None else gradients[index]
            if sound is not None and heard is not None:
                sound.balance.load_state_dict(heard[0])
                sound.monitor.load_state_dict(heard[1])
            torch.set_rng_state(random)
            if on_device is not None:
                torch.cuda.set_rng_state(on_device, run.device)


class Rewound:
    """Batches that can be had again: those taken since `begin`, in the same order, after `rewind`."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self._taken: list[Ready] = []
        self._again: list[Ready] = []

    def __iter__(self) -> Rewound:
        return self

    def __next__(self) -> Ready:
        batch = self._again.pop(0) if self._again else next(self._batches)
        self._taken.append(batch)
        return batch

    def begin(self) -> None:
        """A new step: what was taken before is not needed again."""
        self._taken.clear()

    def rewind(self) -> None:
        """The batches of this step come again."""
        self._again = [*self._taken, *self._again]
        self._taken.clear()

    def close(self) -> None:
        """Stop reading ahead."""
        self._batches.close()


def take_guarded(run: Run, batches: Rewound, guard: OomGuard, micro_steps: Callable[[], T]) -> T:
    """The gradients of one step by `micro_steps()`, which draws from `batches`; again, leaner, when memory runs out."""
    batches.begin()

    def attempt() -> T:
        try:
            with unchanged(run, keep=True):
                return micro_steps()
        except BaseException:
            batches.rewind()
            raise

    return guarded(attempt, guard, f"training step {run.step + 1}")


def moved_parameters(run: Run) -> list[torch.nn.Parameter]:
    """What a step moves: the LoRA, and what regularizers train beside it."""
    return [*run.loras.parameters(), *(() if run.regularizers is None else run.regularizers.parameters())]


def _forward_and_backward(run: Run, batch: Batch, events: Events) -> None:
    run.model.train()
    keys = [sample.text_path for sample in batch.samples]
    contexts = {s: run.contexts.batch(keys, s, run.device) for s in streams_of(run.config.model.mode)}
    generator = torch.Generator().manual_seed(run.config.train.seed)
    config = at_worst(run.config)
    polled = contextlib.nullcontext() if run.peers.several else run.model.polled(events.check_stop)
    with run.loras.held(run.model.dtype), polled:
        if run.regularizers is None:
            terms = training_step(run.model, batch, contexts, config, run.version, generator, run.sound)
            run.scaler.scale(terms.loss.mean()).backward()
            return
        here = {name: context.cpu() for name, context in contexts.items()}
        ready = make_ready(run.model, batch, here, config, run.version, generator, run.sound)
        ready = run.regularizers.drawn(ready, generator, run.step).sent(lambda tensor: tensor.to(run.device))
        for terms in run.regularizers.parts(run.model, ready, run.sound):
            run.scaler.scale(terms.loss.mean()).backward()


def _reset_peak(device: torch.device) -> None:
    release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def _moments_to_come(run: Run, plan: MemoryPlan) -> float:
    """Bytes of optimizer state that the first real step adds, where it could not be made before."""
    if run.optimizer.state:
        return 0.0
    return plan.prediction.parts.get("optimizer", 0.0)


def _compare(plan: MemoryPlan, peak: float | None, taken: float) -> str:
    text = f"The largest batch takes {seconds(taken)} (predicted: {seconds(plan.prediction.seconds)})"
    if peak is None:
        return f"{text}."
    tensors = plan.prediction.vram - sum(plan.prediction.parts.get(name, 0.0) for name in ("workspace", "fragments"))
    return f"{text} and {peak / 1e9:.1f} GB of the device (predicted: {tensors / 1e9:.1f} GB)."


def _let_go(error: BaseException) -> None:
    """Empty the frames that `error` and what led to it came through."""
    seen: BaseException | None = error
    while seen is not None:
        if seen.__traceback__ is not None:
            traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


__all__ = ["OomGuard", "Rewound", "Trial", "guarded", "take_guarded", "try_largest", "unchanged"]
