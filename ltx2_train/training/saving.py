"""What a run writes while it goes: the LoRA, the state, the chart and the manifest, in this order.

The manifest comes last, so whatever it speaks of is there. Each file is written in one move; a run killed between two
of them goes on from the newest complete state.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from ..device import DTYPES
from ..errors import TrainerError
from ..events import Events
from ..files import atomic, write_json
from ..lora.file import verify_saved
from ..lora.save import save_lora
from .metrics import LOSS, STREAMS, draw_chart, loss_column, terms_of
from .run_folder import rotate
from .setup import Run, lora_metadata
from .state import random_state, save_state, state_name


def save(run: Run, events: Events, status: str, final: bool = False) -> Path:
    """Write everything there is to write after `run.step` steps; returns the LoRA's path.

    `final` names the LoRA after the run alone, and keeps a state even where train.state is off.
    """
    settings = run.config.train
    name = run.config.run.name
    lora = run.folder.loras / (f"{name}.safetensors" if final else f"{name}-step{run.step:08d}.safetensors")
    save_lora(lora, run.loras, lora_metadata(run), DTYPES[settings.save_precision])
    verify_saved(lora, run.checkpoint_shapes, trained=run.step > 0)
    row = run.log.rows[-1] if run.log.rows else {}
    losses = [LOSS, *map(loss_column, dict.fromkeys((*STREAMS, *terms_of([row]))))]
    about = {key: row.get(key) for key in ("step", "epoch", *losses, "lr")}
    write_json(lora.with_suffix(".json"), {**about, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    events.saved("lora", lora)
    if run.config.run.export_folder is not None:
        exported = export(lora, run.config.run.export_folder / run.folder.path.name)
        events.saved("export", exported)
    if settings.keep_loras:
        _prune(run.folder.loras, name, settings.keep_loras)
    if settings.state != "off" or final or status != "running":
        events.saved("state", _save_state(run))
    draw_chart(run.log.rows, run.folder.path / "loss.png", f"{name}: loss per step")
    run.folder.write_manifest(status, run.step, total=run.total, lora=lora.name, loss=row.get("loss"))
    return lora


def save_after_error(run: Run, events: Events, status: str) -> str:
    """Save what can be saved when something ended the run; returns a sentence about it, raises nothing."""
    try:
        if run.step == 0:
            run.folder.write_manifest(status, 0, total=run.total)
            return "Nothing was trained yet."
        save(run, events, status)
        return "State and LoRA are saved."
    except TrainerError as error:
        return f"Saving failed as well: {error} The last complete state is kept."


def export(lora: Path, folder: Path) -> Path:
    """Place the LoRA in `folder` too: as a hard link where that works, else as a copy."""
    target = folder / lora.name
    with atomic(target) as temporary:
        temporary.unlink()
        try:
            os.link(lora, temporary)
        except OSError:
            shutil.copyfile(lora, temporary)
    return target


def _save_state(run: Run) -> Path:
    full = run.config.train.state != "minimal"
    path = run.folder.states / state_name(run.step)
    save_state(
        path,
        {
            "step": run.step,
            "place": list(run.place),
            "lora": run.loras.state(),
            "optimizer": run.optimizer.state_dict() if full else None,
            "scaler": run.scaler.state_dict() if full else None,
            "schedule": run.schedule.state_dict(),
            "random": random_state(),
            "sound": None if run.sound is None else {**run.sound.state_dict(), "watch": run.watch.state_dict()},
        },
    )
    rotate(run.folder.states, run.config.train.keep_states)
    return path


def _prune(folder: Path, name: str, keep: int) -> None:
    for old in sorted(folder.glob(f"{name}-step*.safetensors"))[:-keep]:
        for path in (old, old.with_suffix(".json")):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
