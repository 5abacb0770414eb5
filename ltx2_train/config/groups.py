"""The groups of settings of a run, and the tree they form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from ..caching.settings import CacheSettings
from ..conditions.settings import AudioStream, VideoStream
from ..errors import ConfigError
from ..full.settings import FullSettings
from ..idle import Idle, idle
from ..lora.settings import LoraSettings
from ..objective.audio import AudioSettings
from ..objective.flow import LossSettings
from ..objective.regularizers import RegularizerSettings
from ..objective.sigmas import SigmaSettings
from ..offload.settings import MemorySettings
from ..optim import MeanSettings, OptimizerSettings, ScheduleSettings
from ..paths import name_fault
from ..quant.settings import QuantSettings
from ..settings import Dtype, Reaction, Settings, refusal_text
from ..shapes import Mode
from ..weights.gemma_settings import GemmaSettings
from .logs import HubSettings, LogSettings, WandbSettings
from .sample import SampleSettings
from .slider import SliderSettings
from .train import TrainSettings
from .validation import ValidationSettings


class RunSettings(Settings):
    """What the run is called and where its files go."""

    name: str = Field(
        default="my_lora",
        max_length=120,
        description="Name of the run: its folder and its LoRA files are called so.",
        json_schema_extra={"community": "output_name"},
    )
    folder: Path | None = Field(
        default=None,
        description="Folder that holds the runs; `runs` beside the run file if not set.",
        json_schema_extra={"community": "output_dir"},
    )
    if_exists: Literal["continue", "new", "error"] = Field(
        default="continue",
        description="What to do when a run of this name exists: go on with it, start another with a number "
        "appended, or stop with an error.",
    )
    export_folder: Path | None = Field(
        default=None,
        description="Folder where each saved LoRA is placed as well, in a folder named as the run; for example a "
        "`loras` folder of ComfyUI.",
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if fault := name_fault(value):
            raise ValueError(fault)
        return value


class ModelSettings(Settings):
    """The frozen base: which files, which half of the model, at what precision, on which device."""

    checkpoint: Path | None = Field(
        default=None,
        description="LTX-2 or LTX-2.3 checkpoint (one .safetensors file, the dev one), the transformer of LTX-2.5, or "
        "LTX-Video 2B or 13B (0.9.5 and later).",
        json_schema_extra={"community": "ltx2_checkpoint"},
    )
    text_encoder: Path | None = Field(
        default=None,
        description="Gemma 3 12B, for LTX-2.5 its own Gemma 4, for LTX-Video T5-XXL: a Hugging Face folder, or the "
        "single .safetensors file that ComfyUI uses.",
        json_schema_extra={"community": ["gemma_root", "gemma_safetensors"]},
    )
    text_projection: Path | None = Field(
        default=None,
        description="Another checkpoint to take the text projection and the connectors from.",
        json_schema_extra={"community": "ltx2_text_encoder_checkpoint", "advanced": True},
    )
    mode: Mode = Field(
        default="video",
        description="What is trained: video; av = video with its sound; audio = sound alone. Also v, av and a. "
        "LTX-Video has video alone.",
        json_schema_extra={"community": ["ltx2_mode", "ltx_mode"]},
    )
    precision: Dtype = Field(
        default="bf16",
        description="Number format of the frozen base and of the activations. LoRA weights are always fp32.",
        json_schema_extra={"community": "mixed_precision"},
    )
    version: Literal["auto", "2.0", "2.3", "2.5", "ltxv-2b", "ltxv-13b"] = Field(
        default="auto",
        description="Model version; auto reads it from the checkpoint. Decides version-dependent defaults.",
        json_schema_extra={"community": "ltx_version", "advanced": True},
    )
    version_check: Reaction = Field(
        default="warn",
        description="What to do when `version` and the checkpoint disagree.",
        json_schema_extra={
            "counts_with": ".version = 2.0 | 2.3 | 2.5 | ltxv-2b | ltxv-13b",
            "community": "ltx_version_check_mode",
            "advanced": True,
        },
    )
    video_vae: Path | None = Field(
        default=None,
        description="The video VAE, where it is not in the checkpoint: a file of LTX-2.5.",
        json_schema_extra={"since": "0.2", "advanced": True},
    )
    audio_vae: Path | None = Field(
        default=None,
        description="The audio VAE and the vocoder, where they are not in the checkpoint: a file of LTX-2.5.",
        json_schema_extra={"since": "0.2", "advanced": True},
    )
    device: str = Field(
        default="auto", description="auto, cpu, cuda, cuda:1, mps ...", json_schema_extra={"advanced": True}
    )

    @model_validator(mode="before")
    @classmethod
    def _community_values(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            values = dict(values)
            if values.get("precision") == "no":  # the community trainer's word for no mixed precision
                values["precision"] = "fp32"
            if isinstance(values.get("version"), (int, float)) and not isinstance(values["version"], bool):
                values["version"] = f"{values['version']:.1f}"
            if isinstance(values.get("mode"), str):
                values["mode"] = {"v": "video", "a": "audio", "va": "av"}.get(values["mode"], values["mode"])
        return values


class DataSettings(Settings):
    """Where the dataset is described, and how it is fed."""

    config: Path | None = Field(
        default=None,
        description="Dataset file (TOML) that lists folders, captions and sizes; or a folder that the official trainer "
        "has encoded.",
        json_schema_extra={"harmless": True, "counts_with": "not .manifest", "community": "dataset_config"},
    )
    manifest: Path | None = Field(
        default=None,
        description="Train from this manifest, as `cache build` writes one, and thus from caches alone; it wins over "
        "`config`.",
        json_schema_extra={"community": "dataset_manifest", "advanced": True},
    )
    prefetch: int = Field(
        default=2,
        ge=0,
        le=64,
        description="Batches read ahead by a thread; 0 reads in the training thread.",
        json_schema_extra={"community": "max_data_loader_n_workers", "advanced": True},
    )


class AudioGroup(AudioStream, AudioSettings):
    """How sound is trained and fed, and what of it is given."""


class RunConfig(Settings):
    """Everything a run is made of."""

    run: RunSettings = Field(default_factory=RunSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    full: FullSettings = Field(default_factory=FullSettings)
    objective: SigmaSettings = Field(default_factory=SigmaSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    video: VideoStream = Field(default_factory=VideoStream)
    audio: AudioGroup = Field(default_factory=AudioGroup)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    quant: QuantSettings = Field(default_factory=QuantSettings)
    memory: MemorySettings = Field(default_factory=MemorySettings)
    gemma: GemmaSettings = Field(default_factory=GemmaSettings)
    sample: SampleSettings = Field(default_factory=SampleSettings)
    validation: ValidationSettings = Field(default_factory=ValidationSettings)
    ema: MeanSettings = Field(default_factory=MeanSettings)
    slider: SliderSettings = Field(default_factory=SliderSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    wandb: WandbSettings = Field(default_factory=WandbSettings)
    hub: HubSettings = Field(default_factory=HubSettings)
    regularizers: RegularizerSettings = Field(default_factory=RegularizerSettings)

    _notes: tuple[str, ...] = PrivateAttr(())
    _said: frozenset[str] = PrivateAttr(frozenset())  # settings without effect that the notes name already
    _asked: frozenset[str] = PrivateAttr(frozenset())  # settings that an override gave
    _foreign: bool = PrivateAttr(False)
    _record_of: Path | None = PrivateAttr(None)  # the run folder that the file lies in, as that run wrote it

    def require_own_folder(self) -> None:
        """Raise ConfigError where this is the record of a run folder that was copied or moved, and names another."""
        lies = self._record_of
        if lies is None or self._asked & {"run.folder", "run.name"} or self.run.folder is None:
            return
        named = self.run.folder / self.run.name
        if named.resolve() != lies.resolve():
            raise ConfigError(
                f"The run file lies in {lies}, but says run.folder and run.name of {named}: that folder was copied or "
                f'moved, and {named} would be used, not this one. To go on here, say --set run.folder="{lies.parent}" '
                f'--set run.name="{lies.name}", or change both in the file; to go on there, give {named / "run.toml"}.'
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on names of other programs that were given and change nothing."""
        return self._notes

    @property
    def foreign(self) -> bool:
        """Whether it was read from a file of another program, whose dataset file then is that program's as well."""
        return self._foreign

    @property
    def without_effect(self) -> list[Idle]:
        """Settings that were set and change nothing as the others are, but for those that `notes` name."""
        return [one for one in idle(self, RunConfig(), self._asked) if one.setting not in self._said]

    def require_effect(self) -> None:
        """Raise ConfigError that names each setting which was set and would change nothing."""
        if lines := [str(one) for one in self.without_effect if not one.harmless]:
            raise ConfigError(refusal_text(f"The run {self.run.name}", lines))

    @property
    def lends(self) -> bool:
        """Whether clips are given what another one could lend: a reference, or in mode av a whole stream."""
        whole = self.model.mode == "av" and not (self.video.generated and self.audio.generated)
        return whole or any(one.type == "reference" for one in (*self.video.conditions, *self.audio.conditions))

    @property
    def sample_slots(self) -> int:
        """How many keyframe slots a sample is made with."""
        return self.cache.keyframe_slots if self.sample.keyframe_slots is None else self.sample.keyframe_slots

    @property
    def settled_lora(self) -> LoraSettings:
        """`lora`, its target chosen by what conditions make of the run where it is "auto" and they decide it."""
        if self.lora.target != "auto":
            return self.lora
        chosen: Literal["audio", "v2v", "audio_ref_only_ic"]
        if not self.video.generated:
            chosen = "audio"
        elif any(one.type == "reference" for one in self.video.conditions):
            chosen = "v2v"
        elif self.model.mode == "av" and any(one.type == "reference" for one in self.audio.conditions):
            chosen = "audio_ref_only_ic"
        else:
            return self.lora
        return self.lora.model_copy(update={"target": chosen})

    def to_toml(self) -> str:
        """The whole tree as TOML; unset values are left out."""
        import tomli_w

        return tomli_w.dumps(plain_toml(self.model_dump(mode="json")))

    def dataset_file(self) -> Path:
        """What to train on: `data.manifest`, else `data.config`. Raises ConfigError where neither is there."""
        return self.need("data.config" if self.data.manifest is None else "data.manifest")

    def need(self, dotted: str) -> Path:
        """The path at `dotted`; ConfigError where it is not set or does not exist."""
        group, key = dotted.split(".")
        value = getattr(getattr(self, group), key)
        if value is None:
            help_text = type(getattr(self, group)).model_fields[key].description
            raise ConfigError(f"{dotted} is not set. {help_text} Put it into the run file or pass --set {dotted}=PATH.")
        if not value.exists():
            raise ConfigError(f"{dotted}: {value} does not exist. Correct the path in the run file.")
        return value


def plain_toml(value: Any) -> Any:
    """`value` without what TOML cannot say: unset values are dropped."""
    if isinstance(value, Mapping):
        return {key: plain_toml(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [plain_toml(inner) for inner in value]
    return value
