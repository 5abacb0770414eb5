"""The transformer where it belongs: stored as the settings say, some of its blocks waiting in RAM or in a file.

The model is built empty, and each block goes to its place as soon as it has been read, so neither the card nor the RAM
ever holds more than is meant to stay there and one block on its way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import RunConfig
from .device import DTYPES
from .events import Events
from .models.transformer import LTXTransformer
from .offload.activations import ActivationStore
from .offload.blocks import BlockStreamer, spread
from .offload.copies import Source
from .offload.host import HostBuffers
from .offload.settings import MemorySettings
from .offload.shards import ShardedBlocks, local_part
from .offload.source import FileBlocks, Ranges
from .quant.base import QuantLinear
from .quant.faster import faster_matmul, has_matmul, set_matmul
from .quant.nf4 import Nf4, why_slow
from .sizes import frozen_bytes, meta_model, stored_as
from .weights.keys import BLOCKS, transformer_prefix
from .weights.load import load_transformer, transformer_config
from .weights.loftq import Loftq
from .weights.reader import TensorFile

SAMPLING_BYTES = 4 << 30  # on the card beside the weights while samples are drawn: activations, the decoder


class Placed:
    """A transformer with its weights in their places. `to` moves what is on the device, for hosts that need room."""

    def __init__(self, model: LTXTransformer, device: torch.device, scratch: Path, checkpoint: Path | str) -> None:
        self.model, self.device = model, device
        self.streamer: BlockStreamer | ShardedBlocks | None = None
        self._scratch, self._checkpoint = scratch, checkpoint
        self._source: FileBlocks | None = None
        self._buffers: HostBuffers | None = None

    @property
    def shards(self) -> ShardedBlocks | None:
        """The blocks, where they are shared out over the processes of the run."""
        return self.streamer if isinstance(self.streamer, ShardedBlocks) else None

    @property
    def device_bytes(self) -> int:
        """Bytes of weights on the device: resident blocks, everything outside the blocks, and the slots."""
        here = (t for t in (*self.model.parameters(), *self.model.buffers()) if t.device.type == self.device.type)
        return sum(local_part(t).nbytes for t in here) + (0 if self.streamer is None else self.streamer.slot_bytes)

    @property
    def locked_bytes(self) -> int:
        """RAM of swapped blocks and of inputs of blocks that is locked."""
        blocks = 0 if self._buffers is None else self._buffers.locked_bytes
        store = self.model.activations
        return blocks + (store.locked_bytes if isinstance(store, ActivationStore) else 0)

    def stream(self, memory: MemorySettings) -> None:
        """Let as many blocks as `memory` says come and go from now on, the others stay. Nothing may be running."""
        blocks = list(self.model.transformer_blocks)
        if memory.shard:
            self.streamer = self.model.residence = ShardedBlocks(blocks, self.device)
            return
        numbers = spread(len(blocks), memory.blocks_to_swap or 0)
        if self.streamer is not None:
            assert self._source is None or set(self.streamer.streamed) <= set(numbers), "blocks cannot leave a file"
            self.streamer.close()
            if self._buffers is not None:
                self._buffers.close()
        self.streamer = self._buffers = self.model.residence = None
        if not numbers:
            return
        source: Source | None = self._source
        if memory.swap_from == "file" and self._source is None:
            source = self._source = FileBlocks(self._scratch, self._checkpoint, _ranges(self._checkpoint))
        if source is None:
            most = float("inf") if memory.pinned_gb is None else memory.pinned_gb * 2**30
            source = self._buffers = HostBuffers(bool(memory.pinned) and self.device.type == "cuda", most)
        self.streamer = BlockStreamer(
            blocks,
            numbers,
            self.device,
            ahead=memory.swap_ahead,
            source=source,
        )
        self.model.residence = self.streamer

    def admit(self, number: int) -> None:
        """A block has been read: it goes where it belongs. Does nothing where it is there, or not read yet."""
        if self.streamer is None or self.streamer.admitted(number):
            return
        block = self.model.transformer_blocks[number]
        if not any(t.is_meta for t in (*block.parameters(), *block.buffers())):
            self.streamer.admit(number)

    def adapted(self) -> None:
        """Call it when layers were put round linears: what is trained belongs on the device."""
        if self.streamer is not None:
            self.streamer.move_others(self.model)

    @contextlib.contextmanager
    def block_there(self, number: int) -> Iterator[None]:
        """While entered, the weights of block `number` can be read, wherever they wait otherwise."""
        with contextlib.nullcontext() if self.streamer is None else self.streamer.visiting(number, backward=False):
            yield

    def work_as(self, memory: MemorySettings) -> list[str]:
        """Everything of `memory` but where the weights are. Returns what could not be done, as sentences."""
        model, count = self.model, len(self.model.transformer_blocks)
        swapped = set() if self.streamer is None else set(self.streamer.streamed)
        if not memory.gradient_checkpointing:
            chosen: set[int] = set()
        elif memory.recompute_blocks is None:
            chosen = set(range(count))
        else:
            # those that are swapped first, since they must; then from the front: what is kept last is needed first
            rest = [number for number in range(count) if number not in swapped]
            chosen = set(rest[: max(0, memory.recompute_blocks - len(swapped))])
        model.set_recompute(chosen | swapped)
        store = None
        if memory.offload_activations:
            store = ActivationStore(self.device, pinned=bool(memory.pinned))
        model.activations = store
        notes = [
            model.set_attention(memory.attention),
            model.set_split(memory.split_attention, memory.split_attention_size, memory.split_attention_target),
            model.set_ff_chunk(memory.ff_chunk, memory.ff_chunk_target),
            model.set_compile(memory.compile),
        ]
        return [*(note for note in notes if note), *([] if self.streamer is None else self.streamer.notes)]

    def to(self, device: torch.device | str) -> None:
        """Leave the device to others, or come back to it. Blocks that come and go stay where they wait."""
        away = torch.device(device).type != self.device.type
        if self.streamer is None:
            self.model.to(device)
            return
        if away:
            self.streamer.park()
        self.streamer.move_others(self.model, device)
        if not away:
            self.streamer.unpark()

    @contextlib.contextmanager
    def aside(self, needed: int, poll: Callable[[], None]) -> Iterator[None]:
        """A context in which `needed` bytes are free on the device, as far as leaving it can make them so.

        First the slots of swapped blocks are given back, which costs nothing, then resident blocks go to RAM, no more
        of them than must, then what is left. `poll` is called before each block; what it raises ends it.
        """
        left, moved = False, []
        try:
            if self.device.type == "cuda" and not _free(self.device, needed):
                left = True
                if self.streamer is not None:
                    self.streamer.park()
                enough = _free(self.device, needed)
                for number, block in enumerate(self.model.transformer_blocks):
                    if not enough and (self.streamer is None or self.streamer.resident(number)):
                        poll()
                        moved.append(block)
                        _move(block, torch.device("cpu"))
                        enough = _free(self.device, needed)
                if not enough:
                    self.to("cpu")
                    torch.cuda.empty_cache()
            yield
        finally:
            for block in moved:
                _move(block, self.device)
            if left:
                self.to(self.device)

    def close(self) -> None:
        """Let go of everything; the model cannot be used any more."""
        if self.streamer is not None:
            self.streamer.close()
        for source in (self._source, self._buffers):
            if source is not None:
                source.close()
        self.streamer = self._source = self._buffers = self.model.residence = self.model.activations = None


def load_placed(
    config: RunConfig,
    memory: MemorySettings,
    device: torch.device,
    events: Events,
    scratch: Path,
    loftq: Loftq | None = None,
    activations: Mapping[str, Tensor] | None = None,
) -> Placed:
    """Read the transformer of `config`, quantize it on arrival and put each block in its place.

    `memory` has every field filled (see the plan). `scratch` is a folder for what cannot wait in the checkpoint.
    `loftq` and `activations` as in load_transformer. Raises CheckpointError, ConfigError, OutOfMemory.
    """
    checkpoint = config.need("model.checkpoint")
    placed: list[Placed] = []
    last: int | None = None

    def built(model: LTXTransformer) -> None:
        placed.append(Placed(model, device, scratch, checkpoint))
        placed[0].stream(memory)

    def home(path: str) -> torch.device:
        number = _number(path)
        streamer = placed[0].streamer
        return torch.device("cpu") if streamer and number is not None and not streamer.resident(number) else device

    def progress(done: int, total: int, name: str) -> None:
        nonlocal last
        number = _number(name)
        if last is not None and number != last:
            placed[0].admit(last)
        last = number
        events.progress(done, total, f"{done / 2**30:.1f} of {total / 2**30:.1f} GB")
        events.check_stop()

    try:
        load_transformer(
            checkpoint,
            config.model.mode,
            DTYPES[config.model.precision],
            device,
            on_progress=progress,
            quant=config.quant,
            home=home,
            loftq=loftq,
            activations=activations,
            on_built=built,
        )
        for number in range(len(placed[0].model.transformer_blocks)):
            placed[0].admit(number)
    except BaseException:
        for one in placed:
            one.close()
        raise
    return placed[0]


def fit_for_sampling(config: RunConfig, device: torch.device) -> MemorySettings:
    """Memory settings for drawing samples alone: as many blocks swapped as must be, by what is free on the card now.

    What the user set is kept. Reads the header of the checkpoint only.
    """
    memory = config.memory
    swap = memory.blocks_to_swap
    if swap is None:
        swap = 0
        if device.type == "cuda" and memory.fit != "custom":
            block, outside, blocks = block_sizes(config)
            stay = (torch.cuda.mem_get_info(device)[0] - SAMPLING_BYTES - outside) // block
            if stay < blocks:
                swap = blocks - max(1, stay - max(2, memory.swap_ahead + 1))  # the slots take the room of some blocks
    changes = {"blocks_to_swap": swap, "pinned": bool(memory.pinned), "offload_activations": False, "compile": False}
    changes["shard"] = False  # there is one process
    if memory.swap_from == "auto":
        changes["swap_from"] = "ram"
    return memory.model_copy(update=changes)


def block_sizes(config: RunConfig) -> tuple[int, int, int]:
    """Bytes of one block and of what is outside of the blocks, as they will be stored, and the number of blocks."""
    with TensorFile(config.need("model.checkpoint")) as file:
        model, stored = transformer_config(file), stored_as(file)
    format = stored or ("none" if config.quant.format == "auto" else config.quant.format)
    # nothing is trained while samples are drawn alone
    config = config.model_copy(update={"train": config.train.model_copy(update={"what": "lora"})})
    block, outside = frozen_bytes(meta_model(model, config, format, 1)[0])
    return block, outside, model.num_layers


def _ranges(checkpoint: Path | str) -> Ranges:
    """Where the tensors of each block stand in the file."""
    found: dict[int, list[tuple[int, int]]] = {}
    with TensorFile(checkpoint) as file:
        prefix = transformer_prefix(file.tensors) or ""
        for name, info in file.tensors.items():
            number = _number(name[len(prefix) :]) if name.startswith(prefix) else None
            if number is not None and info.nbytes:
                found.setdefault(number, []).append((info.offset, info.nbytes))
    return lambda number: found.get(number, ())


def multiply_low(model: nn.Module, choice: str, tokens: int, device: torch.device) -> str | None:
    """Multiply in 8 bits where `choice` (quant.matmul) says so; auto measures on `tokens` rows. A sentence, or None."""
    found = [module for module in model.modules() if isinstance(module, QuantLinear) and has_matmul(module)]
    if choice == "off":
        return None
    if not found:
        return f"quant.matmul is {choice}, but the base is not stored in a format that can be multiplied in 8 bits."
    widest = max(found, key=lambda linear: linear.in_features * linear.out_features)
    if choice == "auto" and not faster_matmul(widest, tokens, device):
        return f"Products stay in {widest.compute_dtype}: 8 bits are not faster here for {tokens} tokens."
    return f"Products in 8 bits in {set_matmul(model, True)} layers."


def read_slowly(model: nn.Module, device: torch.device) -> str | None:
    """A sentence where a card reads the nf4 weights of `model` without the kernel that is made for it."""
    layer = next((module for module in model.modules() if isinstance(module, Nf4)), None)
    if device.type != "cuda" or layer is None or not (why := why_slow(layer, device.type)):
        return None
    return (
        f"nf4 weights are read without the kernel of bitsandbytes, which {why}: a step takes about 1.3 times as long. "
        "The results are the same."
    )


def _move(block: nn.Module, device: torch.device) -> None:
    block.to(device)


def _free(device: torch.device, needed: int) -> bool:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0] >= needed


def _number(path: str) -> int | None:
    """The block that a dotted path belongs to; None outside the blocks."""
    return int(path.split(".")[1]) if path.startswith(f"{BLOCKS}.") else None
