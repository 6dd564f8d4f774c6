"""The synthetic set: same seed, same bytes; a layout the readers take; people whose arms move more than their trunk."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdnet.data.index import index_clips, index_stills
from pdnet.data.io import read_image, read_levels, read_mask
from pdnet.data.synthetic import PRESETS, generate, plan_clips
from pdnet.data.synthetic.generate import draw_frame
from pdnet.data.synthetic.motion import FOREARM, GESTURES, UPPER_ARM, solve_arm
from pdnet.data.synthetic.people import HEAD, LEFT_LOWER, PART_NAMES, RIGHT_LOWER, TORSO
from pdnet.data.synthetic.raster import Canvas, Light, Material
from pdnet.data.synthetic.scenes import SCENARIOS, draw_scene
from pdnet.errors import ConfigError, DataError
from pdnet.files import atomic_folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "tiny"
    calls: list[tuple[int, int]] = []
    generate(root, preset="tiny", seed=0, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (4 * 8 + 12, 4 * 8 + 12)
    assert calls == sorted(calls)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_gives_same_bytes_with_any_number_of_workers(tiny: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", preset="tiny", seed=0, workers=2)
    again, first = contents(tmp_path / "again"), contents(tiny)
    assert again.keys() == first.keys()
    assert [name for name in first if first[name] != again[name]] == []


def test_another_seed_gives_other_pictures(tiny: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", preset="tiny", seed=1, workers=1)
    other, first = contents(tmp_path / "other"), contents(tiny)
    pictures = [name for name in first if name.endswith(".jpg")]
    assert len(pictures) == 44
    assert all(first[name] != other[name] for name in pictures)


def test_layout_is_read_by_the_indexes(tiny: Path) -> None:
    frames = index_clips(tiny)
    assert frames.groupby("split")["clip"].nunique().to_dict() == {"train": 2, "val": 2}
    assert set(frames.groupby("clip").size()) == {8}
    assert frames[frames["position"] < 3]["frame"].unique().tolist() == ["00000", "00005", "00010"]
    stills = index_stills(tiny / "Stills")
    assert len(stills) == 12
    sizes = {Image.open(path).size for path in stills["image"]}
    assert len(sizes) > 2
    facts = json.loads((tiny / "dataset.json").read_text(encoding="utf-8"))
    assert (facts["preset"], facts["seed"], facts["parts"]) == ("tiny", 0, list(PART_NAMES))


def test_masks_are_binary_not_empty_and_of_the_pictures_size(tiny: Path) -> None:
    pairs = [(row.image, row.mask) for row in index_clips(tiny).itertuples()]
    pairs += [(row.image, row.mask) for row in index_stills(tiny / "Stills").itertuples()]
    for image, mask in pairs:
        values = read_levels(Path(mask))
        assert read_image(Path(image)).shape == (*values.shape, 3)
        assert set(np.unique(values)) == {0, 255}


def test_parts_make_up_the_mask(tiny: Path) -> None:
    seen: set[int] = set()
    for row in index_clips(tiny).itertuples():
        parts = read_levels(tiny / "Parts" / "480p" / row.clip / f"{row.frame}.png")
        assert np.array_equal(parts > 0, read_mask(Path(row.mask)))
        seen |= set(np.unique(parts).tolist())
    assert seen <= set(range(len(PART_NAMES)))
    assert {HEAD, TORSO, LEFT_LOWER, RIGHT_LOWER} <= seen


def test_both_splits_hold_landscape_and_upright_clips(tiny: Path) -> None:
    for _, frames in index_clips(tiny).groupby("split"):
        sizes = {Image.open(path).size for path in frames["image"]}
        assert sizes == {(160, 120), (120, 160)}


def test_hands_move_more_than_the_trunk(tmp_path: Path) -> None:
    """Median step of the part's centroid between keyframes; one person, so that a part is one blob."""
    hand_steps, trunk_steps = [], []
    for index in range(12):
        scene = draw_scene(np.random.default_rng((5, index)), tuple(SCENARIOS)[index % 7], 160, 120, 3.0)
        if len(scene.people) > 1:
            continue
        tracks: dict[int, list[np.ndarray | None]] = {TORSO: [], LEFT_LOWER: [], RIGHT_LOWER: []}
        for k in range(10):
            _, parts = draw_frame(scene, k / 6, np.random.default_rng(k))
            for label, places in tracks.items():
                where = np.argwhere(parts == label)
                places.append(where.mean(axis=0) if len(where) > 20 else None)
        height = scene.people[0].scale * 2.5
        for label, places in tracks.items():
            steps = [np.hypot(*(b - a)) / height for a, b in pairwise(places) if a is not None and b is not None]
            (trunk_steps if label == TORSO else hand_steps).extend(steps)
    assert len(hand_steps) > 40
    assert np.median(hand_steps) > 2 * np.median(trunk_steps)


def test_mini_is_the_set_that_was_asked_for() -> None:
    clips = plan_clips(PRESETS["mini"])
    assert len(clips) == 14
    assert len({clip.name for clip in clips}) == 14
    for split in ("train", "val"):
        own = [clip for clip in clips if clip.split == split]
        assert sorted(clip.scenario for clip in own) == sorted(SCENARIOS)
        assert {clip.width > clip.height for clip in own} == {True, False}
    assert {(clip.width, clip.height) for clip in clips} == {(854, 480), (480, 854)}
    assert 8 <= sum(clip.width > clip.height for clip in clips) <= 10
    assert all((clip.keyframes - 1) * 5 / 30 >= 6.0 for clip in clips)
    assert all(clip.name.split("/")[0] == clip.scenario for clip in clips)
    assert PRESETS["mini"].stills == 1600


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    keep = tmp_path / "out" / "mine.txt"
    keep.parent.mkdir()
    keep.write_text("mine")
    with pytest.raises(DataError, match="out: "):
        generate(tmp_path / "out", preset="tiny", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert keep.read_text() == "mine"


def test_an_older_set_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_folder(out) as fresh:
        (fresh / "old.txt").write_text("old")
    with pytest.raises(DataError) as caught:
        generate(out, preset="tiny", workers=1)
    assert str(caught.value) == f"{out}: exists and is not empty; expected a new folder"
    assert (out / "old.txt").exists()


@pytest.mark.parametrize("wrong", [{"preset": "huge"}, {"seed": -1}, {"workers": 0}])
def test_wrong_arguments_are_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=str(*wrong.values())):
        generate(tmp_path / "out", **{"preset": "tiny", **wrong})
    assert not (tmp_path / "out").exists()


def test_a_capsule_is_what_its_definition_says() -> None:
    """Coverage and label of a drawn capsule against a count of 16 x 16 points in each pixel."""
    a, b, radius = (8.3, 9.1), (22.7, 15.4), 4.2
    canvas = Canvas(np.zeros((3, 26, 32), dtype=np.float32), Light(0.0, 0.0, 1.0, ambient=1.0, diffuse=0.0))
    canvas.paint(canvas.capsule(a, b, radius), Material((1.0, 1.0, 1.0)), 3)
    grid = (np.arange(16) + 0.5) / 16
    expected = np.zeros((26, 32))
    for row in range(26):
        for column in range(32):
            y, x = np.meshgrid(row + grid, column + grid, indexing="ij")
            t = np.clip(
                ((x - a[0]) * (b[0] - a[0]) + (y - a[1]) * (b[1] - a[1])) / ((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2),
                0,
                1,
            )
            inside = np.hypot(x - a[0] - t * (b[0] - a[0]), y - a[1] - t * (b[1] - a[1])) <= radius
            expected[row, column] = inside.mean()
    np.testing.assert_allclose(canvas.rgb[0], expected, atol=0.12)
    certain = np.abs(expected - 0.5) > 0.12
    assert np.array_equal((canvas.labels == 3)[certain], (expected > 0.5)[certain])


def test_bones_keep_their_length_for_every_gesture() -> None:
    for gestures in GESTURES.values():
        for gesture in gestures:
            for side in (-1.0, 1.0):
                shoulder = (side * 0.9, 0.5, 0.0)
                target = (shoulder[0] + side * gesture.target[0], 0.5 + gesture.target[1], gesture.target[2])
                elbow, wrist = solve_arm(shoulder, target, side)
                assert np.linalg.norm(np.subtract(elbow, shoulder)) == pytest.approx(UPPER_ARM, abs=1e-6)
                assert np.linalg.norm(np.subtract(wrist, elbow)) == pytest.approx(FOREARM, abs=1e-6)


def test_names_of_parts_stand_at_their_labels() -> None:
    assert len(PART_NAMES) == 9
    assert (PART_NAMES[HEAD], PART_NAMES[TORSO]) == ("head", "torso")
    assert (PART_NAMES[LEFT_LOWER], PART_NAMES[RIGHT_LOWER]) == ("left lower arm", "right lower arm")
