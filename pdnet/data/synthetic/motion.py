"""How people move: smooth tracks of time, arm gestures, and the pose of a body at an instant.

Body coordinates are in heads (1.0 is the height of a head): x towards the person's own left, which is the right of
the picture for a person who faces the camera; y down; z out of the chest. "Left" and "right" of limbs are the person's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pdnet.data.synthetic.raster import Point, snap

Vector = tuple[float, float, float]

SPINE, UPPER_ARM, FOREARM, THIGH, SHIN = 2.55, 1.4, 1.2, 1.85, 1.8


@dataclass(frozen=True)
class Track:
    """A smooth value over time: slow sines around values that change in steps.

    Attributes:
        waves: (amplitude, frequency in hertz, phase in radians) of each sine.
        moves: (time in seconds, value) in order of time; between them the value stays, each change takes `ease` s.
        ease: duration of a change.
    """

    waves: tuple[Vector, ...] = ()
    moves: tuple[Point, ...] = ((0.0, 0.0),)
    ease: float = 0.8

    def __call__(self, t: float) -> float:
        """The value at time `t` (seconds)."""
        value = self.moves[0][1]
        for (_, before), (start, after) in pairwise(self.moves):
            value += (after - before) * smoothstep((t - start) / self.ease)
        return value + sum(a * math.sin(2 * math.pi * f * t + p) for a, f, p in self.waves)


@dataclass(frozen=True)
class Gesture:
    """Where a hand goes, from its own shoulder (x outwards), and how it swings around that place.

    Attributes:
        target: wrist position.
        swing: amplitude along each axis.
        hertz: frequency of the swing.
    """

    target: Vector
    swing: Vector
    hertz: float


GESTURES: dict[str, tuple[Gesture, ...]] = {
    "rest": (Gesture((0.25, 2.3, 0.1), (0.1, 0.03, 0.15), 0.6),),
    "talk": (
        Gesture((0.25, 1.35, 1.1), (0.35, 0.3, 0.2), 0.9),
        Gesture((0.75, 1.1, 1.0), (0.45, 0.35, 0.2), 0.8),
        Gesture((-0.45, 1.2, 1.0), (0.3, 0.3, 0.2), 1.0),
        Gesture((0.95, 0.6, 0.7), (0.3, 0.4, 0.2), 0.7),
    ),
    "wave": (Gesture((0.85, -0.75, 0.5), (0.6, 0.12, 0.1), 1.4), Gesture((1.25, -1.1, 0.3), (0.5, 0.2, 0.1), 1.2)),
    "point": (Gesture((2.2, -0.35, 0.4), (0.15, 0.35, 0.1), 0.7), Gesture((2.0, 0.5, 0.8), (0.2, 0.4, 0.1), 0.8)),
    "raise": (Gesture((0.55, -2.2, 0.2), (0.25, 0.12, 0.1), 0.8), Gesture((1.3, -1.8, 0.2), (0.3, 0.2, 0.1), 1.0)),
    "fold": (Gesture((-1.05, 1.25, 0.8), (0.06, 0.05, 0.02), 0.4),),
    "hip": (Gesture((0.1, 1.95, 0.1), (0.03, 0.05, 0.02), 0.5),),
    "face": (Gesture((-0.6, -0.15, 0.7), (0.08, 0.08, 0.02), 0.6),),
    "handle": (
        Gesture((-0.4, 1.6, 1.1), (0.3, 0.2, 0.15), 1.0),
        Gesture((0.15, 1.7, 1.1), (0.4, 0.2, 0.15), 0.8),
        Gesture((0.5, 1.4, 1.0), (0.45, 0.35, 0.2), 0.7),
    ),
    "show": (Gesture((0.3, 0.45, 1.0), (0.25, 0.25, 0.1), 0.7), Gesture((0.9, -0.1, 0.8), (0.3, 0.3, 0.1), 0.6)),
    "dance": (
        Gesture((1.6, -0.8, 0.3), (0.5, 0.9, 0.2), 1.2),
        Gesture((0.7, -1.7, 0.4), (0.6, 0.4, 0.2), 1.3),
        Gesture((1.8, 0.8, 0.4), (0.4, 0.8, 0.3), 1.1),
    ),
}


@dataclass(frozen=True)
class ArmTrack:
    """The hand of one arm over time: gestures in turn, each reached smoothly, each swinging on its own.

    Attributes:
        starts: start time of each gesture, seconds; the first counts from the beginning.
        gestures: the gestures.
        phases: phase of each gesture's swing, radians.
        ease: seconds a change of gesture takes.
    """

    starts: tuple[float, ...]
    gestures: tuple[Gesture, ...]
    phases: tuple[float, ...]
    ease: float

    def __call__(self, t: float) -> Vector:
        """Wrist relative to the shoulder, x outwards, in heads, at time `t` (seconds)."""
        place = self._hand(0, t)
        for index in range(1, len(self.starts)):
            weight = smoothstep((t - self.starts[index]) / self.ease)
            if weight > 0.0:
                place = lerp(place, self._hand(index, t), weight)
        return place

    def _hand(self, index: int, t: float) -> Vector:
        gesture, phase = self.gestures[index], self.phases[index]
        turn = 2 * math.pi * gesture.hertz * t + phase
        factors = (math.sin(turn), math.sin(turn * 1.31 + 1.0), math.cos(turn))
        x, y, z = (c + a * f for c, a, f in zip(gesture.target, gesture.swing, factors, strict=True))
        return x, y, z


@dataclass(frozen=True)
class Body:
    """Proportions in heads: half widths of shoulders, waist and hips, and a factor on the thickness of limbs."""

    shoulder: float
    waist: float
    hip: float
    thick: float


@dataclass(frozen=True)
class Motion:
    """All tracks of one person.

    Attributes:
        x, y: pixels, where the pelvis stands, camera aside.
        lean: radians, of the spine to the side.
        yaw: radians, body turned towards the right of the picture.
        nod, turn: head tilt (radians) and turn (-1..1).
        mouth: how open, 0..1.
        left, right: hands.
        stride: steps a second; 0 stands.
    """

    x: Track
    y: Track
    lean: Track
    yaw: Track
    nod: Track
    turn: Track
    mouth: Track
    left: ArmTrack
    right: ArmTrack
    stride: float = 0.0


@dataclass(frozen=True)
class Arm:
    """Shoulder, elbow, wrist and finger tips: points on the picture, and `depth` of elbow and wrist in heads."""

    shoulder: Point
    elbow: Point
    wrist: Point
    tip: Point
    depth: float


@dataclass(frozen=True)
class Pose:
    """Joints on the picture (pixels) at one instant; `left` and `right` are the person's own."""

    scale: float
    pelvis: Point
    neck: Point
    head: Point
    tilt: float
    turn: float
    yaw: float
    mouth: float
    left: Arm
    right: Arm
    left_leg: tuple[Point, Point, Point]
    right_leg: tuple[Point, Point, Point]


def pose_at(
    body: Body, motion: Motion, scale: float, t: float, *, offset: Point = (0.0, 0.0), zoom: float = 1.0
) -> Pose:
    """The pose at time `t` (seconds) of a person whose head is `scale` pixels high, seen by a moving camera.

    The camera maps a scene point p to `zoom * p + offset`.
    """
    # Rounded, so that the last bit of a sine, which differs between machines, does not reach the picture.
    yaw, lean = round(motion.yaw(t), 6), round(motion.lean(t), 6)
    pelvis = (motion.x(t) * zoom + offset[0], motion.y(t) * zoom + offset[1])
    scale *= zoom
    c, s = math.cos(yaw), math.sin(yaw)

    def project(p: Vector, origin: Point, roll: float) -> Point:
        """A body point relative to `origin`: turned by yaw, rolled by `roll`, dropped onto the picture."""
        x, y = (p[0] * c + p[2] * s) * scale, p[1] * scale
        return (
            snap(origin[0] + x * math.cos(roll) - y * math.sin(roll)),
            snap(origin[1] + x * math.sin(roll) + y * math.cos(roll)),
        )

    neck = project((0.0, -SPINE, 0.0), pelvis, lean)
    tilt = round(lean + motion.nod(t), 6)
    head = project((0.0, -0.77, 0.12), neck, tilt)

    def arm(side: float, track: ArmTrack) -> Arm:
        root = (side * (body.shoulder - 0.2), 0.5, 0.0)
        x, y, z = track(t)
        reach = (root[0] + side * x, root[1] + y, z)
        elbow, wrist = solve_arm(root, reach, side)
        forward = unit(sub(wrist, elbow))
        tip = add(wrist, (forward[0] * 0.62, forward[1] * 0.62, forward[2] * 0.62))
        depths = [-p[0] * s + p[2] * c for p in (elbow, wrist)]
        points = [project(p, neck, lean) for p in (root, elbow, wrist, tip)]
        return Arm(points[0], points[1], points[2], points[3], depths[0] + depths[1])

    def leg(side: float, phase: float) -> tuple[Point, Point, Point]:
        swing = 0.42 * math.sin(2 * math.pi * motion.stride * t + phase) if motion.stride else 0.0
        bend = 0.55 * max(0.0, math.cos(2 * math.pi * motion.stride * t + phase)) if motion.stride else 0.0
        hip = (side * body.hip * 0.5, 0.1, 0.0)
        knee = (side * body.hip * 0.55, hip[1] + THIGH * math.cos(swing), THIGH * math.sin(swing))
        ankle = (
            side * body.hip * 0.6,
            knee[1] + SHIN * math.cos(swing - bend),
            knee[2] + SHIN * math.sin(swing - bend),
        )
        return project(hip, pelvis, lean * 0.5), project(knee, pelvis, 0.0), project(ankle, pelvis, 0.0)

    return Pose(
        scale=scale,
        pelvis=pelvis,
        neck=neck,
        head=head,
        tilt=tilt,
        turn=round(max(-1.0, min(1.0, motion.turn(t) + 1.1 * s)), 6),
        yaw=yaw,
        mouth=round(min(max(motion.mouth(t), 0.0), 1.0), 6),
        left=arm(1.0, motion.left),
        right=arm(-1.0, motion.right),
        left_leg=leg(1.0, 0.0),
        right_leg=leg(-1.0, math.pi),
    )


def solve_arm(shoulder: Vector, target: Vector, side: float) -> tuple[Vector, Vector]:
    """Elbow and wrist of an arm whose wrist is as near to `target` as bones allow; elbows point down and out."""
    towards = sub(target, shoulder)
    distance = math.sqrt(dot(towards, towards))
    reach = min(max(distance, 0.45), UPPER_ARM + FOREARM - 0.03)
    axis = unit(towards)
    along = (UPPER_ARM**2 - FOREARM**2 + reach**2) / (2 * reach)
    height = math.sqrt(max(UPPER_ARM**2 - along**2, 0.0))
    pole = (0.75 * side, 0.8, -0.45)
    lift = dot(pole, axis)
    normal = unit((pole[0] - axis[0] * lift, pole[1] - axis[1] * lift, pole[2] - axis[2] * lift))
    elbow = add(shoulder, tuple_of(axis, along, normal, height))
    return elbow, add(shoulder, (axis[0] * reach, axis[1] * reach, axis[2] * reach))


def draw_arm_track(rng: np.random.Generator, names: tuple[str, ...], duration: float, calm: float) -> ArmTrack:
    """Gestures in random turn over `duration` seconds, each held for about `calm` seconds."""
    starts, gestures = [0.0], []
    while True:
        choices = GESTURES[names[int(rng.integers(len(names)))]]
        gesture = choices[int(rng.integers(len(choices)))]
        amplify = rng.uniform(0.8, 1.25)
        x, y, z = gesture.swing
        shift = rng.uniform(-0.15, 0.15, 3)
        place = add(gesture.target, (float(shift[0]), float(shift[1]), float(shift[2])))
        gestures.append(
            Gesture(place, (x * amplify, y * amplify, z * amplify), gesture.hertz * float(rng.uniform(0.8, 1.25)))
        )
        following = starts[-1] + calm * float(rng.uniform(0.6, 1.5))
        if following > duration:
            break
        starts.append(following)
    phases = tuple(float(p) for p in rng.uniform(0, 2 * math.pi, len(starts)))
    return ArmTrack(tuple(starts), tuple(gestures), phases, float(rng.uniform(0.4, 0.7)))


def draw_waves(rng: np.random.Generator, amplitude: float, low: float, high: float) -> tuple[Vector, ...]:
    """Two sines of random frequency within [low, high] hertz whose amplitudes sum to about `amplitude`."""
    return tuple(
        (amplitude * weight, float(rng.uniform(low, high)), float(rng.uniform(0, 2 * math.pi)))
        for weight in (0.65, 0.35)
    )


def smoothstep(x: float) -> float:
    """0 below 0, 1 above 1, a smooth rise between."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def lerp(a: Vector, b: Vector, t: float) -> Vector:
    """The point a share `t` of the way from `a` to `b`."""
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


def add(a: Vector, b: Vector) -> Vector:
    """Sum of two vectors."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def sub(a: Vector, b: Vector) -> Vector:
    """Difference of two vectors."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def dot(a: Vector, b: Vector) -> float:
    """Inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(a: Vector) -> Vector:
    """The vector scaled to length one; straight down for a vanishing vector."""
    length = math.sqrt(dot(a, a))
    return (a[0] / length, a[1] / length, a[2] / length) if length > 1e-6 else (0.0, 1.0, 0.0)


def tuple_of(axis: Vector, along: float, normal: Vector, height: float) -> Vector:
    """The point `along` one direction and `height` along another."""
    return add(
        (axis[0] * along, axis[1] * along, axis[2] * along),
        (normal[0] * height, normal[1] * height, normal[2] * height),
    )
