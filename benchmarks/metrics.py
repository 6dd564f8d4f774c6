"""J and F of a frame: pdnet.metrics against the plain way, which compares and dilates whole arrays.

The plain way is what davis2017-evaluation computes per frame, written from its definition; it dilates with OpenCV
where that is installed (as the original does), else with SciPy. One process, one thread; in every round each way scores
all frames, one way after the other:

    python benchmarks/metrics.py                                      # drawn masks, 480x854
    python benchmarks/metrics.py --predictions DIR --annotations DIR  # two folders of PNG masks of the same names

Writes benchmarks/results/metrics.json.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pdnet.files import write_json
from pdnet.metrics import frame_scores

HEIGHT, WIDTH = 480, 854
RESULT = Path(__file__).parent / "results" / "metrics.json"

Mask = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]
Dilate = Callable[[BoolMask, BoolMask], BoolMask]


def plain_frame_scores(
    prediction: Mask, annotation: Mask, dilate: Dilate, bound_th: float = 0.008
) -> tuple[float, float]:
    """J and F on whole boolean arrays."""
    p, g = prediction.astype(bool), annotation.astype(bool)
    valid = ~np.zeros_like(g)  # the original builds its void mask for every frame
    intersection, union = np.sum(p & g & valid), np.sum((p | g) & valid)
    j = float(intersection / union) if union else 1.0

    radius = math.ceil(bound_th * math.hypot(*annotation.shape))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = y * y + x * x <= radius * radius
    boundary_p, boundary_g = plain_boundary(p & valid), plain_boundary(g & valid)
    match_p = boundary_p & dilate(boundary_g, disk)
    match_g = boundary_g & dilate(boundary_p, disk)
    n_p, n_g = np.sum(boundary_p), np.sum(boundary_g)
    if n_p == 0 or n_g == 0:
        return j, float(n_p == n_g)
    precision, recall = np.sum(match_p) / n_p, np.sum(match_g) / n_g
    return j, float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def plain_boundary(mask: BoolMask) -> BoolMask:
    """Pixels that differ from the right, lower or lower-right neighbour."""
    right, lower, diagonal = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1] = mask[:, 1:]
    lower[:-1] = mask[1:]
    diagonal[:-1, :-1] = mask[1:, 1:]
    boundary = (mask ^ right) | (mask ^ lower) | (mask ^ diagonal)
    boundary[-1] = mask[-1] ^ right[-1]
    boundary[:, -1] = mask[:, -1] ^ lower[:, -1]
    boundary[-1, -1] = False
    return boundary


def plain_dilation() -> tuple[str, Dilate]:
    """The dilation at hand, with its name and version."""
    try:
        import cv2
    except ImportError:
        import scipy
        from scipy import ndimage

        return f"scipy {scipy.__version__}", ndimage.binary_dilation
    cv2.setNumThreads(1)
    return f"opencv {cv2.__version__}", lambda mask, disk: cv2.dilate(
        mask.astype(np.uint8), disk.astype(np.uint8)
    ).astype(bool)


def drawn_pairs(count: int = 12) -> list[tuple[Mask, Mask]]:
    """Head-and-shoulders masks; the prediction is displaced a little and ragged at the edge."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pairs = []
    for number in range(count):
        rng = np.random.default_rng([0, number])
        centre, top = rng.uniform(0.3, 0.7) * WIDTH, rng.uniform(0.1, 0.4) * HEIGHT

        def portrait(dx: float, dy: float, centre: float = centre, top: float = top) -> npt.NDArray[np.float64]:
            head = ((x - centre - dx) / 70) ** 2 + ((y - top - 90 - dy) / 90) ** 2
            trunk = ((x - centre - dx) / 190) ** 2 + ((y - top - 420 - dy) / 260) ** 2
            return np.minimum(head, trunk)

        ripple = 0.06 * np.sin(x / rng.uniform(3, 9)) * np.sin(y / rng.uniform(3, 9))
        prediction = portrait(rng.normal(0, 4), rng.normal(0, 4)) + ripple < 1
        pairs.append((prediction.astype(np.uint8) * 255, (portrait(0, 0) < 1).astype(np.uint8) * 255))
    return pairs


def stored_pairs(predictions: Path, annotations: Path) -> list[tuple[Mask, Mask]]:
    """The masks of two folders, paired by name."""
    from pdnet.data.io import read_mask

    names = sorted(path.name for path in annotations.glob("*.png"))
    return [
        (read_mask(predictions / name).astype(np.uint8), read_mask(annotations / name).astype(np.uint8))
        for name in names
    ]


def measure(pairs: list[tuple[Mask, Mask]], dilate: Dilate, rounds: int) -> npt.NDArray[np.float64]:
    """(2, rounds, frames) milliseconds of pdnet and of the plain way, after a round that checks that they agree."""
    ways: list[Callable[[Mask, Mask], tuple[float, float]]] = [
        frame_scores,
        lambda prediction, annotation: plain_frame_scores(prediction, annotation, dilate),
    ]
    for pair in pairs:
        ours, theirs = (way(*pair) for way in ways)
        if not np.allclose(ours, theirs, rtol=0, atol=1e-12):
            sys.exit(f"the two ways differ: {ours} and {theirs}")
    times = np.empty((len(ways), rounds, len(pairs)))
    for turn in range(rounds):
        for way, timed in zip(ways, times[:, turn], strict=True):
            for number, pair in enumerate(pairs):
                start = perf_counter()
                way(*pair)
                timed[number] = (perf_counter() - start) * 1e3
    return times


def spread(values: npt.ArrayLike) -> dict[str, float]:
    p10, median, p90 = np.percentile(np.asarray(values, dtype=np.float64), [10, 50, 90])
    return {"median": round(float(median), 4), "p10": round(float(p10), 4), "p90": round(float(p90), 4)}


def machine() -> dict[str, Any]:
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    real = arguments.predictions and arguments.annotations
    pairs = stored_pairs(arguments.predictions, arguments.annotations) if real else drawn_pairs()
    dilation, dilate = plain_dilation()
    times = measure(pairs, dilate, arguments.rounds)
    height, width = pairs[0][0].shape
    ours, theirs = spread(times[0]), spread(times[1])
    per_round = spread(times[1].sum(axis=1) / times[0].sum(axis=1))
    result = {
        "command": "python benchmarks/metrics.py" + (" --predictions DIR --annotations DIR" if real else ""),
        "machine": machine(),
        "frames": f"{len(pairs)} {'stored' if real else 'drawn'} pairs, {height}x{width}, uint8",
        "rounds": arguments.rounds,
        "threads": 1,
        "pdnet_ms_per_frame": ours,
        "plain_ms_per_frame": theirs,
        "plain_dilation": dilation,
        "ratio_of_medians": round(float(np.median(times[1]) / np.median(times[0])), 2),
        "ratio_per_round": per_round,
    }
    write_json(arguments.out, result)
    print(f"J and F of a frame, ms: pdnet {ours}, plain ({dilation}) {theirs}")
    print(f"ratio of medians {result['ratio_of_medians']}, per round {per_round}; {arguments.out}")


if __name__ == "__main__":
    main()
