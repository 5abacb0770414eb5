"""What a regularizer is: a class that draws, looks on, and answers with terms of the loss.

In the thread that reads ahead it may draw numbers and texts for a group (`draw`). In the step it may change what the
model is shown (`shown`), ask the model without the LoRA or with another one (`prepare`), name the layers whose hidden
states it reads (`keeps`), lead tokens around blocks (`routes`), and give terms of the pass that is learned from
(`terms`). Terms that need a pass of their own are a `Preservation`; passes that two of them want are made once.

What is asked of the model before the pass that is learned from is made without a gradient, and its LoRA is at strength
1 again afterwards, since blocks that are computed again in backward must meet the LoRA they had.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...config import RunConfig
from ...feed.loader import TrainingSet
from ...full.weights import TrainedSet
from ...lora.inject import LoraSet
from ...models.routes import TokenRoute
from ...models.transformer import LTXTransformer, Output
from ...objective.terms import Factor
from ..contexts import ContextStore, streams_of
from ..noised import Noised
from ..ready import Group


@dataclass(frozen=True)
class Kit:
    """What the regularizers of a run work with. `triggers` are the trigger words of the dataset, `silence` [8, T, 16]
    what the audio VAE makes of silence, `total` the steps of the run."""

    run: RunConfig
    model: LTXTransformer
    loras: TrainedSet
    contexts: ContextStore
    data: TrainingSet
    device: torch.device
    total: int
    version: str = ""
    triggers: tuple[str, ...] = ()
    silence: Tensor | None = None

    @property
    def lora(self) -> LoraSet:
        """What can be switched off, so that the model is the base; checks refuse to ask for it in other runs."""
        assert isinstance(self.loras, LoraSet), "the base is gone where its weights are trained"
        return self.loras

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.model.transformer_blocks)

    def texts(self, keys: Sequence[Any]) -> dict[str, Tensor]:
        """The contexts [count, S, D] of the captions or prompts `keys`, on the CPU, by stream."""
        return {one: self.contexts.batch(keys, one, "cpu") for one in streams_of(self.run.model.mode)}


@dataclass
class View:
    """A group on its way through a step: `group` is what the model is shown of it, `step` counts the steps before.

    `notes` are what a regularizer keeps from one call to the next, by its name.
    """

    kit: Kit
    group: Group
    step: int
    notes: dict[str, Any] = field(default_factory=dict)
    _base: Output | None = None

    def drawn(self, name: str) -> dict[str, Tensor]:
        """What `draw` of the regularizer `name` gave, on the device."""
        begins = f"{name}."
        return {key.removeprefix(begins): one for key, one in self.group.drawn.items() if key.startswith(begins)}

    def base(self, options: Mapping[str, Any]) -> Output:
        """The prediction of the model without the LoRA at what it is shown, made once."""
        if self._base is None:
            with self.kit.lora.off():
                self._base = answer_of(self.kit.model, self.group, options)
        return self._base


@dataclass(frozen=True)
class Value:
    """A part of the loss of a group: [count] each, the weight a number or one a sample."""

    values: Tensor
    weight: Factor = 1.0


@dataclass(frozen=True)
class Cost:
    """What a regularizer adds to a micro-batch. `forwards` and `steps` in passes without and with backward (those of
    the largest batch), `bytes` on the device, and numbers that are `trained` besides the LoRA."""

    forwards: float = 0.0
    steps: float = 0.0
    bytes: float = 0.0
    trained: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards,
            self.steps + other.steps,
            self.bytes + other.bytes,
            self.trained + other.trained,
        )


@dataclass(frozen=True)
class CostSizes:
    """What a cost is reckoned from: blocks, and of the picture of the largest batch its width and tokens.

    `itemsize` is the bytes of a number of the streams, `outputs` the numbers of a prediction of all streams.
    """

    depth: int
    width: int
    batch: int
    tokens: int
    itemsize: int
    outputs: int = 0


class Regularizer:
    """The base of all: it does nothing. `trained` is what it trains beside the LoRA, None for nothing.

    `asks_the_base`: it needs the model as it was before the run, or a mean of the LoRA.
    """

    name: ClassVar[str] = ""
    asks_the_base: ClassVar[bool] = False

    def __init__(self, settings: Any, kit: Kit) -> None:
        self.settings, self.kit = settings, kit
        self.trained: nn.Module | None = None

    @property
    def rate(self) -> float:
        """The learning rate of what is trained beside the LoRA."""
        own = getattr(self.settings, "learning_rate", None)
        return self.kit.run.train.learning_rate if own is None else own

    @classmethod
    def teaches(cls) -> bool:
        """Whether it gives the loss a term; the others change what the model is shown."""
        return cls.terms is not Regularizer.terms

    @classmethod
    def cost(cls, settings: Any, sizes: CostSizes) -> Cost:
        return Cost()

    def draw(self, group: Group, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        """Numbers and contexts for `group`, on the CPU, where all of its tensors are. Called in another thread."""
        return {}

    def shown(self, view: View) -> Group:
        """What the model is shown in place of `view.group`."""
        return view.group

    def keeps(self, view: View) -> tuple[str, ...]:
        """Names of the hidden states that it reads of the pass that is learned from."""
        return ()

    def routes(self, view: View) -> tuple[TokenRoute, ...]:
        return ()

    def prepare(self, view: View, options: Mapping[str, Any]) -> None:
        """Ask the model what has to be known before; `options` are those of the pass that is learned from."""

    def terms(self, view: View, out: Output) -> dict[str, Value]:
        """Parts of the loss of the pass that is learned from, by the name of their term."""
        return {}

    def facts(self, view: View) -> dict[str, Tensor]:
        """Columns of the metrics, one value a sample."""
        return {}

    def begin(self) -> None:
        """The run begins with another LoRA than the one that was there when this was made."""

    def stepped(self, step: int) -> None:
        """The LoRA has moved; `step` steps are done."""

    def state(self) -> dict[str, Any]:
        """What a resume needs besides `trained`."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""


class Preservation(Regularizer):
    """A term with a pass of its own: the LoRA is to predict there what the base predicts.

    `reads` are the streams that are compared. Those of one `key` share their passes.
    """

    reads: ClassVar[tuple[str, ...]] = ("video", "audio")
    asks_the_base = True

    @classmethod
    def teaches(cls) -> bool:
        return True

    @property
    def key(self) -> Any:
        raise NotImplementedError

    def beside(self, group: Group) -> Group | None:
        """What both are shown; None where the group has no use for it."""
        raise NotImplementedError

    def counts(self, group: Group) -> list[bool]:
        """Which samples of the group count."""
        return [True] * group.count


def with_texts(group: Group, name: str) -> Group:
    """`group` with the contexts that the regularizer `name` drew, in place of those of its captions."""
    drawn = {key: group.drawn[f"{name}.{key}"] for key in group.contexts}
    return replace(group, contexts=drawn)


def answer_of(model: LTXTransformer, group: Group, options: Mapping[str, Any] | None = None) -> Output:
    """What the model answers to `group`, without a gradient."""
    with torch.no_grad():
        return call(model, group, options)


def call(model: LTXTransformer, group: Group, options: Mapping[str, Any] | None = None) -> Output:
    """What the model answers to `group`."""
    v, a = group.video, group.audio
    return model(
        None if v is None else v.modality(group.contexts["video"]),
        None if a is None else a.modality(group.contexts["audio"]),
        **(options or {}),
    )


@contextmanager
def undisturbed(model: LTXTransformer) -> Iterator[None]:
    """While entered, the LoRA drops nothing."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def streams(group: Group, out: Output) -> Iterator[tuple[str, Noised, Tensor]]:
    """(name, stream, its prediction [count, T, C] without references) of those that are generated."""
    for name, stream, predicted in (("video", group.video, out.video), ("audio", group.audio, out.audio)):
        if stream is not None and predicted is not None and stream.generated:
            yield name, stream, predicted[:, -stream.clean.shape[1] :]


def course(schedule: str, warmup: int, end: int, step: int) -> float:
    """The factor on a weight in the step after `step` others: up from 0 in `warmup` steps, then down to 0 at `end`."""
    if warmup and step < warmup:
        return (step + 1) / warmup
    if schedule == "constant" or end <= warmup:
        return 1.0
    done = min(1.0, (step - warmup) / (end - warmup))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
