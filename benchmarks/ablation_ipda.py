"""Table 3, row 1, at the size of params.yaml: the same recipe without IPDA and fusion, beside the last pipeline run.

Run it after the pipeline: `make ablation`. It writes benchmarks/results/ablation-ipda.json, which the next report
shows where parameters and data are the same.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
from pathlib import Path

import torch

from pdnet.cli import show_progress
from pdnet.config import config_hash, load_config
from pdnet.errors import PDNetError
from pdnet.files import read_json, write_json
from pdnet.steps import evaluate, pretrain, train

BUILD, OUT = Path("build"), Path("benchmarks/results/ablation-ipda.json")


def main() -> None:
    full = load_config(Path("params.yaml"))
    unrecorded = dataclasses.replace(full.tracking, live=False)
    config = dataclasses.replace(full, model=dataclasses.replace(full.model, ipda=False), tracking=unrecorded)
    videos, images = Path(config.data.videos), Path(config.data.images)
    folder = BUILD / "ablation"
    pretrain(images=images, validation=BUILD / "validation", out=folder / "pretrain", config=config)
    train(videos=videos, images=images, init=folder / "pretrain", out=folder / "train", config=config)
    evaluate(videos=videos, model=folder / "train", out=folder / "evaluation", config=config)
    scores, ours = (read_json(root / "evaluation" / "scores.json") for root in (folder, BUILD))
    run = read_json(folder / "evaluation" / "run.json")
    write_json(
        OUT,
        {
            "label": "without IPDA (ipda: false), same recipe",
            "command": "make ablation",
            "config_hash": config_hash(full),
            "data_md5": run["data"]["videos"]["md5"],
            "device": run["device"],
            "torch": torch.__version__,
            "python": platform.python_version(),
            "with_ipda": {key: ours[key] for key in ("jf_mean", "j", "f")},
            "scores": scores,
        },
    )
    difference = 100 * (ours["jf_mean"] - scores["jf_mean"])
    sys.stdout.write(
        f"J&F {100 * ours['jf_mean']:.1f} with IPDA, {100 * scores['jf_mean']:.1f} without: {difference:+.1f} points\n"
    )


if __name__ == "__main__":
    try:
        with show_progress():
            main()
    except PDNetError as error:
        sys.exit(f"ablation: {error}")
