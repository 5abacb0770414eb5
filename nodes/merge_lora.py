"""Merge LoRAs: several LoRAs as one file, each at its own strength."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import ConfigError
from ..ltx2_train.files import digest
from . import host
from .host import io
from .lora_names import dtype_input, listed_loras, lora_outputs, named_here, new_lora, stamps, worked, written_lora
from .made import compared
from .wire import lora_file

TITLE = "Merge LoRAs"

MOST = 4


class MergeLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_MergeLoRA",
            display_name=TITLE,
            category="LTX-2 training",
            description="Makes one LoRA of several, each at its own strength: a character and a style, looks and a "
            "voice. Ranks and layers may differ.",
            search_aliases=["lora", "merge", "combine", "concat", "orthogonal", "sum", "stack", "ltx"],
            is_output_node=True,
            inputs=[
                *(
                    io.LoraModel.Input(
                        f"lora_{number}",
                        optional=True,
                        tooltip="A LoRA of Train LoRA, Load LoRA Model or another node that makes one.",
                    )
                    for number in range(1, MOST + 1)
                ),
                *(
                    io.Float.Input(
                        f"multiplier_{number}",
                        default=1.0,
                        min=-10.0,
                        max=10.0,
                        step=0.05,
                        tooltip=f"How strongly lora_{number} counts in the merged one. Negative: its opposite.",
                    )
                    for number in range(1, MOST + 1)
                ),
                io.String.Input(
                    "lora_paths",
                    multiline=True,
                    default="",
                    placeholder="style.safetensors | 0.8",
                    tooltip="More LoRAs, a file in each line: a full path or a name in ComfyUI's loras folders, and "
                    "behind | how strongly it counts (1 where nothing is said).",
                ),
                io.Combo.Input(
                    "method",
                    options=list(core.MERGE_METHODS),
                    default="concat",
                    tooltip="concat: exactly the sum, of any number; the ranks add up. orthogonal: of two LoRAs, each "
                    "without the main directions of the other, so that they disturb each other less.",
                ),
                io.String.Input(
                    "save_name",
                    default="",
                    tooltip="Name of the new file in ComfyUI's loras folder. Empty: it is only passed on.",
                ),
                io.Float.Input(
                    "k_fraction",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="For orthogonal: the share of the directions of each LoRA that is taken out of the other.",
                ),
                io.Combo.Input(
                    "rank_mode",
                    options=list(core.MERGED_RANKS),
                    default="sum",
                    optional=True,
                    advanced=True,
                    tooltip="For orthogonal: the rank of a layer is the sum of both, the larger or the smaller one.",
                ),
                dtype_input("auto", "Numbers of the new file. auto: one that holds all of the files."),
                io.Boolean.Input(
                    "emit_alpha",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Write .alpha keys too, for programs that take a missing one for something else than the "
                    "rank. diffusers refuses them.",
                ),
            ],
            outputs=lora_outputs("The merged LoRA, for Load LoRA Model."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_paths: str | None, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, {**given, "lora_paths": lora_paths}, stamps(lora_paths))

    @classmethod
    def execute(
        cls,
        multiplier_1: float,
        multiplier_2: float,
        multiplier_3: float,
        multiplier_4: float,
        lora_paths: str,
        method: str,
        save_name: str,
        lora_1: Mapping[str, Any] | None = None,
        lora_2: Mapping[str, Any] | None = None,
        lora_3: Mapping[str, Any] | None = None,
        lora_4: Mapping[str, Any] | None = None,
        k_fraction: float = 0.5,
        rank_mode: str = "sum",
        dtype: str = "auto",
        emit_alpha: bool = False,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            wired = zip(
                (lora_1, lora_2, lora_3, lora_4),
                (multiplier_1, multiplier_2, multiplier_3, multiplier_4),
                strict=True,
            )
            wired = list(wired)
            for number, (lora, multiplier) in enumerate(wired, 1):
                if lora is None and multiplier != 1.0:
                    raise ConfigError(
                        f"multiplier_{number} is {multiplier:g}, and nothing is connected to `lora_{number}`. Connect "
                        "a LoRA, or put it back to 1; files of `lora_paths` have theirs behind a |."
                    )
            parts = [(lora_file(lora), multiplier) for lora, multiplier in wired if lora is not None]
            parts += listed_loras(lora_paths)
            if len(parts) < 2:
                raise ConfigError(
                    f"Merging takes two LoRAs or more, and there is {len(parts)}: connect another one, or write its "
                    "file into `lora_paths`."
                )
            paths, multipliers = [path for path, _ in parts], [multiplier for _, multiplier in parts]
            recipe = [method, f"{k_fraction:g}", rank_mode, dtype, str(emit_alpha)]
            facts = [f"{path.resolve()} {path.stat().st_mtime_ns} {multiplier:g}" for path, multiplier in parts]
            out = new_lora(save_name, f"merged/{paths[0].stem}_{digest(*facts, *recipe, length=8)}")
            again = named_here(save_name)
            report = worked(
                cls.hidden.unique_id,
                out,
                lambda events: core.merge_loras(
                    paths, out, multipliers, method, k_fraction, rank_mode, dtype, emit_alpha, again, events=events
                ),
            )
            return written_lora(report)
