"""The optimizer of a run: which one it is, what it keeps, and what its weights are when they are looked at."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from ..errors import ConfigError
from .optimizers import find_optimizer
from .settings import OptimizerSettings

Groups = Iterable[dict[str, Any]] | Iterable[torch.Tensor]
WIDTH = 4096  # inputs of a layer that stands for all, where the bytes of an optimizer are measured
TRIED = 8192  # values of the tensor that an optimizer is tried on: enough for a state of 8 bits


def choose_optimizer(settings: OptimizerSettings, device: torch.device | str) -> tuple[str, str]:
    """The name of the optimizer, never `auto`, and a sentence on the choice for the user.

    `auto` is adamw; what is leaner is for the plan of memory to ask for. Raises ConfigError where the library of one
    that was asked for is missing.
    """
    on_cuda = torch.device(device).type == "cuda"
    if settings.name != "auto":
        kind = find_optimizer(settings.name)
        if missing := kind.missing():
            raise ConfigError(
                f"optimizer.name = {settings.name} needs the package {kind.library}, which {missing}. Install it with "
                f"`pip install {kind.library}` or choose adamw."
            )
        if kind.cuda and not on_cuda:
            raise ConfigError(
                f"optimizer.name = {settings.name} keeps the memory of a CUDA card free, and the device is "
                f"{torch.device(device).type}. Choose adamw8bit or adamw."
            )
        return settings.name, f"Optimizer {settings.name}."
    return "adamw", "Optimizer adamw (auto)."


def why_not(name: str, settings: OptimizerSettings, device: torch.device | str) -> str:
    """Why the optimizer called `name` cannot be used on `device`, as the end of a sentence on its library; "" where it
    can, and where there is no such device to try it on.

    A library that can be loaded may still lack the kernels of this card, so it takes a step on some numbers.
    """
    kind, device = find_optimizer(name), torch.device(device)
    if missing := kind.missing():
        return missing
    if device.type == "cuda" and not torch.cuda.is_available():
        return ""
    try:
        tried = torch.nn.Parameter(torch.zeros(TRIED, device=device))
        tried.grad = torch.ones_like(tried)
        _build(name, [tried], settings, 1.0, device).step()
        moved = bool(torch.isfinite(tried).all()) and bool((tried != 0).all())
    except ConfigError:  # of the arguments, and told as such where the optimizer is built
        return ""
    except Exception as error:
        return f"fails in a step ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    return "" if moved else "does not move the numbers of a step"


def build_optimizer(
    groups: Groups, settings: OptimizerSettings, lr: float, device: torch.device | str
) -> tuple[Optimizer, str]:
    """The optimizer over `groups` (tensors, or tables with "params" and optionally "lr") and a note on the choice.

    `device` is where the parameters live. The note is a sentence for the user. Raises ConfigError where the
    optimizer's library is missing, an argument is unknown, or its layers learn at several rates and it has but one.
    """
    name, note = choose_optimizer(settings, device)
    return _build(name, list(groups), settings, lr, device), note


def state_bytes(settings: OptimizerSettings, device: torch.device | str, rank: int) -> float:
    """Bytes that the optimizer keeps for each trainable number of a LoRA of `rank` after its first step.

    Raises ConfigError where one whose bytes have to be measured cannot be built or cannot take a step.
    """
    name = choose_optimizer(settings, device)[0] if settings.name == "auto" else settings.name
    counted = find_optimizer(name).state_bytes
    if counted is not None:
        return counted(settings)
    return _measured(settings.model_copy(update={"name": name}).model_dump_json(), rank)


def rehearse(groups: Groups, settings: OptimizerSettings, lr: float, rank: int) -> None:
    """Raise ConfigError for what the optimizer would refuse, on stand-ins in RAM; one without a name takes a step."""
    _build(settings.name, list(groups), settings, lr, "cpu")
    state_bytes(settings, "cpu", rank)


@contextlib.contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """The weights as they are to be looked at, sampled and saved, and afterwards, to the bit, as they are trained.

    An optimizer without a schedule trains on other weights than it has learned; its `eval` and `train` change them.
    Going there and back would round, and a run that was saved in between would differ from one that was not.
    """
    if not (_changes_weights(optimizer) and any(group.get("train_mode") for group in optimizer.param_groups)):
        yield
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    trained = [weight.detach().clone() for weight in weights]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            torch._foreach_copy_(weights, trained)  # pyright: ignore[reportPrivateImportUsage]


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


def _build(
    name: str, groups: list[Any], settings: OptimizerSettings, lr: float, device: torch.device | str
) -> Optimizer:
    kind = find_optimizer(name)
    rates = {group.get("lr", lr) for group in groups if isinstance(group, dict)}
    if kind.one_rate and len(rates) > 1:
        raise ConfigError(
            f"optimizer.name = {name} finds one rate for all layers. Remove train.audio_learning_rate, "
            "train.lr_args and train.loraplus_ratio, or choose another optimizer."
        )
    optimizer = kind.build(groups, settings, lr, torch.device(device))
    if _changes_weights(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _changes_weights(optimizer: Optimizer) -> bool:
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


@functools.lru_cache(maxsize=64)
def _measured(settings_json: str, rank: int) -> float:
    """The state of the two halves of one layer after a step, in bytes for each of their numbers.

    The step is also what tells whether a class that a person named can be used at all.
    """
    settings = OptimizerSettings.model_validate_json(settings_json)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        halves = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((rank, WIDTH), (WIDTH, rank))]
        optimizer = _build(settings.name, halves, settings, 1e-4, "cpu")
        for half in halves:
            half.grad = torch.randn(half.shape, generator=generator)
        try:
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        except Exception as error:
            raise ConfigError(
                f"optimizer.name = {settings.name} cannot be used: a step failed ({type(error).__name__}: {error})."
            ) from error
    state = optimizer.state_dict()
    _require_plain(state, settings.name)
    kept = {id(one): one.nbytes for per in state["state"].values() for one in _tensors(per)}
    return sum(kept.values()) / sum(half.numel() for half in halves)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


def _require_plain(value: Any, name: str) -> None:
    """Raise ConfigError where a state could not be written: it holds more than tensors, numbers and texts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            _require_plain(inner, name)
    elif not (value is None or isinstance(value, (bool, int, float, str, torch.Tensor))):
        raise ConfigError(
            f"optimizer.name = {name} cannot be used: its state holds a {type(value).__name__}, which a state file "
            "cannot. Choose another."
        )
