"""Places: rooms, stages and streets, the look-alikes in them (posters, mannequins), and the desks before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pdnet.data.synthetic.furniture import (
    Art,
    Element,
    bench,
    board,
    cabinet,
    coats,
    curtain,
    dimmed,
    drape,
    fence,
    goods,
    house,
    lamp,
    lights,
    painting,
    plant,
    screens,
    shelf,
    sofa,
    tree,
    window,
)
from pdnet.data.synthetic.motion import GESTURES, SPINE, ArmTrack, Motion, Track
from pdnet.data.synthetic.people import Person, draw_body, draw_look, draw_mannequin_look, draw_person
from pdnet.data.synthetic.raster import Canvas, Light, Material
from pdnet.data.synthetic.textures import any_colour, noise, rgb_bytes, wood_colour


@dataclass(frozen=True)
class Place:
    """What a scenario's place is made of.

    Attributes:
        base: painter of walls and floor, or of sky and ground.
        items: (element, how often at most, width, height, bottom edge); lengths are shares of the picture's height.
    """

    base: Callable[[Art], None]
    items: tuple[tuple[Element, int, float, float, float], ...]


def room(art: Art) -> None:
    """A wall, plain, in bricks, in panels, tiled or papered, and sometimes a floor."""
    w, h = art.width, art.height
    colour = wood_colour(art.rng) if art.chance(0.3) else any_colour(art.rng, 50, 230)
    art.gradient((0, 0, w, h), dimmed(colour, art.uniform(0.8, 1.15)), dimmed(colour, art.uniform(0.7, 1.1)))
    kind = art.count(0, 5)
    if kind == 1:
        brick_h = h * art.uniform(0.02, 0.04)
        brick_w = brick_h * 2.6
        for row in range(round(h / brick_h) + 1):
            for column in range(-1, round(w / brick_w) + 1):
                left = (column + 0.5 * (row % 2)) * brick_w
                art.box((left, row * brick_h, brick_w * 0.95, brick_h * 0.88), dimmed(colour, art.uniform(0.8, 1.2)))
    elif kind in (2, 3):
        step = h * art.uniform(0.03, 0.14)
        second = dimmed(colour, art.uniform(0.75, 0.95)) if art.chance(0.7) else any_colour(art.rng)
        share = 0.5 if kind == 2 else 0.06
        for k in range(round(w / step) + 1):
            art.box((k * step, 0, step * share, h), second)
    elif kind == 4:
        step = h * art.uniform(0.04, 0.12)
        for k in range(round(w / step) + 1):
            art.box((k * step, 0, max(1.0, step * 0.05), h), dimmed(colour, 0.75))
            art.box((0, k * step, w, max(1.0, step * 0.05)), dimmed(colour, 0.75))
    if art.chance(0.55):
        level = h * art.uniform(0.68, 0.9)
        floor = wood_colour(art.rng) if art.chance(0.6) else any_colour(art.rng, 40, 180)
        art.gradient((0, level, w, h - level), dimmed(floor, 0.75), floor)
        art.box((0, level - 0.02 * h, w, 0.02 * h), dimmed(colour, 1.25))


def stage(art: Art) -> None:
    """A dark or bright stage with beams of light."""
    w, h = art.width, art.height
    art.gradient((0, 0, w, h), any_colour(art.rng, 10, 120), any_colour(art.rng, 10, 160))
    if art.chance(0.5):
        drape(art, (0, 0, w, h * 0.85), any_colour(art.rng, 30, 160))
    for _ in range(art.count(0, 5)):
        x, spread, colour = art.uniform(0, 1) * w, art.uniform(0.05, 0.2) * w, any_colour(art.rng, 90, 200)
        foot = x + art.uniform(-0.3, 0.3) * w
        art.shape([(x - 4, 0), (x + 4, 0), (foot + spread, h), (foot - spread, h)], colour)


def land(art: Art) -> None:
    """Sky with clouds, hills or water, and a ground of grass, sand, snow or stone."""
    w, h = art.width, art.height
    sky = ((96, 150, 214), (200, 190, 180), (226, 150, 110), (150, 160, 172), (40, 48, 84))[art.count(0, 4)]
    art.gradient((0, 0, w, h), sky, dimmed(sky, 1.35))
    for _ in range(art.count(0, 6)):
        cx, cy = art.uniform(0, 1) * w, art.uniform(0, 0.35) * h
        for k in range(5):
            art.oval(cx + (k - 2) * 0.05 * h, cy, 0.06 * h, 0.03 * h, dimmed((236, 238, 240), art.uniform(0.9, 1.05)))
    level = h * art.uniform(0.5, 0.75)
    for layer in range(art.count(0, 3)):
        colour = dimmed((110, 140, 130), art.uniform(0.5, 1.3))
        points = [(w * k / 8, level - h * art.uniform(0.02, 0.3 - 0.06 * layer)) for k in range(9)]
        art.shape([(0, h), *points, (w, h)], colour)
    ground = ((96, 130, 60), (190, 170, 130), (226, 230, 236), (120, 118, 116), (90, 120, 140))[art.count(0, 4)]
    art.gradient((0, level, w, h - level), dimmed(ground, 0.8), ground)
    if art.chance(0.4):
        x = art.uniform(0.2, 0.8) * w
        art.shape(
            [(x, level), (x + 0.05 * w, level), (x + 0.4 * w, h), (x - 0.25 * w, h)], dimmed(wood_colour(art.rng), 0.9)
        )


PLACES: dict[str, Place] = {
    "entertainment": Place(stage, (
        (screens, 1, 0.9, 0.5, 0.6), (lights, 2, 1.4, 0.7, 0.8), (curtain, 2, 0.3, 1.0, 0.95),
        (goods, 1, 0.5, 0.3, 1.0),
    )),
    "indoor_handwork": Place(room, (
        (shelf, 2, 0.6, 0.5, 0.6), (cabinet, 2, 0.5, 0.4, 0.95), (window, 1, 0.5, 0.5, 0.6), (goods, 2, 0.4, 0.25, 0.9),
        (plant, 2, 0.25, 0.4, 0.9), (painting, 2, 0.25, 0.2, 0.4),
    )),
    "interview": Place(room, (
        (sofa, 2, 0.9, 0.5, 1.0), (painting, 3, 0.3, 0.3, 0.5), (plant, 2, 0.3, 0.6, 1.0), (lamp, 1, 0.25, 0.7, 1.0),
        (window, 1, 0.6, 0.6, 0.7), (shelf, 1, 0.6, 0.7, 0.9),
    )),
    "lecture": Place(room, (
        (board, 2, 1.1, 0.6, 0.65), (window, 1, 0.4, 0.5, 0.6), (cabinet, 1, 0.4, 0.4, 1.0),
        (painting, 2, 0.2, 0.25, 0.4), (plant, 1, 0.25, 0.45, 1.0),
    )),
    "news": Place(room, (
        (screens, 2, 1.2, 0.7, 0.75), (screens, 1, 0.5, 0.4, 0.6), (lights, 1, 1.5, 0.3, 0.3),
        (house, 3, 0.25, 0.5, 0.8),
    )),
    "outdoor_activity": Place(land, (
        (house, 3, 0.4, 0.6, 0.75), (tree, 5, 0.45, 0.8, 0.85), (fence, 1, 1.2, 0.2, 0.8), (bench, 1, 0.4, 0.2, 0.85),
        (plant, 3, 0.3, 0.3, 0.95),
    )),
    "online_shopping": Place(room, (
        (shelf, 2, 0.7, 0.7, 0.8), (goods, 3, 0.5, 0.4, 0.95), (coats, 2, 0.8, 0.6, 0.95), (lights, 1, 1.4, 0.3, 0.3),
        (painting, 1, 0.3, 0.4, 0.5),
    )),
}  # fmt: skip


def draw_backdrop(rng: np.random.Generator, name: str, size: tuple[int, int], light: Light) -> Image.Image:
    """The place of scenario `name`: an RGB picture of `size` (width, height) pixels."""
    width, height = size
    place = PLACES[name]
    art = Art(rng, width, height, (128, 128, 128))
    place.base(art)
    for element, most, w, h, bottom in place.items:
        for _ in range(art.count(0 if most < 2 else 1, most)):
            own_w, own_h = w * height * art.uniform(0.7, 1.3), h * height * art.uniform(0.7, 1.3)
            left = art.uniform(-0.15, 1.05) * width - own_w * 0.4
            top = height * (bottom + art.uniform(-0.06, 0.06)) - own_h
            element(art, (left, top, own_w, own_h))
    picture = art.finished().convert("RGB")
    if art.chance(0.45):
        _paste_poster(art, picture, light)
    rgb = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1), dtype=np.float32)
    texture = noise(rng, height, width, max(4, height // 8), 6)
    rgb *= 1.0 + (texture - np.float32(0.5)) * np.float32(art.uniform(0.15, 0.6))
    for _ in range(art.count(1, 2) if art.chance({"online_shopping": 0.65}.get(name, 0.22)) else 0):
        _stand_mannequin(rng, Canvas(rgb, light), width, height)
    picture = Image.fromarray(np.ascontiguousarray(rgb.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))
    depth = art.uniform(-1.5, 2.5) * height / 480
    return picture.filter(ImageFilter.GaussianBlur(depth)) if depth > 0.3 else picture


def _still_motion(rng: np.random.Generator, x: float, y: float, yaw: float) -> Motion:
    def arm() -> ArmTrack:
        name = str(rng.choice(["rest", "hip", "talk", "fold", "wave"]))
        return ArmTrack((0.0,), (GESTURES[name][0],), (float(rng.uniform(0, 6.28)),), 1.0)

    still = Track()
    return Motion(
        x=Track((), ((0.0, x),)), y=Track((), ((0.0, y),)), lean=still, yaw=Track((), ((0.0, yaw),)), nod=still,
        turn=still, mouth=Track((), ((0.0, float(rng.uniform(0, 0.6))),)), left=arm(), right=arm(),
    )  # fmt: skip


def _paste_poster(art: Art, picture: Image.Image, light: Light) -> None:
    """Hang a framed print of a person: few inks, pale, dotted, flat."""
    rng = art.rng
    height = int(art.height * art.uniform(0.28, 0.6))
    width = int(height * art.uniform(0.55, 0.85))
    rgb = np.empty((3, height, width), dtype=np.float32)
    rgb[:] = np.asarray(any_colour(rng, 90, 230), dtype=np.float32)[:, None, None]
    scale = height * art.uniform(0.22, 0.36)
    motion = _still_motion(
        rng, width * art.uniform(0.4, 0.6), height * 0.12 + (SPINE + 1.3) * scale, art.uniform(-0.4, 0.4)
    )
    draw_person(Canvas(rgb, light), Person(draw_body(rng), draw_look(rng, scale), motion, scale), 0.0)
    grey = (rgb[0] + rgb[1] + rgb[1] + rgb[2]) * np.float32(0.25)
    dark, pale = any_colour(rng, 20, 90), any_colour(rng, 170, 245)
    y, x = np.mgrid[0:height, 0:width]
    step = max(4, height // 50)
    dots = ((x % step - step // 2) ** 2 + (y % step - step // 2) ** 2).astype(np.float32) * np.float32(8.0 / step**2)
    level = np.clip(
        (np.floor(grey / np.float32(48)) * np.float32(48) / np.float32(220)) * np.float32(0.85)
        + dots * np.float32(0.12),
        0,
        1,
    )
    own = np.float32(art.uniform(0.0, 0.35))  # how much of the true colours the print keeps
    for k, (low, high) in enumerate(zip(dark, pale, strict=True)):
        rgb[k] = own * rgb[k] + (1 - own) * (np.float32(low) + level * np.float32(high - low))
    frame = max(3, height // 30)
    framed = Image.new("RGB", (width + 2 * frame, height + 2 * frame), rgb_bytes(any_colour(rng, 15, 240)))
    framed.paste(
        Image.fromarray(np.ascontiguousarray(rgb.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))), (frame, frame)
    )
    pen = ImageDraw.Draw(framed)
    for k in range(2):
        left, top, wide = frame + width // 8, frame + int(height * (0.82 + 0.08 * k)), int(width * (0.75 - 0.25 * k))
        pen.rectangle((left, top, left + wide, top + height // 30), fill=rgb_bytes(pale if k else dark))
    picture.paste(framed, (int(art.uniform(-0.05, 0.85) * art.width), int(art.uniform(0.02, 0.4) * art.height)))


def _stand_mannequin(rng: np.random.Generator, canvas: Canvas, width: int, height: int) -> None:
    """A figure of one hard surface on a pole; it has no face and never moves."""
    scale = height * float(rng.uniform(0.07, 0.16))
    x, pelvis = width * float(rng.uniform(0.05, 0.95)), height * float(rng.uniform(0.1, 0.3)) + (SPINE + 1.3) * scale
    feet = pelvis + 4.1 * scale
    motion = _still_motion(rng, x, pelvis, float(rng.uniform(-0.6, 0.6)))
    pole = Material((70, 70, 74))
    canvas.paint(canvas.ellipse((x, feet + 0.1 * scale), 0.9 * scale, 0.16 * scale), pole, None)
    canvas.paint(canvas.capsule((x, feet - 4.0 * scale), (x, feet), 0.05 * scale), pole, None)
    draw_person(canvas, Person(draw_body(rng), draw_mannequin_look(rng, scale), motion, scale), 0.0)


def draw_desk(rng: np.random.Generator, size: tuple[int, int], top: float) -> Image.Image:
    """A desk or lectern before the people, its board at `top` (pixels), with things on it: RGBA, else transparent."""
    width, height = size
    art = Art(rng, width, height, None)
    colour = wood_colour(rng) if art.chance(0.6) else any_colour(rng)
    left, right = 0.0, float(width)
    if art.chance(0.25):
        middle, half = width * art.uniform(0.3, 0.7), width * art.uniform(0.2, 0.35)
        left, right = middle - half, middle + half
    lip = 0.025 * height
    for _ in range(art.count(1, 5)):
        x, w, h = (
            left + art.uniform(0.0, 0.9) * (right - left),
            height * art.uniform(0.05, 0.18),
            height * art.uniform(0.04, 0.13),
        )
        kind, tone = art.count(0, 3), any_colour(rng)
        if kind == 0:  # a laptop from behind
            art.shape(
                [(x, top), (x + 0.08 * w, top - h * 1.2), (x + 1.5 * w, top - h * 1.2), (x + 1.6 * w, top)],
                (150, 152, 156),
            )
            art.oval(x + 0.8 * w, top - 0.6 * h, 0.1 * h, 0.1 * h, (110, 112, 116))
        elif kind == 1:  # a cup
            art.box((x, top - h * 0.7, 0.6 * h, h * 0.7), tone, 0.1 * h)
        elif kind == 2:  # books
            for k in range(3):
                art.box((x + 0.05 * w * k, top - 0.25 * h * (k + 1), w * 1.2, 0.23 * h), dimmed(tone, 0.8 + 0.2 * k))
        else:  # a box or a microphone
            art.box((x, top - h, 0.05 * height, h), tone)
            art.oval(x + 0.025 * height, top - h, 0.03 * height, 0.03 * height, dimmed(tone, 0.6))
    art.box((left, top, right - left, lip), dimmed(colour, 1.15))
    art.box((left, top + lip, right - left, height), dimmed(colour, 0.8))
    for k in range(art.count(0, 6)):
        art.box((left + (right - left) * (k + 0.5) / 7, top + lip, 0.01 * height, height), dimmed(colour, 0.65))
    return art.finished()
