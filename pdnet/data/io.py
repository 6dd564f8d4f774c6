"""Reading images and masks: what is on disk becomes RGB and booleans, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pdnet.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


def open_image(path: Path | str) -> Image.Image:
    """Open and fully decode an image; EXIF rotation applied.

    Raises:
        DataError: the file is missing, empty, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image that can be read ({Path(path).stat().st_size} bytes)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: damaged image ({error})") from None


def read_image(path: Path | str) -> UInt8Array:
    """Read an image as RGB.

    Returns:
        (H, W, 3) uint8; grey, palette, CMYK and alpha images are converted, 16-bit ones scaled to 8 bits.

    Raises:
        DataError: the file is missing, damaged or no image.
    """
    return np.asarray(to_rgb(open_image(path)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB; 16-bit grey is scaled (Pillow's own conversion clips it)."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        peak = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0.0) > 255 else 255.0
        image = Image.fromarray(np.round(values * (255.0 / peak)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def write_png(picture: UInt8Array, target: Path | BinaryIO) -> None:
    """Write (H, W), (H, W, 3) or (H, W, 4) uint8; a tenth larger than Pillow's default, in a third of the time."""
    Image.fromarray(picture).save(target, "PNG", compress_level=1)


def read_mask(path: Path | str) -> BoolArray:
    """Read a portrait mask: a grey or palette PNG whose non-zero values are portrait.

    A mask holds exactly one portrait value ({0, 255}, {0, 1}, {0, 38}); anything else is a probability map or a
    label map and needs a decision that this function does not make.

    Returns:
        (H, W) bool.

    Raises:
        DataError: the file is missing, damaged, or holds more than one non-zero value.
    """
    values = read_levels(path)
    if not is_binary(values):
        found = np.unique(values)
        shown = ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")
        raise DataError(f"{path}: not a binary mask: it holds {len(found)} values ({shown}), expected 0 and one other")
    portrait: BoolArray = values != 0
    return portrait


def is_binary(levels: UInt8Array) -> bool:
    """Whether (H, W) uint8 levels hold at most one value besides 0."""
    return bool(((levels == 0) | (levels == levels.max(initial=0))).all())


def read_pair(image_path: Path | str, mask_path: Path | str) -> tuple[UInt8Array, BoolArray]:
    """Read an image and its mask: (H, W, 3) uint8 and (H, W) bool.

    Raises:
        DataError: a file cannot be read, or the two differ in size.
    """
    image, mask = read_image(image_path), read_mask(mask_path)
    if image.shape[:2] != mask.shape:
        found, expected = (f"{x.shape[1]}x{x.shape[0]}" for x in (mask, image))
        raise DataError(f"{mask_path}: the mask is {found}, expected {expected}, the size of {image_path}")
    return image, mask


def read_levels(path: Path | str) -> UInt8Array:
    """Read a single-channel file as stored: grey levels, or the indices of a palette file.

    Returns:
        (H, W) uint8; 1-bit files become {0, 255}; a colour file with three equal channels is read as grey.

    Raises:
        DataError: the file is missing, damaged, or has colour.
    """
    image = open_image(path)
    if image.mode in ("L", "P"):
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    channels = np.asarray(image)
    if channels.ndim == 3 and image.mode in ("RGB", "RGBA") and (channels[..., :3] == channels[..., :1]).all():
        return np.ascontiguousarray(channels[..., 0])
    raise DataError(f"{path}: a mask must be a grey or palette image, found mode {image.mode}")


def find_images(folder: Path) -> dict[str, Path]:
    """The image files of one folder by stem, in order of name.

    Raises:
        DataError: the folder is missing, or two files share a stem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise DataError(f"{folder}: two images of one name: {found[path.stem].name} and {path.name}")
            found[path.stem] = path
    return found
