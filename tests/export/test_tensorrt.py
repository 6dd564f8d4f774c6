"""What of the TensorRT export can be tested without TensorRT, and the engines themselves where there is all of it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fake_tensorrt import FakeTensorRT, stand_in
from tiny_profile import MODEL, SIZE, decided_network, tiny_config

from pdnet import steps
from pdnet.config import Config
from pdnet.errors import ConfigError, DataError, ExportError, UnavailableError
from pdnet.export.convert import to_half, to_int8
from pdnet.export.onnx import PAIR, REFERENCE_ENCODER, SEGMENTER, Form, export_pair, export_streaming
from pdnet.export.tensorrt import WORKSPACE_BYTES, build_engine, fold_biases, input_ranges, tokens
from pdnet.files import file_digest
from pdnet.inference.onnx_backend import OnnxModel, StreamingBackend
from pdnet.inference.session import Features
from pdnet.inference.tensorrt_backend import Engine, TensorRTBackend, TensorRTModel, require_tensorrt
from pdnet.model.streaming import ReferenceEncoder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GRAPHS = (PAIR, REFERENCE_ENCODER, SEGMENTER)
ENGINES = ("pdnet.engine", "reference_encoder.engine", "segmenter.engine")
#: Least to most tokens of any size around 65: 33 -> 9 // 4 = 2, 65 -> 17 // 4 = 4, 130 -> 33 // 4 = 8 a side.
TOKENS = (4, 16, 64)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the graphs: `fixed`, in `fp16`, and of `any` size, these of a network of two references."""
    root = tmp_path_factory.mktemp("graphs")
    networks = {"fixed": decided_network(), "any": decided_network(references=2)}
    for name, network in networks.items():
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):  # biases of 0 would not be in the graphs
                torch.nn.init.normal_(layer.bias, std=0.1)
        form = Form(SIZE, 18, any_size=name == "any")
        (root / name).mkdir()
        export_pair(network, root / name / PAIR, form)
        export_streaming(network, root / name, form)
    (root / "fp16").mkdir()
    for name in GRAPHS:
        to_half(root / "fixed" / name, root / "fp16" / name)
    return {name: root / name for name in ("fixed", "any", "fp16")}


def build(trt: Any, folder: Path, out: Path, names: tuple[str, ...] = GRAPHS) -> Path:
    out.mkdir(exist_ok=True)
    for name in names:
        build_engine(trt, folder / name, out / Path(name).with_suffix(".engine").name, precision="fp32")
    return out


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
    with pytest.raises(UnavailableError, match=r"cannot be run here: needs the package 'tensorrt' \([^)]*\)$"):
        require_tensorrt(CUDA, purpose="run")
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT())
    with pytest.raises(UnavailableError, match=r"needs a CUDA device \(the device is cpu\)$"):
        run(tmp_path, tiny_config(device="cpu"))
    assert require_tensorrt(CUDA, purpose="run").__version__ == "11.0.0"


def test_a_package_without_its_libraries_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnavailableError, match=r"'tensorrt' \(libnvinfer\.so\.11: cannot open shared object file\)$"):
        require_tensorrt(CUDA, purpose="built")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_asked_for_and_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="'cuda:0' is not here"):
        run(tmp_path, tiny_config(device="cuda:0"))


def test_the_precisions_are_those_that_an_engine_can_have() -> None:
    assert Config().export.tensorrt_precision == "fp32"
    for precision in ("tf32", "fp16", "int8"):
        assert tiny_config(export={"tensorrt_precision": precision}).export.tensorrt_precision == precision
    with pytest.raises(ConfigError, match=r"tensorrt_precision: found 'fp8' .* of fp32, tf32, fp16, int8"):
        tiny_config(export={"tensorrt_precision": "fp8"})


# The shapes that an engine takes


def test_ranges_of_graphs_of_one_size() -> None:
    pair = {"target": (-1, 3, 480, 480), "reference": (-1, 2, 3, 480, 480)}
    assert input_ranges(pair, size=480, references=2) == {
        "target": ((1, 3, 480, 480), (1, 3, 480, 480), (8, 3, 480, 480)),
        "reference": ((1, 2, 3, 480, 480), (1, 2, 3, 480, 480), (8, 2, 3, 480, 480)),
    }
    features = (-1, -1, 5, 900, 32)
    assert input_ranges({"image": (-1, 480, 480, 3), "key": features}, size=480, references=1) == {
        "image": ((1, 480, 480, 3), (1, 480, 480, 3), (8, 480, 480, 3)),
        "key": ((1, 1, 5, 900, 32), (1, 1, 5, 900, 32), (8, 4, 5, 900, 32)),
    }


def test_ranges_of_graphs_of_any_size() -> None:
    """480: 240 to 960, a sixteenth of it a side is 15, 30, 60. 50: 32, not 25, to 100; 8, 13, 25 at stride 4."""
    inputs = {"image": (-1, 3, -1, -1), "key": (-1, -1, 5, -1, 32)}
    assert input_ranges(inputs, size=480, references=2) == {
        "image": ((1, 3, 240, 240), (1, 3, 480, 480), (8, 3, 960, 960)),
        "key": ((1, 1, 5, 225, 32), (1, 2, 5, 900, 32), (8, 4, 5, 3600, 32)),
    }
    frames = {"target": (-1, -1, -1, 3), "reference": (-1, 6, -1, -1, 3), "value": (-1, -1, 5, -1, 32)}
    assert input_ranges(frames, size=50, references=6) == {
        "target": ((1, 32, 32, 3), (1, 50, 50, 3), (8, 100, 100, 3)),
        "reference": ((1, 6, 32, 32, 3), (1, 6, 50, 50, 3), (8, 6, 100, 100, 3)),
        "value": ((1, 1, 5, 4, 32), (1, 6, 5, 9, 32), (8, 6, 5, 36, 32)),
    }


@pytest.mark.parametrize("side", [32, 33, 47, 63, 65, 96, 97, 113, 130])
def test_the_tokens_of_a_size_are_the_networks(side: int) -> None:
    with torch.inference_mode():
        key, _ = ReferenceEncoder(decided_network())(torch.zeros(1, 3, side, side))
    assert tokens(side) == key.shape[3]


# The building of an engine


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_what_the_builder_is_told(graphs: dict[str, Path], tmp_path: Path, precision: Any) -> None:
    trt, engine = FakeTensorRT(), tmp_path / "segmenter.engine"
    ranges = build_engine(trt, graphs["any"] / SEGMENTER, engine, precision=precision)
    (builder,) = trt.builders
    assert builder.flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert builder.config.pools == {trt.MemoryPoolType.WORKSPACE: WORKSPACE_BYTES}
    assert (trt.BuilderFlag.TF32 in builder.config.flags) == (precision != "fp32")
    (profile,) = builder.config.profiles
    parts, width = MODEL["parts"], MODEL["attention_width"]
    features = tuple((b, n, parts, t, width) for b, n, t in zip((1, 1, 8), (1, 2, 4), TOKENS, strict=True))
    images = tuple((b, 3, side, side) for b, side in zip((1, 1, 8), (33, 65, 130), strict=True))
    assert profile.shapes == ranges == {"image": images, "key": features, "value": features}
    assert builder.config.cache is None
    assert engine.is_file()


def test_a_graph_that_the_parser_refuses_is_its_first_error(graphs: dict[str, Path], tmp_path: Path) -> None:
    trt, path = FakeTensorRT(error="In node 7 (importGridSample): UNSUPPORTED_NODE\nand more"), graphs["fixed"] / PAIR
    with pytest.raises(ExportError) as caught:
        build_engine(trt, path, tmp_path / "pdnet.engine", precision="fp32")
    reason = "TensorRT 11.0.0 cannot read it (In node 7 (importGridSample): UNSUPPORTED_NODE)"
    assert str(caught.value) == f"{path}: {reason}"
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_cannot_be_built_is_said(graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot build an engine"):
        build_engine(
            FakeTensorRT(builds=False),
            graphs["fixed"] / PAIR,
            tmp_path / "pdnet.engine",
            precision="fp32",
            timing_cache=tmp_path / "cache",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_other_origin_is_refused(graphs: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(graphs["fixed"] / PAIR)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ExportError, match=r"other\.onnx: does not say its size and references"):
        build_engine(FakeTensorRT(), tmp_path / "other.onnx", tmp_path / "other.engine", precision="fp32")


def test_the_timing_cache_goes_from_build_to_build(graphs: dict[str, Path], tmp_path: Path) -> None:
    cache, trt = tmp_path / "new" / "timing.cache", FakeTensorRT()

    def measured(trt: FakeTensorRT, name: str) -> bool:
        build_engine(trt, graphs["fixed"] / name, tmp_path / "an.engine", precision="fp32", timing_cache=cache)
        return trt.builders[-1].measured

    assert measured(trt, PAIR)
    assert measured(trt, SEGMENTER)
    one = cache.read_bytes()
    assert not measured(trt, PAIR)
    assert not measured(FakeTensorRT(), SEGMENTER)  # in another process
    assert cache.read_bytes() == one
    assert measured(FakeTensorRT(version="11.1.0"), PAIR)  # what another version measured is of no use
    assert json.loads(cache.read_bytes())[0] == "11.1.0"
    cache.write_bytes(b"damaged")
    assert measured(trt, PAIR)
    assert not measured(trt, PAIR)


@pytest.fixture(scope="module")
def quantised(graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair graph in int8."""
    path = tmp_path_factory.mktemp("int8") / PAIR
    to_int8(graphs["fixed"] / PAIR, path, [pair(1, seed) for seed in range(2)])
    return path


def pair(batch: int, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32) for name in ("target", "reference")}


def test_biases_of_quantised_graphs_are_floats_of_the_same_value(quantised: Path, tmp_path: Path) -> None:
    model = onnx.load(quantised)
    fold_biases(model)
    onnx.checker.check_model(model, full_check=True)
    constants = {each.name: each for each in model.graph.initializer}
    assert not [each.name for each in constants.values() if each.data_type == onnx.TensorProto.INT32]
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    made = {name for node in model.graph.node for name in node.output}
    assert sum(node.input[2] in constants for node in nodes if len(node.input) > 2) > 20
    assert sum(node.input[1] in made for node in nodes) > 20, "weights stay dequantised int8"
    options = onnxruntime.SessionOptions()  # so that both compute what is written, and not something fused
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    ways = [
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, pair(2))[0]
        for content in (quantised.read_bytes(), model.SerializeToString())
    ]
    assert np.ptp(ways[0]) > 0.1
    np.testing.assert_array_equal(*ways)


def test_a_quantised_graph_becomes_an_engine(quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = stand_in(monkeypatch)
    build_engine(trt, quantised, tmp_path / "pdnet.engine", precision="int8")
    model, file = TensorRTModel(trt, tmp_path / "pdnet.engine", CPU), OnnxModel(quantised)
    images = [torch.from_numpy(x) for x in pair(2).values()]
    # ONNX Runtime fuses biases of integers into its integer convolution, which rounds in between.
    assert (model.probability(*images) - file.probability(*images)).abs().mean() < 0.01


# Running


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_engine_is_run_between_what_the_caller_does_before_and_after(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = stand_in(monkeypatch)
    engine = Engine(trt, build(trt, graphs["fixed"], tmp_path, (PAIR,)) / "pdnet.engine", CPU)
    engine.run({"target": noise(1, 3, SIZE, SIZE), "reference": noise(1, 3, SIZE, SIZE)})
    assert trt.events == ["1 waits for 0", "1 executes", "0 waits for 1"]


def test_an_answer_is_not_overwritten_by_the_next(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = stand_in(monkeypatch)
    build(trt, graphs["fixed"], tmp_path, (REFERENCE_ENCODER,))
    engine = Engine(trt, tmp_path / "reference_encoder.engine", CPU)
    one = engine.run({"image": noise(1, 3, SIZE, SIZE)})
    kept = {name: x.clone() for name, x in one.items()}
    two = engine.run({"image": -noise(1, 3, SIZE, SIZE)})
    for name, x in kept.items():
        assert torch.equal(one[name], x)
        assert not torch.allclose(two[name], x)
    slices = engine.run({"image": noise(2, 3, SIZE, SIZE).permute(0, 1, 3, 2)})  # not contiguous: copied before
    straight = engine.run({"image": noise(2, 3, SIZE, SIZE).permute(0, 1, 3, 2).contiguous()})
    assert torch.equal(slices["key"], straight["key"])


def test_batches_beyond_the_engines_go_in_portions(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = stand_in(monkeypatch)
    build(trt, graphs["fixed"], tmp_path, (PAIR,))
    model, file = TensorRTModel(trt, tmp_path / "pdnet.engine", CPU), OnnxModel(graphs["fixed"] / PAIR)
    images = noise(11, 3, SIZE, SIZE), noise(11, 3, SIZE, SIZE).flip(0)
    found = model.probability(*images)
    assert [event for event in trt.events if "executes" in event] == ["1 executes"] * 2
    torch.testing.assert_close(found, file.probability(*images), rtol=0, atol=1e-6)


def test_shapes_out_of_range_are_said_with_the_range(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = stand_in(monkeypatch)
    engine = Engine(trt, build(trt, graphs["any"], tmp_path, (REFERENCE_ENCODER,)) / "reference_encoder.engine", CPU)
    with pytest.raises(
        ExportError,
        match=r"'image' is 1 x 3 x 131 x 65; the engine takes 1 x 3 x 33 x 33 to 8 x 3 x 130 x 130$",
    ):
        engine.run({"image": torch.zeros(1, 3, 131, SIZE)})
    assert trt.events == []
    assert engine.run({"image": torch.zeros(1, 3, 130, 33)})["key"].shape[3] == 8 * 2


def test_files_that_are_no_engines_or_other_ones_are_refused(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = stand_in(monkeypatch)
    path = build(trt, graphs["fixed"], tmp_path, (PAIR,)) / "pdnet.engine"
    with pytest.raises(ExportError, match=r"TensorRT 10\.9\.0 cannot open it; .* of one version and one kind of GPU"):
        TensorRTModel(FakeTensorRT(version="10.9.0"), path, CPU)
    shutil.copy(path, tmp_path / "segmenter.engine")
    shutil.copy(path, tmp_path / "reference_encoder.engine")
    with pytest.raises(ExportError, match=r"inputs target, reference and outputs probability; expected image, and key"):
        TensorRTBackend(trt, tmp_path, CPU, precision="fp32")
    path.write_bytes(b"no engine")
    with pytest.raises(ExportError, match="cannot open it"):
        TensorRTModel(trt, path, CPU)
    with pytest.raises(ExportError, match=r"none\.engine: no such file; expected an engine of `pdnet export tensorrt`"):
        TensorRTModel(trt, tmp_path / "none.engine", CPU)


@pytest.mark.parametrize("form", ["fixed", "any", "fp16"])
def test_the_backend_computes_what_the_files_compute(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    trt = stand_in(monkeypatch)
    backend = TensorRTBackend(trt, build(trt, graphs[form], tmp_path), CPU, precision=form)
    file = StreamingBackend(graphs[form])
    assert (backend.name, backend.raw) == (f"TensorRT, {form}", False)
    assert (backend.size, backend.references) == (file.size, file.references) == (SIZE, 2 if form == "any" else 1)
    first, target = noise(1, 3, SIZE, SIZE), noise(3, 3, SIZE, SIZE)
    kept: list[list[Features]] = []
    for each in (backend, file):
        kept.append([each.encode(first), each.encode(target[:1])])
    assert {x.dtype for features in kept[0] for x in features} == {torch.float16 if form == "fp16" else torch.float32}
    for references in (1, 2):
        found, wanted = (
            each.segment(target, features[:references]) for each, features in zip((backend, file), kept, strict=True)
        )
        for one, other in zip(found[:3], wanted[:3], strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert (found.own is None) == (wanted.own is None) == (form != "any")
    alone = backend.segment(target, kept[0][:1]).probability
    assert not torch.allclose(alone, found.probability, atol=1e-3), "a second reference does not matter"


# The step: all but TensorRT and the GPU is real


@pytest.fixture
def folders(finished: dict[str, Path]) -> dict[str, Path]:
    """What the step takes."""
    return {name: finished[name] for name in ("videos", "export", "evaluation")}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """A "GPU" with TensorRT."""
    import pdnet.steps.export_tensorrt  # noqa: F401 - the module, which `steps.export_tensorrt` hides

    module = sys.modules["pdnet.steps.export_tensorrt"]
    trt = stand_in(monkeypatch)
    monkeypatch.setattr(module, "pick_device", lambda _: CPU)
    monkeypatch.setattr(module, "require_tensorrt", lambda _, purpose: trt)
    monkeypatch.setattr(module, "device_name", lambda _: "Example GPU")
    return trt


def test_the_step_leaves_engines_parity_and_record(
    folders: dict[str, Path], machine: FakeTensorRT, tmp_path: Path
) -> None:
    cache = tmp_path / "timing.cache"
    steps.export_tensorrt(**folders, out=tmp_path / "out", config=tiny_config(), timing_cache=cache)
    out, export = tmp_path / "out", folders["export"]
    assert {path.name for path in out.iterdir()} == {".pdnet", *ENGINES, "parity.json", "run.json"}
    assert len(json.loads(cache.read_text())[1]) == 3
    parity, source = (json.loads((folder / "parity.json").read_text()) for folder in (out, export))
    digests = {name: file_digest(out / name) for name in ENGINES}
    assert parity["sha256"] == digests.pop("pdnet.engine")
    assert parity["streaming"]["files"] == digests
    assert parity["onnx_sha256"] == source["sha256"]
    assert parity["sources"] == {name: file_digest(export / name) for name in GRAPHS}
    for facts in (parity, parity["streaming"]):
        assert facts["frames"] == 3
        assert facts["max_probability_difference"] < 1e-5
        assert facts["mask_agreement"] == 1
    assert parity["tensorrt"] == parity["onnx"] == source["onnx"]
    assert parity["streaming"]["tensorrt"] == parity["streaming"]["onnx"] == source["streaming"]["onnx"]
    assert parity["torch"] == source["torch"]
    found = {(row["file"], row["size"], row["batch"], row["references"]) for row in parity["cases"]}
    wanted = {("segmenter.engine", SIZE, batch, references) for batch in (1, 3) for references in (1, 2)}
    assert found == wanted | {("pdnet.engine", SIZE, batch, 1) for batch in (1, 3)}
    assert parity["profiles"]["pdnet.engine"]["target"] == [[batch, 3, SIZE, SIZE] for batch in (1, 1, 8)]
    assert set(parity["profiles"]) == set(ENGINES)
    assert set(parity["bounds"]) == {"fp32", "tf32", "fp16", "int8"}
    timed = {row["name"]: row["times_ms"] for row in parity["speed"]["rows"]}
    assert set(timed) == {"one reference", "two references", "8 frames at once", "a reference encoded"}
    assert all(len(times) == tiny_config().evaluation.speed_frames and min(times) > 0 for times in timed.values())
    facts = {name: parity[name] for name in ("device", "tensorrt_version", "precision", "opset")}
    assert facts == {"device": "Example GPU", "tensorrt_version": "11.0.0", "precision": "fp32", "opset": 18}
    record = json.loads((out / "run.json").read_text())
    assert set(record["parents"]) == {"export_onnx", "evaluate"}
    assert (record["step"], record["device"], record["precision"]) == ("export_tensorrt", "Example GPU", "fp32")


def test_an_engine_that_computes_something_else_is_refused_with_the_table(
    folders: dict[str, Path], machine: FakeTensorRT, tmp_path: Path
) -> None:
    machine.wrong = 5e-4
    reason = r"^pdnet\.engine of TensorRT in fp32 is not the same model: mean probability difference 0\.0005, allowed"
    with pytest.raises(ExportError, match=reason) as caught:
        steps.export_tensorrt(**folders, out=tmp_path / "out", config=tiny_config())
    assert caught.value.table.splitlines()[1].split()[:4] == ["pdnet.engine", str(SIZE), "1", "1"]
    assert list(tmp_path.iterdir()) == []
    steps.export_tensorrt(**folders, out=tmp_path / "tf32", config=tiny_config(export={"tensorrt_precision": "tf32"}))
    machine.wrong = -0.7
    bounds = tmp_path / "loose.yaml"
    loose = "max_probability_difference: 1, mean_probability_difference: 1, min_mask_agreement: 0, max_jf_difference: 1"
    bounds.write_text(f"fp32: {{{loose}}}")
    with pytest.raises(ExportError, match=r"is not the same model: J&F [\d.]+ instead of [\d.]+, allowed 1 apart"):
        steps.export_tensorrt(**folders, out=tmp_path / "out", config=tiny_config(), bounds=bounds)
    assert not (tmp_path / "out").exists()


def copied(folders: dict[str, Path], root: Path, name: str) -> dict[str, Path]:
    shutil.copytree(folders[name], root / name)
    return folders | {name: root / name}


def test_other_data_and_other_onnx_files_are_refused(
    folders: dict[str, Path], machine: FakeTensorRT, tmp_path: Path
) -> None:
    own = copied(folders, tmp_path, "evaluation")
    facts = json.loads((own["evaluation"] / "run.json").read_text())
    facts["data"]["videos"]["md5"] = "0" * 32 + ".dir"
    (own["evaluation"] / "run.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="scored on other data"):
        steps.export_tensorrt(**own, out=tmp_path / "out", config=tiny_config())
    own = copied(folders, tmp_path, "export")
    path = own["export"] / SEGMENTER
    model = onnx.load(path)
    model.doc_string = "changed"
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"segmenter\.onnx: its SHA-256 is \w+, .*parity\.json says \w+"):
        steps.export_tensorrt(**own, out=tmp_path / "out", config=tiny_config())
    path.unlink()
    with pytest.raises(ExportError, match=r"segmenter\.onnx: no such file; expected what .*parity\.json names"):
        steps.export_tensorrt(**own, out=tmp_path / "out", config=tiny_config())
    assert machine.builders == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_graphs_of_the_form_have_to_be_there(
    folders: dict[str, Path], machine: FakeTensorRT, tmp_path: Path, precision: str
) -> None:
    config = tiny_config(export={"tensorrt_precision": precision})
    with pytest.raises(ConfigError) as caught:
        steps.export_tensorrt(**folders, out=tmp_path / "out", config=config)
    assert str(caught.value) == (
        f"export.tensorrt_precision: {precision} needs ONNX files in {precision}, {folders['export']} has none; "
        f"name {precision} in export.precisions and run `pdnet export onnx` again"
    )
    assert machine.builders == []


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_engines_of_a_precision_are_built_from_the_graphs_in_it(
    folders: dict[str, Path], finished: dict[str, Path], machine: FakeTensorRT, tmp_path: Path, precision: str
) -> None:
    export = {"precisions": [precision], "tensorrt_precision": precision, "calibration_frames": 4}
    config = tiny_config(export=export)
    where = {name: folders[name] for name in ("videos", "evaluation")}
    bounds = tmp_path / "bounds.yaml"
    allowed = 0.5 if precision == "fp16" else 1.0  # a network without training is easily tipped over
    bounds.write_text(
        f"{precision}: {{max_probability_difference: {allowed}, mean_probability_difference: {allowed / 10}, "
        f"min_mask_agreement: 0.7, max_jf_difference: 20}}"
    )
    steps.export_onnx(**where, model=finished["train"], out=tmp_path / "export", config=config, bounds=bounds)
    steps.export_tensorrt(**where, export=tmp_path / "export", out=tmp_path / "out", config=config, bounds=bounds)
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert parity["precision"] == precision
    files = {f"{precision}/{name}": file_digest(tmp_path / "export" / precision / name) for name in GRAPHS}
    assert parity["sources"] == files
    assert parity["onnx_sha256"] == files[f"{precision}/pdnet.onnx"]
    assert 1e-5 < parity["max_probability_difference"] <= allowed, "compared with float32"
    assert 1e-5 < parity["streaming"]["max_probability_difference"] <= allowed
    assert parity["bounds"][precision]["max_probability_difference"] == allowed
    built = onnx.load(tmp_path / "export" / precision / SEGMENTER)
    if precision == "int8":
        fold_biases(built)
    assert (tmp_path / "out" / "segmenter.engine").read_bytes().endswith(built.SerializeToString())


# The engines themselves


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None,
    reason="needs a GPU and the package 'tensorrt'",
)
def test_engines_compute_what_the_files_compute(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps.export_tensorrt(**folders, out=out, config=tiny_config(device="cuda"), timing_cache=tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_size > 0
    trt = require_tensorrt(CUDA, purpose="run")
    engine, file = TensorRTModel(trt, out / "pdnet.engine", CUDA), OnnxModel(folders["export"] / PAIR)
    assert (engine.size, engine.references) == (SIZE, 1)
    for batch in (1, 3, 9):
        images = noise(batch, 3, SIZE, SIZE), noise(batch, 3, SIZE, SIZE).flip(0)
        torch.testing.assert_close(engine.probability(*images), file.probability(*images), rtol=0, atol=1e-3)
    backend, stream = TensorRTBackend(trt, out, CUDA, precision="fp32"), StreamingBackend(folders["export"])
    target, first = noise(3, 3, SIZE, SIZE), noise(1, 3, SIZE, SIZE)
    found, wanted = (each.segment(target, [each.encode(first)] * 2) for each in (backend, stream))
    torch.testing.assert_close(found.probability, wanted.probability, rtol=0, atol=1e-3)
    with pytest.raises(ExportError, match=r"'image' is 1 x 3 x 32 x 32; the engine takes"):
        backend.encode(torch.zeros(1, 3, 32, 32))
    (out / "pdnet.engine").write_bytes(b"no engine")
    with pytest.raises(ExportError, match="cannot open it"):
        TensorRTModel(trt, out / "pdnet.engine", CUDA)
