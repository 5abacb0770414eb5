"""Preview Item: one sample of a dataset exactly as it is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import ConfigError, DataError
from ..ltx2_train.files import digest
from . import entries, handles, host
from .data import SHAPE, SIZE_SETTINGS, idle_sizes, size_settings
from .host import io
from .made import always
from .wire import read_audio

TITLE = "Preview Item"


class PreviewItem(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_PreviewItem",
            display_name=TITLE,
            category="LTX-2 training",
            description="Shows one sample exactly as it is trained on: its window, size, rate and sound; of a prepared "
            "dataset also as the caches give it back.",
            search_aliases=["dataset", "preview", "clip", "caption", "latent", "decode", "lora", "train"],
            is_output_node=True,
            inputs=[
                handles.Dataset.Input(
                    "dataset", optional=True, tooltip="A dataset that is not prepared yet; the sizes below are used."
                ),
                handles.Prepared.Input(
                    "prepared", optional=True, tooltip="The dataset of Prepare Dataset, with the sizes it was made in."
                ),
                io.String.Input(
                    "item",
                    default="",
                    tooltip="Name of a file of the dataset, or of one of its caches. Empty: the first sample.",
                ),
                io.Boolean.Input(
                    "decode",
                    default=False,
                    tooltip="With `prepared`: show what the caches hold, decoded by the VAE of the base.",
                ),
                *SHAPE.visible_inputs(),
                *SHAPE.advanced_inputs(),
                *SIZE_SETTINGS.advanced_inputs(),
            ],
            outputs=[
                io.Video.Output("video", display_name="video", tooltip="The video, as ComfyUI's nodes take it."),
                io.Audio.Output("audio", display_name="audio", tooltip="The sound, as ComfyUI's nodes take it."),
                io.String.Output("caption", display_name="caption", tooltip="As it is trained on."),
                io.String.Output("path", display_name="path", tooltip="Path of the file that was written."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **settings: Any) -> Any:
        return always()

    @classmethod
    @SHAPE.fill
    @SIZE_SETTINGS.fill
    def execute(
        cls,
        item: str,
        decode: bool,
        dataset: handles.ClipFolder | None = None,
        prepared: handles.PreparedDataset | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            if dataset is not None and prepared is not None:
                raise ConfigError("`dataset` and `prepared` are both connected. Take one of the wires off.")
            run, idle = None, ""
            if prepared is not None:
                config, folder = core.DatasetConfig.read(prepared.config), prepared.config.parent
                idle = _other_sizes(settings, config)
                run = core.make_run(dict(prepared.tables), folder, TITLE) if decode else None
            elif dataset is not None:
                folder = entries.dataset_folder(dataset)
                config = entries.dataset_config([dataset], size_settings(settings), folder, "Preview Item")
                idle = idle_sizes([dataset], settings)
                if decode:
                    raise ConfigError("decode needs the caches: connect `prepared`, from Prepare Dataset.")
            else:
                raise ConfigError("Nothing to show: connect `dataset` or `prepared`.")
            events = host.ComfyEvents(cls.hidden.unique_id)
            if idle:
                events.message(idle, "warning")
            try:
                # a folder of its own for every way to show it: the page keeps what it once showed under a name
                mark = digest(config.to_toml(), str(decode), length=8)
                made = core.preview_dataset(config, folder / "preview" / mark, item, run, events)
            finally:
                events.close()
            path = made.decoded or made.clip
            if path is None or made.caption is None:
                raise DataError("There is no sample to show.")
            caption = made.caption.read_text(encoding="utf-8").strip()
            events.finish("finished", f"{path.name}\n{caption}")
            sound = None if path.suffix == ".png" else read_audio(path)
            seen = None
            if path.suffix == ".wav" and sound is not None:  # there is nothing else to look at
                name = path.with_name(f"{path.stem}.sound.png")
                seen = core.draw_spectrogram(name, sound["waveform"][0], sound["sample_rate"], path.stem)
            return io.NodeOutput(*_outputs(path, sound), caption, str(path), ui=host.preview(path, seen))


def _other_sizes(settings: Mapping[str, Any], config: core.DatasetConfig) -> str:
    """A sentence on the widgets of sizes that say otherwise than the prepared dataset `config`, which has its own; ""
    where none does."""
    untouched, changed = {**SHAPE.defaults(visible=True), **SIZE_SETTINGS.defaults()}, []
    for widget in (*SHAPE.settings, *SIZE_SETTINGS.settings):
        value = settings.get(widget.id, untouched[widget.id])
        there = [getattr(entry, widget.path) for entry in config.datasets if entry.kind != "audio"]
        if value not in (untouched[widget.id], *(one if widget.item is None else one[widget.item] for one in there)):
            changed.append(f"{widget.id} = {value}")
    if not changed:
        return ""
    has = "has" if len(changed) == 1 else "have"
    return f"{', '.join(changed)} {has} no effect: `prepared` is shown as Prepare Dataset made it."


def _outputs(path: Path, audio: dict[str, Any] | None) -> tuple[Any, Any]:
    """The file as VIDEO and AUDIO; what it does not hold blocks what is connected."""
    video = host.InputImpl.VideoFromFile(str(path)) if path.suffix == ".mp4" else None
    return (
        video or host.nothing(f"{path.name} is no video."),
        audio or host.nothing(f"{path.name} has no sound."),
    )
