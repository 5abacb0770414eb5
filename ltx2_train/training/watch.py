"""Looks at what a run with sound is about to learn, and whether it learns it.

A dataset whose sound could not be read, a target that names no audio layer or a mix with one clip in a hundred that
can be heard trains without a word of complaint: the loss falls, and the LoRA stays mute. So the mix is told before the
first step, and after a hundred steps the audio layers must have moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..config import RunConfig
from ..dataset.as_read import CaptionsAsRead, captions_as_read
from ..dataset.cache_names import medium_of
from ..dataset.notes import SHOWN_AT_MOST
from ..errors import DataError
from ..events import Events
from ..feed.batches import BatchOrder, used_steps
from ..feed.loader import Sample
from ..full.weights import TrainedSet, TrainedWeights
from ..shapes import AUDIO_LATENTS_PER_SECOND
from .metrics import loss_column

CHECK_AFTER = 100  # steps
STARVING = 0.05  # share of the batches below which sound is hardly learned
HEARING = ("audio", "v2a")  # branches of the model that make the sound
STILL = 1e-6, 1e-4  # a branch that moved less than this, or than this share of what moved most, has not moved


def norm_row(loras: TrainedSet) -> dict[str, float]:
    """How far each branch of the LoRA has moved the model, as it stands in the metrics: norm_video, norm_audio, ..."""
    return {f"norm_{branch}": value for branch, value in loras.norms().items()}


def require_heard(samples: Sequence[Sample], mode: str) -> None:
    """Raise DataError where sound is to be trained and not one sample has any, or nothing but silence."""
    if mode == "video":
        return
    heard = [sample for sample in samples if sample.audio_steps]
    if not heard:
        raise nothing_heard(len(samples), mode)
    if all(sample.silent for sample in heard):
        raise all_silent(_named(heard), mode)


def nothing_heard(count: int, mode: str) -> DataError:
    """What is to be raised where none of `count` samples has the sound that `mode` trains."""
    return DataError(
        f"model.mode is {mode}, but not one of the {count} samples has sound. Add clips with sound or a dataset with "
        "audio_directory, look at what `cache build` said about their sound, or set model.mode to video."
    )


def all_silent(names: Iterable[str], mode: str) -> DataError:
    """What is to be raised where `names` are all that has the sound that `mode` trains, and it is silence."""
    names = list(dict.fromkeys(names))
    return DataError(
        f"model.mode is {mode}, but all sound there is to learn is silence ({_some(names)}), so the LoRA would learn "
        "to be mute. Use takes that can be heard, choose another track of the files (audio_track), or set model.mode "
        "to video to train the pictures alone."
    )


def _named(samples: Iterable[Sample]) -> list[str]:
    """The files of sound behind `samples`, as far as the names of their caches tell."""
    return [sample.key.rsplit("/", 1)[-1] for sample in samples]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_AT_MOST} more" if len(names) > SHOWN_AT_MOST else ""
    return ", ".join(names[:SHOWN_AT_MOST]) + more


def describe_mix(order: BatchOrder, mode: str, can_fill: bool, events: Events) -> None:
    """Tell how many batches of an epoch carry sound, and warn where they are too few.

    `can_fill`: silence stands in where there is no sound.
    """
    if mode == "video":
        return
    samples = order.samples
    heard = [sample for sample in samples if sample.audio_steps]
    seconds = sum(sample.audio_steps * sample.repeats for sample in heard) / AUDIO_LATENTS_PER_SECOND
    events.message(f"{order.describe_sound()} {len(heard)} of {len(samples)} samples, {seconds:.1f} s in all.")
    behind = [one.audio_steps - used_steps(one) for one in heard]
    if any(behind):
        lost = sum(behind) / AUDIO_LATENTS_PER_SECOND
        events.message(
            f"audio_bucket_strategy = truncate leaves out the end of {sum(map(bool, behind))} of {len(heard)} samples, "
            f"{lost:.1f} s together."
        )
    if silent := _named(sample for sample in heard if sample.silent):
        events.message(
            f"The sound of {len(silent)} of {len(heard)} samples is silence, and they teach the LoRA to be mute: "
            f'{_some(silent)}. Use other takes, choose another track (audio_track), or set audio_source = "none" for '
            "these clips.",
            "warning",
        )
    share = order.share_of_sound()
    if share < STARVING and not can_fill:
        events.message(
            f"Only {share:.1%} of the batches carry sound, so it will hardly be learned. Raise num_repeats of the "
            f"datasets with sound about {round(0.3 / share)} times, train on fewer silent clips, or set "
            "loss.balance.mode to inv_freq.",
            "warning",
        )


def sample_captions(samples: Sequence[Sample]) -> CaptionsAsRead | None:
    """The captions of `samples`, each once a medium; None where their caches do not say any."""
    media = {sample.text_path: sample for sample in samples if not sample.unsaid}.values()
    return captions_as_read((medium_of(one.latent_path.name), text) for one in media for text in one.captions)


def warn_of_captions(samples: Sequence[Sample], events: Events) -> None:
    """Warn where every file has the same caption: the LoRA cannot tell them apart, and prompts lose their hold."""
    files = {sample.text_path for sample in samples}
    captions = {"" if sample.unsaid else sample.caption for sample in samples}
    if len(files) > 1 and len(captions) == 1 and captions != {""}:
        events.message(
            f"All {len(files)} files have the same caption ({next(iter(captions))[:60]!r}). The LoRA will answer to "
            "any prompt with a mean of them; describe each file in its own words.",
            "warning",
        )


class LossWatch:
    """Says once of each stream that a step had nothing of it to learn: all its tokens were given, and its loss is 0."""

    def __init__(self, config: RunConfig, events: Events) -> None:
        streams = {"video": ("the picture", config.video), "audio": ("the sound", config.audio)}
        self._left = {name: what for name, (what, settings) in streams.items() if settings.generated}
        self._events = events

    def step(self, row: Mapping[str, Any], names: Sequence[str]) -> None:
        """After each step: its `row` of the metrics, and the samples `names` that it was of."""
        for stream in [one for one in self._left if row.get(loss_column(one)) == 0]:
            what, those = self._left.pop(stream), dict.fromkeys(names)
            self._events.message(
                f"Step {row['step']}: nothing of {what} of {_some([*those])} was left to learn, and its loss is 0: all "
                f"of it was given, by its mask, its first frame and {stream}.conditions together. Steps that come out "
                "so are lost, and are not told again. Give less of it.",
                "warning",
            )


class SoundWatch:
    """Counts steps with sound and checks, once, that the audio layers of the LoRA move. Save `state_dict`."""

    def __init__(self, loras: TrainedSet, mode: str, events: Events) -> None:
        self._loras, self._mode, self._events = loras, mode, events
        self._steps = self._heard = 0
        self._done = mode == "video" or isinstance(loras, TrainedWeights)
        self._first: dict[str, float] = {}
        self.begin()
        if not self._done and mode == "av" and not any(branch in HEARING for branch in self._first):
            self._done = True
            events.message(
                "The LoRA has no audio layers, so the sound of the clips only informs the picture and is not learned. "
                "Set lora.target to t2v, v2v, audio or full, or loosen lora.include_patterns and exclude_patterns.",
                "warning",
            )

    def begin(self) -> None:
        """Measure from where the LoRA stands now."""
        self._first = {} if self._mode == "video" else self._loras.norms()

    def step(self, heard: bool) -> None:
        """Count one optimizer step; `heard` if a batch of it had sound."""
        if self._done:
            return
        self._steps += 1
        self._heard += heard
        if self._heard >= CHECK_AFTER:
            self._done = True
            if not self._moved():
                self._events.message(
                    f"After {self._heard} steps with sound the audio layers of the LoRA have not moved at all. Look "
                    "at train.audio_learning_rate, train.lr_args, loss.audio_weight and audio_loss_weight of the "
                    "datasets: one of them keeps the sound from being learned.",
                    "warning",
                )
        elif self._steps >= CHECK_AFTER and not self._heard:
            self._done = True
            self._events.message(
                f"None of the first {self._steps} steps had a batch with sound. See whether the sound of the clips "
                "was cached, or raise num_repeats of the datasets that have sound.",
                "warning",
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a resume."""
        return {"steps": self._steps, "heard": self._heard, "done": self._done, "first": dict(self._first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._steps, self._heard, self._done = int(state["steps"]), int(state["heard"]), bool(state["done"])
        self._first = {str(branch): float(value) for branch, value in state["first"].items()}

    def _moved(self) -> bool:
        way = {branch: abs(value - self._first.get(branch, 0.0)) for branch, value in self._loras.norms().items()}
        heard = max((value for branch, value in way.items() if branch in HEARING), default=0.0)
        return heard > max(STILL[0], STILL[1] * max(way.values()))
