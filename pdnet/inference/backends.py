"""Which backend runs a model here: the one that is asked for, or the fastest that this machine has."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import torch

from pdnet.devices import pick_device, pick_dtype
from pdnet.errors import CheckpointError, ConfigError, DataError, UnavailableError
from pdnet.inference.onnx_backend import StreamingBackend
from pdnet.inference.session import Backend
from pdnet.inference.torch_backend import TorchBackend
from pdnet.weights import load_model, model_facts

#: Those that can be asked for by name.
NAMES = ("auto", "torch", "onnxruntime", "openvino")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_WEIGHTS, _GRAPHS = "model.safetensors", ("reference_encoder.onnx", "segmenter.onnx")
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

logger = logging.getLogger("pdnet.inference")


def open_backend(model: Path, *, name: str = "auto", device: str = "auto", precision: str = "auto") -> Backend:
    """Open a model with the backend that is asked for.

    `auto` takes torch on a GPU; on the CPU OpenVINO, where it is installed and there are exported graphs, else torch
    for weights and ONNX Runtime for graphs. It says which, and what would be faster.

    Args:
        model: model file of `pdnet train` or `pdnet import-checkpoint`, the folder of `pdnet export onnx`, or one that
            holds both.
        name: one of `NAMES`.
        device: `auto`, `cpu`, `cuda`, `cuda:<index>`; graphs run on the CPU.
        precision: one of `PRECISIONS`; `auto` is bf16 where the device multiplies it in hardware.

    Raises:
        ConfigError: an unknown name or precision, or a precision that the backend does not have.
        DataError: there is nothing of the kind that the backend runs.
        CheckpointError: the model file is damaged, or does not say its input size.
        ExportError: a graph is not that of a PDNet.
        UnavailableError: the backend or the device is not here.
    """
    for what, given, known in (("backend", name, NAMES), ("precision", precision, PRECISIONS)):
        if given not in known:
            raise ConfigError(f"{what}: '{given}', expected one of {', '.join(known)}")
    place = pick_device(device)
    weights, folder = _found(model)
    chosen, hint = (name, "") if name != "auto" else _fastest(weights, folder, place)
    if chosen == "torch":
        backend: Backend = _torch(weights, model, place, precision)
    else:
        backend = _graphs(folder, model, place, chosen, precision)
    if name == "auto":
        logger.info("runs by %s%s", backend.name, f" ({hint})" if hint else "")
    return backend


def _found(model: Path) -> tuple[Path | None, Path | None]:
    """The weights and the folder of graphs that a path stands for.

    Raises:
        DataError: it is neither.
    """
    if model.is_dir():
        weights = model / _WEIGHTS if (model / _WEIGHTS).is_file() else None
        folder = model if all((model / each).is_file() for each in _GRAPHS) else None
        if weights is None and folder is None:
            raise DataError(f"{model}: holds neither {_WEIGHTS} nor {' and '.join(_GRAPHS)}")
        return weights, folder
    return model, None


def _fastest(weights: Path | None, folder: Path | None, device: torch.device) -> tuple[str, str]:
    """The fastest backend that runs what there is, and what would be faster."""
    if device.type == "cuda" and weights is not None:
        return "torch", ""
    installed = importlib.util.find_spec("openvino") is not None
    if folder is not None and installed:
        return "openvino", ""
    hint = "OpenVINO would be faster: " + " and ".join(
        [*(["pip install 'pdnet[openvino]'"] * (not installed)), *(["`pdnet export onnx`"] * (folder is None))]
    )
    # In bfloat16 torch is ahead of ONNX Runtime in float32.
    by_torch = folder is None or (weights is not None and pick_dtype("auto", device) == torch.bfloat16)
    return "torch" if by_torch else "onnxruntime", hint


def _torch(weights: Path | None, model: Path, device: torch.device, precision: str) -> TorchBackend:
    if weights is None:
        raise DataError(f"{model}: holds no {_WEIGHTS}, which torch needs")
    network = load_model(weights)
    size = model_facts(weights).get("size")
    if not isinstance(size, int):
        raise CheckpointError(f"{weights}: does not say the size of the network's input; expected the fact 'size'")
    dtype = _TYPES.get(precision) or pick_dtype(precision, device)
    return TorchBackend(network, size=size, device=device, dtype=dtype)


def _graphs(folder: Path | None, model: Path, device: torch.device, runtime: str, precision: str) -> StreamingBackend:
    if folder is None:
        raise DataError(f"{model}: {runtime} runs exported graphs; expected a folder of `pdnet export onnx`")
    if device.type != "cpu":
        raise UnavailableError(f"{runtime} runs on the CPU here, not on {device}")
    own = {"onnxruntime": ("auto", "fp32"), "openvino": ("auto", "fp32", "bf16")}[runtime]
    if precision not in own:
        raise ConfigError(f"precision: {runtime} computes these graphs in {' or '.join(own[1:])}, not {precision}")
    fast = "bf16" in own and pick_dtype("auto", device) == torch.bfloat16
    return StreamingBackend(folder, runtime=runtime, bf16=precision == "bf16" or (precision == "auto" and fast))
