"""Which clips, frames and stills a data set holds: plain pandas tables, made from the folders' names alone."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from pdnet.data.io import find_images
from pdnet.errors import DataError

SPLITS = ("train", "val")
FRAME_COLUMNS = ("split", "scenario", "clip", "frame", "position", "image", "mask")
STILL_COLUMNS = ("name", "image", "mask")

_IMAGE_FOLDERS = ("Images", "images", "img")
_MASK_FOLDERS = ("Labels", "labels", "masks", "Masks", "mask")


def index_clips(root: Path, *, resolution: str = "480p", splits: tuple[str, ...] = SPLITS) -> pd.DataFrame:
    """List the annotated frames of a data set in the MVPS layout (one reader serves every set brought into it).

        ImageSets/<split>.txt                              one `<scenario>/<clip>` per line
        Keyframes/<resolution>/<scenario>/<clip>/*.jpg     frames
        Annotations/<resolution>/<scenario>/<clip>/*.png   masks, same stems

    Args:
        root: the folder that holds `ImageSets/`.
        resolution: the folder below `Keyframes/` and `Annotations/`.
        splits: names of the lists to read.

    Returns:
        One row a frame, clips in the order of the list and frames in order of name: split, scenario,
        clip (`<scenario>/<clip>`), frame (stem), position (0-based within the clip), image and mask (paths as text).

    Raises:
        DataError: a list or folder is missing, a clip is named outside the layout, or a frame has no mask.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected a data set in the MVPS layout")
    rows: list[tuple[str, str, str, str, int, str, str]] = []
    for split in splits:
        for clip in _read_list(root / "ImageSets" / f"{split}.txt"):
            frames = find_images(root / "Keyframes" / resolution / clip)
            masks = find_images(root / "Annotations" / resolution / clip)
            if not frames:
                raise DataError(f"{root / 'Keyframes' / resolution / clip}: no images")
            _check_pairs(frames, masks, root / "Annotations" / resolution / clip)
            scenario = clip.split("/")[0]
            rows += [
                (split, scenario, clip, stem, position, str(path), str(masks[stem]))
                for position, (stem, path) in enumerate(frames.items())
            ]
    return pd.DataFrame(rows, columns=list(FRAME_COLUMNS))


def index_stills(root: Path) -> pd.DataFrame:
    """List the pairs of an image set: `Images/` + `Labels/` (EG1800) or `images/` + `masks/`, paired by stem.

    Where `train.txt` names stems, one a line, only those are taken. Images without a mask are an error, masks
    without an image too: half a pair is a broken copy, not a smaller set.

    Returns:
        One row a pair in order of name: name (stem), image and mask (paths as text).

    Raises:
        DataError: a folder is missing, a pair is incomplete, or `train.txt` names an image that is not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected an image set (Images/ and Labels/)")
    image_folder = _first_folder(root, _IMAGE_FOLDERS)
    mask_folder = _first_folder(root, _MASK_FOLDERS)
    images, masks = find_images(image_folder), find_images(mask_folder)
    names = list(images)
    if (root / "train.txt").is_file():
        names = [PurePosixPath(line).stem for line in _read_lines(root / "train.txt")]
        if absent := [name for name in names if name not in images]:
            raise DataError(f"{root / 'train.txt'}: {len(absent)} of {len(names)} names have no image in "
                            f"{image_folder}, first: {absent[0]}")  # fmt: skip
    if not names:
        raise DataError(f"{image_folder}: no images")
    _check_pairs(
        {name: images[name] for name in names}, masks, mask_folder, extra_masks_allowed=(root / "train.txt").is_file()
    )
    return pd.DataFrame([(name, str(images[name]), str(masks[name])) for name in names], columns=list(STILL_COLUMNS))


def _check_pairs(
    images: dict[str, Path], masks: dict[str, Path], mask_folder: Path, *, extra_masks_allowed: bool = False
) -> None:
    if lacking := [stem for stem in images if stem not in masks]:
        raise DataError(f"{mask_folder}: {len(lacking)} of {len(images)} images have no mask, first: {lacking[0]}")
    if not extra_masks_allowed and (extra := [stem for stem in masks if stem not in images]):
        raise DataError(f"{mask_folder}: {len(extra)} of {len(masks)} masks have no image, first: {extra[0]}")


def _first_folder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root}: none of the folders {', '.join(names)}; expected an image set")


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read_list(path: Path) -> list[str]:
    clips = _read_lines(path)
    for clip in clips:
        parts = PurePosixPath(clip).parts
        if len(parts) != 2 or ".." in parts or parts[0] == "/":
            raise DataError(f"{path}: '{clip}' is not <scenario>/<clip>")
    return clips
