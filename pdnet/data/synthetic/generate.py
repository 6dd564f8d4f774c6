"""Writing the synthetic data set: plan, workers, files."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pdnet.data.synthetic.people import PART_NAMES, draw_person
from pdnet.data.synthetic.raster import Canvas, FloatArray, LabelArray, snap
from pdnet.data.synthetic.scenes import SCENARIOS, Scene, draw_scene
from pdnet.errors import ConfigError, DataError
from pdnet.files import atomic_folder

VERSION = 1  #: of the generator; goes up whenever equal seeds give other bytes
FPS = 30
STEP = 5  # keyframes are every fifth frame of the video

# Keys of the random streams: every draw comes from (seed, stream, index, ...).
_CLIP, _FRAME, _STILL = 1, 2, 3
_STILL_BATCH = 10

_PALETTE = (
    (0, 0, 0), (230, 60, 60), (60, 120, 230), (250, 190, 40), (250, 130, 40), (70, 190, 90), (30, 130, 110),
    (160, 90, 200), (220, 130, 200),
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """Size of a data set.

    Attributes:
        scenarios: names; each gets one training and one validation clip.
        long_side, short_side: of a clip's frames, pixels.
        keyframes: annotated frames a clip, one every fifth of a 30 FPS video.
        stills: pictures of the image set.
        still_side: mean of width and height of a still, pixels.
    """

    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    long_side: int = 854
    short_side: int = 480
    keyframes: int = 37
    stills: int = 1600
    still_side: int = 420


PRESETS: dict[str, Preset] = {
    "mini": Preset(),
    "tiny": Preset(("interview", "outdoor_activity"), 160, 120, 8, 12, 120),
}


@dataclass(frozen=True)
class ClipPlan:
    """One clip before it is drawn: its place in the data set and its size in pixels."""

    index: int
    split: str
    scenario: str
    name: str
    width: int
    height: int
    keyframes: int


def plan_clips(preset: Preset) -> tuple[ClipPlan, ...]:
    """The clips of a preset: each scenario once in either split, a third of them upright."""
    plans: list[ClipPlan] = []
    for order, scenario in enumerate(preset.scenarios):
        for number, split in enumerate(("train", "val")):
            upright = (order + 2 * number) % 3 == 0
            width, height = preset.long_side, preset.short_side
            if upright:
                width, height = height, width
            name = f"{scenario}/{scenario}_{number + 1:02d}"
            plans.append(ClipPlan(len(plans), split, scenario, name, width, height, preset.keyframes))
    return tuple(plans)


def generate(
    out: Path,
    *,
    preset: str = "mini",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw a data set in the MVPS layout from nothing but code; equal presets and seeds give equal bytes.

        ImageSets/{train,val}.txt, Keyframes/480p/<clip>/*.jpg, Annotations/480p/<clip>/*.png    as MVPS
        Parts/480p/<clip>/*.png                palette PNG: the true body part of each portrait pixel
        Stills/Images/*.jpg, Stills/Labels/*.png    the image set
        dataset.json                                what this is: preset, seed, version, names of parts

    Args:
        out: folder to make, new or empty; written whole or not at all.
        preset: a name in PRESETS.
        seed: any non-negative integer.
        workers: processes; None takes one for each processor this process may use.
        progress: called with (pictures done, pictures in all).

    Raises:
        ConfigError: the preset is unknown or a number is out of range.
        DataError: `out` is a file, or a folder that is not empty.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset '{preset}' is unknown; expected one of {', '.join(PRESETS)}")
    if seed < 0:
        raise ConfigError(f"seed is {seed}; expected 0 or more")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; expected 1 or more")
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: exists and is not empty; expected a new folder")
    size = PRESETS[preset]
    clips = plan_clips(size)
    workers = workers or _processors()
    total = len(clips) * size.keyframes + size.stills
    with atomic_folder(out) as root:
        _write_lists(root, clips, preset, seed, size)
        done = 0
        for count in _run(root, clips, size, seed, workers):
            done += count
            if progress is not None:
                progress(done, total)


def _processors() -> int:
    """Processors this process may use; all of them where the system cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(root: Path, clips: tuple[ClipPlan, ...], size: Preset, seed: int, workers: int) -> Iterator[int]:
    batches = [range(first, min(first + _STILL_BATCH, size.stills)) for first in range(0, size.stills, _STILL_BATCH)]
    if workers == 1:
        for clip in clips:
            yield write_clip(root, clip, seed)
        for batch in batches:
            yield write_stills(root, batch, size.still_side, seed)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(write_clip, root, clip, seed) for clip in clips]
        jobs += [pool.submit(write_stills, root, batch, size.still_side, seed) for batch in batches]
        for job in as_completed(jobs):
            yield job.result()


def write_clip(root: Path, plan: ClipPlan, seed: int) -> int:
    """Draw and write all keyframes of one clip; returns their number."""
    duration = (plan.keyframes - 1) * STEP / FPS
    rng = np.random.default_rng((seed, _CLIP, plan.index))
    scene = draw_scene(rng, plan.scenario, plan.width, plan.height, duration)
    folders = [root / kind / "480p" / plan.name for kind in ("Keyframes", "Annotations", "Parts")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for position in range(plan.keyframes):
        number = position * STEP
        noise = np.random.default_rng((seed, _FRAME, plan.index, number))
        picture, parts = draw_frame(scene, number / FPS, noise)
        stem = f"{number:05d}"
        _write_jpeg(folders[0] / f"{stem}.jpg", picture, 86)
        _write_mask(folders[1] / f"{stem}.png", parts)
        _write_parts(folders[2] / f"{stem}.png", parts)
    return plan.keyframes


def write_stills(root: Path, indices: range, side: int, seed: int) -> int:
    """Draw and write some pictures of the image set; returns their number."""
    images, labels = root / "Stills" / "Images", root / "Stills" / "Labels"
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    names = tuple(SCENARIOS)
    for index in indices:
        rng = np.random.default_rng((seed, _STILL, index))
        ratio = float(rng.choice([0.5625, 0.75, 1.0, 1.333, 1.778]))
        width = round(side * 2 * ratio / (1 + ratio))
        height = 2 * side - width
        scene = draw_scene(rng, names[index % len(names)], width, height, 6.0)
        picture, parts = draw_frame(scene, float(rng.uniform(0, 6)), rng)
        _write_jpeg(images / f"{index:05d}.jpg", picture, int(rng.integers(80, 93)))
        _write_mask(labels / f"{index:05d}.png", parts)
    return len(indices)


def draw_frame(scene: Scene, t: float, rng: np.random.Generator) -> tuple[Image.Image, LabelArray]:
    """The picture and the part labels of a scene at time `t` (seconds).

    Returns:
        The RGB picture, and (H, W) uint8 labels (an index into people.PART_NAMES).
    """
    zoom = scene.camera.zoom(t)
    shake = scene.camera.x(t), scene.camera.y(t)
    offset = (
        snap(shake[0] + (1 - zoom) * scene.width / 2),  # zoom about the middle of the frame
        snap(shake[1] + (1 - zoom) * scene.height / 2),
    )
    left, top = scene.margin - offset[0] / zoom, scene.margin - offset[1] / zoom
    view = (left, top, left + scene.width / zoom, top + scene.height / zoom)
    canvas = Canvas(_planes(_seen(scene, scene.backdrop, view)), scene.light)
    for person in scene.people:
        draw_person(canvas, person, t, offset, zoom)
    if scene.desk is not None:
        _stand_before(canvas, _seen(scene, scene.desk, view))
    gain = scene.gain(t) + scene.flicker * float(rng.uniform(-1, 1))
    cast = scene.cast(t)
    size = scene.width * scene.height
    start = int(rng.integers(len(scene.grain) - 3 * size))
    canvas.rgb *= np.array([gain * (1 + cast), gain, gain * (1 - cast)], dtype=np.float32)[:, None, None]
    canvas.rgb += scene.grain[start : start + 3 * size].reshape(canvas.rgb.shape)
    rgb = np.clip(canvas.rgb, 0, 255).astype(np.uint8)
    picture = Image.merge("RGB", [Image.fromarray(channel) for channel in rgb])
    for overlay in scene.overlays:
        overlay.lay(picture, t)
    return picture, canvas.labels


def _stand_before(canvas: Canvas, layer: Image.Image) -> None:
    """Put an RGBA picture in front of everything; what it hides is no longer portrait."""
    box = layer.getbbox()
    if box is None:
        return
    left, top, right, bottom = box
    planes = _planes(layer.crop(box))
    cover = planes[3] * np.float32(1 / 255)
    region = canvas.rgb[:, top:bottom, left:right]
    region += (planes[:3] - region) * cover
    canvas.labels[top:bottom, left:right][cover >= 0.5] = 0


def _seen(scene: Scene, picture: Image.Image, view: tuple[float, float, float, float]) -> Image.Image:
    """What the frame shows of a picture of the place; `view` is (left, top, right, bottom) on that picture."""
    return picture.resize((scene.width, scene.height), Image.Resampling.BILINEAR, box=view)


def _planes(picture: Image.Image) -> FloatArray:
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1), dtype=np.float32)


def _write_lists(root: Path, clips: tuple[ClipPlan, ...], preset: str, seed: int, size: Preset) -> None:
    (root / "ImageSets").mkdir()
    for split in ("train", "val"):
        names = [clip.name for clip in clips if clip.split == split]
        (root / "ImageSets" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    facts = {
        "what": "Synthetic video portrait segmentation set in the MVPS layout, drawn by `pdnet data synth`.",
        "preset": preset,
        "seed": seed,
        "generator_version": VERSION,
        "fps": FPS,
        "keyframe_step": STEP,
        "parts": list(PART_NAMES),
        "size": asdict(size),
    }
    (root / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _write_jpeg(path: Path, picture: Image.Image, quality: int) -> None:
    picture.save(path, format="JPEG", quality=quality, subsampling="4:2:0")


def _write_mask(path: Path, parts: LabelArray) -> None:
    mask = np.where(parts > 0, 255, 0).astype(np.uint8)
    Image.fromarray(mask).save(path, format="PNG", compress_level=6)


def _write_parts(path: Path, parts: LabelArray) -> None:
    picture = Image.fromarray(parts).convert("P")
    picture.putpalette([value for colour in _PALETTE for value in colour])
    picture.save(path, format="PNG", compress_level=6)
