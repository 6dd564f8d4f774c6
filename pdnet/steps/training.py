"""What both training steps do: learn, on record while they do, and write what was learnt."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pdnet.devices import device_name
from pdnet.files import atomic_folder
from pdnet.model import PDNet
from pdnet.steps.run_record import RunRecord
from pdnet.tracking import TrackingConfig
from pdnet.tracking.live import live_run
from pdnet.training.checkpoint import Checkpoints, StoppedError
from pdnet.training.distributed import is_main, processes
from pdnet.training.loop import OnIteration, ignore
from pdnet.weights import save_model


def learn(
    loop: Callable[[OnIteration], pd.DataFrame],
    *,
    network: PDNet,
    out: Path,
    record: RunRecord,
    facts: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    checkpoints: Checkpoints | None,
    tracking: TrackingConfig,
) -> None:
    """Train, and write the result; of several processes, the first one writes and records.

    The time on record is that of the whole training, where it went on from a checkpoint too; without the time between
    two processes.

    Args:
        loop: trains the network, calling what it is given with each row of the log, and returns the log.
        network: what `loop` trains.
        out: folder for model.safetensors, log.parquet, run.json.
        record: of the step.
        facts: what the model file says of itself.
        device: where it trains, for the record.
        dtype: number format of the forward pass, likewise.
        checkpoints: of this training; removed when the result is written.
        tracking: where it is on record.
    """
    if not is_main():
        loop(ignore)
        return
    tags = {"config.hash": record.facts["config_hash"], "git.commit": record.facts["git_commit"]}
    recorded = live_run(
        record.facts["step"],
        tags,
        tracking,
        training=lambda: checkpoints.training if checkpoints else uuid.uuid4().hex,
        stops=(KeyboardInterrupt, StoppedError),
    )
    with recorded as live, atomic_folder(out) as folder:  # FINISHED is what has its result in place
        log = loop(live.append)
        save_model(folder / "model.safetensors", network, facts)
        log.to_parquet(folder / "log.parquet", index=False)
        seconds = max([record.seconds, *(round(float(each), 1) for each in log["seconds"].tail(1))])
        record.write(
            folder,
            device=device_name(device),
            precision=str(dtype).removeprefix("torch."),
            processes=processes(),
            accelerators=processes() if device.type == "cuda" else 0,
            steps=len(log),
            started=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
            seconds=seconds,
            mlflow_run_id=live.wait_for_run(),
            training=live.training,
        )
    if checkpoints is not None:
        checkpoints.remove()
