"""Step 3: the encoder on single images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pdnet.config import Config
from pdnet.data.index import index_stills
from pdnet.data.streams import StillDataset
from pdnet.devices import pick_dtype
from pdnet.errors import ValidationError
from pdnet.files import read_object
from pdnet.model import PDNet
from pdnet.model.backbone import load_backbone_weights
from pdnet.steps.run_record import RunRecord
from pdnet.steps.training import learn
from pdnet.training import loop
from pdnet.training.checkpoint import Checkpoints
from pdnet.training.config import check_divisible
from pdnet.training.distributed import process_group, processes
from pdnet.training.task import Task


def pretrain(*, images: Path, validation: Path, out: Path, config: Config, checkpoints: Path | None = None) -> None:
    """Initialise the network and train its encoder on single images; under torchrun, in several processes.

    Args:
        images: image set.
        validation: folder of the validate step.
        out: folder for model.safetensors, log.parquet, run.json.
        config: `model`, `pretrain`, `losses`, `data`.
        checkpoints: folder to keep the state of training in, so that a run that was stopped goes on from there;
            removed when `out` is written. Without it a run that was stopped is lost.

    Raises:
        ConfigError: the number of processes does not divide the batch size.
        ValidationError: the data did not pass validation.
        DataError: an image cannot be read.
        CheckpointError: the backbone's weights cannot be had or do not fit, or a checkpoint cannot be written.
        TrainingError: the loss is no longer a number, or the process was told to stop.
    """
    seed, size, options = config.seed, config.pretrain.size or config.data.size, config.pretrain
    photometric = config.train.photometric
    with process_group(config.device) as device:
        check_divisible(options, processes())
        if read_object(validation / "data.json").get("valid") is not True:
            raise ValidationError(f"{validation}: the data are not valid; see {validation / 'index.html'}")
        table = index_stills(images)
        record = RunRecord("pretrain", config, parents=(validation,), data={"images": images})
        dtype = pick_dtype(config.train.precision, device)
        torch.manual_seed(seed)
        network = PDNet(config.model)
        load_backbone_weights(network.encoder.backbone, options.weights)
        task = Task(network, config.losses, seed=seed, dtype=dtype, parts=False)
        task.to(device).to(memory_format=torch.channels_last)
        reading: dict[str, Any] = {"photometric": photometric, "cache_mb": config.train.cache_mb}
        stills = StillDataset(table, size=size, seed=seed, stream="pretrain", **reading)
        facts = record.model_facts(size=config.data.size)
        determined_by = {"step": "pretrain", "seed": seed, "size": size, "data": facts["data"]["images"]}
        determined_by |= {"model": config.model, "losses": config.losses, "pretrain": options}
        determined_by |= {"precision": config.train.precision, "photometric": photometric}
        saved = Checkpoints(checkpoints, determined_by, config.train.checkpoint_seconds) if checkpoints else None
        workers = config.train.workers
        learn(
            lambda on_iteration: loop.pretrain(
                task, stills, options, seed=seed, workers=workers, checkpoints=saved, on_iteration=on_iteration
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
