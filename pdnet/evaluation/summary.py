"""What a finished pipeline tells in the terminal: the scores and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdnet.data.tables import read_table
from pdnet.errors import DataError
from pdnet.evaluation.report import points_apart
from pdnet.files import read_object

_COLUMNS = ("J&F", "J mean", "recall", "decay", "F mean", "recall", "decay", "FPS")
_SCORES = (
    *("clips", "frames", "protocol", "jf_mean", "j", "f", "baselines"),
    *(f"speed.{name}" for name in ("network_fps", "end_to_end_fps", "size", "precision", "device")),
)


def format_summary(build: Path) -> str:
    """The table of scores beside the trivial baselines, and the places to look.

    Args:
        build: folder of the pipeline's results.

    Raises:
        DataError: a step has not run yet, or a file of it is damaged.
    """
    scores = read_object(build / "evaluation" / "scores.json", _SCORES)
    parity = read_object(build / "export" / "parity.json", ("onnx.jf_mean",))
    registration = read_object(build / "registration" / "registration.json", ("model", "version", "experiment_id"))
    images = read_table(build / "evaluation" / "frames.parquet", ("image",))["image"]
    if images.empty:
        raise DataError(f"{build / 'evaluation' / 'frames.parquet'}: holds no frames, expected the scored ones")
    speed = scores["speed"]
    name = "PDNet" if scores.get("parts") else "PDNet without IPDA"
    rows = [_row(name, scores, f"{speed['network_fps']:.1f}")]
    rows.append((f"{name} through ONNX", _percent(parity["onnx"]["jf_mean"]), *[""] * 7))
    rows += [_row(baseline["method"], baseline, "") for baseline in scores["baselines"]]
    width = max(len(row[0]) for row in rows)
    lines = [" " * width + "".join(f"{column:>8}" for column in _COLUMNS)]
    lines += [f"{row[0]:<{width}}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
    best = max((baseline["jf_mean"] for baseline in scores["baselines"]), default=None)
    lead = "no trivial baseline was measured"
    if best is not None:
        lead = f"{points_apart(scores['jf_mean'], best):+.1f} points against the best trivial baseline"
    return "\n".join(
        [
            "",
            *lines,
            "",
            f"{scores['clips']} validation clips, {scores['frames']} frames, protocol {scores['protocol']}; {lead}.",
            f"FPS: the network alone, {speed['size']}x{speed['size']}, {speed['precision']}, one frame at a time, "
            f"{speed['device']}; from file to mask {speed['end_to_end_fps']:.1f}.",
            "",
            f"  report     {build / 'report' / 'index.html'}",
            f"  ONNX       {build / 'export' / 'pdnet.onnx'}",
            f"  MLflow     {registration['model']} version {registration['version']}: `make ui`, then "
            f"http://127.0.0.1:5000/#/experiments/{registration['experiment_id']}?workflowType=machine_learning",
            f"  predict    pdnet predict {Path(images.iloc[0]).parent} -o build/predict",
        ]
    )


def _row(name: str, figures: Mapping[str, Any], fps: str) -> tuple[str, ...]:
    cells = [figures["jf_mean"]]
    cells += [figures[measure].get(statistic) for measure in "jf" for statistic in ("mean", "recall", "decay")]
    return (name, *map(_percent, cells), fps)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
