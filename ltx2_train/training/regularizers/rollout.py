"""Scheduled sampling: a clip is shown as the model itself would have made it, and learns the way back to its data.

In samples the model reads its own earlier answers, in training always clean mixtures of data and noise. Here it takes
n steps of Euler from a higher level s down to the level sigma of the clip, with the LoRA as it is and no gradient:

    x_s = (1 - s) x0 + s noise;   x <- x + (s' - s) v(x, s) for each step;   noise' = (x - (1 - sigma) x0) / sigma

What is shown is x, and since x = (1 - sigma) x0 + sigma noise', the velocity to learn is noise' - x0: the straight line
from where the model came to, to the data. A perfect model comes to noise' = noise.

Scheduled sampling: Bengio et al. 2015, arXiv:1506.03099.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...objective.flow import add_noise
from ...objective.regularizers import RolloutSettings
from ...objective.sigmas import SIGMA_LIMIT
from ..noised import Noised
from ..ready import Group
from .base import Cost, CostSizes, Regularizer, View, answer_of, course, streams, undisturbed

LOWEST = 0.05  # noise level below which an error of the model would count too much, divided by it
DRIFT = "rollout_drift"


class Rollout(Regularizer):
    """Clips as the model would have made them."""

    name = "rollout"

    @classmethod
    def cost(cls, settings: RolloutSettings, sizes: CostSizes) -> Cost:
        any_of_batch = 1 - (1 - settings.weight) ** sizes.batch
        return Cost(forwards=any_of_batch * (1 + settings.steps) / 2)

    def draw(self, group: Group, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        """Which clips, bool [count]; and of each stream the levels [n + 1, count], from the highest to its own."""
        chance = self.settings.weight * course("constant", self.settings.warmup_steps, 0, step)
        chosen = torch.rand(group.count, generator=generator) < chance
        count = int(torch.randint(1, self.settings.steps + 1, (), generator=generator))
        found: dict[str, Tensor] = {}
        for name, stream in self._streams(group):
            chosen = chosen & (stream.sigma >= LOWEST)
            begin = (stream.sigma + count * self.settings.step_size).clamp(max=SIGMA_LIMIT)
            way = torch.linspace(0, 1, count + 1)[:, None]
            found[name] = begin + (stream.sigma - begin) * way
        return {**found, "chosen": chosen} if found and bool(chosen.any()) else {}

    def shown(self, view: View) -> Group:
        drawn, group = view.drawn(self.name), view.group
        if not drawn:
            return group
        chosen = drawn["chosen"][:, None, None]
        with undisturbed(self.kit.model), torch.no_grad():
            for place in range(len(next(iter(drawn.values()))) - 1):
                group = self._step(group, drawn, place)
        again = {}
        for name, stream in self._streams(view.group):
            made = getattr(group, name)
            again[name] = replace(stream, noise=torch.where(chosen, made.noise, stream.noise))
            view.notes.setdefault(DRIFT, (again[name].noise - stream.noise).square().mean(dim=(1, 2)).sqrt())
        return replace(view.group, **again)

    def facts(self, view: View) -> dict[str, Tensor]:
        """How far what the model made lies from what it should have made."""
        return {DRIFT: view.notes[DRIFT]} if DRIFT in view.notes else {}

    def _step(self, group: Group, drawn: dict[str, Tensor], place: int) -> Group:
        """One step of Euler, from level `place` to the next."""
        here = {name: replace(one, sigma=drawn[name][place]) for name, one in self._streams(group)}
        out = answer_of(self.kit.model, replace(group, **here))
        moved = {}
        for name, stream, velocity in streams(replace(group, **here), out):
            begin, end = drawn[name][place], drawn[name][place + 1]
            x = add_noise(stream.clean, stream.noise, begin) + (end - begin)[:, None, None] * velocity.float()
            level = end[:, None, None].clamp(min=1e-6)
            moved[name] = replace(stream, noise=(x - (1 - level) * stream.clean) / level, sigma=end)
        return replace(group, **moved)

    @staticmethod
    def _streams(group: Group) -> list[tuple[str, Noised]]:
        pairs = (("video", group.video), ("audio", group.audio))
        return [(name, one) for name, one in pairs if one is not None and one.generated]
