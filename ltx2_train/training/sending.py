"""How batches get to a card: nobody waits for a copy, and the next batch is there before its step begins.

The thread that reads ahead leaves a batch in locked RAM, from which the card copies by itself. The copy of the next
batch begins with the step before it, on a stream of its own; what computes waits for that stream on the card. One
batch more than the step needs is on the card at any time.

Elsewhere a batch goes to its device when its turn comes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .fit.trial import Rewound
from .ready import Ready


def pinned(ready: Ready) -> Ready:
    """The same in locked RAM; as it is where the system locks none."""
    try:
        return ready.sent(lambda tensor: tensor.contiguous().pin_memory())
    except RuntimeError:  # a copy from ordinary RAM is slower, and right
        return ready


class Ahead(Rewound):
    """The batches of `batches` (see `Batches`) on `device`; those of a step can be had again after `rewind`."""

    def __init__(self, batches: Any, device: torch.device) -> None:
        super().__init__(batches)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: tuple[Ready, _Sent] | None = None

    def __next__(self) -> Ready:
        if self._stream is None:
            return super().__next__().sent(lambda tensor: tensor.to(self._device))
        if self._coming is None:
            ready = super().__next__()
            sent = _Sent(ready, self._device, self._stream)
        else:
            ready, sent = self._coming
            self._coming = None
            self._taken.append(ready)
        here = sent.arrived()
        self._send_next()
        return here

    def rewind(self) -> None:
        if self._coming is not None:
            self._again.insert(0, self._coming[0])
            self._coming = None
        super().rewind()

    def _send_next(self) -> None:
        """Let the next batch begin its way, where it is there and there is room."""
        ready = self._again.pop(0) if self._again else self._batches.poll()
        if ready is None:
            return
        assert self._stream is not None
        try:
            self._coming = ready, _Sent(ready, self._device, self._stream)
        except torch.OutOfMemoryError:  # its turn will come, and with it whatever makes room
            self._again.insert(0, ready)


class _Sent:
    """A batch on its way to a card."""

    def __init__(self, ready: Ready, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device, self._tensors = device, list[Tensor]()
        with torch.cuda.stream(stream):
            self._ready = ready.sent(self._send)
            self._done = stream.record_event()

    def arrived(self) -> Ready:
        """The batch; what is computed from here on waits for it, the caller does not."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._done)
        for tensor in self._tensors:  # made for the other stream, whose allocator must know of this one
            tensor.record_stream(current)
        return self._ready

    def _send(self, tensor: Tensor) -> Tensor:
        here = tensor.to(self._device, non_blocking=True)
        self._tensors.append(here)
        return here
