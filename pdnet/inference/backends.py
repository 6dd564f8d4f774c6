"""Which backend runs a model here: the one that is asked for, or the fastest that this machine has."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import NamedTuple

import torch

from pdnet.devices import pick_device, pick_dtype
from pdnet.errors import CheckpointError, ConfigError, DataError, ExportError, UnavailableError
from pdnet.files import file_digest, read_object
from pdnet.inference.onnx_backend import StreamingBackend
from pdnet.inference.session import Backend
from pdnet.inference.tensorrt_backend import REFERENCE_ENCODER, SEGMENTER, TensorRTBackend, require_tensorrt
from pdnet.inference.torch_backend import TorchBackend, require_compiler
from pdnet.weights import load_model, model_facts

#: Those that can be asked for by name.
NAMES = ("auto", "torch", "onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")

_WEIGHTS, _GRAPHS = "model.safetensors", ("reference_encoder.onnx", "segmenter.onnx")
_ENGINES = (REFERENCE_ENCODER, SEGMENTER)
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

logger = logging.getLogger("pdnet.inference")


class _Found(NamedTuple):
    """What there is to run: a model file, a folder with graphs, a folder with engines."""

    weights: Path | None
    graphs: Path | None = None
    engines: Path | None = None


def open_backend(
    model: Path, *, name: str = "auto", device: str = "auto", precision: str = "auto", compiled: bool = False
) -> Backend:
    """Open a model with the backend that is asked for.

    `auto` takes, on a GPU, TensorRT where it is installed and there are engines of its version for this kind of GPU,
    else torch; on the CPU OpenVINO, where it is installed and there are exported graphs, else torch for weights and
    ONNX Runtime for graphs. It says which, why not TensorRT, and what would be faster.

    Args:
        model: model file of `pdnet train` or `pdnet import-checkpoint`, the folder of `pdnet export onnx` or
            `pdnet export tensorrt`, or one that holds several of these, perhaps in `train/`, `export/` and `tensorrt/`:
            a release, or the pipeline's `build`.
        name: one of `NAMES`.
        device: `auto`, `cpu`, `cuda`, `cuda:<index>`; graphs run on the CPU, engines on a GPU.
        precision: one of `PRECISIONS`; `auto` is bf16 where the device multiplies it in hardware, and of engines the
            one that they were built in. Graphs in fp16 and int8 are files of their own.
        compiled: let torch.compile make kernels, and CUDA graphs on a GPU; `auto` is torch then.

    Raises:
        ConfigError: an unknown name or precision, or a precision that the backend does not have; or one that is to be
            compiled and is not torch.
        DataError: there is nothing of the kind that the backend runs.
        CheckpointError: the model file is damaged, or does not say its input size.
        ExportError: a graph or engine is not that of a PDNet, or the engine not for this machine.
        UnavailableError: the backend or the device is not here.
    """
    for what, given, known in (("backend", name, NAMES), ("precision", precision, PRECISIONS)):
        if given not in known:
            raise ConfigError(f"{what}: '{given}', expected one of {', '.join(known)}")
    place = pick_device(device)
    found = _found(model)
    if compiled:
        if name not in ("auto", "torch"):
            raise ConfigError(f"backend: '{name}' is not compiled by torch; expected torch")
        require_compiler(place)
        return _torch(found.weights, model, place, precision, compiled=True)
    if name != "auto":
        return _open(name, found, model, place, precision)
    backend, hint = _fastest(found, model, place, precision, asked=device)
    logger.info("runs by %s%s", backend.name, f" ({hint})" if hint else "")
    return backend


def _found(model: Path) -> _Found:
    """What a path stands for.

    Raises:
        DataError: nothing that could be run.
    """
    if not model.is_dir():
        if not model.exists() and not model.suffix:
            raise DataError(f"{model}: no such folder; expected one with weights, graphs or engines, or a model file")
        return _Found(model)

    def holding(names: tuple[str, ...], *folders: Path) -> Path | None:
        return next((folder for folder in folders if all((folder / each).is_file() for each in names)), None)

    weights, graphs = holding((_WEIGHTS,), model, model / "train"), holding(_GRAPHS, model, model / "export")
    if weights and graphs and weights != graphs and not _of_one_training(weights, graphs):
        logger.warning("%s: graphs of another training than that in %s; left out", graphs, weights)
        graphs = None
    found = _Found(weights and weights / _WEIGHTS, graphs, holding(_ENGINES, model, model / "tensorrt"))
    if not any(found):
        raise DataError(f"{model}: holds neither {_WEIGHTS} nor {' and '.join(_GRAPHS)} nor {' and '.join(_ENGINES)}")
    return found


def _of_one_training(train: Path, export: Path) -> bool:
    """Whether the graphs of an export are those of the weights beside."""
    digest = "parents.evaluate.model_sha256"
    facts = read_object(export / "run.json", (digest,))
    return bool(facts["parents"]["evaluate"]["model_sha256"] == file_digest(train / _WEIGHTS))


def _open(name: str, found: _Found, model: Path, device: torch.device, precision: str) -> Backend:
    if name == "tensorrt":
        return _tensorrt(found.engines, model, device, precision)
    if name == "torch":
        return _torch(found.weights, model, device, precision)
    return _graphs(found.graphs, model, device, name, precision)


def _fastest(found: _Found, model: Path, device: torch.device, precision: str, *, asked: str) -> tuple[Backend, str]:
    """The fastest backend that runs what there is; and why not TensorRT on a GPU, or what would be faster on a CPU."""
    name, hint = _fastest_on_cpu(found, device, precision)
    if device.type == "cuda":
        try:
            return _open("tensorrt", found, model, device, precision), ""
        except (ConfigError, DataError, ExportError, UnavailableError) as error:
            if found.weights is found.graphs is None:
                raise
            hint = f"not by TensorRT: {error}"
        if found.weights:
            name = "torch"
        elif asked == "auto":
            device = torch.device("cpu")  # where graphs run
    return _open(name, found, model, device, precision), hint


def _fastest_on_cpu(found: _Found, device: torch.device, precision: str) -> tuple[str, str]:
    installed = importlib.util.find_spec("openvino") is not None
    weights, folder = found.weights, found.graphs
    if weights is not None and folder is not None and precision == "fp16" and not (folder / precision).is_dir():
        return "torch", f"there are no graphs in {precision}"
    if folder is not None and installed:
        return "openvino", ""
    hint = "OpenVINO would be faster: " + " and ".join(
        [*(["pip install 'pdnet[openvino]'"] * (not installed)), *(["`pdnet export onnx`"] * (folder is None))]
    )
    # In bfloat16 torch is ahead of ONNX Runtime in float32.
    wanted = precision == "bf16" or (precision == "auto" and pick_dtype("auto", device) == torch.bfloat16)
    by_torch = folder is None or (weights is not None and wanted)
    return "torch" if by_torch else "onnxruntime", hint


def _tensorrt(folder: Path | None, model: Path, device: torch.device, precision: str) -> TensorRTBackend:
    trt = require_tensorrt(device, purpose="run")
    if folder is None:
        raise DataError(f"{model}: holds no {' and '.join(_ENGINES)}; `pdnet export tensorrt` builds them")
    built = str(read_object(folder / "parity.json", ("precision",))["precision"])
    if precision not in ("auto", built):
        raise ConfigError(f"precision: the engines of {folder} compute in {built}, not {precision}")
    return TensorRTBackend(trt, folder, device, precision=built)


def _torch(
    weights: Path | None, model: Path, device: torch.device, precision: str, *, compiled: bool = False
) -> TorchBackend:
    if weights is None:
        raise DataError(f"{model}: holds no {_WEIGHTS}, which torch needs")
    network = load_model(weights)
    size = model_facts(weights).get("size")
    if not isinstance(size, int):
        raise CheckpointError(f"{weights}: does not say the size of the network's input; expected the fact 'size'")
    if precision == "int8":
        raise ConfigError(f"precision: torch computes in {', '.join(_TYPES)}, not in int8")
    dtype = _TYPES.get(precision) or pick_dtype(precision, device)
    return TorchBackend(network, size=size, device=device, dtype=dtype, compiled=compiled)


def _graphs(folder: Path | None, model: Path, device: torch.device, runtime: str, precision: str) -> StreamingBackend:
    if folder is None:
        raise DataError(f"{model}: {runtime} runs exported graphs; expected a folder of `pdnet export onnx`")
    if device.type != "cpu":
        raise UnavailableError(f"{runtime} runs on the CPU here, not on {device}")
    own = ("fp32", "fp16", "int8") if runtime == "onnxruntime" else ("fp32", "bf16", "fp16", "int8")
    if precision not in ("auto", *own):
        raise ConfigError(f"precision: {runtime} computes graphs in {', '.join(own)}, not in {precision}")
    fast = "bf16" in own and pick_dtype("auto", device) == torch.bfloat16
    form = folder / precision  # of fp16 and int8, files of their own
    backend = StreamingBackend(
        form if precision in ("fp16", "int8") and form.is_dir() else folder,
        runtime=runtime,
        bf16=precision == "bf16" or (precision == "auto" and fast),
    )
    if precision in ("fp16", "int8") and backend.form != precision:
        raise DataError(f"{form}: no such folder; `pdnet export onnx` writes it if export.precisions has {precision}")
    if precision in ("fp32", "bf16") and backend.form != "fp32":
        raise ConfigError(f"precision: the graphs of {folder} are in {backend.form}, not in fp32; expected auto")
    return backend
