"""J and F of a frame: against the slow version, against values of the original code, and where they are known."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slow_metrics import GOLDEN, slow_contour_accuracy, slow_region_similarity

from pdnet.errors import DataError
from pdnet.metrics import contour_accuracy, frame_scores, region_similarity
from pdnet.metrics.bits import dilate_disk, pack

TOLERANCE = 1e-12
WIDTHS = [1, 2, 3, 7, 8, 9, 31, 62, 63, 64, 65, 66, 127, 128, 129, 193]


@st.composite
def masks(draw, count):
    """`count` masks of one size: noise of any density, or boxes that may touch the border."""
    height, width = draw(st.integers(1, 14)), draw(st.sampled_from(WIDTHS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = []
    for _ in range(count):
        density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]))
        if draw(st.booleans()):
            made.append(rng.random((height, width)) < density)
        else:
            box = np.zeros((height, width), dtype=bool)
            top, left = rng.integers(0, height), rng.integers(0, width)
            box[top : rng.integers(top, height) + 1, left : rng.integers(left, width) + 1] = True
            made.append(box)
    return made


def disk(height, width, y, x, radius):
    rows, columns = np.ogrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def art(rows):
    return np.array([[character == "#" for character in row] for row in rows])


@settings(deadline=None, max_examples=200)
@given(pair=masks(2), bound_th=st.one_of(st.integers(1, 12), st.sampled_from([0.008, 0.05, 0.3])))
def test_equals_the_slow_version(pair, bound_th):
    prediction, annotation = pair
    assert region_similarity(prediction, annotation) == slow_region_similarity(prediction, annotation)
    expected = slow_contour_accuracy(prediction, annotation, bound_th=bound_th)
    assert contour_accuracy(prediction, annotation, bound_th=bound_th) == pytest.approx(expected, abs=TOLERANCE)


@settings(deadline=None, max_examples=100)
@given(triple=masks(3), bound_th=st.integers(1, 12))
def test_equals_the_slow_version_with_void(triple, bound_th):
    expected = (slow_region_similarity(*triple), slow_contour_accuracy(*triple, bound_th=bound_th))
    assert frame_scores(*triple, bound_th=bound_th) == pytest.approx(expected, abs=TOLERANCE)


@settings(deadline=None, max_examples=50)
@given(pair=masks(2), bound_th=st.integers(13, 300))
def test_equals_the_slow_version_where_the_tolerance_spans_words(pair, bound_th):
    expected = slow_contour_accuracy(*pair, bound_th=bound_th)
    assert contour_accuracy(*pair, bound_th=bound_th) == pytest.approx(expected, abs=TOLERANCE)


@settings(deadline=None, max_examples=50)
@given(pair=masks(2), bound_th=st.integers(1, 12))
def test_symmetric(pair, bound_th):
    prediction, annotation = pair
    assert frame_scores(prediction, annotation, bound_th=bound_th) == frame_scores(
        annotation, prediction, bound_th=bound_th
    )


@settings(deadline=None, max_examples=50)
@given(pair=masks(2))
def test_a_frame_and_its_complement_have_the_same_contour(pair):
    prediction, annotation = pair
    assert contour_accuracy(prediction, annotation) == contour_accuracy(~prediction, ~annotation)
    assert contour_accuracy(prediction, ~prediction) == 1.0
    assume(prediction.any())
    assert region_similarity(prediction, ~prediction) == 0.0


@pytest.mark.parametrize("size", [(30, 200), (3, 64), (70, 1)])
def test_a_pixel_dilates_to_a_disk_wherever_it_lies(size):
    height, width = size
    for y in {0, 1, height // 2, height - 1}:
        for x in {0, width // 3, width // 2, width - 1}:
            pixel = disk(height, width, y, x, 0)
            packed, _ = pack((~pixel, pixel, ~pixel))  # neighbours must not leak into it
            for radius in [*range(0, 40), 63, 64, 65, 127, 128, 129, 136, 200]:
                expected, _ = pack((disk(height, width, y, x, radius),))
                # Bits beyond the width are nobody's: cut them by packing's own rule.
                valid, _ = pack((np.ones(size),))
                assert np.array_equal(dilate_disk(packed, radius)[1:2] & valid, expected), (y, x, radius)


def test_committed_golden_values():
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))["frames"]
    assert len(cases) == 8
    for case in cases:
        void = None if case["void"] is None else art(case["void"])
        found = frame_scores(art(case["prediction"]), art(case["annotation"]), void, case["bound_th"])
        assert found == pytest.approx((case["J"], case["F"]), abs=TOLERANCE)


def test_golden_values_of_the_original_code():
    shared = os.environ.get("PDNET_SHARED")
    if not shared:
        pytest.skip("PDNET_SHARED is not set: the values of the original code are not at hand")
    folder = Path(shared) / "reference" / "davis_golden"
    golden = json.loads((folder / "masks.json").read_text(encoding="utf-8"))
    with np.load(folder / "masks.npz") as stored:
        for pair in golden["pairs"]:
            prediction, annotation = stored[f"pred_{pair['id']:03d}"], stored[f"gt_{pair['id']:03d}"]
            assert frame_scores(prediction, annotation) == pytest.approx((pair["J"], pair["F"]), abs=TOLERANCE)
            assert region_similarity(prediction, annotation) == pytest.approx(pair["J"], abs=TOLERANCE)
            assert contour_accuracy(prediction, annotation) == pytest.approx(pair["F"], abs=TOLERANCE)
        for extra in golden["extras"]:
            annotation, prediction, *void = (stored[name] for name in extra["arrays"])
            found = frame_scores(prediction, annotation, *(void or [None]), extra["bound_th"])
            assert found.f == pytest.approx(extra["F"], abs=TOLERANCE)
            if "J" in extra:
                assert found.j == pytest.approx(extra["J"], abs=TOLERANCE)


HEIGHT, WIDTH = 48, 85
EMPTY, FULL = np.zeros((HEIGHT, WIDTH), dtype=bool), np.ones((HEIGHT, WIDTH), dtype=bool)
BLOB = disk(HEIGHT, WIDTH, 20, 40, 12)


@pytest.mark.parametrize(
    ("prediction", "annotation", "expected"),
    [
        (EMPTY, EMPTY, (1, 1)),
        (FULL, FULL, (1, 1)),
        (FULL, EMPTY, (0, 1)),  # neither has a contour: the image border is none
        (EMPTY, FULL, (0, 1)),
        (BLOB, EMPTY, (0, 0)),
        (EMPTY, BLOB, (0, 0)),
        (BLOB, FULL, (BLOB.mean(), 0)),
        (BLOB, BLOB, (1, 1)),
        (BLOB, ~BLOB, (0, 1)),
    ],
)
def test_known_scores(prediction, annotation, expected):
    assert frame_scores(prediction, annotation) == pytest.approx(expected, abs=TOLERANCE)


def test_masks_far_apart_share_no_contour():
    assert frame_scores(disk(200, 300, 30, 30, 10), disk(200, 300, 170, 270, 10)) == (0.0, 0.0)


def test_all_void_counts_nothing():
    assert frame_scores(BLOB, FULL, void=FULL) == (1.0, 1.0)
    assert region_similarity(BLOB, EMPTY, void=BLOB) == 1.0


def test_the_last_pixel_alone_is_no_boundary_of_its_own():
    corner = np.zeros((5, 7), dtype=bool)
    corner[4, 6] = True
    left = np.zeros((5, 7), dtype=bool)
    left[4, 5] = True
    # Boundary of `corner`: its upper, left and upper-left neighbours. Of `left`: those of its own, and itself.
    assert contour_accuracy(corner, left, bound_th=1) == 1.0
    far = np.zeros((5, 7), dtype=bool)
    far[0, 0] = True  # its boundary is (0, 0) alone; of the three pixels only (3, 5) is within 6
    assert contour_accuracy(far, corner, bound_th=6) == pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3))


def test_a_tolerance_larger_than_the_image_matches_everything():
    corners = np.zeros((40, 130), dtype=bool)
    corners[0, 0] = True
    other = np.zeros((40, 130), dtype=bool)
    other[39, 129] = True
    assert contour_accuracy(corners, other, bound_th=10**9) == 1.0
    assert contour_accuracy(corners, other, bound_th=0.999) == 1.0
    assert contour_accuracy(corners, other, bound_th=0.9) == 0.0


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_any_dtype_and_layout(dtype):
    rng = np.random.default_rng(3)
    prediction, annotation = BLOB ^ (rng.random(BLOB.shape) < 0.02), BLOB
    expected = frame_scores(prediction, annotation)
    value = 0.25 if np.issubdtype(dtype, np.floating) else 38 if dtype is not bool else True
    typed_prediction, typed_annotation = (np.where(mask, value, 0).astype(dtype) for mask in (prediction, annotation))
    assert frame_scores(typed_prediction, typed_annotation) == expected
    assert frame_scores(np.asfortranarray(typed_prediction), typed_annotation) == expected
    spread = np.zeros((2 * HEIGHT, 3 * WIDTH), dtype=dtype)
    spread[::2, ::3] = typed_annotation
    assert frame_scores(typed_prediction, spread[::2, ::3]) == expected
    assert frame_scores(typed_prediction[::-1, ::-1][::-1, ::-1], typed_annotation) == expected
    assert frame_scores(typed_prediction.tolist(), annotation) == expected


def test_inputs_are_left_as_they_were():
    prediction, annotation, void = BLOB.copy(), ~BLOB, np.roll(BLOB, 5, axis=1)
    copies = prediction.copy(), annotation.copy(), void.copy()
    frame_scores(prediction, annotation, void)
    assert all(np.array_equal(a, b) for a, b in zip((prediction, annotation, void), copies, strict=True))


@pytest.mark.parametrize("measure", [region_similarity, contour_accuracy, frame_scores])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros((4, 5)), np.zeros((5, 4))), r"differ in size \(H, W\): \(4, 5\) and \(5, 4\)"),
        ((np.zeros((4, 5)), np.zeros((4, 5)), np.zeros((4, 6))), r"\(4, 5\) and \(4, 6\)"),
        ((np.zeros((4, 5, 1)), np.zeros((4, 5, 1))), "two-dimensional"),
        ((np.zeros((0, 5)), np.zeros((0, 5))), "not empty"),
        ((np.full((4, 5), "a"), np.zeros((4, 5))), "booleans or numbers"),
    ],
)
def test_wrong_arguments_are_named(measure, arguments, words):
    with pytest.raises(DataError, match=words):
        measure(*arguments)


@pytest.mark.parametrize("bound_th", [0, -1, 1.5, float("nan"), float("inf")])
def test_a_tolerance_that_is_neither_share_nor_pixels(bound_th):
    with pytest.raises(DataError, match="bound_th"):
        contour_accuracy(BLOB, BLOB, bound_th=bound_th)
