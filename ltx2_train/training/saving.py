"""What a run writes while it goes, in the order of its worth: what a resume needs, the LoRA, and then all else.

    state      everything a resume needs; tried again, and a run that cannot write it ends
    LoRA       under a name with its step; it can be made from the state, so until the last one the run goes on without
               (or the checkpoint, where the weights themselves are trained)
    check      the LoRA is opened and held against the checkpoint; one that would not work ends the run
    the rest   plain name, sidecar, export, chart, old files, manifest: what fails is said, and the run goes on

Old states go only after the new LoRA was found good. The manifest comes last, so whatever it speaks of is there. Each
file is written in one move; a run killed between two of them goes on from the newest complete state.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..device import DTYPES
from ..errors import RunError, TrainerError
from ..events import Events
from ..files import parse_json, require_there, write_json
from ..full.file import save_checkpoint, verify_checkpoint
from ..full.weights import TrainedWeights
from ..lora.file import verify_saved
from ..lora.save import save_lora
from ..optim import WeightMean, averaged
from .chart import draw_chart
from .exports import export, export_one
from .lora_about import lora_metadata
from .lora_files import (
    is_whole,
    list_loras,
    lora_name,
    place_newest,
    prune,
    step_of,
    taken_words,
    write_lora_beside,
)
from .metrics import LOSS, STREAMS, VALIDATION, loss_column, terms_of
from .report import versions
from .run_folder import delete_old_states
from .setup import Run
from .state import list_states, random_state, read_tree, save_state, state_name

WAITS = (0.5, 2.0)  # seconds between tries to write a state or a LoRA
STATE, LORA, CHECK = "state", "LoRA", "check of the LoRA"

T = TypeVar("T")


@dataclass
class Saved:
    """What one save wrote, and what failed by the name of its step."""

    state: Path | None = None
    lora: Path | None = None
    failed: dict[str, Exception] = field(default_factory=dict)


def save(run: Run, events: Events, status: str, final: bool = False) -> Path:
    """Write everything there is to write after `run.step` steps; returns the path of the LoRA.

    `final` keeps a state even where train.state is off. Raises RunError where the state cannot be written, or the last
    LoRA, and CheckpointError where the LoRA would not work; all else that fails is a warning.
    """
    with_state = run.config.train.state != "off" or final or status != "running"
    saved = _write(run, events, status, with_state, final)
    for step in (STATE, CHECK):
        if step in saved.failed:
            raise saved.failed[step]
    if (error := saved.failed.get(LORA)) is not None:
        if final or not with_state or not isinstance(error, RunError):
            raise error
        events.message(f"The {run.product} of step {run.step} is missing, its state is saved. {error}", "warning")
    return saved.lora or run.folder.loras / lora_name(run.folder.name)


def save_after_error(run: Run, events: Events, status: str) -> str:
    """Save what can be saved when something ended the run; returns a sentence about it, raises nothing."""
    if run.step == 0:
        run.folder.ended(status)
        return "Nothing was trained yet."
    if is_saved(run):  # a stop that was asked for in that save waits for one of it, not for two
        run.folder.ended(status)
        return f"State and {run.product} are saved."
    lost = run.saved_step == run.step  # deleted or moved since
    step, there = run.saved or (0, None)
    again = step != run.step or there is None or not there.is_file()  # else what ended the run came in its save
    saved = _write(run, events, status, with_state=True, final=False, lora=None if again else there)
    failed = "".join(f" {saved.failed[step]}" for step in (LORA, CHECK) if step in saved.failed)
    if saved.state is None:
        kept = _newest_state(run)
        older = f"The state of step {kept} is kept." if kept is not None else "There is no state on disk."
        also = f" The {run.product} of step {run.step} is saved." if saved.lora is not None else ""
        return f"The state could not be saved: {saved.failed[STATE]} {older}{also}{failed}"
    product = run.product
    if failed:
        return f"The state is saved, the {product} is not:{failed}"
    return f"State or {product} was gone, and both are saved again." if lost else f"State and {product} are saved."


def is_saved(run: Run) -> bool:
    """Whether state and LoRA of this step were saved, and are there still."""
    step, lora = run.saved or (0, None)
    files = (run.folder.states / state_name(run.step), lora)
    return run.saved_step == run.step == step and all(file is not None and file.is_file() for file in files)


def require_saved(run: Run, lora: Path) -> None:
    """Raise RunError where the folder of the run, or the LoRA that it saved last, is not there any more."""
    run.folder.require_there()
    require_there([lora], "since the run has saved it", "Leave the folder of a run in place until it has ended.")


def complete(run: Run, events: Events) -> None:
    """Write the LoRA of the step that a run goes on from, or the files beside it, where the save was cut short or what
    it wrote is damaged."""
    if not run.step:
        return
    folder, name = run.folder.loras, run.folder.name
    there = [lora for step, lora in list_loras(folder, name) if step == run.step]
    whole = [lora for lora in there if is_whole(lora, run.step)]
    if not whole:
        if there:
            _tell_anew(there, f"written anew from the state of step {run.step}", events)
        saved = Saved()
        _write_loras(run, events, saved)
        for step in saved.failed.keys() & {LORA, CHECK}:
            events.message(f"The {run.product} of step {run.step} is missing. {saved.failed[step]}", "warning")
        return
    _complete_names(run, name, whole[-1], events)
    mean = f"{name}_ema"
    means = [lora for step, lora in list_loras(folder, mean) if step == run.step]
    if run.mean is not None and means:
        whole = [lora for lora in means if is_whole(lora, run.step)]
        if not whole:
            _tell_anew(means, f"written anew from the state of step {run.step}", events)
            with _tolerant(Saved(), "LoRA of the running mean", events):
                _write_mean(run, run.mean, events)
        else:
            _complete_names(run, mean, whole[-1], events)


def _complete_names(run: Run, name: str, whole: Path, events: Events) -> None:
    """Have the LoRA `whole` of this step under the plain name too, where that is damaged, missing or of an earlier
    step, and what is said of it beside both. One of a later step stays."""
    plain = run.folder.loras / lora_name(name)
    good = is_whole(plain)
    if not good or (step_of(plain) or run.step) < run.step:
        if plain.exists() and not good:
            _tell_anew([plain], f"copied from {whole.name}", events)
        with _tolerant(Saved(), f"copy of {whole.name} as {plain.name}", events):
            place_newest(whole, run.folder.loras, name, events)
    of_step = [whole, plain] if is_whole(plain, run.step) else [whole]
    beside = [lora for lora in of_step if not _is_said(lora.with_suffix(".json"))]
    if damaged := [path for lora in beside if (path := lora.with_suffix(".json")).exists()]:
        _tell_anew(damaged, "written anew", events)
    with _tolerant(Saved(), f"file that says how the {run.product} came about", events):
        _write_sidecars(run, beside)


def _is_said(path: Path) -> bool:
    """Whether the file beside a LoRA is there, and whole."""
    try:
        return isinstance(parse_json(path.read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _tell_anew(damaged: Iterable[Path], how: str, events: Events) -> None:
    names = [path.name for path in damaged]
    was = "was" if len(names) == 1 else "were"
    events.message(f"{' and '.join(names)} {was} damaged, and {was} {how}.", "warning")


def _newest_state(run: Run) -> int | None:
    """The newest step that can be gone on from; None where there is none."""
    for step, path in reversed(list_states(run.folder.states)):
        with contextlib.suppress(RunError):
            read_tree(path)
            return step
    return None


def _write(run: Run, events: Events, status: str, with_state: bool, final: bool, lora: Path | None = None) -> Saved:
    """Take all steps of a save; those after a failed one are taken as far as they make sense. `lora` is that of this
    step, where it is written already."""
    folder, saved = run.folder, Saved(lora=lora)
    if with_state:
        with _needed(saved, STATE):
            saved.state = _again(lambda: _write_state(run))
        if saved.state is not None:
            events.saved("state", saved.state)
    if lora is None:
        _write_loras(run, events, saved)
    good = saved.lora if CHECK not in saved.failed else None
    if saved.state is not None and CHECK not in saved.failed:
        _removed(delete_old_states(folder.states, run.config.train.keep_states, run.step), events)
    with _tolerant(saved, "chart of the loss", events):
        draw_chart([] if run.log is None else run.log.rows, folder.path / "loss.png", f"{folder.name}: loss per step")
    if STATE in saved.failed:
        folder.ended("failed" if status == "finished" else status)
        return saved
    about: dict[str, Any] = {"total": run.total, "loss": _last_row(run).get(LOSS), "versions": versions()}
    if LORA in saved.failed:
        about["missing"] = sorted({*folder.manifest.get("missing", ()), run.step})
    if saved.state is not None:
        about["state"] = run.step
    if good is not None:
        about["lora"] = good.name
    if saved.state is not None and good is not None:
        run.saved_step = run.step
    if final and good is not None:
        about["finished"] = sorted({*folder.finished, run.step})
    with _tolerant(saved, "manifest", events):
        folder.write_manifest("failed" if final and good is None else status, run.step, **about)
    return saved


def _write_loras(run: Run, events: Events, saved: Saved) -> None:
    """The LoRA of this step, its check, and every place where it is to be found."""
    folder, name = run.folder, run.folder.name
    with _needed(saved, LORA):
        saved.lora = _again(lambda: _write_lora(run, run.folder.name))
    written = saved.lora
    if written is None:
        return
    events.saved("checkpoint" if run.whole else "lora", written)
    with _needed(saved, CHECK):
        if run.whole:
            verify_checkpoint(written, run.checkpoint)
        else:
            verify_saved(written, run.checkpoint_shapes, trained=run.step > 0)
    if CHECK in saved.failed:
        return
    if told := taken_words(written, folder.loras / lora_name(name, run.step)):
        events.message(told, "warning")
    with _tolerant(saved, f"copy of {written.name} as {lora_name(name)}", events):
        saved.lora = place_newest(written, folder.loras, name, events)
    with _tolerant(saved, f"file that says how the {run.product} came about", events):
        _write_sidecars(run, dict.fromkeys((written, saved.lora)))
    if run.config.run.export_folder is not None:
        with _tolerant(saved, "copy in run.export_folder", events):
            # a checkpoint is too large for one of each step to stay there
            place_one = export_one if run.whole else export
            run.unexported = True
            events.saved("export", place_one(written, run.config.run.export_folder / name, name, events))
            run.unexported = False
    if keep := run.config.full.keep if run.whole else run.config.train.keep_loras:
        _removed(prune(folder.loras, name, keep, folder.finished), events)
    if run.mean is not None:
        mean = None
        with _tolerant(saved, "LoRA of the running mean", events):
            mean = _write_mean(run, run.mean, events)
        if mean is not None and run.config.run.export_folder is not None:
            with _tolerant(saved, "copy of the running mean in run.export_folder", events):
                events.saved("export", export(mean, run.config.run.export_folder / name, f"{name}_ema", events))
    run.saved = (run.step, saved.lora)  # last, so that a second interrupt before here has all of it made again


def _write_mean(run: Run, mean: WeightMean, events: Events) -> Path:
    """The running mean of the LoRA, beside it under the name of the run and `_ema`, checked alike; returns the path
    with its step."""
    folder, train = run.folder, run.config.train
    name, about = f"{folder.name}_ema", {"name": f"{folder.name}_ema", "ema_decay": mean.decay}
    with mean.shown():
        written = _again(lambda: _write_lora(run, name, about))
    verify_saved(written, run.checkpoint_shapes, trained=run.step > 0)
    plain = place_newest(written, folder.loras, name, events)
    _write_sidecars(run, dict.fromkeys((written, plain)))
    events.saved("lora", written)
    if train.keep_loras:
        _removed(prune(folder.loras, name, train.keep_loras, folder.finished), events)
    return written


@contextlib.contextmanager
def _needed(saved: Saved, step: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        saved.failed[step] = error


@contextlib.contextmanager
def _tolerant(saved: Saved, step: str, events: Events) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        saved.failed[step] = error
        reason = error if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
        events.message(f"The {step} was left out, and the run goes on. {reason}", "warning")


def _again(write: Callable[[], T]) -> T:
    """What `write` returns; a refusal by the disk may be over in a moment."""
    for wait in WAITS:
        try:
            return write()
        except RunError:
            time.sleep(wait)
    return write()


def _write_state(run: Run) -> Path:
    full = run.config.train.state != "minimal"
    return save_state(
        run.folder.states / state_name(run.step),
        {
            "step": run.step,
            "id": run.folder.id,
            "place": list(run.place),
            "undrawn": run.undrawn,
            "identity": dict(run.folder.identity),
            "lora": run.loras.state(),
            "optimizer": run.optimizer.state_dict() if full else None,
            "scaler": run.scaler.state_dict() if full else None,
            "schedule": run.schedule.state_dict(),
            "random": random_state(),
            "mean": None if run.mean is None else run.mean.state_dict(),
            **({} if run.regularizers is None else {"regularizers": run.regularizers.state_dict()}),
            "sound": None if run.sound is None else {**run.sound.state_dict(), "watch": run.watch.state_dict()},
        },
    )


def _write_lora(run: Run, name: str, more: Mapping[str, Any] | None = None) -> Path:
    metadata, dtype = {**lora_metadata(run), **(more or {})}, DTYPES[run.config.train.save_precision]
    wanted = run.folder.loras / lora_name(name, run.step)
    if isinstance(run.loras, TrainedWeights):
        weights = run.loras.wholes()
        return write_lora_beside(wanted, lambda path: save_checkpoint(run.checkpoint, path, weights, metadata))
    loras = run.loras
    with averaged(run.optimizer):
        return write_lora_beside(wanted, lambda path: save_lora(path, loras, metadata, dtype))


def _write_sidecars(run: Run, loras: Iterable[Path]) -> None:
    row = _last_row(run)
    losses = [LOSS, *map(loss_column, dict.fromkeys((*STREAMS, *terms_of([row]))))]
    about = {key: row.get(key) for key in ("step", "epoch", *losses, "lr")}
    about |= {key: row[key] for key in map(f"{VALIDATION}{{}}".format, losses) if row.get(key) is not None}
    for lora in loras:
        write_json(lora.with_suffix(".json"), {**about, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def _last_row(run: Run) -> Mapping[str, Any]:
    return {} if run.log is None else run.log.last or {}


def _removed(text: str, events: Events) -> None:
    if text:
        events.message(text, "warning")
