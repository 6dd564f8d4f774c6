"""How a model is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdnet.errors import ConfigError

ScoringProtocol = Literal["mvps", "davis2016", "davis2017", "all-frames"]


@dataclass(frozen=True)
class EvaluationConfig:
    """Scoring on the validation clips.

    Attributes:
        protocol: which frames count; `mvps` leaves out the first and last annotated frame of a clip.
        threshold: a pixel is portrait where its probability is at least this. Paper: 5.3, 0.5.
        speed_frames: frames timed for the FPS figure, after a warm-up.
    """

    protocol: ScoringProtocol = "mvps"
    threshold: float = 0.5
    speed_frames: int = 30

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"evaluation.threshold: {self.threshold}, expected more than 0, at most 1")
        if self.speed_frames < 1:
            raise ConfigError(f"evaluation.speed_frames: {self.speed_frames}, expected at least 1")
