"""Dataset from Lists: pictures, videos and sounds that other nodes made, as a folder of media with captions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train import DatasetSettings
from ..ltx2_train.errors import ConfigError, DataError
from ..ltx2_train.files import write_json, write_text
from . import handles, host, source_folder
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
ENDINGS = {"image": ".png", "video": ".mp4", "audio": ".wav"}

Writable = tuple[str, Callable[[Path], Any]]  # its kind, and what writes it to a path


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
            media = list(_media(images or [], videos or [], audios or [], clips, fps, events))
            if not media:
                raise DataError("There is nothing to write: connect `images`, `videos` or `audios`.")
            folder = host.place_inside(host.runs_folder() / "datasets", called)
            written = _write(folder, called, media, _captions(captions, len(media)), events)
            kinds = {kind: count for kind in ENDINGS if (count := sum(made == kind for made, _ in media))}
            made = tuple({f"{kind}_directory": str(folder / "media"), **shared} for kind in kinds)
            noun = "recordings" if set(kinds) == {"audio"} else "clips"
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


def _media(
    images: list[Any], videos: list[Any], audios: list[Any], clips: bool, fps: float, events: host.ComfyEvents
) -> Iterator[Writable]:
    for batch in images:  # [B, H, W, C] in [0, 1]
        frames = (batch[..., :3].detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
        if clips and len(frames) > 1:
            even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
            yield "video", lambda path, even=even: core.write_video(path, events.heeded(even), fps)
        else:
            for frame in frames:
                yield "image", lambda path, frame=frame: core.write_image(path, frame)
    for video in videos:
        yield "video", lambda path, video=video: _save(video, path, events)
    for audio in audios:
        for wave in audio["waveform"].detach().float().cpu():  # [C, N]
            stereo = wave if len(wave) == 2 else wave.mean(0, keepdim=True).expand(2, -1)
            rate = int(audio["sample_rate"])
            yield "audio", lambda path, stereo=stereo, rate=rate: core.write_sound(path, stereo, rate)


class _Polled(BytesIO):
    """A file in memory. Writing into it raises Stopped once the user stops: what fills it is ComfyUI's own."""

    def __init__(self, events: host.ComfyEvents) -> None:
        super().__init__()
        self._events = events

    def write(self, data: Any) -> int:
        self._events.check_stop()
        return super().write(data)


def _save(video: Any, path: Path, events: host.ComfyEvents) -> None:
    made = _Polled(events)
    video.save_to(made, format="mp4")
    path.write_bytes(made.getbuffer())


def _write(
    folder: Path, name: str, media: Sequence[Writable], captions: Sequence[str], events: host.ComfyEvents
) -> list[Path]:
    """Write media and captions into `folder`/media; returns the media. Files that did not change keep their time, and
    so their caches; files of an earlier call that are not made again are removed, others are left alone. Raises
    Stopped; the next call knows what this one has written by then."""
    target, index = folder / "media", folder / "files.json"
    target.mkdir(parents=True, exist_ok=True)
    before = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []
    written: list[str] = []
    events.stage("write", len(media))
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing") as temporary:
            for number, ((kind, write), caption) in enumerate(zip(media, captions, strict=True), 1):
                events.check_stop()
                path = target / f"{name}_{number:04d}{ENDINGS[kind]}"
                beside = path.with_suffix(".txt")
                written += [path.name, beside.name]
                fresh = Path(temporary) / path.name
                write(fresh)
                if not path.is_file() or path.read_bytes() != fresh.read_bytes():
                    fresh.replace(path)
                if not beside.is_file() or beside.read_text(encoding="utf-8") != caption:
                    write_text(beside, caption)
                events.progress(number, len(media), path.name)
    except BaseException:
        write_json(index, sorted({*before, *written}))
        raise
    for old in set(before) - set(written):
        (target / Path(str(old)).name).unlink(missing_ok=True)
    write_json(index, written)
    return [target / name for name in written if not name.endswith(".txt")]
