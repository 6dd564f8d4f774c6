"""The pipeline's parameters for data drawn by `portraits`, small enough that a step takes a second or so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml

from pdnet.config import Config, from_mapping
from pdnet.model import ModelConfig, PDNet

SIZE = 65
MODEL: dict[str, Any] = {"backbone": "resnet18", "width": 16, "part_width": 8, "attention_width": 4, "parts": 3}
PARAMS: dict[str, Any] = {
    "seed": 0,
    "device": "cpu",
    "data": {"videos": "data/mvps", "images": "data/mvps/Stills", "resolution": "480p", "size": SIZE},
    "validation": {"keyframe_interval": 5, "min_seconds": 0.5, "min_short_side": 64},
    "model": {**MODEL, "references": 1, "ipda": True, "assembly": "paper"},
    "losses": {"semantic_features": "none"},
    "pretrain": {"weights": "none", "epochs": 1, "batch_size": 5, "size": 33, "lr": 2e-3},
    "train": {
        "epochs": 1,
        "batch_size": 4,
        "image_batch_size": 5,
        "size": 33,
        "optimizer": "adamw",
        "image_backbone_lr": 1e-3,
        "image_rest_lr": 1e-3,
        "video_backbone_lr": 1e-3,
        "video_rest_lr": 1e-3,
        "precision": "fp32",
        "workers": 0,
        "photometric": 0.0,
    },
    "evaluation": {"protocol": "mvps", "threshold": 0.5, "speed_frames": 2},
    "export": {"opset": 18, "parity_frames": 3},
    "tracking": {"experiment": "tiny", "model": "tiny", "licence": "", "live": False},
}


def tiny_params(**changes: Any) -> dict[str, Any]:
    """The parameters with some replaced, sections key by key: `tiny_params(seed=1, train={"epochs": 2})`."""
    params = copy.deepcopy(PARAMS)
    for key, value in changes.items():
        params[key] = params[key] | value if isinstance(value, dict) else value
    return params


def tiny_config(**changes: Any) -> Config:
    """`tiny_params` as the configuration."""
    return from_mapping(Config, tiny_params(**changes), source="tiny")


def write_params(path: Path, **changes: Any) -> Path:
    """Write `tiny_params` as a params file."""
    path.write_text(yaml.safe_dump(tiny_params(**changes), sort_keys=False))
    return path


def decided_network(seed: int = 0, **architecture: Any) -> PDNet:
    """A network in evaluation mode that is untrained but decided: it says yes and no, parts and reference matter."""
    torch.manual_seed(seed)
    network = PDNet(ModelConfig(**MODEL | architecture))
    with torch.no_grad():
        for name, layer in network.named_modules():
            if isinstance(layer, torch.nn.Conv2d):
                if layer.out_channels == 1:  # prediction heads, which start near 0
                    torch.nn.init.normal_(layer.weight, std=0.5)
                elif name.startswith(("ipda.", "fusion.expand")):
                    layer.weight *= 2
    return network.eval()
