"""Which clips, frames and stills a data set holds: plain pandas tables, made from the folders' names alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

import pandas as pd

from pdnet.data.io import IMAGE_SUFFIXES, find_images
from pdnet.errors import DataError

SPLITS = ("train", "val")
FRAME_COLUMNS = ("split", "scenario", "clip", "frame", "position", "image", "mask")
STILL_COLUMNS = ("name", "image", "mask")

_IMAGE_FOLDERS = ("Images", "images", "img")
_MASK_FOLDERS = ("Labels", "labels", "masks", "Masks", "mask")


def index_clips(
    root: Path, *, resolution: str = "480p", splits: tuple[str, ...] = SPLITS, complete: bool = True
) -> pd.DataFrame:
    """List the annotated frames of a data set in the MVPS layout (one reader serves every set brought into it).

        ImageSets/<split>.txt                              one `<scenario>/<clip>` per line
        Keyframes/<resolution>/<scenario>/<clip>/*.jpg     frames
        Annotations/<resolution>/<scenario>/<clip>/*.png   masks, same stems

    Args:
        root: the folder that holds `ImageSets/`.
        resolution: the folder below `Keyframes/` and `Annotations/`.
        splits: names of the lists to read.
        complete: refuse a frame without its mask, or a mask without its frame. False lists it too, with the path
            where the missing half is expected, for whoever wants to name them all.

    Returns:
        One row a frame, clips in the order of the list and frames in order of name: split, scenario,
        clip (`<scenario>/<clip>`), frame (stem), position (0-based within the clip), image and mask (paths as text).

    Raises:
        DataError: a list is missing, a clip is named outside the layout, two images of a folder share a stem, clips
            have no files at all, or a folder or half of a pair is missing where `complete`.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected a data set in the MVPS layout")
    rows: list[tuple[str, str, str, str, int, str, str]] = []
    empty: list[str] = []
    for split in splits:
        for clip in _read_list(root / "ImageSets" / f"{split}.txt"):
            image_folder, mask_folder = (root / kind / resolution / clip for kind in ("Keyframes", "Annotations"))
            if complete:
                images, masks = find_images(image_folder), find_images(mask_folder)
                if not images:
                    raise DataError(f"{image_folder}: no images")
                _check_pairs(images, masks, mask_folder)
            else:
                images, masks = (find_images(x) if x.is_dir() else {} for x in (image_folder, mask_folder))
                empty += [] if images or masks else [clip]
            scenario = clip.split("/")[0]
            pairs = _pairs(_all_stems(images, masks), images, masks, image_folder, mask_folder)
            rows += [
                (split, scenario, clip, stem, position, image, mask)
                for position, (stem, image, mask) in enumerate(pairs)
            ]
    if empty:
        folders = " nor ".join(str(root / kind / resolution) for kind in ("Keyframes", "Annotations"))
        raise DataError(f"{root / 'ImageSets'}: names clips without a file in {folders}: "
                        f"{', '.join(dict.fromkeys(empty))}")  # fmt: skip
    return pd.DataFrame(rows, columns=list(FRAME_COLUMNS))


def index_stills(root: Path, *, complete: bool = True) -> pd.DataFrame:
    """List the pairs of an image set: `Images/` + `Labels/` (EG1800) or `images/` + `masks/`, paired by stem.

    Where `train.txt` names stems or files, one a line, only those are taken. Images without a mask are an error, masks
    without an image too: half a pair is a broken copy, not a smaller set.

    Args:
        root: the folder of the image set.
        complete: as in `index_clips`.

    Returns:
        One row a pair in order of the list, else of name: name (stem), image and mask (paths as text).

    Raises:
        DataError: a folder is missing, two images of it share a stem, there are no images, or where `complete`, a
            pair is incomplete or `train.txt` names an image that is not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected an image set (Images/ and Labels/)")
    image_folder = _first_folder(root, _IMAGE_FOLDERS)
    mask_folder = _first_folder(root, _MASK_FOLDERS)
    images, masks = find_images(image_folder), find_images(mask_folder)
    listed = (root / "train.txt").is_file()
    stems = _all_stems(images, masks)
    if listed:
        known = set(stems)
        stems = [_stem(line, known) for line in _read_lines(root / "train.txt")]
    if not stems:
        raise DataError(f"{image_folder}: no images")
    if complete:
        if listed and (absent := [stem for stem in stems if stem not in images]):
            raise DataError(f"{root / 'train.txt'}: {len(absent)} of {len(stems)} names have no image in "
                            f"{image_folder}, first: {absent[0]}")  # fmt: skip
        chosen = {stem: images[stem] for stem in stems if stem in images}
        _check_pairs(chosen, masks, mask_folder, extra_masks_allowed=listed)
    rows = _pairs(stems, images, masks, image_folder, mask_folder)
    return pd.DataFrame(list(rows), columns=list(STILL_COLUMNS))


def _check_pairs(
    images: dict[str, Path], masks: dict[str, Path], mask_folder: Path, *, extra_masks_allowed: bool = False
) -> None:
    if lacking := [stem for stem in images if stem not in masks]:
        raise DataError(f"{mask_folder}: {len(lacking)} of {len(images)} images have no mask, first: {lacking[0]}")
    if not extra_masks_allowed and (extra := [stem for stem in masks if stem not in images]):
        raise DataError(f"{mask_folder}: {len(extra)} of {len(masks)} masks have no image, first: {extra[0]}")


def _all_stems(images: dict[str, Path], masks: dict[str, Path]) -> list[str]:
    """The stems of images and masks, in order of file name."""
    files = masks | images
    return sorted(files, key=lambda stem: files[stem].name)


def _pairs(
    stems: list[str], images: dict[str, Path], masks: dict[str, Path], image_folder: Path, mask_folder: Path
) -> Iterator[tuple[str, str, str]]:
    """Stem, image and mask; a missing half where it is expected."""
    for stem in stems:
        image = images.get(stem, image_folder / f"{stem}.jpg")
        mask = masks.get(stem, mask_folder / f"{stem}.png")
        yield stem, str(image), str(mask)


def _stem(line: str, known: Collection[str]) -> str:
    """The stem that a line of a list means: `a`, `a.png` and `Images/a.png` are `a`, but `a.b` is a stem itself."""
    name = PurePosixPath(line).name
    is_file = name not in known and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
    return PurePosixPath(name).stem if is_file else name


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
