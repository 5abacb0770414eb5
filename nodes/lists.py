"""Dataset from Lists: pictures, videos and sounds that other nodes made, as a folder of media with captions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from filecmp import cmp
from fractions import Fraction
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from .. import ltx2_train as core
from ..ltx2_train import DatasetSettings
from ..ltx2_train.errors import ConfigError, DataError
from ..ltx2_train.files import write_json, write_text
from . import handles, host, source_folder, tensors
from .entries import plain
from .host import io
from .made import compared, keep_made
from .widgets import Form, Setting

TITLE = "Dataset from Lists"

FORM = Form(
    DatasetSettings,
    visible=[Setting("trigger_word"), Setting("target_fps", "fps")],
    advanced=[Setting("num_repeats", "repeats"), Setting("audio_normalize")],
    nodes=(TITLE,),
)
PICTURES, CLIPS = "pictures", "clips"
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
COPIED_AT_ONCE = 2**23


class Writable(NamedTuple):
    kind: str
    ending: str
    write: Callable[[Path], Any]


class DatasetFromLists(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_DatasetFromLists",
            display_name=TITLE,
            category="LTX-2 training",
            description="Writes images, videos and sounds of other nodes, with their captions, into a folder to "
            "train on.",
            search_aliases=["dataset", "images", "videos", "audio", "captions", "batch", "list", "save", "train"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", optional=True, tooltip="Images, as a list or as batches."),
                io.Video.Input("videos", optional=True, tooltip="Videos, with their sound."),
                io.Audio.Input("audios", optional=True, tooltip="Sounds."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="A list of captions, or one a line: of the images first, then of the videos, then of the "
                    "sounds. A single one is given to all.",
                ),
                io.String.Input(
                    "name",
                    default="from_lists",
                    tooltip="Name of the dataset: its folder under output/ltx2_runs/datasets. What this node wrote "
                    "there before is replaced.",
                ),
                io.Combo.Input(
                    "batches",
                    options=[PICTURES, CLIPS],
                    default=PICTURES,
                    tooltip="What a batch of images is: as many pictures, or the frames of one clip at fps.",
                ),
                *FORM.visible_inputs(),
                *FORM.advanced_inputs(),
            ],
            outputs=[
                handles.Dataset.Output(
                    "dataset",
                    display_name="dataset",
                    tooltip="For Prepare Dataset, Check Dataset, Preview Item or Combine Datasets.",
                ),
                io.Int.Output("count", display_name="count", tooltip="Number of files written."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, given)

    @classmethod
    @FORM.fill
    def execute(
        cls,
        captions: list[str],
        name: list[str],
        batches: list[str],
        images: list[Any] | None = None,
        videos: list[Any] | None = None,
        audios: list[Any] | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            # everything is a list here; a widget that nobody touched comes as its bare default
            single = {key: value[0] if isinstance(value, list) else value for key, value in settings.items()}
            shared = FORM.tables(single)
            called = _name(name[0])
            events = host.ComfyEvents(cls.hidden.unique_id)
            clips, fps = batches[0] == CLIPS, shared["target_fps"]
            told = tensors.Changes()
            media = [
                *_pictures(images or [], clips, fps, told, events),
                *_videos(videos or [], told, events),
                *_sounds(audios or [], told),
            ]
            if not media:
                raise DataError("There is nothing to write: connect `images`, `videos` or `audios`.")
            folder = host.place_inside(host.runs_folder() / "datasets", called)
            written = _write(folder, called, media, _captions(captions, len(media)), events)
            kinds = {kind: count for kind in core.MEDIA_SUFFIXES if (count := sum(made.kind == kind for made in media))}
            made = tuple({f"{kind}_directory": str(folder / "media"), **shared} for kind in kinds)
            noun = "recordings" if set(kinds) == {"audio"} else "clips"
            told.tell(events)
            events.finish("finished", f"{source_folder.counts_in_words(kinds)} in {folder / 'media'}")
            keep_made(cls.hidden.unique_id, [folder / "files.json", *written])
            return io.NodeOutput(handles.ClipFolder(folder / "media", made, len(media), noun, called), len(media))


def _name(text: str) -> str:
    """The name of the folder. Raises ConfigError where it would lie elsewhere."""
    name = text.strip()
    if not name or plain(name) != name:
        raise ConfigError(f"name: {text!r} cannot be a folder's name. Use letters, digits, spaces, - and _.")
    return name


def _captions(given: Sequence[str], count: int) -> list[str]:
    """One caption for each of `count` media. Raises DataError where their numbers differ, or one is empty."""
    captions = [text.strip() for text in given]
    if len(captions) == 1 and count > 1:
        lines = [line.strip() for line in captions[0].split("\n") if line.strip()]
        captions = lines * count if len(lines) == 1 else lines
    if len(captions) != count:
        raise DataError(
            f"There are {count} media but {len(captions)} captions. Give one for each, in the order images, videos, "
            "audios, or a single one for all."
        )
    if "" in captions:
        raise DataError(f"The caption of medium {captions.index('') + 1} is empty. Write what is to be seen or heard.")
    return captions


def _pictures(
    images: list[Any], clips: bool, fps: float, told: tensors.Changes, events: host.ComfyEvents
) -> Iterator[Writable]:
    before = 0
    for batch in images:
        one = clips and batch.ndim == 4 and len(batch) > 1
        called = f"clip {before + 1} of `images`"
        frames = tensors.pictures(
            batch,
            lambda number, one=one, called=called, before=before: (
                f"frame {number + 1} of {called}" if one else f"picture {before + number + 1} of `images`"
            ),
            told,
        )
        before += 1 if one else len(frames)
        if one:
            even = _even(frames, called)
            yield Writable("video", ".mp4", lambda path, even=even: core.write_video(path, events.heeded(even), fps))
        else:
            for frame in frames:
                yield Writable("image", ".png", lambda path, frame=frame: core.write_image(path, frame))


def _videos(videos: list[Any], told: tensors.Changes, events: host.ComfyEvents) -> Iterator[Writable]:
    """A video that is a file is laid in as it is, a part of one is cut from it; both keep their times.

    What other nodes made has none: its frames are written at its frame rate.
    """
    for number, video in enumerate(videos, 1):
        called = f"video {number} of `videos`"
        if not isinstance(video, host.InputImpl.VideoFromFile):
            yield Writable("video", ".mp4", _film(video.get_components(), called, told, events))
            continue
        source = video.get_stream_source()
        ending = _ending(video, source, called)
        part = _part(video, source, called)
        if part is None:
            yield Writable("video", ending, lambda path, source=source: _lay(source, path, events))
        else:
            yield Writable(
                "video",
                ".mp4",
                lambda path, source=source, ending=ending, part=part, called=called: _cut(
                    source, ending, part, called, path, events
                ),
            )


def _sounds(audios: list[Any], told: tensors.Changes) -> Iterator[Writable]:
    before = 0
    for audio in audios:
        rate = int(audio["sample_rate"])
        made = list(
            tensors.sounds(audio, lambda number, before=before: f"sound {before + number + 1} of `audios`", told)
        )
        before += len(made)
        for stereo in made:
            yield Writable("audio", ".wav", lambda path, stereo=stereo, rate=rate: core.write_sound(path, stereo, rate))


def _even(frames: Any, called: str) -> Any:
    """`frames` [N, H, W, 3] without the last line or column that H.264 has no place for."""
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    if not even.size:
        raise DataError(f"{called} is {frames.shape[2]} x {frames.shape[1]} pixels, too small for a video.")
    return even


def _film(made: Any, called: str, told: tensors.Changes, events: host.ComfyEvents) -> Callable[[Path], Any]:
    """What writes the frames and the sound of a VIDEO that is no file. Raises DataError."""
    frames = tensors.pictures(made.images, lambda number: f"frame {number + 1} of {called}", told)
    even, fps = _even(frames, called), Fraction(made.frame_rate)
    if fps <= 0:
        raise DataError(f"{called} has the frame rate {fps}. Give it one, such as in Create Video.")
    if not made.audio:
        return lambda path: core.write_video(path, events.heeded(even), float(fps))
    rate = int(made.audio["sample_rate"])
    heard = list(tensors.sounds(made.audio, lambda _: f"the sound of {called}", told))
    if len(heard) > 1:
        raise DataError(f"{called} has {len(heard)} sounds. Give it the one that belongs to it.")
    sound = heard[0][:, : ceil(rate * len(frames) / fps)]
    if rate not in AAC_RATES:
        import torch

        sound, rate = torch.from_numpy(core.resample(sound.numpy(), rate, 48000)), 48000
    return lambda path: core.write_video(path, events.heeded(even), float(fps), sound=sound, rate=rate)


def _ending(video: Any, source: str | BytesIO, called: str) -> str:
    """That of the file of a VIDEO, by its name or else by what is in it. Raises DataError where it is not read."""
    if isinstance(source, BytesIO):
        first = video.get_container_format().split(",")[0]
        ending = {"mov": ".mp4", "matroska": ".mkv", "mpegts": ".ts", "asf": ".wmv"}.get(first, f".{first}")
    elif Path(source).is_file():
        ending = Path(source).suffix.lower()
    else:
        raise DataError(f"{called}: the file {source} is not there. Choose it anew.")
    if ending not in core.MEDIA_SUFFIXES["video"]:
        named = "" if isinstance(source, BytesIO) else f" ({Path(source).name})"
        raise DataError(f"{called}{named} is a {ending} file, which is not read. Save it as MP4 at its frame rate.")
    return ending


def _part(video: Any, source: str | BytesIO, called: str) -> tuple[float, float] | None:
    """Where the part of a file begins that a VIDEO is, and how long it is at most (0: to the end), in seconds; None
    for a whole file. Raises DataError where that cannot be told."""
    try:
        begin, seconds = video._VideoFromFile__start_time or 0, video._VideoFromFile__duration or 0
    except AttributeError:  # another version of ComfyUI
        if video.get_duration() == host.InputImpl.VideoFromFile(source).get_duration():
            return None
        raise DataError(
            f"{called} is a part of a file, and this version of ComfyUI does not say which. Connect the whole file, "
            "or cut it before."
        ) from None
    if begin < 0:
        begin = max(0.0, host.InputImpl.VideoFromFile(source).get_duration() + begin)
    return (float(begin), float(seconds)) if begin or seconds else None


def _lay(source: str | BytesIO, path: Path, events: host.ComfyEvents) -> None:
    """Copy a file to `path`. Raises Stopped."""
    with BytesIO(source.getbuffer()) if isinstance(source, BytesIO) else open(source, "rb") as file:
        with open(path, "wb") as target:
            for block in events.heeded(iter(lambda: file.read(COPIED_AT_ONCE), b"")):
                target.write(block)


def _cut(
    source: str | BytesIO,
    ending: str,
    part: tuple[float, float],
    called: str,
    path: Path,
    events: host.ComfyEvents,
) -> None:
    """Cut a `part` (see `_part`) of a file. Raises DataError, Stopped."""
    if isinstance(source, BytesIO):
        whole = path.with_name(f"whole{ending}")
        _lay(source, whole, events)
    else:
        whole = Path(source)
    try:
        core.cut_part(whole, *part, path, events)
    except DataError as error:
        raise DataError(f"{called}: {error}") from error


def _write(
    folder: Path, name: str, media: Sequence[Writable], captions: Sequence[str], events: host.ComfyEvents
) -> list[Path]:
    """Write media and captions into `folder`/media; returns the media. Files that did not change keep their time, and
    so their caches; files of an earlier call that are not made again are removed, others are left alone. Raises
    DataError where one of those has a name that is wanted, and Stopped; the next call knows what this one has written
    by then."""
    target, index = folder / "media", folder / "files.json"
    target.mkdir(parents=True, exist_ok=True)
    before = _noted(index)
    names = [f"{name}_{number:04d}{made.ending}" for number, made in enumerate(media, 1)]
    _require_free(target, [*names, *(Path(one).with_suffix(".txt").name for one in names)], before)
    written: dict[str, str | None] = {}  # captions with their text
    changed: list[str] = []
    events.stage("write", len(media))
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing") as temporary:
            for number, (made, caption, called) in enumerate(zip(media, captions, names, strict=True), 1):
                events.check_stop()
                path = target / called
                beside = path.with_suffix(".txt")
                written |= {path.name: None, beside.name: caption}
                fresh = Path(temporary) / path.name
                made.write(fresh)
                if not path.is_file() or not cmp(path, fresh, shallow=False):
                    fresh.replace(path)
                there = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else None
                if there != caption:
                    if there not in (None, before.get(beside.name, there)):
                        changed.append(beside.name)
                    write_text(beside, caption)
                events.progress(number, len(media), path.name)
    except BaseException:
        write_json(index, before | written)
        raise
    for old in before.keys() - written.keys():
        (target / Path(old).name).unlink(missing_ok=True)
    write_json(index, written)
    if changed:
        events.message(
            f"{_some(changed)} had been changed since this node wrote them, and hold what `captions` says again.",
            "warning",
        )
    return [target / called for called in names]


def _noted(index: Path) -> dict[str, str | None]:
    """The files that an earlier call wrote, captions with their text where that is known."""
    noted = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    return noted if isinstance(noted, dict) else dict.fromkeys(map(str, noted))


def _require_free(target: Path, wanted: Sequence[str], before: Collection[str]) -> None:
    """Raise DataError where somebody else's file has a name that is `wanted`."""
    others = [called for called in wanted if called not in before and (target / called).exists()]
    if others:
        raise DataError(
            f"{target} has files of yours with names that this node would write: {_some(others)}. Rename them, or give "
            "another `name`."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
