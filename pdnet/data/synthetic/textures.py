"""Colours and textures: skin and hair across the human range, cloth, wood, noise."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pdnet.data.synthetic.raster import TILE, Colour, FloatArray, Material

# Ten anchors from light to dark, after the Monk skin tone scale with the saturation of photographed skin.
_SKIN: tuple[Colour, ...] = (
    (246, 222, 208), (240, 205, 184), (232, 190, 162), (222, 173, 138), (201, 150, 112),
    (172, 121, 86), (141, 93, 64), (110, 70, 48), (82, 52, 38), (58, 38, 30),
)  # fmt: skip
_HAIR: tuple[Colour, ...] = (
    (24, 20, 20), (32, 26, 24), (46, 34, 28), (70, 48, 34), (98, 66, 42), (134, 88, 50), (176, 128, 74),
    (214, 178, 116), (150, 72, 38), (128, 126, 126), (196, 194, 190), (60, 50, 84),
)  # fmt: skip

PATTERNS = ("plain", "plain", "stripes", "bars", "checks", "dots", "print", "melange")


def skin_colour(rng: np.random.Generator) -> Colour:
    """A skin tone, uniform over the range from light to dark."""
    position = rng.uniform(0, len(_SKIN) - 1)
    base = _mix(_SKIN[int(position)], _SKIN[min(int(position) + 1, len(_SKIN) - 1)], position % 1.0)
    return _jitter(rng, base, 6)


def hair_colour(rng: np.random.Generator) -> Colour:
    """A hair colour, natural or (rarely) dyed."""
    return _jitter(rng, _HAIR[int(rng.integers(len(_HAIR)))], 6)


def any_colour(rng: np.random.Generator, low: int = 25, high: int = 235) -> Colour:
    """A colour of moderate saturation: a grey moved towards a random hue."""
    grey = rng.uniform(low, high)
    tint = rng.uniform(-1, 1, 3)
    reach = rng.uniform(0.05, 0.9) * min(grey, 255 - grey)
    return clip_colour((grey + tint[0] * reach, grey + tint[1] * reach, grey + tint[2] * reach))


def wood_colour(rng: np.random.Generator) -> Colour:
    """A wood or leather tone: the hues of skin, on furniture."""
    return _jitter(rng, _SKIN[int(rng.integers(2, 9))], 14)


def clip_colour(colour: Colour) -> Colour:
    """The colour with its channels limited to 0..255."""
    r, g, b = (float(min(max(value, 0.0), 255.0)) for value in colour)
    return r, g, b


def rgb_bytes(colour: Colour) -> tuple[int, int, int]:
    """The colour as Pillow wants it."""
    return int(colour[0]), int(colour[1]), int(colour[2])


def noise(rng: np.random.Generator, height: int, width: int, cell: int, octaves: int = 3) -> FloatArray:
    """Smooth random values in about 0..1 that wrap at the borders; each octave halves `cell` and its weight.

    Returns:
        (height, width) float32.
    """
    total = np.zeros((height, width), dtype=np.float32)
    weight, weights = 1.0, 0.0
    for _ in range(octaves):
        rows, columns = max(-(-height // cell), 2), max(-(-width // cell), 2)
        grid = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
        padded = Image.fromarray(np.pad(grid, 2, mode="wrap"))
        box = (2.0, 2.0, 2.0 + columns, 2.0 + rows)
        layer = padded.resize((width, height), Image.Resampling.BICUBIC, box=box)
        total += np.asarray(layer, dtype=np.float32) * (weight / 255.0)
        weights += weight
        weight *= 0.5
        cell = max(cell // 2, 1)
    return total / np.float32(weights)


def cloth(rng: np.random.Generator, colour: Colour, pattern: str, scale: float) -> Material:
    """A fabric: `pattern` is one of PATTERNS, `scale` the texels a pixel."""
    tile = np.empty((3, TILE, TILE), dtype=np.float32)
    tile[:] = np.asarray(colour, dtype=np.float32)[:, None, None]
    second = np.asarray(any_colour(rng, 15, 245), dtype=np.float32)[:, None, None]
    y, x = np.mgrid[0:TILE, 0:TILE]
    period = int(rng.choice([32, 32, 64, 64, 128]))
    share = int(period * rng.uniform(0.2, 0.55))
    if pattern == "stripes":
        tile = np.where(y % period < share, second, tile)
    elif pattern == "bars":
        tile = np.where(x % period < share, second, tile)
    elif pattern == "checks":
        tile += (second - tile) * (0.5 * (y % period < share) + 0.5 * (x % period < share)).astype(np.float32)
    elif pattern == "dots":
        half = period // 2
        cy, cx = y % period - half, (x + half * (y // period % 2)) % period - half
        tile = np.where(cx * cx + cy * cy < (0.3 * period) ** 2, second, tile)
    elif pattern == "print":
        blobs = noise(rng, TILE, TILE, period, 2)
        third = np.asarray(any_colour(rng), dtype=np.float32)[:, None, None]
        tile += (second - tile) * np.clip((blobs - np.float32(0.57)) * 30, 0, 1)
        tile += (third - tile) * np.clip((np.float32(0.37) - blobs) * 30, 0, 1)
    grain = noise(rng, TILE, TILE, 2, 1) * (0.3 if pattern == "melange" else 0.08)
    folds = noise(rng, TILE, TILE, 64, 2) * 0.3
    tile = tile * (0.75 + grain + folds)
    return Material(colour, np.ascontiguousarray(tile.clip(0, 255), dtype=np.float32), scale)


def random_cloth(rng: np.random.Generator, scale: float) -> Material:
    """A fabric of any colour and pattern."""
    return cloth(rng, any_colour(rng), PATTERNS[int(rng.integers(len(PATTERNS)))], scale)


def skin(rng: np.random.Generator, colour: Colour) -> Material:
    """Skin: a faint mottle, so that it is not flat colour."""
    return _grained(colour, 0.9 + 0.2 * noise(rng, TILE, TILE, 32, 3))


def hair(rng: np.random.Generator, colour: Colour, curly: bool, scale: float) -> Material:
    """Hair: strands along the shape, or small curls."""
    strands = noise(rng, TILE, TILE, 8, 2) if curly else _stretched(rng, 3)
    return _grained(colour, 0.55 + 0.9 * strands, scale)


def wood(rng: np.random.Generator, colour: Colour) -> Material:
    """Wood: long grain."""
    return _grained(colour, 0.75 + 0.5 * _stretched(rng, 6))


def rough(rng: np.random.Generator, colour: Colour, contrast: float, cell: int) -> Material:
    """Any grained surface: plaster, foliage, stone."""
    return _grained(colour, 1.0 - contrast / 2 + contrast * noise(rng, TILE, TILE, cell, 4))


def _stretched(rng: np.random.Generator, cell: int) -> FloatArray:
    narrow = noise(rng, TILE // 16, TILE, cell, 2)
    grey = Image.fromarray((narrow * 255.0).astype(np.uint8))
    return np.asarray(grey.resize((TILE, TILE), Image.Resampling.BICUBIC), dtype=np.float32) / np.float32(255.0)


def _grained(colour: Colour, factor: FloatArray, scale: float = 1.0) -> Material:
    tile = np.asarray(colour, dtype=np.float32)[:, None, None] * factor[None]
    return Material(colour, np.ascontiguousarray(tile.clip(0, 255), dtype=np.float32), scale)


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


def _jitter(rng: np.random.Generator, colour: Colour, reach: float) -> Colour:
    shift = rng.uniform(-reach, reach, 4)
    return clip_colour(
        (colour[0] + shift[0] + shift[3], colour[1] + shift[1] + shift[3], colour[2] + shift[2] + shift[3])
    )
