"""What is exported, in which forms, and how closely it must agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pdnet.errors import ConfigError

Precision = Literal["fp16", "int8"]
GraphInput = Literal["normalised", "frames"]
TensorRTPrecision = Literal["fp32", "tf32", "fp16", "int8"]


@dataclass(frozen=True)
class ExportConfig:
    """The exported files.

    Attributes:
        opset: ONNX operator set.
        any_size: graphs take frames of any size; otherwise of `data.size` alone, which runtimes can optimise further.
        input: `normalised` float32 tensors, or `frames`, uint8 RGB, which the graph normalises itself.
        precisions: forms written beside float32: `fp16`, and `int8` with the layers in float that lose too much.
        calibration_frames: training frames whose activations set the ranges of int8.
        parity_frames: real validation frames on which a file is compared with the network.
        tensorrt_precision: of an engine's products. `tf32` rounds what goes into them to 10 bits; `fp16` and `int8` are
            built from the graphs of that form, which `precisions` must name.
    """

    opset: int = 18
    any_size: bool = False
    input: GraphInput = "normalised"
    precisions: tuple[Precision, ...] = ()
    calibration_frames: int = 32
    parity_frames: int = 8
    tensorrt_precision: TensorRTPrecision = "fp32"

    def __post_init__(self) -> None:
        for name in ("opset", "calibration_frames", "parity_frames"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"export.{name}: {getattr(self, name)}, expected at least 1")
        if len(set(self.precisions)) < len(self.precisions):
            raise ConfigError(f"export.precisions: {', '.join(self.precisions)}, expected each once")


@dataclass(frozen=True)
class Bounds:
    """How far a file may be from the network.

    Attributes:
        max_probability_difference: of any pixel of the frames that are compared.
        mean_probability_difference: over the pixels of those frames.
        min_mask_agreement: share of pixels that are portrait in both or in neither.
        max_jf_difference: of J&F on the validation clips, in points of 100.
    """

    max_probability_difference: float
    mean_probability_difference: float
    min_mask_agreement: float
    max_jf_difference: float

    def __post_init__(self) -> None:
        for name, most in (
            ("max_probability_difference", 1),
            ("mean_probability_difference", 1),
            ("min_mask_agreement", 1),
            ("max_jf_difference", 100),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name}: {getattr(self, name)}, expected 0 to {most}")


@dataclass(frozen=True)
class ParityBounds:
    """The bounds of files in each precision; `configs/export.yaml` states the same."""

    fp32: Bounds = field(default_factory=lambda: Bounds(1e-3, 1e-4, 0.999, 0.05))
    tf32: Bounds = field(default_factory=lambda: Bounds(0.05, 1e-3, 0.998, 0.1))
    fp16: Bounds = field(default_factory=lambda: Bounds(0.05, 1e-3, 0.998, 0.1))
    int8: Bounds = field(default_factory=lambda: Bounds(1.0, 0.02, 0.98, 0.5))
