"""Blocks whose weights are shared out over the processes of a run (FSDP2): each card holds a part of each.

For the time of a visit a block is gathered from all cards, and the next one on the way is asked for meanwhile. Frozen
weights never change, so a part is never sent back. Of a weight that is trained each process moves its part: the
gradient of a block is shared out where its visit ends. The last block stays whole everywhere, since backward begins
there; all others must be recomputed, as swapped blocks must.

torch's `fully_shard` keeps the parts and gathers them. It is called by visits rather than by its own hooks (or those of
accelerate, which are the same): hooks gather a block for its forward pass and once more for its gradients, and a block
that is recomputed has its second forward pass and its gradients within one visit. So each block stands in a module of
its own that is never called.

All processes must visit the same blocks in the same order: a gathering waits for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Visit, move_tensor
from .meeting import meeting


class ShardedBlocks:
    """A residence as BlockStreamer is one, with the cards of the other processes in the place of RAM."""

    slot_bytes = 0  # a gathered block is memory of the allocator, which comes and goes

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.device, self.blocks = device, list(blocks)
        self.streamed = tuple(range(len(self.blocks) - 1))
        self.notes: list[str] = []
        self._mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        self._wholes: dict[int, Any] = {}
        self._users: dict[int, int] = {}
        self._coming: dict[int, Any] = {}
        self._shares: dict[int, BlockShares] = {}

    def take_parts(self, weights: Mapping[str, nn.Parameter]) -> dict[str, OwnPart]:
        """Those of `weights`, by any names, that are shared out are trained from here on, by their parts."""
        taken: dict[str, OwnPart] = {}
        for number, whole in self._wholes.items():
            with meeting():  # what is shared out is settled with the first gathering; nothing else is asked for ahead
                self._asked(number).wait()
            whole.reshard()
            names = {id(one): name for name, one in whole.block.named_parameters()}
            chosen = {name: one for name, one in weights.items() if id(one) in names}
            if not chosen:
                continue
            parts = {name: OwnPart(one, self._mesh.get_group()) for name, one in chosen.items()}
            for one in chosen.values():
                one.requires_grad_(True)
            self._shares[number] = BlockShares(
                whole.block, [names[id(one)] for one in chosen.values()], list(parts.values())
            )
            taken |= parts
        return {name: taken[name] for name in weights if name in taken}

    def shares(self, number: int) -> BlockShares | None:
        """What this process trains of block `number`, None where that is nothing or the whole."""
        return self._shares.get(number)

    def admit(self, number: int) -> None:
        """Take a block that has just been loaded: this process keeps its part of it."""
        from torch.distributed.fsdp import fully_shard

        block = self.blocks[number].to(self.device)
        if not self.resident(number) and number not in self._wholes:
            whole = _Whole(block)
            fully_shard(whole, mesh=self._mesh)
            self._wholes[number] = whole

    def admitted(self, number: int) -> bool:
        """Whether a block needs no `admit` any more."""
        return number in self._wholes

    def resident(self, number: int) -> bool:
        """Whether this process always has all weights of a block."""
        return number == len(self.blocks) - 1

    def move_others(self, module: nn.Module, device: torch.device | str | None = None) -> None:
        """Move what is not shared out of `module` to `device`, by default that of the run."""
        from torch.distributed.tensor import DTensor

        for tensor in (*module.parameters(), *module.buffers()):
            if not isinstance(tensor, DTensor) and not tensor.is_meta:
                move_tensor(tensor, self.device if device is None else device)

    def visiting(self, number: int, backward: bool) -> Visit:
        """A context in which block `number` is whole. May be nested, also for the same block."""
        return Visit(self, number, backward)

    def enter(self, number: int, backward: bool) -> None:
        """Begin a visit; see `visiting`."""
        if number in self._wholes:
            if not self._users.get(number):
                with meeting():
                    (self._coming.pop(number, None) or self._asked(number)).wait()
            self._users[number] = self._users.get(number, 0) + 1
        following = number - 1 if backward else number + 1
        if following in self._wholes and following not in self._coming and not self._users.get(following):
            with meeting():
                self._coming[following] = self._asked(following)

    def leave(self, number: int) -> None:
        """End a visit."""
        if not self._users.get(number):
            return
        self._users[number] -= 1
        if not self._users[number]:
            self._wholes[number].reshard()

    def park(self) -> None:
        """Nothing: one process alone may call it, and what is on its way between two passes is on its way in all."""

    def unpark(self) -> None:
        """As BlockStreamer's: there is nothing to take back."""

    def close(self) -> None:
        """Let go of the blocks."""
        self._coming.clear()
        self._wholes.clear()

    def _asked(self, number: int) -> Any:
        return self._wholes[number].unshard(async_op=True)


class OwnPart:
    """What this process holds of a weight whose rows are shared out: `own` [rows here, ...] is what is trained.

    The rows are cut as by torch.chunk, so the last processes may have fewer, or none. `reached`: whether a batch of
    this process has given the weight a gradient, since it was last asked.
    """

    def __init__(self, weight: nn.Parameter, group: Any) -> None:
        self.own = nn.Parameter(local_part(weight.detach()))
        self.shape, self.reached = weight.shape, False
        self.group, self._rank = group, torch.distributed.get_rank(group)
        self.count = torch.distributed.get_world_size(group)
        self.rows = -(-self.shape[0] // self.count)

    def of(self, whole: Tensor) -> Tensor:
        """The rows here of a tensor as large as the weight."""
        return whole[self._rank * self.rows :][: self.rows].clone()  # the whole is not held by it

    @torch.no_grad()
    def whole(self, own: Tensor) -> Tensor:
        """The tensor of which each process has its rows. All must ask for the same one."""
        padded = own.new_zeros((self.rows, *self.shape[1:]))
        padded[: len(own)] = own
        found = own.new_empty((self.count * self.rows, *self.shape[1:]))
        with meeting():
            torch.distributed.all_gather_into_tensor(found, padded, group=self.group)
        return found[: self.shape[0]]

    def by_process(self, gradient: Tensor | None) -> Tensor:
        """The rows of all processes [count, numbers of a part], filled up with zeros."""
        full = self.own.new_zeros((self.count * self.rows, *self.shape[1:]))
        if gradient is not None:
            self.reached = True
            full[: self.shape[0]] = gradient
        return full.view(self.count, -1)

    def taken(self) -> bool:
        """Whether it has been reached since this was last asked."""
        reached, self.reached = self.reached, False
        return reached


class BlockShares:
    """The parts of the trained weights `names` of `block`; see models/recompute.py."""

    def __init__(self, block: nn.Module, names: Sequence[str], parts: Sequence[OwnPart]) -> None:
        self._block, self._names, self._parts = block, names, parts

    @property
    def own(self) -> list[nn.Parameter]:
        return [part.own for part in self._parts]

    def wholes(self) -> list[nn.Parameter]:
        """Inside a visit: the weights."""
        return [self._block.get_parameter(name) for name in self._names]

    def parted(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """The rows here of the mean of the gradients of all processes, which come here with the same block."""
        rows_of: dict[int, Tensor] = {}
        numbered = list(enumerate(zip(self._parts, gradients, strict=True)))
        for dtype in dict.fromkeys(part.own.dtype for part in self._parts):
            these = [(place, part, one) for place, (part, one) in numbered if part.own.dtype == dtype]
            flat = torch.cat([part.by_process(one) for _, part, one in these], dim=1)
            mine, count = flat.new_empty(flat.shape[1]), len(flat)
            with meeting():
                torch.distributed.reduce_scatter_tensor(mine, flat.view(-1), group=self._parts[0].group)
            pieces = mine.div_(count).split([part.rows * part.shape[1:].numel() for _, part, _ in these])
            for (place, part, _), piece in zip(these, pieces, strict=True):
                rows_of[place] = piece.view(part.rows, *part.shape[1:])[: len(part.own)]
        return [rows_of[place] for place, _ in numbered]


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`: all of it, unless it is shared out."""
    part: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


class _Whole(nn.Module):
    """Holds a block for `fully_shard`; it is never called."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
