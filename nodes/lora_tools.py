"""Resize LoRA, Extract LoRA, Bake LoRAs: a lower rank, a finetune as a LoRA, LoRAs in the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import ConfigError
from ..ltx2_train.files import digest
from . import host
from .host import io
from .lora_names import (
    chosen_lora,
    dtype_input,
    file_mark,
    listed_loras,
    lora_outputs,
    lora_path_input,
    named_here,
    new_checkpoint,
    new_checkpoint_input,
    new_lora,
    stamp,
    stamps,
    worked,
    written_lora,
)
from .made import compared
from .wire import lora_file

RESIZE_TITLE, EXTRACT_TITLE, BAKE_TITLE = "Resize LoRA", "Extract LoRA", "Bake LoRAs into Checkpoint"
SAVE_NAME = "Name of the new file in ComfyUI's loras folder. Empty: it lies among the runs."


class ResizeLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_ResizeLoRA",
            display_name=RESIZE_TITLE,
            category="LTX-2 training",
            description="Writes a LoRA at a lower rank, the best there is by singular values, and says how much of its "
            "change that loses.",
            search_aliases=["lora", "resize", "rank", "svd", "shrink", "smaller", "ltx"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", optional=True, tooltip="The LoRA of Train LoRA, Merge LoRAs or another."),
                io.Int.Input(
                    "rank", default=16, min=0, max=1024, tooltip="Highest rank of a layer. 0: as the error asks for."
                ),
                io.Float.Input(
                    "max_error",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="Each layer takes the lowest rank that loses at most this share of its change, never above "
                    "`rank`. 0: the rank alone counts.",
                ),
                lora_path_input("resize"),
                io.String.Input("save_name", default="", tooltip=SAVE_NAME),
                dtype_input("auto", "Numbers of the new file. auto: those of the old one."),
            ],
            outputs=lora_outputs("The smaller LoRA, for Load LoRA Model."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_path: str | None, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, {**given, "lora_path": lora_path}, stamp(lora_path))

    @classmethod
    def execute(
        cls,
        rank: int,
        max_error: float,
        lora_path: str,
        save_name: str,
        lora: Mapping[str, Any] | None = None,
        dtype: str = "auto",
    ) -> io.NodeOutput:
        with host.training_job(RESIZE_TITLE):
            source = chosen_lora(lora, lora_path, "resize")
            mark = file_mark(source, f"{rank}", f"{max_error:g}", dtype)
            out = new_lora(save_name, f"resized/{source.stem}_{mark}")
            report = worked(
                cls.hidden.unique_id,
                out,
                lambda events: core.resize_lora(
                    source, out, rank or None, max_error or None, dtype, replace=named_here(save_name), events=events
                ),
            )
            return written_lora(report)


class ExtractLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = host.checkpoint_names()
        return io.Schema(
            node_id="LTX2T_ExtractLoRA",
            display_name=EXTRACT_TITLE,
            category="LTX-2 training",
            description="Writes what a full finetune changed in its base as a LoRA. Both must be in 16 or 32 bits.",
            search_aliases=["lora", "extract", "finetune", "difference", "checkpoint", "svd", "ltx"],
            is_output_node=True,
            inputs=[
                io.Combo.Input("finetune", options=names, tooltip="The checkpoint that was trained as a whole."),
                io.Combo.Input("base", options=names, tooltip="The checkpoint that it began with."),
                io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Rank of each layer."),
                io.String.Input("save_name", default="", tooltip=SAVE_NAME),
                dtype_input("bf16", "Numbers of the new file. auto: those of the finetune."),
            ],
            outputs=lora_outputs("What was learned, for Load LoRA Model."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, given)

    @classmethod
    def execute(cls, finetune: str, base: str, rank: int, save_name: str, dtype: str = "bf16") -> io.NodeOutput:
        with host.training_job(EXTRACT_TITLE):
            paths = [host.checkpoint_path(name) for name in (finetune, base)]
            facts = [f"{path.resolve()} {path.stat().st_mtime_ns}" for path in paths]
            mark = digest(*facts, str(rank), dtype, length=8)
            out = new_lora(save_name, f"extracted/{paths[0].stem}_{mark}")
            again = named_here(save_name)
            report = worked(
                cls.hidden.unique_id,
                out,
                lambda events: core.extract_lora(*paths, out, rank, dtype, replace=again, events=events),
            )
            return written_lora(report)


class BakeLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_BakeLoRA",
            display_name=BAKE_TITLE,
            category="LTX-2 training",
            description="Writes a checkpoint with LoRAs merged into its weights, next to the old one, which is kept. "
            "It is as large as the old one, and must be in 16 or 32 bits.",
            search_aliases=["lora", "bake", "merge", "checkpoint", "fuse", "save", "ltx"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", optional=True, tooltip="A LoRA of Train LoRA, Load LoRA Model or another."),
                io.Combo.Input("checkpoint", options=host.checkpoint_names(), tooltip="The checkpoint; it is kept."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the connected LoRA counts.",
                ),
                io.String.Input(
                    "lora_paths",
                    multiline=True,
                    default="",
                    placeholder="style.safetensors | 0.8",
                    tooltip="More LoRAs, a file in each line: a full path or a name in ComfyUI's loras folders, and "
                    "behind | how strongly it counts (1 where nothing is said).",
                ),
                new_checkpoint_input(),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="What was changed, and what rounding lost."),
                io.String.Output("path", display_name="path", tooltip="Path of the new checkpoint."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_paths: str | None, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, {**given, "lora_paths": lora_paths}, stamps(lora_paths))

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        strength: float,
        lora_paths: str,
        save_name: str,
        lora: Mapping[str, Any] | None = None,
    ) -> io.NodeOutput:
        with host.training_job(BAKE_TITLE):
            if lora is None and strength != 1.0:
                raise ConfigError(
                    f"strength is {strength:g}, and it is that of `lora`, which is not connected. Set it to 1, and "
                    "write strengths behind the files in `lora_paths`."
                )
            parts: list[tuple[Path, float]] = [] if lora is None else [(lora_file(lora), strength)]
            parts += listed_loras(lora_paths)
            if not parts:
                raise ConfigError("There is no LoRA to bake: connect `lora`, or write its file into `lora_paths`.")
            out = new_checkpoint(save_name)
            base, paths, strengths = host.checkpoint_path(checkpoint), *map(list, zip(*parts, strict=True))
            report = worked(
                cls.hidden.unique_id, out, lambda events: core.bake_loras(base, paths, out, strengths, events=events)
            )
            return io.NodeOutput(report.text(), str(report.path))
