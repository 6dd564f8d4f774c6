"""The last words of a pipeline run in the terminal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pdnet.errors import DataError
from pdnet.evaluation.summary import format_summary
from pdnet.files import write_json

FIGURES = {
    "jf_mean": 0.8814,
    "j": {"mean": 0.87, "recall": 0.95, "decay": 0.02},
    "f": {"mean": 0.89, "recall": 0.97, "decay": None},
}
SCORES: dict[str, Any] = FIGURES | {
    "protocol": "mvps",
    "clips": 2,
    "frames": 12,
    "baselines": [
        FIGURES | {"method": "all foreground", "jf_mean": 0.25},
        FIGURES | {"method": "carried", "jf_mean": 0.5},
    ],
    "speed": {"network_fps": 43.21, "end_to_end_fps": 21.5, "device": "Abacus 9", "precision": "fp32", "size": 192},
    "parts": {"share": [0.6, 0.4], "match": None},
}


@pytest.fixture
def build(tmp_path: Path) -> Path:
    build = tmp_path / "build"
    write_json(build / "evaluation" / "scores.json", SCORES)
    write_json(build / "export" / "parity.json", {"onnx": {"jf_mean": 0.8813}})
    registration = {"model": "pdnet", "version": "3", "experiment_id": "1"}
    write_json(build / "registration" / "registration.json", registration)
    frames = pd.DataFrame({"clip": ["talk/a"], "image": ["data/Keyframes/480p/talk/a/00000.jpg"]})
    frames.to_parquet(build / "evaluation" / "frames.parquet")
    return build


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of the table's lines by their name, which two spaces or more set apart."""
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if row}


def test_scores_baselines_and_where_to_look(build: Path) -> None:
    text = format_summary(build)
    rows = rows_of(text)
    assert rows["PDNet"] == ["88.1", "87.0", "95.0", "2.0", "89.0", "97.0", "–", "43.2"]
    assert rows["PDNet through ONNX"] == ["88.1"]
    assert rows["carried"][0] == "50.0"
    assert "2 validation clips, 12 frames, protocol mvps; +38.1 points against the best trivial baseline." in text
    assert "192x192, fp32, one frame at a time, Abacus 9; from file to mask 21.5." in text
    assert "pdnet version 3" in text
    assert "pdnet predict data/Keyframes/480p/talk/a -o build/predict" in text


def test_a_model_without_ipda_is_called_so(build: Path) -> None:
    write_json(build / "evaluation" / "scores.json", SCORES | {"parts": None})
    rows = rows_of(format_summary(build))
    assert rows["PDNet without IPDA"][0] == "88.1"
    assert rows["PDNet without IPDA through ONNX"] == ["88.1"]
    assert "PDNet" not in rows


def test_no_baseline(build: Path) -> None:
    write_json(build / "evaluation" / "scores.json", SCORES | {"baselines": []})
    assert "protocol mvps; no trivial baseline was measured." in format_summary(build)


@pytest.mark.parametrize("name", ["evaluation/scores.json", "export/parity.json", "registration/registration.json"])
@pytest.mark.parametrize("text", [None, "{}", "[]", "{"])
def test_a_file_that_is_missing_or_damaged_is_named(build: Path, name: str, text: str | None) -> None:
    path = build / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as caught:
        format_summary(build)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["jf_mean", "j", "baselines", "clips", "speed", "speed.network_fps", "speed.device"])
def test_a_figure_that_is_not_there_is_named(build: Path, key: str) -> None:
    scores = copy.deepcopy(SCORES)
    first, _, second = key.partition(".")
    if second:
        del scores[first][second]
    else:
        del scores[first]
    write_json(build / "evaluation" / "scores.json", scores)
    with pytest.raises(DataError, match=rf"scores\.json: lacks '{key}"):
        format_summary(build)


def test_a_damaged_table_of_frames_is_named(build: Path) -> None:
    path = build / "evaluation" / "frames.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"frames\.parquet: cannot be read as a Parquet table"):
        format_summary(build)
    pd.DataFrame({"clip": ["talk/a"]}).to_parquet(path)
    with pytest.raises(DataError, match=r"frames\.parquet: lacks the columns image; found clip"):
        format_summary(build)
    pd.DataFrame({"image": pd.Series([], dtype="str")}).to_parquet(path)
    with pytest.raises(DataError, match=r"frames\.parquet: holds no frames"):
        format_summary(build)
