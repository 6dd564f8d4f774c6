"""What a valid data set is, where that differs from set to set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdnet.errors import ConfigError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class ValidationConfig:
    """Limits of the rules; the defaults are the paper's collection rules (3.1) where it states one.

    Attributes:
        collection: what a clip that breaks one of those (length, keyframe interval, size) is: `error` stops the
            pipeline, `warning` is said and reported. Training itself can do with other footage; every other rule
            is an error always.
        keyframe_interval: frames of the video from one keyframe to the next. Paper: every 5th frame is annotated.
        fps: frames a second of the video (not of the keyframes). Paper: 30.
        min_seconds: shortest clip in seconds; 0 for no limit. Paper: 6.
        min_short_side: smallest short side of a clip's frames in pixels. Paper: 720 for the originals; 480 is
            their 480p version, which training and scores use.
        max_empty_frames: largest share of a clip's keyframes without any portrait. Paper silent: a person may leave
            the picture for a while, but a clip that shows nobody most of the time teaches the background.
        max_empty_stills: largest share of an image set's masks without any portrait. Paper silent: none.
    """

    collection: Severity = "error"
    keyframe_interval: int = 5
    fps: float = 30.0
    min_seconds: float = 6.0
    min_short_side: int = 480
    max_empty_frames: float = 0.5
    max_empty_stills: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("keyframe_interval", 1), ("min_seconds", 0), ("min_short_side", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"validation.{name}: {getattr(self, name)}, expected at least {least}")
        if not self.fps > 0:
            raise ConfigError(f"validation.fps: {self.fps}, expected more than 0")
        for name in ("max_empty_frames", "max_empty_stills"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"validation.{name}: {getattr(self, name)}, expected a share from 0 to below 1")
