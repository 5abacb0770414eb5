"""TREAD: in the blocks of a route, a share of the tokens of the picture is all there is; the others go around them.

It saves the time and memory of those tokens in those blocks. Which ones stay is drawn for each clip and step;
references stay always. Nothing else is changed: samples, validation and what other regularizers ask for themselves see
every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...models.routes import TokenRoute, draw_kept
from ...objective.regularizers import RouteShare as Written
from ...objective.regularizers import TreadSettings
from ..ready import Group
from .base import Cost, CostSizes, Regularizer, View


class Tread(Regularizer):
    """Tokens that go around blocks in the middle."""

    name = "tread"

    @classmethod
    def cost(cls, settings: TreadSettings, sizes: CostSizes) -> Cost:
        routes = resolved(settings, sizes.depth)
        saved = sum((1 - route.keep) * (route.last - route.first + 1) for route in routes) / sizes.depth
        return Cost(steps=-settings.weight * saved if sizes.tokens else 0.0)

    def draw(self, group: Group, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        """The tokens that stay in each route, [count, K] each."""
        coin = float(torch.rand((), generator=generator))
        video = group.video
        if video is None or not video.generated or coin >= self.settings.weight:
            return {}
        reference = video.reference
        front = 0 if reference is None else reference.tokens.shape[1]
        tokens = front + video.clean.shape[1]
        return {
            str(number): draw_kept(tokens, front, route.keep, group.count, generator)
            for number, route in enumerate(resolved(self.settings, self.kit.depth))
        }

    def routes(self, view: View) -> tuple[TokenRoute, ...]:
        drawn = view.drawn(self.name)
        routes = resolved(self.settings, self.kit.depth)
        return tuple(
            TokenRoute(routes[int(number)].first, routes[int(number)].last, kept) for number, kept in drawn.items()
        )


def resolved(settings: TreadSettings, depth: int) -> list[Written]:
    """The routes with blocks counted from 0."""
    return [
        Written(first % depth if first < 0 else first, last % depth if last < 0 else last, keep)
        for first, last, keep in settings.parsed()
    ]


def covered(routes: Sequence[Written]) -> list[int]:
    """The blocks of all routes, in order; one that is in two of them is there twice."""
    return sorted(number for route in routes for number in range(route.first, route.last + 1))
