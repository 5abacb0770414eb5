"""The training loop: step, and once in a while save and sample; whatever ends it, the state is on disk.

A step is the mean of `accumulation` micro-batches. All its random numbers come from the run's seed and the step's own
number, so a resumed run draws what an unbroken one would have drawn. A loss or gradient that is not finite never
reaches the weights: the batch is named and left out, and five in a row end the run.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import RunConfig
from ..device import out_of_memory, release
from ..errors import RunError, Stopped, TrainerError
from ..events import Events, shielded
from ..feed.batches import Batch, Batches
from ..optim import state_aside
from .checks import check, check_settings
from .contexts import streams_of
from .fit.trial import OomGuard, Rewound, take_guarded, try_largest
from .metrics import LOSS, STREAMS, loss_column
from .saving import complete, save, save_after_error
from .setup import Run, load
from .step import training_step
from .watch import norm_row

MAX_BAD_STEPS = 5
DROPOUT_COINS = 1  # purpose of a generator: noise is purpose 0, and must not shift when captions are dropped


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves: its folder, its last LoRA and how far it got."""

    folder: Path
    lora: Path
    step: int
    total: int
    summary: str


def train(config: RunConfig, events: Events | None = None) -> RunResult:
    """Train, or go on training, the run that `config` describes.

    Raises Stopped once everything is saved when the user asked to stop, and TrainerError for what the user can mend.
    """
    events = shielded(events)
    check_settings(config)
    checked = check(config, events)
    try:
        if (lora := checked.finished_lora()) is not None:
            text = f"Finished before: {checked.total} steps. Raise train.steps to go on. LoRA: {lora}"
            return RunResult(checked.folder.path, lora, checked.total, checked.total, text)
        try:
            run = load(checked, events)
        except (RuntimeError, MemoryError) as error:
            raise out_of_memory(error, "loading the model") or error from error
        try:
            return _loop(run, events)
        finally:
            run.close()
    except BaseException as error:
        checked.folder.close(_ending(error))
        raise
    finally:
        checked.folder.close()


def _loop(run: Run, events: Events) -> RunResult:
    settings, started, first = run.config, time.monotonic(), run.step
    lora: Path | None = None
    clean = True  # false while the weights are being changed: a state written then would mix two steps
    batches = Rewound(Batches(run.data, run.order, run.place, settings.data.prefetch))
    bad = 0
    assert run.log is not None, "load opens it"
    finished = False  # the last save is done; its samples may be missing
    try:
        if (trial := try_largest(run, run.plan, run.apply, events)) is not None:
            run.plan = trial.plan
        guard = OomGuard(run.plan, run.apply, events, run.device, lambda: save_after_error(run, events, "running"))
        if run.step == 0 and settings.sample.wanted and settings.sample.at_start:
            _draw(run, events)
        events.stage("train", run.total)
        try:
            run.folder.write_manifest("running", run.step, total=run.total, state=run.step)
        except RunError as error:  # the states alone will do
            events.message(str(error), "warning")
        if run.step < run.total:
            complete(run, events)
        while run.step < run.total:
            begun = time.monotonic()
            terms, names, place = take_guarded(run, batches, guard, lambda: _micro_steps(run, batches, events))
            run.scaler.unscale_(run.optimizer)
            limit = settings.train.clip_norm or math.inf
            norm = float(torch.nn.utils.clip_grad_norm_(run.loras.parameters(), limit))
            rates = run.rates()
            finite = math.isfinite(terms[LOSS]) and math.isfinite(norm)
            clean = False
            if finite:
                run.scaler.step(run.optimizer)
            run.scaler.update()
            run.schedule.step()
            run.optimizer.zero_grad(set_to_none=True)
            epoch_ended = place[0] if place[0] > run.place[0] else 0
            run.step, run.place = run.step + 1, place
            clean = True
            if run.sound is not None:
                run.sound.keep()
            every = settings.train.norms_every
            row = {
                "step": run.step,
                **terms,
                **rates,
                "grad_norm": norm,
                "seconds": time.monotonic() - begun,
                "epoch": place[0],
                "skipped": None if finite else names,
                **(norm_row(run.loras) if every and run.step % every == 0 else {}),
            }
            bad = 0 if finite else bad + 1
            row = run.log.append(row)
            events.step({**row, "total": run.total, "eta": _eta(run, started, first)})
            if not finite:
                _report_bad(run, names, bad, events)
            run.watch.step(heard=terms[loss_column("audio")] is not None)
            last = run.step == run.total
            if last or _due(run.step, settings.train.save_every, epoch_ended, settings.train.save_every_epochs):
                lora = save(run, events, "finished" if last else "running", final=last)
                finished = last
            draw = _due(run.step, settings.sample.every, epoch_ended, settings.sample.every_epochs)
            if draw or (last and settings.sample.wanted):
                _draw(run, events)
                events.stage("train", run.total)
        if lora is None:  # the run had finished before
            lora = save(run, events, "finished", final=True)
        seconds = time.monotonic() - started
        done = run.step - first
        summary = f"{run.step} of {run.total} steps done ({done} in {_clock(seconds)}). LoRA: {lora}"
        return RunResult(run.folder.path, lora, run.step, run.total, summary)
    except BaseException as error:
        full = out_of_memory(error, f"training step {run.step + 1}") if isinstance(error, Exception) else None
        if finished:
            kept = "State and LoRA are saved."
        elif clean:
            kept = save_after_error(run, events, _ending(error))
        else:
            kept = "The last saved state is kept."
        if isinstance(error, Stopped):
            raise Stopped(f"Stopped after step {run.step} of {run.total}. {kept} Run again to go on.") from None
        if full is not None:
            raise type(full)(f"{full} {kept}") from error
        if isinstance(error, TrainerError):
            error.args = (f"{error} {kept}", *error.args[1:])
        elif isinstance(error, Exception):
            events.message(kept, "warning")
        raise
    finally:
        batches.close()


def _ending(error: BaseException) -> str:
    """The status of a run that `error` ended."""
    return "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"


def _micro_steps(run: Run, batches: Rewound, events: Events) -> tuple[dict[str, Any], list[str], tuple[int, int]]:
    """Gradients of one step. Returns its columns of the metrics, the names of its clips and the place after it."""
    count, seed = run.config.train.accumulation, run.config.train.seed
    columns: dict[str, list[torch.Tensor | float]] = {}
    names: list[str] = []
    place = run.place
    run.model.train()
    for micro in range(count):
        if events.should_stop():
            raise Stopped
        batch = next(batches)
        place = run.order.following(batch.epoch, batch.index)
        contexts = _contexts(run, batch, _generator(seed, run.step, micro, DROPOUT_COINS))
        terms = training_step(
            run.model,
            batch,
            contexts,
            run.config,
            run.version,
            _generator(seed, run.step, micro),
            run.sound,
            turn=run.step * count + micro,
        )
        mean = terms.loss.mean()
        run.scaler.scale(mean / count).backward()
        for column, value in terms.columns().items():
            columns.setdefault(column, []).append(value)
        names += [sample.key for sample in batch.samples]
        if run.sound is not None and (text := run.sound.watch(batch)):
            events.message(text, "warning")
    # what some batches of the step lack is averaged over those that have it; reading a number waits for the device
    means = {column: sum(map(float, values)) / len(values) for column, values in columns.items()}
    return {loss_column(stream): None for stream in STREAMS} | means, names, place


def _contexts(run: Run, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Text contexts [B, S, D] of each stream; captions that a coin drops give way to the stand-in, in all streams."""
    settings = run.config.train
    dropped = (torch.rand(len(batch.samples), generator=generator) < settings.caption_dropout).tolist()
    keys = [sample.text_path for sample in batch.samples]
    return {
        stream: run.contexts.batch(keys, stream, run.device, dropped, settings.caption_dropout_with)
        for stream in streams_of(run.config.model.mode)
    }


def _generator(seed: int, step: int, micro: int, purpose: int = 0) -> torch.Generator:
    """Randomness of one micro-step, a function of its number alone; each purpose has its own."""
    mixed = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + micro * 0x94D049BB133111EB
    return torch.Generator().manual_seed((mixed + purpose * 0xD6E8FEB86659FD93) & (2**63 - 1))


def _due(step: int, every: int, epoch_ended: int, every_epochs: int) -> bool:
    """Whether step or epoch (0: none ended with this step) is one of every so many."""
    by_step = bool(every) and step % every == 0
    return by_step or bool(every_epochs and epoch_ended and epoch_ended % every_epochs == 0)


def _report_bad(run: Run, names: list[str], bad: int, events: Events) -> None:
    listed = ", ".join(names[:4])
    text = f"Step {run.step}: the loss or its gradient is not finite; the batch was left out ({listed})."
    if run.config.train.on_nan == "stop" or bad >= MAX_BAD_STEPS:
        why = "train.on_nan is 'stop'" if bad < MAX_BAD_STEPS else f"{bad} steps in a row were not finite"
        raise TrainerError(
            f"{text} The run ends because {why}. Lower train.learning_rate, or look at these clips and their caches."
        )
    events.message(text, "warning")


def _draw(run: Run, events: Events) -> None:
    """Draw the samples of this step; what fails is reported and left out."""
    run.model.eval()
    away = run.config.memory.optimizer_offload
    with state_aside(run.optimizer, run.device) if away else contextlib.nullcontext():
        try:
            run.renderer.draw(
                run.prompts,
                lambda index, prompt: run.folder.samples / f"step_{run.step:06d}_p{index + 1:02d}_s{prompt.seed}",
                {"step": run.step, "run": run.folder.name, "strength": 1.0},
                tolerant=True,
            )
            return
        except Stopped:
            raise
        except Exception as error:
            reason = out_of_memory(error, "drawing samples") or error
            text = str(reason) if isinstance(reason, TrainerError) else f"{type(reason).__name__}: {reason}"
        release(run.device)  # not before the error has let go of its tensors
    events.message(f"The samples of step {run.step} are left out, and the run goes on. {text}", "warning")


def _eta(run: Run, started: float, first: int) -> float:
    """Seconds left, from the steps of this process only; the first includes warm-up and counts less and less."""
    done = run.step - first
    return (time.monotonic() - started) / max(done, 1) * (run.total - run.step)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
