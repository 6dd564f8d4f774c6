"""Draw docs/example.jpg from the last pipeline run: frames, portraits cut out by their masks, parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pdnet.data.io import UInt8Array, read_image, read_levels, read_mask
from pdnet.overlays import part_overlay

FRAMES = ("outdoor_activity/outdoor_activity_02/00090", "lecture/lecture_02/00060")
DATA, EVALUATION = Path("data/mvps/Keyframes/480p"), Path("build/evaluation")
WIDTH, GAP, BACKDROP, PARTS = 420, 6, (222, 230, 236), 5


def main() -> None:
    rows = [np.concatenate([padded(panel) for panel in panels(frame)], axis=1)[:, :-GAP] for frame in FRAMES]
    picture = np.concatenate([np.pad(row, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for row in rows])[:-GAP]
    Image.fromarray(picture).save(Path(__file__).with_name("example.jpg"), quality=88)


def panels(frame: str) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
    image = read_image(DATA / f"{frame}.jpg")
    mask = read_mask(EVALUATION / "masks" / f"{frame}.png")
    labels = read_levels(EVALUATION / "parts" / f"{frame}.png")
    cut_out = np.where(mask[..., None], image, np.array(BACKDROP, np.uint8))
    return image, cut_out, part_overlay(image, labels, mask, parts=PARTS)


def padded(panel: UInt8Array) -> UInt8Array:
    height = round(panel.shape[0] * WIDTH / panel.shape[1])
    small = np.asarray(Image.fromarray(panel).resize((WIDTH, height), Image.Resampling.LANCZOS))
    return np.pad(small, ((0, 0), (0, GAP), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main()
