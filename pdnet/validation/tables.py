"""Tables of what the files hold: the index with every image and mask opened once, and one row a clip."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from pdnet.data.io import UInt8Array, is_binary, open_image, read_levels
from pdnet.errors import DataError
from pdnet.validation.config import ValidationConfig

#: What `frame_table` and `still_table` add to a pair of files. A fact that an unreadable file hides is missing (NA).
PAIR_DTYPES = {
    "readable_image": "bool",
    "readable_mask": "bool",
    "image_error": "str",
    "mask_error": "str",
    "image_width": "Int64",
    "image_height": "Int64",
    "mask_width": "Int64",
    "mask_height": "Int64",
    "sizes_match": "boolean",
    "mask_binary": "boolean",
    "mask_values": "str",
    "portrait_share": "float64",
}

CLIP_DTYPES = {
    "split": "str",
    "scenario": "str",
    "clip": "str",
    "splits": "str",
    "frames": "int64",
    "seconds": "float64",
    "width": "Int64",
    "height": "Int64",
    "short_side": "Int64",
    "orientation": "str",
    "sizes": "str",
    "size_count": "int64",
    "step": "int64",
    "spacing": "Int64",
    "spacing_breaks": "int64",
    "first_break": "str",
    "empty_masks": "int64",
    "empty_share": "float64",
    "portrait_share": "float64",
}


def frame_table(frames: pd.DataFrame) -> pd.DataFrame:
    """Open every image and mask of `index_clips` and say what they hold.

    Args:
        frames: the table of `pdnet.data.index.index_clips`.

    Returns:
        The same rows and columns, with the columns of `PAIR_DTYPES`: readable_image, readable_mask, image_error and
        mask_error (text, empty if none), image and mask width and height (pixels, EXIF rotation applied),
        sizes_match, mask_binary, mask_values (text), portrait_share (area fraction in [0, 1]); and frame_number
        (the digits that end the stem) and step (its distance to the keyframe before, missing at a clip's first).
    """
    table = _open_pairs(frames)
    table["frame_number"] = pd.array([_frame_number(stem) for stem in table["frame"]], dtype="Int64")
    step = table.groupby(["split", "clip"], sort=False)["frame_number"].diff()
    table["step"] = step.astype("Int64").mask(table["position"] == 0)
    return table


def still_table(stills: pd.DataFrame) -> pd.DataFrame:
    """Open every image and mask of `index_stills` and say what they hold.

    Returns:
        The same rows and columns, with the columns of `PAIR_DTYPES` and has_portrait (missing if unreadable).
    """
    table = _open_pairs(stills)
    table["has_portrait"] = (table["portrait_share"] > 0).astype("boolean").mask(table["portrait_share"].isna())
    return table


def clip_table(frames: pd.DataFrame, config: ValidationConfig) -> pd.DataFrame:
    """Sum up a `frame_table` as one row a clip (and split, should two lists name it).

    Returns:
        The columns of `CLIP_DTYPES`: split, scenario, clip, splits (every split that names the clip), frames,
        seconds (of video, see `_seconds`), width, height and short_side (pixels, first readable frame), orientation
        (landscape, portrait or square), sizes (every frame size found), size_count, step (frames from one keyframe to
        the next, the commonest), spacing (the same, missing where it varies), spacing_breaks (how many steps are not
        the commonest), first_break (between which frames), empty_masks, empty_share, and portrait_share (mean over
        the clip).
    """
    splits = {str(clip): ", ".join(dict.fromkeys(own)) for clip, own in frames.groupby("clip")["split"]}
    rows = [
        {"split": split, "clip": clip, "splits": splits[str(clip)], **_clip_facts(group, config)}
        for (split, clip), group in frames.groupby(["split", "clip"], sort=False)
    ]
    return pd.DataFrame(rows, columns=list(CLIP_DTYPES)).astype(CLIP_DTYPES)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts by column; what is missing is None."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(column): value for column, value in row.items()} for row in plain.to_dict("records")]


def _open_pairs(index: pd.DataFrame) -> pd.DataFrame:
    # Pillow decodes without the interpreter lock, so threads keep every core busy.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        facts = list(pool.map(_pair_facts, index["image"], index["mask"], chunksize=8))
    table = pd.DataFrame(facts, columns=list(PAIR_DTYPES)).astype(PAIR_DTYPES)
    return pd.concat([index.reset_index(drop=True), table], axis=1)


def _pair_facts(image_path: str, mask_path: str) -> dict[str, Any]:
    facts: dict[str, Any] = dict.fromkeys(PAIR_DTYPES)
    image_size, image_error = _image_size(image_path)
    levels, mask_error = _levels(mask_path)
    facts |= {"readable_image": image_size is not None, "image_error": image_error}
    facts |= {"readable_mask": levels is not None, "mask_error": mask_error, "mask_values": ""}
    if image_size is not None:
        facts["image_width"], facts["image_height"] = image_size
    if levels is not None:
        facts["mask_height"], facts["mask_width"] = levels.shape
        facts |= _mask_facts(levels)
    if image_size is not None and levels is not None:
        facts["sizes_match"] = image_size == (facts["mask_width"], facts["mask_height"])
    return facts


def _image_size(path: str) -> tuple[tuple[int, int] | None, str]:
    try:
        return open_image(path).size, ""
    except DataError as error:
        return None, str(error)


def _levels(path: str) -> tuple[UInt8Array | None, str]:
    try:
        return read_levels(path), ""
    except DataError as error:
        return None, str(error)


def _mask_facts(levels: UInt8Array) -> dict[str, Any]:
    """What `read_mask` would say of these levels, without reading them twice."""
    count, binary = np.count_nonzero(levels), is_binary(levels)
    # Sorting all levels of every mask takes longer than decoding them.
    values = ([0] if count < levels.size else []) + ([int(levels.max())] if count else [])
    return {
        "mask_binary": binary,
        "mask_values": _listed(values if binary else np.unique(levels).tolist()),
        "portrait_share": count / levels.size,
    }


def _listed(values: list[int], most: int = 6) -> str:
    return ", ".join(map(str, values[:most])) + (f", ... ({len(values)} values)" if len(values) > most else "")


def _frame_number(stem: str) -> int | None:
    digits = re.search(r"[0-9]{1,18}$", stem)  # 18 digits fit into an int64
    return int(digits[0]) if digits else None


def _clip_facts(group: pd.DataFrame, config: ValidationConfig) -> dict[str, Any]:
    sizes = group[["image_width", "image_height"]].dropna().drop_duplicates()
    width, height = sizes.iloc[0] if len(sizes) else (None, None)
    steps = group["step"].dropna()
    commonest = steps[steps > 0].mode()
    step = int(commonest.iloc[0]) if len(commonest) else config.keyframe_interval
    breaks = group[group["step"].notna() & (group["step"] != step)]
    shares = group["portrait_share"].dropna()
    empty = int((shares == 0).sum())
    return {
        "scenario": group["scenario"].iloc[0],
        "frames": len(group),
        "seconds": _seconds(group["frame_number"], step, config.fps),
        "width": width,
        "height": height,
        "short_side": None if width is None else min(width, height),
        "orientation": _orientation(width, height),
        "sizes": ", ".join(f"{w}x{h}" for w, h in sizes.itertuples(index=False)),
        "size_count": len(sizes),
        "step": step,
        "spacing": step if steps.nunique() == 1 else None,
        "spacing_breaks": len(breaks),
        "first_break": _break_text(group, breaks),
        "empty_masks": empty,
        "empty_share": empty / len(shares) if len(shares) else None,
        "portrait_share": shares.mean(),
    }


def _seconds(numbers: pd.Series, step: int, fps: float) -> float | None:
    """Length in seconds of the longest video that has these keyframes: each stands for `step` frames.

    The frames after the last keyframe are not on disk; counting them all keeps a clip of exactly the minimal length
    from being refused.
    """
    if numbers.isna().any():
        return None
    return float(numbers.max() - numbers.min() + step) / fps


def _orientation(width: int | None, height: int | None) -> str:
    if width is None or height is None:
        return ""
    if width == height:
        return "square"
    return "landscape" if width > height else "portrait"


def _break_text(group: pd.DataFrame, breaks: pd.DataFrame) -> str:
    if breaks.empty:
        return ""
    stems, broken = group["frame"].tolist(), group.index.isin(breaks.index).tolist()
    at = broken.index(True)
    return f"{stems[at - 1]} -> {stems[at]}"
