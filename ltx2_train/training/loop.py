"""The training loop: step, and once in a while save and sample; whatever ends it, the state is on disk.

A step is the mean of `accumulation` micro-batches. All its random numbers come from the run's seed and the step's own
number, so a resumed run draws what an unbroken one would have drawn. Several processes (peers.py) take the batches of
a step in turns, and meet before the optimizer and after it; the first of them does all else. A loss or gradient that
is not finite never reaches the weights: the batch is named and left out, and five in a row end the run.

On a card a step waits for the device once, when all of it has been queued. Other optimizers than the fused ones have to
be told before whether the gradients are finite; there the wait comes first.

The file is long because each way in which a step may end stands beside the loop that must survive it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..config import RunConfig
from ..device import out_of_memory, release, why_it_failed
from ..errors import ConfigError, RunError, Stopped, TrainerError
from ..events import Events, Passing, shielded
from ..feed.batches import Batch, Batches, load_batch
from ..feed.loader import Sample
from ..full.optimizer import WeightOptimizer
from ..full.parts import clip_gradients
from ..lora.inject import LoraSet
from ..optim import averaged, can_be_guarded, guarded_step, state_aside
from ..sampling.render import Failed
from .checks import Checked, check, check_settings
from .contexts import streams_of
from .exports import exported, renew_exports
from .finished import missing_words, renewed_words, unused_words, whole_under_its_names
from .fit.pace import Pace
from .fit.trial import OomGuard, Rewound, moved_parameters, take_guarded, try_largest
from .metrics import LOSS, STREAMS, clean_row, loss_column, validated
from .peers import join_peers
from .proof import Proof, is_wanted
from .reading import Columns, not_finite, read
from .ready import Ready, make_ready
from .report import leave_report
from .requests import Asked
from .saving import complete, is_saved, require_saved, save, save_after_error
from .sending import Ahead, pinned
from .setup import Run, load
from .state import state_name
from .step import StepTerms, ready_step
from .strip import draw_strengths, sample_name
from .trackers import tracked
from .validation import Validation
from .watch import LossWatch, norm_row

T = TypeVar("T")

MAX_BAD_STEPS = 5
NORM = "grad_norm"  # the column of the metrics
# purposes of a generator: noise is purpose 0, and must not shift when captions are dropped or regularizers draw
DROPOUT_COINS, REGULARIZERS, CAPTIONS = 1, 2, 3


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves: its folder, its last LoRA and how far it got. `exported` is the copy of that in
    run.export_folder, None where there is none."""

    folder: Path
    lora: Path
    step: int
    total: int
    summary: str
    exported: Path | None = None


def train(config: RunConfig, events: Events | None = None) -> RunResult:
    """Train, or go on training, the run that `config` describes.

    Raises Stopped once everything is saved when the user asked to stop, and TrainerError for what the user can mend.
    """
    events = shielded(events)
    if config.slider.wanted:
        raise ConfigError("The run describes a slider, which `ltx2-train slider` trains. Use it, or take [slider] out.")
    peers = join_peers(config)
    try:
        if not peers.first:  # what is to be told is told once
            events = Passing(events, tells=())
        if peers.several:
            together = config.train.model_copy(update={"processes": peers.count})
            config = config.model_copy(update={"train": together})
            events.message(
                f"{peers.count} processes train together: {together.accumulation} x {peers.count} batches a step."
            )
        check_settings(config, peers)
        return train_checked(check(config, events, peers), events)
    finally:
        peers.close()


def train_checked(checked: Checked, events: Events) -> RunResult:
    """As `train`, of a run whose inputs have been found good; its folder is closed afterwards."""
    first = checked.peers.first
    try:
        lora = checked.finished_lora()
        if unused := unused_words(checked.unused):
            whole = f"{checked.folder.name} is finished, so nothing is trained. " if lora is not None else ""
            events.message(f"{whole}{unused}", "warning")
        if lora is not None and not checked.undrawn:
            product = "Checkpoint" if checked.config.train.what == "full" else "LoRA"
            step = int(checked.folder.manifest.get("step", checked.total))
            above = f" above {step}" if step > checked.total else ""
            if first:
                lora = whole_under_its_names(checked.folder, step, lora, events)
                renew_exports(checked.config, checked.folder, lora, events)
                if missing := missing_words(checked.folder, checked.config.train.keep_loras):
                    events.message(missing, "warning")
            text = f"Finished before: {step} steps. Raise train.steps{above} to go on. {product}: {lora}"
            copy = exported(checked.config, checked.folder, lora)
            return RunResult(checked.folder.path, lora, step, checked.total, text, copy)
        if checked.finished and lora is None:
            events.message(renewed_words(checked.folder, checked.config, checked.total), "warning")
        with tracked(checked.config, checked.folder.path, events) if first else contextlib.nullcontext(events) as told:
            asked = Asked(told, checked.folder.path if first else None)
            try:
                run = load(checked, asked)
            except (RuntimeError, MemoryError) as error:
                raise out_of_memory(error, "loading the model") or error from error
            try:
                return _Loop(run, asked).go_on()
            finally:
                run.close()
    except BaseException as error:
        checked.folder.close(_ending(error))
        raise
    finally:
        checked.folder.close()
        if first:
            leave_report(checked.folder.path, events)


@dataclass(frozen=True)
class _Done:
    """A step that was taken: its columns of the metrics, the names of its clips, whether its numbers were finite, and
    how many epochs had ended before and after it."""

    row: dict[str, Any]
    names: list[str]
    finite: bool
    epochs: tuple[int, int]


@dataclass(frozen=True)
class _Taken:
    """A batch that was taken: the names of its clips, and whether it had sound."""

    names: list[str]
    heard: bool


class _Loop:
    """One stretch of a run: from where it stands to its last step, or to whatever ends it."""

    def __init__(self, run: Run, events: Asked) -> None:
        self.run, self.events, self.settings = run, events, run.config
        self.started, self.first = time.monotonic(), run.step
        share = run.peers.rank, run.peers.count
        self.batches = Ahead(Batches(_reader(run), run.order, run.place, run.config.data.prefetch, share), run.device)
        self.lora: Path | None = None
        self.pace = Pace(run.device, None, events)
        self.losses = LossWatch(run.config, events)
        self.bad = 0  # steps in a row that were not finite
        self.clean = True  # false while the weights are being changed: a state written then would mix two steps
        self.finished = False  # the last save is done; its samples may be missing
        self.validation = Validation(run, events) if run.config.validation.wanted else None
        self.proof = Proof(run, events) if is_wanted(run.config) else None
        self.released = run.whole and run.config.full.release_gradients

    def go_on(self) -> RunResult:
        """Take all steps that are left."""
        run = self.run
        try:
            guard = self._begin()
            while run.step < run.total:
                done = self._validate(self._step(guard))
                self._tell(done)
                self._save(done)
                self._sample()
                self._answer()
            return self._result()
        except BaseException as error:
            told = self._after(error)
            if told is error:
                raise
            raise told from (None if isinstance(told, Stopped) else error)
        finally:
            self.batches.close()

    def _begin(self) -> OomGuard:
        """Try the largest batch, draw what the base makes, and say that the run goes on."""
        run, events, sample = self.run, self.events, self.settings.sample
        if (trial := try_largest(run, run.plan, run.apply, events)) is not None:
            run.plan = trial.plan
            self.pace = Pace(run.device, trial.seconds * self.settings.train.accumulation, events)
        guard = OomGuard(run.plan, run.apply, events, run.device, lambda: self._keep("running"))
        # equal before, but for the last bits where cards are of several kinds
        run.peers.align([one for one in moved_parameters(run) if one not in run.parts])
        if run.step == 0 and sample.wanted and sample.at_start:
            self._all_or_first(lambda: _draw(run, events))
        if run.step == 0:
            measured = self._all_or_first(self._measured_at_start)
            if run.log is not None and measured:
                run.log.append({"step": 0, **measured})
        events.stage("train", run.total)
        try:
            went_on = [step for step in run.folder.manifest.get("resumes", ()) if step < run.step]
            resumes = [*went_on, run.step] if run.step else []
            run.folder.write_manifest("running", run.step, total=run.total, state=run.step, resumes=resumes)
        except RunError as error:  # the states alone will do
            events.message(str(error), "warning")
        if run.step < run.total:
            run.peers.lead(lambda: complete(run, events))
        if run.undrawn:
            why = "the run was ended before they were there, or the disk refused them"
            events.message(f"The samples of step {run.step} are drawn now: {why}.")
            self._sample()
        return guard

    def _all_or_first(self, work: Callable[[], T]) -> T | None:
        """The result of `work`, which asks the model. Where its blocks are shared out over the processes, all do it,
        none stops within, and the first alone tells and writes; else the first does it, and others return None."""
        if not self.settings.memory.shard:
            return self.run.peers.lead(work)
        with self.events.unstopped():
            return work()

    def _keep(self, status: str, error: BaseException | None = None) -> str:
        """Save what there is after an error, in the process that writes; a sentence about it.

        What is shared out over the processes takes all of them, which a stop alone leaves together.
        """
        run = self.run
        if not run.parts:
            return save_after_error(run, self.events, status) if run.peers.first else ""
        if isinstance(error, Stopped):
            with contextlib.suppress(RunError):
                return run.peers.lead(lambda: save_after_error(run, self.events, status)) or ""
        return "The last saved state is kept."

    def _step(self, guard: OomGuard) -> _Done:
        """Gradients, clipping, optimizer. A step that is not finite changes nothing but the numbers of its place."""
        run, sample, begun = self.run, self.settings.sample, time.monotonic()
        columns, taken, place = self._gradients(guard)
        names = [name for batch in taken for name in batch.names]
        for batch in taken:
            if run.sound is not None and (text := run.sound.watch(batch.heard)):
                self.events.message(text, "warning")
        rates = run.rates()
        queued = run.device.type == "cuda" and can_be_guarded(run.optimizer)
        if queued:
            self.clean = False
            guarded_step(run.optimizer, not_finite(columns, LOSS, NORM))
        numbers = _merged(run.peers.gather(read(columns)))
        # what some batches of the step lack is averaged over those that have it
        terms = {column: sum(values) / len(values) for column, values in numbers.items()}
        norm = terms.pop(NORM)
        finite = math.isfinite(terms[LOSS]) and math.isfinite(norm)
        self.clean = False
        if (finite and not queued) or self.released:  # weights that have moved end their step, whatever the rest is
            run.scaler.step(run.optimizer)
        if finite and run.mean is not None:
            run.mean.update()
        run.scaler.update()
        with contextlib.nullcontext() if finite else _unwarned():
            run.schedule.step()
        run.optimizer.zero_grad(set_to_none=True)
        epochs = run.place[0], place[0]
        run.step, run.place = run.step + 1, place
        due = _due(run.step, sample.every, epochs, sample.every_epochs)
        run.undrawn = due or (run.step == run.total and sample.wanted)
        if run.regularizers is not None:
            run.regularizers.stepped(run.step)
        self.clean = True
        if run.sound is not None:
            run.sound.keep()
        every = self.settings.train.norms_every
        row = {
            "step": run.step,
            **{loss_column(stream): None for stream in STREAMS},
            **terms,
            **rates,
            NORM: norm,
            "seconds": time.monotonic() - begun,
            "epoch": place[0],
            "skipped": None if finite else names,
            **(norm_row(run.loras) if every and run.step % every == 0 else {}),
        }
        return _Done(row, names, finite, epochs)

    def _gradients(self, guard: OomGuard) -> tuple[Columns, list[_Taken], tuple[int, int]]:
        """The gradients of a step, clipped, with their norm among its columns; or where they are let go of, the norm
        of what has moved the weights already."""
        run = self.run
        if isinstance(run.optimizer, WeightOptimizer) and self.released:
            self.batches.begin()
            with run.optimizer.releasing():
                columns, taken, place, _ = self._micro_steps()
                columns[NORM] = [run.optimizer.released_norm()]
            return columns, taken, place
        columns, taken, place, there = take_guarded(run, self.batches, guard, self._micro_steps)
        self._average(columns, there)
        run.scaler.unscale_(run.optimizer)
        limit = self.settings.train.clip_norm or math.inf
        columns[NORM] = [clip_gradients(moved_parameters(run), limit, run.parts)]
        return columns, taken, place

    def _micro_steps(self) -> tuple[Columns, list[_Taken], tuple[int, int], list[bool]]:
        """As the function of this name; the batches are those of all processes, in their order. Returns also which of
        what is trained has a gradient in any of them. Raises Stopped where any is to stop."""
        run = self.run
        with run.loras.held(run.model.dtype):
            columns, taken, place = _micro_steps(run, self.batches, self.events)
        if not run.peers.several:
            return columns, taken, place, []
        reached = [
            parameter.grad is not None if (part := run.parts.get(parameter)) is None else part.taken()
            for parameter in moved_parameters(run)
        ]
        mine = (self.events.should_stop(), taken, reached)
        stops, batches, reached_in = zip(*run.peers.gather(mine), strict=True)
        if any(stops):
            raise Stopped
        side_by_side = zip(*batches, strict=True)
        return (
            columns,
            [batch for row in side_by_side for batch in row],
            place,
            [any(one) for one in zip(*reached_in, strict=True)],
        )

    def _average(self, columns: Columns, reached: list[bool]) -> None:
        """The gradients of all processes become their mean. A loss that is not finite makes it none in all of them."""
        if not self.run.peers.several:
            return
        trained = moved_parameters(self.run)
        gradient = next((parameter.grad for parameter in trained if parameter.grad is not None), None)
        if gradient is not None:  # + 0, or NaN
            gradient.add_(sum(torch.as_tensor(loss).detach() * 0 for loss in columns[LOSS]))
        parts = self.run.parts
        for parameter, some in zip(trained, reached, strict=True):
            if parameter in parts and not some:
                parameter.grad = None
        mine = [pair for pair in zip(trained, reached, strict=True) if pair[0] not in parts]
        self.run.peers.average([parameter for parameter, _ in mine], [some for _, some in mine])

    def _validate(self, done: _Done) -> _Done:
        """The same step, its row with what is measured after it: the validation loss where due, the use at the end."""
        run, validation = self.run, self.settings.validation
        due = _due(run.step, validation.every, done.epochs, validation.every_epochs)
        row = done.row
        if self.validation is not None and (due or run.step == run.total):
            row = {**row, **(self._all_or_first(self.validation.measure) or {})}
        if self.proof is not None and run.step == run.total:
            row = {**row, **(self._all_or_first(self.proof.measure) or {})}
        return replace(done, row=row)

    def _measured_at_start(self) -> dict[str, float]:
        """What is measured before the first step."""
        at_start = self.validation is not None and self.settings.validation.at_start
        measured = self.validation.measure() if at_start and self.validation is not None else {}
        return {**measured, **(self.proof.measure() if self.proof is not None else {})}

    def _tell(self, done: _Done) -> None:
        """Write the row of the step, and look at what it says. Raises TrainerError after too many bad steps."""
        run = self.run
        row = clean_row(done.row) if run.log is None else run.log.append(done.row)
        if self.validation is not None and run.log is not None and validated(row):
            self.validation.watch(run.log.rows)
        self.events.step({**row, "total": run.total, "eta": _eta(run, self.started, self.first)})
        self.losses.step(row, done.names)
        self.pace.step(row["seconds"])
        self.bad = 0 if done.finite else self.bad + 1
        if not done.finite:
            moved = self.released and math.isfinite(done.row[LOSS])
            none = run.step == run.total == self.bad
            _report_bad(run, done.names, self.bad, self.events, moved, none)
        run.watch.step(heard=done.row[loss_column("audio")] is not None)

    def _save(self, done: _Done) -> None:
        run, train = self.run, self.settings.train
        last = run.step == run.total
        if last or _due(run.step, train.save_every, done.epochs, train.save_every_epochs):
            run.folder.require_there()
            status = "finished" if last else "running"
            self.lora = run.peers.lead(lambda: save(run, self.events, status, final=last))
            self.finished = last

    def _sample(self) -> None:
        """Draw what is due of this step, and record it where a state speaks of it."""
        run = self.run
        if not run.undrawn:
            return
        run.undrawn = bool(self._all_or_first(lambda: _draw(run, self.events)))
        if run.undrawn:
            if run.step == run.total:
                text = (
                    f"Samples of step {run.step} are missing, since the disk refused them. The next start draws them."
                )
                self.events.message(text, "warning")
        elif (run.folder.states / state_name(run.step)).is_file():
            try:
                run.folder.record(drawn=run.step)
            except RunError as error:
                self.events.message(f"{error} The next start draws the samples of step {run.step} again.", "warning")
        self.events.stage("train", run.total)

    def _answer(self) -> None:
        """Do what was asked in the folder of the run meanwhile. Raises Stopped where a pause ends in a stop."""
        run, asked = self.run, self.events
        if run.step == run.total:
            return
        wants_save, wants_samples, waits = run.peers.told((asked.taken("save"), asked.taken("sample"), asked.paused()))
        if wants_save:
            run.peers.lead(lambda: save(run, asked, "running"))
        if wants_samples:
            if self.settings.sample.wanted:
                self._all_or_first(lambda: _draw(run, asked))
                asked.stage("train", run.total)
            else:
                asked.message("There is nothing to draw: the run has no sample prompts.", "warning")
        if waits:
            told = f"Paused after step {run.step} of {run.total}."
            asked.wait(lambda: asked.message(told), agreed=lambda fact: any(run.peers.gather(fact)))

    def _result(self) -> RunResult:
        run = self.run
        lora = self.lora
        if not self.finished:  # it may have been before
            lora = run.peers.lead(lambda: save(run, self.events, "finished", final=True))
        lora = run.peers.told(lora)
        assert lora is not None, "the first process has saved it"
        if run.peers.first:
            require_saved(run, lora)
            if not run.unexported:
                renew_exports(self.settings, run.folder, lora, self.events)
        copy = exported(self.settings, run.folder, lora)
        if run.peers.first and (missing := missing_words(run.folder, self.settings.train.keep_loras)):
            self.events.message(missing, "warning")
        done, seconds = run.step - self.first, time.monotonic() - self.started
        of = f" of {run.total}" if run.step <= run.total else ""
        summary = f"{run.step}{of} steps done ({done} in {_clock(seconds)}). {_titled(run.product)}: {lora}"
        return RunResult(run.folder.path, lora, run.step, run.total, summary, copy)

    def _after(self, error: BaseException) -> BaseException:
        """Save what there is, and return what is raised to tell of it: `error` itself, or one in better words."""
        run, events = self.run, self.events
        full = out_of_memory(error, f"training step {run.step + 1}") if isinstance(error, Exception) else None
        if self.finished and (not run.peers.first or is_saved(run)):
            saved = f"State and {run.product} are saved."
        elif self.finished and run.parts:  # which takes all processes, and the others have left
            saved = f"State or {run.product} is gone."
        elif self.clean and not (isinstance(run.optimizer, WeightOptimizer) and run.optimizer.moved):
            saved = self._keep(_ending(error), error)
        else:
            saved = "The last saved state is kept."
        if isinstance(error, Stopped):
            left = f"draw the samples of step {run.step}" if run.undrawn else ""
            if run.step < run.total:
                left = f"{left} and go on" if left else "go on"
            return Stopped(f"Stopped after step {run.step} of {run.total}. {saved} Run again to {left or 'go on'}.")
        if full is not None:
            return type(full)(f"{full} {saved}")
        if isinstance(error, TrainerError):
            said = saved.replace(f": {error}", ".")  # a save that failed as the last one did is told once
            error.args = (f"{error} {said}", *error.args[1:])
        elif isinstance(error, Exception):
            events.message(saved, "warning")
        return error


def _ending(error: BaseException) -> str:
    """The status of a run that `error` ended."""
    return "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"


def _micro_steps(run: Run, batches: Rewound, events: Events) -> tuple[Columns, list[_Taken], tuple[int, int]]:
    """Gradients of one step. Returns its columns of the metrics, the batches that were taken and the place after it.

    The columns are not read, so nothing in here waits for the device.
    """
    count, peers = run.config.train.accumulation, run.peers
    columns: Columns = {}
    taken: list[_Taken] = []
    draws = _Draws(run)
    released = run.whole and run.config.full.release_gradients
    run.model.train()
    # elsewhere between steps only: weights that have moved cannot be moved back, and other processes wait for this one
    watched = contextlib.nullcontext() if peers.several or released else run.model.polled(events.check_stop)
    with watched:
        for micro in range(count):
            if not peers.several and events.should_stop():
                raise Stopped
            draws.begin(micro)
            ready = next(batches)
            batch = ready.batch
            for terms in _parts(run, ready):
                mean = terms.loss.mean()
                if not released or bool(torch.isfinite(mean)):  # weights that have moved cannot be moved back
                    run.scaler.scale(mean / count).backward()
                for column, value in terms.columns().items():
                    values = columns.setdefault(column, [])
                    if terms.adds and column == LOSS:
                        values[-1] = values[-1] + value
                    else:
                        values.append(value)
            taken.append(_Taken([sample.key for sample in batch.samples], batch.has_audio))
    draws.end()
    place = run.place
    for _ in range(count * peers.count):
        place = run.order.following(*place)
    return columns, taken, place


class _Draws:
    """The masks of dropout follow the number of a layer's backward passes; in several processes, that of the batch."""

    def __init__(self, run: Run) -> None:
        self._peers, self._count = run.peers, run.config.train.accumulation
        layers = run.loras.layers.values() if run.peers.several else ()
        drops = [one for one in layers if one.dropout or one.rank_dropout or one.module_dropout]
        self._before = [(layer, layer.dropout_draws) for layer in drops]

    def begin(self, micro: int) -> None:
        """The batch `micro` of this process is next."""
        self._set(micro * self._peers.count + self._peers.rank)

    def end(self) -> None:
        """All processes have taken all their batches."""
        self._set(self._count * self._peers.count)

    def _set(self, done: int) -> None:
        for layer, before in self._before:
            layer.dropout_draws = before + done


def _merged(numbers: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The columns of all processes."""
    merged: dict[str, list[float]] = {}
    for columns in numbers:
        for name, values in columns.items():
            merged.setdefault(name, []).extend(values)
    return merged


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """torch minds that the optimizer has taken no step yet where all before were left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _parts(run: Run, ready: Ready) -> Iterable[StepTerms]:
    """The losses of a micro-batch, each with a backward pass of its own: one, the two halves of a slider, or those of
    regularizers besides."""
    if run.slider is not None:
        assert isinstance(run.loras, LoraSet), "a slider is a LoRA"
        return run.slider.parts(run.model, run.loras, ready)
    if run.regularizers is not None:
        return run.regularizers.parts(run.model, ready, run.sound)
    return (ready_step(run.model, ready, run.config, run.sound),)


def _reader(run: Run) -> Callable[[Sequence[Sample], int, int], Ready]:
    """Reads the batches of the run from here on, in their order, and makes each ready for its step."""
    count, seed = run.config.train.batches_a_step, run.config.train.seed
    turns = itertools.count(run.step * count + run.peers.rank, run.peers.count)

    def read_next(samples: Sequence[Sample], epoch: int, index: int) -> Ready:
        turn = next(turns)
        step, micro = divmod(turn, count)
        batch = load_batch(run.data, _told(samples, _generator(seed, step, micro, CAPTIONS)), epoch, index)
        contexts = _contexts(run, batch, _generator(seed, step, micro, DROPOUT_COINS))
        generator = _generator(seed, step, micro)
        ready = make_ready(run.model, batch, contexts, run.config, run.version, generator, run.sound, turn)
        if run.regularizers is not None:
            ready = run.regularizers.drawn(ready, _generator(seed, step, micro, REGULARIZERS), step)
        return pinned(ready) if run.device.type == "cuda" else ready

    return read_next


def _told(samples: Sequence[Sample], generator: torch.Generator) -> list[Sample]:
    """The samples, each that has several captions with one of them, drawn."""
    return [
        sample.told(int(torch.randint(len(sample.captions), (), generator=generator))) if sample.others else sample
        for sample in samples
    ]


def _contexts(run: Run, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Text contexts [B, S, D] of each stream; captions that a coin drops give way to the stand-in, in all streams."""
    settings = run.config.train
    dropped = (torch.rand(len(batch.samples), generator=generator) < settings.caption_dropout).tolist()
    keys = [sample.text_path for sample in batch.samples]
    return {
        stream: run.contexts.batch(keys, stream, "cpu", dropped, settings.caption_dropout_with)
        for stream in streams_of(run.config.model.mode)
    }


def _generator(seed: int, step: int, micro: int, purpose: int = 0) -> torch.Generator:
    """Randomness of one micro-step, a function of its number alone; each purpose has its own."""
    mixed = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + micro * 0x94D049BB133111EB
    return torch.Generator().manual_seed((mixed + purpose * 0xD6E8FEB86659FD93) & (2**63 - 1))


def _due(step: int, every: int, epochs: tuple[int, int], every_epochs: int) -> bool:
    """Whether the step, or an epoch of those that ended with it (so many before it, so many after), is one of every so
    many."""
    by_step = bool(every) and step % every == 0
    return by_step or bool(every_epochs) and epochs[0] // every_epochs < epochs[1] // every_epochs


def _report_bad(run: Run, names: list[str], bad: int, events: Events, moved: bool, none: bool = False) -> None:
    """Say that a step was not finite. `moved`: weights had moved by then, each as soon as its gradient was there;
    `none`: it was the last, and no step of the run was finite."""
    listed = ", ".join(names[:4])
    text = f"Step {run.step}: the loss or its gradient is not finite; the batch was left out ({listed})."
    if moved:
        text = (
            f"Step {run.step}: a gradient is not finite ({listed}). The weights that it was of stayed as they were; "
            "the others have moved (full.release_gradients)."
        )
    if run.config.train.on_nan == "stop" or bad >= MAX_BAD_STEPS or none:
        why = f"{bad} steps in a row were not finite" if bad >= MAX_BAD_STEPS else "train.on_nan is 'stop'"
        if none and run.config.train.on_nan != "stop":
            why = "not one of its steps was finite"
        raise TrainerError(
            f"{text} The run ends because {why}. Lower train.learning_rate, or look at these clips and their caches."
        )
    events.message(text, "warning")


def _draw(run: Run, events: Events) -> bool:
    """Draw the samples of this step; what fails is reported and left out. Returns whether the disk refused any."""
    run.model.eval()
    failed: Failed = []
    reason = ""
    away = run.config.memory.optimizer_offload
    with averaged(run.optimizer), state_aside(run.optimizer, run.device) if away else contextlib.nullcontext():
        try:
            _draw_as_they_are(run, events, failed)
            if run.mean is not None and run.config.ema.sample:
                with run.mean.shown():
                    _draw_as_they_are(run, events, failed, "_ema")
        except Stopped:
            raise
        except Exception as error:
            failed.append(type(error))
            reason = why_it_failed(error, "drawing samples")
        if reason:
            release(run.device)  # not before the error has let go of its tensors
            text = f"The samples of step {run.step} are left out, and the run goes on. {reason}"
            events.message(text, "warning")
    return any(issubclass(one, RunError) for one in failed)


def _draw_as_they_are(run: Run, events: Events, failed: Failed, mark: str = "") -> None:
    """Draw with the weights that the LoRA has now; `mark` stands at the end of the files' names. The class of the
    error of each sample that is left out is put into `failed`."""
    if run.slider is not None:
        draw_strengths(run, events, failed, mark)
        return
    strength = run.config.sample.strength if isinstance(run.loras, LoraSet) else 1.0
    place = contextlib.nullcontext(run.folder.samples) if run.peers.first else tempfile.TemporaryDirectory()
    worn = run.loras.at_strength(strength) if isinstance(run.loras, LoraSet) else contextlib.nullcontext()
    with place as folder, worn:
        run.renderer.draw(
            run.prompts,
            lambda index, prompt: Path(folder) / f"{sample_name(run, index, prompt)}{mark}",
            {"step": run.step, "run": run.folder.name, "strength": strength, **({"weights": "ema"} if mark else {})},
            failed=failed,
        )


def _titled(word: str) -> str:
    return word[:1].upper() + word[1:]


def _eta(run: Run, started: float, first: int) -> float:
    """Seconds left, from the steps of this process only; the first includes warm-up and counts less and less."""
    done = run.step - first
    return (time.monotonic() - started) / max(done, 1) * (run.total - run.step)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
