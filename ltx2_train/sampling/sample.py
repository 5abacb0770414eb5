"""Draw samples with a LoRA file, outside a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from ..conditions.settings import AudioReference
from ..conditions.trained import Trained, reference_sounds_of, references_of, slots_of
from ..config import DrawSettings, RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import DatasetSettings
from ..dataset.outputs import refuse_among_media
from ..errors import ConfigError, DataError
from ..events import Events, shielded
from ..families import FAMILIES
from ..files import require_there
from ..media.names import is_file
from ..weights.fingerprint import part_fingerprint
from .given_media import GivenMedia
from .guidance import require_stg_block
from .idle_options import rounded_sizes, unused_options
from .prompts import Prompt, read_prompts, require_drawable
from .render import SampleFile
from .studio import checked_lora, open_studio, outer_lora, require_possible
from .told_prompts import describe_prompts
from .two_stages import require_upsampler


def sample(
    run: RunConfig,
    lora: Path | None,
    out: Path,
    events: Events | None = None,
    *,
    prompts: Sequence[str | dict[str, Any]] | None = None,
    strengths: Sequence[float] = (),
    beside: Sequence[tuple[Path, float]] = (),
) -> list[SampleFile]:
    """Draw the prompts of `run` (or `prompts`, lines or tables) once per strength of the LoRA into `out`.

    Without `strengths` that is `sample.strength`. Without a LoRA the base alone is drawn, once. Strength 0 is exactly
    the base. Each strength gets the same seeds, so that the files beside each other differ by the LoRA alone. The run's
    mode decides what is drawn: video, av or audio. `beside` are other LoRAs with their strengths, which all that is
    drawn wears, the base at strength 0 as well. Where the run names no prompts, the first two captions of its dataset
    are taken. Raises TrainerError.
    """
    events = shielded(events)
    events.stage("check")
    strengths = _asked_strengths(run, lora, strengths)
    worn = [*([] if lora is None else [lora]), *(path for path, _ in beside)]
    require_possible(out, [*strengths, *(strength for _, strength in beside)], worn)
    base = BaseFiles.find(run, events)
    if has_dataset(run):
        refuse_among_media(out, DatasetConfig.read(run.dataset_file(), run.foreign))
    settings, wanted = wanted_prompts(run, prompts, base.version)
    require_stg_block(settings, base.info.blocks)
    require_upsampler(settings)
    base.require_decoder(run.model.mode)
    state = None if lora is None else checked_lora(lora, base, run.model.mode, events)
    others = [(outer_lora(path, base, run.model.mode, events), strength) for path, strength in beside]
    trained = shown_to(run, None if state is None else state.metadata)
    if state is not None and run.sample.keyframe_slots is None and FAMILIES[base.version].keyframe_slots:
        # as many as in training, of which the file knows more than a run that is only here to draw
        slots = {"keyframe_slots": slots_of(state.metadata) or run.cache.keyframe_slots}
        run = run.model_copy(update={"sample": run.sample.model_copy(update=slots)})
    require_drawable(wanted, run.model.mode, trained)
    tell_idle(run, settings, wanted, lora, events)
    _tell_replaced([_named(out, lora, strength, *one) for strength in strengths for one in enumerate(wanted)], events)
    folder = prompt_folder(run) if has_dataset(run) else out / "prompts"
    media = given_media(run, base, folder, trained)
    with (
        open_studio(run, base, settings, wanted, folder, out, media, events) as studio,
        studio.wearing(state, others) as loras,
    ):
        files: list[SampleFile] = []
        for strength in strengths:
            if loras is not None:
                loras.set_strength(strength)
            files += studio.renderer.draw(
                wanted,
                partial(_named, out, lora, strength),
                {
                    "lora": None if lora is None else lora.name,
                    "strength": strength,
                    **({"beside": {path.name: each for path, each in beside}} if beside else {}),
                },
            )
        return _all_there(files)


def _all_there(files: list[SampleFile]) -> list[SampleFile]:
    """`files`. Raises RunError where one is not there any more."""
    require_there((file.path for file in files), "while samples were drawn", "Draw them again.")
    return files


def _named(out: Path, lora: Path | None, strength: float, index: int, prompt: Prompt) -> Path:
    """What the sample of a prompt is called, without its ending."""
    label = "base" if lora is None else f"{lora.stem}_x{strength:g}"
    return out / f"{label}_p{index + 1:02d}_s{prompt.seed}"


def _tell_replaced(stems: Sequence[Path], events: Events) -> None:
    """Say before anything is drawn which samples of an earlier press will be lost."""
    there = [path for stem in stems for path in sorted(stem.parent.glob(f"{escape(stem.name)}.*"))]
    if there:
        more = f" and {len(there) - 1} more are" if len(there) > 1 else " is"
        events.message(
            f"{there[0].name}{more} in {there[0].parent} already, and will be replaced. Choose another folder (--out) "
            "to keep what is there.",
            "warning",
        )


def _asked_strengths(run: RunConfig, lora: Path | None, strengths: Sequence[float]) -> tuple[float, ...]:
    """At what the LoRA is drawn, each once. Raises ConfigError where there is none to draw at `strengths`."""
    if lora is None and strengths:
        numbers = ", ".join(f"{strength:g}" for strength in strengths)
        raise ConfigError(
            f"--strength is {numbers}, and no LoRA is given to draw at it. Add --lora FILE, or leave it out."
        )
    by_name: dict[str, float] = {}  # of the files that are drawn; what has one name looks alike
    for strength in map(float, strengths):
        by_name.setdefault(f"{strength:g}", strength)
    return tuple(dict.fromkeys(by_name.values())) or (1.0 if lora is None else run.sample.strength,)


def tell_idle(
    run: RunConfig, settings: DrawSettings, prompts: Sequence[Prompt], lora: Path | None, events: Events
) -> None:
    """Say what `prompts` come to, and name what is set for samples and changes nothing of them."""
    idle = [
        str(one)
        for one in run.without_effect
        if one.setting.startswith("sample.") and one.setting != "sample.strength" and "every" not in one.words
    ]
    if lora is None and run.sample.strength != 1:
        idle.append(f"sample.strength = {run.sample.strength:g} has no effect: no LoRA is given (--lora).")
    events.message(describe_prompts(prompts, run.model.mode, settings.prompts))
    rounded = rounded_sizes(prompts, run.model.mode)
    for text in (*idle, *rounded, *unused_options(run.sample, settings, prompts, run.model.mode)):
        events.message(text, "warning")


def has_dataset(run: RunConfig) -> bool:
    """Whether `run` names what it is trained on; a slider need not."""
    return not (run.data.config is run.data.manifest is None)


def wanted_prompts(
    run: RunConfig, prompts: Sequence[str | dict[str, Any]] | None, version: str
) -> tuple[DrawSettings, list[Prompt]]:
    """The sample settings of `run` for a model of `version`, with `prompts` in place of its own, and what is drawn by
    them. Raises ConfigError.

    Without either, the first captions of the dataset are taken.
    """
    for text in prompts or ():
        if isinstance(text, str) and is_file(Path(text.strip())):
            raise ConfigError(f"--prompt: {text} is a file. To draw the prompts in it, set sample.prompts to it.")
    given = run.sample if prompts is None else run.sample.model_copy(update={"prompts": list(prompts)})
    settings = DrawSettings.of(given, version)
    wanted = read_prompts(settings, [] if settings.prompts is not None else _first_captions(run))
    if not wanted:
        raise ConfigError("There is no prompt to draw. Set sample.prompts, or pass --prompt.")
    return settings, wanted


def shown_to(run: RunConfig, metadata: Mapping[str, str] | None) -> Trained:
    """How a LoRA with that metadata is shown references; where it does not say so, as the dataset of `run` has them."""
    told = None if metadata is None else Trained.read(metadata)
    if told is not None:
        return told
    return trained_of(run, DatasetConfig.read(run.dataset_file(), run.foreign)) if has_dataset(run) else Trained()


def prompt_folder(run: RunConfig) -> Path:
    """Where features of prompts and media of samples are cached: in the cache folder of the first dataset, or beside
    the runs where there is none, as for a slider."""
    if not has_dataset(run) and run.run.folder is not None:
        return run.run.folder / "prompts"
    return prompts_of(DatasetConfig.read(run.dataset_file(), run.foreign))


def prompts_of(dataset: DatasetConfig) -> Path:
    """The same, of a dataset that has been read."""
    return dataset.datasets[0].caches / "prompts"


def given_media(run: RunConfig, base: BaseFiles, folder: Path, trained: Trained) -> GivenMedia:
    """What is kept in `folder` of the media that samples of `run` are given, references shown as `trained` says."""
    mode = run.model.mode
    return GivenMedia(
        folder,
        "" if mode == "audio" else part_fingerprint(base.video_vae, "video_vae"),
        "" if mode == "video" else part_fingerprint(base.audio_vae, "audio_vae"),
        run.cache,
        trained,
        DrawSettings.of(run.sample, base.version).image_crf,
    )


def trained_of(run: RunConfig, dataset: DatasetConfig) -> Trained:
    """How a LoRA of `run` on `dataset` is shown its references: as the first dataset that has any says."""
    having = [one for one in dataset.datasets if one.reference_directory or one.reference_cache_directory]
    hearing = [one for one in dataset.datasets if one.reference_audio_directory or one.reference_audio_cache_directory]
    sound = next(iter(reference_sounds_of(run.audio.conditions)), AudioReference())
    entry, heard = (having or dataset.datasets)[0], (hearing or dataset.datasets)[0]
    return Trained(
        entry.reference_downscale,
        entry.reference_temporal_scale,
        entry.reference_frames,
        heard.reference_audio_max_seconds,
        sound,
        _frames_of_more(run, entry),
    )


def _frames_of_more(run: RunConfig, entry: DatasetSettings) -> tuple[int, ...]:
    """The frames of each reference behind the first, as the dataset says; nothing where they are those of the first."""
    found = tuple(entry.frames_of(number) for number in range(1, len(references_of(run.video.conditions))))
    return found if entry.more_reference_frames else ()


def _first_captions(run: RunConfig) -> list[str]:
    from ..feed.cached import dataset_captions

    if not has_dataset(run):
        return []
    try:
        return dataset_captions(DatasetConfig.read(run.dataset_file(), run.foreign), Events())[:2]
    except DataError as error:
        raise ConfigError(f"sample.prompts is not set and the dataset gives no captions: {error}") from None
