"""A pretended card: tensors on "cuda" have sizes only, and whatever makes the host wait for them is written down.

Real tensors on the CPU stay real. An operation on tensors of both kinds is a mismatch, which raises as a card would. A
number that is read, a size that depends on values and a copy that is not asked to go beside the work are waits.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._subclasses.fake_tensor as fake_tensor
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from . import engine

aten = torch.ops.aten
ROOT = Path(__file__).resolve().parents[2] / "ltx2_train"
CUDA = torch.device("cuda", 0)
LARGE = 1 << 20  # bytes of a copy that nobody may wait for
_DRAWN = ("uniform_", "normal_", "bernoulli_", "random_", "exponential_")
_MADE = ("randn", "rand", "randint", "randn_like", "rand_like")


class Mismatch(RuntimeError):
    """Tensors of two devices in one operation."""


class Card(TorchDispatchMode):
    """The pretended device. `waits`: how often the host waited, by (what for, where); `large`: blocking copies to the
    card of more than 1 MB, by (bytes, where)."""

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self._fakes = fakes
        self.waits: Counter[tuple[str, str]] = Counter()
        self.large: Counter[tuple[int, str]] = Counter()
        self._last_count = 12

    def wait(self, kind: str) -> None:
        """Write down that the host waits."""
        self.waits[kind, _place()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = pytree.tree_leaves((args, kwargs))
        pretended = [t for t in flat if isinstance(t, FakeTensor)]
        to_card = any(isinstance(a, torch.device) and a.type == "cuda" for a in flat)
        kwargs.pop("pin_memory", None)
        if not pretended and not to_card:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        answered = self._between(func, args, kwargs, to_card)
        if answered is not NotImplemented:
            return answered
        answered = self._by_value(func, args)
        if answered is not NotImplemented:
            return answered
        real = [t for t in flat if isinstance(t, Tensor) and not isinstance(t, FakeTensor) and t.dim() and t.numel()]
        if real:
            raise Mismatch(
                f"Expected all tensors to be on the same device: {func} of {[tuple(t.shape) for t in real]} on the CPU "
                f"and {[tuple(t.shape) for t in pretended]} on the card, at {_place()}"
            )
        return self._sizes_only(func, args, kwargs)

    def _between(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to_card: bool) -> Any:
        """Copies from one device to the other."""
        if func is aten._to_copy.default:
            source, device = args[0], kwargs.get("device")
            if isinstance(source, FakeTensor) and device is not None and device.type == "cpu":
                self._comes_back(bool(kwargs.get("non_blocking")))
                return self._values(source.shape, kwargs.get("dtype") or source.dtype)
            if not isinstance(source, FakeTensor) and to_card:
                self._goes_over(source, bool(kwargs.get("non_blocking")))
                return self.tensor(source.shape, kwargs.get("dtype") or source.dtype, source.stride())
        if func is aten.copy_.default:
            target, source = args[:2]
            beside = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking"))
            if not isinstance(target, FakeTensor):
                self._comes_back(beside)
                with unset_fake_temporarily():
                    return target.copy_(self._values(target.shape, target.dtype))
            if not isinstance(source, FakeTensor):
                self._goes_over(source, beside)
                return target
        return NotImplemented

    def _by_value(self, func: Any, args: tuple[Any, ...]) -> Any:
        """What depends on the numbers of a tensor on the card."""
        first = args[0] if args else None
        if func is aten._local_scalar_dense.default:
            self.wait("number")
            if first.dtype == torch.bool:
                return True
            return 0.5 if first.dtype.is_floating_point else self._last_count
        if func is aten.equal.default:
            self.wait("equal")
            return True
        if func is aten._unique2.default:
            self.wait("unique")
            return self.tensor((2,), first.dtype), self.tensor(first.shape, torch.long), self.tensor((0,), torch.long)
        if func is aten.nonzero.default:
            self.wait("nonzero")
            return self.tensor((1, first.dim()), torch.long)
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            places = [place for place in args[1] if place is not None]
            if any(place.dtype == torch.bool for place in places):
                self.wait("rows by a mask")
                rest = first.shape[places[0].dim() :]
                return self.tensor((places[0].shape[0], *rest), first.dtype) if func is aten.index.Tensor else first
            if any(not isinstance(place, FakeTensor) for place in places):
                self.wait("rows by an index of the CPU")
                there = [
                    p if p is None or isinstance(p, FakeTensor) else self.tensor(p.shape, p.dtype) for p in args[1]
                ]
                return self._sizes_only(func, (first, there, *args[2:]), {})
        if func is aten.is_pinned.default:
            return False
        if func is aten.sum.default and not first.dtype.is_floating_point:
            self._last_count = first.numel()
        return NotImplemented

    def _sizes_only(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        short = str(func).split(".")[1]
        if short in _DRAWN:
            return args[0]
        if short in _MADE:
            like = short.endswith("_like")
            shape = args[0].shape if like else next(a for a in args if isinstance(a, (list, tuple)))
            plain = args[0].dtype if like else torch.long if short == "randint" else torch.get_default_dtype()
            return self.tensor(shape, kwargs.get("dtype") or plain)
        args, kwargs = pytree.tree_map_only(torch.Generator, lambda _: None, (args, kwargs))
        with self._fakes:
            return func(*args, **kwargs)

    def tensor(self, shape: Any, dtype: torch.dtype, stride: Any = None) -> Tensor:
        """A pretended one."""
        with self._fakes:
            if stride is None:
                return torch.empty(tuple(shape), dtype=dtype, device=CUDA)
            return torch.empty_strided(tuple(shape), stride, dtype=dtype, device=CUDA)

    def _values(self, shape: Any, dtype: torch.dtype) -> Tensor:
        """What is read of a card that has no numbers."""
        with unset_fake_temporarily():
            out = torch.zeros(tuple(shape), dtype=dtype)
            return out + 0.01 if dtype.is_floating_point and dtype.itemsize > 1 else out

    def _comes_back(self, beside: bool) -> None:
        if not beside:
            self.wait("read")

    def _goes_over(self, source: Tensor, beside: bool) -> None:
        if not beside:
            self.wait("copy to the card")
            if source.nbytes > LARGE:
                self.large[source.nbytes, _place()] += 1


class Stream:
    """A queue of a card on which nothing ever waits."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = CUDA

    def wait_event(self, event: Any) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...

    def record_event(self, event: Any = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        _wait("stream")

    def query(self) -> bool:
        return True


class Event:
    """A mark in such a queue."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None:
        _wait("event")

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return 1.0


_card: Card | None = None


@contextmanager
def pretended(total: int = 24 << 30) -> Iterator[Card]:
    """While entered, there is a card of `total` bytes."""
    global _card
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    card = _card = Card(fakes)
    try:
        with ExitStack() as stack:
            for patching in _patches(total):
                stack.enter_context(patching)
            stack.enter_context(engine.in_python())
            stack.enter_context(_settable_data())
            stack.enter_context(fakes)
            stack.enter_context(card)
            # last, since FakeTensorMode asks for real ones
            stack.enter_context(patch.object(torch, "Generator", _Generator))
            yield card
    finally:
        _card = None
        torch._C._set_only_lift_cpu_tensors(False)


@contextmanager
def outside() -> Iterator[None]:
    """While entered, everything is as torch has it: for what works on tensors of sizes only by itself."""
    with _disable_current_modes(), engine.by_torch(), patch.object(torch, "Generator", _real_generator):
        yield


def _outside(function: Any) -> Any:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with outside():
            return function(*args, **kwargs)

    return run


def _patches(total: int) -> Iterator[Any]:
    import ltx2_train.models.kernels as kernels
    from ltx2_train.training.fit import facts

    yield patch.object(facts, "simulate", _outside(facts.simulate))
    properties = SimpleNamespace(total_memory=total, major=9, minor=0, name="pretended", multi_processor_count=132)
    main = Stream()
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "current_device": 0,
        "device_count": 1,
        "current_stream": main,
        "empty_cache": None,
        "mem_get_info": (int(total * 0.97), total),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "max_memory_allocated": 1 << 30,
        "max_memory_reserved": 1 << 30,
        "reset_peak_memory_stats": None,
        "get_device_name": "pretended",
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "set_rng_state": None,
        "manual_seed_all": None,
        "ipc_collect": None,
        "is_current_stream_capturing": False,
        "is_bf16_supported": True,
        "set_per_process_memory_fraction": None,
    }
    for name, answer in answers.items():
        yield patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    yield patch.object(torch.cuda, "get_rng_state", lambda *_: torch.zeros(16, dtype=torch.uint8))
    yield patch.object(torch.cuda, "Stream", Stream)
    yield patch.object(torch.cuda, "Event", Event)
    yield patch.object(torch.cuda, "stream", lambda stream: nullcontext())
    yield patch.object(torch.cuda, "synchronize", lambda *_: _wait("synchronize"))
    registered = SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0)
    yield patch.object(torch.cuda, "cudart", lambda: registered)
    yield patch.object(fake_tensor, "init_gpu_context", lambda device: None)
    yield patch.object(torch.Tensor, "record_stream", lambda self, stream: None)
    yield patch.object(torch.Tensor, "pin_memory", lambda self, *_: self)
    real = torch.nn.functional.scaled_dot_product_attention
    yield patch.object(kernels, "scaled_dot_product_attention", _attention(real))
    yield patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention(real))
    yield patch.object(torch.nn.Module, "_apply", _apply)


def _attention(real: Any) -> Any:
    """The kernels that a card has, in place of the choice among them, which asks the driver."""

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if not isinstance(q, FakeTensor):
            return real(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        if attn_mask is None and q.dtype in (torch.bfloat16, torch.float16):
            return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]
        if attn_mask is not None:
            if not isinstance(attn_mask, FakeTensor):
                raise Mismatch("the mask of an attention is on the CPU")
            attn_mask = attn_mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        grad = torch.is_grad_enabled()
        return aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, grad, 0.0, is_causal)[0]

    return attention


def _apply(self: torch.nn.Module, change: Any, recurse: bool = True) -> torch.nn.Module:
    """As torch's own, which cannot point a real parameter at pretended memory."""
    for child in self.children() if recurse else ():
        child._apply(change)
    for table in (self._parameters, self._buffers):
        for name, tensor in table.items():
            if tensor is None:
                continue
            with torch.no_grad():
                new = change(tensor.detach())
            if isinstance(new, FakeTensor) == isinstance(tensor, FakeTensor):
                tensor.data = new
            elif table is self._parameters:
                table[name] = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
            else:
                table[name] = new
    return self


@contextmanager
def _settable_data() -> Iterator[None]:
    """`.data` of pretended tensors may be set; the device that they tell of goes with it."""
    plain = torch.Tensor.data

    def put(self: FakeTensor, value: Tensor) -> None:
        if not isinstance(value, FakeTensor):
            raise Mismatch("a pretended tensor cannot be pointed at a real one")
        plain.__set__(self, value)
        self.fake_device = value.fake_device

    FakeTensor.data = property(plain.__get__, put)
    try:
        yield
    finally:
        del FakeTensor.data


_real_generator = torch.Generator


class _Generator:
    """A generator of any device, which is one of the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _real_generator()


def _wait(kind: str) -> None:
    if _card is not None:
        _card.wait(kind)


def _place() -> str:
    """The innermost line of the project on the stack: "training/loop.py _step"."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(str(ROOT)):
            return f"{Path(file).relative_to(ROOT).as_posix()} {frame.f_code.co_name}"
        frame = frame.f_back
    return "-"
