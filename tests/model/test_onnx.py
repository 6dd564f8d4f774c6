"""The exported graph is the same function as the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from small_networks import images, small_network

import pdnet
from pdnet.errors import ExportError
from pdnet.export.onnx import PairGraph, export_pair
from pdnet.inference.onnx_session import OnnxModel, OnnxSession
from pdnet.inference.session import PortraitSession, prepare
from pdnet.model import PDNet

SIZE = 64
METADATA = {"pdnet": "0.1.0", "preprocessing": "RGB, ImageNet mean and standard deviation", "data_md5": "None"}
KINDS = {
    "one reference": {},
    "without IPDA": {"ipda": False},
    "two references": {"references": 2, "assembly": "residual", "attention_scale": "sqrt_dim"},
}


@pytest.fixture(scope="module", params=list(KINDS))
def exported(request, tmp_path_factory) -> tuple[PDNet, Path]:
    """A network and its file; an export takes seconds."""
    network = small_network(width=16, **KINDS[request.param])
    path = tmp_path_factory.mktemp("export") / "pdnet.onnx"
    export_pair(network, path, size=SIZE, opset=18, metadata=METADATA)
    return network, path


def test_runtime_agrees_with_torch(exported):
    network, path = exported
    model = OnnxModel(path)
    N = network.config.references
    assert (model.size, model.references) == (SIZE, N)
    for batch in (1, 3):
        target = images(batch, SIZE, SIZE, seed=1)
        reference = images(batch, SIZE, SIZE, seed=2) if N == 1 else images(batch, N, SIZE, SIZE, seed=2)
        with torch.no_grad():
            wanted = PairGraph(network)(target, reference)
        assert wanted.std() > 0.01, "the case says nothing where all pixels are alike"
        found = model.probability(target, reference)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_file_is_valid_and_says_what_it_is(exported):
    network, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == METADATA
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 18

    def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    N = network.config.references
    assert {value.name: shape_of(value) for value in model.graph.input} == {
        "target": ["batch", 3, SIZE, SIZE],
        "reference": ["batch", 3, SIZE, SIZE] if N == 1 else ["batch", N, 3, SIZE, SIZE],
    }
    assert {value.name: shape_of(value) for value in model.graph.output} == {"probability": ["batch", 1, SIZE, SIZE]}
    assert not (path.parent / f"{path.name}.data").exists(), "the weights belong into the file"
    assert list(path.parent.iterdir()) == [path]


def test_the_file_does_not_name_the_machine_that_made_it(exported):
    _, path = exported
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert b'File "' not in content
    assert str(Path(pdnet.__file__).parent).encode() not in content


def test_a_clip_through_the_file_equals_the_clip_through_the_network(exported):
    network, path = exported
    clip = np.random.default_rng(0).integers(0, 256, (8, 40, 70, 3), dtype=np.uint8)
    ours = PortraitSession(prepare(network, torch.device("cpu")), size=SIZE, reference=clip[0])
    theirs = OnnxSession(OnnxModel(path), reference=clip[0])
    for frame in clip:
        np.testing.assert_allclose(theirs.step(frame).probability, ours.step(frame).probability, rtol=0, atol=1e-4)


def refusal(path: Path) -> str:
    with pytest.raises(ExportError) as caught:
        OnnxModel(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_missing_file(tmp_path):
    assert refusal(tmp_path / "absent.onnx").startswith("no such file; expected an ONNX file")


@pytest.mark.parametrize("kept", [0, 1000, -1000])
def test_damaged_file(exported, tmp_path, kept):
    path = tmp_path / "half.onnx"
    path.write_bytes(exported[1].read_bytes()[:kept])
    assert refusal(path).startswith("cannot be opened by ONNX Runtime (")


def test_no_onnx_file(tmp_path):
    path = tmp_path / "notes.onnx"
    path.write_text("not a graph\n")
    assert refusal(path).startswith("cannot be opened by ONNX Runtime (")


def save_graph(path: Path, names: list[str], shape: list[int | str]) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("Sum", names, ["sum"])], "graph", values, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_a_graph_of_another_network(tmp_path):
    path = tmp_path / "other.onnx"
    save_graph(path, ["image"], ["batch", 3, 8, 8])
    assert refusal(path).startswith("inputs image")
    save_graph(path, ["target", "reference"], ["batch", 3, 8, 8])
    assert refusal(path).endswith("outputs sum; expected target and reference, and probability")


def test_an_opset_that_cannot_be_had_writes_nothing(tmp_path):
    path = tmp_path / "pdnet.onnx"
    path.write_bytes(b"the old file")
    with pytest.raises(ExportError) as caught:
        export_pair(small_network(ipda=False), path, size=SIZE, opset=2, metadata={})
    assert str(caught.value) == f"{path}: the network cannot be written with opset 2, only with 18"
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]
