"""Step 4: the paper's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pdnet.config import Config
from pdnet.data.index import index_clips, index_stills
from pdnet.data.streams import PairDataset, StillDataset
from pdnet.devices import pick_dtype
from pdnet.steps.run_record import RunRecord
from pdnet.steps.training import learn
from pdnet.training import loop
from pdnet.training.checkpoint import Checkpoints
from pdnet.training.config import check_divisible
from pdnet.training.distributed import process_group, processes
from pdnet.training.task import Task
from pdnet.weights import load_model


def train(
    *, videos: Path, images: Path, init: Path, out: Path, config: Config, checkpoints: Path | None = None
) -> None:
    """Train the whole network by alternating images and video frames; under torchrun, in several processes.

    Paper: 5.1.

    Args:
        videos: data set in the MVPS layout; its `train` clips are used.
        images: image set.
        init: folder of the pretrain step.
        out: folder for model.safetensors, log.parquet, run.json.
        config: `model`, `losses`, `train`, `data`.
        checkpoints: folder to keep the state of training in, so that a run that was stopped goes on from there;
            removed when `out` is written. Without it a run that was stopped is lost.

    Raises:
        ConfigError: the number of processes does not divide a batch size.
        DataError: a frame cannot be read.
        CheckpointError: the initial weights are damaged or of another architecture, or a checkpoint cannot be written.
        TrainingError: the loss is no longer a number, or the process was told to stop.
    """
    seed, size, options = config.seed, config.train.size or config.data.size, config.train
    with process_group(config.device) as device:
        check_divisible(options, processes())
        frames = index_clips(videos, resolution=config.data.resolution, splits=("train",))
        singles = index_stills(images)
        record = RunRecord("train", config, parents=(init,), data={"videos": videos, "images": images})
        dtype = pick_dtype(config.train.precision, device)
        network = load_model(init / "model.safetensors", expected=config.model)
        task = Task(network, config.losses, seed=config.seed, dtype=dtype)
        task.to(device).to(memory_format=torch.channels_last)
        reading: dict[str, Any] = {"photometric": options.photometric, "cache_mb": options.cache_mb}
        pairs = PairDataset(frames, size=size, seed=seed, references=config.model.references, **reading)
        stills = StillDataset(singles, size=size, seed=seed, stream="image", **reading)
        facts = record.model_facts(size=config.data.size)
        determined_by = {"step": "train", "seed": seed, "size": size, "resolution": config.data.resolution}
        determined_by |= {"data": facts["data"], "model": config.model, "losses": config.losses, "train": options}
        saved = Checkpoints(checkpoints, determined_by, options.checkpoint_seconds) if checkpoints else None
        learn(
            lambda on_iteration: loop.train(
                task, pairs, stills, options, seed=seed, checkpoints=saved, on_iteration=on_iteration
            ),
            network=network,
            out=out,
            record=record,
            facts=facts,
            device=device,
            dtype=dtype,
            checkpoints=saved,
            tracking=config.tracking,
        )
