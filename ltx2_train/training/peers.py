"""The processes that train one run together, one a card, by accelerate.

All hold the model and the LoRA. Each takes every so-manieth batch of a step, and all step with the mean of their
gradients, so a run learns what one process learns that takes all batches of the step itself. The first process alone
writes, saves and draws; the others wait for it meanwhile.

Gradients are averaged in pieces after the last backward pass of a step, not by DistributedDataParallel: that wraps the
whole model and hooks each parameter, and neither blocks that are computed again nor a step of several backward passes
call them as it expects. What the processes tell each other besides goes over gloo, so that no card is waited for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..config import RunConfig
from ..errors import ConfigError, RunError, Stopped
from ..offload.meeting import PATIENCE, meeting, reason_of
from ..optional import why_missing

T = TypeVar("T")

PIECE = 64 << 20  # bytes of gradients that travel together
LIBRARY = "pip install accelerate"
_DONE, _STOPPED, _FAILED = "done", "stopped", "failed"


class Peers:
    """A process that trains its run alone: nothing is shared, and nobody is waited for."""

    rank, count = 0, 1
    serve: Callable[[Any], object] | None = None  # what the others do when the first one asks them, see `ask`

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.count > 1

    def place(self, device: torch.device) -> torch.device:
        """The device of this process, of those that `device` stands for."""
        return device

    def gather(self, value: T) -> list[T]:
        """What each process has given, in their order."""
        return [value]

    def told(self, value: T) -> T:
        """What the first process has given."""
        return value

    def lead(self, work: Callable[[], T]) -> T | None:
        """The result of `work`, which the first process does while the others wait; None in those.

        Where it was stopped, all are. Raises RunError in the others where it failed.
        """
        return work()

    def ask(self, key: Any) -> None:
        """Within `lead` or `turn`: let the other processes `serve(key)`, while the first does the same itself."""

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """The first process goes through what is inside before the others begin it; as `lead`."""
        yield

    def in_turns(self, work: Callable[[], T]) -> T:
        """The result of `work`, which the processes do one after the other."""
        return work()

    def average(self, parameters: Sequence[nn.Parameter], there: Sequence[bool]) -> None:
        """Make the gradients of `parameters` their mean over all processes. `there`: whether any of them has one."""

    def align(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give `parameters` the values that they have in the first process."""

    def close(self) -> None:
        """Leave the others; nothing can be shared afterwards."""


ALONE = Peers()


class Joined(Peers):
    """One of several processes."""

    def __init__(self, device: torch.device) -> None:
        import torch.distributed as distributed
        from accelerate import PartialState
        from accelerate.utils import broadcast, reduce

        cuda = device.type == "cuda"
        nccl = cuda and distributed.is_nccl_available()  # Windows has none
        if nccl:
            _spare_old_cards()
        try:
            self._state = PartialState(cpu=not cuda, backend="nccl" if nccl else "gloo", timeout=PATIENCE)
            self._words = cast(Any, distributed.new_group(backend="gloo", timeout=PATIENCE))
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise RunError(f"The processes of this run do not find each other: {reason_of(error)}.") from error
        self._distributed: Any = distributed
        self._reduce: Callable[..., Any] = reduce
        self._broadcast: Callable[..., Any] = broadcast
        self.rank, self.count = self._state.process_index, self._state.num_processes

    def place(self, device: torch.device) -> torch.device:
        return torch.device("cuda", self._state.local_process_index) if device.type == "cuda" else device

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        with meeting():
            self._distributed.all_gather_object(found, value, group=self._words)
        return found

    def told(self, value: T) -> T:
        values: list[Any] = [value if self.first else None]
        with meeting():
            self._distributed.broadcast_object_list(values, src=0, group=self._words)
        return values[0]

    def ask(self, key: Any) -> None:
        self.told((key,))

    def lead(self, work: Callable[[], T]) -> T | None:
        with self.turn():
            return work() if self.first else None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        if not self.first:
            ending = self.told(_DONE)
            while isinstance(ending, tuple):
                assert self.serve is not None
                self.serve(ending[0])
                ending = self.told(_DONE)
            if ending == _STOPPED:
                raise Stopped
            if ending == _FAILED:
                raise RunError("The first process of this run has ended. Its own message says why.")
            yield
            return
        try:
            yield
        except Exception as error:
            with contextlib.suppress(RunError):
                self.told(_STOPPED if isinstance(error, Stopped) else _FAILED)
            raise
        self.told(_DONE)

    def in_turns(self, work: Callable[[], T]) -> T:
        found: list[T] = []
        for number in range(self.count):
            if number == self.rank:
                found.append(work())
            self.gather(None)
        return found[0]

    def average(self, parameters: Sequence[nn.Parameter], there: Sequence[bool]) -> None:
        chosen = [one for one, some in zip(parameters, there, strict=True) if some]
        for parameter in chosen:
            if parameter.grad is None:  # no batch of this process reached it
                parameter.grad = torch.zeros_like(parameter)
        for piece in _pieces([cast(Tensor, parameter.grad) for parameter in chosen]):
            _put(piece, self._together(self._reduce, torch.cat([one.reshape(-1) for one in piece]), "mean"))

    def align(self, parameters: Sequence[nn.Parameter]) -> None:
        for piece in _pieces([parameter.detach() for parameter in parameters]):
            _put(piece, self._together(self._broadcast, torch.cat([one.reshape(-1) for one in piece])))

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the others may be gone
            self._distributed.destroy_process_group()
        self._state._reset_state()

    def _together(self, operation: Callable[..., Any], *arguments: Any) -> Tensor:
        with meeting():
            return operation(*arguments)


def started_processes() -> int:
    """How many processes whoever started this one has started for the same work."""
    # a cluster may set the first of them for a single process
    several = "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ
    return int(os.environ["WORLD_SIZE"] or 1) if several else 1


def join_peers(config: RunConfig) -> Peers:
    """The processes that train `config`, as whoever started this one has it.

    Raises ConfigError where their number is not that of train.processes, or several cannot train the run.
    """
    started, wanted = started_processes(), config.train.processes
    if started == 1:
        return ALONE
    if wanted not in (1, started):
        raise ConfigError(
            f"train.processes is {wanted}, and {started} processes were started (accelerate launch, torchrun). Start "
            f"{wanted} of them, or leave train.processes out: it is as many as are started."
        )
    check_processes(config, started)
    return Joined(_device_type(config))


def require_processes(config: RunConfig, peers: Peers) -> None:
    """Raise ConfigError where work that one process does was started in several, or several are asked for."""
    if peers.several:
        return
    if (started := started_processes()) > 1:
        raise ConfigError(
            f"This is one of {started} processes (accelerate launch, torchrun), and only `ltx2-train train` does its "
            "work with several. Start it without them."
        )
    count = config.train.processes
    if count > 1 and config.slider.wanted:
        raise ConfigError(f"train.processes is {count}, and a slider is trained by one process. Leave it out.")
    if count > 1:
        raise ConfigError(
            f"train.processes is {count}, and this is one process: several are started from a terminal, by "
            "`ltx2-train train RUN.toml --processes N` or by accelerate launch, and none inside ComfyUI. Leave "
            "train.processes out to train here."
        )


def check_processes(config: RunConfig, count: int) -> None:
    """Raise ConfigError where `count` processes, two or more, cannot train `config` on this machine."""
    if missing := why_missing("accelerate"):
        raise ConfigError(f"{count} processes need accelerate, which {missing}: {LIBRARY}")
    if not torch.distributed.is_available():
        raise ConfigError(f"There are to be {count} processes, and this torch was built without its distributed part.")
    if config.loss.balance.mode != "none":
        raise ConfigError(
            f"loss.balance.mode is {config.loss.balance.mode}, which follows the batches one after the other, and "
            f"{count} processes take them side by side. Set it to none and loss.audio_weight to what it comes to, or "
            "train with one process."
        )
    if config.memory.shard:
        _check_shards(config)
    device = _device_type(config)
    if device.type == "mps":
        raise ConfigError(f"There are to be {count} processes, and this machine has one card (mps).")
    if device.type == "cuda":
        _check_cards(config, count)


def _check_shards(config: RunConfig) -> None:
    """Raise ConfigError for what does not go with blocks that are shared out over the cards."""
    memory, reason = config.memory, ""
    if config.quant.format not in ("auto", "none"):
        reason = f"quant.format is {config.quant.format}, and only weights as they are can be shared out"
    elif memory.blocks_to_swap:
        reason = f"memory.blocks_to_swap is {memory.blocks_to_swap}, and a block waits in RAM or on the cards"
    elif not memory.gradient_checkpointing:
        reason = "memory.gradient_checkpointing is off, and all blocks have to be recomputed"
    elif memory.recompute_blocks is not None:
        reason = f"memory.recompute_blocks is {memory.recompute_blocks}, and all blocks have to be recomputed"
    elif config.regularizers.wanted:
        reason = "regularizers are on, whose passes are not the same in all processes"
    elif _device_type(config).type == "cuda" and not torch.distributed.is_nccl_available():
        reason = "blocks are gathered by NCCL, which this torch has not (none has on Windows)"
    if reason:
        raise ConfigError(f"memory.shard is on: {reason}. Change the one or the other.")


def check_sharded_batches(config: RunConfig, sizes: Sequence[int]) -> None:
    """Raise ConfigError where batches of these `sizes` may go through the model in parts, more of them in one process
    than in another, while the blocks are shared out."""
    apart = config.model.mode == "av" or bool(config.video.conditions) or bool(config.audio.conditions)
    if config.memory.shard and apart and max(sizes, default=1) > 1:
        raise ConfigError(
            f"memory.shard is on, and a dataset has batch_size = {max(sizes)}: with sounds or references of several "
            "lengths its clips go through the model apart, and the cards would wait for each other. Set batch_size to "
            "1 and train.accumulation higher."
        )


def _check_cards(config: RunConfig, count: int) -> None:
    """Raise ConfigError where the processes of this machine have not a card each."""
    if torch.device("cuda" if config.model.device == "auto" else config.model.device).index is not None:
        raise ConfigError(
            f"model.device is {config.model.device}, one card, and there are {count} processes, each on its own. Set "
            "it to cuda; CUDA_VISIBLE_DEVICES says which cards they take."
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or count)
    cards = torch.cuda.device_count()
    if here > cards:
        raise ConfigError(
            f"There are {here} processes on this machine and {cards} {'card' if cards == 1 else 'cards'}. Start at "
            f"most {cards}: each process needs a card of its own."
        )


def _device_type(config: RunConfig) -> torch.device:
    name = config.model.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        reason = reason_of(error)
        raise ConfigError(f"model.device: {name!r} cannot be used ({reason}). Use auto, cpu or cuda.") from None


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype that are about PIECE bytes together, in their order."""
    piece: list[Tensor] = []
    for tensor in tensors:
        if piece and (piece[0].dtype != tensor.dtype or sum(one.nbytes for one in piece) + tensor.nbytes > PIECE):
            yield piece
            piece = []
        piece.append(tensor)
    if piece:
        yield piece


def _put(tensors: Sequence[Tensor], flat: Tensor) -> None:
    values = flat.split([tensor.numel() for tensor in tensors])
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value.view(tensor.shape))


def _spare_old_cards() -> None:
    """Cards that cannot reach each other directly, with drivers that do not say so, have to be told."""
    from accelerate.utils import check_cuda_p2p_ib_support

    if not check_cuda_p2p_ib_support():
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")
