"""Pictures of what the model does, for a person who looks at a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pdnet.data.io import open_image, to_rgb
from pdnet.tracking.record import label

#: Pictures in a run, spread evenly from the worst frame to the best.
SAMPLES = 8
#: Height of a picture and width of the white line between its panels, in pixels.
HEIGHT, GAP = 360, 6


def write_samples(evaluation: Path, out: Path) -> list[Path]:
    """Write one picture for each sampled frame: the frame, the predicted mask, the likeliest parts.

    The frame is left out where the table does not name it or it is no longer there; the parts where the model has
    none. File names run from the worst to the best frame and tell J&F: `1_jf0.412_dance_clip03_00012.png`.

    Raises:
        DataError: a mask of the evaluation is missing or damaged.
    """
    frames = pd.read_parquet(evaluation / "frames.parquet")
    frames = frames.assign(jf=(frames["j"] + frames["f"]) / 2).dropna(subset=["jf"]).sort_values("jf", kind="stable")
    count = min(SAMPLES, len(frames))
    written = []
    for rank, index in enumerate(np.linspace(0, len(frames) - 1, count).round().astype(int), start=1):
        row = frames.iloc[index]
        place = Path(str(row["clip"]), f"{row['frame']}.png")
        panels = [open_image(evaluation / "masks" / place)]
        if "image" in frames and isinstance(row["image"], str) and Path(row["image"]).is_file():
            panels.insert(0, open_image(Path(row["image"])))
        if (evaluation / "parts" / place).is_file():
            panels.append(open_image(evaluation / "parts" / place))
        path = out / f"{rank}_jf{row['jf']:.3f}_{'_'.join(map(label, place.with_suffix('').parts))}.png"
        _side_by_side(panels).save(path)
        written.append(path)
    return written


def _side_by_side(panels: list[Image.Image]) -> Image.Image:
    """Join panels at one height, each as wide as the first."""
    width = max(1, round(panels[0].width * HEIGHT / panels[0].height))
    joined = Image.new("RGB", ((width + GAP) * len(panels) - GAP, HEIGHT), "white")
    for position, panel in enumerate(panels):
        filtering = Image.Resampling.NEAREST if panel.mode == "P" else Image.Resampling.BILINEAR
        joined.paste(to_rgb(panel).resize((width, HEIGHT), filtering), (position * (width + GAP), 0))
    return joined
