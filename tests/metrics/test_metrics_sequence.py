"""Mean, recall and decay of sequences, and the data set figure."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow_metrics import GOLDEN, slow_statistics

from pdnet.errors import DataError
from pdnet.metrics import RegionContour, Statistics, frame_scores, mean_of_sequences, statistics

TOLERANCE = 1e-12


def same(found, expected):
    return found == pytest.approx(expected, abs=TOLERANCE, nan_ok=True)


def shared_golden() -> Path:
    shared = os.environ.get("PDNET_SHARED")
    if not shared:
        pytest.skip("PDNET_SHARED is not set: the values of the original code are not at hand")
    return Path(shared) / "reference" / "davis_golden"


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan), st.just(0.5)), min_size=1, max_size=40))
def test_equals_the_slow_version(scores):
    assert same(statistics(scores), slow_statistics(scores))


def test_committed_golden_values():
    for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["sequences"]:
        assert same(statistics(case["scores"]), (case["mean"], case["recall"], case["decay"]))


def test_golden_sequences_of_the_original_code():
    golden = json.loads((shared_golden() / "sequences.json").read_text(encoding="utf-8"))
    for case in golden["sequences"]:
        scores = [math.nan if value is None else value for value in case["values"]]
        expected = [case[key] for key in ("mean", "recall", "decay_without_8bit_wrap")]
        assert same(statistics(scores), [math.nan if value is None else value for value in expected]), case["name"]


@pytest.mark.parametrize(("key", "frames"), [("skip_first_and_last", slice(1, -1)), ("all_frames", slice(None))])
def test_golden_data_set_of_the_original_code(key, frames):
    folder = shared_golden()
    golden = json.loads((folder / "mini_dataset.json").read_text(encoding="utf-8"))[key]
    sequences = {}
    with np.load(folder / "mini_dataset.npz") as stored:
        for name in golden["per_sequence"]:
            pairs = zip(stored[f"pred_{name}"][frames], stored[f"gt_{name}"][frames], strict=True)
            j, f = np.array([frame_scores(prediction, annotation) for prediction, annotation in pairs]).T
            sequences[name] = RegionContour(statistics(j), statistics(f))
    for name, expected in golden["per_sequence"].items():
        assert same((*sequences[name].j, *sequences[name].f), list(expected.values())), name
    figure = mean_of_sequences(sequences.values())
    assert same((*figure.j, *figure.f, figure.jf_mean), list(golden["global"].values()))


def test_recall_is_strictly_above_one_half():
    assert statistics([0.5, 0.5, 0.51, 0.1]).recall == 0.25


def test_quarters_share_their_edges():
    # 9 frames: edges 0, 2, 4, 6, 8, so the first and the last quarter hold three frames each.
    assert statistics([1, 1, 0, 0, 0, 0, 0, 1, 0]).decay == pytest.approx(2 / 3 - 1 / 3)


@pytest.mark.parametrize("n", [255, 256, 257, 341, 342, 600, 1299])
def test_decay_of_a_long_sequence(n):
    # A line from 1 to 0: a quarter's mean is its middle, whatever n is.
    edges = [math.floor(i * (n - 1) / 4 + 0.5) for i in range(5)]
    expected = ((edges[3] + edges[4]) - (edges[0] + edges[1])) / 2 / (n - 1)
    assert statistics(np.linspace(1, 0, n)).decay == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.75, abs=0.01)


def test_short_sequences():
    assert statistics([0.7]) == (0.7, 1.0, 0.0)
    assert statistics([0.75, 0.25]) == (0.5, 0.5, 0.5)


def test_nan_scores():
    nan = math.nan
    assert same(statistics([nan, 0.8, 0.6, nan]), (0.7, 0.5, 0.2))
    assert same(statistics([nan, nan, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2]), (2.8 / 6, 0.25, 0.8 - 0.9 / 3))
    assert same(statistics([nan, nan, nan, 0.6, 0.5, 0.4, 0.3, 0.2]), (0.4, 0.125, nan))
    assert same(statistics([nan]), (nan, 0.0, nan))


@pytest.mark.filterwarnings("error")
def test_only_nan_raises_no_warning():
    statistics([math.nan, math.nan])


def test_the_data_set_figure_is_a_mean_over_sequences_not_frames():
    long = RegionContour(statistics([0.25] * 30), statistics([0.75] * 30))
    short = RegionContour(statistics([0.75] * 2), statistics([1.0] * 2))
    figure = mean_of_sequences([long, short])
    assert figure == RegionContour(Statistics(0.5, 0.5, 0.0), Statistics(0.875, 1.0, 0.0))
    assert figure.jf_mean == (0.5 + 0.875) / 2


@pytest.mark.parametrize("scores", [[], [[0.1, 0.2]]])
def test_no_list_of_scores(scores):
    with pytest.raises(DataError, match="at least one score"):
        statistics(scores)


def test_no_sequence():
    with pytest.raises(DataError, match="at least one sequence"):
        mean_of_sequences([])
