"""Folders of masks in, tables out: what each protocol counts, and what a user is told."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pdnet.errors import ConfigError, DataError
from pdnet.evaluation.scoring import FIGURES, RULES, format_table, score_folders, summarise
from pdnet.files import read_json, write_json
from pdnet.metrics import frame_scores

HEIGHT, WIDTH = 12, 20


def box(left: int, right: int) -> np.ndarray:
    """A full-height box: two of them have J in whole columns."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[:, left:right] = 1
    return mask


def save(path: Path, levels: np.ndarray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(levels.astype(np.uint8))
    if palette:
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    image.save(path)


def save_clip(folder: Path, masks: list[np.ndarray], *, value: int = 255, palette: bool = False) -> None:
    for number, mask in enumerate(masks):
        save(folder / f"{number:05d}.png", mask * value, palette=palette)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One clip of four frames with J = 1, 1/2, 1/4, 0."""
    predictions, annotations = tmp_path / "predictions", tmp_path / "annotations"
    save_clip(annotations / "news" / "anchor", [box(0, 8)] * 4)
    save_clip(predictions / "news" / "anchor", [box(0, 8), box(0, 4), box(0, 2), box(10, 18)])
    return predictions, annotations


def shared(*parts: str) -> Path:
    root = os.environ.get("PDNET_SHARED")
    if not root:
        pytest.skip("PDNET_SHARED is not set: the data of known scores is not at hand")
    return Path(root, *parts)


def test_scores_of_a_clip(folders):
    table = score_folders(*folders)
    assert table.frames["clip"].unique().tolist() == ["news/anchor"]
    assert table.frames["frame"].tolist() == ["00000", "00001", "00002", "00003"]
    assert table.frames["j"].tolist() == [1, 0.5, 0.25, 0]
    assert table.frames["f"].tolist() == [
        frame_scores(box(*p), box(0, 8)).f for p in [(0, 8), (0, 4), (0, 2), (10, 18)]
    ]
    assert table.summary.clips["frames"].tolist() == [2]
    assert table.summary.dataset["j_mean"] == 0.375
    assert table.summary.dataset["j_decay"] == 0.25
    assert table.summary.dataset["jf_mean"] == (0.375 + table.summary.dataset["f_mean"]) / 2
    assert table.all_frames.dataset["j_mean"] == 1.75 / 4
    assert table.all_frames.dataset["j_recall"] == 0.25
    assert table.notes == ()


@pytest.mark.parametrize(("protocol", "frames"), [("mvps", 2), ("davis2016", 2), ("davis2017", 4), ("all-frames", 4)])
def test_frames_that_each_protocol_counts(folders, protocol, frames):
    predictions, annotations = folders
    save_clip(annotations / "news" / "anchor", [box(0, 8)] * 4, value=1, palette=True)
    table = score_folders(predictions, annotations, protocol=protocol)
    assert table.summary.clips["frames"].tolist() == [frames]
    assert table.summary.dataset["j_mean"] == (0.375 if frames == 2 else 1.75 / 4)
    assert table.all_frames.dataset["j_mean"] == 1.75 / 4


@pytest.mark.parametrize("layout", ["", "clip", "scenario/clip", "a/b/c/clip"])
def test_any_nesting(tmp_path, layout):
    for root in ("predictions", "annotations"):
        save_clip(tmp_path / root / layout, [box(0, 8)] * 3)
    table = score_folders(tmp_path / "predictions", tmp_path / "annotations")
    assert table.summary.clips["clip"].tolist() == [layout or "annotations"]
    assert table.summary.dataset["jf_mean"] == 1


def test_the_data_set_is_a_mean_over_clips(folders):
    predictions, annotations = folders
    save_clip(annotations / "talk" / "long", [box(2, 12)] * 9)
    save_clip(predictions / "talk" / "long", [box(2, 12)] * 9)
    table = score_folders(predictions, annotations)
    assert table.summary.clips["clip"].tolist() == ["news/anchor", "talk/long"]
    assert table.summary.clips["frames"].tolist() == [2, 7]
    assert table.summary.dataset["j_mean"] == (0.375 + 1) / 2


@pytest.mark.parametrize(
    ("value", "palette"), [(255, False), (1, False), (38, False), (1, True), (38, True), (255, True)]
)
def test_binary_masks_of_any_value(folders, value, palette):
    predictions, annotations = folders
    clip = [box(0, 8), box(0, 4), box(0, 2), box(10, 18)]
    save_clip(predictions / "news" / "anchor", clip, value=value, palette=palette)
    assert score_folders(predictions, annotations).frames["j"].tolist() == [1, 0.5, 0.25, 0]


def test_empty_masks(tmp_path):
    save_clip(tmp_path / "p" / "c", [box(0, 0), box(0, 0), box(0, 4)])
    save_clip(tmp_path / "a" / "c", [box(0, 0), box(0, 4), box(0, 0)])
    table = score_folders(tmp_path / "p", tmp_path / "a", protocol="all-frames")
    assert table.frames[["j", "f"]].to_numpy().tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_threshold_is_inclusive(tmp_path):
    levels = np.zeros((HEIGHT, WIDTH))
    levels[:, :4], levels[:, 4:8] = 128, 127
    save_clip(tmp_path / "a", [box(0, 8)] * 3)
    save_clip(tmp_path / "p", [levels] * 3, value=1)
    assert score_folders(tmp_path / "p", tmp_path / "a", threshold=128).summary.dataset["j_mean"] == 0.5
    assert score_folders(tmp_path / "p", tmp_path / "a", threshold=127).summary.dataset["j_mean"] == 1
    table = score_folders(tmp_path / "p", tmp_path / "a", threshold=129)
    assert table.summary.dataset["j_mean"] == 0
    assert table.notes == ("no predicted value reaches the threshold 129; the largest is 128",)
    with pytest.raises(DataError, match=r"00000.png: not a binary mask, it holds several values .* --threshold"):
        score_folders(tmp_path / "p", tmp_path / "a")


def test_a_faint_probability_map_does_not_pass_for_a_binary_mask(folders):
    predictions, annotations = folders
    save(predictions / "news" / "anchor" / "00002.png", box(0, 8) * 12)
    with pytest.raises(DataError, match=r"00002.png: its portrait value is 12, .* before it 255; pass --threshold"):
        score_folders(predictions, annotations)


@pytest.mark.parametrize("threshold", [-1, 0, 256])
def test_thresholds_that_are_none(folders, threshold):
    with pytest.raises(ConfigError, match=f"threshold {threshold}: expected 1 to 255"):
        score_folders(*folders, threshold=threshold)


@pytest.mark.parametrize(("protocol", "expected"), [("mvps", 8 / 16), ("davis2017", 8 / 12)])
def test_objects_are_joined_and_void_is_left_out_where_the_protocol_has_it(tmp_path, protocol, expected):
    labels = box(0, 6) + box(6, 12) * 2
    labels[:, 12:16] = 255
    save_clip(tmp_path / "a", [labels] * 3, value=1, palette=True)
    save_clip(tmp_path / "p", [box(0, 8)] * 3)
    table = score_folders(tmp_path / "p", tmp_path / "a", protocol=protocol)
    assert table.frames["j"].tolist() == [expected] * 3
    void = labels == 255 if protocol == "davis2017" else None
    assert table.frames["f"].tolist() == [frame_scores(box(0, 8), labels, void).f] * 3


def test_binary_annotations_under_davis2017(folders):
    with pytest.raises(DataError, match=r"news/anchor holds 255 and no object; .* use another protocol"):
        score_folders(*folders, protocol="davis2017")


def test_grey_annotations_with_several_values(folders):
    predictions, annotations = folders
    save(annotations / "news" / "anchor" / "00001.png", box(0, 8) * 100 + box(4, 6) * 20)
    with pytest.raises(DataError, match=r"annotations/news/anchor/00001.png: not a binary mask.*palette file"):
        score_folders(predictions, annotations)


def test_short_clips_are_left_out_by_name(folders):
    predictions, annotations = folders
    for root in folders:
        save_clip(root / "short", [box(0, 8)] * 2)
    table = score_folders(predictions, annotations)
    assert table.summary.left_out == ("short",)
    assert table.summary.clips["clip"].tolist() == ["news/anchor"]
    assert table.summary.dataset["j_mean"] == 0.375
    assert table.all_frames.dataset["j_mean"] == (1.75 / 4 + 1) / 2
    assert "not in any figure: short" in format_table(table)


def test_only_short_clips(tmp_path):
    for root in ("p", "a"):
        save_clip(tmp_path / root / "short", [box(0, 8)] * 2)
    with pytest.raises(
        DataError, match=r"protocol mvps scores no frame .* no clip has three frames; protocol all-frames"
    ):
        score_folders(tmp_path / "p", tmp_path / "a")
    assert score_folders(tmp_path / "p", tmp_path / "a", protocol="all-frames").summary.dataset["jf_mean"] == 1


def test_predictions_of_other_frames_are_ignored_and_counted(folders):
    predictions, annotations = folders
    save(predictions / "news" / "anchor" / "00000_between.png", box(0, 1))
    save_clip(predictions / "news" / "another clip", [box(0, 1)])
    table = score_folders(predictions, annotations)
    assert len(table.frames) == 4
    assert table.notes == ("predicted frames without an annotation, not scored: 1",)


def test_missing_predictions(folders):
    predictions, annotations = folders
    for stem in ("00001", "00003"):
        (predictions / "news" / "anchor" / f"{stem}.png").unlink()
    with pytest.raises(
        DataError, match=r"predictions: 2 of 4 annotated frames have no prediction, first: news/anchor/00001"
    ):
        score_folders(predictions, annotations)


def test_missing_folders(folders, tmp_path):
    predictions, annotations = folders
    for clip in ("talk/one", "talk/two"):
        save_clip(annotations / clip, [box(0, 8)])
    with pytest.raises(DataError, match=r"predictions: 2 of 3 annotated clips have no folder .* first: talk/one"):
        score_folders(predictions, annotations)
    with pytest.raises(DataError, match="absent: no such folder"):
        score_folders(tmp_path / "absent", annotations)
    with pytest.raises(DataError, match="absent: no such folder"):
        score_folders(predictions, tmp_path / "absent")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="bare: no PNG masks"):
        score_folders(predictions, tmp_path / "bare")


def test_masks_beside_clip_folders(folders):
    predictions, annotations = folders
    save(annotations / "stray.png", box(0, 8))
    with pytest.raises(DataError, match=r"both in the folder itself and in folders below it, such as news/anchor"):
        score_folders(predictions, annotations)


def test_sizes_that_differ(folders):
    predictions, annotations = folders
    save(predictions / "news" / "anchor" / "00002.png", np.zeros((HEIGHT, WIDTH + 1)))
    expected = r"predictions/news/anchor/00002.png: the mask is 21x12, expected 20x12, the size of .*annotations"
    with pytest.raises(DataError, match=expected):
        score_folders(predictions, annotations)


@pytest.mark.parametrize("root", [0, 1])
@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_files_that_cannot_be_read(folders, root, content):
    path = folders[root] / "news" / "anchor" / "00001.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"00001\.png"):
        score_folders(*folders)


def test_an_unknown_protocol(folders):
    with pytest.raises(ConfigError, match="'davis': expected one of mvps, davis2016, davis2017, all-frames"):
        score_folders(*folders, protocol="davis")


def test_json_keeps_full_precision(folders, tmp_path):
    table = score_folders(*folders)
    write_json(tmp_path / "scores.json", table.to_json())
    stored = read_json(tmp_path / "scores.json")
    assert stored["protocol"] == "mvps"
    assert stored["rule"] == RULES["mvps"].text
    assert stored["dataset"] == table.summary.dataset
    assert stored["dataset_all_frames"] == table.all_frames.dataset
    assert pd.DataFrame(stored["frames"]).equals(table.frames)
    assert stored["clips"] == [{"clip": "news/anchor", "frames": 2, **table.summary.dataset}]


def test_the_table_shows_percent_with_one_decimal(folders):
    lines = format_table(score_folders(*folders)).splitlines()
    clip = next(line for line in lines if line.startswith("news/anchor"))
    assert clip.split()[1:6] == ["2", "18.8", "37.5", "0.0", "25.0"]
    everything = next(line for line in lines if line.startswith("with all frames"))
    assert everything.split()[3:6] == ["4", "34.4", "43.8"]
    assert lines[-1].startswith("protocol mvps: first and last annotated frame of a clip left out")
    assert len({len(line) for line in lines if line.startswith(("news", "mean", "with"))}) == 1


def test_no_minus_zero(tmp_path):
    rising = [box(0, 8)] * 4
    save_clip(tmp_path / "a", rising)
    save_clip(tmp_path / "p", rising)
    table = score_folders(tmp_path / "p", tmp_path / "a")
    table.summary.dataset["j_decay"] = -0.0004
    assert "-0.0" not in format_table(table)


def frames_of(scores: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [(clip, f"{i:05d}", j, j / 2) for clip, values in scores.items() for i, j in enumerate(values)],
        columns=["clip", "frame", "j", "f"],
    )


def test_summarise_a_table_of_frames():
    summary = summarise(frames_of({"b": [0.0, 0.8, 0.4, 0.0], "a": [0.0, 1.0, 0.0]}), "mvps")
    assert summary.clips["clip"].tolist() == ["b", "a"]
    assert tuple(summary.clips.columns) == ("clip", "frames", *FIGURES)
    expected = [(0.6 + 0.3) / 2, 0.6, 0.5, 0.4, 0.3, 0.0, 0.2]
    assert summary.clips.loc[0, list(FIGURES)].tolist() == pytest.approx(expected)
    assert summary.dataset["j_mean"] == pytest.approx((0.6 + 1.0) / 2)
    assert summary.dataset["f_decay"] == pytest.approx(0.1)
    assert not any(math.isnan(value) for value in summary.dataset.values())


def test_summarise_carries_the_scenario():
    frames = frames_of({"news/a": [0.5] * 3, "talk/b": [0.5] * 3})
    frames["scenario"] = frames["clip"].str.split("/").str[0]
    assert summarise(frames, "mvps").clips["scenario"].tolist() == ["news", "talk"]


def test_summarise_nothing():
    with pytest.raises(DataError, match="there are no frames"):
        summarise(frames_of({}), "all-frames")


@pytest.mark.parametrize(("key", "protocol"), [("skip_first_and_last", "mvps"), ("all_frames", "all-frames")])
def test_golden_data_set_of_the_original_code(key, protocol):
    folder = shared("reference", "davis_golden")
    golden = json.loads((folder / "mini_dataset.json").read_text(encoding="utf-8"))[key]
    rows = []
    with np.load(folder / "mini_dataset.npz") as stored:
        for clip in golden["per_sequence"]:
            for number, pair in enumerate(zip(stored[f"pred_{clip}"], stored[f"gt_{clip}"], strict=True)):
                rows.append((clip, f"{number:05d}", *frame_scores(*pair)))
    summary = summarise(pd.DataFrame(rows, columns=["clip", "frame", "j", "f"]), protocol)
    for clip in summary.clips.to_dict("records"):
        for name, value in golden["per_sequence"][clip["clip"]].items():
            assert clip[name.lower()] == pytest.approx(value, abs=1e-12)
    for name, value in golden["global"].items():
        assert summary.dataset[name.lower().replace("j&f", "jf")] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("protocol", ["mvps", "davis2016"])
def test_known_scores_of_real_predictions(protocol):
    known = read_json(shared("data", "reference_scores", "osvos_dance-twirl.json"))
    table = score_folders(
        shared("data", "model_made_masks", "osvos", "dance-twirl"),
        shared("data", "DAVIS", "Annotations", "480p", "dance-twirl"),
        protocol=protocol,
    )
    assert table.frames["frame"].tolist() == known["frames"]
    assert table.frames["j"].tolist() == pytest.approx(known["J"], abs=1e-12)
    assert table.frames["f"].tolist() == pytest.approx(known["F"], abs=1e-12)
    assert table.summary.dataset["j_mean"] == pytest.approx(known["J_mean_without_first_and_last"], abs=1e-12)
    assert table.summary.dataset["f_mean"] == pytest.approx(known["F_mean_without_first_and_last"], abs=1e-12)
    assert table.all_frames.dataset["j_mean"] == pytest.approx(known["J_mean_all_frames"], abs=1e-12)
    assert table.all_frames.dataset["j_recall"] == known["J_recall_0.5_all_frames"]
