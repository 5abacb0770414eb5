"""The chart of a run: the loss of each step as dots and its moving average as a line, several terms apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import atomic
from ..media.font import drawable, load_font
from .metrics import LOSS, VALIDATION, loss_column, smooth, terms_of, validated

CURVE_COLOURS = (  # dots and line of each curve; after the last they begin again
    ("#a9c4ea", "#1f5fbf"),
    ("#f0c9a0", "#d0721a"),
    ("#b4dcb0", "#2f8a3a"),
    ("#d9b8e6", "#8440a8"),
    ("#e8b4b4", "#b03038"),
)
_FINER = 2  # it is drawn at so many times the size and reduced, which smooths the lines


def draw_chart(
    rows: Sequence[Mapping[str, Any]], path: Path, title: str = "", size: tuple[int, int] = (960, 480)
) -> Path:
    """Draw the loss of each step as dots and its moving average as a line, several terms apart; PNG."""
    with atomic(path) as temporary:
        chart_image(rows, title, size).save(temporary, format="PNG")
    return path


def chart_image(rows: Sequence[Mapping[str, Any]], title: str = "", size: tuple[int, int] = (960, 480)) -> Any:
    """The chart as a PIL image, for a file or for a preview in a host."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size[0] * _FINER, size[1] * _FINER), "#ffffff")
    font = load_font(14 * _FINER)
    draw = ImageDraw.Draw(image)
    curves = _curves(rows)
    values = sorted(value for curve in curves for _, value in curve.points if value is not None)
    left, top = 64 * _FINER, 44 * _FINER
    draw.text((left, 12 * _FINER), drawable(title) or "loss", fill="#222222", font=font)
    if len(curves) > 1:
        _draw_legend(draw, font, [curve.name for curve in curves], image.width - 20 * _FINER)
    if not values:
        draw.text((left, top + 20 * _FINER), "no finite loss yet", fill="#888888", font=font)
    else:
        steps = [step for step, _ in curves[0].points]
        axes = _Axes.of(values, steps, (left, top, image.width - 20 * _FINER, image.height - 44 * _FINER))
        axes.draw(draw, font)
        for number, curve in enumerate(curves):
            _draw_dots(draw, axes, curve, _colours(number)[0])
        for number, curve in enumerate(curves):
            _draw_average(draw, axes, curve, _colours(number)[1])
    return image.resize(size, Image.Resampling.LANCZOS)


class _Curve(NamedTuple):
    """A column of the metrics: its name in the legend, its (step, value) pairs, and whether it is of validation."""

    name: str
    points: list[tuple[int, float | None]]
    validation: bool


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[_Curve]:
    """One a term where there are several, else the loss alone; those of validation come last."""
    terms = terms_of(rows)
    names = terms if len(terms) > 1 else ["training"]
    columns = [loss_column(name) for name in names] if len(terms) > 1 else [LOSS]
    curves = [_Curve(name, _points(rows, column), False) for name, column in zip(names, columns, strict=True)]
    if any(map(validated, rows)):
        names = [f"{name} validation" for name in names] if len(terms) > 1 else ["validation"]
        columns = [f"{VALIDATION}{column}" for column in columns]
        curves += [_Curve(name, _points(rows, column), True) for name, column in zip(names, columns, strict=True)]
    return curves


def _points(rows: Sequence[Mapping[str, Any]], column: str) -> list[tuple[int, float | None]]:
    return [(int(row["step"]), row.get(column)) for row in rows]


class _Axes(NamedTuple):
    """What is shown, from `low` to `high` over the steps `first` to `last`, and the pixels it is shown in."""

    first: int
    last: int
    low: float
    high: float
    box: tuple[int, int, int, int]  # left, top, right, bottom

    @classmethod
    def of(cls, values: Sequence[float], steps: Sequence[int], box: tuple[int, int, int, int]) -> _Axes:
        """Axes for `values`, sorted. They end at the 99th percentile: single spikes must not flatten the rest."""
        high, low = values[min(len(values) - 1, int(len(values) * 0.99))], values[0]
        margin = max((high - low) * 0.08, abs(high) * 0.02, 1e-6)
        bottom = low - margin if low < 0 else max(0.0, low - margin)
        return cls(steps[0], max(steps[-1], steps[0] + 1), bottom, high + margin, box)

    def place(self, step: float, value: float) -> tuple[float, float]:
        """The pixel (x, y) of a value; one beyond the axis lies on its end."""
        left, top, right, bottom = self.box
        x = left + (right - left) * (step - self.first) / (self.last - self.first)
        y = bottom - (bottom - top) * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return x, y

    def draw(self, draw: Any, font: Any) -> None:
        """Lines and numbers of five values, and the numbers of six steps."""
        left, _, right, bottom = self.box
        for index in range(5):
            value = self.low + (self.high - self.low) * index / 4
            y = self.place(self.first, value)[1]
            draw.line([(left, y), (right, y)], fill="#e4e4e4", width=_FINER)
            draw.text((left - 8 * _FINER, y), f"{value:.3g}", fill="#555555", font=font, anchor="rm")
        for index in range(6):
            step = self.first + (self.last - self.first) * index / 5
            x = self.place(step, self.low)[0]
            draw.text((x, bottom + 8 * _FINER), f"{round(step)}", fill="#555555", font=font, anchor="ma")
        draw.text((right, bottom + 26 * _FINER), "step", fill="#555555", font=font, anchor="ra")


def _draw_legend(draw: Any, font: Any, names: Sequence[str], right: float) -> None:
    for index, name in reversed(list(enumerate(names))):
        draw.text((right, 12 * _FINER), name, fill=_colours(index)[1], font=font, anchor="ra")
        right -= draw.textlength(name, font=font) + 14 * _FINER


def _draw_dots(draw: Any, axes: _Axes, curve: _Curve, colour: str) -> None:
    for step, value in curve.points:
        if value is not None:
            x, y = axes.place(step, value)
            draw.ellipse([x - 2 * _FINER, y - 2 * _FINER, x + 2 * _FINER, y + 2 * _FINER], fill=colour)


def _draw_average(draw: Any, axes: _Axes, curve: _Curve, colour: str) -> None:
    values = [value for _, value in curve.points]
    # what is measured on the same clips with the same noise has nothing to be smoothed
    averages = values if curve.validation else smooth(values)
    line = [axes.place(curve.points[index][0], value) for index, value in enumerate(averages) if value is not None]
    if len(line) > 1:
        draw.line(line, fill=colour, width=3 * _FINER, joint="curve")


def _colours(curve: int) -> tuple[str, str]:
    return CURVE_COLOURS[curve % len(CURVE_COLOURS)]
