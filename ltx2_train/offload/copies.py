"""How the bytes of a block get from their source into a slot on the device.

Three ways, one protocol:
 - CUDA: a stream of its own, beside the one that computes. From locked RAM the card copies by itself; from ordinary
   RAM or a file one thread fills a few small locked buffers in turn, so that the thread that computes never waits for
   a read, and reading and copying overlap.
 - CPU: one thread copies.
 - others (MPS): copied at once, in the calling thread.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .packing import BlockLayout

STAGING_BUFFERS, STAGING_BYTES = 3, 64 << 20


class Source(Protocol):
    """Where streamed blocks wait."""

    notes: list[str]

    def __contains__(self, number: int) -> bool: ...
    def add(self, number: int, block: nn.Module) -> None: ...
    def layout(self, number: int) -> BlockLayout: ...
    def home(self, number: int) -> list[Tensor]: ...
    def size(self, number: int) -> int: ...
    def direct(self, number: int) -> Tensor | None: ...
    def read_into(self, number: int, target: Tensor, offset: int = 0) -> None: ...
    def close(self) -> None: ...


@dataclass(eq=False)
class Slot:
    """Memory of the device for one block at a time, and who is in it."""

    memory: Tensor  # uint8 [size of the largest block]
    index: int
    block: int | None = None
    users: int = 0  # open visits
    job: Future[None] | None = None  # the thread's part of the last copy
    ready: Any = None  # CUDA: the copy is done
    released: Any = None  # CUDA: what read the slot is done


class Copies(Protocol):
    """Fills slots. `start` may return before the copy is done; `wait` makes what is computed next see it."""

    notes: list[str]

    def prepare(self, slot: Slot) -> None: ...
    def start(self, slot: Slot, number: int, poison: bool) -> None: ...
    def wait(self, slot: Slot) -> None: ...
    def release(self, slot: Slot) -> None: ...
    def drain(self) -> None: ...
    def close(self) -> None: ...


def copies_to(device: torch.device, source: Source) -> Copies:
    """The way to `device`."""
    if device.type == "cuda":
        return CudaCopies(device, source)
    return ThreadCopies(source) if device.type == "cpu" else PlainCopies(source)


class ThreadCopies:
    """To a slot in RAM, by one thread."""

    def __init__(self, source: Source) -> None:
        self.notes: list[str] = []
        self._source = source
        self._worker = _Worker()

    def prepare(self, slot: Slot) -> None:
        pass

    def start(self, slot: Slot, number: int, poison: bool) -> None:
        wait_for_slot(slot)
        if poison:
            slot.memory.fill_(0xFF)
        part = slot.memory[: self._source.size(number)]
        slot.job = self._worker.submit(self._source.read_into, number, part)

    def wait(self, slot: Slot) -> None:
        if slot.job is not None:
            slot.job.result()

    def release(self, slot: Slot) -> None:
        pass  # whoever read it has finished when the visit ends

    def drain(self) -> None:
        self._worker.drain()

    def close(self) -> None:
        self._worker.close()


class PlainCopies:
    """To a slot on any device, at once."""

    def __init__(self, source: Source) -> None:
        self.notes: list[str] = []
        self._source = source

    def prepare(self, slot: Slot) -> None:
        pass

    def start(self, slot: Slot, number: int, poison: bool) -> None:
        if poison:
            slot.memory.fill_(0xFF)
        size = self._source.size(number)
        for start in range(0, size, STAGING_BYTES):
            part = torch.empty(min(STAGING_BYTES, size - start), dtype=torch.uint8)
            self._source.read_into(number, part, start)
            slot.memory[start : start + part.numel()].copy_(part)

    def wait(self, slot: Slot) -> None:
        pass

    def release(self, slot: Slot) -> None:
        pass

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class CudaCopies:
    """To a slot on a card, on a stream of its own.

    A copy waits for the event that the slot's last reader left; what is computed waits for the event of the copy. The
    thread that launches kernels waits for neither.
    """

    def __init__(self, device: torch.device, source: Source) -> None:
        self.notes: list[str] = []
        self._device, self._source = device, source
        self._stream = torch.cuda.Stream(device)
        self._worker = _Worker()
        self._staging: list[tuple[Tensor, Any]] = []
        self._turn = 0

    def prepare(self, slot: Slot) -> None:
        slot.ready, slot.released = torch.cuda.Event(), torch.cuda.Event()
        # the allocator may hand out memory that earlier work of this stream still uses
        slot.released.record(torch.cuda.current_stream(self._device))

    def start(self, slot: Slot, number: int, poison: bool) -> None:
        wait_for_slot(slot)
        if poison:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(slot.released)
                slot.memory.fill_(0xFF)
        memory = self._source.direct(number)
        if memory is None:
            slot.job = self._worker.submit(self._staged, slot, number)
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.released)
            slot.memory[: memory.numel()].copy_(memory, non_blocking=True)
            slot.ready.record(self._stream)

    def wait(self, slot: Slot) -> None:
        if slot.job is not None:
            slot.job.result()  # the copy has been issued, so its event is the right one
        torch.cuda.current_stream(self._device).wait_event(slot.ready)

    def release(self, slot: Slot) -> None:
        slot.released.record(torch.cuda.current_stream(self._device))

    def drain(self) -> None:
        """Until nothing is under way, and nothing that reads a slot either. The staging buffers are given back."""
        self._worker.drain()
        torch.cuda.synchronize(self._device)
        self._staging = []

    def close(self) -> None:
        self.drain()
        self._worker.close()

    def _staged(self, slot: Slot, number: int) -> None:
        """In the thread: the block in parts through the staging buffers."""
        size = self._source.size(number)
        with torch.cuda.stream(self._stream):  # and on its device, which is not this thread's otherwise
            if not self._staging:
                self._staging = [self._buffer(min(STAGING_BYTES, size)) for _ in range(STAGING_BUFFERS)]
            step = self._staging[0][0].numel()
            self._stream.wait_event(slot.released)
            for start in range(0, size, step):
                buffer, free = self._staging[self._turn]
                self._turn = (self._turn + 1) % STAGING_BUFFERS
                free.synchronize()
                part = buffer[: min(step, size - start)]
                self._source.read_into(number, part, start)
                slot.memory[start : start + part.numel()].copy_(part, non_blocking=True)
                free.record(self._stream)
            slot.ready.record(self._stream)

    def _buffer(self, size: int) -> tuple[Tensor, Any]:
        event = torch.cuda.Event(blocking=True)
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True), event
        except RuntimeError as error:
            self.notes.append(
                f"The system did not lock {size / 1e6:.0f} MB of RAM for copies to the card "
                f"({str(error).splitlines()[0]}); they are slower."
            )
            return torch.empty(size, dtype=torch.uint8), event


def wait_for_slot(slot: Slot) -> None:
    """Until the thread has nothing more to do with `slot`, however that went."""
    if slot.job is not None:
        with contextlib.suppress(Exception):
            slot.job.result()
        slot.job = None


class _Worker:
    """One thread, started when it is first needed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, run: Any, *arguments: Any) -> Future[None]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="ltx2-blocks")
        return self._pool.submit(run, *arguments)

    def drain(self) -> None:
        if self._pool is not None:
            self._pool.submit(int).result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
