"""Where the data lie and how a frame becomes an input of the network."""

from __future__ import annotations

from dataclasses import dataclass

from pdnet.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Data of one run.

    Attributes:
        videos: a data set in the MVPS layout (relative paths: to the working folder). The pipeline's commands take
            it, and `images`, from here; a single step reads the folder that its own option names.
        images: an image set for the image stream, `Images/` + `Labels/`.
        resolution: the folder below `Keyframes/` and `Annotations/`.
        size: frames are resized to `size` x `size` pixels for prediction, scores and export. Paper: 5.1, 480.
    """

    videos: str = "data/mvps"
    images: str = "data/mvps/Stills"
    resolution: str = "480p"
    size: int = 480

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ConfigError(f"data.size: {self.size}, expected at least 32")
