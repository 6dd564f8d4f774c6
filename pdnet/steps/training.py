"""What both training steps do with what was learnt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pdnet.devices import device_name
from pdnet.files import atomic_folder
from pdnet.model import PDNet
from pdnet.steps.lineage import RunRecord
from pdnet.training.checkpoint import Checkpoints
from pdnet.training.distributed import is_main
from pdnet.weights import save_model


def learn(
    loop: Callable[[], pd.DataFrame],
    *,
    network: PDNet,
    out: Path,
    record: RunRecord,
    facts: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    checkpoints: Checkpoints | None,
) -> None:
    """Train, and write the result; of several processes, the first one writes.

    Args:
        loop: trains the network and returns the log.
        network: what `loop` trains.
        out: folder for model.safetensors, log.parquet, run.json.
        record: of the step.
        facts: what the model file says of itself.
        device: where it trains, for the record.
        dtype: number format of the forward pass, likewise.
        checkpoints: of this training; removed when the result is written.
    """
    with atomic_folder(out) if is_main() else nullcontext() as folder:
        log = loop()
        if folder is not None:
            save_model(folder / "model.safetensors", network, facts)
            log.to_parquet(folder / "log.parquet", index=False)
            precision = str(dtype).removeprefix("torch.")
            record.write(folder, device=device_name(device), precision=precision, steps=len(log))
    if checkpoints is not None:
        checkpoints.remove()
