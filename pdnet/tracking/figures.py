"""Charts of a run for MLflow's page, which shows images and nothing that has to be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pdnet.data.tables import read_table

_INK, _PALE, _SECOND = "#1f5f8b", "#b9d3e4", "#c2571a"
#: Share of a training over which the drawn loss is averaged.
_WINDOW = 0.04


def write_figures(clips: pd.DataFrame, train: Path, out: Path) -> list[Path]:
    """Draw J&F by scenario with its clips, and the losses of the two kinds of iterations.

    Args:
        clips: scored clips: clip, jf_mean, and scenario if there is one.
        train: folder of the train step.
        out: folder for the pictures.

    Returns:
        The PNG files.

    Raises:
        DataError: the training's log is missing or damaged.
    """
    log = read_table(train / "log.parquet", ("step", "phase", "loss"))
    drawn = {"jf_by_scenario.png": _scenarios(clips), "losses.png": _losses(log)}
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=110)
    return [out / name for name in drawn]


def _scenarios(clips: pd.DataFrame) -> Any:
    """A dot a clip and a bar a scenario, the worst scenario first."""
    groups = clips["scenario"] if "scenario" in clips else pd.Series("all clips", index=clips.index)
    means = (100 * clips["jf_mean"]).groupby(groups).mean().sort_values()
    figure, axes = _figure(height=1.2 + 0.35 * len(means))
    axes.barh(range(len(means)), means, color=_PALE, height=0.7)
    for position, (name, mean) in enumerate(means.items()):
        members = 100 * clips.loc[groups == name, "jf_mean"]
        axes.plot(members, np.full(len(members), position), "o", color=_INK, markersize=4)
        axes.text(101, position, f"{mean:.1f}", va="center", color=_INK)
    axes.set_yticks(range(len(means)), [str(name) for name in means.index])
    axes.set_xlim(0, 100)
    axes.set_xlabel("J&F, in percent: bars are scenarios, dots their clips")
    return figure


def _losses(log: pd.DataFrame) -> Any:
    """Each phase on its own axes: they sum different terms."""
    phases = [str(phase) for phase in log["phase"].unique()]
    figure, axes = _figure(height=2.4 * len(phases), rows=len(phases))
    for phase, plot, colour in zip(phases, np.atleast_1d(axes), (_INK, _SECOND), strict=False):
        rows = log[log["phase"] == phase]
        window = max(1, int(_WINDOW * len(rows)))
        plot.plot(rows["step"], rows["loss"], color=colour, alpha=0.25, linewidth=0.8)
        plot.plot(rows["step"], rows["loss"].rolling(window, min_periods=1).mean(), color=colour)
        plot.set_ylim(bottom=0)
        plot.set_ylabel(f"loss, {phase}")
    np.atleast_1d(axes)[-1].set_xlabel("step")
    return figure


def _figure(*, height: float, rows: int = 1) -> tuple[Any, Any]:
    """A figure that belongs to nobody: without the process-wide state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, sharex=True)
    for plot in np.atleast_1d(axes):
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(axis="both", alpha=0.3)
        plot.set_axisbelow(True)
    return figure, axes
