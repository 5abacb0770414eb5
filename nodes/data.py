"""Load Training Clips and Prepare Dataset: a folder of media, and its caches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..ltx2_train import RunConfig, build_caches, make_run
from ..ltx2_train.data.dataset import DatasetConfig, DatasetSettings
from ..ltx2_train.data.images import IMAGE_SUFFIXES
from ..ltx2_train.data.media import VIDEO_SUFFIXES
from ..ltx2_train.errors import DataError
from ..ltx2_train.files import digest, write_text
from . import handles, host
from .host import io
from .widgets import Form, Setting

NO_FOLDER = "(folder from the path below)"

CLIPS = Form(
    DatasetSettings,
    visible=[Setting("trigger_word"), Setting("target_fps", "fps")],
    advanced=[
        Setting("caption_extension"),
        Setting("num_repeats", "repeats"),
        Setting("recursive"),
        Setting("source_fps"),
    ],
)

SHAPE = Form(
    DatasetSettings,
    visible=[
        Setting("resolution", "width", default=512, item=0, step=32, extra={"min": 32, "max": 8192}),
        Setting("resolution", "height", default=512, item=1, step=32, extra={"min": 32, "max": 8192}),
        Setting("target_frames", "frames", default=49, item=0, step=8, extra={"min": 1, "max": 1025}),
        Setting("frame_extraction"),
        Setting("enable_bucket", "buckets", default=True),
    ],
    advanced=[
        Setting("bucket_no_upscale"),
        Setting("frame_stride"),
        Setting("frame_sample"),
        Setting("max_frames"),
        Setting("min_frames"),
        Setting("pad_short"),
        Setting("batch_size"),
    ],
)

CACHES = Form(
    RunConfig,
    visible=[],
    advanced=[
        Setting("cache.tiles.spatial_tile"),
        Setting("cache.tiles.temporal_tile"),
        Setting("cache.vae_dtype"),
        Setting("cache.text_form"),
        Setting("cache.skip_existing"),
    ],
)


class LoadTrainingClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_LoadTrainingClips",
            display_name="Load Training Clips",
            category="LTX-2 training",
            description="Chooses a folder of videos or images to train on. Each file has its caption beside it, in a "
            "text file of the same name.",
            search_aliases=["dataset", "clips", "videos", "captions", "folder", "lora", "train"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[NO_FOLDER, *host.input_folders()],
                    tooltip="Folder of clips inside ComfyUI's input folder. Press R after adding one.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="Folder anywhere on this machine; where given, it is used instead of the one above.",
                ),
                *CLIPS.visible_inputs(),
                *CLIPS.advanced_inputs(),
            ],
            outputs=[
                handles.Dataset.Output("dataset", display_name="dataset"),
                io.Int.Output("count", display_name="count", tooltip="Number of media files found."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None, path: str | None, recursive: bool | None = False, **settings: Any
    ) -> Any:
        # names, sizes and times of everything inside, so that a changed caption or a new clip is noticed
        if folder is None or path is None:  # it comes over a wire and is not known yet
            return math.nan
        root = _folder(folder, path)
        if root is None or not root.is_dir():
            return math.nan
        files = sorted(entry for entry in (root.rglob("*") if recursive else root.glob("*")) if entry.is_file())
        stats = [(entry, entry.stat()) for entry in files]
        return digest(*(f"{entry} {stat.st_size} {stat.st_mtime_ns}" for entry, stat in stats))

    @classmethod
    @CLIPS.fill
    def execute(cls, folder: str, path: str, **settings: Any) -> io.NodeOutput:
        with host.training_job():
            root = _folder(folder, path)
            if root is None:
                raise DataError("No folder is chosen. Choose one in `folder`, or write its path into `path`.")
            shared = CLIPS.tables(settings)
            kinds = _media(root, shared["recursive"])
            entries = tuple({f"{kind}_directory": str(root), **shared} for kind in kinds)
            clips = handles.ClipFolder(root, entries, sum(kinds.values()))
            found = " and ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in kinds.items())
            host.ComfyEvents(cls.hidden.unique_id).finish("finished", f"{found} in {root.name}")
            return io.NodeOutput(clips, clips.count)


def _folder(folder: str, path: str) -> Path | None:
    text = path.strip().strip('"')  # Windows copies paths in quotes
    if text:
        return Path(text).expanduser()
    return None if folder == NO_FOLDER else host.input_folder(folder)


def _media(root: Path, recursive: bool) -> dict[str, int]:
    """How many videos and images `root` holds. Raises DataError where it holds none."""
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist. Correct `path`, or choose another in `folder`.", root)
    files = [entry.suffix.lower() for entry in (root.rglob("*") if recursive else root.iterdir()) if entry.is_file()]
    counts = {
        "video": sum(suffix in VIDEO_SUFFIXES for suffix in files),
        "image": sum(suffix in IMAGE_SUFFIXES for suffix in files),
    }
    found = {kind: count for kind, count in counts.items() if count}
    if not found:
        below = any(e.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES for e in root.glob("*/*"))
        hint = (
            "Its sub-folders do: choose one of them, or switch `recursive` on." if below else "Choose another folder."
        )
        raise DataError(f"The folder {root} holds no videos and no images. {hint}", root)
    return found


_made: dict[str, Path] = {}
_generation: dict[str, int] = {}


class PrepareDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_PrepareDataset",
            display_name="Prepare Dataset",
            category="LTX-2 training",
            description="Cuts the clips to size and encodes them and their captions once, so that training needs "
            "neither the video encoder nor the text encoder. What is up to date is kept.",
            search_aliases=["cache", "latents", "encode", "bucket", "dataset", "lora", "train"],
            inputs=[
                handles.Model.Input("model", tooltip="The base to train on; its encoders make the caches."),
                handles.Dataset.Input("dataset", tooltip="The clips of Load Training Clips."),
                *SHAPE.visible_inputs(),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Name of the folder under output/ltx2_runs/datasets that keeps the caches. Empty: the name "
                    "of the clips' folder.",
                ),
                *SHAPE.advanced_inputs(),
                *CACHES.advanced_inputs(),
            ],
            outputs=[
                handles.Prepared.Output("prepared", display_name="prepared"),
                io.String.Output("summary", display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **settings: Any) -> Any:
        # what this node made before may have been deleted meanwhile: then it has to run again, once
        node = str(cls.hidden.unique_id)
        if node in _made and not _made[node].exists():
            del _made[node]
            _generation[node] = _generation.get(node, 0) + 1
        return _generation.get(node, 0)

    @classmethod
    @SHAPE.fill
    @CACHES.fill
    def execute(
        cls, model: handles.BaseModel, dataset: handles.ClipFolder, name: str = "", **settings: Any
    ) -> io.NodeOutput:
        with host.training_job():
            config = _write_dataset(dataset, SHAPE.tables(settings), name)
            tables = {"model": model.tables, "data": {"config": str(config)}, **CACHES.tables(settings)}
            events = host.ComfyEvents(cls.hidden.unique_id)
            try:
                report = build_caches(make_run(tables, config.parent), events)
            finally:
                events.close()
            summary = report.summary()
            parts = (f"{part.kind}: {part.made} made, {part.kept} kept" for part in (report.latents, report.text))
            failed = len(report.latents.failed) + len(report.text.failed) + len(report.left_out)
            events.finish(
                "finished", " | ".join([*parts, *([f"{failed} not usable, see the summary"] if failed else [])])
            )
            _made[str(cls.hidden.unique_id)] = config
            return io.NodeOutput(handles.PreparedDataset(config, tables, summary), summary)


def _write_dataset(clips: handles.ClipFolder, shape: dict[str, Any], name: str) -> Path:
    """Write the dataset file beside its caches; its name tells settings apart, so that older handles stay good."""
    source = digest(str(clips.folder.resolve()), length=8)
    folder = host.runs_folder() / "datasets" / (_plain(name) or f"{_plain(clips.folder.name) or 'clips'}-{source}")
    entries = []
    for entry in clips.entries:
        kind = "videos" if "video_directory" in entry else "images"
        caches = folder / f"{kind}_{float(entry['target_fps']):g}fps"
        entries.append({**entry, **shape, "cache_directory": str(caches)})
    text = DatasetConfig.from_table({"datasets": entries}, folder, "Prepare Dataset").to_toml()
    path = folder / f"dataset-{digest(text, length=8)}.toml"
    write_text(path, text)
    return path


def _plain(name: str) -> str:
    """`name` as a folder can be called on every system."""
    return "".join(ch if ch.isalnum() or ch in "-_ ." else "_" for ch in name).strip(" .")
