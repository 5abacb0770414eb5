"""What training reads: a sample with the paths of its caches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..dataset.dataset_file import DatasetSettings
from ..media.info import MediaKind
from ..objective.audio import AudioSettings
from ..shapes import LatentShape


@dataclass(frozen=True)
class SoundBuckets:
    """How sounds of several lengths become batches; one of these for each dataset. `interval` is in seconds."""

    strategy: Literal["pad", "truncate"] = "pad"
    interval: float = 2.0
    separate: bool = False

    @classmethod
    def of(cls, entry: DatasetSettings, run: AudioSettings) -> SoundBuckets:
        """What the dataset says, else what the run says, else the default; as flags count in the community trainer."""

        def chosen(key: str, flag: Any) -> Any:
            return getattr(entry, key) if flag is None or key in entry.model_fields_set else flag

        return cls(
            chosen("audio_bucket_strategy", run.bucket_strategy),
            chosen("audio_bucket_interval", run.bucket_interval),
            chosen("separate_audio_buckets", run.separate_buckets),
        )


@dataclass(frozen=True)
class Sample:
    """One cached clip and its caption. `dataset` counts within its list, of training or of validation, so nothing is
    looked up by it; `buckets` is what it says of batches of sound. The optional values override the run's.

    `reference_temporal_scale`: how many times fewer frames a second its reference has.

    `kind` is what is trained of it: "audio" has no picture, be it a recording or, in mode audio, the sound of a clip;
    its `shape` then is that of an imagined video, which the noise levels follow. `audio_steps` counts the latents of
    its sound, 0 for none, and `silent` says that all of it is known to be silence. References stand in the order of
    their conditions, None where one is missing; masks and the frames of keyframe slots are None where a
    sample has none, or the mode no use for them.

    `others` are its further captions with their caches; one of all is drawn whenever it is trained on. `unsaid`: its
    text cache does not say its caption, and `caption` is the one beside its medium, or "".
    """

    key: str
    shape: LatentShape
    fps: float
    caption: str
    latent_path: Path
    text_path: Path
    dataset: int = 0
    repeats: int = 1
    buckets: SoundBuckets = SoundBuckets()
    first_frame_probability: float | None = None
    video_loss_weight: float | None = None
    kind: MediaKind = "video"
    audio_path: Path | None = None
    audio_steps: int = 0
    silent: bool = False
    audio_loss_weight: float | None = None
    reference_paths: tuple[Path | None, ...] = ()
    reference_audio_paths: tuple[Path | None, ...] = ()
    reference_temporal_scale: int = 1
    mask_path: Path | None = None
    audio_mask_path: Path | None = None
    keyframes_path: Path | None = None
    others: tuple[tuple[str, Path], ...] = ()
    unsaid: bool = False

    @property
    def captions(self) -> tuple[str, ...]:
        """All its captions."""
        return (self.caption, *(caption for caption, _ in self.others))

    @property
    def text_paths(self) -> tuple[Path, ...]:
        """The caches of all its captions."""
        return (self.text_path, *(path for _, path in self.others))

    @property
    def paths(self) -> tuple[Path, ...]:
        """All its caches that are there."""
        single = (self.latent_path, self.audio_path, self.mask_path, self.audio_mask_path, self.keyframes_path)
        every = (*single, *self.text_paths, *self.reference_paths, *self.reference_audio_paths)
        return tuple(path for path in every if path is not None and path.is_file())

    def told(self, number: int) -> Sample:
        """The sample with its caption of that number alone, from 0."""
        return replace(self, caption=self.captions[number], text_path=self.text_paths[number], others=())
