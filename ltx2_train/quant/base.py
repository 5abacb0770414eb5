"""A frozen linear layer whose weight is stored in few bits.

    y = x W^T + b        dx = g W        W [O, I] is worked out from the stored buffers each time it is needed

A subclass says how: `stored_weight`, and, where the weight lies in another basis than the inputs, `turn` and
`turn_back`. One autograd function serves all of them. It keeps neither x (only the gradient to x exists) nor W (it is
dequantized again in backward) but the module itself, so backward reads whatever the buffers hold by then: weight
streaming may put other storage behind a buffer between two calls. For the same reason nothing here may keep a tensor
that was derived from the buffers.

Where `unpacking` is set, a subclass may have it run the function that works the weight out: `unpacking(function,
*arguments)` is what the function gives, compiled, or None where that cannot be.

Where a subclass can multiply in 8 bits (`low_precision`), `matmul = True` makes it do so whenever the shapes allow,
forward and back.

Shape letters: N tokens, I in, O out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..errors import ConfigError
from ..optional import why_missing

if TYPE_CHECKING:
    from typing_extensions import Self

# values that are worked on at once while quantizing, so that temporaries stay at tens of MB
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Storage:
    """What is known of a format beside its arithmetic. It stands in the format's class and nowhere else.

    `name` is that of quant.format, of plans and of files. `bits` are those of a stored number. `snr_db` is what it
    keeps of N(0, 1), as report.py measures it. Then:

        about      for the help of quant.format; "" where only files bring the format and nobody can ask for it
        planned    whether quant.format = auto may choose it
        refinable  whether quant.loftq and quant.awq work on it
        library    the library that `quantize` needs, by the name it is imported under
        official   what the official trainer calls it, where that has it
        called     what people call it, where that is not `name`
        like       where only files bring it: the quant.format that takes as much room
        answers    the quant.format that a file of this format satisfies beside its own: any fp8 does for fp8_base
    """

    name: str
    bits: int
    snr_db: float = 0.0
    about: str = ""
    planned: bool = False
    refinable: bool = False
    library: str = ""
    official: str = ""
    called: str = ""
    like: str = ""
    answers: str = ""

    @property
    def per_byte(self) -> int:
        """Numbers that share a byte."""
        return 8 // self.bits

    @property
    def words(self) -> str:
        """What people call it."""
        return self.called or self.name


def require_library(storage: Storage) -> None:
    """Raise ConfigError where quantizing into this format needs a library that cannot be used."""
    if storage.library and (why := why_missing(storage.library)):
        package = storage.library.replace(".", "-")
        raise ConfigError(
            f'quant.format = "{storage.name}" needs {package}, which {why}. Install it with: pip install {package}  - '
            'or set quant.format to "nf4" or "int8".'
        )


class QuantNumbers(Protocol):
    """What a format reads of the settings, see QuantSettings."""

    @property
    def block_size(self) -> int: ...


class QuantLinear(nn.Module):
    """`y = x W^T + b` with W stored in the buffers; see the module's text.

    Every subclass is built from its stored tensors, `cls(*tensors, bias=..., compute_dtype=...)`, which it takes as
    they are, and names them in `stored_names` in that order. `byte_types` names the types of those that weight files
    have no name for. `compute_dtype` is what `dequantize` gives when nobody asks for another; `forward` works in the
    dtype of x.
    """

    storage: ClassVar[Storage]
    stored_names: ClassVar[tuple[str, ...]] = ("weight", "scale")
    byte_types: ClassVar[Mapping[str, str]] = {}

    weight: Tensor
    bias: nn.Parameter | None
    compute_dtype: torch.dtype

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stored: Mapping[str, Tensor | None],
        bias: Tensor | None,
        compute_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.compute_dtype = compute_dtype
        self.matmul = False
        self.unpacking: Callable[..., Tensor | None] | None = None
        for name in self.stored_names:
            tensor = stored[name]
            self.register_buffer(name, None if tensor is None else tensor.detach().contiguous())
        frozen = None if bias is None else nn.Parameter(bias.detach().to(compute_dtype), requires_grad=False)
        self.register_parameter("bias", frozen)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        """`weight` [O, I] in this format, on its device. Raises ConfigError where the shape cannot be stored so."""
        raise NotImplementedError

    def stored_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, I] in the basis it is stored in: a fresh tensor."""
        raise NotImplementedError

    def turn(self, x: Tensor) -> Tensor:
        """Inputs [N, I] in the basis of the stored weight."""
        return x

    def turn_back(self, x: Tensor) -> Tensor:
        """The inverse (which is the transpose) of `turn`."""
        return x

    def add_turned_back(self, x: Tensor, out: Tensor) -> Tensor:
        """`out` + `turn_back(x)`, both [N, I] in one dtype; `out` may be overwritten."""
        return out.add_(self.turn_back(x))

    def can_multiply(self, tokens: int) -> bool:
        """Whether `multiply` and `multiply_back` work for `tokens` rows on the device of the buffers."""
        return False

    def multiply(self, x: Tensor) -> Tensor:
        """x W^T without the bias for x [N, I] in the stored basis, in 8 bits, in the dtype of x."""
        raise NotImplementedError

    def multiply_back(self, grad: Tensor) -> Tensor:
        """g W for g [N, O], in 8 bits, in the stored basis and the dtype of g."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[..., O] in the dtype of x [..., I]; only x gets a gradient."""
        return _Frozen.apply(x, self, True)

    def unread(self, x: Tensor) -> Tensor:
        """A stand-in for `self(x)` whose gradient is right and whose value nobody may read; nothing is computed."""
        return _Frozen.apply(x, self, False)

    def add_product(self, x: Tensor, out: Tensor) -> Tensor:
        """`out` [N, O] + x W^T for x [N, I], without the bias; `out` may be overwritten, and there is no gradient."""
        flat = self.turn(x)
        if self.matmul and self.can_multiply(flat.shape[0]):
            return out.add_(self.multiply(flat))
        return out.addmm_(flat, self.stored_weight(x.dtype).t())

    def add_product_back(self, grad: Tensor, out: Tensor) -> Tensor:
        """`out` [N, I] + g W for g [N, O], in the basis of the inputs; otherwise as `add_product`."""
        if self.matmul and self.can_multiply(grad.shape[0]):
            return self.add_turned_back(self.multiply_back(grad), out)
        if type(self).turn_back is QuantLinear.turn_back:
            return out.addmm_(grad, self.stored_weight(grad.dtype))
        return self.add_turned_back(grad @ self.stored_weight(grad.dtype), out)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight [O, I] in the basis of the inputs, as a fresh tensor in `dtype` (or `compute_dtype`)."""
        dtype = self.compute_dtype if dtype is None else dtype
        return self.turn_back(self.stored_weight(dtype))

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors by name, without the bias."""
        return {name: tensor for name in self.stored_names if (tensor := getattr(self, name)) is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of the stored weight with its side tensors, without the bias."""
        return sum(tensor.nbytes for tensor in self.stored().values())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `.to(dtype)` is about the arithmetic: the stored numbers pass as bytes and only ever change their device
        before = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
        self._buffers.update({name: tensor.view(torch.uint8) for name, tensor in before.items()})
        try:
            super()._apply(fn, recurse)
        finally:
            for name, tensor in before.items():
                moved = self._buffers[name]
                assert moved is not None
                same = moved.device == tensor.device and moved.data_ptr() == tensor.data_ptr()
                self._buffers[name] = tensor if same else moved.view(tensor.dtype)
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, format={self.storage.name}, bias={bias}, matmul={self.matmul}"


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantLinear, value: bool) -> Tensor:
        ctx.layer = layer
        if not value:
            return x.new_empty(()).expand(*x.shape[:-1], layer.out_features)
        flat = layer.turn(x.reshape(-1, layer.in_features))
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        if layer.matmul and layer.can_multiply(flat.shape[0]):
            y = layer.multiply(flat)
            y = y if bias is None else y.add_(bias)
        else:
            y = linear(flat, layer.stored_weight(x.dtype), bias)
        return y.view(*x.shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        layer = ctx.layer
        flat = grad.reshape(-1, layer.out_features)
        if layer.matmul and layer.can_multiply(flat.shape[0]):
            back = layer.multiply_back(flat)
        else:
            back = flat @ layer.stored_weight(grad.dtype)
        return layer.turn_back(back).view(*grad.shape[:-1], layer.in_features), None, None


def row_parts(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cut [rows, columns] into parts of a bounded number of values, a row at least."""
    step = max(1, _AT_ONCE // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def exact_dtype(out: Tensor) -> torch.dtype:
    """In what `scale_into` takes values that are exact in the dtype of `out`: an accelerator reads fewer bytes so."""
    return torch.float32 if out.device.type == "cpu" else out.dtype


def scale_into(out: Tensor, values: Tensor, scales: Tensor) -> None:
    """Write `values` * `scales` into `out`, the float32 product rounded once; `values` may be overwritten."""
    if out.device.type == "cpu":
        out.copy_(values.mul_(scales))
    else:  # an accelerator casts as it writes
        torch.mul(values, scales, out=out)


def scale_dtype(source: torch.dtype) -> torch.dtype:
    """What the scales of a weight are kept in: its own dtype, but float32 where that has too few exponents."""
    return source if source in (torch.bfloat16, torch.float32) else torch.float32
