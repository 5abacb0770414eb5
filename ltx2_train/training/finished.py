"""A run that has been there before: what was changed since then is told by name.

Where it has taken all its steps nothing of that has an effect: the run's record of itself keeps what its steps used,
and only where the base and the dataset file lie is written anew. What it made is looked at, and made whole again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..config import RunConfig, load_run
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import FOLDER_KEYS, FOLDER_LIST_KEYS, SOURCE_KEYS
from ..errors import TrainerError
from ..events import Events
from ..toml import parse_toml, read_toml
from .lora_files import is_whole, list_loras, lora_name, renew_names, step_of, taken_words, with_its_step
from .run_folder import RunFolder
from .state import list_states

# where files lie: none of it changes what a step does, and other commands read it from the run folder
PLACES = (
    "run.folder",
    "run.if_exists",
    "run.export_folder",  # the finished LoRA is put there as well
    "model.checkpoint",
    "model.text_encoder",
    "model.text_projection",
    "model.video_vae",
    "model.audio_vae",
    "data.config",
    "data.manifest",
)
DATASET = "dataset.toml"
_LENGTH = ("train.steps", "train.epochs")  # that it takes no step more is what is told
_MEDIA = (*FOLDER_KEYS, *FOLDER_LIST_KEYS, *SOURCE_KEYS)


def finished_record(folder: Path, config: RunConfig, written: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The texts that belong into the finished run's `folder`, of those that `config` and `written` (by file name) would
    be, and the names of the settings that differ from the recorded ones. What cannot be read is written anew."""
    texts, names = {"run.toml": config.to_toml(), **written}, list[str]()
    with suppress(TrainerError):
        then = load_run(folder / "run.toml")
        changed = _differences(then.model_dump(mode="json"), config.model_dump(mode="json"))
        names += [name for name in changed if name not in (*PLACES, *_LENGTH)]
        texts["run.toml"] = _with_places(then, config).to_toml()
    with suppress(TrainerError):
        recorded = read_toml(folder / DATASET)
        given = texts.pop(DATASET)  # what is recorded stays
        changed = _differences(_dataset(recorded), _dataset(parse_toml(given, DATASET)))
        names += [name for name in changed if name.rpartition(".")[2].partition("[")[0] not in _MEDIA]
    return texts, names


def used_settings(folder: Path, config: RunConfig) -> RunConfig:
    """What the steps of the finished run in `folder` used, with the places and the memory of `config`: a LoRA that is
    written anew says what it was trained with. `config` itself where that cannot be read."""
    with suppress(TrainerError):
        then = _with_places(load_run(folder / "run.toml"), config)
        model = then.model.model_copy(update={"device": config.model.device})
        return then.model_copy(update={"run": config.run, "memory": config.memory, "model": model})
    return config


def unused_words(names: Sequence[str]) -> str:
    """A sentence on the settings and data `names` that are not as a finished run used them; empty without any."""
    if not names:
        return ""
    listed = f"{', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
    one = len(names) == 1 and not names[0].startswith("the ")
    was, them = ("was", "it") if one else ("were", "them")
    return (
        f"{listed} {was} changed since its last step and {was} not used. Raise train.steps to go on with {them}, "
        f"choose another run.name to train anew with {them}, or put {them} back."
    )


def whole_under_its_names(folder: RunFolder, step: int, lora: Path, events: Events) -> Path:
    """Have the LoRA or checkpoint of the last step whole under both of its names, and return the one to name; what
    cannot be written is a warning."""
    try:
        written = renew_names(folder.loras, folder.name, step, lora, events)
    except TrainerError as error:
        events.message(f"A damaged copy of {lora.name} stays as it is. {error}", "warning")
        return lora
    wanted = folder.loras / lora_name(folder.name, step)
    beside = [path for made, path in list_loras(folder.loras, folder.name) if made == step and path.name != wanted.name]
    if beside and wanted.is_file() and not is_whole(wanted, step):
        events.message(taken_words(beside[-1], wanted), "warning")
    if not written:
        if (made := step_of(lora)) not in (None, step):
            text = f"What step {step} made is gone, and so are the states: {lora.name} is of step {made}."
            events.message(text, "warning")
        elif with_its_step(lora, folder.name, step) == lora and lora.name == lora_name(folder.name):
            named = lora_name(folder.name, step)
            both = f"{lora.name} and {named} are two LoRAs of step {step}, and one is of another run"
            events.message(f"{both}: see `ltx2-train lora inspect`.", "warning")
        return lora
    own = [path.name for path in written if path.name in (lora_name(folder.name), lora_name(folder.name, step))]
    if own:
        names, was = " and ".join(own), "was" if len(own) == 1 else "were"
        events.message(f"{names} {was} damaged or missing, and {was} copied from {lora.name}.", "warning")
    return written[-1] if written[-1].name == lora_name(folder.name) else lora


def missing_words(folder: RunFolder, keep: int) -> str:
    """A sentence on what could not be written while the run went on, and is not there now; empty where nothing is.

    `keep`: how many of the newest are to stay, 0 for all.
    """
    saved = [step for step, _ in list_loras(folder.loras, folder.name)]
    since = saved[-keep] if 0 < keep <= len(saved) else 0
    steps = [str(step) for step in folder.manifest.get("missing", ()) if step not in saved and step >= since]
    if not steps:
        return ""
    was = "was" if len(steps) == 1 else "were"
    of = f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(steps[:-1])} and {steps[-1]}"
    return f"What was to be saved of {of} {was} refused by the disk, and is not in {folder.loras}."


def renewed_words(folder: RunFolder, config: RunConfig, total: int) -> str:
    """That the LoRA of a run that is finished with `total` steps is made again, and what from."""
    product = "checkpoint" if config.train.what == "full" else "LoRA"
    reached = int(folder.manifest.get("step", total))
    step = max((step for step, _ in list_states(folder.states)), default=0)
    how = f"written anew from the state of step {step}"
    if step < reached:
        how = f"trained again from the state of step {step} on" if step else "trained again"
    return f"The {product} of {folder.name} is damaged or missing, and is {how}."


def _with_places(then: RunConfig, now: RunConfig) -> RunConfig:
    """`then` with the places of files as `now` has them."""
    for dotted in PLACES:
        group, key = dotted.split(".")
        moved = getattr(then, group).model_copy(update={key: getattr(getattr(now, group), key)})
        then = then.model_copy(update={group: moved})
    return then


def _dataset(table: dict[str, Any]) -> dict[str, Any]:
    return DatasetConfig.from_table(table, Path(), foreign=True).model_dump(mode="json", exclude={"general"})


def _differences(then: Any, now: Any, name: str = "") -> Iterator[str]:
    """The dotted names of the values that differ."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *then]):
            yield from _differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif _tables(then) and _tables(now) and len(then) == len(now):
        for index, pair in enumerate(zip(then, now, strict=True)):
            yield from _differences(*pair, f"{name}[{index}]")
    elif then != now:
        yield name


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
