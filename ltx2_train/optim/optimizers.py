"""Optimizers by name, or by the dotted name of a class.

A new one is an entry of OPTIMIZERS: how it is built, and what a plan of memory must know of it. The choices of
`optimizer.name` follow. Numbers and arguments that an optimizer does not know are refused by name, never dropped.

adamw            Loshchilov and Hutter 2019, arXiv:1711.05101
adamw8bit        Dettmers et al. 2022, arXiv:2110.02861; about 2 instead of 8 bytes a number, small tensors in full
adamw8bit_paged  the same in memory that the driver moves to RAM where the card is full
adamw_bf16       adamw_bf16.py
prodigy          Mishchenko and Defazio 2024, arXiv:2306.06101; finds its rate
muon             Jordan et al. 2024; steps of equal length in every direction, at the rates of AdamW (arXiv:2502.16982)
came             Luo et al. 2023, arXiv:2307.02047; a row and a column stand for the mean of the square
schedule_free    Defazio et al. 2024, arXiv:2405.15682; what is sampled and saved is the mean of all steps
adafactor        Shazeer and Stern 2018, arXiv:1804.04235; as came, and no mean of the gradient
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from ..errors import ConfigError
from ..optional import why_missing
from ..registry import Registry, nearest
from .adamw_bf16 import AdamWBf16

# what the settings say where nobody said anything
DEFAULTS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


class OptimizerNumbers(Protocol):
    """What an optimizer reads of the settings, see OptimizerSettings."""

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def eps(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def args(self) -> dict[str, Any]: ...


class Make(Protocol):
    """Makes an optimizer of a class, see `construct`; `own` are arguments in place of the class's defaults."""

    def __call__(self, kind: type[Optimizer], own: Mapping[str, Any] | None = None) -> Optimizer: ...


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer: `made(make, settings, device)` calls `make` with its class.

    `state_bytes(settings)` is what it keeps for each trainable number after its first step; None: it is measured.
    `missing()` is why it cannot be used here, as the end of a sentence on `library`; "" where it can. `cuda`: it is of
    no use elsewhere. `prepare(optimizer)` takes the memory of the state at once instead of in the first step, which it
    does not change; None: that is left to the first step. `tensor_seconds` is what a step costs for each tensor on a
    card, besides the bytes. `one_rate`: all layers must learn at one rate. `averages`: what is saved of it is a mean
    already. `by_number`: how a number is moved follows from its own gradients, whatever else is in its weight, and its
    state is as large as the weight. `advice(learning rate, schedule)` is a sentence for the user where the numbers are
    unusual for it, else "". `numbers` are those of DEFAULTS that it uses; another one that is set is refused by name.
    """

    made: Callable[[Make, OptimizerNumbers, torch.device], Optimizer]
    state_bytes: Callable[[OptimizerNumbers], float] | None = None
    prepare: Callable[[Any], None] | None = None
    tensor_seconds: float = 0.0
    library: str = ""
    missing: Callable[[], str] = lambda: ""
    cuda: bool = False
    one_rate: bool = False
    averages: bool = False
    by_number: bool = False
    advice: Callable[[float, str], str] = lambda lr, schedule: ""
    numbers: tuple[str, ...] = tuple(DEFAULTS)

    def build(self, groups: list[Any], settings: OptimizerNumbers, lr: float, device: torch.device) -> Optimizer:
        """One over `groups`. Raises ConfigError for an argument or a number that it does not have."""

        def make(kind: type[Optimizer], own: Mapping[str, Any] | None = None) -> Optimizer:
            return construct(kind, groups, settings, lr, self.numbers, own)

        return self.made(make, settings, device)


def _adamw(make: Make, settings: OptimizerNumbers, device: torch.device) -> Optimizer:
    extra = {} if device.type != "cuda" or settings.args else {"fused": True}
    return make(torch.optim.AdamW, extra)


def _adamw8bit(make: Make, settings: OptimizerNumbers, device: torch.device) -> Optimizer:
    from bitsandbytes.optim.adamw import AdamW8bit

    return make(AdamW8bit)


def _adamw8bit_paged(make: Make, settings: OptimizerNumbers, device: torch.device) -> Optimizer:
    from bitsandbytes.optim.adamw import PagedAdamW8bit

    class Paged(PagedAdamW8bit):
        """A loaded state is paged too; the library's own would leave it on the card."""

        def load_state_dict(self, state_dict: Mapping[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict(dict(state_dict), move_to_device)
            for parameter, state in self.state.items():
                for name in ("state1", "state2"):
                    if name in state:
                        loaded = state[name]
                        state[name] = self.get_state_buffer(parameter, dtype=loaded.dtype)
                        state[name].copy_(loaded)

    return make(Paged)


def _adamw_bf16(make: Make, settings: OptimizerNumbers, device: torch.device) -> Optimizer:
    return make(AdamWBf16)


def _prodigy(make: Make, settings: OptimizerNumbers, device: torch.device) -> Optimizer:
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that its weight decay is decoupled
        return make(Prodigy)


def _muon(make: Make, settings: OptimizerNumbers, device: torch.device) -> Optimizer:
    return make(torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})


def _came(make: Make, settings: OptimizerNumbers, device: torch.device) -> Optimizer:
    from came_pytorch import CAME

    return make(CAME, {"betas": (*settings.betas, 0.9999)})


def _schedule_free(make: Make, settings: OptimizerNumbers, device: torch.device) -> Optimizer:
    from schedulefree import AdamWScheduleFree

    return make(AdamWScheduleFree)


def _adafactor(make: Make, settings: OptimizerNumbers, device: torch.device) -> Optimizer:
    from transformers.optimization import Adafactor

    if settings.args.get("relative_step"):
        raise ConfigError(
            "optimizer.args: relative_step of adafactor would ignore train.learning_rate and the schedule. Remove it; "
            "prodigy is an optimizer that finds its rate."
        )
    return make(Adafactor, {"relative_step": False, "scale_parameter": False})


def _prepare_adamw(optimizer: Any) -> None:
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    gradients = [one.grad for one in parameters]
    for one in parameters:  # only what has a gradient gets a state; this one takes no memory
        one.grad = torch.zeros((), dtype=one.dtype, device=one.device).expand_as(one)
    try:
        for group in optimizer.param_groups:
            optimizer._init_group(group, [], [], [], [], [], [])
    finally:
        for one, gradient in zip(parameters, gradients, strict=True):
            one.grad = gradient


def _prepare_bitsandbytes(optimizer: Any) -> None:
    if not optimizer.initialized:
        optimizer.check_overrides()
        optimizer.to_gpu()
        optimizer.initialized = True
    for index, group in enumerate(optimizer.param_groups):
        for place, one in enumerate(group["params"]):
            if not optimizer.state[one]:
                optimizer.init_state(group, one, index, place)


def construct(
    kind: type[Optimizer],
    groups: list[Any],
    settings: OptimizerNumbers,
    lr: float,
    used: tuple[str, ...],
    own: Mapping[str, Any] | None = None,
) -> Optimizer:
    """A `kind` over `groups` with the numbers `used` and the arguments of the settings; `own` are arguments that stand
    instead of its defaults. Raises ConfigError for an argument that it does not have, or another number that is set."""
    defaults, own = _defaults(kind), own or {}
    for name in settings.args:
        if name not in defaults:
            near = nearest(name, defaults) or list(defaults)
            raise ConfigError(
                f"optimizer.args: {kind.__name__} has no argument {name!r}. Known: {', '.join(near)}. Remove it or "
                "correct its name."
            )
    numbers = {}
    for name, default in DEFAULTS.items():
        value = getattr(settings, name)
        if name in used:
            numbers[name] = value
        elif value != default:
            has = f"{name} = {defaults[name]}, to be set in optimizer.args" if name in defaults else f"no {name}"
            raise ConfigError(
                f"optimizer.{name} is set, and {kind.__name__} has {has}. Remove optimizer.{name}, or choose another "
                "optimizer.name."
            )
    try:
        return kind(groups, **{"lr": lr, **numbers, **own, **settings.args})
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"optimizer.args: {kind.__name__} refused {settings.args}: {error}.") from error


def _defaults(kind: type[Optimizer]) -> dict[str, Any]:
    """The arguments of `kind` besides parameters and rate, with their defaults; those that it hands on are its too."""
    arguments: dict[str, Any] = {}
    for one in kind.__mro__:
        if one is Optimizer or "__init__" not in vars(one):
            continue
        parameters = inspect.signature(one.__init__).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        arguments = {**{p.name: p.default for p in named}, **arguments}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return {name: default for name, default in arguments.items() if name not in ("self", "params", "lr")}


def numbers_taken(kind: type[Optimizer]) -> tuple[str, ...]:
    """The numbers of DEFAULTS that `kind` has arguments for, of their form."""
    has = _defaults(kind)
    return tuple(name for name, default in DEFAULTS.items() if name in has and _alike(has[name], default))


def _alike(own: Any, ours: Any) -> bool:
    """Whether an optimizer's default is of the form of ours: a number, or a pair."""
    if isinstance(ours, tuple):
        return isinstance(own, (tuple, list)) and len(own) == len(ours)
    return isinstance(own, (int, float)) and not isinstance(own, bool)


def _without(module: str) -> Callable[[], str]:
    return lambda: why_missing(module)


def _no_muon() -> str:
    return "" if hasattr(torch.optim, "Muon") else f"is older here ({torch.__version__})"


def _rate_is_a_factor(lr: float, schedule: str) -> str:
    if lr >= 0.1:
        return ""
    return f"prodigy multiplies the rate that it finds with train.learning_rate, which is {lr:g}; 1 is usual."


def _schedule_is_flat(lr: float, schedule: str) -> str:
    if schedule.startswith("constant"):
        return ""
    return f"schedule_free needs no falling rate, and schedule.name is {schedule}; constant_with_warmup is usual."


def _first_steps_are_long(lr: float, schedule: str) -> str:
    if lr < 1e-4:
        return ""
    return (
        f"The first hundreds of came's steps are three to twenty times as long as adamw's would be, and "
        f"train.learning_rate is {lr:g}; a tenth of a rate for adamw, with a warm-up, is usual."
    )


def _paged_bytes(settings: OptimizerNumbers) -> float:
    return 2 + 8 / 256  # two bytes, and a float32 for each 256 of both


OPTIMIZERS: Registry[OptimizerKind] = Registry("optimizer")
_bitsandbytes: dict[str, Any] = {
    "state_bytes": _paged_bytes,
    "prepare": _prepare_bitsandbytes,
    "tensor_seconds": 25e-6,  # the library waits for the card after every tensor
    "library": "bitsandbytes",
    "missing": _without("bitsandbytes.optim"),
}
OPTIMIZERS.add(
    "adamw",
    OptimizerKind(
        _adamw, lambda settings: 12.0 if settings.args.get("amsgrad") else 8.0, prepare=_prepare_adamw, by_number=True
    ),
)
OPTIMIZERS.add("adamw8bit", OptimizerKind(_adamw8bit, **_bitsandbytes))
OPTIMIZERS.add("adamw8bit_paged", OptimizerKind(_adamw8bit_paged, **_bitsandbytes, cuda=True))
OPTIMIZERS.add("adamw_bf16", OptimizerKind(_adamw_bf16, lambda settings: 4.0, by_number=True))
OPTIMIZERS.add(
    "prodigy",
    OptimizerKind(
        _prodigy, library="prodigyopt", missing=_without("prodigyopt"), one_rate=True, advice=_rate_is_a_factor
    ),
)
OPTIMIZERS.add(
    "muon",
    OptimizerKind(_muon, lambda settings: 4.0, library="torch>=2.9", missing=_no_muon, numbers=("eps", "weight_decay")),
)
OPTIMIZERS.add(
    "came",
    OptimizerKind(
        _came,
        library="came-pytorch",
        missing=_without("came_pytorch"),
        advice=_first_steps_are_long,
        numbers=("betas", "weight_decay"),
    ),
)
OPTIMIZERS.add(
    "schedule_free",
    OptimizerKind(
        _schedule_free,
        lambda settings: 8.0,
        library="schedulefree",
        missing=_without("schedulefree"),
        averages=True,
        advice=_schedule_is_flat,
    ),
)
OPTIMIZERS.add("adafactor", OptimizerKind(_adafactor, numbers=("weight_decay",)))


def find_optimizer(name: str) -> OptimizerKind:
    """The optimizer called `name`, or the class at that dotted name. Raises ConfigError where it is neither."""
    return _of_class(name) if "." in name else OPTIMIZERS.get(name)


def _of_class(dotted: str) -> OptimizerKind:
    module, _, name = dotted.rpartition(".")
    package = module.partition(".")[0]
    if missing := why_missing(module):
        raise ConfigError(
            f"optimizer.name = {dotted} needs the module {module}, which {missing}. Install what has it, perhaps with "
            f"`pip install {package.replace('_', '-')}`, or choose one of {', '.join(OPTIMIZERS)}."
        )
    found = importlib.import_module(module)
    kind = getattr(found, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        classes = (
            one for one, value in vars(found).items() if isinstance(value, type) and issubclass(value, Optimizer)
        )
        near = nearest(name, list(classes))
        hint = f" Did you mean {module}.{near[0]}?" if near else ""
        raise ConfigError(f"optimizer.name = {dotted} is no optimizer of PyTorch.{hint}")
    return OptimizerKind(lambda make, settings, device: make(kind), numbers=numbers_taken(kind))
