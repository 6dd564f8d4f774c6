"""Step 4: the paper's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pdnet.config import Config
from pdnet.data.index import index_clips, index_stills
from pdnet.data.streams import PairDataset, StillDataset
from pdnet.devices import device_name, pick_device, pick_dtype
from pdnet.files import atomic_folder
from pdnet.steps.lineage import RunRecord
from pdnet.training import loop
from pdnet.training.task import Task
from pdnet.weights import load_model, save_model


def train(*, videos: Path, images: Path, init: Path, out: Path, config: Config) -> None:
    """Train the whole network by alternating images and video frames.

    Paper: 5.1.

    Args:
        videos: data set in the MVPS layout; its `train` clips are used.
        images: image set.
        init: folder of the pretrain step.
        out: folder for model.safetensors, log.parquet, run.json.
        config: `model`, `losses`, `train`, `data`.

    Raises:
        DataError: a frame cannot be read.
        CheckpointError: the initial weights are damaged or of another architecture.
        TrainingError: the loss is no longer a number.
    """
    frames = index_clips(videos, resolution=config.data.resolution, splits=("train",))
    singles = index_stills(images)
    record = RunRecord("train", config, parents=(init,), data={"videos": videos, "images": images})
    device = pick_device(config.device)
    dtype = pick_dtype(config.train.precision, device)
    network = load_model(init / "model.safetensors", expected=config.model)
    task = Task(network, config.losses, seed=config.seed, dtype=dtype)
    task.to(device).to(memory_format=torch.channels_last)
    seed, size, options = config.seed, config.train.size or config.data.size, config.train
    reading: dict[str, Any] = {"photometric": options.photometric, "cache_mb": options.cache_mb}
    pairs = PairDataset(frames, size=size, seed=seed, references=config.model.references, **reading)
    stills = StillDataset(singles, size=size, seed=seed, stream="image", **reading)
    with atomic_folder(out) as folder:
        log = loop.train(task, pairs, stills, options, seed=seed)
        save_model(folder / "model.safetensors", network, record.model_facts(size=config.data.size))
        log.to_parquet(folder / "log.parquet", index=False)
        record.write(folder, device=device_name(device), precision=str(dtype).removeprefix("torch."), steps=len(log))
