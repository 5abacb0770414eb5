"""From a dataset file to the list of everything that will be cached and trained on.

Planning reads directories, captions and the headers and timestamps of media; it loads no model and takes seconds. What
cannot be used is listed with its reason, and a dataset of which nothing is left is an error that says what was found.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from ..events import Events
from ..media import frames as timing
from ..media.frame_folder import frame_files, probe_frame_folder
from ..media.info import MediaInfo
from ..media.names import is_file, why_not_found
from ..media.sound_media import AUDIO_SUFFIXES
from ..media.video import probe_media
from ..threads import Threads
from .account import accounts
from .companions import Companions, folders_beside
from .dataset_file import DatasetConfig, DatasetRef, DatasetSettings
from .idle_beside import idle_beside, idle_sentences
from .idle_found import idle_found
from .items import DatasetPlan, Item
from .layouts import repeats_in_names
from .media_index import MediaIndex
from .not_taken import named_places, not_taken
from .notes import SHOWN_AT_MOST, DataNote
from .outputs import require_cache_folders
from .scan import MediaFile, NothingLeft, Skipped, find_media, with_captions
from .sound_plan import probe_recording
from .sources import copies, source_stat
from .windows import Cutter

__all__ = ["Item", "DatasetPlan", "plan_dataset"]


def plan_dataset(
    config: DatasetConfig, events: Events | None = None, brief: bool = False, only: DatasetRef | None = None
) -> DatasetPlan:
    """Find, check and cut all media of `config`, or of its dataset `only`.

    Messages go to `events`, those about frame rates in the words of the community trainer. `brief`: what is left out is
    named and no more, where another command has said why. Raises ConfigError where a file lies in place of a folder of
    caches (not looked at with `only`), and DataError where a dataset has nothing to offer: folder
    missing or empty, no captions, all clips too short or unreadable.
    """
    events = events or Events()
    if only is None:
        require_cache_folders(config)
    items: list[Item] = []
    left_out: dict[DatasetRef, list[Skipped]] = {}
    warnings = list(config.notes)
    empty: dict[DatasetRef, NothingLeft] = {}
    found: dict[DatasetRef, list[MediaFile]] = {}
    of_each: dict[DatasetRef, list[Item]] = {}
    for ref in config.refs if only is None else [only]:
        if not ref.entry.from_caches:
            try:
                of_each[ref], left_out[ref] = _plan_one(ref, events, warnings, found, brief)
                items += of_each[ref]
            except NothingLeft as error:
                empty[ref], left_out[ref] = error, error.skipped
    for ref, error in empty.items():
        if not any(item.dataset.shares_folder(ref) for item in items):  # its other kinds of media
            raise error
    skipped = [skip for of_one in left_out.values() for skip in of_one]
    warnings += idle_found(config.refs, of_each)
    warnings += _of_validation(items)
    warnings += _of_one_caption(found, items)
    told, unused = list[DataNote](), set[Path]()
    if only is None:  # a folder may be that of several datasets
        used = used_beside(items)
        idle = list(idle_beside(found, used, named_places([ref.entry for ref in config.refs])))
        warnings += idle_sentences(idle)
        media = {*(item.source.path for item in items), *(skip.path for skip in skipped)}
        unused |= {one.path for one in idle}
        told += [DataNote("unused", text) for text in not_taken(config.refs, used | media, unused)]
    for warning in (*warnings, *told):
        events.message(warning, "warning")
    if skipped:
        events.message(DataNote("left out", _left_out(skipped, brief)), "warning")
    if only is None:
        for account in accounts(found, items, left_out, unused):
            events.message(DataNote("count", account.text()), "warning" if account.untold else "info")
    return DatasetPlan(config, tuple(items), tuple(skipped), tuple(warnings), left_out)


def _of_validation(items: Sequence[Item]) -> list[DataNote]:
    """A sentence where media for validation are trained on, or copies of what is."""
    seen = seen_in_training(*({item.source.path for item in items if item.validation == one} for one in (True, False)))
    names = [path.name if path == other else f"{path.name} is {other.name}" for path, other in seen.items()]
    what = f"{len(names)} files of the validation are trained on as well, where what is known by heart looks well"
    return [DataNote("copy", what, names=names)] if names else []


def seen_in_training(held: Collection[Path], trained: Collection[Path]) -> dict[Path, Path]:
    """Of the media `held` out those that are trained on, also as copies or by links, and as which."""
    of = copies([*sorted(trained), *sorted(held)])
    return {path: of.get(path, path) for path in sorted(held) if of.get(path, path) in trained}


def _left_out(skipped: Sequence[Skipped], brief: bool) -> str:
    """What is said of files that are not used: a line for each of the first; `brief`: their names alone."""
    head = "1 file is left out" if len(skipped) == 1 else f"{len(skipped)} files are left out"
    first, more = skipped[:SHOWN_AT_MOST], len(skipped) - SHOWN_AT_MOST
    if brief:
        names = ", ".join(skip.path.name for skip in first) + (" ..." if more > 0 else "")
        return f"{head} ({names}); `data check` (Check Dataset) says why."
    lines = [f"  {skip.path.name}: {skip.reason}" for skip in first] + ([f"  and {more} more"] if more > 0 else [])
    return "\n".join([f"{head}:", *lines])


def _plan_one(
    ref: DatasetRef,
    events: Events,
    warnings: list[DataNote],
    found_of: dict[DatasetRef, list[MediaFile]],
    brief: bool,
) -> tuple[list[Item], list[Skipped]]:
    name, entry = ref.name, ref.entry
    targets, notes = timing.floor_targets(entry.target_frames)
    if entry.kind == "video" and entry.frame_extraction != "full":
        warnings += [DataNote("settings", note, name) for note in notes]
        given = entry.model_fields_set & {"target_frames", "resolution_buckets"}
        if not given and targets == (1,):
            told = (
                "target_frames is not set, so one frame of each video is used. For motion give lengths, for example "
                "target_frames = [49]."
            )
            warnings.append(DataNote("settings", told, name))
    candidates, skipped = find_media(name, entry, warnings)
    found_of[ref] = candidates
    ready = with_captions(name, entry, candidates, skipped, warnings)
    if not ready:
        raise NothingLeft(name, entry, len(candidates), skipped)

    pictured = (candidate for candidate in ready if candidate.path.suffix.lower() not in AUDIO_SUFFIXES)
    promised = max((len(candidate.references) for candidate in pictured), default=0)
    known = MediaIndex(entry.caches)
    cutter = Cutter(ref, targets, promised, functools.partial(_look_at, index=known))
    items: list[Item] = []
    events.stage(f"read {entry.source.name or name}", len(ready))
    workers = min(8, os.cpu_count() or 1)
    with Threads(workers, "probe", events) as threads:
        try:
            probed = threads.map(functools.partial(_probe, index=known, beside=cutter.companions), ready)
            for done, (candidate, media) in enumerate(zip(ready, probed, strict=True), 1):
                if isinstance(media, DataError):
                    skipped.append(Skipped(candidate.path, str(media)))
                else:
                    found, reason = cutter.cut(media, candidate)
                    items += found
                    if reason:
                        skipped.append(Skipped(candidate.path, reason))
                    for note in found[0].source.timeline.notes if found and not brief else ():
                        events.message(note)
                    warnings += [DataNote("file", f"{media.path.name} {remark}") for remark in media.remarks if found]
                events.progress(done, len(ready), candidate.path.name)
            skipped = _files_first(skipped, known, threads)
        finally:
            known.save()
    if not items:
        raise NothingLeft(name, entry, len(candidates), skipped)
    warnings += [note.of(name) for note in (*cutter.notes, *cutter.fit.sentences(), *_of_all(entry, targets, items))]
    return items, skipped


def _files_first(skipped: Sequence[Skipped], index: MediaIndex, threads: Threads) -> list[Skipped]:
    """`skipped`, where a medium that lacks its caption and cannot be read either is left out for the latter: a caption
    would not help it."""
    lacking = [skip for skip in skipped if skip.reason.startswith(("no caption", "empty caption"))]
    looked = zip(lacking, threads.map(lambda skip: _looked_at(skip.path, index), lacking), strict=True)
    problems = {skip: str(found) for skip, found in looked if isinstance(found, DataError)}
    return [Skipped(skip.path, problems.get(skip, skip.reason)) for skip in skipped]


def _of_all(entry: DatasetSettings, targets: Sequence[int], items: list[Item]) -> Iterator[DataNote]:
    """Sentences on the media of a dataset together."""
    yield from _copies(items)
    yield from _without_reference(entry, items)
    yield from _without_mask(entry, items)
    yield from _in_some_rows(entry, items)
    yield from _repeats_in_names(entry, items)
    of_settings = (
        *_of_folders(entry, items),
        *_unreached_lengths(entry, targets, items),
        *_without_rate(entry, items),
        *_beside_frames(items),
    )
    yield from (DataNote("settings", told) for told in of_settings)


def _repeats_in_names(entry: DatasetSettings, items: Sequence[Item]) -> Iterator[DataNote]:
    """A sentence on folders whose names begin with a number that kohya's scripts would take for repeats."""
    own = entry.source if entry.source.is_dir() else entry.source.parent
    found = repeats_in_names(own, (item.source.path for item in items if not item.validation))
    chosen = entry.source if entry.num_repeats > 1 else None  # the folder of the dataset, and its own number
    names = [
        f"{path.name} (num_repeats = {number})"
        for path, number in found.items()
        if path != chosen and number != entry.num_repeats
    ]
    if names:
        what = "numbers in front of the names of folders are not read as repeats, and each sample there is seen"
        mend = "Where they are meant so, name each folder in a dataset of its own that says so"
        yield DataNote("settings", f"{what} num_repeats = {entry.num_repeats} times. {mend}", names=names)


def _without_rate(entry: DatasetSettings, items: Sequence[Item]) -> Iterator[str]:
    """A sentence where folders of pictures are clips and nobody says how many are shown in a second."""
    clips = {item.source.path: item.fps for item in items if item.kind == "video"} if entry.source_fps is None else {}
    folders = [path for path in clips if path.is_dir()]
    if folders:
        shown = ", ".join(path.name for path in folders[:SHOWN_AT_MOST])
        yield (
            f"{len(folders)} clips are folders of pictures, which have no frame rate, and are taken at "
            f"{clips[folders[0]]:g} a second: {shown}. Set source_fps "
            "where that is not their own."
        )


def _beside_frames(items: Sequence[Item]) -> Iterator[str]:
    """A sentence for each folder of frames with files that are no picture and go with no clip."""
    used = used_beside(items)
    for folder in dict.fromkeys(item.source.path for item in items if item.source.path.is_dir()):
        frames = set(frame_files(folder))
        idle = [
            path.name
            for path in sorted(folder.iterdir())
            if path not in frames and path not in used and not path.name.startswith(".") and is_file(path)
        ]
        if idle:
            shown = ", ".join(idle[:SHOWN_AT_MOST]) + (" ..." if len(idle) > SHOWN_AT_MOST else "")
            yield f"{folder.name} holds {len(idle)} files beside its frames, which are not used: {shown}"


def _unreached_lengths(entry: DatasetSettings, targets: Sequence[int], items: Sequence[Item]) -> list[str]:
    """A sentence on those of several target_frames that no clip is long enough for."""
    longest = max((item.window.count for item in items if item.kind == "video"), default=0)
    idle = [str(target) for target in targets if target > longest]
    if not longest or not idle or entry.frame_extraction == "full" or entry.resolution_buckets:
        return []
    return [
        f"no clip is long enough for {' and '.join(idle)} of target_frames; the longest window has {longest} frames."
    ]


def _copies(items: list[Item]) -> list[DataNote]:
    """A sentence for each file that is a copy of another."""
    return [
        DataNote("copy", f"{path.name} is a copy of {original.name}; both are used. Use num_repeats to repeat a clip.")
        for path, original in copies(item.source.path for item in items).items()
    ]


def _of_folders(entry: DatasetSettings, items: list[Item]) -> list[str]:
    """What is to be said of files beside media that one name, or none, leads to."""
    return [*_named_elsewhere(entry, items), *_shared_by_name(entry, items)]


def _shared_by_name(entry: DatasetSettings, items: list[Item]) -> list[str]:
    """A sentence for each file beside media of two sub-folders that was found by the name that they share."""
    if not entry.source_key.endswith("_directory"):
        return []
    owners: dict[Path, dict[Path, None]] = {}
    for item in items:
        sound = None if item.sound is None or item.sound.path == item.source.path else item.sound.path
        references = (*(one.path for one in item.references), *item.reference_audios)
        for path in filter(None, (sound, item.mask, item.audio_mask, *references)):
            owners.setdefault(path, {})[item.source.path] = None
    return [
        f"{path} goes with {len(media)} media of its name: {', '.join(_below(one, entry) for one in shown)}{more}. To "
        "give each its own, make the same sub-folders there."
        for path, media in owners.items()
        if len(media) > 1
        for shown, more in [(list(media)[:SHOWN_AT_MOST], " ..." if len(media) > SHOWN_AT_MOST else "")]
    ]


def _below(path: Path, entry: DatasetSettings) -> str:
    return path.relative_to(entry.source).as_posix() if path.is_relative_to(entry.source) else path.name


def _without_reference(entry: DatasetSettings, items: list[Item]) -> list[DataNote]:
    """A sentence where media with sound lack a reference sound that their dataset promises."""
    notes: list[DataNote] = []
    heard = [item for item in items if item.sound is not None]
    for number, folder in enumerate(entry.reference_audio_directories):
        lacking = [item for item in heard if number >= len(item.reference_audios) or not item.reference_audios[number]]
        notes += _lacking(lacking, f"no reference sound of their name in {folder}")
    return notes


def _without_mask(entry: DatasetSettings, items: list[Item]) -> list[DataNote]:
    """A sentence where media lack the mask that their dataset promises."""
    notes: list[DataNote] = []
    if entry.mask_directory is not None:
        lacking = [item for item in items if item.kind != "audio" and item.mask is None]
        notes += _lacking(lacking, f"no mask of their name in {entry.mask_directory}, so all of them is generated")
    if entry.audio_mask_directory is not None:
        lacking = [item for item in items if item.sound is not None and item.audio_mask is None]
        notes += _lacking(lacking, f"no mask for sound of their name in {entry.audio_mask_directory}")
    return notes


def _in_some_rows(entry: DatasetSettings, items: list[Item]) -> list[DataNote]:
    """A sentence where a list names a mask or a reference sound for some of its media alone."""
    if not entry.from_a_list:
        return []
    seen, heard = [item for item in items if item.kind != "audio"], [item for item in items if item.sound is not None]
    asked = [
        ("mask", entry.mask_directory is None, seen, lambda item: item.mask),
        ("mask for sound", entry.audio_mask_directory is None, heard, lambda item: item.audio_mask),
        ("reference sound", not entry.reference_audio_directories, heard, lambda item: any(item.reference_audios)),
    ]
    notes: list[DataNote] = []
    for what, unsaid, ones, has in asked:
        lacking = [item for item in ones if not has(item)]
        if unsaid and lacking and len(lacking) < len(ones):
            notes += _lacking(lacking, f"no {what} in their rows of {entry.source.name}, as others have")
    return notes


def _of_one_caption(found: Mapping[DatasetRef, Sequence[MediaFile]], items: Sequence[Item]) -> list[DataNote]:
    """A sentence on media of several datasets that one caption file is for, such as a clip and its picture."""
    trained = {item.source.path for item in items}
    owners: dict[Path, list[Path]] = {}
    for media in found.values():
        for one in media:
            if one.caption_path is not None and one.path in trained:
                owners.setdefault(one.caption_path, []).append(one.path)
    shared = [list(dict.fromkeys(of_one)) for of_one in owners.values()]
    names = [" and ".join(path.name for path in of_one) for of_one in shared if len(of_one) > 1]
    what = "media of one name train with one caption, which may tell of one of them alone; give each its own name"
    return [DataNote("settings", what, names=names)] if names else []


def used_beside(items: Sequence[Item]) -> set[Path]:
    """The files that go with media; their sound may be in them."""
    found = {one.path for item in items for one in item.references}
    found |= {
        path for item in items for path in (item.mask, item.audio_mask, *item.reference_audios) if path is not None
    }
    return found | {item.sound.path for item in items if item.sound is not None}


def _named_elsewhere(entry: DatasetSettings, items: list[Item]) -> Iterator[str]:
    """A sentence for each folder beside a list of which no file is used, since the list names others."""
    used = used_beside(items)
    for key, _, folder, _ in folders_beside(entry) if entry.from_a_list else ():
        if folder.is_dir() and not any(path.is_relative_to(folder) for path in used):
            yield f"{key}: no file of {folder} is used; {entry.source.name} names others, or has no use for them."


def _lacking(items: list[Item], what: str) -> list[DataNote]:
    names = [path.name for path in dict.fromkeys(item.source.path for item in items)]
    return [DataNote("missing", f"{len(names)} files have {what}", names=names)] if names else []


def _probe(candidate: MediaFile, index: MediaIndex, beside: Companions) -> MediaInfo | DataError:
    """What a medium holds, or why it is of no use; its reference and its mask are known as well from then on."""
    for path in beside.pictures(candidate):
        _looked_at(path, index)  # what is wrong with it is told when the medium is cut
    return _looked_at(candidate.path, index)


def _looked_at(path: Path, index: MediaIndex) -> MediaInfo | DataError:
    try:
        return _look_at(path, index)
    except DataError as error:
        return error


def _look_at(path: Path, index: MediaIndex) -> MediaInfo:
    """What the file or folder of frames `path` holds, from the index where it is there. Raises DataError."""
    try:
        size, mtime_ns = source_stat(path)
        if path.is_dir():
            mtime_ns = max(mtime_ns, path.stat().st_mtime_ns)  # which a frame with a new name changes
        known = index.get(path, size, mtime_ns)
        if known is None:
            known = _probe_once(path, size, mtime_ns)
            index.put(known, size, mtime_ns)
        return known
    except (OSError, ValueError) as error:
        raise DataError(f"{path} {why_not_found(path) or 'cannot be opened'}.", path) from error


@functools.lru_cache(maxsize=512)
def _probe_once(path: Path, size: int, mtime_ns: int) -> MediaInfo:
    # Caching, training and sampling in one process each plan; the media are read once.
    if path.is_dir():
        return probe_frame_folder(path)
    return probe_recording(path) if path.suffix.lower() in AUDIO_SUFFIXES else probe_media(path)
