"""Convert LoRA: a LoRA of another trainer for ComfyUI, or one of ours for another program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import ltx2_train as core
from . import host
from .host import io
from .lora_names import chosen_lora, file_mark, new_lora, stamp, worked
from .wire import read_wire_lora

TITLE = "Convert LoRA"

_FOR_COMFYUI = ("comfyui", "official")


class ConvertLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_ConvertLoRA",
            display_name=TITLE,
            category="LTX-2 training",
            description="Writes a LoRA in the keys of another program: one of the community trainer, diffusers or "
            "DiffSynth for ComfyUI, or the other way round.",
            search_aliases=["lora", "convert", "keys", "musubi", "diffusers", "diffsynth", "format", "ltx"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", optional=True, tooltip="The LoRA of Train LoRA or Load LoRA Model."),
                io.Combo.Input(
                    "to",
                    options=list(core.KEY_FORMATS),
                    default="comfyui",
                    tooltip="Whose keys. official is Lightricks' trainer, whose keys ComfyUI loads as well.",
                ),
                io.String.Input(
                    "lora_path",
                    default="",
                    tooltip="LoRA file to convert, where none is connected; a name in ComfyUI's loras folders will do.",
                ),
                io.String.Input(
                    "save_name",
                    default="",
                    tooltip="Name of the new file in ComfyUI's loras folder. Empty: it lies among the runs.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(core.FILE_DTYPES),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Numbers of the new file. auto: those of the old one.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    "lora", display_name="lora", tooltip="The LoRA in ComfyUI's keys, for Load LoRA Model."
                ),
                io.String.Output("report", display_name="report", tooltip="What it was, and what was done."),
                io.String.Output("path", display_name="path", tooltip="Path of the new file."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_path: str | None, **settings: Any) -> Any:
        return stamp(lora_path)

    @classmethod
    def execute(
        cls,
        to: str,
        lora_path: str,
        save_name: str,
        lora: Mapping[str, Any] | None = None,
        dtype: str = "auto",
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            source = chosen_lora(lora, lora_path, "convert")
            out = new_lora(save_name, f"converted/{source.stem}_{to}_{file_mark(source, to, dtype)}")
            made = worked(cls.hidden.unique_id, lambda events: core.convert_lora(source, to, out, dtype, events=events))
            for_comfyui = to in _FOR_COMFYUI
            return io.NodeOutput(
                read_wire_lora(made.path)
                if for_comfyui
                else host.nothing(f"Convert LoRA wrote keys of {to}, which ComfyUI does not load. Use `path`."),
                made.text(),
                str(made.path),
            )
