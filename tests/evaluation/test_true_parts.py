"""True body parts: named by the data set, matched with the predicted ones, and absent where nobody names them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pdnet.errors import DataError
from pdnet.evaluation.evaluate import Frame, PartStatistics, find_true_parts
from pdnet.files import write_json
from pdnet.inference.session import Prediction


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Left half of the frame hat, right half coat, the lowest row background."""
    labels = np.repeat([[1, 1, 2, 2]], 4, axis=0).astype(np.uint8)
    labels[3] = 0
    path = tmp_path / "Parts" / "480p" / "talk" / "a" / "00000.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(labels).save(path)
    write_json(tmp_path / "dataset.json", {"parts": ["nothing", "hat", "coat"]})
    return tmp_path


def frame(left: list[float], right: list[float]) -> Frame:
    """All portrait; `left` and `right` are the probabilities of the parts in either half."""
    prob = np.repeat(np.array([left, left, right, right], np.float32).T[:, None], 4, axis=1)
    prediction = Prediction(np.ones((4, 4), np.float32), np.ones((4, 4), np.float32), prob)
    whole = np.ones((4, 4), bool)
    return Frame(SimpleNamespace(clip="talk/a", frame="00000"), whole, whole, 1.0, 1.0, prediction)


def test_parts_are_matched_under_the_names_of_the_data_set(videos: Path) -> None:
    truth = find_true_parts(videos, "480p")
    assert truth is not None
    assert truth.names == ("hat", "coat")
    statistics = PartStatistics(3, truth)
    statistics.add(frame([0.1, 0.8, 0.1], [0.7, 0.2, 0.1]))
    summary = statistics.summary()
    assert summary is not None
    assert summary["match"]["true_parts"] == ["hat", "coat"]
    assert summary["match"]["confusion"] == [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    assert summary["match"]["purity"] == 1.0
    assert summary["match"]["nmi"] == pytest.approx(1.0)


@pytest.mark.parametrize("facts", [None, {}, {"parts": None}, {"parts": "hat"}, {"parts": ["nothing"]}])
def test_without_names_there_is_no_match(videos: Path, facts: dict[str, Any] | None) -> None:
    (videos / "dataset.json").unlink()
    if facts is not None:
        write_json(videos / "dataset.json", facts)
    assert find_true_parts(videos, "480p") is None
    statistics = PartStatistics(2, None)
    statistics.add(frame([0.9, 0.1], [0.1, 0.9]))
    summary = statistics.summary()
    assert summary is not None
    assert summary["match"] is None


def test_without_label_maps_the_names_do_not_matter(videos: Path) -> None:
    assert find_true_parts(videos, "720p") is None


def test_a_damaged_description_is_named(videos: Path) -> None:
    (videos / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json: cannot be read as JSON"):
        find_true_parts(videos, "480p")
