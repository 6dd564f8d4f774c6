"""Line charts as inline SVG, drawn by hand: small, sharp at any size, and the same bytes for the same numbers.

Colours of grid and text, and the widths of lines, come from the page (classes `grid`, `line`, `faint`, `hover`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        x: (n,) positions, ascending from 0 or above.
        y: (n,) values; NaN leaves a gap.
        colour: CSS colour.
        faint: drawn thin and pale, as the raw values beneath a smoothed line are.
    """

    x: npt.ArrayLike
    y: npt.ArrayLike
    colour: str
    faint: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "",
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    hover: Sequence[tuple[float, str]] = (),
    width: int = 340,
    height: int = 160,
) -> str:
    """Draw lines over common axes.

    Args:
        lines: later ones lie on top.
        title: what a screen reader says.
        x_label: name of the x axis.
        y_range: ends of the y axis (the x axis starts at 0); by default from 0, or from the least value where
            `log`, to the largest value. Values beyond it are drawn at its edge.
        log: logarithmic y axis; values that are not positive are left out.
        hover: (x, text) shown where the pointer is near x.
        width: of the drawing in pixels; the page scales it.
        height: as `width`.

    Returns:
        One `<svg>` element; empty axes where no line has a finite value.
    """
    series = [(line, *_points(line, log=log)) for line in lines]
    x_range = (0.0, _span([x for _, x, _ in series])[1])
    if y_range is None:
        low, high = _span([y for _, _, y in series])
        y_range = (low, high) if log else (min(0.0, low), high)
    axes = _Axes(x_range, y_range, log, width, height, x_label)
    body = axes.draw()
    for line, x, y in series:
        style = "faint" if line.faint else "line"
        body.append(f'<path class="{style}" stroke="{escape(line.colour)}" d="{_path(axes.to_x(x), axes.to_y(y))}"/>')
    body += axes.draw_hover(hover)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'


@dataclass(frozen=True)
class _Axes:
    """Where a value lies in the drawing."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool
    width: int
    height: int
    x_label: str

    left, top = 42, 8

    @property
    def right(self) -> int:
        return self.width - 12

    @property
    def bottom(self) -> int:
        return self.height - (38 if self.x_label else 22)

    def to_x(self, values: npt.ArrayLike) -> FloatArray:
        low, high = self.x_range
        return self.left + (np.asarray(values, np.float64) - low) / (high - low) * (self.right - self.left)

    def to_y(self, values: npt.ArrayLike) -> FloatArray:
        inside = np.clip(np.asarray(values, np.float64), *self.y_range)
        low, high = self.y_range
        if self.log:
            inside, low, high = np.log10(inside), math.log10(low), math.log10(high)
        return np.asarray(self.bottom - (inside - low) / (high - low) * (self.bottom - self.top), np.float64)

    def draw(self) -> list[str]:
        found: list[str] = []
        for tick in log_ticks(*self.y_range) if self.log else ticks(*self.y_range, 4):
            y = float(self.to_y(tick))
            found.append(f'<path class="grid" d="M{self.left} {y:.1f}H{self.right}"/>')
            found.append(f'<text x="{self.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_tick_text(tick)}</text>')
        for tick in ticks(*self.x_range, max(2, self.width // 80)):
            x = float(self.to_x(tick))
            found.append(f'<text x="{x:.1f}" y="{self.bottom + 15}" text-anchor="middle">{_tick_text(tick)}</text>')
        if self.x_label:
            middle = (self.left + self.right) / 2
            label = escape(self.x_label)
            found.append(f'<text x="{middle:.1f}" y="{self.height - 4}" text-anchor="middle">{label}</text>')
        return found

    def draw_hover(self, points: Sequence[tuple[float, str]]) -> list[str]:
        """Invisible columns, one a point and as wide as its neighbourhood, that carry a text."""
        x = [float(self.to_x(position)) for position, _ in points]
        edges = [self.left, *((a + b) / 2 for a, b in pairwise(x)), self.right]
        return [
            f'<rect class="hover" x="{left:.1f}" y="{self.top}" width="{right - left:.1f}" '
            f'height="{self.bottom - self.top}"><title>{escape(text)}</title></rect>'
            for (_, text), (left, right) in zip(points, pairwise(edges), strict=False)
        ]


def smooth(values: npt.ArrayLike, window: int) -> FloatArray:
    """Centred moving mean over `window` values, fewer at the ends.

    Args:
        values: (n,) finite numbers.
        window: at least 1.

    Returns:
        (n,) float64.
    """
    series = np.asarray(values, dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(series)])
    index = np.arange(series.size)
    first = np.maximum(index - window // 2, 0)
    last = np.minimum(index + (window - 1) // 2 + 1, series.size)
    return np.asarray((sums[last] - sums[first]) / (last - first), dtype=np.float64)


def thin(values: npt.ArrayLike, points: int) -> FloatArray:
    """At most `points` values, each the mean of neighbours, so that a long run stays a small drawing.

    Args:
        values: (n,) finite numbers.
        points: at least 1.

    Returns:
        (min(n, points),) float64.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.size <= points:
        return series
    return np.array([chunk.mean() for chunk in np.array_split(series, points)])


def ticks(low: float, high: float, count: int) -> list[float]:
    """Some `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """The powers of ten from `low` to `high`, and 2 and 5 times these where there are fewer than three."""
    powers = [10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    found: list[float] = []
    for factors in ((1.0,), (1.0, 2.0, 5.0)):
        candidates = [factor * power for power in powers for factor in factors]
        found = [value for value in candidates if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            break
    return found


def _points(line: Line, *, log: bool) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(line.x, dtype=np.float64), np.array(line.y, dtype=np.float64)
    y[~np.isfinite(y)] = np.nan
    if log:
        y[~(y > 0)] = np.nan
    return x, y


def _span(series: Sequence[FloatArray]) -> tuple[float, float]:
    """Least and largest value, moved apart where they are the same; (0.1, 1) where there is none."""
    values = np.concatenate([np.zeros(0), *series])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.1, 1.0
    low, high = float(values.min()), float(values.max())
    if high > low:
        return low, high
    return (low * 0.9, low * 1.1) if low > 0 else (low, low + 1.0)


def _path(x: FloatArray, y: FloatArray) -> str:
    """SVG path data through the points; a lone point between gaps becomes a dot."""
    parts: list[str] = []
    known = np.isfinite(y)
    for index in np.flatnonzero(known):
        joined = index > 0 and known[index - 1]
        alone = not joined and not (index + 1 < known.size and known[index + 1])
        parts.append(f"{'L' if joined else 'M'}{x[index]:.1f} {y[index]:.1f}{'h0' if alone else ''}")
    return "".join(parts)


def _tick_text(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if 0 < abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")
