"""Model files: a network's weights and architecture in one safetensors file, read without pickle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pdnet.errors import CheckpointError, ConfigError
from pdnet.files import atomic_path
from pdnet.model import ModelConfig, PDNet
from pdnet.model.backbone import check_state

_FORMAT = "pdnet-model-1"
_KEY = "pdnet"


def save_model(path: Path, network: PDNet, facts: dict[str, Any] | None = None) -> None:
    """Write a network: float32 weights, its architecture, and `facts` (lineage; anything JSON holds).

    The same weights and facts give the same bytes.

    Raises:
        CheckpointError: the file cannot be written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    header = {"format": _FORMAT, "architecture": dataclasses.asdict(network.config), "facts": facts or {}}
    with atomic_path(path) as fresh:
        try:
            # One key: safetensors writes several in an order that changes from call to call.
            fresh.write_bytes(save(state, metadata={_KEY: json.dumps(header, sort_keys=True)}))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None


def load_model(path: Path, *, expected: ModelConfig | None = None) -> PDNet:
    """Read a network in evaluation mode on the CPU.

    Args:
        path: a file written by `save_model`.
        expected: the architecture that the caller's configuration asks for; None takes the file's.

    Raises:
        CheckpointError: the file is missing, damaged, no model, or of another architecture than `expected`.
    """
    architecture = _header(path)["architecture"]
    if expected is not None:
        wanted = dataclasses.asdict(expected)
        if differences := [key for key in wanted if wanted[key] != architecture.get(key)]:
            shown = ", ".join(
                f"model.{key}: {architecture.get(key)} in the file, {wanted[key]} in the parameters"
                for key in differences
            )
            raise CheckpointError(f"{path}: another architecture: {shown}")
    try:
        network = PDNet(ModelConfig(**architecture))
    except (TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: written by another version of pdnet ({error})") from None
    try:
        with safe_open(path, "pt") as content:
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged model file ({error})") from None
    check_state(state, network.state_dict(), f"{path}: weights and architecture do not fit")
    network.load_state_dict(state)
    return network.eval()


def model_facts(path: Path) -> dict[str, Any]:
    """The `facts` that a model file was written with.

    Raises:
        CheckpointError: the file is missing, damaged or no model.
    """
    facts: dict[str, Any] = _header(path)["facts"]
    return facts


def _header(path: Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; expected a model written by pdnet (.safetensors)")
    try:
        with safe_open(path, "pt") as content:
            text = (content.metadata() or {}).get(_KEY, "{}")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or damaged ({error})") from None
    try:
        header = json.loads(text)
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: a safetensors file, but not a model written by pdnet")
    if not all(isinstance(header.get(key), dict) for key in ("architecture", "facts")):
        raise CheckpointError(f"{path}: written by another version of pdnet (no architecture or facts)")
    return header
