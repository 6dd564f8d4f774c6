"""What of the TensorRT export can be tested without TensorRT, and the engine itself where there are library and GPU."""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny_profile import SIZE, tiny_config

from pdnet import steps
from pdnet.config import Config
from pdnet.errors import ConfigError, DataError, ExportError, UnavailableError
from pdnet.export.onnx import INPUTS
from pdnet.export.tensorrt import WORKSPACE_BYTES, TensorRTModel, build_engine, require_tensorrt
from pdnet.files import file_digest
from pdnet.inference.onnx_backend import OnnxModel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAN = b"a plan"


# A module with the builder's part of TensorRT's documented interface, which notes what it is asked for.


class FakeTensorRT(types.ModuleType):
    """`tensorrt`, as far as an engine is built; `error` is what the parser finds, `plan` what the builder makes."""

    __version__ = "11.0.0"
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
    MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    BuilderFlag = enum.Enum("BuilderFlag", ["TF32"])

    class Logger:
        ERROR = "ERROR"

        def __init__(self, min_severity: str) -> None:
            assert min_severity == self.ERROR

    def __init__(self, *, error: str | None = None, plan: bytes | None = PLAN) -> None:
        super().__init__("tensorrt")
        self.error, self.plan = error, plan
        self.builders: list[FakeBuilder] = []

    def Builder(self, logger: Logger) -> FakeBuilder:  # noqa: N802 - TensorRT's name
        assert isinstance(logger, self.Logger)
        self.builders.append(FakeBuilder(self))
        return self.builders[-1]

    def OnnxParser(self, network: FakeNetwork, logger: Logger) -> FakeParser:  # noqa: N802 - TensorRT's name
        assert isinstance(logger, self.Logger)
        return FakeParser(network, self.error)


class FakeBuilder:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt, self.flags, self.config = trt, 0, FakeConfig()

    def create_network(self, flags: int = 0) -> FakeNetwork:
        self.flags = flags
        return FakeNetwork()

    def create_builder_config(self) -> FakeConfig:
        return self.config

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> bytes | None:
        assert network.num_inputs == 2, "the graph was not parsed"
        assert config is self.config
        return self.trt.plan


class FakeNetwork:
    def __init__(self) -> None:
        self.inputs: list[types.SimpleNamespace] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> types.SimpleNamespace:
        return self.inputs[index]


class FakeParser:
    def __init__(self, network: FakeNetwork, error: str | None) -> None:
        self.network, self.error = network, error

    @property
    def num_errors(self) -> int:
        return 0 if self.error is None else 2

    def get_error(self, index: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(desc=lambda: (self.error, "what follows from it")[index])

    def parse(self, model: bytes, path: str | None = None) -> bool:
        for value in onnx.load_from_string(model).graph.input:
            axes = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in value.type.tensor_type.shape.dim]
            self.network.inputs.append(types.SimpleNamespace(name=value.name, shape=axes))
        return self.error is None


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self.shapes[input] = (min, opt, max)


class FakeConfig:
    def __init__(self) -> None:
        self.flags = {FakeTensorRT.BuilderFlag.TF32}
        self.pools: dict[Any, int] = {}
        self.profiles: list[FakeProfile] = []

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def clear_flag(self, flag: Any) -> None:
        self.flags.remove(flag)

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


@pytest.fixture(params=[1, 2])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    """The number of references, and a graph with the inputs and output of such a network: an export takes seconds."""
    references = request.param
    path = tmp_path / "export" / "pdnet.onnx"
    path.parent.mkdir()
    axes = {"target": ["batch", 3, SIZE, SIZE], "reference": ["batch", *[2] * (references - 1), 3, SIZE, SIZE]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in axes.items()]
    output = helper.make_tensor_value_info("probability", TensorProto.FLOAT, axes["target"])
    nodes = [
        helper.make_node("ReduceMean", ["reference"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["target", "mean"], ["probability"]),
    ]
    graph = helper.make_graph(nodes, "pair", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return references, path


# Refusals


def run(root: Path, config: Config) -> None:
    steps.export_tensorrt(
        videos=root / "none", export=root / "none", evaluation=root / "none", out=root / "out", config=config
    )


def test_without_library_and_gpu_it_ends_with_one_line_before_it_reads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError) as caught:
        run(tmp_path, tiny_config(device="cpu"))
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert message.startswith("a TensorRT engine cannot be built here: needs the package 'tensorrt' (")
    assert message.endswith(") and a CUDA device (the device is cpu)")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match=r"needs the package 'tensorrt' \([^)]*\)$"):
        require_tensorrt(CUDA)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT())
    with pytest.raises(UnavailableError, match=r"needs a CUDA device \(the device is cpu\)$"):
        run(tmp_path, tiny_config(device="cpu"))
    assert require_tensorrt(CUDA).__version__ == "11.0.0"


def test_a_package_without_its_libraries_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnavailableError, match=r"'tensorrt' \(libnvinfer\.so\.11: cannot open shared object file\)$"):
        require_tensorrt(CUDA)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_asked_for_and_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="'cuda:0' is not here"):
        run(tmp_path, tiny_config(device="cuda:0"))


def test_the_precisions_are_those_that_an_engine_can_have() -> None:
    assert Config().export.tensorrt_precision == "fp32"
    assert tiny_config(export={"tensorrt_precision": "tf32"}).export.tensorrt_precision == "tf32"
    with pytest.raises(ConfigError, match=r"tensorrt_precision: found 'fp8' .*, expected one of fp32, tf32"):
        tiny_config(export={"tensorrt_precision": "fp8"})


# The building of an engine


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_what_the_builder_is_told(exported: tuple[int, Path], tmp_path: Path, precision: Any) -> None:
    references, path = exported
    trt = FakeTensorRT()
    build_engine(trt, path, tmp_path / "pdnet.engine", precision=precision)
    (builder,) = trt.builders
    assert builder.flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert builder.config.pools == {trt.MemoryPoolType.WORKSPACE: WORKSPACE_BYTES}
    assert (trt.BuilderFlag.TF32 in builder.config.flags) == (precision == "tf32")
    (profile,) = builder.config.profiles
    rest = (3, SIZE, SIZE)
    middle = rest if references == 1 else (references, *rest)
    assert profile.shapes == {
        "target": tuple((batch, *rest) for batch in (1, 1, 8)),
        "reference": tuple((batch, *middle) for batch in (1, 1, 8)),
    }
    assert (tmp_path / "pdnet.engine").read_bytes() == PLAN


def test_a_graph_that_the_parser_refuses_is_its_first_error(exported: tuple[int, Path], tmp_path: Path) -> None:
    trt = FakeTensorRT(error="In node 7 (importGridSample): UNSUPPORTED_NODE\nand more")
    with pytest.raises(ExportError) as caught:
        build_engine(trt, exported[1], tmp_path / "pdnet.engine", precision="fp32")
    reason = "TensorRT 11.0.0 cannot read it (In node 7 (importGridSample): UNSUPPORTED_NODE)"
    assert str(caught.value) == f"{exported[1]}: {reason}"
    assert not (tmp_path / "pdnet.engine").exists()


def test_an_engine_that_cannot_be_built_is_said(exported: tuple[int, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot build an engine"):
        build_engine(FakeTensorRT(plan=None), exported[1], tmp_path / "pdnet.engine", precision="fp32")
    assert not (tmp_path / "pdnet.engine").exists()


# The step: everything but the engine is real, which runs the ONNX file instead


@pytest.fixture
def folders(finished: dict[str, Path]) -> dict[str, Path]:
    """What the step takes."""
    return {name: finished[name] for name in ("videos", "export", "evaluation")}


@pytest.fixture
def stand_in(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A "GPU" on which an engine computes what the ONNX file computes, plus `error`."""
    import pdnet.steps.export_tensorrt  # noqa: F401 - the module, which `steps.export_tensorrt` hides

    module = sys.modules["pdnet.steps.export_tensorrt"]
    wrong = {"error": 0.0}

    class Engine(OnnxModel):
        def __init__(self, trt: Any, path: Path, device: torch.device) -> None:
            assert path.read_bytes() == PLAN
            super().__init__(folders["export"] / "pdnet.onnx")

        def probability(self, target: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
            return super().probability(target, reference) + wrong["error"]

    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT())
    monkeypatch.setattr(module, "TensorRTModel", Engine)
    monkeypatch.setattr(module, "pick_device", lambda name: CUDA)
    monkeypatch.setattr(module, "device_name", lambda device: "Example GPU")
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    return wrong


def test_the_step_leaves_engine_parity_and_record(folders: dict[str, Path], stand_in: Any, tmp_path: Path) -> None:
    steps.export_tensorrt(**folders, out=tmp_path / "out", config=tiny_config())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".pdnet", "pdnet.engine", "parity.json", "run.json"}
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    onnx_parity = json.loads((folders["export"] / "parity.json").read_text())
    assert set(parity) - set(onnx_parity) == {"tensorrt", "onnx_sha256", "device", "tensorrt_version", "precision"}
    assert set(onnx_parity) - set(parity) == {"streaming"}
    assert parity["frames"] == 3
    assert parity["max_probability_difference"] == 0
    assert parity["mask_agreement"] == 1
    assert parity["tensorrt"] == parity["onnx"] == onnx_parity["onnx"]
    assert parity["torch"] == onnx_parity["torch"]
    assert parity["sha256"] == file_digest(tmp_path / "out" / "pdnet.engine")
    assert parity["onnx_sha256"] == onnx_parity["sha256"]
    assert (parity["device"], parity["tensorrt_version"], parity["precision"]) == ("Example GPU", "11.0.0", "fp32")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert set(record["parents"]) == {"export_onnx", "evaluate"}
    assert (record["step"], record["device"], record["precision"]) == ("export_tensorrt", "Example GPU", "fp32")


def test_an_engine_that_computes_something_else_is_refused(
    folders: dict[str, Path], stand_in: dict[str, float], tmp_path: Path
) -> None:
    stand_in["error"] = 0.01
    with pytest.raises(ExportError, match=r"^the TensorRT engine differs from the ONNX file by 0\.01 in probability"):
        steps.export_tensorrt(**folders, out=tmp_path / "out", config=tiny_config())
    assert list(tmp_path.iterdir()) == []
    stand_in["error"] = -0.7
    loose = tiny_config(export={"max_probability_difference": 1.0})
    with pytest.raises(ExportError, match=r"^the TensorRT engine scores J&F [\d.]+, the network [\d.]+, allowed"):
        steps.export_tensorrt(**folders, out=tmp_path / "out", config=loose)
    assert list(tmp_path.iterdir()) == []


def test_other_data_and_another_onnx_file_are_refused(folders: dict[str, Path], stand_in: Any, tmp_path: Path) -> None:
    for name in ("export", "evaluation"):
        (tmp_path / name).mkdir()
        for path in folders[name].glob("*.*"):
            if path.is_file():
                (tmp_path / name / path.name).write_bytes(path.read_bytes())
    own = {"videos": folders["videos"], "export": tmp_path / "export", "evaluation": tmp_path / "evaluation"}
    facts = json.loads((own["evaluation"] / "run.json").read_text())
    facts["data"]["videos"]["md5"] = "0" * 32 + ".dir"
    (own["evaluation"] / "run.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="scored on other data"):
        steps.export_tensorrt(**own, out=tmp_path / "out", config=tiny_config())
    model = onnx.load(own["export"] / "pdnet.onnx")
    model.doc_string = "changed"
    onnx.save(model, own["export"] / "pdnet.onnx")
    own["evaluation"] = folders["evaluation"]
    with pytest.raises(ExportError, match=r"pdnet\.onnx: its SHA-256 is \w+, .*parity\.json says \w+"):
        steps.export_tensorrt(**own, out=tmp_path / "out", config=tiny_config())
    assert not (tmp_path / "out").exists()


# The engine itself


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None,
    reason="needs a GPU and the package 'tensorrt'",
)
def test_an_engine_computes_what_the_file_computes(folders: dict[str, Path], tmp_path: Path) -> None:
    steps.export_tensorrt(**folders, out=tmp_path / "out", config=tiny_config(device="cuda"))
    trt, path = require_tensorrt(CUDA), tmp_path / "out" / "pdnet.engine"
    engine, file = TensorRTModel(trt, path, CUDA), OnnxModel(folders["export"] / "pdnet.onnx")
    assert (engine.size, engine.references) == (SIZE, 1)
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 3):
        pair = [torch.randn(batch, 3, SIZE, SIZE, generator=generator) for _ in INPUTS]
        torch.testing.assert_close(engine.probability(*pair), file.probability(*pair), rtol=0, atol=1e-3)
    with pytest.raises(ExportError, match="refuses a batch of 9"):
        engine.probability(*torch.zeros(2, 9, 3, SIZE, SIZE))
    path.write_bytes(b"no engine")
    with pytest.raises(ExportError, match="cannot open it"):
        TensorRTModel(trt, path, CUDA)
