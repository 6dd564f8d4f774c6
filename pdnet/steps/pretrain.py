"""Step 3: the encoder on single images."""

from __future__ import annotations

from pathlib import Path

import torch

from pdnet.config import Config
from pdnet.data.index import index_stills
from pdnet.data.streams import StillDataset
from pdnet.devices import device_name, pick_device, pick_dtype
from pdnet.errors import ValidationError
from pdnet.files import atomic_folder, read_object
from pdnet.model import PDNet
from pdnet.model.backbone import load_backbone_weights
from pdnet.steps.lineage import RunRecord
from pdnet.training import loop
from pdnet.training.task import Task
from pdnet.weights import save_model


def pretrain(*, images: Path, validation: Path, out: Path, config: Config) -> None:
    """Initialise the network and train its encoder on single images.

    Args:
        images: image set.
        validation: folder of the validate step.
        out: folder for model.safetensors, log.parquet, run.json.
        config: `model`, `pretrain`, `losses`, `data`.

    Raises:
        ValidationError: the data did not pass validation.
        DataError: an image cannot be read.
        CheckpointError: the backbone's weights cannot be had or do not fit.
        TrainingError: the loss is no longer a number.
    """
    if read_object(validation / "data.json").get("valid") is not True:
        raise ValidationError(f"{validation}: the data are not valid; see {validation / 'index.html'}")
    table = index_stills(images)
    record = RunRecord("pretrain", config, parents=(validation,), data={"images": images})
    device = pick_device(config.device)
    dtype = pick_dtype(config.train.precision, device)
    torch.manual_seed(config.seed)
    network = PDNet(config.model)
    load_backbone_weights(network.encoder.backbone, config.pretrain.weights)
    task = Task(network, config.losses, seed=config.seed, dtype=dtype, parts=False)
    task.to(device).to(memory_format=torch.channels_last)
    stills = StillDataset(
        table,
        size=config.pretrain.size or config.data.size,
        seed=config.seed,
        stream="pretrain",
        photometric=config.train.photometric,
        cache_mb=config.train.cache_mb,
    )
    with atomic_folder(out) as folder:
        log = loop.pretrain(task, stills, config.pretrain, seed=config.seed, workers=config.train.workers)
        save_model(folder / "model.safetensors", network, record.model_facts(size=config.data.size))
        log.to_parquet(folder / "log.parquet", index=False)
        record.write(folder, device=device_name(device), precision=str(dtype).removeprefix("torch."), steps=len(log))
