"""What a finished pipeline tells in the terminal: the scores and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pdnet.evaluation.report import points_apart
from pdnet.files import read_json

_COLUMNS = ("J&F", "J mean", "recall", "decay", "F mean", "recall", "decay", "FPS")


def format_summary(build: Path) -> str:
    """The table of scores beside the trivial baselines, and the places to look.

    Args:
        build: folder of the pipeline's results.

    Raises:
        DataError: a step has not run yet.
    """
    scores = read_json(build / "evaluation" / "scores.json")
    parity = read_json(build / "export" / "parity.json")
    registration = read_json(build / "registration" / "registration.json")
    speed = scores["speed"]
    rows = [_row("PDNet", scores, f"{speed['network_fps']:.1f}")]
    rows.append(("PDNet through ONNX", _percent(parity["onnx"]["jf_mean"]), *[""] * 7))
    rows += [_row(baseline["method"], baseline, "") for baseline in scores["baselines"]]
    width = max(len(row[0]) for row in rows)
    lines = [" " * width + "".join(f"{name:>8}" for name in _COLUMNS)]
    lines += [f"{row[0]:<{width}}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
    best = max(scores["baselines"], key=lambda baseline: baseline["jf_mean"])
    ahead = points_apart(scores["jf_mean"], best["jf_mean"])
    images = pd.read_parquet(build / "evaluation" / "frames.parquet", columns=["image"])["image"]
    frames = Path(images.iloc[0]).parent
    return "\n".join(
        [
            "",
            *lines,
            "",
            f"{scores['clips']} validation clips, {scores['frames']} frames, protocol {scores['protocol']}; "
            f"{ahead:+.1f} points against the best trivial baseline.",
            f"FPS: the network alone, {speed['size']}x{speed['size']}, {speed['precision']}, one frame at a time, "
            f"{speed['device']}; from file to mask {speed['end_to_end_fps']:.1f}.",
            "",
            f"  report     {build / 'report' / 'index.html'}",
            f"  ONNX       {build / 'export' / 'pdnet.onnx'}",
            f"  MLflow     {registration['model']} version {registration['version']}: `make ui`, then "
            f"http://127.0.0.1:5000/#/experiments/{registration['experiment_id']}?workflowType=machine_learning",
            f"  predict    pdnet predict {frames} -o build/predict",
        ]
    )


def _row(name: str, figures: Mapping[str, Any], fps: str) -> tuple[str, ...]:
    cells = [figures["jf_mean"]]
    cells += [figures[measure][statistic] for measure in "jf" for statistic in ("mean", "recall", "decay")]
    return (name, *map(_percent, cells), fps)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
