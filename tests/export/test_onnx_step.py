"""The step that writes the ONNX files: what it leaves, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_profile import SIZE, decided_network, tiny_config

from pdnet import steps
from pdnet.data.io import read_image
from pdnet.errors import ExportError
from pdnet.files import file_digest
from pdnet.inference.onnx_backend import StreamingBackend
from pdnet.inference.session import PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.steps.run_record import RunRecord
from pdnet.weights import load_model, save_model

FILES = {"pdnet.onnx", "reference_encoder.onnx", "segmenter.onnx"}


def export(finished: dict[str, Path], out: Path, **changes: Any) -> None:
    steps.export_onnx(
        videos=finished["videos"],
        model=finished["train"],
        evaluation=finished["evaluation"],
        out=out,
        config=tiny_config(**changes),
    )


def test_what_is_left(finished):
    folder = finished["export"]
    assert {path.name for path in folder.iterdir()} == FILES | {".pdnet", "parity.json", "run.json"}
    parity = json.loads((folder / "parity.json").read_text())
    streaming = parity.pop("streaming")
    assert set(streaming) == {*figures(parity), "onnx", "files"}
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

    def copy_pair(network: Any, path: Path, **how: Any) -> None:
        path.write_bytes((finished["export"] / path.name).read_bytes())

    def copy_streaming(network: Any, folder: Path, **how: Any) -> None:
        for name in FILES - {"pdnet.onnx"}:
            copy_pair(network, folder / name)

    monkeypatch.setattr(module, "export_pair", copy_pair)
    monkeypatch.setattr(module, "export_streaming", copy_streaming)
    monkeypatch.setattr(module, "StreamingBackend", Damaged)
    wrong["error"] = 0.01
    with pytest.raises(ExportError, match=r"^the streaming ONNX pair differs from the network by 0\.01 in probability"):
        export(finished, tmp_path / "out")
    wrong["error"] = -0.7
    with pytest.raises(ExportError, match=r"^the streaming ONNX pair scores J&F [\d.]+, the network [\d.]+, allowed"):
        export(finished, tmp_path / "out", export={"max_probability_difference": 1.0})
    assert list(tmp_path.iterdir()) == []


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
