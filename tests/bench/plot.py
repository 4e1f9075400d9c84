"""A plot as hand-written SVG: a few panels side by side, logarithmic axes, a line a series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

_WIDTH: Final = 460
_HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 16, 40, 52
_COLOURS: Final = ("#1a6fb5", "#c2571a", "#3d8b40", "#7a4fa3")
_GRID: Final = "#d9d9d9"
_PREFIXES: Final = ((1e6, "M"), (1e3, "k"), (1, ""))


class Series(NamedTuple):
    """A line of points (x, y), all above 0."""

    name: str
    points: Sequence[tuple[float, float]]


class Panel(NamedTuple):
    """One plot: both axes are logarithmic, but y from 0 on where `linear_y`."""

    title: str
    x_name: str
    y_name: str
    series: Sequence[Series]
    linear_y: bool = False


class Axis(NamedTuple):
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def at(self, value: float) -> float:
        """The pixel of a value."""
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values to be named."""
        if self.logarithmic:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [10.0**exponent for exponent in exponents]
            if len(values) < 4:
                values = [step * value for value in values for step in (1, 2, 5)]
        else:
            unit = 10 ** math.floor(math.log10(self.high))
            step = next(unit * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if self.high / (unit * part) <= 6)
            values = [step * number for number in range(int(self.high / step) + 1)]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]


def draw(panels: Sequence[Panel], *, columns: int = 2) -> str:
    """The panels as one SVG document."""
    lines = math.ceil(len(panels) / columns)
    size = f'width="{columns * _WIDTH}" height="{lines * _HEIGHT}" viewBox="0 0 {columns * _WIDTH} {lines * _HEIGHT}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="#ffffff"/>')
    for number, panel in enumerate(panels):
        x, y = number % columns * _WIDTH, number // columns * _HEIGHT
        parts += [f'<g transform="translate({x},{y})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> list[str]:
    xs = [x for series in panel.series for x, _ in series.points]
    ys = [y for series in panel.series for _, y in series.points]
    parts = [f'<text x="{_LEFT}" y="18" font-size="14" font-weight="bold">{escape(panel.title)}</text>']
    if not xs:
        return [*parts, f'<text x="{_LEFT}" y="{_HEIGHT // 2}">not measured</text>']
    across = Axis(min(xs) / 1.3, max(xs) * 1.3, _LEFT, _WIDTH - _RIGHT, logarithmic=True)
    low, high = (0.0, max(ys) * 1.15) if panel.linear_y else (min(ys) / 1.6, max(ys) * 1.6)
    upward = Axis(low, high, _HEIGHT - _BOTTOM, _TOP, logarithmic=not panel.linear_y)
    parts += _grid(across, upward)
    middle = (_TOP + _HEIGHT - _BOTTOM) // 2
    centre = (_LEFT + _WIDTH - _RIGHT) // 2
    parts.append(f'<text x="{centre}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(panel.x_name)}</text>')
    parts.append(
        f'<text transform="translate(16,{middle}) rotate(-90)" text-anchor="middle">{escape(panel.y_name)}</text>'
    )
    for number, series in enumerate(panel.series):
        parts += _line(series, across, upward, number)
    return parts


def _grid(across: Axis, upward: Axis) -> list[str]:
    parts = []
    for value in across.ticks():
        x = across.at(value)
        parts.append(f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{_HEIGHT - _BOTTOM}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_short(value)}</text>')
    for value in upward.ticks():
        y = upward.at(value)
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{_short(value)}</text>')
    return parts


def _line(series: Series, across: Axis, upward: Axis, number: int) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    pixels = [(across.at(x), upward.at(y)) for x, y in series.points]
    path = " ".join(f"{x},{y}" for x, y in pixels)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in pixels]
    left = _LEFT + 8 + number * 130
    parts.append(f'<rect x="{left}" y="26" width="10" height="10" fill="{colour}"/>')
    parts.append(f'<text x="{left + 14}" y="35">{escape(series.name)}</text>')
    return parts


def _short(value: float) -> str:
    """`20k`, `1M`, `0.5`."""
    for size, sign in _PREFIXES:
        if value >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"
