"""Drawing a person: clothes, face and hair over the joints of a pose, each shape with the label of its body part."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pdnet.data.synthetic.motion import Arm, Body, Motion, Pose, pose_at
from pdnet.data.synthetic.raster import Canvas, Colour, Field, Material, Point
from pdnet.data.synthetic.textures import (
    any_colour,
    cloth,
    hair,
    hair_colour,
    random_cloth,
    rough,
    skin,
    skin_colour,
)

HEAD, TORSO, LEFT_UPPER, LEFT_LOWER, RIGHT_UPPER, RIGHT_LOWER, LEFT_LEG, RIGHT_LEG = range(1, 9)
PART_NAMES = (
    "background", "head", "torso", "left upper arm", "left lower arm", "right upper arm", "right lower arm",
    "left leg", "right leg",
)  # fmt: skip

SHUTTER = 1 / 45  # seconds of exposure
HAIR_STYLES = ("bald", "crop", "crop", "side", "side", "long", "long", "bob", "bun", "afro", "curls", "scarf")
HEADWEAR = ("none",) * 8 + ("cap", "beanie", "brim")
TOPS = ("tee", "tee", "long", "long", "jacket", "jacket", "vest", "dress", "hoodie")
OBJECTS = ("phone", "box", "cup", "bottle", "book", "ball", "tool", "microphone")
_IRIS: tuple[Colour, ...] = ((60, 40, 26), (40, 28, 20), (70, 110, 140), (80, 104, 70))
# Half width of a skull from crown (0) to chin (1): a round top, straight cheeks, a narrower chin.
_SKULL = (
    (0.005, 0.1), (0.04, 0.39), (0.12, 0.64), (0.23, 0.84), (0.37, 0.96), (0.5, 1.0), (0.66, 0.94), (0.79, 0.8),
    (0.89, 0.6), (0.96, 0.38), (1.0, 0.12),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Everything about a person that does not move.

    Attributes:
        skin, hair, top, inner, bottom, shoe, accent: surfaces; `inner` is a shirt below a jacket, `accent` headwear.
        lip, iris: colours of the mouth and the eyes.
        hair_style, headwear, top_style: names out of HAIR_STYLES, HEADWEAR, TOPS.
        sleeve: 0 none, 1 to the elbow, 2 to the wrist.
        glasses, beard, tie: worn or not.
        face: width of the face in heads.
        holds: (hand, object, material): what "left" or "right" holds, never a part of the portrait; or None.
        lifeless: a mannequin: no face, no hair.
    """

    skin: Material
    hair: Material
    top: Material
    inner: Material
    bottom: Material
    shoe: Material
    accent: Material
    lip: Colour
    iris: Colour
    hair_style: str
    headwear: str
    top_style: str
    sleeve: float
    glasses: bool
    beard: bool
    tie: bool
    face: float
    holds: tuple[str, str, Material] | None = None
    lifeless: bool = False


@dataclass(frozen=True)
class Person:
    """One articulated person: proportions, look, motion, and the height of the head in pixels."""

    body: Body
    look: Look
    motion: Motion
    scale: float


def draw_body(rng: np.random.Generator) -> Body:
    """Random proportions, slim to heavy."""
    shoulder = float(rng.uniform(0.84, 1.12))
    heavy = float(rng.uniform(0.0, 1.0)) ** 2
    return Body(
        shoulder=shoulder,
        waist=shoulder * float(rng.uniform(0.66, 0.8)) + 0.25 * heavy,
        hip=shoulder * float(rng.uniform(0.76, 0.9)) + 0.2 * heavy,
        thick=float(rng.uniform(0.88, 1.1)) + 0.22 * heavy,
    )


def draw_look(rng: np.random.Generator, scale: float, holding: float = 0.0) -> Look:
    """A random appearance for a head `scale` pixels high; `holding` is the probability of an object in a hand."""
    texels = 140.0 / scale
    tone = skin_colour(rng)
    style = HAIR_STYLES[int(rng.integers(len(HAIR_STYLES)))]
    top = TOPS[int(rng.integers(len(TOPS)))]
    sleeve = {"tee": float(rng.uniform(0.45, 0.9)), "vest": 0.0, "dress": float(rng.choice([0.0, 0.6, 2.0]))}.get(
        top, 2.0
    )
    if top == "long" and rng.random() < 0.3:
        sleeve = float(rng.uniform(1.2, 1.6))
    rouge = float(rng.uniform(0.6, 0.85))
    thing = OBJECTS[int(rng.integers(len(OBJECTS)))], random_cloth(rng, texels)
    return Look(
        skin=skin(rng, tone),
        hair=hair(rng, hair_colour(rng), style in ("afro", "curls"), texels),
        top=cloth(rng, any_colour(rng), "plain", texels) if top == "jacket" else random_cloth(rng, texels),
        inner=Material(any_colour(rng, 120, 250)),
        bottom=cloth(rng, any_colour(rng, 20, 190), "plain", texels),
        shoe=Material(any_colour(rng, 15, 230)),
        accent=Material(any_colour(rng)),
        lip=(tone[0] * rouge + 34, tone[1] * rouge * 0.78 + 8, tone[2] * rouge * 0.78 + 14),
        iris=_IRIS[int(rng.integers(len(_IRIS)))],
        hair_style=style,
        headwear="none" if style in ("scarf", "afro", "bun") else HEADWEAR[int(rng.integers(len(HEADWEAR)))],
        top_style=top,
        sleeve=sleeve,
        glasses=bool(rng.random() < 0.25),
        beard=bool(rng.random() < 0.22) and style not in ("long", "bob", "bun", "scarf"),
        tie=bool(rng.random() < 0.5),
        face=float(rng.uniform(0.7, 0.8)),
        holds=(str(rng.choice(["left", "right"])), *thing) if rng.random() < holding else None,
    )


def draw_mannequin_look(rng: np.random.Generator, scale: float) -> Look:
    """One hard uniform surface from head to foot, sometimes under a garment."""
    shell = rough(rng, any_colour(rng, 60, 240), 0.06, 32)
    look = draw_look(rng, scale)
    dressed = bool(rng.random() < 0.45)
    return replace(
        look, skin=shell, bottom=shell, shoe=shell, hair_style="bald", headwear="none", beard=False, glasses=False,
        top=look.top if dressed else shell, top_style="tee" if dressed else "vest", sleeve=0.6 if dressed else 0.0,
        lifeless=True,
    )  # fmt: skip


def draw_person(canvas: Canvas, person: Person, t: float, offset: Point = (0.0, 0.0), zoom: float = 1.0) -> None:
    """Draw `person` at time `t` (seconds); the camera maps a scene point p to `zoom * p + offset` (pixels)."""
    before, pose, after = (
        pose_at(person.body, person.motion, person.scale, moment, offset=offset, zoom=zoom)
        for moment in (t - SHUTTER / 2, t, t + SHUTTER / 2)
    )
    Painter(canvas, person.look, person.body, pose, _blur(before, after)).person()


def _blur(before: Pose, after: Pose) -> dict[int, float]:
    """For each label, the pixels its part travels during the exposure, at least 1."""

    def travel(a: Point, b: Point) -> float:
        return math.hypot(a[0] - b[0], a[1] - b[1])

    trunk = travel(before.neck, after.neck)
    blur = {HEAD: travel(before.head, after.head), TORSO: trunk, LEFT_LEG: trunk, RIGHT_LEG: trunk}
    for a, b, upper, lower in (
        (before.left, after.left, LEFT_UPPER, LEFT_LOWER),
        (before.right, after.right, RIGHT_UPPER, RIGHT_LOWER),
    ):
        elbow, wrist = travel(a.elbow, b.elbow), travel(a.wrist, b.wrist)
        blur |= {upper: elbow * 0.6, lower: (elbow + wrist) * 0.5}
    return {label: max(1.0, 0.8 * pixels) for label, pixels in blur.items()}


class Painter:
    """Draws one person or mannequin at one pose, back to front; lengths are in heads."""

    def __init__(self, canvas: Canvas, look: Look, body: Body, pose: Pose, blur: dict[int, float]) -> None:
        self.canvas, self.look, self.body, self.pose, self.blur = canvas, look, body, pose, blur
        self.s = pose.scale
        self.down = (-math.sin(pose.tilt), math.cos(pose.tilt))  # the head's own axes on the picture
        self.side = (math.cos(pose.tilt), math.sin(pose.tilt))
        length = max(math.hypot(pose.pelvis[0] - pose.neck[0], pose.pelvis[1] - pose.neck[1]), 1e-3)
        self.spine = ((pose.pelvis[0] - pose.neck[0]) / length, (pose.pelvis[1] - pose.neck[1]) / length)

    def person(self) -> None:
        """Draw all parts; arms whose hand is behind the chest come before the trunk."""
        arms = sorted(
            (("left", self.pose.left, LEFT_UPPER, LEFT_LOWER), ("right", self.pose.right, RIGHT_UPPER, RIGHT_LOWER)),
            key=lambda arm: arm[1].depth,
        )
        legs = [(self.pose.right_leg, RIGHT_LEG), (self.pose.left_leg, LEFT_LEG)]
        self._stand()
        self._hair_behind()
        for arm in arms:
            if arm[1].depth < -0.25:
                self._arm(*arm)
        for leg, label in legs if self.pose.yaw > 0 else legs[::-1]:
            self._leg(leg, label)
        self._torso()
        self._head()
        for arm in arms:
            if arm[1].depth >= -0.25:
                self._cast_shadow(arm[1])
                self._arm(*arm)

    # Geometry

    def _face_at(self, x: float, y: float) -> Point:
        """A point given from the centre of the head, along the head's own axes."""
        (cx, cy), (sx, sy), (dx, dy) = self.pose.head, self.side, self.down
        return cx + self.s * (x * sx + y * dx), cy + self.s * (x * sy + y * dy)

    def _trunk_at(self, x: float, y: float) -> Point:
        """A point `y` down the spine from the neck and `x` to the right of the picture, shifted as the chest turns."""
        (nx, ny), (ux, uy) = self.pose.neck, self.spine
        x += 0.45 * math.sin(self.pose.yaw)
        return nx + self.s * (y * ux + x * uy), ny + self.s * (y * uy - x * ux)

    def _blob(self, centre: Point, radii: Point, material: Material, shading: float = 1.0) -> None:
        """An ellipse on the head."""
        shape = self.canvas.ellipse(self._face_at(*centre), radii[0] * self.s, radii[1] * self.s, self.pose.tilt)
        self._paint(shape, material, HEAD, shading)

    def _stroke(self, ends: tuple[Point, Point], radii: Point, material: Material, shading: float = 1.0) -> None:
        """A capsule on the head."""
        a, b = self._face_at(*ends[0]), self._face_at(*ends[1])
        self._paint(self.canvas.capsule(a, b, radii[0] * self.s, radii[1] * self.s), material, HEAD, shading)

    def _limb(self, ends: tuple[Point, Point], radii: Point, material: Material, label: int) -> None:
        """A capsule between two points of the picture."""
        self._paint(self.canvas.capsule(*ends, radii[0] * self.s, radii[1] * self.s), material, label)

    def _paint(self, field: Field | None, material: Material, label: int, shading: float = 1.0) -> None:
        self.canvas.paint(field, material, label, softness=self.blur[label], shading=shading)

    # Trunk and limbs

    def _stand(self) -> None:
        """The shadow at the feet."""
        feet = _between(self.pose.left_leg[2], self.pose.right_leg[2], 0.5)
        shadow = self.canvas.ellipse((feet[0], feet[1] + 0.3 * self.s), 0.9 * self.s, 0.16 * self.s, pad=0.3 * self.s)
        self.canvas.darken(shadow, 0.45, softness=0.35 * self.s)

    def _leg(self, leg: tuple[Point, Point, Point], label: int) -> None:
        thick, look, s = self.body.thick, self.look, self.s
        hip, knee, ankle = leg
        material = look.skin if look.top_style == "dress" else look.bottom
        toe = (ankle[0] + (0.22 * math.sin(self.pose.yaw)) * s, ankle[1] + 0.16 * s)
        self._limb((ankle, toe), (0.15, 0.19), look.shoe, label)
        self._limb((knee, ankle), (0.25 * thick, 0.17), material, label)
        self._limb((hip, knee), (0.42 * thick, 0.26 * thick), material, label)

    def _skirt(self) -> None:
        """A skirt to the knee, its halves labelled as the legs below them."""
        pose, s, hip = self.pose, self.s, self.body.hip
        middle = _between(pose.left_leg[1], pose.right_leg[1], 0.5)
        spread = math.hypot(pose.left_leg[1][0] - pose.right_leg[1][0], pose.left_leg[1][1] - pose.right_leg[1][1])
        knots = ((-0.2 * s, hip * s), (0.5 * s, hip * 1.06 * s), (1.7 * s, max(hip * 1.15 * s, spread * 0.5 + 0.4 * s)))
        skirt = self.canvas.profile(pose.pelvis, middle, knots)
        if skirt is None:
            return
        self._paint(skirt, self.look.top, LEFT_LEG, 0.8)
        towards_left = 1.0 if math.cos(pose.yaw) > 0 else -1.0
        right_half = self.canvas.labels[skirt.rows, skirt.cols]
        right_half[(skirt.d <= 0) & (skirt.u * towards_left > 0)] = RIGHT_LEG

    def _torso(self) -> None:
        s, body, look, pose = self.s, self.body, self.look, self.pose
        turned, depth = abs(math.cos(pose.yaw)), abs(math.sin(pose.yaw)) * 0.52 * body.waist
        if look.top_style == "dress":
            self._skirt()
        heights = (0.02, 0.13, 0.3, 0.48, 1.0, 1.75, 2.35, 2.75)
        sh, hem = body.shoulder, 1.0 if look.top_style == "dress" else 0.97
        widths = (0.24, 0.5 * sh, 0.83 * sh, 0.93 * sh, 0.84 * sh, body.waist, body.hip, body.hip * hem)
        knots = [(y * s, (w * turned + depth) * s) for y, w in zip(heights, widths, strict=True)]
        shape = self.canvas.profile(pose.neck, pose.pelvis, knots)
        self._paint(shape, look.top, TORSO, 0.75)
        if shape is not None and look.top_style != "dress":
            below_belt = shape.cut(self._trunk_at(0.0, 2.25), (-self.spine[0], -self.spine[1]))
            self._paint(below_belt, look.bottom, TORSO, 0.75)
        {"jacket": self._jacket, "hoodie": self._hood}.get(look.top_style, self._neckline)()

    def _neckline(self) -> None:
        drop = 0.3 if self.look.top_style in ("vest", "dress") else 0.2
        for grow, material in ((0.035, self.look.top.tinted(0.75)), (0.0, self.look.skin)):
            opening = self.canvas.ellipse(
                self._trunk_at(0.0, 0.02), (0.1 + drop * 0.7 + grow) * self.s, (drop + grow) * self.s
            )
            self._paint(opening, material, TORSO, 0.4)

    def _hood(self) -> None:
        for y, rx, ry, material in ((0.1, 0.5, 0.27, self.look.top.tinted(0.8)), (0.05, 0.27, 0.16, self.look.skin)):
            self._paint(self.canvas.ellipse(self._trunk_at(0, y), rx * self.s, ry * self.s), material, TORSO, 0.5)

    def _jacket(self) -> None:
        s, look = self.s, self.look
        turned = math.cos(self.pose.yaw)
        low = self._trunk_at(0.0, 1.5)
        shirt = [self._trunk_at(-0.26 * turned, 0.02), self._trunk_at(0.26 * turned, 0.02), low]
        self._paint(self.canvas.polygon(shirt), look.inner, TORSO)
        if look.tie:
            knot = self._trunk_at(0.0, 0.22)
            self._limb((knot, self._trunk_at(0.0, 1.25)), (0.05, 0.1), look.accent, TORSO)
            self._paint(self.canvas.ellipse(knot, 0.09 * s, 0.08 * s), look.accent.tinted(0.85), TORSO, 0.5)
        for sign in (-turned, turned):
            lapel = [self._trunk_at(sign * 0.24, 0.0), self._trunk_at(sign * 0.5, 0.5), low]
            self._paint(self.canvas.polygon(lapel), look.top.tinted(0.78), TORSO)
        for y in (1.62, 1.9):
            button = self.canvas.ellipse(self._trunk_at(0.0, y), 0.035 * s, 0.035 * s)
            self._paint(button, look.top.tinted(0.5), TORSO)

    def _cast_shadow(self, arm: Arm) -> None:
        """A soft shadow of the arm on its own body, away from the light."""
        drop = 0.14 * self.s
        for a, b in ((arm.shoulder, arm.elbow), (arm.elbow, arm.wrist)):
            moved = [(x - self.canvas.light.x * drop, y + drop) for x, y in (a, b)]
            shadow = self.canvas.capsule(moved[0], moved[1], 0.24 * self.s, pad=0.15 * self.s)
            self.canvas.darken(shadow, 0.28, softness=0.25 * self.s, on=(HEAD, TORSO, LEFT_LEG, RIGHT_LEG))

    def _arm(self, name: str, arm: Arm, upper: int, lower: int) -> None:
        k, look = self.body.thick, self.look
        over = look.sleeve - 1  # how much of the forearm is covered
        self._limb((arm.shoulder, arm.elbow), (0.24 * k, 0.2 * k), look.top if over >= 0 else look.skin, upper)
        if -1 < over < 0:
            self._limb(
                (arm.shoulder, _between(arm.shoulder, arm.elbow, 1 + over)), (0.265 * k, 0.26 * k), look.top, upper
            )
        self._limb((arm.elbow, arm.wrist), (0.195 * k, 0.125 * k), look.top if over >= 0.95 else look.skin, lower)
        if 0 < over < 0.95:
            self._limb((arm.elbow, _between(arm.elbow, arm.wrist, over)), (0.215 * k, 0.19 * k), look.top, lower)
        elif over >= 0.95:
            cuff = look.inner if look.top_style == "jacket" else look.top.tinted(0.85)
            self._limb((_between(arm.elbow, arm.wrist, 0.93), arm.wrist), (0.15 * k, 0.145 * k), cuff, lower)
        if look.holds is not None and look.holds[0] == name:
            self._held(arm, lower, look.holds[1], look.holds[2])
        self._hand(arm, lower, 1.0 if name == "left" else -1.0)

    def _hand(self, arm: Arm, label: int, side: float) -> None:
        """Palm, four fingers and a thumb; a fist where the hand points at the camera."""
        dx, dy = arm.tip[0] - arm.wrist[0], arm.tip[1] - arm.wrist[1]
        length = math.hypot(dx, dy)
        skin = self.look.skin
        if length < 0.25 * self.s:
            self._paint(self.canvas.ellipse(arm.wrist, 0.2 * self.s, 0.2 * self.s), skin, label)
            return
        ux, uy = dx / length, dy / length
        length = max(length, 0.45 * self.s)  # shorter ones look like paws
        dx, dy = ux * length, uy * length

        def place(along: float, across: float) -> Point:
            across *= self.s * side
            return arm.wrist[0] + dx * along - uy * across, arm.wrist[1] + dy * along + ux * across

        self._limb((place(0.15, -0.09), place(0.52, -0.25)), (0.065, 0.05), skin, label)
        for index, reach in enumerate((0.92, 1.0, 0.96, 0.82)):
            across = -0.115 + 0.077 * index
            self._limb((place(0.45, across), place(reach, across * 1.45)), (0.052, 0.04), skin, label)
        self._limb((place(0.05, 0.0), place(0.5, 0.0)), (0.13, 0.165), skin, label)

    def _held(self, arm: Arm, label: int, thing: str, material: Material) -> None:
        """An object in the hand (of part `label`): it hides the portrait and is not a part of it."""
        s = self.s
        (x, y), (tx, ty) = arm.wrist, arm.tip
        x, y = x + (tx - x) * 0.7, y + (ty - y) * 0.7

        def put(field: Field | None, surface: Material) -> None:
            self.canvas.paint(field, surface, 0, softness=self.blur[label])

        def box(half_width: float, half_height: float, rounding: float) -> Field | None:
            w, h = half_width * s, half_height * s
            return self.canvas.polygon(((x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)), rounding * s)

        if thing == "phone":
            put(box(0.16, 0.32, 0.04), Material((28, 28, 32)))
            put(box(0.15, 0.28, 0.01), material.tinted(1.1))
        elif thing in ("box", "book"):
            half_width, half_height = (0.5, 0.38) if thing == "box" else (0.36, 0.48)
            put(box(half_width, half_height, 0.03), material)
            put(box(half_width * 0.6, half_height * 0.25, 0.0), Material((235, 232, 222)))
        elif thing == "ball":
            put(self.canvas.ellipse((x, y), 0.42 * s, 0.42 * s), material)
        elif thing == "microphone":
            put(self.canvas.capsule((x, y), (x, y - 0.4 * s), 0.06 * s), Material((36, 36, 40)))
            put(self.canvas.ellipse((x, y - 0.48 * s), 0.12 * s, 0.13 * s), Material((96, 98, 104)))
        elif thing == "tool":
            put(self.canvas.capsule((x, y), (x + 0.25 * s, y - 0.9 * s), 0.05 * s), material)
        else:
            height = 0.5 if thing == "bottle" else 0.22
            put(self.canvas.capsule((x, y - height * s), (x, y + 0.15 * s), 0.15 * s, 0.18 * s), material)
            if thing == "bottle":
                put(self.canvas.capsule((x, y - 0.78 * s), (x, y - 0.6 * s), 0.07 * s), material.tinted(0.6))

    # Head

    def _hair_behind(self) -> None:
        style, look = self.look.hair_style, self.look
        if style in ("long", "bob"):
            self._stroke(((0, -0.1), (0, 0.95 if style == "long" else 0.3)), (0.46, 0.42), look.hair, 0.7)
        elif style == "scarf":
            self._stroke(((0, 0.1), (0, 0.75)), (0.42, 0.5), look.accent, 0.7)
        elif style in ("afro", "curls"):
            radius = 0.66 if style == "afro" else 0.54
            self._blob((0, -0.14), (radius, radius), look.hair, 0.6)
        elif style == "bun":
            self._blob((0, -0.58), (0.2, 0.19), look.hair)

    def _head(self) -> None:
        s, look, turn = self.s, self.look, self.pose.turn
        half = look.face / 2
        covered = look.hair_style == "scarf"
        neck = self.canvas.capsule(self._face_at(0, 0.25), self.pose.neck, 0.2 * s, 0.235 * s)
        self._paint(neck, look.accent if covered else look.skin, HEAD)
        chin = self.canvas.ellipse(self._face_at(0, 0.43), 0.3 * s, 0.22 * s, pad=0.1 * s)
        self.canvas.darken(chin, 0.35, softness=0.15 * s, on=(HEAD, TORSO))
        for sign in (-1.0, 1.0):
            if sign * turn < 0.45 and look.hair_style not in ("long", "bob", "scarf"):
                self._blob((sign * (half + 0.01), 0.03), (0.065, 0.12), look.skin)
        knots = [(y * s, w * half * s) for y, w in _SKULL]
        self._paint(self.canvas.profile(self._face_at(0, -0.5), self._face_at(0, 0.5), knots), look.skin, HEAD, 0.85)
        if look.lifeless:
            return
        self._face(turn * 0.2)
        self._hair_front(half, turn)
        self._headwear(half, turn)

    def _face(self, shift: float) -> None:
        """Beard, eyes, brows, nose, mouth, glasses; `shift` moves them sideways as the head turns."""
        s, look, canvas, opened = self.s, self.look, self.canvas, self.pose.mouth
        narrow = 1.0 - abs(shift) * 1.2
        dark = Material((36, 28, 26))
        if look.beard:
            self._blob((shift * 0.5, 0.33), (0.29, 0.19), look.hair, 0.5)
        for sign in (-1.0, 1.0):
            x = shift + sign * 0.155 * narrow
            socket = canvas.ellipse(self._face_at(x, -0.05), 0.1 * s, 0.065 * s, pad=0.05 * s)
            canvas.darken(socket, 0.18, softness=max(0.06 * s, 1.0))
            self._blob((x, -0.03), (0.07, 0.042), Material((236, 232, 228)), 0)
            self._blob((x + shift * 0.1, -0.032), (0.036, 0.04), Material(look.iris), 0)
            for a, b in (((-0.075, -0.045), (0.0, -0.072)), ((0.0, -0.072), (0.075, -0.045))):
                self._stroke(((x + a[0], a[1]), (x + b[0], b[1])), (0.011, 0.011), dark, 0)
            arch, brow = x + sign * 0.03, look.hair.tinted(0.8)
            self._stroke(((x - sign * 0.085, -0.14), (arch, -0.17)), (0.02, 0.02), brow, 0)
            self._stroke(((arch, -0.17), (x + sign * 0.1, -0.14)), (0.02, 0.011), brow, 0)
        self._stroke(((shift * 1.25, -0.02), (shift * 1.35, 0.14)), (0.03, 0.058), Material(look.skin.colour))
        below = canvas.ellipse(self._face_at(shift * 1.25, 0.195), 0.07 * s, 0.022 * s, pad=0.03 * s)
        canvas.darken(below, 0.25, softness=max(0.04 * s, 1.0))
        self._blob((shift * 1.1, 0.3), (0.125 * narrow, 0.03 + 0.045 * opened), Material(look.lip), 0.4)
        self._blob((shift * 1.1, 0.3), (0.095 * narrow, 0.008 + 0.04 * opened), Material((62, 24, 24)), 0)
        if look.glasses:
            for sign in (-1.0, 1.0):
                rim = canvas.ellipse(self._face_at(shift + sign * 0.165, -0.02), 0.12 * s, 0.095 * s, self.pose.tilt)
                if rim is not None:
                    ring = replace(rim, d=np.subtract(np.abs(rim.d), max(0.014 * s, 0.6), dtype=np.float32))
                    self._paint(ring, dark, HEAD, 0)
            self._stroke(((shift - 0.05, -0.03), (shift + 0.05, -0.03)), (0.014, 0.014), dark, 0)

    def _hair_front(self, half: float, turn: float) -> None:
        """Hair over the skull, the face left free below a round hairline."""
        s, look, style = self.s, self.look, self.look.hair_style
        if style == "bald":
            return
        if style == "scarf":
            cloth = self.canvas.ellipse(self._face_at(0, 0.0), (half + 0.1) * s, 0.6 * s, self.pose.tilt)
            if cloth is not None:
                face = self._face_at(turn * 0.1, 0.03)
                self._paint(cloth.without_ellipse(face, 0.3 * s, 0.4 * s, self.pose.tilt), look.accent, HEAD, 0.8)
            return
        puff = {"crop": 0.03, "afro": 0.12, "curls": 0.12}.get(style, 0.06)
        cap = self.canvas.ellipse(self._face_at(0, -0.1), (half + puff) * s, (0.42 + puff) * s, self.pose.tilt)
        if cap is not None:
            part = {"side": 0.07, "bob": 0.05}.get(style, 0.0) + turn * 0.12
            rx, top = {"crop": (0.34, -0.33), "bob": (0.3, -0.22)}.get(style, (0.32, -0.28))
            above_ears = cap.cut(self._face_at(0, 0.05), self.down)
            hairline = above_ears.without_ellipse(self._face_at(part, top + 0.5), rx * s, 0.5 * s, self.pose.tilt)
            self._paint(hairline, look.hair, HEAD, 0.8)
        length = {"long": 0.85, "bob": 0.4, "bun": 0.02, "curls": 0.1, "side": 0.0}.get(style)
        if length is None:
            return
        thin, thick = (0.07, 0.12) if style in ("long", "bob") else (0.045, 0.04)
        for sign in (-1.0, 1.0):
            end = half + (0.05 if style == "long" else 0.0)
            self._stroke(((sign * half * 0.97, -0.2), (sign * end, length)), (thin, thick), look.hair, 0.8)

    def _headwear(self, half: float, turn: float) -> None:
        look, kind = self.look, self.look.headwear
        if kind == "none":
            return
        height = 0.5 if kind == "brim" else 0.44
        dome = self.canvas.ellipse(self._face_at(0, -0.2), (half + 0.1) * self.s, height * self.s, self.pose.tilt)
        if dome is not None:
            self._paint(dome.cut(self._face_at(0, -0.2), self.down), look.accent, HEAD, 0.8)
        shaded = look.accent.tinted(0.82)
        if kind == "cap":
            self._blob((turn * 0.35, -0.2), (0.36, 0.09), shaded, 0.5)
        elif kind == "brim":
            self._blob((0, -0.2), (0.78, 0.11), shaded, 0.6)
        else:
            self._stroke(((-half, -0.23), (half, -0.23)), (0.1, 0.1), shaded, 0.7)


def _between(a: Point, b: Point, t: float) -> Point:
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t
