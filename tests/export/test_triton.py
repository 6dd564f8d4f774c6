"""The Triton model repository: read by Triton's own schema, run by ONNX Runtime in the server's place."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from tiny_profile import SIZE, decided_network, tiny_config
from tracking.finished_run import write_finished_run

from pdnet.cli import main
from pdnet.config import config_hash, to_mapping
from pdnet.data.io import read_image
from pdnet.errors import DataError, ExportError
from pdnet.export.onnx import Form, export_streaming
from pdnet.export.triton import MAX_BATCH, write_repository
from pdnet.files import file_digest, write_json
from pdnet.inference.session import PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.tracking import register_model
from pdnet.weights import load_model

NAMES = ("reference_encoder", "segmenter")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKENS = [3, (SIZE // 16) ** 2, 4]
IMAGE = ("image", [3, SIZE, SIZE])
FEATURES = [(name, [-1, *TOKENS]) for name in ("key", "value")]
MAPS = [("saliency", [1, SIZE // 16, SIZE // 16]), ("part_prob", [3, SIZE // 16, SIZE // 16])]


def write_release(folder: Path, export: Path) -> Path:
    """A release, as far as its ONNX files go."""
    folder.mkdir()
    for name in (*(f"{name}.onnx" for name in NAMES), "parity.json"):
        shutil.copyfile(export / name, folder / name)
    write_json(folder / "lineage.json", {"git": {"commit": COMMIT, "dirty": False}})
    return folder


@pytest.fixture(scope="module")
def release(finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("registered") / "release", finished["export"])


@pytest.fixture(scope="module")
def repository(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    write_repository(release, out, model="pdnet", version="3")
    return out


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".pdnet"}


def configuration(path: Path) -> Any:
    """config.pbtxt as the server reads it; refuses an unknown field and a value of another type."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the package 'tritonclient[grpc]'")
    return text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())


def tensors(entries: Any) -> list[tuple[str, list[int]]]:
    return [(entry.name, list(entry.dims)) for entry in entries]


def test_the_layout_is_that_of_a_model_repository(repository: Path, release: Path):
    wanted = {f"{name}/{file}" for name in NAMES for file in ("config.pbtxt", "1/model.onnx")}
    assert files(repository) == wanted | {"README.md"}
    for name in NAMES:
        assert (repository / name / "1" / "model.onnx").read_bytes() == (release / f"{name}.onnx").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_what_triton_expects(repository: Path, name: str):
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the package 'tritonclient[grpc]'")
    found = configuration(repository / name / "config.pbtxt")
    assert (found.name, found.backend, found.max_batch_size) == (name, "onnxruntime", MAX_BATCH)
    assert {entry.data_type for entry in (*found.input, *found.output)} == {schema.TYPE_FP32}
    inputs = [IMAGE] if name == "reference_encoder" else [IMAGE, *FEATURES]
    outputs = (
        [(key, [1, *TOKENS]) for key, _ in FEATURES]
        if name == "reference_encoder"
        else [("probability", [1, SIZE, SIZE]), *MAPS]
    )
    assert tensors(found.input) == inputs
    assert tensors(found.output) == outputs
    assert found.HasField("dynamic_batching")
    (group,) = found.instance_group
    assert (group.kind, group.count) == (schema.ModelInstanceGroup.KIND_GPU, 1)
    told = {key: entry.string_value for key, entry in found.parameters.items()}
    assert told == {
        "pdnet.model": "pdnet",
        "pdnet.version": "3",
        "pdnet.sha256": file_digest(repository / name / "1" / "model.onnx"),
        "pdnet.git_commit": COMMIT,
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_agrees_with_the_graph(repository: Path, name: str):
    """Without the server's schema: its lines, and the tensors of the file."""
    text = (repository / name / "config.pbtxt").read_text()
    assert f'name: "{name}"\n' in text
    pattern = r'\{ name: "(\w+)" data_type: TYPE_FP32 dims: \[ ([-\d, ]+) \] \}'
    told = {key: [int(axis) for axis in dims.split(",")] for key, dims in re.findall(pattern, text)}
    graph = onnx.load(repository / name / "1" / "model.onnx").graph
    values = (*graph.input, *graph.output)
    assert told == {
        value.name: [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim][1:] for value in values
    }
    assert all(value.type.tensor_type.shape.dim[0].dim_param == "batch" for value in values)


# In the place of a server


class Server:
    """The documented part of `tritonclient.http` that the README uses, over ONNX Runtime; checks what a server does."""

    def __init__(self, repository: Path) -> None:
        self.sessions, self.told, self.asked = {}, {}, []
        for name in NAMES:
            path = repository / name / "1" / "model.onnx"
            self.sessions[name] = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            self.told[name] = configuration(repository / name / "config.pbtxt")

    def infer(self, model_name: str, inputs: list[Input]) -> Answer:
        self.asked.append(model_name)
        told = self.told[model_name]
        given = {entry.name: entry for entry in inputs}
        assert set(given) == {entry.name for entry in told.input}
        for entry in told.input:
            kinds = type(told).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
            assert entry.data_type == kinds[f"TYPE_{given[entry.name].datatype}"].number
            batch, *axes = given[entry.name].data.shape
            assert 1 <= batch <= told.max_batch_size
            assert len(axes) == len(entry.dims)
            assert all(wanted in (-1, axis) for wanted, axis in zip(entry.dims, axes, strict=True))
        outputs = [entry.name for entry in told.output]
        values = self.sessions[model_name].run(outputs, {name: entry.data for name, entry in given.items()})
        return Answer(dict(zip(outputs, values, strict=True)))


class Input:
    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.name, self.shape, self.datatype = name, shape, datatype
        self.data = np.empty(0)

    def set_data_from_numpy(self, tensor: np.ndarray) -> None:
        assert tensor.dtype == {"FP32": np.float32, "UINT8": np.uint8}[self.datatype]
        assert list(tensor.shape) == self.shape
        self.data = tensor


class Answer:
    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = values

    def as_numpy(self, name: str) -> np.ndarray:
        return self.values[name]


def client(repository: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the README's code defines, run as it stands."""
    http: Any = types.ModuleType("tritonclient.http")
    http.InferInput, http.InferenceServerClient = Input, lambda url: Server(repository)
    package: Any = types.ModuleType("tritonclient")
    package.http = http
    monkeypatch.setitem(sys.modules, "tritonclient", package)
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.fixture
def clip(finished: dict[str, Path]) -> list[np.ndarray]:
    return [read_image(path) for path in sorted((finished["videos"] / "Keyframes" / "480p" / "talk" / "c").glob("*"))]


def test_what_the_readme_does_gives_the_masks_of_the_network(
    finished: dict[str, Path], repository: Path, clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the package 'tritonclient[grpc]'")
    network = load_model(finished["train"] / "model.safetensors")
    ours = PortraitSession(TorchBackend(network, size=SIZE), reference=clip[0])
    names = client(repository, monkeypatch)
    masks = list(names["segment"](clip))
    assert names["server"].asked == ["reference_encoder", *["segmenter"] * len(clip)]
    for frame, found in zip(clip, masks, strict=True):
        wanted = ours.infer(ours.to_input(frame)).probability[0, 0].numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(
            (found >= 0.5)[abs(wanted - 0.5) > 1e-4], (wanted >= 0.5)[abs(wanted - 0.5) > 1e-4]
        )
    assert 0.02 < np.mean(np.array(masks) >= 0.5) < 0.98
    joined = names["ask"](
        "segmenter",
        image=np.repeat(names["prepare"](clip[1]), 8, 0),
        key=np.zeros((8, 3, *TOKENS), np.float32),
        value=np.zeros((8, 3, *TOKENS), np.float32),
    )
    assert joined.as_numpy("probability").shape == (8, 1, SIZE, SIZE)  # a full batch, three references


def test_the_readme_says_what_goes_in_and_out(repository: Path):
    text = (repository / "README.md").read_text()
    assert text.startswith("# pdnet, version 3, for Triton\n")
    shape = " x ".join(["batch", "references", *map(str, TOKENS)])
    assert f"| `segmenter` | in | `key` | FP32 | {shape} |" in text
    assert f"| `segmenter` | out | `probability` | FP32 | batch x 1 x {SIZE} x {SIZE} |" in text
    assert "own_key" not in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_a_network_of_two_references_hands_out_its_own_features(tmp_path: Path):
    export = tmp_path / "export"
    export.mkdir()
    export_streaming(decided_network(references=2), export, Form(SIZE, 18))
    digests = {f"{name}.onnx": file_digest(export / f"{name}.onnx") for name in NAMES}
    write_json(export / "parity.json", {"streaming": {"files": digests}})
    write_repository(write_release(tmp_path / "release", export), tmp_path / "out", model="pdnet", version="4")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "refers to 2 frames" in text
    assert "| `segmenter` | out | `own_key` | FP32 | batch x 1 x " in text
    found = configuration(tmp_path / "out" / "segmenter" / "config.pbtxt")
    assert tensors(found.output)[1:] == [*MAPS, *((name, [1, *TOKENS]) for name in ("own_key", "own_value"))]


def test_graphs_that_take_frames_of_any_size(
    clip: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the package 'tritonclient[grpc]'")
    export, out = tmp_path / "export", tmp_path / "out"
    export.mkdir()
    export_streaming(decided_network(), export, Form(SIZE, 18, input="frames", any_size=True))
    digests = {f"{name}.onnx": file_digest(export / f"{name}.onnx") for name in NAMES}
    write_json(export / "parity.json", {"streaming": {"files": digests}})
    write_repository(write_release(tmp_path / "release", export), out, model="pdnet", version="5")
    text = (out / "README.md").read_text()
    assert "| `segmenter` | in | `image` | UINT8 | batch x height x width x 3 |" in text
    assert "| `segmenter` | in | `key` | FP32 | batch x references x 3 x tokens x 4 |" in text
    assert "the graphs normalise them" in text
    found = configuration(out / "segmenter" / "config.pbtxt")
    assert found.input[0].data_type == schema.TYPE_UINT8
    assert tensors(found.input) == [("image", [-1, -1, 3]), ("key", [-1, 3, -1, 4]), ("value", [-1, 3, -1, 4])]
    ours = PortraitSession(TorchBackend(decided_network(), size=SIZE), reference=clip[0])
    for frame, mask in zip(clip, client(out, monkeypatch)["segment"](clip), strict=True):
        wanted = ours.infer(ours.to_input(frame)).probability[0, 0].numpy()
        np.testing.assert_allclose(mask, wanted, rtol=0, atol=1e-4)


# The command


def test_a_registered_version_becomes_a_repository(finished, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    folders, config = write_finished_run(tmp_path / "run"), tiny_config()
    shutil.copytree(finished["export"], folders["export"], dirs_exist_ok=True)
    register_model(config=to_mapping(config), config_hash=config_hash(config), **folders, tracking=config.tracking)
    out = tmp_path / "models"
    assert main(["export", "triton", "tiny/1", "--out", str(out)]) == 0
    told = f"{out}: tiny/1 as a Triton model repository; {out / 'README.md'} tells how to serve it\n"
    assert capsys.readouterr().out == told
    for name in NAMES:
        assert (out / name / "1" / "model.onnx").read_bytes() == (finished["export"] / f"{name}.onnx").read_bytes()
        assert '"pdnet.version" value { string_value: "1" }' in (out / name / "config.pbtxt").read_text()
    assert main(["export", "triton", "tiny@champion", "--out", str(tmp_path / "other")]) == 2
    assert "tiny has no alias 'champion'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# Refusals


@pytest.fixture
def damaged(release: Path, tmp_path: Path) -> Path:
    """A copy of the release, to damage."""
    return Path(shutil.copytree(release, tmp_path / "release"))


def refusal(release: Path, kind: type[Exception]) -> str:
    out = release.parent / "models"
    with pytest.raises(kind) as caught:
        write_repository(release, out, model="pdnet", version="3")
    assert not out.exists()
    assert {path.name for path in release.parent.iterdir()} == {"release"}
    return str(caught.value)


def test_a_changed_file_is_refused(damaged: Path):
    path = damaged / "segmenter.onnx"
    model = onnx.load(path)
    model.doc_string = "changed"
    onnx.save(model, path)
    message = refusal(damaged, ExportError)
    assert re.match(
        rf"{re.escape(str(path))}: not the file that was compared with the network: its SHA-256 is ", message
    )


def test_a_missing_file_is_named(damaged: Path):
    (damaged / "reference_encoder.onnx").unlink()
    assert refusal(damaged, DataError).startswith(f"{damaged / 'reference_encoder.onnx'}: no such file; expected ")


def test_a_release_without_a_streaming_pair(damaged: Path):
    facts = json.loads((damaged / "parity.json").read_text())
    write_json(damaged / "parity.json", {key: value for key, value in facts.items() if key != "streaming"})
    message = refusal(damaged, ExportError)
    assert message == "pdnet/3: has no streaming pair; a network without IPDA refers to nothing"


def test_a_folder_that_is_no_release(tmp_path: Path):
    (tmp_path / "release").mkdir()
    assert refusal(tmp_path / "release", DataError) == f"{tmp_path / 'release' / 'lineage.json'}: no such file"


def test_other_files_are_never_replaced(release: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds other files"):
        write_repository(release, tmp_path, model="pdnet", version="3")
    assert files(tmp_path) == {"thesis.txt"}
