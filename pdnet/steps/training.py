"""What both training steps do: learn, on record while they do, and write what was learnt."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pdnet.devices import device_name
from pdnet.files import atomic_folder
from pdnet.model import PDNet
from pdnet.steps.lineage import RunRecord
from pdnet.tracking.live import live_run
from pdnet.training.checkpoint import Checkpoints, StoppedError
from pdnet.training.distributed import is_main, processes
from pdnet.training.loop import Tell, nobody
from pdnet.weights import save_model


def learn(
    loop: Callable[[Tell], pd.DataFrame],
    *,
    network: PDNet,
    out: Path,
    record: RunRecord,
    facts: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    checkpoints: Checkpoints | None,
    experiment: str,
) -> None:
    """Train, and write the result; of several processes, the first one writes and records.

    Args:
        loop: trains the network, telling of each iteration, and returns the log.
        network: what `loop` trains.
        out: folder for model.safetensors, log.parquet, run.json.
        record: of the step.
        facts: what the model file says of itself.
        device: where it trains, for the record.
        dtype: number format of the forward pass, likewise.
        checkpoints: of this training; removed when the result is written.
        experiment: name of the MLflow experiment.
    """
    if not is_main():
        loop(nobody)
        return
    tags = {"config.hash": record.facts["config_hash"], "git.commit": record.facts["git_commit"]}
    recorded = live_run(
        record.facts["step"],
        tags,
        experiment=experiment,
        training=lambda: checkpoints.training if checkpoints else uuid.uuid4().hex,
        stops=(KeyboardInterrupt, StoppedError),
    )
    with atomic_folder(out) as folder, recorded as live:
        log = loop(live.append)
        save_model(folder / "model.safetensors", network, facts)
        log.to_parquet(folder / "log.parquet", index=False)
        seconds = record.seconds
        record.write(
            folder,
            device=device_name(device),
            precision=str(dtype).removeprefix("torch."),
            processes=processes(),
            accelerators=processes() if device.type == "cuda" else 0,
            steps=len(log),
            seconds=seconds,
            mlflow_run_id=live.finish("FINISHED"),
            training=live.training,
        )
    if checkpoints is not None:
        checkpoints.remove()
