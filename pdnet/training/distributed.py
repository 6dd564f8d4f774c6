"""Data-parallel training in several processes, as `torchrun` starts them.

Each process takes its slice of every batch. Whatever is a mean over the batch becomes a mean over the processes:
gradients, losses, the statistics of batch normalisation (the weight of the BCE sees to itself: `weighted_bce`). So the
weights are those that one process learns from the whole batches, up to rounding. All processes compute the same
weights; only the first one writes and tells. Outside torchrun nothing of this does anything.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pdnet.devices import pick_device
from pdnet.errors import ConfigError, TrainingError, UnavailableError

#: for the slowest of the processes to come to where the others wait (they read the data set before they start)
_PATIENCE = timedelta(minutes=30)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
#: elements of gradient that are averaged at once: 32 MB
_BUCKET = 2**23


@contextmanager
def process_group(device_name: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started (NCCL on CUDA, gloo on the CPU); outside torchrun only pick the device.

    Of several processes each takes the CUDA device of its own LOCAL_RANK. When one of them fails it ends them all, and
    only the first to fail tells why: the others leave quietly with its kind of exit code.

    Args:
        device_name: as in `pick_device`.

    Yields:
        The device of this process.

    Raises:
        ConfigError: the name is no device, or one that several processes would have to share.
        UnavailableError: there is no such device, or there are more processes than devices.
        TrainingError: another process has died without a word.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield pick_device(device_name)
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(f"WORLD_SIZE is {size}, but {', '.join(missing)} not set; expected to be started by torchrun")
    _die_with_torchrun()
    store, rank, _ = next(rendezvous("env://", timeout=_PATIENCE))
    with _first_failure_speaks(store), _only_first_tells(rank):
        device = _own_device(device_name, size)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=_PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
        yield device
        dist.destroy_process_group()  # after a failure it would wait for those that are gone


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and tells."""
    return rank() == 0


def average(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """Each scalar's mean over the processes."""
    values = torch.stack([scalar.detach() for scalar in scalars.values()])
    if processes() > 1:
        dist.all_reduce(values)
        values /= processes()
    return dict(zip(scalars, values.tolist(), strict=True))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if processes() == 1:
        return
    buckets: list[list[Tensor]] = [[]]
    for gradient in (parameter.grad for parameter in parameters if parameter.grad is not None):
        if sum(map(Tensor.numel, buckets[-1])) > _BUCKET:
            buckets.append([])
        buckets[-1].append(gradient)
    for bucket in buckets:
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= processes()
        for gradient, mean in zip(bucket, torch.split(flat, list(map(Tensor.numel, bucket))), strict=True):
            gradient.copy_(mean.view_as(gradient))


def any_process(value: bool) -> bool:
    """Whether it is true in at least one process: a decision that all take alike."""
    if processes() == 1:
        return value
    votes = torch.tensor(float(value), device=_device())
    dist.all_reduce(votes)
    return bool(votes.item())


def from_main(value: int) -> int:
    """The main process's value."""
    if processes() == 1:
        return value
    shared = torch.tensor(value, device=_device())
    dist.broadcast(shared, src=0)
    return int(shared.item())


def share_batch_norm(network: nn.Module) -> None:
    """Let every batch normalisation of `network` take its statistics from the whole batch of all processes."""
    if processes() == 1:
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, GlobalBatchNorm2d(child))


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, which are of one size.

    torch's SyncBatchNorm does the same on CUDA alone; this one computes alike on every device, so what is tested on
    the CPU is what trains on the GPUs.

    Args:
        plain: its parameters and running statistics are taken over, not copied.
    """

    def __init__(self, plain: nn.BatchNorm2d) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum)
        self.weight, self.bias = plain.weight, plain.bias
        self.running_mean, self.running_var = plain.running_mean, plain.running_var
        self.num_batches_tracked = plain.num_batches_tracked
        self.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        normalised: Tensor
        normalised, mean, var = _Normalise.apply(x, self.weight, self.bias, self.eps)
        count = processes() * x.numel() // x.shape[1]
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return normalised


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and var of each channel over all processes.

    Written out, as its derivative, so that nothing of the batch's size is kept for it but x in its own precision. All
    else is computed in the precision of `weight`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        values = x.to(weight.dtype)
        own_var, own_mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        means, variances = _gather(torch.stack([own_mean, own_var])).unbind(dim=1)  # each (processes, C)
        mean = means.mean(dim=0)
        var = (variances + (means - mean).square()).mean(dim=0)
        inverse = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, var)
        scale = weight * inverse
        y = values * _over_pixels(scale) + _over_pixels(bias - mean * scale)
        return y.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        values, grad = x.to(weight.dtype), grad.to(weight.dtype)
        centred = (values - _over_pixels(mean)) * _over_pixels(inverse)
        grad_bias, grad_weight = grad.sum(dim=(0, 2, 3)), (grad * centred).sum(dim=(0, 2, 3))
        # The statistics carry every process's loss back to every process's x.
        sums = _gather(torch.stack([grad_bias, grad_weight])).sum(dim=0)
        mean_grad, mean_product = sums / (processes() * x.numel() // x.shape[1])
        grad = grad - _over_pixels(mean_grad) - centred * _over_pixels(mean_product)
        return (grad * _over_pixels(weight * inverse)).to(x.dtype), grad_weight, grad_bias, None


def _over_pixels(channels: Tensor) -> Tensor:
    """(C) -> (C, 1, 1)."""
    return channels[:, None, None]


def _gather(x: Tensor) -> Tensor:
    """The processes' tensors of one shape, (processes, ...)."""
    if processes() == 1:
        return x[None]
    everyone = [torch.empty_like(x) for _ in range(processes())]
    dist.all_gather(everyone, x)
    return torch.stack(everyone)


def _device() -> torch.device:
    """Where the group's backend wants its tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _own_device(name: str, size: int) -> torch.device:
    device = pick_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None:
        raise ConfigError(f"device: '{name}' for all of {size} processes; expected auto, cpu or cuda")
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise UnavailableError(
            f"torch sees {count} CUDA devices; expected torchrun --nproc-per-node of at most {count}"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _die_with_torchrun() -> None:
    """Have the kernel end this process with the one that started it.

    torchrun's processes outlive a SIGKILL of torchrun: they would train on beside those started in their place.
    """
    if dist.is_torchelastic_launched() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _only_first_tells(rank: int) -> Iterator[None]:
    """Silence the loggers of every process but the first."""
    log = logging.getLogger("pdnet")
    level = log.level
    if rank > 0:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _first_failure_speaks(store: Store) -> Iterator[None]:
    """Let through the error of the first process to fail; in the others, which fail for it, leave without a word."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        try:
            first = store.add("failures", 1) == 1
        except RuntimeError:  # the process that kept the store has gone
            first = False
        if not first:
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error)):
            raise TrainingError(
                "another process of this training has died without a word (killed, or out of memory?)"
            ) from error
        raise
