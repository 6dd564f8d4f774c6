"""What is exported and how closely it must agree."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportConfig:
    """The ONNX file and its acceptance.

    Attributes:
        opset: ONNX operator set.
        parity_frames: real validation frames on which the file is compared with the network.
        max_probability_difference: largest difference of a pixel's probability.
        max_jf_difference: largest difference of J&F on the validation clips, in points of 100.
    """

    opset: int = 18
    parity_frames: int = 8
    max_probability_difference: float = 1e-3
    max_jf_difference: float = 0.05
