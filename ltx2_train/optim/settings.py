"""The settings of an optimizer."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, field_serializer, field_validator

from ..settings import Settings
from .optimizers import DEFAULTS, OPTIMIZERS

if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[("auto", *OPTIMIZERS)]


class OptimizerSettings(Settings):
    """Which optimizer, and its numbers; the learning rate belongs to the training settings."""

    name: Name = Field(
        default="auto",
        description="Optimizer: auto = adamw; adamw8bit on a card that has not the room for it, where bitsandbytes is "
        'there. Or the dotted name of any class, for example "torch.optim.RAdam".',
        json_schema_extra={"community": "optimizer_type", "advanced": True},
    )
    betas: tuple[float, float] = Field(
        default=DEFAULTS["betas"],
        description="Decay of the running mean of the gradient and of its square.",
        json_schema_extra={"counts_with": ".own_betas -- where optimizer.args has no other betas", "advanced": True},
    )
    eps: float = Field(
        default=DEFAULTS["eps"],
        gt=0,
        le=1,
        description="Added to the denominator of the update.",
        json_schema_extra={"counts_with": ".own_eps -- where optimizer.args has no other eps", "advanced": True},
    )
    weight_decay: float = Field(
        default=DEFAULTS["weight_decay"],
        ge=0,
        le=10,
        description="Share of each weight, times the learning rate, that a step takes away.",
        json_schema_extra={
            "counts_with": ".own_weight_decay -- where optimizer.args has no other weight_decay",
            "advanced": True,
        },
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description='Further arguments of the optimizer, one "name = value" a line; in a run file a table, or a list '
        'of "name=value".',
        json_schema_extra={"community": "optimizer_args", "advanced": True},
    )

    @property
    def own_betas(self) -> bool:
        """Whether `betas` counts: `args` has none, or the same."""
        return self._counts("betas")

    @property
    def own_eps(self) -> bool:
        """As `own_betas`."""
        return self._counts("eps")

    @property
    def own_weight_decay(self) -> bool:
        """As `own_betas`."""
        return self._counts("weight_decay")

    def _counts(self, name: str) -> bool:
        given, own = self.args.get(name), getattr(self, name)
        return name not in self.args or (tuple(given) if isinstance(given, list) else given) == own

    @field_validator("name", mode="wrap")
    @classmethod
    def _any_case_or_a_class(cls, value: object, inner: ValidatorFunctionWrapHandler) -> object:
        if not isinstance(value, str):
            return inner(value)
        if "." in value and all(part.isidentifier() for part in value.split(".")):
            return value
        return inner(value.lower())

    @field_serializer("name")
    def _as_it_is(self, value: str) -> str:
        return value

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


def optimizer_numbers() -> dict[str, tuple[str, ...]]:
    """Each choice of `optimizer.name` -> which of betas, eps and weight_decay it uses."""
    return {"auto": OPTIMIZERS.get("adamw").numbers, **{name: OPTIMIZERS.get(name).numbers for name in OPTIMIZERS}}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
