"""The two streams: every sample follows from (seed, epoch, row) alone, every epoch shows every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pdnet.data.index import index_clips, index_stills
from pdnet.data.streams import (
    EpochBatches,
    PairDataset,
    Pairs,
    StillDataset,
    Stills,
    batches_per_epoch,
    generator,
    loader,
)
from pdnet.data.transforms import MEAN, STD
from pdnet.errors import DataError

WIDTH, HEIGHT, FRAMES = 96, 64, 13


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Two clips: red is twice the column, green twice the row, blue the clip's number * 100 + 6 * position."""
    root = tmp_path_factory.mktemp("clips")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("s/0\ns/1\n")
    for clip in range(2):
        for position in range(FRAMES):
            picture = np.stack([2 * x, 2 * y, np.full_like(x, 100 * clip + 6 * position)], axis=-1).astype(np.uint8)
            for kind, pixels in (("Keyframes", picture), ("Annotations", (x > 40).astype(np.uint8) * np.uint8(255))):
                path = root / kind / "480p" / "s" / str(clip) / f"{position:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return index_clips(root, splits=("train",))


def levels(tensor: torch.Tensor) -> np.ndarray:
    """(..., 3, H, W) normalised -> 0..255."""
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    return np.rint((tensor.numpy() * std + mean) * 255)


def pairs(clips: pd.DataFrame, **options: int) -> PairDataset:
    return PairDataset(clips, **({"size": 48, "seed": 5} | options))


def same(a: Stills | Pairs, b: Stills | Pairs) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_target_and_reference_share_crop_and_flip(clips: pd.DataFrame) -> None:
    dataset = pairs(clips)
    first_columns = set()
    for index in range(FRAMES):
        sample = dataset[0, index]
        assert sample.image_t.shape == sample.image_ref.shape == (3, 48, 48)
        assert sample.mask_t.shape == sample.mask_ref.shape == (1, 48, 48)
        target, reference = levels(sample.image_t), levels(sample.image_ref)
        np.testing.assert_array_equal(target[:2], reference[:2])  # the same place of the frame at every pixel
        assert torch.equal(sample.mask_t, sample.mask_ref)
        mask = sample.mask_t[0].numpy()
        assert (target[0][mask == 1] >= 80).all()
        assert (target[0][mask == 0] <= 82).all()
        assert 0.3 < mask.mean() < 0.8
        first_columns.add(target[0, 0, 0])
    assert len(first_columns) > FRAMES // 2  # each sample is cut and mirrored in its own way


def test_first_frame_is_the_reference_also_of_itself(clips: pd.DataFrame) -> None:
    dataset = pairs(clips)
    for clip in range(2):
        for position in range(FRAMES):
            sample = dataset[0, clip * FRAMES + position]
            assert set(levels(sample.image_t)[2].ravel()) == {100 * clip + 6 * position}
            assert set(levels(sample.image_ref)[2].ravel()) == {100 * clip}


def test_further_references_lie_before_the_target_never_before_the_first(clips: pd.DataFrame) -> None:
    dataset = pairs(clips, references=3)
    for position in range(FRAMES):
        sample = dataset[0, FRAMES + position]
        assert sample.image_ref.shape == (3, 3, 48, 48)
        assert sample.mask_ref.shape == (3, 1, 48, 48)
        blue = [int(frame[2, 0, 0] - 100) // 6 for frame in levels(sample.image_ref)]
        assert blue == [0, max(position - 5, 0), max(position - 10, 0)]


def test_batches_of_several_references_have_the_shapes_that_training_wants(clips: pd.DataFrame) -> None:
    dataset = pairs(clips, references=2)
    (batch,) = loader(dataset, EpochBatches(len(dataset), 4, seed=0, stream="video", stop=1), workers=0)
    assert isinstance(batch, Pairs)
    assert batch.image_t.shape == (4, 3, 48, 48)
    assert batch.image_ref.shape == (4, 2, 3, 48, 48)
    assert batch.mask_ref.shape == (8, 1, 48, 48)
    single = pairs(clips)
    (batch,) = loader(single, EpochBatches(len(single), 4, seed=0, stream="video", stop=1), workers=0)
    assert isinstance(batch, Pairs)
    assert batch.image_ref.shape == (4, 3, 48, 48)
    assert batch.mask_ref.shape == (4, 1, 48, 48)


def test_masks_are_soft_numbers_from_0_to_1(portraits: Path) -> None:
    sample = StillDataset(index_stills(portraits / "Stills"), size=48, seed=0, stream="image")[0, 1]
    assert sample.image.shape == (3, 48, 48)
    assert sample.mask.shape == (1, 48, 48)
    assert sample.image.dtype == sample.mask.dtype == torch.float32
    assert (sample.mask.min(), sample.mask.max()) == (0, 1)
    assert 0.05 < ((sample.mask > 0) & (sample.mask < 1)).float().mean() < 0.5


def test_a_sample_follows_from_seed_epoch_and_row_alone(clips: pd.DataFrame) -> None:
    forward, backward, cached = pairs(clips), pairs(clips), pairs(clips, cache_mb=1)
    keys = [(epoch, row) for epoch in range(2) for row in range(6)]
    wanted = {key: forward[key] for key in keys}
    np.random.default_rng().random()
    np.random.seed(1)  # the global generators must not matter
    torch.manual_seed(1)
    for key in reversed(keys):
        assert same(backward[key], wanted[key])
        assert same(cached[key], wanted[key])
        assert same(cached[key], wanted[key])  # from the cache now
    assert not same(wanted[0, 3], wanted[1, 3])
    assert not torch.equal(pairs(clips, seed=6)[0, 3].image_t, wanted[0, 3].image_t)


def test_photometric_draws_do_not_move_the_crop(portraits: Path) -> None:
    table = index_stills(portraits / "Stills")
    plain = StillDataset(table, size=48, seed=0, stream="image")[0, 0]
    colourful = StillDataset(table, size=48, seed=0, stream="image", photometric=1.0)[0, 0]
    assert torch.equal(plain.mask, colourful.mask)
    assert not torch.equal(plain.image, colourful.image)


def test_two_trainings_on_the_same_stills_see_other_crops(portraits: Path) -> None:
    table = index_stills(portraits / "Stills")
    first, second, again = (
        StillDataset(table, size=48, seed=0, stream=stream) for stream in ("pretrain", "image", "image")
    )
    keys = [(epoch, row) for epoch in range(2) for row in range(len(table))]
    assert all(same(second[key], again[key]) for key in keys)
    assert not any(same(first[key], second[key]) for key in keys)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_batches_do_not_depend_on_the_number_of_workers(clips: pd.DataFrame, portraits: Path, kind: str) -> None:
    dataset = (
        pairs(clips)
        if kind == "video"
        else StillDataset(index_stills(portraits / "Stills"), size=48, seed=5, stream="image")
    )
    batches = EpochBatches(len(dataset), 4, seed=5, stream=kind, stop=9)
    alone, helped = (list(loader(dataset, batches, workers=workers)) for workers in (0, 2))
    assert len(alone) == len(helped) == 9
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_one_clear_line_with_workers_too(clips: pd.DataFrame, tmp_path: Path, workers: int) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(Path(clips["image"][0]).read_bytes()[:-40])
    dataset = pairs(clips.assign(image=[str(path), *clips["image"][1:]]))
    stream = loader(dataset, EpochBatches(len(dataset), 4, seed=5, stream="video", stop=9), workers=workers)
    with pytest.raises(DataError) as caught:
        list(stream)
    assert str(caught.value).startswith(f"{path}: damaged image (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("length", "size"), [(10, 4), (8, 4), (3, 4), (1, 4), (7, 1)])
def test_every_epoch_shows_every_row_and_fills_its_last_batch(length: int, size: int) -> None:
    per_epoch = batches_per_epoch(length, size)
    assert per_epoch == -(-length // size)
    batches = list(EpochBatches(length, size, seed=0, stream="video", stop=3 * per_epoch))
    assert len(batches) == 3 * per_epoch
    orders = []
    for epoch in range(3):
        keys = [key for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for key in batch]
        assert {key[0] for key in keys} == {epoch}
        rows = [key[1] for key in keys]
        assert len(rows) == per_epoch * size
        assert sorted(rows[:length]) == list(range(length))  # once each ...
        assert rows[length:] == (rows[:length] * size)[: len(rows) - length]  # ... then the first ones again
        orders.append(rows)
    if length > 4:
        assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("start", [1, 2, 3, 7, 9])
def test_a_late_start_goes_on_with_the_same_batches(start: int) -> None:
    whole = list(EpochBatches(10, 4, seed=1, stream="image", stop=9))
    rest = EpochBatches(10, 4, seed=1, stream="image", start=start, stop=9)
    assert list(rest) == whole[start:]
    assert len(rest) == 9 - start
    assert list(rest) == whole[start:]  # and again: iterating uses nothing up


def test_order_depends_on_seed_and_stream() -> None:
    def order(seed: int, stream: str) -> list[list[tuple[int, int]]]:
        return list(EpochBatches(20, 4, seed=seed, stream=stream, stop=5))

    assert order(0, "video") == order(0, "video")
    assert order(0, "video") != order(1, "video")
    assert order(0, "video") != order(0, "image")


def test_generators_of_different_places_are_different() -> None:
    places = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (0, "ab", 0), (0, "a", 0)]
    draws = {tuple(generator(seed, stream, *position).random(2)) for seed, stream, *position in places}
    assert len(draws) == len(places)


def test_a_stream_without_frames_is_an_error() -> None:
    with pytest.raises(DataError, match="the video stream has no frames to train on"):
        EpochBatches(0, 4, seed=0, stream="video", stop=1)
