"""The loss on clips that are not trained on, measured the same way every time.

Each clip is noised by a generator that is seeded with its name, at a few fixed levels, so that what changes from one
measurement to the next is the LoRA. Nothing of the training's random numbers, counts and balances is touched: a run
that measures learns the same to the bit as one that does not. Conditions fall as the clip's own coins have it; captions
are never dropped.

    val_loss                         what is minimised, mean over clips and levels
    val_loss_video, val_loss_audio   its parts
    val_loss_video_at_0.125          a part at one level
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import RunConfig
from ..device import release, why_it_failed
from ..errors import Stopped
from ..events import Events
from ..feed.batches import Batch, load_batch
from ..feed.loader import Sample
from ..files import digest
from ..optim import averaged
from .contexts import streams_of
from .held_out import validation_clips
from .metrics import LOSS, STREAMS, VALIDATION, loss_column
from .setup import Run
from .sound import RunSound
from .step import training_step

RISING = 3  # measurements in a row above the best one, from which on the loss is said to rise
MARGIN = 0.01  # share of the best loss that the newest must lie above it


class StillSound:
    """The sound of a run as it is measured: no silence fills in, and nothing is counted or balanced."""

    silence_weight = 0.0

    def __init__(self, config: RunConfig) -> None:
        self._sound, self._weight = RunSound(config), config.loss.audio_weight

    def latents(self, batch: Batch) -> tuple[Tensor | None, list[int], list[bool]]:
        return self._sound.latents(batch)

    def weight(self, batch: Batch, video_loss: Tensor | None, audio_loss: Tensor | None) -> float:
        own = batch.samples[0].audio_loss_weight
        return self._weight if own is None else own


class Validation:
    """Measures the clips of a run, and says when the loss on them rises while that of the training falls."""

    def __init__(self, run: Run, events: Events) -> None:
        self._run, self._events = run, events
        self._clips = validation_clips(run.config, run.data)
        self._sound = None if run.sound is None else StillSound(run.config)
        self._told = -1  # the step of the best measurement that the rise after it was told of

    def measure(self) -> dict[str, float]:
        """Columns of the metrics. Empty where it failed, which is said, or where a stop was asked for."""
        run, events = self._run, self._events
        try:
            found = self._columns()
        except Stopped:
            return {}  # the row of the step is written first; the next step stops
        except Exception as error:
            reason = why_it_failed(error, "measuring the validation loss")
        else:
            events.message(_said(run.step, found, len(self._clips)))
            return found
        release(run.device)
        events.message(
            f"The validation loss after step {run.step} is left out, and the run goes on. {reason}", "warning"
        )
        return {}

    def watch(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Say it, once for each best measurement, where the loss rises after it while that of the training falls."""
        best, text = rising(rows)
        if text and best != self._told:
            self._told = best
            self._events.message(text, "warning")

    def _columns(self) -> dict[str, float]:
        run, events = self._run, self._events
        events.stage("measure the validation loss", len(self._clips))
        values: dict[str, list[float]] = {}
        run.model.eval()
        with torch.no_grad(), averaged(run.optimizer):
            for done, clip in enumerate(self._clips, 1):
                events.check_stop()
                batch = load_batch(run.data, [clip])
                streams = streams_of(run.config.model.mode)
                contexts = {one: run.contexts.batch([clip.text_path], one, run.device) for one in streams}
                for sigma in sigmas_of(run.config):
                    for column, value in self._of_clip(batch, contexts, clip, sigma).items():
                        values.setdefault(column, []).append(value)
                events.progress(done, len(self._clips), clip.key)
        events.stage("train", run.total)
        return {column: sum(several) / len(several) for column, several in values.items()}

    def _of_clip(self, batch: Batch, contexts: Mapping[str, Tensor], clip: Sample, sigma: float) -> dict[str, float]:
        run = self._run
        # squeezed to one point, the range of the noise levels holds but this one
        level = {"min_timestep": 1000 * sigma, "max_timestep": 1000 * sigma}
        fixed = run.config.model_copy(update={"objective": run.config.objective.model_copy(update=level)})
        generator = torch.Generator().manual_seed(int(digest(clip.key, length=15), 16))
        terms = training_step(run.model, batch, contexts, fixed, run.version, generator, self._sound)
        found: dict[str, float] = {}
        for name, term in terms.terms.items():
            measured = term.measured()
            if measured is not None:
                found[f"{VALIDATION}{loss_column(name)}"] = float(measured.mean())
                found[f"{VALIDATION}{loss_column(name)}_at_{sigma:g}"] = float(measured.mean())
        return {f"{VALIDATION}{LOSS}": float(terms.loss.mean()), **found} if found else {}


def sigmas_of(config: RunConfig) -> list[float]:
    """The noise levels that are measured: the middles of equal parts of the range that is trained."""
    low, high = config.objective.min_timestep / 1000, config.objective.max_timestep / 1000
    count = config.validation.levels
    return [round(low + (high - low) * (index + 0.5) / count, 6) for index in range(count)]


def rising(rows: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """The step of the best validation loss in `rows`, and a sentence where it has risen since while that of the
    training has fallen; else "". -1 where nothing was measured."""
    column = f"{VALIDATION}{LOSS}"
    places = [place for place, row in enumerate(rows) if row.get(column) is not None]
    if not places:
        return -1, ""
    best = min(range(len(places)), key=lambda number: rows[places[number]][column])
    lowest, newest = rows[places[best]], rows[places[-1]]
    step = int(lowest["step"])
    if len(places) - 1 - best < RISING or newest[column] <= (1 + MARGIN) * lowest[column]:
        return step, ""
    # as many steps before the best as there are before the newest, of which there is a mean of the training loss
    before, after = _mean(rows[: places[best] + 1], places), _mean(rows[: places[-1] + 1], places)
    if before is None or after is None or after >= before:
        return step, ""
    return step, (
        f"The validation loss rises while that of the training falls: {lowest[column]:.4f} after step {step}, "
        f"{newest[column]:.4f} now; in training {before:.4f} then, {after:.4f} now. The LoRA has begun to learn its "
        f"clips by heart. The one saved nearest to step {step} may be the better one; more clips, a lower lora.rank or "
        "fewer steps help."
    )


def _mean(rows: Sequence[Mapping[str, Any]], places: Sequence[int]) -> float | None:
    """The training loss over the last stretch of `rows`, as long as the longest between two measurements."""
    stretch = max(later - earlier for earlier, later in zip(places, places[1:], strict=False))
    values = [row[LOSS] for row in rows[-stretch:] if row.get(LOSS) is not None]
    return sum(values) / len(values) if values else None


def _said(step: int, found: Mapping[str, float], clips: int) -> str:
    columns = {name: f"{VALIDATION}{loss_column(name)}" for name in STREAMS}
    parts = [f"{name} {found[column]:.4f}" for name, column in columns.items() if column in found]
    apart = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    where = "before the first step" if step == 0 else f"after step {step}"
    return f"Validation loss {where}: {found[f'{VALIDATION}{LOSS}']:.4f}{apart}, {clips} clips."
