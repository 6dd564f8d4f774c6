"""The image stream and the video stream: each sample a pure function of (seed, epoch, position)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pdnet.data.io import BoolArray, UInt8Array, read_pair
from pdnet.data.transforms import Augmentation, normalise
from pdnet.errors import DataError

#: annotated frames from a target back to its second reference. Paper: 5.5, table 5
REFERENCE_LAG = 5

Key = tuple[int, int]  # (epoch, index into the table)


class Stills(NamedTuple):
    """A batch of single images.

    Attributes:
        image: (B, 3, S, S) float32, normalised.
        mask: (B, 1, S, S) float32 in 0..1.
    """

    image: Tensor
    mask: Tensor


class Pairs(NamedTuple):
    """A batch of target frames with the first frame of their clips.

    Attributes:
        image_t, image_ref: (B, 3, S, S) float32, normalised; `image_ref` is (B, N, 3, S, S) for N > 1.
        mask_t, mask_ref: (B, 1, S, S) float32 in 0..1; `mask_ref` is (B*N, 1, S, S).
    """

    image_t: Tensor
    mask_t: Tensor
    image_ref: Tensor
    mask_ref: Tensor


class StillDataset(Dataset[Stills]):
    """Augmented single images; the key is (epoch, row).

    Args:
        table: rows of `pdnet.data.index.index_stills`.
        size: side of the square that images are resized to.
        seed: of the augmentation.
        stream: keeps the augmentation of two trainings on the same images apart.
        photometric: strength of the colour changes, 0 to 1.
        cache_mb: as in `Reader`.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        *,
        size: int,
        seed: int,
        stream: str,
        photometric: float = 0.0,
        cache_mb: int = 0,
    ) -> None:
        self.paths = list(zip(table["image"], table["mask"], strict=True))
        self.size, self.seed, self.stream, self.photometric = size, seed, stream, photometric
        self.reader = Reader(cache_mb)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Stills:
        epoch, index = key
        rng = generator(self.seed, f"{self.stream}-augmentation", epoch, index)
        augmentation = Augmentation.draw(rng, self.photometric)
        image, mask = self.reader.pair(*self.paths[index])
        return Stills(*_tensors(image, mask, augmentation, self.size))


class PairDataset(Dataset[Pairs]):
    """Augmented target frames, each with its clip's first frame; the key is (epoch, row).

    Paper: 4.1, the first frame is the reference. Target and reference share crop and flip (released). For N > 1
    reference frames the second is `REFERENCE_LAG` annotated frames before the target, the third twice as far, never
    before the first.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        *,
        size: int,
        seed: int,
        references: int = 1,
        photometric: float = 0.0,
        cache_mb: int = 0,
    ) -> None:
        self.paths = list(zip(table["image"], table["mask"], strict=True))
        positions = table["position"].to_numpy()
        self.references_of = [
            [row - position] + [row - min(position, REFERENCE_LAG * n) for n in range(1, references)]
            for row, position in enumerate(positions.tolist())
        ]
        self.size, self.seed, self.photometric = size, seed, photometric
        self.reader = Reader(cache_mb)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Pairs:
        epoch, index = key
        augmentation = Augmentation.draw(generator(self.seed, "video-augmentation", epoch, index), self.photometric)
        frames = [
            _tensors(*self.reader.pair(*self.paths[row]), augmentation, self.size)
            for row in (index, *self.references_of[index])
        ]
        images, masks = zip(*frames, strict=True)
        if len(images) == 2:
            return Pairs(images[0], masks[0], images[1], masks[1])
        return Pairs(images[0], masks[0], torch.stack(images[1:]), torch.stack(masks[1:]))


def batches_per_epoch(length: int, batch_size: int) -> int:
    """Batches until each of `length` rows was given at least once."""
    return -(-length // batch_size)


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys, epoch after epoch; each epoch is a fresh permutation, the short last batch is filled up.

    Args:
        length: rows of the table.
        batch_size: keys a batch.
        seed: of the permutations.
        stream: keeps the two streams' permutations apart.
        start: the first batch to give, counted from the start of training (resuming).
        stop: the batch to stop before.
        rank: which of the equal slices of each batch to give, from 0.
        processes: into how many slices a batch is cut; they divide `batch_size`.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        stream: str,
        start: int = 0,
        stop: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if length == 0:
            raise DataError(f"the {stream} stream has no frames to train on")
        assert batch_size % processes == 0
        self.length, self.batch_size, self.seed, self.stream = length, batch_size, seed, stream
        self.start, self.stop = start, stop
        share = batch_size // processes
        self.slice = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = batches_per_epoch(self.length, self.batch_size)
        order: list[int] = []
        current = -1
        for batch in range(self.start, self.stop):
            epoch, position = divmod(batch, per_epoch)
            if epoch != current:
                permutation = generator(self.seed, f"{self.stream}-order", epoch).permutation(self.length).tolist()
                order = list(itertools.islice(itertools.cycle(permutation), per_epoch * self.batch_size))
                current = epoch
            rows = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, row) for row in rows[self.slice]]


def loader(
    dataset: Dataset[Stills] | Dataset[Pairs], batches: EpochBatches, *, workers: int
) -> Iterator[Stills | Pairs]:
    """Load `batches` in their order, whatever the number of workers.

    Raises:
        DataError: a file cannot be read, or image and mask differ in size.
    """
    stream: DataLoader[Stills | Pairs] = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_collate,
        worker_init_fn=_leave_process_group,
        generator=torch.Generator(),  # its own: the global one moves the same way however often training is resumed
    )
    try:
        yield from stream
    except DataError as error:
        # From a worker, torch makes the message a traceback that ends in the line `pdnet.errors.DataError: <message>`.
        raise DataError(str(error).strip().rpartition("pdnet.errors.DataError: ")[2]) from None


def _leave_process_group(worker: int) -> None:  # noqa: ARG001
    """Hear of an end from the training process alone, which may have an iteration to finish.

    torchrun sends SIGTERM, and a terminal SIGINT, to every process of the group.
    """
    if os.name == "posix":
        os.setpgid(0, 0)


def generator(seed: int, stream: str, *position: int) -> np.random.Generator:
    """A random generator of its own for (seed, stream, position)."""
    return np.random.default_rng([seed, *stream.encode(), 0, *position])


class Reader:
    """Reads image and mask pairs, keeping decoded ones while there is room.

    Args:
        cache_mb: megabytes of decoded pairs to keep; the first ones read stay.
    """

    def __init__(self, cache_mb: int = 0) -> None:
        self.room = cache_mb * 2**20
        self.kept: dict[str, tuple[UInt8Array, BoolArray]] = {}

    def pair(self, image_path: str, mask_path: str) -> tuple[UInt8Array, BoolArray]:
        """Decode one pair: (H, W, 3) uint8 and (H, W) bool.

        Raises:
            DataError: a file cannot be read, or the two differ in size.
        """
        if image_path in self.kept:
            return self.kept[image_path]
        image, mask = read_pair(image_path, mask_path)
        if self.room >= (size := image.nbytes + mask.nbytes):
            self.room -= size
            self.kept[image_path] = image, mask
        return image, mask


def _tensors(image: UInt8Array, mask: BoolArray, augmentation: Augmentation, size: int) -> tuple[Tensor, Tensor]:
    soft = augmentation.mask(mask, size).astype(np.float32) / np.float32(255)
    return normalise(augmentation.image(image, size)), torch.from_numpy(soft[None])


def _collate(samples: list[Stills] | list[Pairs]) -> Stills | Pairs:
    columns = [torch.stack(column) for column in zip(*samples, strict=True)]
    if len(columns) == 2:
        return Stills(*columns)
    image_t, mask_t, image_ref, mask_ref = columns
    return Pairs(image_t, mask_t, image_ref, mask_ref.flatten(0, -4))
