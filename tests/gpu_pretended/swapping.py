"""Swapped blocks and layers on a pretended card: real in RAM, of sizes only while they are there.

A tensor object cannot be both, so modules are given other tensors where the program points the same ones at other
memory. Copies by a thread are done at once, since a mode sees its own thread only.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ltx2_train.offload import blocks, copies, host, packing, source
from ltx2_train.weights import text_encoder

Owner = tuple[nn.Module, bool, str, Tensor]  # module, whether it is a parameter, its name, the tensor it was made with


@contextmanager
def swapping() -> Iterator[None]:
    """While entered, blocks of the transformer and layers of Gemma can come to a pretended card and leave it."""
    owners: dict[int, list[Owner]] = {}  # by the id of the tensor, which lives on in its layout
    real = packing.block_layout

    def layout_of(block: nn.Module) -> packing.BlockLayout:
        for module in block.modules():
            for table, is_parameter in ((module._parameters, True), (module._buffers, False)):
                for name, tensor in table.items():
                    if tensor is not None:
                        owners.setdefault(id(tensor), []).append((module, is_parameter, name, tensor))
        return real(block)

    def point(self: packing.BlockLayout, data: Any) -> None:
        for piece, value in zip(self.pieces, data, strict=True):
            for tensor in piece.tensors:
                for module, is_parameter, name, own in owners[id(tensor)]:
                    table = module._parameters if is_parameter else module._buffers
                    if isinstance(value, FakeTensor):
                        table[name] = nn.Parameter(value, requires_grad=False) if is_parameter else value
                    else:
                        own.data = value
                        table[name] = own

    def move_others(self: blocks.BlockStreamer, module: nn.Module, device: Any = None) -> None:
        device = self.device if device is None else torch.device(device)
        known = (number for number in self.streamed if number in self._source)
        held = {id(t) for number in known for piece in self._source.layout(number).pieces for t in piece.tensors}
        for one in module.modules():
            for table in (one._parameters, one._buffers):
                for name, tensor in table.items():
                    if tensor is None or id(tensor) in held or (tensor.is_meta and not isinstance(tensor, FakeTensor)):
                        continue
                    if isinstance(tensor, FakeTensor) == (device.type == "cuda"):
                        continue
                    with torch.no_grad():
                        new = tensor.detach().to(device)
                    parameter = table is one._parameters
                    table[name] = nn.Parameter(new, requires_grad=tensor.requires_grad) if parameter else new

    def submit(self: Any, run: Any, *arguments: Any) -> Future[None]:
        future: Future[None] = Future()
        try:
            future.set_result(run(*arguments))
        except BaseException as error:  # for whoever waits for it
            future.set_exception(error)
        return future

    with ExitStack() as stack:
        for owner in (packing, host, source):
            stack.enter_context(patch.object(owner, "block_layout", layout_of))
        stack.enter_context(patch.object(packing.BlockLayout, "point", point))
        stack.enter_context(patch.object(blocks.BlockStreamer, "move_others", move_others))
        stack.enter_context(patch.object(copies._Worker, "submit", submit))
        stack.enter_context(patch.object(text_encoder, "visit_device", _visit_device))
        yield


def _visit_device(module: nn.Module, device: torch.device) -> None:
    """As the text encoder's own."""
    kept: list[tuple[dict[str, Any], str, Tensor]] = []

    def bring(*_: Any) -> None:
        for one in module.modules():
            for table in (one._parameters, one._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        kept.append((table, name, tensor))
                        new = tensor.detach().to(device, non_blocking=True)
                        table[name] = nn.Parameter(new, requires_grad=False) if table is one._parameters else new

    def release(*_: Any) -> None:
        for table, name, tensor in kept:
            table[name] = tensor
        kept.clear()

    module.register_forward_pre_hook(bring)
    module.register_forward_hook(release, always_call=True)
