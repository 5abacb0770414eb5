"""Tensors that backward needs again, kept in RAM meanwhile.

Backward asks in the reverse order of forward, so when one is asked for, those put just before it are sent for.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from .host import HostMemory


class Handle:
    """A tensor that is kept in a store. Its RAM is given back by `release` or when the handle is dropped."""

    def __init__(self, store: ActivationStore, memory: HostMemory, tensor: Tensor, previous: Any) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.asked = False
        self._store, self._memory, self._previous = store, memory, previous
        self._back: Tensor | None = None
        self._ready: Any = None

    def release(self) -> None:
        """Give the RAM back; the tensor cannot be asked for any more."""
        memory, self._memory = self._memory, None
        back, self._back = self._back, None
        if memory is not None:
            self._store._take_back(memory, back)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the end of the process there may be nothing left to call
            self.release()


class ActivationStore:
    """Keeps tensors of `device` in RAM, locked if `pinned` (CUDA only), in buffers that are used again.

    On CUDA the copies run beside the computation on a stream of their own, both ways on one, so that they keep their
    order and a buffer can be given to the next tensor at once. `ahead` tensors are fetched before they are asked for.
    `puts`, `gets` and `bytes_copied` (to RAM) count. `notes` are sentences for the user.
    """

    def __init__(self, device: torch.device | str, pinned: bool = False, ahead: int = 2) -> None:
        self.device, self.notes = torch.device(device), []
        self.puts = self.gets = self.bytes_copied = 0
        self._ahead = ahead
        self._cuda = self.device.type == "cuda"
        self._pinned = pinned and self._cuda
        self._stream = torch.cuda.Stream(self.device) if self._cuda else None
        self._free: list[HostMemory] = []
        self._count = self._bytes = 0
        self._lock = threading.RLock()  # handles may be dropped anywhere, also by the collector
        self._last: Any = _nothing

    @property
    def buffers(self) -> int:
        """How many buffers there are, in use or not."""
        return self._count

    @property
    def host_bytes(self) -> int:
        """RAM of all buffers, in use or not."""
        return self._bytes

    @property
    def locked_bytes(self) -> int:
        """Of `host_bytes` those that are locked."""
        return self._bytes if self._pinned else 0

    def put(self, tensor: Tensor) -> Handle:
        """Keep the values of `tensor`, whose memory is free once they are copied and nobody else holds it."""
        assert tensor.device.type == self.device.type, (tensor.device, self.device)
        tensor = tensor.detach()
        memory = self._take(tensor.numel() * tensor.element_size())
        handle = Handle(self, memory, tensor, self._last)
        self._last = weakref.ref(handle)
        host = _view(memory, tensor.shape, tensor.dtype)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                host.copy_(tensor, non_blocking=memory.pinned)
            tensor.record_stream(self._stream)  # else its memory could be given away before it is read
        else:
            host.copy_(tensor)
        self.puts += 1
        self.bytes_copied += tensor.numel() * tensor.element_size()
        return handle

    def get(self, handle: Handle) -> Tensor:
        """The values of a handle in a new contiguous tensor on the device. May be asked for again."""
        self._fetch(handle)
        back, handle._back, handle.asked = handle._back, None, True
        ready = handle._ready
        self._fetch_before(handle)
        if self._cuda:
            torch.cuda.current_stream(self.device).wait_event(ready)
        self.gets += 1
        assert back is not None
        return back

    def close(self) -> None:
        """Free the buffers that are not in use. The store can still be used."""
        with self._lock:
            for memory in self._free:
                self._drop(memory)
            self._free = []

    def _fetch_before(self, handle: Handle) -> None:
        left, earlier = self._ahead, handle._previous()
        while left and earlier is not None:
            if not earlier.asked and earlier._memory is not None:
                self._fetch(earlier)
                left -= 1
            earlier = earlier._previous()

    def _fetch(self, handle: Handle) -> None:
        if handle._back is not None:
            return
        assert handle._memory is not None, "the handle was released"
        host = _view(handle._memory, handle.shape, handle.dtype)
        back = torch.empty(handle.shape, dtype=handle.dtype, device=self.device)
        if self._stream is not None:
            # what used this memory before has to be done with it
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                back.copy_(host, non_blocking=handle._memory.pinned)
                handle._ready = self._stream.record_event()
        else:
            back.copy_(host)
        handle._back = back

    def _take(self, nbytes: int) -> HostMemory:
        with self._lock:
            fitting = [memory for memory in self._free if memory.bytes.numel() >= nbytes]
            if fitting:
                memory = min(fitting, key=lambda memory: memory.bytes.numel())
                self._free.remove(memory)
                return memory
            if self._free:  # one that is too small makes way, so there are never more than were in use at once
                memory = max(self._free, key=lambda memory: memory.bytes.numel())
                self._free.remove(memory)
                self._drop(memory)
            memory = HostMemory(nbytes, self._pinned)
            if memory.note is not None:
                self._pinned = False
                self.notes.append(memory.note)
            self._count += 1
            self._bytes += nbytes
            return memory

    def _take_back(self, memory: HostMemory, fetched: Tensor | None) -> None:
        if fetched is not None and self._stream is not None:  # fetched in vain, and perhaps still being written
            fetched.record_stream(self._stream)
        with self._lock:
            self._free.append(memory)

    def _drop(self, memory: HostMemory) -> None:
        if self._stream is not None:
            self._stream.synchronize()
        memory.unlock()
        self._count -= 1
        self._bytes -= memory.bytes.numel()


def _view(memory: HostMemory, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor [shape] at the start of `memory`."""
    size = torch.empty((), dtype=dtype).element_size() * shape.numel()
    return memory.bytes[:size].view(dtype).view(shape)


def _nothing() -> None:
    """A weak reference that never had anything."""
