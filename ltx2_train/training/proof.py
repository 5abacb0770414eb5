"""Whether a LoRA uses what it is given: the loss of a few clips with their own references, and with those of others.

Both are measured with the same noise, so that the reference alone differs. A LoRA that looks at its references has the
higher loss with wrong ones; the base may do so a little before training, so what counts is how much that has grown. A
stream that is given whole changes places in the same way. Where all clips share one reference, it is compared with
none. Nothing of the training's random numbers, counts and balances is touched.

    reference_loss      the loss with what belongs to the clips, mean over clips and noise levels
    reference_loss_of_others
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..conditions.settings import Condition
from ..conditions.trained import reference_sounds_of, references_of
from ..config import RunConfig
from ..device import release, why_it_failed
from ..errors import RunError, Stopped
from ..events import Events
from ..feed.batches import Batch, load_batch
from ..feed.loader import Sample
from ..files import digest
from ..optim import averaged
from .contexts import streams_of
from .held_out import validation_clips
from .setup import Run
from .step import training_step
from .validation import StillSound, sigmas_of

OWN, OTHERS = "reference_loss", "reference_loss_of_others"  # columns of the metrics
CLIPS, LEVELS = 6, 3
CANDIDATES = 24  # clips that are looked at to find such as can lend each other their references
CERTAIN = 2.0  # standard errors that the difference must be above 0
NOTICEABLE = 0.002  # share of the loss that the difference must have grown by
RECORD = "references"  # in the manifest


@dataclass(frozen=True)
class Use:
    """The two losses, the standard error of their difference, and how many clips were `swapped` or left without."""

    own: float
    others: float
    error: float
    clips: int
    swapped: bool

    @property
    def gain(self) -> float:
        """How much higher the loss is with what belongs to others, as a share."""
        return (self.others - self.own) / max(self.own, 1e-12)

    @property
    def certain(self) -> bool:
        return self.others - self.own > CERTAIN * self.error

    def record(self, step: int) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"step": step, OWN: self.own, OTHERS: self.others, "clips": self.clips, "swapped": self.swapped}


def is_wanted(config: RunConfig) -> bool:
    """Whether there is anything to prove: a reference, or a stream that is given whole."""
    return bool(_kinds(config)) and config.train.prove_references


class Proof:
    """Measures it for a run; one that fails is said and left out."""

    def __init__(self, run: Run, events: Events) -> None:
        self._run, self._events = run, events
        self._sound = None if run.sound is None else StillSound(run.config)
        self._config = _certain(run.config)
        self._pairs: list[tuple[Batch, Batch]] | None = None

    def measure(self) -> dict[str, float]:
        """Columns of the metrics; what was found is said, and kept in the manifest. Empty where it failed."""
        run, events = self._run, self._events
        try:
            use = self._use()
        except Stopped:
            return {}  # the row of the step is written first; the next step stops
        except Exception as error:
            reason = why_it_failed(error, "measuring the use of references")
        else:
            if use is None:
                return {}
            self._tell(use)
            return {OWN: use.own, OTHERS: use.others}
        release(run.device)
        events.message(
            f"Whether the LoRA uses its references was not measured, and the run goes on. {reason}", "warning"
        )
        return {}

    def _tell(self, use: Use) -> None:
        run = self._run
        known = run.folder.manifest.get(RECORD)
        known = dict(known) if isinstance(known, dict) else {}
        before = known.get("start") if run.step else None
        text, level = use_in_words(use, before if isinstance(before, dict) else None, run.step, what=_named(run.config))
        self._events.message(text, level)
        known["end" if run.step else "start"] = use.record(run.step)
        manifest = run.folder.manifest
        try:
            run.folder.write_manifest(
                manifest.get("status", "running"), manifest.get("step", run.step), **{RECORD: known}
            )
        except RunError as error:
            self._events.message(str(error), "warning")

    def _use(self) -> Use | None:
        run, events = self._run, self._events
        if self._pairs is None:
            self._pairs = list(self._find())
        pairs = self._pairs
        if not pairs:
            events.message("No clip has a reference that the run can be measured with.", "warning")
            return None
        events.stage("measure the use of references", len(pairs))
        own: list[float] = []
        others: list[float] = []
        run.model.eval()
        levels = self._config.model_copy(
            update={"validation": self._config.validation.model_copy(update={"levels": LEVELS})}
        )
        with torch.no_grad(), averaged(run.optimizer):
            for done, (mine, theirs) in enumerate(pairs, 1):
                for sigma in sigmas_of(levels):
                    events.check_stop()
                    own.append(self._loss(mine, sigma))
                    others.append(self._loss(theirs, sigma))
                events.progress(done, len(pairs), mine.samples[0].key)
        events.stage("train", run.total)
        apart = [b - a for a, b in zip(own, others, strict=True)]
        mean = sum(apart) / len(apart)
        spread = math.sqrt(sum((one - mean) ** 2 for one in apart) / max(1, len(apart) - 1) / len(apart))
        swapped = any(theirs.given or not _kinds_of_data(self._config) for _, theirs in pairs)
        return Use(sum(own) / len(own), sum(others) / len(others), spread, len(pairs), swapped)

    def _loss(self, batch: Batch, sigma: float) -> float:
        run, clip = self._run, batch.samples[0]
        level = {"min_timestep": 1000 * sigma, "max_timestep": 1000 * sigma}
        fixed = self._config.model_copy(update={"objective": self._config.objective.model_copy(update=level)})
        generator = torch.Generator().manual_seed(int(digest(clip.key, length=15), 16))
        streams = streams_of(run.config.model.mode)
        contexts = {one: run.contexts.batch([clip.text_path], one, run.device) for one in streams}
        return float(training_step(run.model, batch, contexts, fixed, run.version, generator, self._sound).loss.mean())

    def _find(self) -> list[tuple[Batch, Batch]]:
        """Each clip with what is its own, and with what is another's."""
        run, kinds = self._run, _kinds(self._config)
        held = [*validation_clips(run.config, run.data), *run.data.samples]
        clips = [clip for clip in dict.fromkeys(held) if all(_has(clip, kind) for kind in kinds)][:CANDIDATES]
        batches = [load_batch(run.data, [clip]) for clip in clips]
        pairs: list[tuple[Batch, Batch]] = []
        for place, batch in enumerate(batches):
            others = (*batches[place + 1 :], *batches[:place])
            lent = next((one for other in others if (one := swapped(batch, other, kinds)) is not None), None)
            if lent is not None:
                pairs.append((batch, lent))
            if len(pairs) == CLIPS:
                break
        if pairs or not _kinds_of_data(self._config):
            return pairs
        return [(batch, replace(batch, given=())) for batch in batches[:CLIPS]]


def swapped(batch: Batch, other: Batch, kinds: Sequence[str]) -> Batch | None:
    """`batch`, of one clip, with what of `kinds` is given to `other`; None where that is the same, or does not fit."""
    changed = batch
    for kind in kinds:
        if kind in ("video", "audio"):
            name = "latents" if kind == "video" else "audio"
            mine, theirs = getattr(batch, name), getattr(other, name)
            if mine is None or theirs is None:
                return None
            if kind == "audio":  # as long as it was: what is said counts, not for how long
                steps = mine.shape[2]
                theirs = theirs.repeat(1, 1, -(-steps // theirs.shape[2]), 1)[:, :, :steps]
            if mine.shape != theirs.shape or torch.equal(mine, theirs):
                return None
            changed = replace(changed, **{name: theirs})
            continue
        if not batch.given or not other.given:
            return None
        mine, theirs = getattr(batch.given[0], kind), getattr(other.given[0], kind)
        if not _may_change(mine, theirs, alike=kind == "references"):
            return None
        changed = replace(changed, given=(replace(changed.given[0], **{kind: theirs}),))
    return changed


def _may_change(mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None], alike: bool) -> bool:
    """Whether a clip can be given the references of another: as many, `alike` of the same shapes, and others."""
    if [one is None for one in mine] != [one is None for one in theirs]:
        return False
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
    if alike and any(a.shape != b.shape for a, b in pairs):
        return False
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)


def use_in_words(use: Use, before: dict[str, Any] | None, step: int, what: str) -> tuple[str, str]:
    """What was found after `step` steps, in words, and the level of the message; `before`: the record of step 0."""
    with_what = f"with {'those of other clips' if use.swapped else 'none'} {use.others:.4f} ({use.gain:+.1%})"
    numbers = f"{what}: the loss is {use.own:.4f} with their own, {with_what}, over {use.clips} clips"
    if not step:
        return f"Before training, {numbers[0].lower()}{numbers[1:]}.", "info"
    at_start = 0.0
    if before is not None and before.get(OWN):
        at_start = (before[OTHERS] - before[OWN]) / before[OWN]
        numbers += f"; before training {at_start:+.1%}"
    if use.certain and use.gain - max(0.0, at_start) > NOTICEABLE:
        return f"{numbers}. The LoRA uses them.", "info"
    return (
        f"{numbers}. That is no difference to speak of: the LoRA makes no use of them. See that each belongs to its "
        "clip and shows what the caption does not say; then more steps, or more layers (lora.target v2v), help.",
        "warning",
    )


def _named(config: RunConfig) -> str:
    kinds = _kinds(config)
    names = {
        "references": "References",
        "reference_audios": "Reference sounds",
        "video": "Pictures that are given",
        "audio": "Sounds that are given",
    }
    words = [names[kind] for kind in kinds]
    return " and ".join([words[0], *(word.lower() for word in words[1:])])


def _kinds(config: RunConfig) -> list[str]:
    """What is given that another clip could lend: fields of GivenData, and streams."""
    mode, kinds = config.model.mode, _kinds_of_data(config)
    if mode == "av" and not config.video.generated:
        kinds.append("video")
    if mode == "av" and not config.audio.generated:
        kinds.append("audio")
    return kinds


def _kinds_of_data(config: RunConfig) -> list[str]:
    kinds = ["references"] if references_of(config.video.conditions) else []
    return kinds + (["reference_audios"] if reference_sounds_of(config.audio.conditions) else [])


def _has(clip: Sample, kind: str) -> bool:
    if kind == "audio":
        return clip.audio_steps > 0
    if kind == "video":
        return clip.kind != "audio"
    return bool(clip.reference_paths if kind == "references" else clip.reference_audio_paths)


def _certain(config: RunConfig) -> RunConfig:
    """The same with every reference shown, whatever its coin."""

    def shown(conditions: Sequence[Condition]) -> list[Condition]:
        references = [*references_of(conditions), *reference_sounds_of(conditions)]
        return [one.model_copy(update={"probability": 1.0}) if one in references else one for one in conditions]

    return config.model_copy(
        update={
            "video": config.video.model_copy(update={"conditions": shown(config.video.conditions)}),
            "audio": config.audio.model_copy(update={"conditions": shown(config.audio.conditions)}),
        }
    )
