"""Dataset from File and Run from File: what was written for the terminal, used as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import ConfigError, Stopped
from ..ltx2_train.files import digest, write_text
from . import handles, host, options
from .host import io
from .made import compared, keep_made
from .train import check_ahead, generation, note_finished, run_outputs, seen, steps_beyond
from .widgets import merged

DATASET_TITLE, RUN_TITLE = "Dataset from File", "Run from File"
further_settings = options.given  # `options` is the name of a socket where the nodes run

_runs: dict[str, Path] = {}  # number of a node -> the folder of the run that it has trained


class DatasetFromFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_DatasetFromFile",
            display_name=DATASET_TITLE,
            category="LTX-2 training",
            description="Takes a dataset file (dataset.toml, SimpleTuner's JSON), a manifest, or a folder that "
            "Lightricks' trainer has encoded as it is, and makes the caches that it lacks.",
            search_aliases=["dataset", "toml", "manifest", "config", "cache", "ltx", "lora", "train"],
            inputs=[
                handles.Model.Input("model", tooltip="The base to train on; its encoders make the caches."),
                io.String.Input(
                    "path",
                    default="",
                    placeholder="/home/me/clips/dataset.toml",
                    tooltip="Path of the dataset file or manifest; paths in it start at its own folder. Or of a folder "
                    "that Lightricks' trainer has encoded (its preprocessed_data_root), which is taken over once.",
                ),
                io.Boolean.Input(
                    "cache_only",
                    default=False,
                    tooltip="Train on what lies in the cache folders: nothing is encoded, and the media may be gone.",
                ),
                options.socket(),
            ],
            outputs=[
                handles.Prepared.Output(
                    "prepared", display_name="prepared", tooltip="The encoded dataset, for Train LoRA."
                ),
                io.String.Output(
                    "summary", display_name="summary", tooltip="What was made, kept and left out, in words."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, path: str | None, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, {**given, "path": path}, _stamp(path))

    @classmethod
    def execute(
        cls,
        model: handles.BaseModel,
        path: str,
        cache_only: bool,
        options: handles.GivenOptions | None = None,
    ) -> io.NodeOutput:
        with host.training_job(DATASET_TITLE):
            config = _file(path, "dataset file", folders=True)
            if cache_only:
                config = _without_media(config)
            tables = merged(model.tables, {"data": {"config": str(config)}}, further_settings(options, DATASET_TITLE))
            dataset = core.DatasetConfig.read(config)  # what is wrong with the file is not said of Train LoRA
            runs = check_ahead(cls.hidden.prompt, cls.hidden.unique_id, tables)
            events = host.ComfyEvents(cls.hidden.unique_id)
            try:
                taken = core.import_missing(dataset, events)
                report = core.build_caches(core.make_run(tables, config.parent, DATASET_TITLE), events, runs)
            finally:
                events.close()
            summary = events.with_told("\n".join(one.summary() for one in (*taken, report)))
            ready = "only its caches are used" if cache_only else "ready"
            events.finish("finished", f"{config.name}: {ready}", of_dataset=True)
            keep_made(cls.hidden.unique_id, [config, *report.files])
            return io.NodeOutput(handles.PreparedDataset(config, tables, summary), summary)


class RunFromFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_RunFromFile",
            display_name=RUN_TITLE,
            category="LTX-2 training",
            description="Trains what a run file says (run.toml, or a file of another trainer), caches included. "
            "Pressing Run again goes on where it stopped.",
            search_aliases=["run", "toml", "config", "import", "ltx", "lora", "train"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "path",
                    default="",
                    placeholder="/home/me/fox/run.toml",
                    tooltip="Path of the run file. Paths in it start at its own folder.",
                ),
                io.String.Input(
                    "changes",
                    default="",
                    multiline=True,
                    placeholder="train.steps = 500\nlora.rank = 16",
                    tooltip="Settings to change in this run, one a line, as section.name = value. The file stays as "
                    "it is.",
                ),
            ],
            outputs=[
                io.LoraModel.Output("lora", display_name="lora", tooltip="The trained LoRA, for Load LoRA Model."),
                handles.Run.Output("run", display_name="run", tooltip="The run, for Sample LoRA and Pick Checkpoints."),
                io.String.Output("path", display_name="path", tooltip="Path of the LoRA file."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, path: str | None, changes: str | None) -> Any:
        folder = _runs.get(str(cls.hidden.unique_id))
        return (_stamp(path), 0 if folder is None else generation(folder))

    @classmethod
    def execute(cls, path: str, changes: str) -> io.NodeOutput:
        with host.training_job(RUN_TITLE):
            file = _file(path, "run file")
            lines = [line.strip() for line in changes.splitlines() if line.strip()]
            run = core.load_run(file, lines)
            if run.run.export_folder is None:  # where ComfyUI finds it
                place = host.checkpoints_folder() if run.train.what == "full" else host.loras_folder()
                folder = run.run.model_copy(update={"export_folder": place})
                run = run.model_copy(update={"run": folder})
            events = host.ComfyEvents(cls.hidden.unique_id, run.run.name)  # as text; Run Monitor draws it
            try:
                if run.data.manifest is None:
                    core.build_caches(run, events)
                result = core.train(run, events)
            except BaseException as error:
                events.finish("stopped" if isinstance(error, Stopped) else "failed", str(error))
                raise
            finally:
                events.close()
            text = f"{result.lora.name} is in {result.lora.parent}.{steps_beyond(result)}"
            events.finish("finished", text, of_dataset=True)
            _runs[str(cls.hidden.unique_id)] = result.folder
            note_finished(result)
            tables = run.model_dump(mode="json", exclude_defaults=True)
            found = run_outputs(run, result, result.lora, tables)
            return io.NodeOutput(*found, ui=seen(events, found[1]))


def _file(text: str, what: str, folders: bool = False) -> Path:
    text = text.strip().strip('"')
    if not text:
        raise ConfigError(f"path: no {what} is given. Write the path of one.")
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ConfigError(f"path: {text} does not say where it begins. Write the whole path, from the root on.")
    if not path.is_file() and not (folders and path.is_dir()):
        raise ConfigError(f"path: there is no file {path}. Write the path of a {what}.")
    return path


def _stamp(text: str | None) -> Any:
    """What changes when the file does."""
    try:
        found = Path((text or "").strip().strip('"')).expanduser().stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size)


def _without_media(path: Path) -> Path:
    """A dataset file of the same datasets that is read from their caches alone."""
    config = core.DatasetConfig.read(path)
    parts = {
        key: tuple(entry.model_copy(update={"cache_only": True}) for entry in getattr(config, key))
        for key in ("datasets", "validation_datasets")
    }
    text = config.model_copy(update=parts).to_toml()
    folder = host.place_inside(host.runs_folder() / "datasets", f"file-{digest(str(path.resolve()), length=8)}")
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"caches-{digest(text, length=8)}.toml"
    write_text(made, text)
    return made
