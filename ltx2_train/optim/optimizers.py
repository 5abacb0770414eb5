"""Optimizers by name.

A new one is an entry of OPTIMIZERS: how it is built, and what a plan of memory must know of it. The choices of
`optimizer.name` follow. Settings that an optimizer does not know are refused by name, never dropped.

AdamW: Loshchilov and Hutter 2019. 8-bit state: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization";
it keeps about 2 instead of 8 bytes a parameter, and small tensors (below 4096 values) in full.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import Field, field_validator
from torch.optim import Optimizer

from ..errors import ConfigError
from ..optional import why_missing
from ..registry import Registry, nearest
from ..settings import Settings

Groups = Iterable[dict[str, Any]] | Iterable[torch.Tensor]


class Numbers(Protocol):
    """What an optimizer reads of the settings, see OptimizerSettings."""

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def eps(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def args(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer: `build(groups, settings, learning rate, device)` makes one.

    `state_bytes(settings)` is what it keeps for each trainable number after its first step. `missing()` is why it
    cannot be used here, as the end of a sentence on `library`; "" where it can.
    """

    build: Callable[[list[Any], Numbers, float, torch.device], Optimizer]
    state_bytes: Callable[[Numbers], float]
    library: str = ""
    missing: Callable[[], str] = lambda: ""


def _adamw(groups: list[Any], settings: Numbers, lr: float, device: torch.device) -> Optimizer:
    extra = {} if device.type != "cuda" or settings.args else {"fused": True}
    return _construct(torch.optim.AdamW, groups, settings, lr, extra)


def _adamw8bit(groups: list[Any], settings: Numbers, lr: float, device: torch.device) -> Optimizer:
    from bitsandbytes.optim.adamw import AdamW8bit

    return _construct(AdamW8bit, groups, settings, lr, {})


def _construct(
    kind: type[Optimizer], groups: list[Any], settings: Numbers, lr: float, extra: dict[str, Any]
) -> Optimizer:
    known = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "params", "lr")]
    for name in settings.args:
        if name not in known:
            near = nearest(name, known) or known
            raise ConfigError(
                f"optimizer.args: {kind.__name__} has no argument {name!r}. Known: {', '.join(near)}. Remove it or "
                "correct its name."
            )
    numbers = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
    try:
        return kind(groups, **{"lr": lr, **extra, **numbers, **settings.args})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.args: {kind.__name__} refused {settings.args}: {error}.") from error


def _missing_bitsandbytes() -> str:
    """Why bitsandbytes cannot be used, as the end of a sentence; empty where it can."""
    return why_missing("bitsandbytes.optim")


OPTIMIZERS: Registry[OptimizerKind] = Registry("optimizer")
OPTIMIZERS.add("adamw", OptimizerKind(_adamw, lambda settings: 12.0 if settings.args.get("amsgrad") else 8.0))
OPTIMIZERS.add(
    "adamw8bit",  # two bytes, and a float32 for each 256 of both
    OptimizerKind(_adamw8bit, lambda settings: 2 + 8 / 256, library="bitsandbytes", missing=_missing_bitsandbytes),
)

if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[("auto", *OPTIMIZERS)]


class OptimizerSettings(Settings):
    """Which optimizer, and its numbers; the learning rate belongs to the training settings."""

    name: Name = Field(
        default="auto",
        description="Optimizer: auto = adamw8bit where bitsandbytes and CUDA are present, else adamw.",
        json_schema_extra={"community": "optimizer_type", "advanced": True},
    )
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999),
        description="Decay of the running mean of the gradient and of its square.",
        json_schema_extra={"advanced": True},
    )
    eps: float = Field(
        default=1e-8,
        gt=0,
        le=1,
        description="Added to the denominator of the update.",
        json_schema_extra={"advanced": True},
    )
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        le=10,
        description="Share of each weight, times the learning rate, that a step takes away.",
        json_schema_extra={"advanced": True},
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description='Further arguments of the optimizer, as a table or as a list of "name=value".',
        json_schema_extra={"community": "optimizer_args", "advanced": True},
    )

    @field_validator("name", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each must be at least 0 and below 1, for example [0.9, 0.999]")
        return value

    @field_validator("args", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, (list, tuple)):
            return value
        table: dict[str, Any] = {}
        for item in value:
            name, sign, text = str(item).partition("=")
            if not sign or not name.strip():
                raise ValueError(f'{item!r} is not of the form "name=value"')
            table[name.strip()] = _literal(text.strip())
        return table


def choose_optimizer(settings: OptimizerSettings, device: torch.device | str) -> tuple[str, str]:
    """The name of the optimizer, never `auto`, and a sentence on the choice for the user.

    Raises ConfigError where the library of one that was asked for is missing.
    """
    if settings.name != "auto":
        kind = OPTIMIZERS.get(settings.name)
        if missing := kind.missing():
            raise ConfigError(
                f"optimizer.name = {settings.name} needs the package {kind.library}, which {missing}. Install it with "
                f"`pip install {kind.library}` or choose adamw."
            )
        return settings.name, f"Optimizer {settings.name}."
    if torch.device(device).type != "cuda":
        why = "the device is not CUDA"
    elif missing := _missing_bitsandbytes():
        why = f"bitsandbytes {missing}"
    else:
        return "adamw8bit", "Optimizer adamw8bit (auto: bitsandbytes and CUDA are present)."
    return "adamw", f"Optimizer adamw (auto: no 8-bit state, since {why})."


def build_optimizer(
    groups: Groups, settings: OptimizerSettings, lr: float, device: torch.device | str
) -> tuple[Optimizer, str]:
    """The optimizer over `groups` (tensors, or tables with "params" and optionally "lr") and a note on the choice.

    `device` is where the parameters live. The note is a sentence for the user. Raises ConfigError where the
    optimizer's library is missing or an argument is unknown.
    """
    name, note = choose_optimizer(settings, device)
    return OPTIMIZERS.get(name).build(list(groups), settings, lr, torch.device(device)), note


@contextlib.contextmanager
def state_aside(optimizer: Optimizer, device: torch.device | str) -> Iterator[None]:
    """Keep the optimizer's state in RAM while something else needs the memory of `device`."""
    moved: list[tuple[dict[str, Any], str]] = []
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.device.type != "cpu":
                state[name] = value.to("cpu")
                moved.append((state, name))
    try:
        yield
    finally:
        for state, name in moved:
            state[name] = state[name].to(device)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
