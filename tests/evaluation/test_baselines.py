"""Baselines on a data set small enough to know every answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdnet.data.index import index_clips
from pdnet.errors import DataError
from pdnet.evaluation.baselines import best_threshold, mean_mask, trivial_baselines
from pdnet.evaluation.scoring import FIGURES
from pdnet.metrics import frame_scores

HEIGHT, WIDTH = 48, 64
PORTRAIT, BACKGROUND = (40, 200, 90), (40, 60, 90)  # told apart by green alone among R, G, B


def box(left: int, right: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[:, left:right] = True
    return mask


def write_set(root: Path, clips: dict[str, dict[str, list[np.ndarray]]], colours=(PORTRAIT, BACKGROUND)) -> None:
    """An MVPS layout: per split and clip the masks; a frame is painted with one colour inside and one outside."""
    for split in ("train", "val"):
        names = clips.get(split, {})
        (root / "ImageSets").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        for name, masks in names.items():
            for kind in ("Keyframes", "Annotations"):
                (root / kind / "480p" / name).mkdir(parents=True)
            for number, mask in enumerate(masks):
                image = np.where(mask[..., None], *np.array(colours, dtype=np.uint8)[:, None, None])
                Image.fromarray(image).save(root / "Keyframes" / "480p" / name / f"{number:05d}.png")
                levels = mask.astype(np.uint8) * 255
                Image.fromarray(levels).save(root / "Annotations" / "480p" / name / f"{number:05d}.png")


def score(mask: np.ndarray, annotation: np.ndarray) -> float:
    return sum(frame_scores(mask, annotation)) / 2


@pytest.fixture
def frames(tmp_path: Path):
    write_set(
        tmp_path,
        {
            # The mean mask is columns 8 to 40: two of three training frames.
            "train": {"s/one": [box(8, 40), box(8, 40), box(40, 64)]},
            # The first mask is columns 0 to 32; later ones move on by 8.
            "val": {"s/two": [box(0, 32), box(8, 40), box(16, 48), box(24, 56)]},
        },
    )
    return index_clips(tmp_path)


def test_each_method_scores_what_it_must(frames):
    table = trivial_baselines(frames).set_index("method")
    assert tuple(table.columns) == FIGURES
    scored = [box(8, 40), box(16, 48)]
    expected = {
        "all foreground": [box(0, 64)] * 2,
        "mean training mask": [box(8, 40)] * 2,
        "first mask carried forward": [box(0, 32)] * 2,
    }
    for method, masks in expected.items():
        figure = np.mean([score(mask, annotation) for mask, annotation in zip(masks, scored, strict=True)])
        assert table.loc[method, "jf_mean"] == pytest.approx(figure), method
    assert table.loc["first mask carried forward", "j_mean"] == pytest.approx((24 / 40 + 16 / 48) / 2)
    assert table.loc["first mask carried forward", "j_recall"] == 0.5
    assert table.loc["all foreground", ["j_mean", "f_mean"]].tolist() == [0.5, 0]
    (threshold,) = [name for name in table.index if name.startswith("best threshold")]
    assert table.loc[threshold, "jf_mean"] == 1


def test_the_protocol_is_passed_on(frames):
    table = trivial_baselines(frames, protocol="all-frames").set_index("method")
    assert table.loc["first mask carried forward", "j_mean"] == pytest.approx((1 + 24 / 40 + 16 / 48 + 8 / 56) / 4)


@pytest.mark.parametrize(
    ("portrait", "background", "rule"),
    [
        ((90, 60, 40), (60, 60, 40), "R >= 61"),
        ((60, 60, 40), (60, 90, 40), "G < 61"),
        ((10, 20, 200), (10, 20, 90), "B >= 91"),
    ],
)
def test_best_threshold_finds_channel_level_and_direction(tmp_path, portrait, background, rule):
    masks = [box(8, 40), box(20, 50)]
    write_set(tmp_path, {"train": {"s/c": masks}}, colours=(portrait, background))
    found = best_threshold(index_clips(tmp_path))
    assert (str(found), found.j) == (rule, 1)
    image = np.where(masks[0][..., None], *np.array((portrait, background), dtype=np.uint8)[:, None, None])
    assert np.array_equal(found(image), masks[0])


def test_best_threshold_finds_a_hue_that_no_colour_channel_shows(tmp_path):
    write_set(tmp_path, {"train": {"s/c": [box(0, 32)]}})
    rng = np.random.default_rng(0)
    low, high = rng.integers(20, 60, (HEIGHT, WIDTH)), rng.integers(100, 250, (HEIGHT, WIDTH))
    blue = np.stack([low, low, high], axis=-1)
    # As little red as the portrait, as little green, as much blue: no channel of colour tells all three from it.
    others = [np.stack(channels, axis=-1) for channels in ((low, high, low), (high, low, low), (high, high, high - 20))]
    outside = np.choose(rng.integers(0, 3, (HEIGHT, WIDTH, 1)), others)
    image = np.where(box(0, 32)[..., None], blue, outside).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "Keyframes" / "480p" / "s" / "c" / "00000.png")
    rule = best_threshold(index_clips(tmp_path))
    assert (rule.channel, rule.above, rule.j) == ("H", True, 1)
    assert np.array_equal(rule(image), box(0, 32))


def test_best_threshold_has_the_mean_j_that_counting_gives(tmp_path):
    rng = np.random.default_rng(0)
    masks = [box(0, 64), box(0, 10), box(30, 60)]
    write_set(tmp_path, {"train": {"s/c": masks}})
    paths = sorted((tmp_path / "Keyframes").rglob("*.png"))
    images = [rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8) for _ in masks]
    for image, mask, path in zip(images, masks, paths, strict=True):
        image[mask] //= 2  # darker inside, with overlap
        Image.fromarray(image).save(path)
    rule = best_threshold(index_clips(tmp_path))
    sampled = [(rule(image)[::4, ::4], mask[::4, ::4]) for image, mask in zip(images, masks, strict=True)]
    assert rule.j == pytest.approx(np.mean([frame_scores(*pair).j for pair in sampled]))
    # Nothing that was not chosen is better.
    for channel in range(3):
        for level in range(0, 257, 8):
            for above in (True, False):
                found = [(image[::4, ::4, channel] >= level) == above for image in images]
                j = np.mean([frame_scores(f, m[::4, ::4]).j for f, m in zip(found, masks, strict=True)])
                assert j <= rule.j + 1e-12


def test_mean_masks_are_kept_apart_by_orientation(tmp_path):
    upright = np.zeros((64, 48), dtype=bool)
    upright[32:] = True
    write_set(tmp_path, {"train": {"s/wide": [box(0, 32)] * 3, "s/tall": [upright] * 2}})
    predict = mean_mask(index_clips(tmp_path))
    image = np.zeros((1, 1, 3), dtype=np.uint8)
    assert np.array_equal(predict(image, box(0, 0)), box(0, 32))
    assert np.array_equal(predict(image, np.zeros_like(upright)), upright)
    # A larger frame of the same shape, and one of an orientation that training has.
    assert np.array_equal(predict(image, np.zeros((96, 128), dtype=bool)), box(0, 64, 96, 128))


def test_an_orientation_without_training_frames_takes_the_other(tmp_path):
    write_set(tmp_path, {"train": {"s/wide": [box(0, 32)]}})
    predict = mean_mask(index_clips(tmp_path))
    found = predict(np.zeros((1, 1, 3), dtype=np.uint8), np.zeros((64, 48), dtype=bool))
    assert np.array_equal(found, box(0, 24, 64, 48))


def test_without_training_frames_the_learning_methods_are_left_out(tmp_path):
    write_set(tmp_path, {"val": {"s/c": [box(0, 32)] * 3}})
    table = trivial_baselines(index_clips(tmp_path))
    assert table["method"].tolist() == ["all foreground", "first mask carried forward"]
    assert table["jf_mean"].tolist() == [0.25, 1.0]


def test_without_validation_frames(tmp_path):
    write_set(tmp_path, {"train": {"s/c": [box(0, 32)] * 3}})
    with pytest.raises(DataError, match="no clips in 'val'"):
        trivial_baselines(index_clips(tmp_path))


def test_a_clip_whose_frames_differ_in_size(tmp_path):
    write_set(tmp_path, {"val": {"s/c": [box(0, 32), box(0, 32, HEIGHT, WIDTH + 2), box(0, 32)]}})
    with pytest.raises(DataError, match=r"00001.png: the mask is 66x48, expected 64x48, the size of the clip's first"):
        trivial_baselines(index_clips(tmp_path))
