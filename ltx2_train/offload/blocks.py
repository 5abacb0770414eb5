"""Blocks whose frozen weights wait in RAM or in a file and visit the device when it is their turn.

A few slots of device memory, each as large as the largest streamed block, are all that the streamed blocks take there.
While one block computes, the next ones on the way are copied in:

    forward of a training step   0 1 2 ... n-1, then backward
    backward                     n-1 ... 1 0, then the next step's forward
    forward without gradients    0 1 2 ... n-1, then from 0 again

The slot that is needed last on that way is the one given up, so the blocks at a turn are found where they are. Which of
the two forwards it is shows at the last block, which is never streamed; whether gradients are on says nothing before,
since a block that is to be recomputed runs without. Until then a turn is expected, for which nothing is given up too
early. Weights never change, so nothing is ever copied back.

Outside a visit the tensors of a streamed block are what its source keeps (RAM, or stand-ins of NaN for a file), so a
use that forgot the visit fails on the device mismatch instead of reading another block's weights. Not so a graph: what
autograd keeps of a visit may be a view of the slot. While gradients are wanted, a streamed block must be one that is
recomputed, its graph made and used within one visit; `resident` lets the model check that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .copies import Slot, Source, copies_to, wait_for_slot
from .host import HostBuffers
from .packing import frozen


def spread(total: int, swapped: int) -> list[int]:
    """Which of `total` blocks are streamed: `swapped` of them, evenly, never the last one, where backward begins.

    Raises ConfigError where there are not so many.
    """
    if not 0 <= swapped <= total - 1:
        raise ConfigError(
            f"memory.blocks_to_swap is {swapped}: {swapped} of {total} blocks cannot be swapped. At least one block "
            f"stays on the card, so at most {total - 1}. Set memory.blocks_to_swap to 0..{total - 1}."
        )
    return [(2 * i + 1) * (total - 1) // (2 * swapped) for i in range(swapped)]


def slot_count(swapped: int, ahead: int) -> int:
    """How many slots `swapped` blocks pass through where `ahead` are fetched beforehand."""
    return min(max(2, ahead + 1), swapped)


class BlockStreamer:
    """Brings the frozen tensors of the blocks numbered `streamed` to `device` for the time of a visit.

    Everything else of the blocks is moved to `device` for good, trainable parameters of streamed blocks among it. A
    block whose tensors are still on the meta device is left alone until `admit` is called for it; the others are
    admitted at once. `ahead` blocks are fetched beforehand; each takes a slot. `pinned` locks the RAM of streamed
    blocks (CUDA only). A `source` given is filled by `admit` and not closed here. `poison` fills each slot with ones
    (NaN) before it is used again, for tests.

    `copies` and `bytes_copied` count what was sent to the device. `notes` are sentences for the user.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        streamed: Sequence[int],
        device: torch.device | str,
        *,
        pinned: bool = False,
        ahead: int = 1,
        source: Source | None = None,
        poison: bool = False,
    ) -> None:
        assert ahead >= 1, ahead
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            # the thread that copies has a current device of its own
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.blocks, self.streamed = list(blocks), tuple(sorted(set(streamed)))
        self._is_streamed = frozenset(streamed)
        assert all(0 <= number < len(self.blocks) - 1 for number in self.streamed), self.streamed
        self.copies = self.bytes_copied = 0
        self.parked = False
        self._owns_source = source is None
        self._source: Source = HostBuffers(pinned and self.device.type == "cuda") if source is None else source
        self._engine = copies_to(self.device, self._source)
        self._count = slot_count(len(self.streamed), ahead)
        self._poison = poison
        self._slots: list[Slot] = []
        self._where: dict[int, Slot] = {}
        self._views: dict[tuple[int, int], list[Tensor]] = {}
        self._routes: dict[tuple[int, bool, bool], list[int]] = {}
        for number, block in enumerate(self.blocks):
            if number in self._source or not any(t.is_meta for t in (*block.parameters(), *block.buffers())):
                self.admit(number)

    @property
    def notes(self) -> list[str]:
        """What the user should know, such as RAM that could not be locked."""
        return [*self._source.notes, *self._engine.notes]

    @property
    def slot_bytes(self) -> int:
        """Device memory of all slots together."""
        return self._count * max((self._source.size(number) for number in self.streamed), default=0)

    def admit(self, number: int) -> None:
        """Take a block that has just been loaded: its weights go where they belong, and their old memory is free."""
        block = self.blocks[number]
        if number in self._is_streamed:
            if number not in self._source:
                assert not any(t.is_meta for t in frozen(block)), f"block {number} is not loaded"
                self._source.add(number, block)
            self.move_others(block)
        else:
            block.to(self.device)

    def admitted(self, number: int) -> bool:
        """Whether a block needs no `admit` any more: it is resident, or its source has it."""
        return number not in self._is_streamed or number in self._source

    def resident(self, number: int) -> bool:
        """Whether the weights of a block are always on the device."""
        return number not in self._is_streamed

    def move_others(self, module: nn.Module, device: torch.device | str | None = None) -> None:
        """Move what is not streamed of `module` (the whole model, or a part) to `device`, by default the streamer's.

        In place of `module.to(device)`, which would bring the streamed weights along. Call it again after putting
        LoRA around the layers of a streamed block.
        """
        device = self.device if device is None else torch.device(device)
        known = (number for number in self.streamed if number in self._source)
        held = {id(t) for number in known for piece in self._source.layout(number).pieces for t in piece.tensors}
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in held and not tensor.is_meta:
                move_tensor(tensor, device)

    def visiting(self, number: int, backward: bool) -> Visit:
        """A context in which block `number` can compute on the device. May be nested, also for the same block.

        In backward one visit should cover both the replay of the block and its gradients.
        """
        return Visit(self, number, backward)

    def enter(self, number: int, backward: bool) -> None:
        """Begin a visit; see `visiting`."""
        if not self.streamed:
            return
        if self.parked:
            assert number not in self._is_streamed, (
                f"block {number} is streamed, and its slots were given back by park()"
            )
            return
        if not self._slots:
            self._allocate()
        last = number == len(self.blocks) - 1
        route = self._route(number, backward, around=last and not backward and not torch.is_grad_enabled())
        if number not in self._is_streamed:
            self._prefetch(route)
            return
        slot = self._fetch(number, route, required=True)
        assert slot is not None
        slot.users += 1
        try:
            self._prefetch(route)
            self._engine.wait(slot)
        except BaseException:
            slot.users -= 1
            if slot.users == 0:
                self._forget(slot)
            raise
        if slot.users == 1:
            self._source.layout(number).point(self._views_of(slot, number))

    def leave(self, number: int) -> None:
        """End a visit."""
        slot = self._where.get(number)
        if slot is None or slot.users == 0:  # resident, or `reset` inside the visit
            return
        slot.users -= 1
        if slot.users == 0:
            self._engine.release(slot)
            self._source.layout(number).point(self._source.home(number))

    def reset(self) -> None:
        """Forget what is on the device and end all visits, after a run that was cut off."""
        self._engine.drain()
        for slot in self._slots:
            if slot.users:
                assert slot.block is not None
                slot.users = 0
                self._source.layout(slot.block).point(self._source.home(slot.block))
                self._engine.release(slot)
            self._forget(slot)

    def park(self) -> None:
        """Give the memory of the slots back; no streamed block can be visited until `unpark`."""
        assert not any(slot.users for slot in self._slots), "park() inside a visit"
        self.reset()
        self._slots, self._views = [], {}
        self.parked = True

    def unpark(self) -> None:
        """Take the memory of the slots, at once rather than at the first visit. Does nothing where they are there."""
        self.parked = False
        if self.streamed and not self._slots:
            self._allocate()

    def close(self) -> None:
        """End all visits, give back slots, threads and locked RAM; the streamer is of no use afterwards.

        The weights stay in RAM as the tensors of the blocks, unless a file is their source.
        """
        self.reset()
        self.park()
        self._engine.close()
        if self._owns_source:
            self._source.close()

    def _allocate(self) -> None:
        missing = [number for number in self.streamed if number not in self._source]
        assert not missing, f"blocks {missing} are streamed but were never admitted"
        size = max(self._source.size(number) for number in self.streamed)
        with torch.inference_mode(False):  # sampling may come first, and training must be able to use them
            self._slots = [
                Slot(torch.empty(size, dtype=torch.uint8, device=self.device), index) for index in range(self._count)
            ]
        for slot in self._slots:
            self._engine.prepare(slot)

    def _route(self, number: int, backward: bool, around: bool) -> list[int]:
        """All streamed blocks in the order of their next use, when block `number` is being entered.

        `around` goes from the last block to the first instead of turning there.
        """
        key = (number, backward, around)
        if key not in self._routes:
            up, down = list(self.streamed), list(reversed(self.streamed))
            if backward:
                way = [n for n in down if n <= number] + up
            else:
                way = [n for n in up if n >= number] + (up if around else down)
            self._routes[key] = list(dict.fromkeys(way))
        return self._routes[key]

    def _prefetch(self, route: list[int]) -> None:
        for number in route[: self._count]:
            if self._fetch(number, route, required=False) is None:
                return

    def _fetch(self, number: int, route: list[int], required: bool) -> Slot | None:
        """The slot that block `number` is in or on the way to; None where nothing can make room for it."""
        if number in self._where:
            return self._where[number]
        order = {block: place for place, block in enumerate(route)}
        free = [slot for slot in self._slots if slot.users == 0]
        if free:
            # an empty slot first, else the one whose block is needed last
            slot = max(free, key=lambda slot: len(order) if slot.block is None else order[slot.block])
            worth = slot.block is None or order[slot.block] > order[number]
        if not free or not (required or worth):
            assert not required, f"block {number} has no slot: blocks {sorted(self._where)} are all being visited"
            return None
        self._forget(slot)
        self._engine.start(slot, number, self._poison)
        slot.block = number
        self._where[number] = slot
        self.copies += 1
        self.bytes_copied += self._source.size(number)
        return slot

    def _forget(self, slot: Slot) -> None:
        wait_for_slot(slot)
        if slot.block is not None:
            del self._where[slot.block]
            slot.block = None

    def _views_of(self, slot: Slot, number: int) -> list[Tensor]:
        key = (slot.index, number)
        if key not in self._views:
            with torch.inference_mode(False):
                self._views[key] = self._source.layout(number).views(slot.memory)
        return self._views[key]


def move_tensor(tensor: Tensor, device: torch.device | str) -> None:
    """Move a parameter or a buffer to `device` as it is, with its gradient."""
    tensor.data = tensor.data.to(device)
    if tensor.grad is not None:
        tensor.grad.data = tensor.grad.data.to(device)


class Visited(Protocol):
    """Whose blocks are visited."""

    def enter(self, number: int, backward: bool) -> None: ...
    def leave(self, number: int) -> None: ...


class Visit:
    """The time in which a block computes on the device."""

    __slots__ = ("_backward", "_number", "_streamer")

    def __init__(self, streamer: Visited, number: int, backward: bool) -> None:
        self._streamer, self._number, self._backward = streamer, number, backward

    def __enter__(self) -> None:
        self._streamer.enter(self._number, self._backward)

    def __exit__(self, *error: Any) -> None:
        self._streamer.leave(self._number)
