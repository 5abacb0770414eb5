"""The option nodes: the settings that no other node shows, a group a node, made from the settings themselves.

A new setting appears in the node of its group by itself. This module comes after all others that show settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import handles, host, options
from .fields import settings_below
from .host import io
from .widgets import SHOWN, Form, Setting, is_path

IN_VIEW = 8  # widgets of a node that are not folded away

# Settings that no widget shows as they are, and what says them instead.
ELSEWHERE: dict[str, str] = {
    "run.folder": "the folder of runs, below ComfyUI's output",
    "run.export_folder": "ComfyUI's folder of LoRAs",
    "model.checkpoint": "checkpoint of Load LTX-2 Base Model",
    "model.text_encoder": "text_encoder of Load LTX-2 Base Model",
    "model.text_projection": "text_projection of Load LTX-2 Base Model",
    "model.video_vae": "video_vae of Load LTX-2 Base Model",
    "model.audio_vae": "audio_vae of Load LTX-2 Base Model",
    "gemma.tokenizer": "ComfyUI's own tokenizer of T5, or that in its folder",
    "data.config": "the socket `prepared`; Dataset from File",
    "data.manifest": "Run from File",
    "cache.manifest": "Run from File",
    "lora.weights": "the socket `start_lora`",
    "more_reference_directories": "Add Reference",
    "more_reference_frames": "reference_frames of Add Reference",
    "more_reference_audio_directories": "Add Reference",
    "video.generated": "Video Conditions, Conditions Recipe",
    "video.conditions": "Video Conditions, Conditions Recipe",
    "audio.generated": "Audio Conditions, Conditions Recipe",
    "audio.conditions": "Audio Conditions, Conditions Recipe",
    "slider.mode": "the sockets of Train Slider",
    "slider.targets": "positive, negative, target_class and more_targets of Train Slider",
    "slider.positive_caches": "the socket `positive_pictures` of Train Slider",
    "slider.negative_caches": "the socket `negative_pictures` of Train Slider",
    "slider.text_caches": "the captions of `positive_pictures` of Train Slider",
    "slider.config": "more_targets of Train Slider",
}
# files that may be named as ComfyUI lists them, by its kind of folder
MODELS = {"sample.upsampler": "latent_upscale_models"}
# What a dataset file alone says: the columns of its lists, and what old dataset files have.
IN_A_FILE = {
    "cache_only",
    "cache_files",
    "video_column",
    "caption_column",
    "audio_extension",
    "audio_only_target_fps",
    "audio_only_sequence_resolution",
    "audio_only_target_resolution",
    "audio_video_latent_channels",
    "audio_video_latent_dtype",
    "reference_audio_max_seconds",
}


def settings_of(group: options.OptionGroup) -> list[Setting]:
    """The settings that the node of `group` shows, the oldest first."""
    shown = []
    for path, field in settings_below(group.kind, *group.tables):
        if path in SHOWN or path in ELSEWHERE or (group.tables == ("",) and (path in IN_A_FILE or is_path(field))):
            continue
        shown.append(Setting(path, path.removeprefix(f"{group.tables[0]}.").replace(".", "_")))
    return shown


def _node(group: options.OptionGroup) -> type[io.ComfyNode]:
    shown = settings_of(group)
    form = Form(group.kind, shown[:IN_VIEW], shown[IN_VIEW:], nodes=(group.title,))
    options.FORMS[group.node_id] = form

    def read(values: Mapping[str, Any]) -> handles.GivenOptions:
        changed = form.changed(values)
        return handles.GivenOptions((group.title,), _found_models(changed))

    options.READERS[group.node_id] = read

    class OptionNode(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(
                node_id=group.node_id,
                display_name=group.title,
                category="LTX-2 training/options",
                description=f"{group.says} Goes into `options` of {' or '.join(group.into)}. What is left as it is "
                "changes nothing.",
                search_aliases=["ltx", "lora", "train", "settings", "options", group.name.lower()],
                inputs=[
                    *form.visible_inputs(),
                    handles.Options.Input(
                        "options", optional=True, tooltip="Another Options node, to bring both over one wire."
                    ),
                    *form.advanced_inputs(),
                ],
                outputs=[
                    handles.Options.Output(
                        "options",
                        display_name="options",
                        tooltip="For `options` of the node that the settings are for, or of another Options node.",
                    )
                ],
            )

        @classmethod
        @form.fill
        def execute(cls, options: handles.GivenOptions | None = None, **settings: Any) -> io.NodeOutput:
            with host.training_job(group.title):
                return io.NodeOutput(chained(options, read(settings)))

    OptionNode.__name__ = OptionNode.__qualname__ = group.node_id.removeprefix("LTX2T_")
    return OptionNode


def _found_models(tables: Mapping[str, Any]) -> dict[str, Any]:
    """`tables` with the whole paths of the files that are named as ComfyUI lists them."""
    found = dict(tables)
    for path, kind in MODELS.items():
        group, key = path.split(".")
        name = found.get(group, {}).get(key)
        if name is not None and not Path(name).is_absolute():
            found[group] = {**found[group], key: str(host.listed_model(kind, name))}
    return found


chained = options.chained  # `options` is the name of a socket where the nodes run
OPTION_NODES = [_node(group) for group in options.GROUPS]
