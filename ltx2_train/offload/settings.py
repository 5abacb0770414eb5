"""What is traded for memory. A setting that is not set is chosen by the plan (see `memory.fit`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ..settings import Settings


class MemorySettings(Settings):
    """What is traded for memory. What is not set is chosen to fit the card."""

    fit: Literal["auto", "custom", "80", "48", "32", "24", "16", "12", "8"] = Field(
        default="auto",
        description="How much memory to plan for, in GB: auto = what is free on the card now; a size = a card of that "
        "size; custom = plan nothing, take the settings as they are. Settings that you set yourself are kept as set.",
        json_schema_extra={"unit": "GB"},
    )
    gradient_checkpointing: bool = Field(
        default=True,
        description="Recompute blocks in the backward pass instead of keeping their activations. Off keeps all.",
        json_schema_extra={"community": "gradient_checkpointing", "advanced": True},
    )
    recompute_blocks: int | None = Field(
        default=None,
        ge=0,
        le=512,
        description="How many of the blocks are recomputed; not set: as many as must be (custom: all).",
        json_schema_extra={"off": 0, "counts_with": ".gradient_checkpointing", "advanced": True},
    )
    blocks_to_swap: int | None = Field(
        default=None,
        ge=0,
        le=511,
        description="Blocks whose weights stay in RAM and are brought to the card when their turn comes, at most all "
        "but one; not set: as many as must be (custom: none).",
        json_schema_extra={"community": "blocks_to_swap", "advanced": True},
    )
    swap_ahead: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Blocks that are fetched ahead of the one at work; each takes the memory of a block.",
        json_schema_extra={"counts_with": ".may_swap -- with memory.blocks_to_swap above 0", "advanced": True},
    )
    swap_from: Literal["auto", "ram", "file"] = Field(
        default="auto",
        description="Where swapped blocks wait: ram, or file = they are read from the checkpoint each time, for "
        "machines with little RAM (what is quantized while loading, from a scratch file in the run folder). auto = ram "
        "where it is large enough.",
        json_schema_extra={"counts_with": ".may_swap -- with memory.blocks_to_swap above 0", "advanced": True},
    )
    pinned: bool | None = Field(
        default=None,
        description="Lock the RAM of swapped blocks, which makes copies faster. Not set: where RAM is plenty "
        "(custom: no).",
        json_schema_extra={
            "counts_with": ".may_swap or .offload_activations -- with memory.blocks_to_swap above 0, or with "
            "memory.offload_activations",
            "community": "use_pinned_memory_for_block_swap",
            "advanced": True,
        },
    )
    offload_activations: bool | None = Field(
        default=None,
        description="Keep the inputs of recomputed blocks in RAM. Not set: where it is needed (custom: no).",
        json_schema_extra={
            "counts_with": [".gradient_checkpointing", ".recompute_blocks != 0"],
            "community": "gradient_checkpointing_cpu_offload",
            "advanced": True,
        },
    )
    ff_chunk: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="Tokens that go through a feed-forward at a time when it is recomputed; 0 chooses by device.",
        json_schema_extra={
            "harmless": True,
            "counts_with": [
                ".ff_chunk_target != audio or model.mode != video -- where model.mode has what ff_chunk_target names",
                ".ff_chunk_target != video or model.mode != audio -- where model.mode has what ff_chunk_target names",
            ],
            "unit": "tokens",
            "community": "ffn_chunk_size",
            "advanced": True,
        },
    )
    ff_chunk_target: Literal["all", "video", "audio"] = Field(
        default="all",
        description="Feed-forwards that ff_chunk is for.",
        json_schema_extra={"counts_with": ".ff_chunk", "community": "ffn_chunk_target", "advanced": True},
    )
    attention: Literal["sdpa", "flash2", "flash3"] = Field(
        default="sdpa",
        description="Attention kernel: sdpa = PyTorch's own choice; flash2, flash3 = FlashAttention, where installed.",
        json_schema_extra={"advanced": True},
    )
    split_attention: Literal["off", "batch", "query"] = Field(
        default="off",
        description="Attention in pieces: batch = sample by sample; query = some queries at a time.",
        json_schema_extra={
            "harmless": True,
            "counts_with": [
                ".split_attention_target != audio | av_cross or model.mode != video -- where model.mode has what "
                "split_attention_target names",
                ".split_attention_target != video | av_cross or model.mode != audio -- where model.mode has what "
                "split_attention_target names",
            ],
            "community": "split_attn_mode",
            "advanced": True,
        },
    )
    split_attention_size: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="Queries at a time for query; 0 is 1024.",
        json_schema_extra={
            "counts_with": ".split_attention = query",
            "unit": "tokens",
            "community": "split_attn_chunk_size",
            "advanced": True,
        },
    )
    split_attention_target: Literal["all", "self", "cross", "text_cross", "av_cross", "video", "audio"] = Field(
        default="all",
        description="Attentions that are split: self = attn1 and audio_attn1; text_cross = attn2 and audio_attn2; "
        "av_cross = those between picture and sound; cross = both kinds; video, audio = attn1 and attn2 of one stream.",
        json_schema_extra={
            "counts_with": ".split_attention != off",
            "community": "split_attn_target",
            "advanced": True,
        },
    )
    compile: bool | None = Field(
        default=None,
        description="Compile the norms, rotations and gates of a block with torch.compile. Needs a C compiler (and "
        "Triton on CUDA); where that is missing it says so and goes on without. Not set: on CUDA, where a trial at the "
        "start finds it faster and its numbers equal.",
        json_schema_extra={"community": "compile", "advanced": True},
    )
    optimizer_offload: bool = Field(
        default=False,
        description="Move the optimizer's state to RAM while samples are drawn.",
        json_schema_extra={
            "counts_with": "sample.wanted -- with sample.every or sample.every_epochs",
            "community": "offload_optimizer_during_validation",
            "advanced": True,
        },
    )
    context_gb: float = Field(
        default=4.0,
        ge=0,
        description="RAM for the text contexts of all captions; above it they go to a file of the run.",
        json_schema_extra={"unit": "GB", "advanced": True},
    )
    pinned_gb: float | None = Field(
        default=None,
        ge=0,
        description="How much of the RAM of swapped blocks is locked, at most; the others come more slowly. Not set: "
        "as much as RAM, the system and ComfyUI leave (custom: all). Inputs of blocks are locked besides.",
        json_schema_extra={
            "off": 0,
            "counts_with": [".may_swap -- with memory.blocks_to_swap above 0", ".pinned != false"],
            "unit": "GB",
            "advanced": True,
        },
    )

    shard: bool = Field(
        default=False,
        description="Share the blocks out over the processes (FSDP2): each card holds a part of each, and gathers it "
        "when its turn comes. Of weights that are trained it holds its part of the optimizer's state too. For a base "
        "that is not quantized and does not fit one card. From a terminal only.",
        json_schema_extra={
            "counts_with": "train.processes != 1 -- with train.processes above 1",
            "advanced": True,
            "since": "0.3",
        },
    )

    @property
    def may_swap(self) -> bool:
        """Whether blocks are swapped, or a plan may decide so."""
        return bool(self.blocks_to_swap) or (self.blocks_to_swap is None and self.fit != "custom")

    @model_validator(mode="before")
    @classmethod
    def _community_values(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            values = dict(values)
            for name in [name for name in ATTENTION_SWITCHES if name in values]:
                if values.pop(name):
                    if "attention" in values:
                        raise ValueError(f"{name} and memory.attention are the same setting; keep one of them")
                    values["attention"] = ATTENTION_SWITCHES[name]
            for target in ("split_attention_target", "ff_chunk_target"):
                if values.get(target) == "none":  # the community trainer's word for off
                    del values[target]
                    values.update({"split_attention": "off"} if target.startswith("split") else {"ff_chunk": 0})
            if isinstance(values.get("fit"), int) and not isinstance(values["fit"], bool):
                values["fit"] = str(values["fit"])
        return values


# switches of the community trainer, one a kernel
ATTENTION_SWITCHES = {"sdpa": "sdpa", "flash_attn": "flash2", "flash3": "flash3"}
