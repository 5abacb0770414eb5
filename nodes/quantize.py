"""Quantize Checkpoint: a base written once in few bits, which every run then loads small."""

from __future__ import annotations

from typing import Any, get_args

from .. import ltx2_train as core
from ..ltx2_train import RunConfig
from ..ltx2_train.errors import ConfigError
from . import host, words
from .fields import field_at
from .host import io
from .lora_names import new_checkpoint, new_checkpoint_input
from .made import compared, keep_made, make_way

TITLE = "Quantize Checkpoint"
_NF4 = "nf4"  # what its own settings are for
_FORMAT, _BLOCKS = (field_at(RunConfig, f"quant.{name}") for name in ("format", "block_size"))

words.note_widget(TITLE, "quant.device", "device")


class QuantizeCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_QuantizeCheckpoint",
            display_name=TITLE,
            category="LTX-2 training",
            description="Writes a checkpoint whose transformer is quantized, next to the old one, which is kept. Runs "
            "load it as it is, small and fast; the old one must be in 16 or 32 bits.",
            search_aliases=["quantize", "nf4", "fp8", "int8", "checkpoint", "shrink", "loftq", "memory", "ltx"],
            is_output_node=True,
            inputs=[
                io.Combo.Input("checkpoint", options=host.checkpoint_names(), tooltip="The checkpoint; it is kept."),
                io.Combo.Input(
                    "format",
                    options=[choice for choice in get_args(_FORMAT.annotation) if choice not in ("auto", "none")],
                    default=_NF4,
                    tooltip="How the blocks are stored. nf4 is the smallest; all that is not in the blocks stays as it "
                    "is.",
                ),
                new_checkpoint_input(),
                io.Combo.Input(
                    "block_size",
                    options=[str(size) for size in get_args(_BLOCKS.annotation)],
                    default=str(_BLOCKS.default),
                    optional=True,
                    advanced=True,
                    tooltip="nf4: values that share one scale.",
                ),
                io.Int.Input(
                    "loftq_rank",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    advanced=True,
                    tooltip="nf4: also write, beside the checkpoint, the beginning of a LoRA of this rank that makes "
                    "up for what is lost (LoftQ). Train with the same rank, quantization nf4, and loftq of "
                    "Quantization Options on. (0 = none)",
                ),
                io.Combo.Input(
                    "device",
                    options=["auto", "cpu"],
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Where weights are quantized, one at a time. auto: the card, where there is one.",
                ),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="How many layers, and how large it is now."),
                io.String.Output("path", display_name="path", tooltip="Path of the new checkpoint."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> Any:
        return compared(cls.hidden.unique_id, given)

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        format: str,
        save_name: str,
        block_size: str = str(_BLOCKS.default),
        loftq_rank: int = 0,
        device: str = "auto",
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            given = {"block_size": block_size != str(_BLOCKS.default), "loftq_rank": loftq_rank > 0}
            for widget in (name for name, used in given.items() if used and format != _NF4):
                raise ConfigError(f"{widget} counts with nf4 alone, and format is {format}. Put it back, or take nf4.")
            out = new_checkpoint(save_name)
            make_way(out)
            if out.exists():
                raise ConfigError(f"{out} is there already. Choose another save_name, or delete it first.")
            quant: dict[str, Any] = {"format": format, "device": device}
            if format == _NF4:
                quant |= {"block_size": int(block_size), "loftq": loftq_rank > 0}
            settings = core.make_run({"quant": quant}, source=TITLE).quant
            events = host.ComfyEvents(cls.hidden.unique_id)
            try:
                source = host.checkpoint_path(checkpoint)
                written = core.quantize_checkpoint(source, out, settings, loftq_rank or None, events)
            finally:
                events.close()
            keep_made(cls.hidden.unique_id, [written.path, written.companion])
            events.finish("finished", written.summary())
            return io.NodeOutput(written.summary(), str(written.path))
