"""What is exported and how closely it must agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdnet.errors import ConfigError

TensorRTPrecision = Literal["fp32", "tf32"]


@dataclass(frozen=True)
class ExportConfig:
    """The exported files and their acceptance.

    Attributes:
        opset: ONNX operator set.
        parity_frames: real validation frames on which a file is compared with the network.
        max_probability_difference: largest difference of a pixel's probability.
        max_jf_difference: largest difference of J&F on the validation clips, in points of 100.
        tensorrt_precision: of the engine's products: `tf32` rounds what goes into them to 10 bits, which is faster
            and may need a larger `max_probability_difference`.
    """

    opset: int = 18
    parity_frames: int = 8
    max_probability_difference: float = 1e-3
    max_jf_difference: float = 0.05
    tensorrt_precision: TensorRTPrecision = "fp32"

    def __post_init__(self) -> None:
        for name, least in (
            ("opset", 1),
            ("parity_frames", 1),
            ("max_probability_difference", 0),
            ("max_jf_difference", 0),
        ):
            if not getattr(self, name) >= least:
                raise ConfigError(f"export.{name}: {getattr(self, name)}, expected at least {least}")
