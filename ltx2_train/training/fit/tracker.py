"""Counts the bytes of live tensors while code runs: on a real device, or on the meta device, where nothing is computed.

Every operation that torch dispatches is seen. A storage that an operation returns for the first time is new memory; it
is forgotten when the storage is freed. What was there before (weights, inputs) shows up as an argument first and does
not count. So the peak is exactly that of the tensors: rounding and holes of an allocator come on top, and so does what
a kernel allocates inside itself, which is told in `WORKSPACE`.

Beside memory it counts the bytes that operations read and write, products of large matrices apart: that is the traffic
which bounds everything else in a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
THIN = 64


@dataclass(frozen=True)
class Segment:
    """What happened between two marks: live bytes at its start and end, the most between, traffic, operations."""

    name: str
    start: int
    peak: int
    end: int
    traffic: int
    operations: int

    @property
    def rise(self) -> int:
        """The peak above the start."""
        return self.peak - self.start


class LiveBytes(TorchDispatchMode):
    """While entered, follows the tensors on devices of type `device_type`.

    `mark(name)` ends a segment and begins the one called `name`. With `accelerator` the kernels' own memory on a GPU is
    added, whatever device the tensors are on.
    """

    def __init__(self, device_type: str, accelerator: bool = False) -> None:
        super().__init__()
        self.device_type = device_type
        self.segments: list[Segment] = []
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}
        self._workspaces = WORKSPACE if accelerator else {}
        self._name, self._start, self._top, self._traffic, self._operations = "before", 0, 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((args, kwargs)))
        for tensor in inputs:
            self._see(tensor, new=False)
        out = _by_sizes(func, args, kwargs) if self.device_type == "meta" else None
        if out is None:
            out = func(*args, **kwargs)
        outputs = list(_tensors(out))
        for tensor in outputs:
            self._see(tensor, new=True)
        self._count(func, inputs, outputs)
        need = self._workspaces.get(func)
        if need is not None:
            self._reach(self.live + need(*args))
        return out

    def mark(self, name: str) -> None:
        """The segment so far ends here; `name` begins."""
        self.segments.append(Segment(self._name, self._start, self._top, self.live, self._traffic, self._operations))
        self._name, self._start, self._top, self._traffic, self._operations = name, self.live, self.live, 0, 0

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.mark("after")

    def _see(self, tensor: Tensor, new: bool) -> None:
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if new else 0
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self.live += size
        self._reach(self.live)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size

    def _reach(self, bytes_: int) -> None:
        self._top = max(self._top, bytes_)
        self.peak = max(self.peak, bytes_)

    def _count(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if func in _FREE or getattr(func, "is_view", False):
            return
        self._operations += 1
        if func not in _PRODUCTS or _thin(inputs):
            self._traffic += sum(_size(tensor) for tensor in (*inputs, *outputs) if self._here(tensor))

    def _here(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device_type


def _thin(factors: list[Tensor]) -> bool:
    """Whether a product takes what its bytes take: one side of its last two factors is the rank of a LoRA."""
    return any(min(factor.shape[-2:]) <= THIN for factor in factors[-2:] if factor.ndim == 2)


def _by_sizes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result on the meta device of the operations that a step is made of, from the sizes; None where those do not
    settle it at a glance.

    torch works each out in Python, in up to two milliseconds, and a step has thousands.
    """
    if func in _IN_PLACE:
        return args[0]
    if func in _INTO:
        return kwargs["out"]
    tensors = [value for value in args if isinstance(value, Tensor)]
    if func is _aten.addmm.default:
        _, left, right = tensors
        return left.new_empty(left.shape[0], right.shape[1]) if left.dtype == right.dtype else None
    if func in _POINTWISE and all(_alike(one, tensors[0]) for one in tensors) and tensors[0].is_floating_point():
        return torch.empty_like(tensors[0])
    return None


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.is_contiguous() and one.device == other.device


def _size(tensor: Tensor) -> int:
    """Bytes behind a tensor: one that is expanded over a dimension is read once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count * tensor.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _flash_backward(grad: Tensor, query: Tensor, *_: Any) -> int:
    """Flash attention adds the gradient of the queries up in float32, and keeps one float32 a head and query."""
    return 4 * (query.numel() + query.numel() // query.shape[-1])


# bytes that a kernel allocates inside itself on a GPU, by its arguments
WORKSPACE: Mapping[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _flash_backward,
}
_IN_PLACE = frozenset(
    {_aten.mul_.Tensor, _aten.add_.Tensor, _aten.addcmul_.default, _aten.addmm_.default, _aten.copy_.default}
)
_INTO = frozenset({_aten.mul.out, _aten.add.out, _aten.addcmul.out, _aten.mm.out, _aten.addmm.out})
_POINTWISE = frozenset(
    {
        _aten.mul.Tensor,
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.gelu.default,
        _aten.gelu_backward.default,
        _aten.sigmoid_backward.default,
    }
)
# bound by arithmetic, which is counted from the sizes of the model
_PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.addmm_.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    }
)
# nothing runs
_FREE = frozenset({_aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default, _aten.detach.default})
