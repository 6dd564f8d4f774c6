"""Pictures of what the model does, for a person who looks at a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pdnet.data.io import UInt8Array, read_image, read_levels, read_mask
from pdnet.data.tables import read_table
from pdnet.errors import DataError
from pdnet.overlays import mistake_overlay, part_overlay
from pdnet.tracking.record import label

#: Pictures in a run, spread evenly from the worst frame to the best.
SAMPLES = 8
#: Height of a picture and width of the white line between its panels, in pixels.
HEIGHT, GAP = 360, 6


def write_samples(evaluation: Path, out: Path) -> list[Path]:
    """Write one picture for each sampled frame: the frame, the prediction with its mistakes, the likeliest parts.

    A frame that the table does not name or that is no longer there is left out, and grey beneath the other two.
    Without the annotation the prediction alone is shown. The parts are left out where the model has none. File names
    run from the worst to the best frame and tell J&F: `1_jf0.412_dance_clip03_00012.png`.

    Raises:
        DataError: the table, or the mask of a frame, is missing or damaged, or a picture is not of its frame's size.
    """
    frames = read_table(evaluation / "frames.parquet", ("clip", "frame", "j", "f"))
    frames = frames.assign(jf=(frames["j"] + frames["f"]) / 2).dropna(subset=["jf"]).sort_values("jf", kind="stable")
    count = min(SAMPLES, len(frames))
    written = []
    for rank, index in enumerate(np.linspace(0, len(frames) - 1, count).round().astype(int), start=1):
        row = frames.iloc[index].to_dict()
        place = Path(row["clip"], f"{row['frame']}.png")
        path = out / f"{rank}_jf{row['jf']:.3f}_{'_'.join(map(label, place.with_suffix('').parts))}.png"
        _side_by_side(_panels(row, evaluation / "masks" / place, evaluation / "parts" / place)).save(path)
        written.append(path)
    return written


def _panels(row: Mapping[str, Any], mask: Path, parts: Path) -> list[UInt8Array]:
    """The pictures of one frame, each (H, W, 3)."""
    prediction = read_mask(mask)
    image, annotation = (_at_hand(row.get(column)) for column in ("image", "mask"))
    frame = read_image(image) if image else np.full((*prediction.shape, 3), 128, np.uint8)
    # Against itself a prediction has no mistakes: its tint and contour alone.
    truth = read_mask(annotation) if annotation else prediction
    labels = read_levels(parts) if parts.is_file() else None
    try:
        panels = [mistake_overlay(frame, prediction, truth)]
        if labels is not None:
            panels.append(part_overlay(frame, labels, prediction, parts=int(labels.max())))
    except DataError as error:
        raise DataError(f"{mask}: {error}") from None
    return [frame, *panels] if image else panels


def _at_hand(path: Any) -> Path | None:
    return Path(path) if isinstance(path, str) and Path(path).is_file() else None


def _side_by_side(panels: list[UInt8Array]) -> Image.Image:
    """Join panels at one height, each as wide as the first."""
    width = max(1, round(panels[0].shape[1] * HEIGHT / panels[0].shape[0]))
    joined = Image.new("RGB", ((width + GAP) * len(panels) - GAP, HEIGHT), "white")
    for position, panel in enumerate(panels):
        small = Image.fromarray(panel).resize((width, HEIGHT), Image.Resampling.LANCZOS)
        joined.paste(small, (position * (width + GAP), 0))
    return joined
