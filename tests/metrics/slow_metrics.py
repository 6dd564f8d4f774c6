"""J, F and the statistics written plainly from their definitions, one pixel at a time: the second opinion of the tests.

Run as a program it writes `golden.json` anew.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("golden.json")


def slow_region_similarity(prediction, annotation, void=None):
    intersection = union = 0
    for y, x in np.ndindex(*annotation.shape):
        if void is not None and void[y, x] != 0:
            continue
        p, g = prediction[y, x] != 0, annotation[y, x] != 0
        intersection += bool(p and g)
        union += bool(p or g)
    return intersection / union if union else 1.0


def slow_boundary(mask):
    """(n, 2) coordinates of the boundary pixels."""
    height, width = mask.shape
    found = []
    for y, x in np.ndindex(height, width):
        last_row, last_column = y == height - 1, x == width - 1
        neighbours = []
        if not last_column:
            neighbours.append(mask[y, x + 1])
        if not last_row:
            neighbours.append(mask[y + 1, x])
        if not last_row and not last_column:
            neighbours.append(mask[y + 1, x + 1])
        if any(neighbour != mask[y, x] for neighbour in neighbours):
            found.append((y, x))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def slow_contour_accuracy(prediction, annotation, void=None, bound_th=0.008):
    height, width = annotation.shape
    radius = bound_th if bound_th >= 1 else math.ceil(bound_th * math.sqrt(height**2 + width**2))
    p, g = prediction != 0, annotation != 0
    if void is not None:
        p, g = p & (void == 0), g & (void == 0)
    boundary_p, boundary_g = slow_boundary(p), slow_boundary(g)
    if not len(boundary_p) and not len(boundary_g):
        return 1.0
    if not len(boundary_p) or not len(boundary_g):
        return 0.0
    squared = ((boundary_p[:, None] - boundary_g[None]) ** 2).sum(axis=2)
    precision = (squared.min(axis=1) <= radius**2).mean()
    recall = (squared.min(axis=0) <= radius**2).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def slow_statistics(scores):
    """Mean, recall and decay with 1-based rounding, as the definition has it."""
    known = [score for score in scores if not math.isnan(score)]
    n = len(scores)
    edges = [math.floor(1 + i * (n - 1) / 4 + 0.5) - 1 for i in range(5)]
    bins = [[scores[k] for k in range(edges[i], edges[i + 1] + 1) if not math.isnan(scores[k])] for i in range(4)]
    mean = sum(known) / len(known) if known else math.nan
    recall = sum(score > 0.5 for score in scores) / n
    decay = sum(bins[0]) / len(bins[0]) - sum(bins[3]) / len(bins[3]) if bins[0] and bins[3] else math.nan
    return mean, recall, decay


def _blob(rng, height, width):
    """A random ellipse with a ragged edge."""
    y, x = np.mgrid[:height, :width]
    centre_y, centre_x = rng.uniform(0.2, 0.8, 2) * (height, width)
    radius_y, radius_x = rng.uniform(0.15, 0.5, 2) * (height, width)
    distance = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2
    return distance + rng.normal(0, 0.15, distance.shape) < 1


def _rows(mask):
    return ["".join("#" if value else "." for value in row) for row in mask]


def make_golden():
    cases = []
    sizes = [(9, 14), (14, 9), (12, 64), (11, 65), (13, 130), (1, 20), (20, 1), (24, 30)]
    for number, (height, width) in enumerate(sizes):
        rng = np.random.default_rng([7, number])
        prediction, annotation = _blob(rng, height, width), _blob(rng, height, width)
        void = _blob(rng, height, width) if number % 3 == 2 else None
        bound_th = [0.008, 2, 0.05, 4][number % 4]
        cases.append(
            {
                "bound_th": bound_th,
                "prediction": _rows(prediction),
                "annotation": _rows(annotation),
                "void": None if void is None else _rows(void),
                "J": slow_region_similarity(prediction, annotation, void),
                "F": float(slow_contour_accuracy(prediction, annotation, void, bound_th)),
            }
        )
    sequences = []
    for n in (1, 2, 3, 4, 6, 7, 11, 18):
        scores = np.random.default_rng([8, n]).uniform(0, 1, n).round(3).tolist()
        mean, recall, decay = slow_statistics(scores)
        sequences.append({"scores": scores, "mean": mean, "recall": recall, "decay": decay})
    return {"frames": cases, "sequences": sequences}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(make_golden(), indent=1) + "\n", encoding="utf-8")
