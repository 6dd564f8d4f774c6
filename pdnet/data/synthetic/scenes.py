"""A scene: people in a place, under a light, before a camera, with what stands in front of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

from pdnet.data.synthetic.backdrops import draw_backdrop, draw_desk
from pdnet.data.synthetic.motion import SPINE, Motion, Track, draw_arm_track, draw_waves
from pdnet.data.synthetic.overlays import Overlay, draw_overlays
from pdnet.data.synthetic.people import Person, draw_body, draw_look
from pdnet.data.synthetic.raster import Light

MARGIN = 0.06  # of the larger side: how far the painted place reaches beyond the frame

#: how a portrait is shot: the place behind the people is out of focus (blur in shares of the frame's short side),
#: and the light is on the people (colour and brightness of the place, 1 as painted)
FOCUS = (0.012, 0.026)
AMBIENT_COLOUR = (0.3, 0.65)
AMBIENT_LIGHT = (0.6, 0.95)


@dataclass(frozen=True)
class Scenario:
    """What happens in one of the seven scenarios.

    Attributes:
        left, right: gestures of either hand (names of motion.GESTURES).
        crowd: probability of 1, 2 and 3 people.
        full: probability that whole bodies are in view.
        desk: probability of a desk in front.
        calm: seconds a gesture is held.
        roam: how far people shift their place, in heads.
        holds: probability that a hand holds an object.
        walk: probability that a person walks (full bodies alone).
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    crowd: tuple[float, float, float]
    full: float
    desk: float
    calm: float
    roam: float
    holds: float
    walk: float = 0.0


SCENARIOS: dict[str, Scenario] = {
    "entertainment": Scenario(
        left=("dance", "raise", "wave"), right=("dance", "raise", "talk"),
        crowd=(0.5, 0.35, 0.15), full=0.25, desk=0.0, calm=1.0, roam=0.9, holds=0.2,
    ),
    "indoor_handwork": Scenario(
        left=("handle",), right=("handle", "handle", "show"),
        crowd=(0.8, 0.2, 0.0), full=0.0, desk=0.75, calm=1.1, roam=0.5, holds=0.7,
    ),
    "interview": Scenario(
        left=("talk", "rest", "fold"), right=("talk", "talk", "face"),
        crowd=(0.3, 0.55, 0.15), full=0.0, desk=0.25, calm=1.4, roam=0.5, holds=0.15,
    ),
    "lecture": Scenario(
        left=("talk", "hip", "rest"), right=("point", "talk", "raise"),
        crowd=(0.85, 0.15, 0.0), full=0.2, desk=0.25, calm=1.2, roam=0.9, holds=0.25,
    ),
    "news": Scenario(
        left=("talk", "handle"), right=("talk", "point", "handle"),
        crowd=(0.65, 0.35, 0.0), full=0.0, desk=0.65, calm=1.2, roam=0.45, holds=0.15,
    ),
    "outdoor_activity": Scenario(
        left=("wave", "raise", "rest", "dance"), right=("point", "wave", "dance"),
        crowd=(0.45, 0.4, 0.15), full=0.35, desk=0.0, calm=1.0, roam=1.1, holds=0.2, walk=0.5,
    ),
    "online_shopping": Scenario(
        left=("show", "handle", "talk"), right=("show", "point", "handle"),
        crowd=(0.75, 0.25, 0.0), full=0.1, desk=0.4, calm=1.0, roam=0.6, holds=0.8,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """Shake and zoom: a scene point p is seen at `zoom(t) * p + (x(t), y(t))`."""

    x: Track
    y: Track
    zoom: Track


@dataclass(frozen=True)
class Scene:
    """All that is needed to draw any moment of a clip.

    Attributes:
        width, height: of the frame.
        backdrop: RGB picture of the place, larger than the frame by `margin` on every side.
        margin: pixels.
        desk: RGBA picture of the same size that stands in front of the people, or None.
        people: far ones first.
        light: direction of the light.
        camera: how the frame moves.
        gain: overall brightness over time.
        cast: red against blue over time.
        flicker: amplitude of a random change of brightness from frame to frame.
        grain: sensor noise in grey levels, a long strip from which each frame takes a piece.
        overlays: text laid over the video.
    """

    width: int
    height: int
    backdrop: Image.Image
    margin: int
    desk: Image.Image | None
    people: tuple[Person, ...]
    light: Light
    camera: Camera
    gain: Track
    cast: Track
    flicker: float
    grain: npt.NDArray[np.float32]
    overlays: tuple[Overlay, ...]


def draw_scene(rng: np.random.Generator, name: str, width: int, height: int, duration: float) -> Scene:
    """A random scene of scenario `name` for a frame of `width` x `height` pixels."""
    scenario = SCENARIOS[name]
    margin = math.ceil(MARGIN * max(width, height))
    angle, z = float(rng.uniform(-1.1, 1.1)), float(rng.uniform(0.55, 0.8))
    flat = math.sqrt(1 - z * z)
    light = Light(
        x=round(flat * math.sin(angle), 6),
        y=round(-flat * math.cos(angle), 6),
        z=z,
        ambient=float(rng.uniform(0.42, 0.62)),
        diffuse=float(rng.uniform(0.45, 0.65)),
    )
    full = bool(rng.random() < scenario.full)
    has_desk = not full and bool(rng.random() < scenario.desk)
    floor = height * float(rng.uniform(0.76, 0.9)) if has_desk else float(height)
    people = _draw_people(rng, scenario, (width, height), duration, full=full, floor=floor)
    size = (width + 2 * margin, height + 2 * margin)
    backdrop = _behind_people(rng, draw_backdrop(rng, name, size, light), min(width, height))
    desk = draw_desk(rng, size, margin + floor) if has_desk else None
    shake = float(rng.uniform(0.0, 0.006)) * height
    unit = 1.0 / 25
    return Scene(
        width=width,
        height=height,
        backdrop=backdrop,
        margin=margin,
        desk=desk,
        people=people,
        light=light,
        camera=Camera(
            Track(draw_waves(rng, shake, 0.3, 2.5)),
            Track(draw_waves(rng, shake, 0.3, 2.5)),
            Track(draw_waves(rng, 0.015, 0.03, 0.1), ((0.0, 1.015),)),
        ),
        gain=Track(
            draw_waves(rng, float(rng.uniform(0.02, 0.13)), 0.05, 0.25), ((0.0, float(rng.uniform(0.86, 1.06))),)
        ),
        cast=Track(draw_waves(rng, unit, 0.04, 0.15), ((0.0, float(rng.uniform(-0.07, 0.07))),)),
        flicker=float(rng.uniform(0.01, 0.04)) if rng.random() < 0.2 else 0.0,
        grain=_draw_grain(rng, 4 * width * height),
        overlays=draw_overlays(rng, name, width, height, duration),
    )


def _behind_people(rng: np.random.Generator, place: Image.Image, side: int) -> Image.Image:
    """The place as a portrait lens and a lit foreground show it: blurred, paler, darker."""
    blur, colour, light = (float(rng.uniform(*bounds)) for bounds in (FOCUS, AMBIENT_COLOUR, AMBIENT_LIGHT))
    place = place.filter(ImageFilter.GaussianBlur(blur * side))
    return ImageEnhance.Brightness(ImageEnhance.Color(place).enhance(colour)).enhance(light)


def _draw_grain(rng: np.random.Generator, length: int) -> npt.NDArray[np.float32]:
    """Noise of a random strength (standard deviation of 1 to 3.5 grey levels): the sum of two uniform draws."""
    dice = rng.integers(0, 256, (2, length), dtype=np.uint8).astype(np.float32)
    grain: npt.NDArray[np.float32] = (dice[0] + dice[1] - np.float32(255)) * np.float32(rng.uniform(1.0, 3.5) / 104.5)
    return grain


def _draw_people(
    rng: np.random.Generator, scenario: Scenario, frame: tuple[int, int], duration: float, *, full: bool, floor: float
) -> tuple[Person, ...]:
    """People side by side, the far ones (smaller) first; `full` shows whole bodies, else `floor` (pixels) cuts them."""
    width, height = frame
    count = 1 + int(rng.choice(3, p=scenario.crowd))
    room = width / count * (1 + 0.2 * (count - 1))  # people of a group stand closer, and may hide one another
    if full:
        scale = min(height * rng.uniform(0.095, 0.118), room * 0.36)
    else:
        scale = min(height * rng.uniform(0.2, 0.31), room * rng.uniform(0.29, 0.38))
        if count == 1 and rng.random() < 0.15:
            scale *= rng.uniform(1.2, 1.5)  # a close-up
    slots = rng.permutation(count)
    people = []
    for index in range(count):
        own = scale * float(rng.uniform(0.88, 1.05))
        spot = (slots[index] + 0.5 + rng.uniform(-0.14, 0.14)) * width / count
        if full:
            pelvis = height * rng.uniform(0.93, 1.02) - 3.95 * own
        else:
            crown = max(height * rng.uniform(0.07, 0.24), floor - own * rng.uniform(3.8, 5.8))
            pelvis = crown + (1.3 + SPINE) * own
        motion = _draw_motion(rng, scenario, (float(spot), float(pelvis)), own, duration)
        if full and rng.random() < scenario.walk:
            motion = _walking(rng, motion, own, width, duration)
        people.append(Person(draw_body(rng), draw_look(rng, own, scenario.holds), motion, own))
    return tuple(sorted(people, key=lambda person: person.scale))


def _draw_motion(
    rng: np.random.Generator, scenario: Scenario, spot: tuple[float, float], scale: float, duration: float
) -> Motion:
    """A trunk that sways and shifts its weight about `spot` (pixels), under arms that swing on their own."""

    def steps(centre: float, reach: float, every: float) -> tuple[tuple[float, float], ...]:
        moves, t = [(0.0, centre)], float(rng.uniform(0.2, 1.0)) * every
        while t < duration:
            moves.append((t, centre + float(rng.uniform(-reach, reach))))
            t += every * float(rng.uniform(0.7, 1.4))
        return tuple(moves)

    hands = [draw_arm_track(rng, names, duration, scenario.calm) for names in (scenario.left, scenario.right)]
    if rng.random() < 0.5:
        hands.reverse()
    x, y = spot
    return Motion(
        x=Track(draw_waves(rng, 0.12 * scale, 0.15, 0.4), steps(x, scenario.roam * scale, 1.6), 1.0),
        y=Track(draw_waves(rng, 0.05 * scale, 0.2, 0.6), steps(y, 0.16 * scale, 2.0), 0.8),
        lean=Track(draw_waves(rng, 0.035, 0.15, 0.4), steps(0.0, 0.1, 1.8), 0.9),
        yaw=Track(draw_waves(rng, 0.12, 0.1, 0.35), ((0.0, float(rng.uniform(-0.5, 0.5))),)),
        nod=Track(draw_waves(rng, 0.07, 0.3, 0.8), steps(0.0, 0.1, 1.3), 0.5),
        turn=Track(draw_waves(rng, 0.2, 0.2, 0.6), steps(0.0, 0.5, 1.5), 0.5),
        mouth=Track(((0.4, float(rng.uniform(2.0, 3.2)), 0.0), (0.25, 1.1, 1.0)), ((0.0, 0.3),)),
        left=hands[0],
        right=hands[1],
    )


def _walking(rng: np.random.Generator, motion: Motion, scale: float, width: int, duration: float) -> Motion:
    """The same person, walking from where they are towards the farther side of the frame."""
    start = motion.x.moves[0][1]
    towards = 1.0 if start < width / 2 else -1.0
    way = min(scale * float(rng.uniform(0.6, 1.4)) * duration, abs(width * (0.5 + 0.38 * towards) - start))
    path = ((0.0, start), (-1.0, start + towards * way))
    return replace(
        motion,
        x=Track(draw_waves(rng, 0.05 * scale, 0.8, 1.2), path, duration + 2.0),
        yaw=Track(motion.yaw.waves, ((0.0, towards * float(rng.uniform(0.7, 1.1))),)),
        stride=float(rng.uniform(0.7, 1.0)),
    )
