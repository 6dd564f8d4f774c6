"""The exported graphs are the same function as the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from small_networks import images, small_network

import pdnet
from pdnet.errors import ExportError
from pdnet.export.onnx import REFERENCE_ENCODER, SEGMENTER, Form, PairGraph, export_pair, export_streaming
from pdnet.inference.onnx_backend import OnnxModel, PairBackend, StreamingBackend
from pdnet.inference.session import PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.model import PDNet, ReferenceFeatures

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
    export_pair(network, path, Form(SIZE, 18, metadata=METADATA))
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


def shapes(values) -> dict[str, list[int | str]]:
    """Names and axes of float32 inputs or outputs."""
    assert all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in values)
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values
    }


def test_file_is_valid_and_says_what_it_is(exported):
    network, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == METADATA | {
        "size": str(SIZE),
        "references": str(network.config.references),
        "precision": "fp32",
    }
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 18
    N = network.config.references
    assert shapes(model.graph.input) == {
        "target": ["batch", 3, SIZE, SIZE],
        "reference": ["batch", 3, SIZE, SIZE] if N == 1 else ["batch", N, 3, SIZE, SIZE],
    }
    assert shapes(model.graph.output) == {"probability": ["batch", 1, SIZE, SIZE]}
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
    ours = PortraitSession(TorchBackend(network, size=SIZE), reference=clip[0])
    theirs = PortraitSession(PairBackend(OnnxModel(path)), reference=clip[0])
    for frame in clip:
        np.testing.assert_allclose(theirs.step(frame).probability, ours.step(frame).probability, rtol=0, atol=1e-4)


# The streaming pair


@pytest.fixture(scope="module", params=["one reference", "two references"])
def streaming(request, tmp_path_factory) -> tuple[PDNet, Path]:
    """A network and the folder of its two files."""
    network = small_network(width=16, **KINDS[request.param])
    folder = tmp_path_factory.mktemp("streaming")
    export_streaming(network, folder, Form(SIZE, 18, metadata=METADATA))
    return network, folder


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_streaming_agrees_with_torch_for_any_number_of_references(streaming, count, batch):
    network, folder = streaming
    model = StreamingBackend(folder)
    assert (model.size, model.references) == (SIZE, network.config.references)
    target = images(batch, SIZE, SIZE, seed=1)
    references = [images(batch, SIZE, SIZE, seed=2 + n) for n in range(count)]
    with torch.no_grad():
        encoded = [network.encode_reference(image) for image in references]
        output = network.segment(target, ReferenceFeatures.concatenate(encoded), as_reference=True)
        other = network.segment(target, encoded[-1]).logits.sigmoid()
    wanted = output.logits.sigmoid()
    assert wanted.std() > 0.01, "the case says nothing where all pixels are alike"
    assert count == 1 or (wanted - other).abs().max() > 1e-3, "... or where the references do not matter"
    features = [model.encode(image) for image in references]
    for ours, (key, value) in zip(encoded, features, strict=True):
        torch.testing.assert_close(key[:, 0], ours.key, rtol=0, atol=1e-4)
        torch.testing.assert_close(value[:, 0], ours.value, rtol=0, atol=1e-4)
    found, saliency, part_prob, own = model.segment(target, features)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(saliency, output.maps.saliency_logits.sigmoid(), rtol=0, atol=1e-4)
    torch.testing.assert_close(part_prob, output.maps.part_logits.softmax(1), rtol=0, atol=1e-4)
    assert (own is None) == (network.config.references == 1)
    if own is not None:
        again = model.encode(target)
        for ours, theirs, encoded_again in zip(output.as_reference[:2], own, again, strict=True):
            torch.testing.assert_close(theirs[:, 0], ours, rtol=0, atol=1e-4)
            torch.testing.assert_close(theirs, encoded_again, rtol=0, atol=1e-4)
    shared = [tuple(x[:1] for x in reference) for reference in features]  # of a batch of one, for all
    alone = model.segment(target[:1], shared).probability
    torch.testing.assert_close(model.segment(target, shared).probability[:1], alone, rtol=0, atol=1e-5)


def test_streaming_files_are_valid_and_say_what_they_are(streaming):
    network, folder = streaming
    assert {path.name for path in folder.iterdir()} == {REFERENCE_ENCODER, SEGMENTER}
    encoder, segmenter = (onnx.load(folder / name) for name in (REFERENCE_ENCODER, SEGMENTER))
    for model in (encoder, segmenter):
        onnx.checker.check_model(model, full_check=True)
        facts = {entry.key: entry.value for entry in model.metadata_props}
        own = {"size": str(SIZE), "references": str(network.config.references), "precision": "fp32"}
        assert facts == METADATA | own
        assert {opset.domain: opset.version for opset in model.opset_import}[""] == 18
    image, tokens = {"image": ["batch", 3, SIZE, SIZE]}, [3, (SIZE // 16) ** 2, 4]
    assert shapes(encoder.graph.input) == image
    assert shapes(encoder.graph.output) == {name: ["batch", 1, *tokens] for name in ("key", "value")}
    features = {name: ["batch", "references", *tokens] for name in ("key", "value")}
    assert shapes(segmenter.graph.input) == image | features
    side = SIZE // 16
    wanted = {"probability": ["batch", 1, SIZE, SIZE]}
    wanted |= {"saliency": ["batch", 1, side, side], "part_prob": ["batch", 3, side, side]}
    if network.config.references > 1:
        wanted |= {name: ["batch", 1, *tokens] for name in ("own_key", "own_value")}
    assert shapes(segmenter.graph.output) == wanted
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    for trace in (b"site-packages", b'File "', str(Path(pdnet.__file__).parent).encode()):
        assert trace not in content


@pytest.mark.parametrize("streaming", ["one reference"], indirect=True)
def test_the_same_network_gives_the_same_streaming_files(streaming, tmp_path):
    network, folder = streaming
    export_streaming(network, tmp_path, Form(SIZE, 18, metadata=METADATA))
    for name in (REFERENCE_ENCODER, SEGMENTER):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_network_that_refers_to_nothing_has_no_streaming_pair(tmp_path):
    with pytest.raises(ExportError, match=r"a network without IPDA has no features of a reference to stream with$"):
        export_streaming(small_network(ipda=False), tmp_path, Form(SIZE, 18))
    assert list(tmp_path.iterdir()) == []


def test_streaming_files_in_each_others_place(streaming, tmp_path):
    _, folder = streaming
    encoder, segmenter = tmp_path / REFERENCE_ENCODER, tmp_path / SEGMENTER
    shutil.copyfile(folder / SEGMENTER, encoder)
    with pytest.raises(ExportError) as caught:
        StreamingBackend(tmp_path)
    assert str(caught.value).startswith(f"{encoder}: inputs image, key, value and outputs probability")
    assert str(caught.value).endswith("; expected image, and key and value")
    shutil.copyfile(folder / REFERENCE_ENCODER, encoder)
    with pytest.raises(ExportError, match=r"no such file; expected an ONNX file of `pdnet export onnx`$"):
        StreamingBackend(tmp_path)
    shutil.copyfile(folder / REFERENCE_ENCODER, segmenter)
    with pytest.raises(ExportError) as caught:
        StreamingBackend(tmp_path)
    expected = "inputs image and outputs key, value; expected image and key and value, and probability"
    assert str(caught.value) == f"{segmenter}: {expected}"
    model = onnx.load(folder / SEGMENTER)
    del model.metadata_props[:]
    onnx.save(model, segmenter)
    with pytest.raises(ExportError, match=r"does not say its 'references'; expected a number as metadata$"):
        StreamingBackend(tmp_path)


# Files that are not ours


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
        export_pair(small_network(ipda=False), path, Form(SIZE, 2))
    assert str(caught.value) == f"{path}: the network cannot be written with opset 2, only with 18"
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]
