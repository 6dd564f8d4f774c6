"""The rules, one after another: what each says, the expectation that checks it, and how an offender is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pdnet.data.index import SPLITS
from pdnet.validation.config import Severity, ValidationConfig

Table = Literal["frames", "clips", "stills"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One rule on one table.

    Attributes:
        table: the table that it is checked on.
        name: its title: a few words that are true of valid data.
        sentence: the rule in plain words; Great Expectations shows it as the expectation's note.
        expectation: class name in `great_expectations.expectations`.
        arguments: keyword arguments of that class.
        offender: one line for a row that breaks it: which file or clip, what was found, what was expected.
            A rule on a table as a whole gets an empty row.
        severity: whether a broken rule stops the pipeline.
    """

    table: Table
    name: str
    sentence: str
    expectation: str
    arguments: Mapping[str, Any]
    offender: Callable[[Row], str]
    severity: Severity = "error"


def rules(config: ValidationConfig) -> tuple[Rule, ...]:
    """Every rule of a data set under these limits."""
    return (
        *_split_rules(),
        *_clip_rules(config),
        *_pair_rules("frames"),
        *_frame_rules(),
        *_pair_rules("stills"),
        *_still_rules(config),
    )


def _split_rules() -> tuple[Rule, ...]:
    def absent(split: str) -> Callable[[Row], str]:
        return lambda _: f"no clip in {split}; expected ImageSets/{split}.txt to name at least one <scenario>/<clip>"

    filled = tuple(
        Rule(
            "clips",
            f"{split} is not empty",
            f"The split {split} holds at least one clip.",
            "ExpectColumnDistinctValuesToContainSet",
            {"column": "split", "value_set": [split]},
            absent(split),
        )
        for split in SPLITS
    )
    apart = Rule(
        "clips",
        "splits are apart",
        "No clip is in both splits: a score on clips that were trained on says nothing.",
        "ExpectColumnValuesToBeUnique",
        {"column": "clip"},
        lambda row: f"{row['clip']}: named in {row['splits'].replace(', ', ' and ')}, expected one split",
    )
    return (*filled, apart)


def _clip_rules(config: ValidationConfig) -> tuple[Rule, ...]:
    return (
        Rule(
            "clips",
            "clip has a pair",
            "A clip has at least two keyframes: a target and a reference.",
            "ExpectColumnValuesToBeBetween",
            {"column": "frames", "min_value": 2},
            lambda row: f"{row['clip']} ({row['split']}): {row['frames']} keyframe, expected 2 or more",
        ),
        Rule(
            "clips",
            "clip is long enough",
            f"A clip lasts at least {config.min_seconds:g} s at {config.fps:g} frames a second.",
            "ExpectColumnValuesToBeBetween",
            {"column": "seconds", "min_value": config.min_seconds},
            lambda row: (
                f"{row['clip']} ({row['split']}): {row['seconds']:.2f} s long, expected at least "
                f"{config.min_seconds:g} s (validation.min_seconds)"
            ),
            config.collection,
        ),
        Rule(
            "clips",
            "keyframes are evenly spaced",
            "Keyframes follow each other at one interval, in order of name, without a gap.",
            "ExpectColumnValuesToBeInSet",
            {"column": "spacing_breaks", "value_set": [0]},
            lambda row: (
                f"{row['clip']} ({row['split']}): {row['spacing_breaks']} of {row['frames'] - 1} steps between "
                f"keyframes are not {row['step']} frames, first {row['first_break']}"
            ),
        ),
        Rule(
            "clips",
            "keyframe interval",
            f"A clip has a keyframe every {config.keyframe_interval} frames.",
            "ExpectColumnValuesToBeInSet",
            {"column": "spacing", "value_set": [config.keyframe_interval]},
            lambda row: (
                f"{row['clip']} ({row['split']}): a keyframe every {row['spacing']} frames, expected every "
                f"{config.keyframe_interval} (validation.keyframe_interval)"
            ),
            config.collection,
        ),
        Rule(
            "clips",
            "clip has one size",
            "All frames of a clip have the same width and height.",
            "ExpectColumnValuesToBeBetween",
            {"column": "size_count", "max_value": 1},
            lambda row: f"{row['clip']} ({row['split']}): {row['size_count']} sizes ({row['sizes']}), expected one",
        ),
        Rule(
            "clips",
            "clip is large enough",
            f"The short side of a clip's frames is at least {config.min_short_side} pixels.",
            "ExpectColumnValuesToBeBetween",
            {"column": "short_side", "min_value": config.min_short_side},
            lambda row: (
                f"{row['clip']} ({row['split']}): {row['width']}x{row['height']}, expected a short side of at "
                f"least {config.min_short_side} pixels (validation.min_short_side)"
            ),
            config.collection,
        ),
        Rule(
            "clips",
            "clip shows portraits",
            f"At most {config.max_empty_frames:.0%} of a clip's masks are empty.",
            "ExpectColumnValuesToBeBetween",
            {"column": "empty_share", "max_value": config.max_empty_frames},
            lambda row: (
                f"{row['clip']} ({row['split']}): {row['empty_masks']} of {row['frames']} masks are empty, "
                f"expected at most {config.max_empty_frames:.0%}"
            ),
        ),
    )


def _frame_rules() -> tuple[Rule, ...]:
    return (
        Rule(
            "frames",
            "frame is numbered",
            "A frame's name ends in its number in the video; order and spacing follow from it.",
            "ExpectColumnValuesToNotBeNull",
            {"column": "frame_number"},
            lambda row: (
                f"{row['image']}: the name '{row['frame']}' does not end in a frame number, expected one like 00005"
            ),
        ),
        Rule(
            "frames",
            "frame is there once",
            "No frame is in its clip twice, under another name or because the list names the clip twice.",
            "ExpectCompoundColumnsToBeUnique",
            {"column_list": ["split", "clip", "frame_number"], "ignore_row_if": "any_value_is_missing"},
            lambda row: (
                f"{row['image']}: frame {row['frame_number']} of {row['clip']} is in {row['split']} more than "
                "once, expected once"
            ),
        ),
    )


def _pair_rules(table: Table) -> tuple[Rule, ...]:
    return (
        Rule(
            table,
            "image decodes",
            "Every image exists and decodes to its last pixel.",
            "ExpectColumnValuesToBeInSet",
            {"column": "readable_image", "value_set": [True]},
            lambda row: f"{row['image_error']}, expected an image that decodes",
        ),
        Rule(
            table,
            "mask decodes",
            "Every mask exists, decodes to its last pixel and is grey or palette.",
            "ExpectColumnValuesToBeInSet",
            {"column": "readable_mask", "value_set": [True]},
            lambda row: f"{row['mask_error']}, expected a mask that decodes",
        ),
        Rule(
            table,
            "mask fits its image",
            "A mask has the width and height of its image.",
            "ExpectColumnValuesToBeInSet",
            {"column": "sizes_match", "value_set": [True]},
            lambda row: (
                f"{row['mask']}: {row['mask_width']}x{row['mask_height']}, expected "
                f"{row['image_width']}x{row['image_height']} as its image"
            ),
        ),
        Rule(
            table,
            "mask is binary",
            "A mask holds 0 for background and one other value for portrait.",
            "ExpectColumnValuesToBeInSet",
            {"column": "mask_binary", "value_set": [True]},
            lambda row: f"{row['mask']}: holds {row['mask_values']}, expected 0 and one other value",
        ),
    )


def _still_rules(config: ValidationConfig) -> tuple[Rule, ...]:
    return (
        Rule(
            "stills",
            "still shows a portrait",
            f"At most {config.max_empty_stills:.0%} of the stills' masks are empty.",
            "ExpectColumnValuesToBeInSet",
            # Rounded, or 1 - 0.7 asks for more than 3 of 10.
            {"column": "has_portrait", "value_set": [True], "mostly": round(1 - config.max_empty_stills, 12)},
            lambda row: f"{row['mask']}: no portrait, expected one (at most {config.max_empty_stills:.0%} without)",
        ),
        Rule(
            "stills",
            "still is there once",
            "No still is listed twice.",
            "ExpectColumnValuesToBeUnique",
            {"column": "name"},
            lambda row: f"{row['image']}: '{row['name']}' is listed more than once, expected once",
        ),
    )
