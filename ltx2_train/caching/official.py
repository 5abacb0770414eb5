"""The official trainer's encoded folder (`preprocessed_data_root`) -> caches of ours.

    latents/**/NAME.pt           latents [C, F, H, W] (older: [F H W, C]), num_frames, height, width in latents, fps
    conditions/**/NAME.pt        video_prompt_embeds and audio_prompt_embeds [N, D], or prompt_embeds of LTX-2 for both,
                                 before the connectors; prompt_attention_mask [N]. latent_X.pt has condition_X.pt
    audio_latents, reference_latents, reference_audio_latents, video_masks, audio_masks: NAME.pt where there are any;
                of a second, third ... reference in reference_latents_2, reference_latents_3 ...

These files are pickles. Nothing in this program reads a pickle but `_load` below, which is called where someone names
such a folder to be taken over (`ltx2-train cache import`, the node Dataset from File), and which admits tensors,
numbers, text and tables, and no code.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..dataset.cache_names import (
    LATENT_SUFFIX,
    audio_cache_name,
    audio_mask_cache_name,
    image_cache_name,
    mask_cache_name,
    text_cache_name,
    video_cache_name,
)
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import (
    IMPORTED_FOLDER,
    PRECOMPUTED,
    REFERENCE_AUDIO_FOLDER,
    REFERENCE_FOLDER,
    numbered_caches,
    numbered_folder,
)
from ..dataset.manifest import FORMAT, MANIFEST_NAME, MANIFEST_VERSION
from ..dataset.notes import SHOWN_AT_MOST
from ..dataset.scan import Skipped
from ..device import DTYPES
from ..errors import DataError
from ..events import Events, shielded
from ..files import CLOSED, below, digest, parse_json, write_json
from ..media.names import is_dir, name_key
from ..shapes import VIDEO_CHANNELS, AudioLatentShape, LatentShape
from . import cache_file as caches
from .cache_file import ARCHITECTURE, AUDIO_LENGTH_KEY, MASK_KEY, CacheFile, write_cache

MAIN = ("latents", "audio_latents")  # each sample has one of them
REFERENCES, REFERENCE_SOUNDS = "reference_latents", "reference_audio_latents"
BESIDE = ("conditions", "video_masks", "audio_masks")
_SKIPPED_SHOWN = 40
_PROGRAM = "official trainer"
TEXT_DTYPE = torch.bfloat16
_NOT_AS_EXPECTED = (KeyError, ValueError, IndexError, TypeError, AttributeError, RuntimeError)  # as torch says it


@dataclass
class ImportReport:
    """How many samples were taken over to `folder`, and what was left out."""

    folder: Path
    samples: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # the latents that were written
    replaced: list[str] = field(default_factory=list)  # those that an earlier import had made of other ones
    without_rate: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Some lines for people."""
        lines = [f"{self.samples} samples imported into {self.folder}, {len(self.skipped)} left out"]
        lines += [f"  {skip.path.name}: {skip.reason}" for skip in self.skipped[:_SKIPPED_SHOWN]]
        more = len(self.skipped) - _SKIPPED_SHOWN
        return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])

    def text(self) -> str:
        """The same, with the dataset entry to use."""
        folder = str(self.folder.absolute())  # a dataset file takes a relative one from where it lies itself
        quoted = json.dumps(folder, ensure_ascii=False) if "'" in folder else f"'{folder}'"
        return f"{self.summary()}\nIn the dataset file:\n[[datasets]]\ncache_only = true\ncache_directory = {quoted}"


def import_official(root: Path, out: Path | None = None, events: Events | None = None) -> ImportReport:
    """Take over the folder `root` into `out`, by default `ltx2_caches` in it. Raises DataError where it has nothing."""
    events = shielded(events)
    out = out or root / IMPORTED_FOLDER
    root = root / PRECOMPUTED if (root / PRECOMPUTED).is_dir() else root
    folders = [path.name for name in (REFERENCES, REFERENCE_SOUNDS) for path in numbered_caches(root / name)]
    names = {folder: _names(root / folder) for folder in (*MAIN, *BESIDE, *folders)}
    main = sorted(set().union(*(names[folder] for folder in MAIN)))
    if not main:
        raise DataError(f"{root} holds no latents/*.pt of the official trainer. Name its preprocessed_data_root.", root)
    _tell_unread(root, names, events)
    _require_no_build(out)
    report = ImportReport(out)
    owners: dict[str, Path] = {}
    events.stage("import", len(main))
    for done, name in enumerate(main, 1):
        events.check_stop()
        path = next(root / folder / name for folder in MAIN if name in names[folder])
        try:
            if (owner := owners.setdefault(name_key(_stem(name)), name)) is not name:
                raise DataError(f"its caches would have the names of those of {owner.as_posix()}; rename one")
            _import_one(root, name, out, report)
            report.samples += 1
        except DataError as error:
            report.skipped.append(Skipped(path, str(error)))
        except _NOT_AS_EXPECTED as error:
            report.skipped.append(Skipped(path, f"it is not laid out as expected: {error}"))
        events.progress(done, len(main), path.name)
    used = {*main, *(_condition_name(name) for name in main)}
    report.skipped += [
        Skipped(root / folder / name, f"there are no {' and no '.join(MAIN)} of its name ({folder})")
        for folder in (*BESIDE, *folders)
        for name in sorted(names[folder] - used)
    ]
    if not report.samples:
        raise DataError("Not one sample could be imported.\n" + report.summary(), root)
    _write_list(out, report.files)
    _tell_rest(report, events)
    return report


def _write_list(out: Path, files: Sequence[str]) -> None:
    """A manifest of what was imported, by which what another import left in the folder is known."""
    row = {"cache_only": True, "cache_directory": ".", "cache_files": sorted(files)}
    write_json(out / MANIFEST_NAME, {"format": FORMAT, "version": MANIFEST_VERSION, "datasets": [row]})


def _require_no_build(out: Path) -> None:
    """Raise DataError where the manifest of a cache build in the folder `out` lists files there."""
    try:
        table = parse_json((out / MANIFEST_NAME).read_text(encoding="utf-8"))
        rows = table["datasets"] if "dataset_config" in table else []
        built = any(
            row.get("cache_files") and (out / row["cache_directory"]).resolve() == out.resolve() for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if built:
        made = f"{out} holds what `cache build` made, as its {MANIFEST_NAME} says"
        raise DataError(f"{made}. Import into another folder.", out)


def _tell_rest(report: ImportReport, events: Events) -> None:
    """Warn of what an earlier import left in the folder, and of clips whose frame rate nothing says."""
    folder = report.folder
    older = sorted({path.name for path in folder.glob(f"*{LATENT_SUFFIX}")} - set(report.files))
    if report.replaced:
        events.message(
            f"{len(report.replaced)} samples take the place of others of their names that an earlier import wrote into "
            f"{folder}, {report.replaced[0]} first. If those were of another folder, import each into one of its own.",
            "warning",
        )
    if older:
        more = f" and {len(older) - SHOWN_AT_MOST} more" if len(older) > SHOWN_AT_MOST else ""
        events.message(
            f"{len(older)} latents in {folder} are of an earlier import, and a dataset with cache_only trains on them, "
            f"too: {', '.join(older[:SHOWN_AT_MOST])}{more}. Take them out, or import into an empty folder.",
            "warning",
        )
    if report.without_rate:
        events.message(
            f"{len(report.without_rate)} of {report.samples} samples do not say their frame rate, "
            f"{report.without_rate[0]} first: that of target_fps of the dataset is taken, 25 where it is not set.",
            "warning",
        )


def _tell_unread(root: Path, read: Mapping[str, set[Path]], events: Events) -> None:
    """Warn of folders with encoded files that nothing is taken from, and of those that cannot be looked into."""
    found = dict(below(root, True))
    folders = (path for path in found if path.parent == root and is_dir(path) and path.name not in read)
    others = [path.name for path in folders if _names(path)]
    if others:
        events.message(f"Of {root} the folders {', '.join(others)} are not read.", "warning")
    for path, problem in found.items():
        if linked := path.is_symlink() and is_dir(path) and path.parent != root:
            problem = "is a link to a folder, which is not followed"
        if linked or problem.startswith(CLOSED):
            events.message(f"{path} {problem}.", "warning")


def _stem(name: Path) -> str:
    """What the caches of a sample are called."""
    return "__".join(name.with_suffix("").parts)


def import_missing(config: DatasetConfig, events: Events | None = None) -> list[ImportReport]:
    """Take over each folder that `config` names as preprocessed_data_root and that has no caches yet, or has changed
    since. Raises DataError where one has nothing."""
    roots = [(ref.entry.preprocessed_data_root, ref.entry.caches) for ref in config.refs]
    return [import_official(root, out, events) for root, out in roots if root and not _is_imported(root, out)]


def _is_imported(root: Path, out: Path) -> bool:
    """Whether `out` holds all of the folder `root` as it is now: as many latents, and none older than the newest."""
    if not root.is_dir():
        return False
    root = root / PRECOMPUTED if (root / PRECOMPUTED).is_dir() else root
    names = set().union(*(_names(root / folder) for folder in MAIN))
    folders = [folder for folder, _ in below(root, False) if is_dir(folder)]  # which may be links
    found = (path for folder in folders for path, problem in below(folder, True) if not problem)
    sources = [path.stat().st_mtime_ns for path in found if path.suffix == ".pt"]
    caches = [path.stat().st_mtime_ns for path in out.glob(f"*{LATENT_SUFFIX}")]
    return len(caches) >= len(names) and max(sources, default=0) <= min(caches, default=0)


def _import_one(root: Path, name: Path, out: Path, report: ImportReport) -> None:
    condition = _condition_name(name)
    conditions = _load(root / "conditions" / condition) or _load(root / "conditions" / name)
    if conditions is None:
        raise DataError(f"there is no conditions/{condition.as_posix()}")
    picture, heard = _load(root / "latents" / name), _load(root / "audio_latents" / name)
    stem, frames = _stem(name), 1
    if picture is not None:
        latents, fps = _unpatchified(picture), float(picture.get("fps") or 0)
        _require_latents(latents)
        video = LatentShape(*latents.shape[1:]).video()
        base = video_cache_name(stem, 0, video.frames, video.width, video.height)
    elif heard is not None:
        frames = max(1, round(float(heard.get("duration") or heard["latents"].shape[1] / 25) * 25))
        latents, fps = torch.zeros(128, 1, 1, 1, dtype=heard["latents"].dtype), 25.0
        base = image_cache_name(stem, 64, 64)
    else:
        raise DataError("it has neither latents nor sound")
    shape = LatentShape(*latents.shape[1:])
    tensors = {caches.latent_key(shape, latents.dtype): latents}
    if picture is None:
        sizes = ((frames - 1) // 8 + 1, 2, 2)
        tensors |= {
            key: torch.tensor(size, dtype=torch.int32) for key, size in zip(caches.VIRTUAL_KEYS, sizes, strict=True)
        }
    mark = digest(*((root / folder / name).read_bytes() for folder in MAIN if (root / folder / name).is_file()))
    report.replaced += [name.name] if _is_other(out / text_cache_name(stem, "compact"), mark) else []
    metadata = {"architecture": ARCHITECTURE, "imported_from": _PROGRAM, "imported_as": mark}
    metadata |= {"fps": repr(fps)} if fps else {}
    masks = _masks(
        root, name, (shape.frames, shape.height, shape.width), None if heard is None else heard["latents"].shape[1]
    )
    write_cache(out / text_cache_name(stem, "compact"), _text(conditions), metadata)
    if heard is not None:
        write_cache(out / audio_cache_name(base), _sound(heard["latents"]), metadata)
    for number, folder in enumerate(numbered_caches(root / REFERENCES)):
        if (shown := _load(folder / name)) is not None:
            given = _unpatchified(shown)
            key = caches.latent_key(LatentShape(*given.shape[1:]), given.dtype)
            write_cache(numbered_folder(out / REFERENCE_FOLDER, number) / base, {key: given}, metadata)
    for number, folder in enumerate(numbered_caches(root / REFERENCE_SOUNDS)):
        if (voice := _load(folder / name)) is not None:
            path = numbered_folder(out / REFERENCE_AUDIO_FOLDER, number) / audio_cache_name(base)
            write_cache(path, _sound(voice["latents"]), metadata)
    for named, mask in masks:
        write_cache(out / named(base), {MASK_KEY: mask}, metadata)
    # the latents last: whatever has them is whole
    write_cache(out / base, tensors, metadata)
    report.files.append(base)
    report.without_rate += [] if fps else [name.name]


def _is_other(text: Path, mark: str) -> bool:
    """Whether an earlier import made the text cache `text` with latents other than those of `mark`. Raises DataError
    where it was not imported."""
    said = CacheFile(text).metadata if text.is_file() else {}
    if said and said.get("imported_from") != _PROGRAM:
        raise DataError(f"{text.name} is there and was not imported; import into another folder")
    return said.get("imported_as", mark) != mark


def _require_latents(latents: torch.Tensor) -> None:
    """Raise DataError where latents are none of the video VAE of this model."""
    if latents.shape[0] != VIDEO_CHANNELS:
        raise DataError(f"its latents have {latents.shape[0]} channels, not {VIDEO_CHANNELS}")
    if not bool(torch.isfinite(latents).all()):
        raise DataError("its latents hold numbers that are not finite; encode it again")


def _masks(
    root: Path, name: Path, shape: tuple[int, ...], steps: int | None
) -> list[tuple[Callable[[str], str], torch.Tensor]]:
    """The masks of a sample, each with what its file is called. Raises DataError where one has another shape."""
    found: list[tuple[Callable[[str], str], torch.Tensor]] = []
    for folder, named, wanted in (
        ("video_masks", mask_cache_name, shape),
        ("audio_masks", audio_mask_cache_name, None if steps is None else (steps,)),
    ):
        if (table := _load(root / folder / name)) is not None:
            mask = (table["mask"] > 0.5).to(torch.uint8)
            if wanted is not None and tuple(mask.shape) != wanted:
                raise DataError(f"its mask in {folder} has shape {list(mask.shape)}, not {list(wanted)}")
            found.append((named, mask))
    return found


def _names(folder: Path) -> set[Path]:
    """The files of a folder, seen from it."""
    return {path.relative_to(folder) for path, _ in below(folder, True) if path.suffix == ".pt"}


def _condition_name(name: Path) -> Path:
    """What the caption of the latents `name` is called."""
    return name.with_name("condition_" + name.name[7:]) if name.name.startswith("latent_") else name


def _unpatchified(table: Mapping[str, Any]) -> torch.Tensor:
    latents = table["latents"]
    if latents.dim() == 2:  # [F H W, C]
        grid = (int(table["num_frames"]), int(table["height"]), int(table["width"]))
        latents = latents.T.reshape(latents.shape[1], *grid)
    if latents.dim() != 4:
        raise DataError(f"its latents have shape {list(latents.shape)}, not [C, F, H, W]")
    return latents


def _sound(latents: torch.Tensor) -> dict[str, torch.Tensor]:
    channels, steps, bins = latents.shape
    kept = latents if latents.dtype in DTYPES.values() else latents.float()
    return {
        caches.audio_key(AudioLatentShape(steps, channels, bins), kept.dtype): kept,
        AUDIO_LENGTH_KEY: torch.tensor(steps, dtype=torch.int32),
    }


def _text(table: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Features without their padding, as a compact text cache."""
    token = caches.dtype_token(TEXT_DTYPE)
    shared = table.get("prompt_embeds")
    video, audio = table.get("video_prompt_embeds", shared), table.get("audio_prompt_embeds")
    if video is None:
        raise DataError(f"its conditions hold no text: {', '.join(table)}")
    mask = table.get("prompt_attention_mask")
    valid = torch.ones(video.shape[0], dtype=torch.bool) if mask is None else mask.reshape(-1).bool()
    if not bool(valid.any()):
        raise DataError("its conditions hold no text: every token is masked")
    tensors = {f"video_features_{token}": video[valid].to(TEXT_DTYPE)}
    if audio is not None:
        tensors[f"audio_features_{token}"] = audio[valid].to(TEXT_DTYPE)
    return tensors


def _load(path: Path) -> dict[str, Any] | None:
    """The table in a .pt file, None where there is no such file. The one place where a pickle is read."""
    if not path.is_file():
        return None
    try:
        with warnings.catch_warnings():  # of pickles that are refused anyway
            warnings.simplefilter("ignore", UserWarning)
            table = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its reader meets
        raise DataError(f"{path} is damaged or holds more than tensors: {type(error).__name__}.", path) from error
    if not isinstance(table, dict):
        raise DataError(f"{path} holds a {type(table).__name__}, not a table of tensors.", path)
    return table
