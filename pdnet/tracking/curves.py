"""What the curves of a training are called, while it runs and afterwards: one place for both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

#: Columns of the log that are no curves.
_NO_CURVES = {"step", "epoch", "phase", "data_seconds", "seconds"}


def curve_name(column: str, phase: str) -> str | None:
    """The metric that a column of `log.parquet` is in the rows of a phase; None where it is none.

    `pretrain/loss` and `lr/pretrain_encoder` of pretraining; of training `train/<term>` in video iterations,
    `train/<term>_image` in image iterations, and `lr/<group>` in both. The total is `train/loss_video` and
    `train/loss_image`: the two sum different terms and are not comparable.
    """
    if column in _NO_CURVES:
        return None
    if column.startswith("lr_"):
        group = column.removeprefix("lr_")
        return f"lr/pretrain_{group}" if phase == "pretrain" else f"lr/{group}"
    if phase == "pretrain":
        return f"pretrain/{column}"
    return f"train/{column}" if phase == "video" and column != "loss" else f"train/{column}_{phase}"


def curve_points(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The metrics of one row of the log and their values; what is no finite number is left out."""
    for column, value in row.items():
        name = curve_name(column, row["phase"])
        if name is not None and math.isfinite(value):
            yield name, float(value)
