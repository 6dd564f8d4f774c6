"""The step that writes the ONNX files: what it leaves, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_profile import SIZE, decided_network, tiny_config

from pdnet import steps
from pdnet.config import load_yaml
from pdnet.data.index import index_clips
from pdnet.data.io import read_image
from pdnet.errors import ConfigError, ExportError
from pdnet.export.config import ParityBounds
from pdnet.export.onnx import Form
from pdnet.files import file_digest
from pdnet.inference.onnx_backend import StreamingBackend
from pdnet.inference.session import Output, PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.steps import parity as agreement
from pdnet.steps.run_record import RunRecord
from pdnet.weights import load_model, save_model

FILES = {"pdnet.onnx", "reference_encoder.onnx", "segmenter.onnx"}


def export(finished: dict[str, Path], out: Path, bounds: Path | None = None, **changes: Any) -> None:
    steps.export_onnx(
        videos=finished["videos"],
        model=finished["train"],
        evaluation=finished["evaluation"],
        out=out,
        config=tiny_config(**changes),
        bounds=bounds,
    )


def test_what_is_left(finished):
    folder = finished["export"]
    assert {path.name for path in folder.iterdir()} == FILES | {".pdnet", "parity.json", "run.json"}
    parity = json.loads((folder / "parity.json").read_text())
    streaming = parity.pop("streaming")
    assert set(streaming) == {*figures(parity), "onnx", "files"}
    cases = [(case["file"], case["size"], case["batch"], case["references"]) for case in parity["cases"]]
    pair, streams = (
        [("pdnet.onnx", SIZE, 1, 1), ("pdnet.onnx", SIZE, 3, 1)],
        [("segmenter.onnx", SIZE, b, n) for b in (1, 3) for n in (1, 2)],
    )
    assert cases == pair + streams
    assert parity["bounds"] == dataclasses.asdict(ParityBounds())
    assert parity["sha256"] == file_digest(folder / "pdnet.onnx")
    assert streaming["files"] == {name: file_digest(folder / name) for name in FILES - {"pdnet.onnx"}}
    for facts in (parity, streaming):
        assert facts["frames"] == 3
        assert 0 <= facts["mean_probability_difference"] <= facts["max_probability_difference"] < 1e-4
        assert facts["mask_agreement"] == pytest.approx(1, abs=1e-3)
        assert facts["onnx"]["jf_mean"] == pytest.approx(parity["torch"]["jf_mean"], abs=5e-4)
    assert 0 < parity["torch"]["jf_mean"] < 1


def figures(parity: dict[str, Any]) -> set[str]:
    return {"frames", "max_probability_difference", "mean_probability_difference", "mask_agreement"} & set(parity)


def test_the_streaming_files_segment_a_clip_as_the_network_does(finished):
    network, model = load_model(finished["train"] / "model.safetensors"), StreamingBackend(finished["export"])
    paths = sorted((finished["videos"] / "Keyframes" / "480p" / "talk" / "c").glob("*.jpg"))
    clip = [read_image(path) for path in paths]
    ours = PortraitSession(TorchBackend(network, size=SIZE), reference=clip[0])
    theirs = PortraitSession(model, reference=clip[0])
    for frame in clip:
        np.testing.assert_allclose(theirs.step(frame).probability, ours.step(frame).probability, rtol=0, atol=1e-4)


def test_streaming_files_that_compute_something_else_are_refused(finished, tmp_path, monkeypatch):
    """The network's files, to which `wrong` adds an error; they are copied, as an export takes seconds."""
    module, wrong = sys.modules["pdnet.steps.export_onnx"], {"error": 0.0}

    class Damaged(StreamingBackend):
        def segment(self, *arguments: Any) -> Any:
            output = super().segment(*arguments)
            return output._replace(probability=output.probability + wrong["error"])

    def copy_pair(network: Any, path: Path, form: Form) -> None:
        path.write_bytes((finished["export"] / path.name).read_bytes())

    def copy_streaming(network: Any, folder: Path, form: Form) -> None:
        for name in FILES - {"pdnet.onnx"}:
            copy_pair(network, folder / name, form)

    monkeypatch.setattr(module, "export_pair", copy_pair)
    monkeypatch.setattr(module, "export_streaming", copy_streaming)
    monkeypatch.setattr(module, "StreamingBackend", Damaged)
    wrong["error"] = 0.01
    with pytest.raises(ExportError) as refused:
        export(finished, tmp_path / "out")
    assert str(refused.value).startswith(
        "the fp32 streaming ONNX pair is not the same model: max probability difference 0.01, allowed 0.001; "
        "mean probability difference 0.01, allowed 0.0001"
    )
    table = refused.value.table.splitlines()
    assert table[0].split() == ["file", "size", "batch", "references", "largest", "mean", "masks", "agree"]
    ways = [(str(SIZE), batch, references) for batch in "13" for references in "12"]
    assert [tuple(line.split()[:4]) for line in table[1:]] == [("segmenter.onnx", *way) for way in ways]
    wrong["error"] = -0.7
    bounds = tmp_path / "bounds.yaml"
    loose = {"max_probability_difference": 1, "mean_probability_difference": 1, "min_mask_agreement": 0}
    bounds.write_text(yaml.safe_dump({"fp32": loose | {"max_jf_difference": 0.05}}))
    with pytest.raises(ExportError, match=r"not the same model: J&F [\d.]+ instead of [\d.]+, allowed 0\.05 apart$"):
        export(finished, tmp_path / "out", bounds)
    assert list(tmp_path.iterdir()) == [bounds]


ANYTHING = {
    "max_probability_difference": 1,
    "mean_probability_difference": 1,
    "min_mask_agreement": 0,
    "max_jf_difference": 100,
}


def test_other_precisions_have_folders_of_their_own(finished, tmp_path):
    """An untrained network overreacts to rounding: what is allowed of a trained one is no bound for it."""
    bounds = tmp_path / "bounds.yaml"
    bounds.write_text(yaml.safe_dump({"fp16": ANYTHING, "int8": ANYTHING}))
    out = tmp_path / "out"
    export(finished, out, bounds, export={"precisions": ["fp16", "int8"], "calibration_frames": 4})
    assert {path.name for path in out.iterdir()} == FILES | {".pdnet", "parity.json", "run.json", "fp16", "int8"}
    parity = json.loads((out / "parity.json").read_text())
    assert set(parity["precisions"]) == {"fp16", "int8"}
    for precision, facts in parity["precisions"].items():
        assert {path.name for path in (out / precision).iterdir()} == FILES
        assert facts["pair"]["sha256"] == file_digest(out / precision / "pdnet.onnx")
        streams = {name: file_digest(out / precision / name) for name in FILES - {"pdnet.onnx"}}
        assert facts["streaming"]["files"] == streams
        assert [case["batch"] for case in facts["cases"]] == [1, 3, 1, 1, 3, 3]
        for way in ("pair", "streaming"):
            assert 1e-6 < facts[way]["max_probability_difference"] <= 1
            assert 0 < facts[way]["onnx"]["jf_mean"] < 1
    assert parity["precisions"]["int8"]["float_layers"] == []
    assert parity["bounds"]["int8"] == ANYTHING


@pytest.mark.slow
def test_layers_go_back_to_float_until_the_bounds_hold(finished, tmp_path, caplog):
    bounds, out = tmp_path / "bounds.yaml", tmp_path / "out"
    changes = {"precisions": ["int8"], "calibration_frames": 4}
    bounds.write_text(yaml.safe_dump({"int8": ANYTHING | {"mean_probability_difference": 0.026}}))
    with caplog.at_level("INFO", logger="pdnet.steps.export_onnx"):
        export(finished, out, bounds, export=changes)
    (facts,) = json.loads((out / "parity.json").read_text())["precisions"].values()
    assert 0 < len(facts["float_layers"]) < 46
    assert f"{len(facts['float_layers'])} of 46 convolutions stay in float32" in caplog.text
    bounds.write_text(yaml.safe_dump({"int8": ANYTHING | {"mean_probability_difference": 0.0}}))
    with pytest.raises(ExportError, match=r"^the int8 ONNX file is not the same model: mean probability difference"):
        export(finished, tmp_path / "other", bounds, export=changes)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "fp32: {max_jf_difference: 0.1}",
            "fp32: lacks max_probability_difference, mean_probability_difference, min_mask_agreement",
        ),
        ("fp64: {}", "unknown key 'fp64'"),
        ("int8: " + str(ANYTHING | {"min_mask_agreement": 2}), "min_mask_agreement: 2.0, expected 0 to 1"),
        (None, "no such file; expected the bounds of parity as YAML"),
    ],
)
def test_bounds_that_cannot_be_read_are_said_before_any_work(finished, tmp_path, text, said):
    bounds = tmp_path / "bounds.yaml"
    if text is not None:
        bounds.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        export(finished, tmp_path / "out", bounds)


def test_the_bounds_of_the_file_are_those_that_hold_without_it():
    path = Path(__file__).parents[2] / "configs" / "export.yaml"
    assert load_yaml(ParityBounds, path, what="bounds") == ParityBounds()


def test_a_network_without_ipda_has_the_pair_alone(finished, tmp_path):
    config, folders = tiny_config(model={"ipda": False}), dict(finished)
    folders["train"], folders["evaluation"] = tmp_path / "train", tmp_path / "evaluation"
    folders["train"].mkdir()
    save_model(folders["train"] / "model.safetensors", decided_network(ipda=False), {"size": SIZE})
    RunRecord("train", config, data={"videos": finished["videos"]}).write(folders["train"])
    steps.evaluate(videos=finished["videos"], model=folders["train"], out=folders["evaluation"], config=config)
    export(folders, tmp_path / "out", model={"ipda": False})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".pdnet", "pdnet.onnx", "parity.json", "run.json"}
    assert "streaming" not in json.loads((tmp_path / "out" / "parity.json").read_text())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_number_is_no_agreement(place: int) -> None:
    """As halves that overflow give it: the comparison in Python is False whichever way it is asked."""
    fine = {"frames": 1, "max_probability_difference": 0.0, "mean_probability_difference": 0.0, "mask_agreement": 1.0}
    rows = [fine | dict.fromkeys(agreement.AGREEMENT[:2], np.nan) if n == place else fine for n in range(3)]
    assert not agreement.excess([fine] * 3, ParityBounds().fp32)
    lines = agreement.excess(rows, ParityBounds().fp32)
    assert [line.partition(",")[0] for line in lines] == [
        "max probability difference nan",
        "mean probability difference nan",
    ]


class Overflowing:
    """A backend that answers with no number for some pixels of the second frame."""

    name, raw, size, references = "overflowing", False, 32, 1

    def __init__(self, at: int) -> None:
        self._calls, self._at = 0, at

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (image,)

    def segment(self, image: torch.Tensor, references: object) -> Output:
        probability = torch.full((len(image), 1, 32, 32), 0.7)
        probability[0, 0, 0, 0] = torch.nan if self._calls == self._at else 0.7
        self._calls += 1
        return Output(probability)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_pixel_that_is_no_number_is_found(portraits: Path, at: int) -> None:
    frames = index_clips(portraits, splits=("val",))
    rows = agreement.compare(
        Overflowing(-1), Overflowing(at), frames, count=3, cases=[agreement.Case(32, 1, 1)], file="graph"
    )
    assert len(agreement.excess(rows, ParityBounds().fp32)) == 2
