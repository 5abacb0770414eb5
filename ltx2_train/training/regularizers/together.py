"""The regularizers of a run: made from its settings, asked in each step, saved and gone on with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RunError
from ...events import Events
from ...models.transformer import LTXTransformer, Output
from ...objective.flow import masked_mean
from ...objective.regularizers import RegularizerSettings
from ...objective.terms import Factor, Term
from ..ready import Group, Ready
from ..step import StepSound, StepTerms, in_batch_order, ready_step
from .base import Cost, CostSizes, Kit, Preservation, Regularizer, Value, View, answer_of, call, streams
from .table import REGULARIZERS


class Regularizers:
    """Those whose weight is not 0. With none of them a step is what it is without this class, to the bit."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        settings = kit.run.regularizers
        self.active: list[Regularizer] = [
            REGULARIZERS.get(name)(getattr(settings, name), kit) for name in settings.wanted
        ]

    def __bool__(self) -> bool:
        return bool(self.active)

    def groups(self) -> list[dict[str, Any]]:
        """Groups of the optimizer for what is trained beside the LoRA."""
        return [
            {"params": list(one.trained.parameters()), "lr": one.rate, "name": one.name}
            for one in self.active
            if one.trained is not None
        ]

    def parameters(self) -> Iterator[nn.Parameter]:
        for one in self.active:
            if one.trained is not None:
                yield from one.trained.parameters()

    def drawn(self, ready: Ready, generator: torch.Generator, step: int) -> Ready:
        """`ready`, which is on the CPU, with what its regularizers draw and read."""
        groups = []
        for group in ready.groups:
            found = {
                f"{one.name}.{key}": value
                for one in self.active
                for key, value in one.draw(group, generator, step).items()
            }
            groups.append(replace(group, drawn=found))
        return replace(ready, groups=tuple(groups), step=step)

    def parts(self, model: LTXTransformer, ready: Ready, sound: StepSound | None) -> Iterator[StepTerms]:
        """The loss of a micro-batch with all its terms, in parts; the gradient of each has to be taken before the next
        is asked for."""
        help = _Help(self.active, self.kit, ready.step)
        yield ready_step(model, ready, self.kit.run, sound, help)
        for members in self._together():
            if (part := self._beside(model, ready, members)) is not None:
                yield part

    def begin(self) -> None:
        """The run begins with the LoRA as it is now."""
        for one in self.active:
            one.begin()

    def stepped(self, step: int) -> None:
        """The weights have moved; `step` steps are done."""
        for one in self.active:
            one.stepped(step)

    def state_dict(self) -> dict[str, Any] | None:
        """For a resume equal to an unbroken run; None where there is nothing to keep."""
        found = {}
        for one in self.active:
            weights = {} if one.trained is None else dict(one.trained.state_dict())
            if weights or one.state():
                found[one.name] = {"weights": weights, "state": one.state()}
        return found or None

    def load_state_dict(self, state: Mapping[str, Any] | None, events: Events) -> None:
        """Go on from `state_dict`. Says what begins anew. Raises RunError where it is of other sizes."""
        state = state or {}
        for one in self.active:
            saved = state.get(one.name)
            if saved is None:
                if one.trained is not None or one.state():
                    events.message(f"The state knows nothing of regularizers.{one.name}: it begins anew.", "warning")
                continue
            try:
                if one.trained is not None:
                    one.trained.load_state_dict(saved["weights"])
                one.restore(saved["state"])
            except (RuntimeError, KeyError) as error:
                raise RunError(f"The state of regularizers.{one.name} is not that of this run ({error}).") from None

    def _together(self) -> list[list[Preservation]]:
        """Those that want a pass of their own, with those that want the same one."""
        found: dict[Any, list[Preservation]] = {}
        for one in self.active:
            if isinstance(one, Preservation):
                found.setdefault(one.key, []).append(one)
        return list(found.values())

    def _beside(self, model: LTXTransformer, ready: Ready, members: list[Preservation]) -> StepTerms | None:
        """The terms of `members`, which are shown the same; None where the batch has no use for them."""
        first, shown = members[0], [members[0].beside(group) for group in ready.groups]
        if not any(group is not None for group in shown):
            return None
        values: list[Tensor] = []
        counts: list[bool] = []
        for group, other in zip(ready.groups, shown, strict=True):
            if other is None:
                values.append(torch.zeros(group.count, device=self.kit.device))
                counts += [False] * group.count
                continue
            with self.kit.lora.off():
                base = answer_of(model, other)
            values.append(_apart(other, call(model, other), base, first.reads))
            counts += first.counts(group)
        value = in_batch_order(values, ready.back)
        counting = _in_order(counts, ready)
        if all(counting):
            return StepTerms({one.name: Term(value, one.settings.weight) for one in members}, {}, adds=True)
        mask = torch.tensor(counting, device=value.device)
        rows = torch.tensor([row for row, there in enumerate(counting) if there], device=value.device)
        value = torch.where(mask, value, 0.0)
        return StepTerms({one.name: Term(value, one.settings.weight, rows) for one in members}, {}, adds=True)


class _Help:
    """What the regularizers make of one micro-batch; see StepHelp."""

    def __init__(self, active: list[Regularizer], kit: Kit, step: int) -> None:
        self._active, self._kit, self._step = active, kit, step
        self._view: View | None = None
        self._found: list[dict[str, Value]] = []
        self._facts: list[dict[str, Tensor]] = []
        self._counts: list[int] = []

    def before(self, group: Group) -> tuple[Group, Mapping[str, Any]]:
        view = self._view = View(self._kit, group, self._step)
        for one in self._active:
            view.group = one.shown(view)
        keeps = {name for one in self._active for name in one.keeps(view)}
        routes = [route for one in self._active for route in one.routes(view)]
        routed: dict[str, Any] = {"routes": routes} if routes else {}
        for one in self._active:
            one.prepare(view, routed)
        return view.group, {**routed, **({"keep_hidden": sorted(keeps)} if keeps else {})}

    def after(self, out: Output) -> None:
        view = self._view
        assert view is not None
        found: dict[str, Value] = {}
        facts: dict[str, Tensor] = {}
        for one in self._active:
            found |= one.terms(view, out)
            facts |= one.facts(view)
        self._found.append(found)
        self._facts.append(facts)
        self._counts.append(view.group.count)
        self._view = None

    def terms(self, ready: Ready) -> dict[str, Term]:
        names = dict.fromkeys(name for found in self._found for name in found)
        return {name: self._term(name, ready) for name in names}

    def facts(self) -> dict[str, Tensor | float]:
        names = dict.fromkeys(name for facts in self._facts for name in facts)
        return {name: torch.cat([facts[name] for facts in self._facts if name in facts]) for name in names}

    def _term(self, name: str, ready: Ready) -> Term:
        """One term of all groups; samples of a group that has none of it stay out of the record."""
        parts = [found.get(name) for found in self._found]
        device = next(part.values.device for part in parts if part is not None)
        values, weights = [], []
        there: list[bool] = []
        for part, count in zip(parts, self._counts, strict=True):
            values.append(torch.zeros(count, device=device) if part is None else part.values)
            weights.append(0.0 if part is None else part.weight)
            there += [part is not None] * count
        rows = None
        if not all(there):
            rows = torch.tensor([row for row, on in enumerate(_in_order(there, ready)) if on], device=device)
        return Term(in_batch_order(values, ready.back), self._weight(weights, device, ready.back), rows)

    def _weight(self, weights: list[Factor], device: torch.device, back: Tensor | None) -> Factor:
        plain = {weight for weight in weights if isinstance(weight, (int, float))} - {0.0}
        if len(plain) <= 1 and all(isinstance(weight, (int, float)) for weight in weights):
            return plain.pop() if plain else 0.0  # a group that has none of it has values of 0
        spread = [
            torch.as_tensor(weight, dtype=torch.float32, device=device).expand(count)
            for weight, count in zip(weights, self._counts, strict=True)
        ]
        return in_batch_order(spread, back)


def costs(settings: RegularizerSettings, sizes: CostSizes) -> Cost:
    """What all regularizers of a run add to a micro-batch; passes that are shared count once."""
    found = Cost()
    for name in settings.wanted:
        found = found + REGULARIZERS.get(name).cost(getattr(settings, name), sizes)
    dop = settings.dop
    if settings.blank.weight and dop.weight and dop.captions == "class" and not dop.class_prompt:
        found = found + Cost(forwards=-1, steps=-1)
    return found


def _in_order(flags: list[bool], ready: Ready) -> list[bool]:
    """Of the samples of all groups, in the order of the batch."""
    return [flags[place] for place in ready.places] if ready.places else flags


def _apart(group: Group, out: Output, base: Output, reads: tuple[str, ...]) -> Tensor:
    """[count]: the mean squared distance of both predictions over what is generated, summed over the streams."""
    others = {name: predicted for name, _, predicted in streams(group, base)}
    found = [
        masked_mean((predicted.float() - others[name].float()).square(), stream.judged)
        for name, stream, predicted in streams(group, out)
        if name in reads
    ]
    assert found, "nothing is compared"
    return torch.stack(found).sum(dim=0)
