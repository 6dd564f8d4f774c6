"""A clip, whatever it comes from: its frames with their times, and what a video made of it has to know."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from pdnet.data.io import UInt8Array, find_images, read_image
from pdnet.errors import DataError

#: Frames a second of a video that is made of a folder of frames.
FOLDER_RATE = Fraction(25)


class Frame(NamedTuple):
    """A frame of a clip.

    Attributes:
        name: what a file made of it is called, without its suffix.
        image: (H, W, 3) uint8 RGB, upright.
        time: of its showing, in units of the clip's time base.
        duration: in the same units; 0 where nobody says.
    """

    name: str
    image: UInt8Array
    time: int
    duration: int


class Colours(NamedTuple):
    """How a video stores its colours, by the numbers of ITU-T H.273: 1 is BT.709, 2 is not said."""

    matrix: int = 1
    primaries: int = 1
    transfer: int = 1


class Facts(NamedTuple):
    """What a clip is, beside its frames.

    Attributes:
        height, width: of all frames in pixels, upright.
        rate: frames a second, on average.
        time_base: unit of the frames' times, in seconds.
        aspect: of a pixel, width to height; None where nobody says.
        colours: of the video.
    """

    height: int
    width: int
    rate: Fraction
    time_base: Fraction
    aspect: Fraction | None = None
    colours: Colours = Colours()

    def check(self, image: UInt8Array, where: str) -> None:
        """Check that a frame has the size of the others.

        Raises:
            DataError: it has not.
        """
        height, width = image.shape[:2]
        if (height, width) != (self.height, self.width):
            raise DataError(
                f"{where}: {width}x{height}; expected {self.width}x{self.height}, as the clip's first frame"
            )


class FolderReader:
    """A folder of images as a clip, in order of name.

    Args:
        folder: with images and any other files.

    Raises:
        DataError: it is missing, or holds no image, or two of one name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._paths = folder, find_images(folder)
        if not self._paths:
            raise DataError(f"{folder}: no images")
        self.count = len(self._paths)

    @property
    def facts(self) -> Facts:
        """Those of a video of these frames, if they are all of one size."""
        height, width = read_image(next(iter(self._paths.values()))).shape[:2]
        return Facts(height, width, rate=FOLDER_RATE, time_base=1 / FOLDER_RATE)

    def frames(self) -> Iterator[Frame]:
        """Read one after the other; they may differ in size.

        Raises:
            DataError: a file is damaged or no image.
        """
        for index, (stem, path) in enumerate(self._paths.items()):
            yield Frame(stem, read_image(path), index, 1)
