"""Anti-aliased drawing with signed distances: shapes become coverage, a lit surface, and exact labels.

A shape is evaluated on its own bounding box as the signed distance `d` to its outline in pixels (negative inside).
`coverage = clip(0.5 - d / softness, 0, 1)` blends its colour; `d <= 0` (coverage of at least one half) is its label. A
softness above one pixel is the ramp that a moving edge leaves during the exposure, so motion blur costs nothing and
the label stays that of the sharp shape at mid-exposure.

Only +, -, *, /, sqrt, min and max touch pixels, so that equal seeds give equal bytes on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]
Point = tuple[float, float]
Colour = tuple[float, float, float]

TILE = 256  # side of a texture tile, a power of two so that coordinates wrap with a bit mask


@dataclass(frozen=True)
class Light:
    """A distant light plus ambient light; (x, y, z) is a unit vector towards the light, z towards the camera."""

    x: float
    y: float
    z: float
    ambient: float = 0.5
    diffuse: float = 0.55


@dataclass(frozen=True)
class Material:
    """What a surface looks like.

    Attributes:
        colour: RGB in 0..255, the colour of an untextured surface.
        tile: (3, TILE, TILE) float32 RGB texture in 0..255, or None.
        scale: tile texels per pixel of the picture.
    """

    colour: Colour
    tile: FloatArray | None = None
    scale: float = 1.0

    def tinted(self, factor: float) -> Material:
        """The same material, lighter or darker, without texture."""
        r, g, b = self.colour
        return Material((r * factor, g * factor, b * factor))


@dataclass(frozen=True)
class Field:
    """A shape evaluated on its bounding box; every array is (h, w) float32.

    Attributes:
        rows, cols: the box within the canvas.
        d: signed distance to the outline, pixels, negative inside.
        nx, ny: the part of the surface normal that lies in the image plane.
        u, v: texture coordinates across and along the shape, pixels.
    """

    rows: slice
    cols: slice
    d: FloatArray
    nx: FloatArray
    ny: FloatArray
    u: FloatArray
    v: FloatArray

    def cut(self, point: Point, normal: Point) -> Field:
        """Keep what lies behind the line through `point`; `normal` (any length) points to what is cut away."""
        length = math.hypot(*normal)
        px, py = _centres(self.rows, self.cols)
        line = (px - point[0]) * (normal[0] / length) + (py - point[1]) * (normal[1] / length)
        return replace(self, d=np.maximum(self.d, line))

    def without_ellipse(self, centre: Point, rx: float, ry: float, angle: float) -> Field:
        """Keep what lies outside an ellipse."""
        x, y = _turned(self.rows, self.cols, centre, angle)
        return replace(self, d=np.maximum(self.d, -_ellipse_distance(x, y, rx, ry)))


class Canvas:
    """A picture being drawn, with the label of what is on top at each pixel.

    Attributes:
        rgb: (3, H, W) float32, 0..255.
        labels: (H, W) uint8; 0 is background.
        light: the light that `paint` uses.
    """

    def __init__(self, rgb: FloatArray, light: Light) -> None:
        self.rgb = rgb
        self.labels: LabelArray = np.zeros(rgb.shape[1:], dtype=np.uint8)
        self.light = light

    def paint(
        self, field: Field | None, material: Material, label: int | None, *, softness: float = 1.0, shading: float = 1.0
    ) -> None:
        """Blend a lit surface over the picture; `label=None` leaves the labels alone, 0 takes them away.

        Args:
            field: the shape; None (outside the canvas) draws nothing.
            material: its surface.
            label: what `labels` becomes where the shape covers at least half of a pixel.
            softness: width of the edge's ramp in pixels, at least 1.
            shading: 0 paints flat colour, 1 shades by the light in full.
        """
        if field is None:
            return
        cover = np.clip(0.5 - field.d * (1.0 / softness), 0.0, 1.0)
        shade = self._shade(field, shading)
        box = self.rgb[:, field.rows, field.cols]
        if material.tile is None:
            for k, value in enumerate(material.colour):
                box[k] += (value * shade - box[k]) * cover
        else:
            column = (field.u * material.scale).astype(np.int32) & (TILE - 1)
            row = (field.v * material.scale).astype(np.int32) & (TILE - 1)
            texel = row * TILE + column
            for k, values in enumerate(material.tile):
                box[k] += (values.ravel().take(texel) * shade - box[k]) * cover
        if label is not None:
            self.labels[field.rows, field.cols][field.d <= 0] = label

    def darken(self, field: Field | None, amount: float, *, softness: float, on: Sequence[int] | None = None) -> None:
        """Multiply by `1 - amount * coverage`: a cast shadow; `on` limits it to pixels of the given labels."""
        if field is None:
            return
        factor = np.clip(0.5 - field.d * (1.0 / softness), 0.0, 1.0) * amount
        if on is not None:
            factor *= np.isin(self.labels[field.rows, field.cols], on)
        self.rgb[:, field.rows, field.cols] *= 1.0 - factor

    def capsule(self, a: Point, b: Point, ra: float, rb: float | None = None, pad: float = 1.0) -> Field | None:
        """A segment from `a` to `b` with rounded ends, radius `ra` at `a` and `rb` (default `ra`) at `b`."""
        rb = ra if rb is None else rb
        box = self._box(
            min(a[0] - ra, b[0] - rb) - pad,
            max(a[0] + ra, b[0] + rb) + pad,
            min(a[1] - ra, b[1] - rb) - pad,
            max(a[1] + ra, b[1] + rb) + pad,
        )
        if box is None:
            return None
        rows, cols = box
        ux, uy, length = _direction(a, b)
        px, py = _centres(rows, cols)
        along = (px - a[0]) * ux + (py - a[1]) * uy
        side = (py - a[1]) * ux - (px - a[0]) * uy
        inner = np.clip(along, 0.0, length)
        over = along - inner
        radius = inner * ((rb - ra) / length) + ra
        d = np.sqrt(side * side + over * over) - radius
        lateral = np.divide(
            side, radius, dtype=np.float32
        )  # none along the axis: a round end looks like a doll's joint
        nx, ny = np.multiply(lateral, -uy, dtype=np.float32), np.multiply(lateral, ux, dtype=np.float32)
        return Field(rows, cols, d, nx, ny, side, along)

    def ellipse(self, centre: Point, rx: float, ry: float, angle: float = 0.0, pad: float = 1.0) -> Field | None:
        """An ellipse turned by `angle` radians (clockwise on the picture)."""
        reach = max(rx, ry) + pad
        box = self._box(centre[0] - reach, centre[0] + reach, centre[1] - reach, centre[1] + reach)
        if box is None:
            return None
        rows, cols = box
        c, s = math.cos(angle), math.sin(angle)
        x, y = _turned(rows, cols, centre, angle)
        nx, ny = x * (1.0 / rx), y * (1.0 / ry)
        return Field(rows, cols, _ellipse_distance(x, y, rx, ry), nx * c - ny * s, ny * c + nx * s, x, y)

    def profile(self, a: Point, b: Point, knots: Sequence[Point], pad: float = 1.0) -> Field | None:
        """A body of revolution seen from the side: `knots` are (distance from `a`, half width), pixels, in order."""
        ux, uy, _ = _direction(a, b)
        widest = max(width for _, width in knots)
        first, last = knots[0][0], knots[-1][0]
        xs = [a[0] + ux * v - uy * w for v in (first, last) for w in (-widest, widest)]
        ys = [a[1] + uy * v + ux * w for v in (first, last) for w in (-widest, widest)]
        box = self._box(min(xs) - pad, max(xs) + pad, min(ys) - pad, max(ys) + pad)
        if box is None:
            return None
        rows, cols = box
        px, py = _centres(rows, cols)
        along = (px - a[0]) * ux + (py - a[1]) * uy
        side = (py - a[1]) * ux - (px - a[0]) * uy
        width = np.full_like(along, knots[0][1])
        for (v0, w0), (v1, w1) in pairwise(knots):
            width += np.clip(along - v0, 0.0, v1 - v0) * ((w1 - w0) / (v1 - v0))
        width = np.maximum(width, 0.5)
        d = np.maximum(np.abs(side) - width, np.maximum(first - along, along - last))
        lateral: FloatArray = np.clip(side / width, -1.0, 1.0)
        return Field(rows, cols, d, lateral * -uy, lateral * ux, side, along)

    def polygon(self, points: Sequence[Point], rounding: float = 0.0, pad: float = 1.0) -> Field | None:
        """A convex polygon, its outline moved outwards by `rounding`; flat, facing the camera."""
        reach = pad + rounding
        xs, ys = [x for x, _ in points], [y for _, y in points]
        box = self._box(min(xs) - reach, max(xs) + reach, min(ys) - reach, max(ys) + reach)
        if box is None:
            return None
        rows, cols = box
        px, py = _centres(rows, cols)
        area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True))
        turn = 1.0 if area > 0 else -1.0
        d = np.full((py.shape[0], px.shape[1]), -1e6, dtype=np.float32)
        for a, b in zip(points, [*points[1:], points[0]], strict=True):
            ux, uy, _ = _direction(a, b)
            d = np.maximum(d, ((px - a[0]) * uy - (py - a[1]) * ux) * turn)
        flat = np.zeros_like(d)
        return Field(rows, cols, d - rounding, flat, flat, px - xs[0] + flat, py - ys[0] + flat)

    def _shade(self, field: Field, shading: float) -> FloatArray | float:
        light = self.light
        if shading == 0.0:
            return light.ambient + light.diffuse * light.z
        nx, ny = field.nx * shading, field.ny * shading
        nz = np.sqrt(np.maximum(1.0 - nx * nx - ny * ny, 0.0))
        facing = np.maximum(nx * light.x + ny * light.y + nz * light.z, 0.0)
        return np.add(facing * light.diffuse, light.ambient, dtype=np.float32)

    def _box(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice] | None:
        height, width = self.labels.shape
        left, right = max(math.floor(x0), 0), min(math.ceil(x1), width)
        top, bottom = max(math.floor(y0), 0), min(math.ceil(y1), height)
        return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def snap(value: float) -> float:
    """Round a coordinate to 1/64 pixel, so that the last bit of a sine does not reach the picture."""
    return round(value * 64.0) / 64.0


def _centres(rows: slice, cols: slice) -> tuple[FloatArray, FloatArray]:
    px = np.arange(cols.start, cols.stop, dtype=np.float32)[None, :] + np.float32(0.5)
    py = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5)
    return px, py


def _turned(rows: slice, cols: slice, centre: Point, angle: float) -> tuple[FloatArray, FloatArray]:
    px, py = _centres(rows, cols)
    c, s = math.cos(angle), math.sin(angle)
    return (px - centre[0]) * c + (py - centre[1]) * s, (py - centre[1]) * c - (px - centre[0]) * s


def _ellipse_distance(x: FloatArray, y: FloatArray, rx: float, ry: float) -> FloatArray:
    """Distance to an ellipse, exact on its outline and of the right slope there."""
    ex, ey = x * (1.0 / rx), y * (1.0 / ry)
    gx, gy = ex * (1.0 / rx), ey * (1.0 / ry)
    k1, k2 = np.sqrt(ex * ex + ey * ey), np.sqrt(gx * gx + gy * gy)
    d: FloatArray = k1 * (k1 - 1.0) / np.maximum(k2, 1e-6)
    return d


def _direction(a: Point, b: Point) -> tuple[float, float, float]:
    length = max(math.hypot(b[0] - a[0], b[1] - a[1]), 1e-3)
    if length <= 1e-3:
        return 0.0, 1.0, length
    return (b[0] - a[0]) / length, (b[1] - a[1]) / length, length
