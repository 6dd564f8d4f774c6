"""The two training loops: the encoder on images, then the paper's alternation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from pdnet.data.streams import EpochBatches, PairDataset, Pairs, StillDataset, Stills, batches_per_epoch, loader
from pdnet.errors import TrainingError
from pdnet.progress import track_with_note
from pdnet.training import distributed
from pdnet.training.checkpoint import Checkpoints, State, resumable
from pdnet.training.config import PretrainConfig, TrainConfig
from pdnet.training.schedule import Phase, Schedule, warmup_poly
from pdnet.training.task import Task

#: called with each new row of the log
OnIteration = Callable[[Mapping[str, Any]], None]


def ignore(row: Mapping[str, Any]) -> None:
    """Do nothing with an iteration."""


def pretrain(
    task: Task,
    images: StillDataset,
    config: PretrainConfig,
    *,
    seed: int,
    workers: int,
    checkpoints: Checkpoints | None = None,
    on_iteration: OnIteration = ignore,
) -> pd.DataFrame:
    """Train the encoder and its heads on single images with AdamW; everything else stays as it is.

    Args:
        task: network and losses; trained in place.
        images: image set.
        config: of pretraining.
        seed: of the order of the images.
        workers: loader processes.
        checkpoints: to go on from, and to write.
        on_iteration: called with each new row of the log.

    Returns:
        One row an iteration: step, epoch, phase (`pretrain`), loss, lr_encoder, seconds.

    Raises:
        CheckpointError: a checkpoint cannot be written.
        TrainingError: the loss is no longer a number, the device's memory is not enough, or the process was told to
            stop.
    """
    distributed.share_batch_norm(task.network)
    optimiser = torch.optim.AdamW(list(task.network.encoder.parameters()), weight_decay=config.weight_decay)
    per_epoch = batches_per_epoch(len(images), config.batch_size)
    steps = config.epochs * per_epoch
    state = State(task, {"encoder": optimiser})
    task.train()
    with resumable(state, checkpoints) as keep:
        batches = _batches(images, config.batch_size, seed, "pretrain", start=state.step, stop=steps)
        started = time.perf_counter() - state.seconds
        stream = enumerate(loader(images, batches, workers=workers), state.step)
        for (index, batch), progress in track_with_note(stream, "pretrain", steps):
            progress.done = index  # after a resumption too
            rate = config.lr * warmup_poly(index, steps, config.poly_power, config.warmup)
            with _memory_enough("pretrain", index):
                loss = task.pretrain(cast(Stills, _to_device(batch, task)))
                scalars = distributed.average({"loss": loss})
                _check_finite(scalars["loss"], index)
                _descend(loss, {"encoder": optimiser}, {"encoder": rate}, clip=None)
            state.rows.append(
                {"step": index, "epoch": index // per_epoch, "phase": "pretrain"}
                | scalars
                | {"lr_encoder": rate, "seconds": time.perf_counter() - started}
            )
            on_iteration(state.rows[-1])
            progress.note = f"loss {scalars['loss']:.3f}"
            keep()
    return pd.DataFrame(state.rows, columns=["step", "epoch", "phase", "loss", "lr_encoder", "seconds"])


def train(
    task: Task,
    videos: PairDataset,
    images: StillDataset,
    config: TrainConfig,
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
    on_iteration: OnIteration = ignore,
) -> pd.DataFrame:
    """Train the whole network by the paper's alternation of image and video iterations.

    Paper: 5.1.

    Args:
        task: network and losses; trained in place.
        videos: pairs of frames.
        images: image set.
        config: of training.
        seed: of the order of frames and images.
        checkpoints: to go on from, and to write.
        on_iteration: called with each new row of the log.

    Returns:
        One row an iteration: step, epoch, phase, loss and its terms, lr_backbone, lr_rest, data_seconds (waiting
        for the loader), seconds (since the start).

    Raises:
        CheckpointError: a checkpoint cannot be written.
        TrainingError: the loss is no longer a number, the device's memory is not enough, or the process was told to
            stop.
    """
    distributed.share_batch_norm(task.network)
    schedule = Schedule(config, batches_per_epoch(len(videos), config.batch_size))
    groups = task.parameter_groups()
    state = State(task, {name: _optimiser(group, config) for name, group in groups.items()})
    task.train()
    with resumable(state, checkpoints) as keep:
        start, stop = schedule.batches_before(state.step), schedule.batches_before(schedule.steps)

        def stream(phase: Phase, dataset: PairDataset | StillDataset, size: int) -> Iterator[Stills | Pairs]:
            batches = _batches(dataset, size, seed, phase, start=start[phase], stop=stop[phase])
            return loader(dataset, batches, workers=config.workers)

        streams = {
            "video": stream("video", videos, config.batch_size),
            "image": stream("image", images, config.image_batch_size),
        }
        iterations: dict[str, Callable[[Any], Any]] = {"video": task.video, "image": task.image}
        started = time.perf_counter() - state.seconds
        for index, progress in track_with_note(range(state.step, schedule.steps), "train", schedule.steps):
            progress.done = index  # after a resumption too
            step = schedule.step(index)
            waited = time.perf_counter()
            batch = _to_device(next(streams[step.phase]), task)
            waited = time.perf_counter() - waited
            for name, group in groups.items():  # a frozen group costs no gradient and keeps its momentum as it is
                for parameter in group:
                    parameter.requires_grad_(step.rates[name] > 0)
            with _memory_enough("train", index):
                loss = iterations[step.phase](batch)
                scalars = distributed.average({"loss": loss.total} | loss.terms)
                _check_finite(scalars["loss"], index)
                _descend(loss.total, state.optimisers, step.rates, clip=config.clip_grad_norm)
            state.rows.append(
                {"step": index, "epoch": step.epoch, "phase": step.phase}
                | scalars
                | {f"lr_{name}": rate for name, rate in step.rates.items()}
                | {"data_seconds": waited, "seconds": time.perf_counter() - started}
            )
            on_iteration(state.rows[-1])
            progress.note = f"epoch {step.epoch + 1}/{config.epochs} {step.phase} loss {scalars['loss']:.3f}"
            keep()
    for group in groups.values():
        for parameter in group:
            parameter.requires_grad_(True)
    return pd.DataFrame(state.rows)


def _batches(
    dataset: PairDataset | StillDataset, size: int, seed: int, stream: str, *, start: int, stop: int
) -> EpochBatches:
    """This process's slices of the batches of a stream."""
    rank, processes = distributed.rank(), distributed.processes()
    return EpochBatches(
        len(dataset), size, seed=seed, stream=stream, start=start, stop=stop, rank=rank, processes=processes
    )


def _optimiser(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of one group; its rate is set before each step."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)


def _descend(
    loss: Tensor, optimisers: Mapping[str, torch.optim.Optimizer], rates: dict[str, float], *, clip: float | None
) -> None:
    """One step of every optimiser whose rate is not 0; the others do not move, momentum and decay included."""
    moving = {name: optimiser for name, optimiser in optimisers.items() if rates[name] > 0}
    for optimiser in optimisers.values():
        optimiser.zero_grad(set_to_none=True)
    if moving:
        loss.backward()  # type: ignore[no-untyped-call]
    for name, optimiser in moving.items():
        group = optimiser.param_groups[0]
        group["lr"] = rates[name]
        distributed.average_gradients(group["params"])
        if clip is not None:
            nn.utils.clip_grad_norm_(group["params"], clip)
        optimiser.step()


@contextmanager
def _memory_enough(section: str, index: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"the device has not enough memory for step {index}; a smaller {section}.batch_size or {section}.size helps"
        ) from None


def _check_finite(loss: float, index: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {index}; a lower learning rate usually helps")


def _to_device(batch: Stills | Pairs, task: Task) -> Stills | Pairs:
    device = next(task.network.parameters()).device

    def move(x: Tensor) -> Tensor:
        layout = torch.channels_last if x.dim() == 4 else torch.preserve_format
        return x.to(device, non_blocking=True, memory_format=layout)

    return type(batch)(*map(move, batch))
