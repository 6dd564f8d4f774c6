"""Text that is laid over a finished video: subtitles, news banners, channel marks. It does not change the mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pdnet.data.synthetic.textures import any_colour, rgb_bytes

_TEXT = (
    "and now we fold the paper once more before it dries so that both sides meet in the middle thank you for being "
    "here tonight with us what would you say to people who have never tried this at home it takes about ten minutes "
    "the price is very good today only wind from the north and some rain later look at the colour of this one please"
)


@dataclass(frozen=True)
class Overlay:
    """A picture shown over the video for some time.

    Attributes:
        start, end: seconds.
        x, y: upper left corner, pixels.
        picture: RGBA.
    """

    start: float
    end: float
    x: int
    y: int
    picture: Image.Image

    def lay(self, frame: Image.Image, t: float) -> None:
        """Blend over `frame` where `t` (seconds) is within the time shown."""
        if self.start <= t < self.end:
            frame.paste(self.picture, (self.x, self.y), self.picture)


def draw_overlays(rng: np.random.Generator, name: str, width: int, height: int, duration: float) -> tuple[Overlay, ...]:
    """Subtitles in a third of all scenes, a banner in most news, a channel mark in some scenes."""
    overlays: list[Overlay] = []
    size = max(8, round(min(width, height) * float(rng.uniform(0.04, 0.055))))
    if rng.random() < 0.35:
        ink = (255, 236, 90) if rng.random() < 0.25 else (250, 250, 250)
        boxed = bool(rng.random() < 0.3)
        y, t = round(height * float(rng.uniform(0.82, 0.9))), float(rng.uniform(-1.0, 0.5))
        while t < duration:
            line = _text(_words(rng, 3 if width < height else 6), size, ink, boxed)
            shown = float(rng.uniform(1.2, 2.6))
            overlays.append(Overlay(t, t + shown, (width - line.width) // 2, y, line))
            t += shown + float(rng.uniform(0.0, 0.6))
    elif rng.random() < (0.8 if name == "news" else 0.08):
        overlays.append(_banner(rng, width, height, size))
    if rng.random() < 0.3:
        mark = _text(_words(rng, 1).upper(), size, (240, 240, 240), bool(rng.random() < 0.5))
        left = round(width * 0.04) if rng.random() < 0.5 else round(width * 0.96) - mark.width
        overlays.append(Overlay(0.0, duration + 1, left, round(height * 0.05), mark))
    return tuple(overlays)


def _words(rng: np.random.Generator, count: int) -> str:
    words = _TEXT.split()
    start = int(rng.integers(len(words) - count))
    return " ".join(words[start : start + count])


def _text(text: str, size: int, ink: tuple[int, int, int], boxed: bool) -> Image.Image:
    """One line, `size` pixels high, with a dark outline or on a dark translucent box; RGBA."""
    # Pillow's built-in bitmap letters look the same everywhere; a system's font and shaping library would not.
    font = ImageFont.load_default_imagefont()
    left, top, right, bottom = (round(value) for value in font.getbbox(text))
    small = Image.new("L", (right - left + 4, bottom - top + 4), 0)
    ImageDraw.Draw(small).text((2 - left, 2 - top), text, fill=255, font=font)
    factor = size / (bottom - top)
    letters = small.resize((round(small.width * factor), round(small.height * factor)), Image.Resampling.BICUBIC)
    letters = letters.point([min(255, max(0, (level - 70) * 2)) for level in range(256)])
    if boxed:
        picture = Image.new("RGBA", letters.size, (12, 12, 16, 170))
    else:
        edge = letters.filter(ImageFilter.MaxFilter(2 * max(1, size // 14) + 1))
        picture = Image.merge("RGBA", (*(Image.new("L", letters.size, 8) for _ in range(3)), edge))
    picture.paste((*ink, 255), (0, 0), letters)
    return picture


def _banner(rng: np.random.Generator, width: int, height: int, size: int) -> Overlay:
    """A lower third: two bars with a headline and a smaller line, and a coloured block."""
    tall = round(size * 3.2)
    paper, block = any_colour(rng, 20, 235), any_colour(rng, 60, 200)
    picture = Image.new("RGBA", (round(width * 0.88), tall), (*rgb_bytes(paper), 225))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, tall * 0.4, tall), fill=(*rgb_bytes(block), 255))
    pen.rectangle((tall * 0.4, tall * 0.62, picture.width, tall), fill=(*rgb_bytes(block), 210))
    ink = (16, 16, 20) if sum(paper) > 380 else (245, 245, 245)
    for words, top, scale, colour in ((4, 0.1, 1.0, ink), (7, 0.68, 0.7, (245, 245, 245))):
        line = _text(_words(rng, words), max(7, round(size * scale)), colour, boxed=False)
        picture.alpha_composite(
            line.crop((0, 0, picture.width - round(tall * 0.6), line.height)), (round(tall * 0.55), round(tall * top))
        )
    return Overlay(0.0, float("inf"), round(width * 0.06), round(height * float(rng.uniform(0.78, 0.84))), picture)
