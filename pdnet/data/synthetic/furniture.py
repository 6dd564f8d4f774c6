"""Things to draw a place with: a sheet to draw on, and the furniture, plants, goods and houses that stand about."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from pdnet.data.synthetic.raster import Colour
from pdnet.data.synthetic.textures import any_colour, clip_colour, rgb_bytes, skin_colour, wood_colour

Box = tuple[float, float, float, float]  # left, top, width, height in pixels

_SUPERSAMPLING = 2  # Pillow draws hard edges: pictures are drawn twice as large and reduced


class Art:
    """A picture in the making, in units of pixels of the finished picture.

    Attributes:
        rng: source of every draw.
        width, height: of the finished picture.
        picture: RGBA, larger by the supersampling.
    """

    def __init__(self, rng: np.random.Generator, width: int, height: int, background: Colour | None) -> None:
        self.rng, self.width, self.height = rng, width, height
        fill = (0, 0, 0, 0) if background is None else (*rgb_bytes(background), 255)
        self.picture = Image.new("RGBA", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), fill)
        self.pen = ImageDraw.Draw(self.picture)

    def finished(self) -> Image.Image:
        """The picture at its own size, RGBA."""
        return self.picture.reduce(_SUPERSAMPLING)

    def box(self, box: Box, colour: Colour, rounding: float = 0.0) -> None:
        """A rectangle."""
        x, y, w, h = box
        if w > 0 and h > 0:
            corners = _scaled((x, y, x + w, y + h))
            self.pen.rounded_rectangle(corners, rounding * _SUPERSAMPLING, fill=(*rgb_bytes(colour), 255))

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """An ellipse about (x, y)."""
        self.pen.ellipse(_scaled((x - rx, y - ry, x + rx, y + ry)), fill=(*rgb_bytes(colour), 255))

    def shape(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """A polygon."""
        self.pen.polygon([(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in points], fill=(*rgb_bytes(colour), 255))

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float) -> None:
        """A polyline."""
        scaled = [(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in points]
        self.pen.line(
            scaled, fill=(*rgb_bytes(colour), 255), width=max(1, round(width * _SUPERSAMPLING)), joint="curve"
        )

    def gradient(self, box: Box, top: Colour, bottom: Colour) -> None:
        """A rectangle whose colour runs from `top` to `bottom`."""
        x, y, w, h = box
        left, upper, right, lower = (round(value) for value in _scaled((x, y, x + w, y + h)))
        if right > left and lower > upper:
            pair = Image.fromarray(np.array([[rgb_bytes(top)], [rgb_bytes(bottom)]], dtype=np.uint8))
            self.picture.paste(pair.resize((right - left, lower - upper), Image.Resampling.BILINEAR), (left, upper))

    def uniform(self, low: float, high: float) -> float:
        """One draw."""
        return float(self.rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """One draw of low..high, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """One draw."""
        return bool(self.rng.random() < probability)


# What stands in a place. Each element fills the box (x, y, w, h).

Element = Callable[[Art, Box], None]


def shelf(art: Art, box: Box) -> None:
    """Boards with books, boxes, vases."""
    x, y, w, h = box
    body = wood_colour(art.rng)
    art.box((x, y, w, h), dimmed(body, 0.45))
    rows = art.count(2, 5)
    step = h / rows
    for row in range(rows):
        base, at = y + (row + 1) * step, x + 0.02 * w
        while at < x + w * 0.97:
            thick, tall = step * art.uniform(0.08, 0.3), step * art.uniform(0.45, 0.85)
            thick = min(thick, x + w * 0.98 - at)
            colour = any_colour(art.rng)
            if art.chance(0.12):
                art.oval(at + thick / 2, base - tall * 0.4, thick / 2, tall * 0.4, colour)
            elif not art.chance(0.1):
                art.box((at, base - tall, thick, tall), colour)
                art.box((at + thick * 0.2, base - tall * 0.8, thick * 0.6, tall * 0.1), dimmed(colour, 1.5))
            at += thick * 1.06
        art.box((x, base - 0.05 * step, w, 0.07 * step), body)
    for side in (x, x + w - 0.02 * w):
        art.box((side, y, 0.025 * w, h), body)


def window(art: Art, box: Box) -> None:
    """Panes with sky and hills, a frame, sometimes curtains."""
    x, y, w, h = box
    night = art.chance(0.2)
    art.gradient((x, y, w, h), *(((20, 24, 48), (50, 50, 80)) if night else ((130, 170, 220), (225, 232, 238))))
    for _ in range(art.count(2, 6)):
        tall, wide = h * art.uniform(0.15, 0.55), w * art.uniform(0.1, 0.3)
        left = x + art.uniform(0.0, 0.8) * w
        art.box(
            (left, y + h - tall, min(wide, x + w - left), tall),
            dimmed(any_colour(art.rng, 60, 190), 0.5 if night else 1.0),
        )
    bar, frame = max(2.0, 0.03 * w), dimmed(wood_colour(art.rng), art.uniform(0.8, 1.6))
    panes = art.count(1, 3)
    for k in range(panes + 1):
        art.box((x + k * (w - bar) / panes, y, bar, h), frame)
    for top in (y, y + h * 0.5, y + h - bar):
        art.box((x, top, w, bar), frame)
    if art.chance(0.5):
        colour = any_colour(art.rng)
        for left in (x - 0.12 * w, x + 0.85 * w):
            drape(art, (left, y - 0.05 * h, 0.27 * w, 1.1 * h), colour)


def drape(art: Art, box: Box, colour: Colour) -> None:
    """A curtain of vertical folds."""
    x, y, w, h = box
    folds = max(3, round(w / max(art.height * 0.025, 2.0)))
    for k in range(folds):
        art.box((x + k * w / folds, y, w / folds + 1, h), dimmed(colour, 0.75 + 0.4 * ((k * 5) % 7) / 7))


def curtain(art: Art, box: Box) -> None:
    """A curtain of any colour."""
    drape(art, box, any_colour(art.rng))


def plant(art: Art, box: Box) -> None:
    """Leaves over a pot."""
    x, y, w, h = box
    cx, base = x + w / 2, y + h
    leaf = (art.uniform(30, 90), art.uniform(80, 150), art.uniform(30, 80))
    for _ in range(art.count(12, 30)):
        turn, reach = art.uniform(-1.25, 1.25), h * art.uniform(0.3, 0.72)
        ex, ey = cx + reach * math.sin(turn) * w / h, base - 0.3 * h - reach * math.cos(turn)
        px, py = 0.05 * w * math.cos(turn), 0.05 * w * math.sin(turn)
        mx, my = (cx + ex) / 2, (base - 0.3 * h + ey) / 2
        art.shape(
            [(cx, base - 0.28 * h), (mx + px, my + py), (ex, ey), (mx - px, my - py)],
            dimmed(leaf, art.uniform(0.6, 1.3)),
        )
    pot = skin_colour(art.rng) if art.chance(0.5) else any_colour(art.rng)
    art.shape(
        [
            (cx - 0.22 * w, base - 0.3 * h),
            (cx + 0.22 * w, base - 0.3 * h),
            (cx + 0.16 * w, base),
            (cx - 0.16 * w, base),
        ],
        pot,
    )


def painting(art: Art, box: Box) -> None:
    """A framed picture of hills, blots or bars."""
    x, y, w, h = box
    art.box((x, y, w, h), wood_colour(art.rng))
    edge = 0.06 * min(w, h)
    x, y, w, h = x + edge, y + edge, w - 2 * edge, h - 2 * edge
    art.gradient((x, y, w, h), any_colour(art.rng), any_colour(art.rng))
    for _ in range(art.count(2, 6)):
        if art.chance(0.5):
            art.oval(
                x + art.uniform(0.2, 0.8) * w, y + art.uniform(0.2, 0.8) * h, w * 0.18, h * 0.18, any_colour(art.rng)
            )
        else:
            art.box((x, y + art.uniform(0.4, 0.9) * h, w, 0.1 * h), any_colour(art.rng))


def sofa(art: Art, box: Box) -> None:
    """A sofa or armchair of cloth or (skin-like) leather."""
    x, y, w, h = box
    colour = skin_colour(art.rng) if art.chance(0.5) else any_colour(art.rng)
    art.box((x + 0.08 * w, y, 0.84 * w, h), colour, 0.12 * h)
    for k in range(3):
        art.box(
            (x + (0.11 + 0.265 * k) * w, y + 0.08 * h, 0.25 * w, 0.55 * h), dimmed(colour, 0.9 + 0.06 * k), 0.08 * h
        )
    art.box((x + 0.08 * w, y + 0.6 * h, 0.84 * w, 0.4 * h), dimmed(colour, 0.8), 0.06 * h)
    for left in (x, x + 0.85 * w):
        art.box((left, y + 0.35 * h, 0.15 * w, 0.65 * h), dimmed(colour, 0.95), 0.09 * h)


def cabinet(art: Art, box: Box) -> None:
    """Doors with handles."""
    x, y, w, h = box
    colour = wood_colour(art.rng) if art.chance(0.6) else any_colour(art.rng)
    art.box((x, y, w, h), dimmed(colour, 0.6))
    columns, rows = art.count(1, 4), art.count(1, 3)
    for k in range(columns * rows):
        cx, cy = x + (k % columns) * w / columns, y + (k // columns) * h / rows
        art.box(
            (cx + 0.03 * w, cy + 0.03 * h, w / columns - 0.05 * w, h / rows - 0.05 * h),
            dimmed(colour, art.uniform(0.9, 1.1)),
        )
        art.oval(cx + 0.8 * w / columns, cy + 0.5 * h / rows, 0.012 * w + 1, 0.012 * w + 1, (210, 200, 180))


def lamp(art: Art, box: Box) -> None:
    """A standing lamp."""
    x, y, w, h = box
    cx = x + w / 2
    art.box((cx - 0.03 * w, y, 0.06 * w, h), (50, 46, 44))
    art.shape(
        [(cx - 0.25 * w, y), (cx + 0.25 * w, y), (cx + 0.45 * w, y + 0.25 * h), (cx - 0.45 * w, y + 0.25 * h)],
        (246, 226, 180),
    )


def coats(art: Art, box: Box) -> None:
    """Garments on a rail: shoulders and sleeves without anybody inside."""
    x, y, w, h = box
    art.box((x, y, w, max(2.0, 0.015 * h)), (120, 120, 124))
    for left in (x, x + w):
        art.box((left, y, max(2.0, 0.015 * h), h), (120, 120, 124))
    at = x + 0.03 * w
    while at < x + 0.75 * w:
        wide, long_ = h * art.uniform(0.2, 0.42), h * art.uniform(0.55, 0.9)
        colour, cx, top = any_colour(art.rng), at + wide / 2, y + 0.05 * h
        art.line([(cx, y), (cx, top + 0.02 * h)], (90, 90, 90), 0.01 * h)
        for sign in (-1, 1):
            sleeve = [(cx + sign * 0.45 * wide, top + 0.1 * h), (cx + sign * 0.56 * wide, top + 0.65 * long_)]
            art.line(sleeve, dimmed(colour, 0.8), 0.16 * wide)
        slope = [(cx - 0.1 * wide, top), (cx + 0.1 * wide, top), (cx + 0.5 * wide, top + 0.1 * h)]
        art.shape(
            [
                *slope,
                (cx + 0.45 * wide, top + long_),
                (cx - 0.45 * wide, top + long_),
                (cx - 0.5 * wide, top + 0.1 * h),
            ],
            colour,
        )
        art.line([(cx, top), (cx, top + long_)], dimmed(colour, 0.7), 0.02 * wide)
        at += wide * art.uniform(0.45, 1.1)


def board(art: Art, box: Box) -> None:
    """A blackboard, whiteboard or slide with writing and a chart."""
    x, y, w, h = box
    dark = art.chance(0.5)
    paper: Colour = (34, 62, 52) if dark else (236, 238, 240)
    ink: Colour = (226, 230, 224) if dark else any_colour(art.rng, 20, 90)
    art.box((x, y, w, h), wood_colour(art.rng))
    art.box((x + 0.02 * w, y + 0.03 * h, 0.96 * w, 0.94 * h), paper)
    for row in range(art.count(3, 7)):
        at, top = x + 0.06 * w, y + (0.1 + 0.12 * row) * h
        while at < x + art.uniform(0.3, 0.6) * w:
            word = w * art.uniform(0.02, 0.09)
            art.line([(at + word * k / 6, top + art.uniform(-0.02, 0.02) * h) for k in range(7)], ink, 0.008 * h)
            at += word + 0.02 * w
    left, bottom = x + 0.68 * w, y + 0.75 * h
    for k in range(5):
        tall = art.uniform(0.1, 0.5) * h
        art.box((left + k * 0.05 * w, bottom - tall, 0.035 * w, tall), any_colour(art.rng))
    art.line([(left, bottom - 0.55 * h), (left, bottom), (left + 0.26 * w, bottom)], ink, 0.008 * h)


def screens(art: Art, box: Box) -> None:
    """A wall of studio monitors."""
    x, y, w, h = box
    columns, rows = art.count(1, 4), art.count(1, 3)
    for k in range(columns * rows):
        cx, cy, cw, ch = (
            x + (k % columns) * w / columns,
            y + (k // columns) * h / rows,
            w / columns * 0.95,
            h / rows * 0.93,
        )
        art.box((cx, cy, cw, ch), (16, 18, 24))
        art.gradient(
            (cx + 0.03 * cw, cy + 0.04 * ch, 0.94 * cw, 0.92 * ch),
            any_colour(art.rng, 30, 150),
            any_colour(art.rng, 30, 180),
        )
        for _ in range(art.count(2, 7)):
            art.box(
                (
                    cx + art.uniform(0.08, 0.5) * cw,
                    cy + art.uniform(0.1, 0.85) * ch,
                    art.uniform(0.1, 0.4) * cw,
                    0.05 * ch,
                ),
                any_colour(art.rng, 150, 240),
            )
        if art.chance(0.5):
            art.oval(cx + art.uniform(0.3, 0.7) * cw, cy + 0.5 * ch, 0.2 * ch, 0.2 * ch, any_colour(art.rng))


def lights(art: Art, box: Box) -> None:
    """Stage lamps, neon tubes, blurred bulbs."""
    x, y, w, h = box
    for _ in range(art.count(8, 30)):
        radius = art.height * art.uniform(0.006, 0.035)
        art.oval(x + art.uniform(0, 1) * w, y + art.uniform(0, 1) * h, radius, radius, any_colour(art.rng, 150, 250))
    for _ in range(art.count(0, 4)):
        start = (x + art.uniform(0, 1) * w, y + art.uniform(0, 1) * h)
        art.line(
            [start, (start[0] + art.uniform(-0.2, 0.2) * w, start[1] + art.uniform(0, 0.4) * h)],
            any_colour(art.rng, 160, 250),
            0.012 * art.height,
        )


def goods(art: Art, box: Box) -> None:
    """Piled boxes, bags and bottles."""
    x, y, w, h = box
    for _ in range(art.count(5, 14)):
        cw, ch = w * art.uniform(0.1, 0.32), h * art.uniform(0.15, 0.5)
        cx, cy, colour = x + art.uniform(0.0, 0.75) * w, y + h - ch, any_colour(art.rng)
        art.box((cx, cy, cw, ch), colour, art.uniform(0, 0.2) * cw)
        art.box((cx + 0.15 * cw, cy + 0.3 * ch, 0.7 * cw, 0.2 * ch), dimmed(colour, 1.4))
        art.box((cx + 0.45 * cw, cy, 0.1 * cw, ch), dimmed(colour, 0.8))


def tree(art: Art, box: Box) -> None:
    """A trunk (of a skin-like brown) below a crown of leaves."""
    x, y, w, h = box
    cx = x + w / 2
    bark = dimmed(wood_colour(art.rng), 0.7)
    art.shape(
        [(cx - 0.06 * w, y + 0.4 * h), (cx + 0.06 * w, y + 0.4 * h), (cx + 0.1 * w, y + h), (cx - 0.1 * w, y + h)], bark
    )
    for sign in (-1, 1):
        art.line([(cx, y + 0.65 * h), (cx + sign * 0.25 * w, y + 0.35 * h)], bark, 0.05 * w)
    leaf = (art.uniform(40, 150), art.uniform(80, 150), art.uniform(20, 70))
    for _ in range(art.count(20, 50)):
        turn, reach = art.uniform(0, 2 * math.pi), math.sqrt(art.uniform(0, 1))
        radius = 0.12 * w * art.uniform(0.6, 1.3)
        art.oval(
            cx + 0.42 * w * reach * math.cos(turn),
            y + (0.3 + 0.28 * reach * math.sin(turn)) * h,
            radius,
            radius,
            dimmed(leaf, art.uniform(0.6, 1.25)),
        )


def house(art: Art, box: Box) -> None:
    """A front with rows of windows."""
    x, y, w, h = box
    wall = any_colour(art.rng, 70, 220) if art.chance(0.6) else wood_colour(art.rng)
    art.box((x, y, w, h), wall)
    columns, rows = art.count(2, 6), art.count(2, 7)
    glass = any_colour(art.rng, 40, 230)
    for k in range(columns * rows):
        cx, cy = x + (k % columns + 0.25) * w / columns, y + (k // columns + 0.25) * h / rows
        art.box((cx, cy, 0.5 * w / columns, 0.55 * h / rows), dimmed(glass, art.uniform(0.6, 1.2)))


def fence(art: Art, box: Box) -> None:
    """Slats."""
    x, y, w, h = box
    colour = wood_colour(art.rng)
    for k in range(max(4, round(w / (0.035 * art.height)))):
        art.box((x + k * 0.035 * art.height, y, 0.026 * art.height, h), dimmed(colour, art.uniform(0.85, 1.15)))
    art.box((x, y + 0.25 * h, w, 0.08 * h), dimmed(colour, 0.8))


def bench(art: Art, box: Box) -> None:
    """A bench."""
    x, y, w, h = box
    colour = wood_colour(art.rng)
    for k in range(4):
        art.box((x, y + k * 0.17 * h, w, 0.12 * h), dimmed(colour, 0.9 + 0.07 * k))
    for left in (x + 0.05 * w, x + 0.9 * w):
        art.box((left, y + 0.6 * h, 0.05 * w, 0.4 * h), (50, 50, 52))


def dimmed(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor below 1) or lighter."""
    return clip_colour((colour[0] * factor, colour[1] * factor, colour[2] * factor))


def _scaled(values: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    a, b, c, d = (value * _SUPERSAMPLING for value in values)
    return a, b, c, d
