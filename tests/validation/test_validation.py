"""A small valid data set, broken in one way at a time: the message names what is broken, and nothing else fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pdnet.config import Config
from pdnet.data.index import STILL_COLUMNS, index_clips, index_stills
from pdnet.errors import ConfigError, DataError, ValidationError
from pdnet.steps import validate
from pdnet.validation import (
    ValidationConfig,
    ValidationResult,
    clip_table,
    frame_table,
    rules,
    still_table,
    validate_tables,
    write_report,
)
from pdnet.validation.config import Severity

CONFIG = ValidationConfig(min_seconds=0.5, min_short_side=24)
WIDTH, HEIGHT = 32, 24
STEMS = ("00000", "00005", "00010", "00015")
VALID = {"news/anchor": "train", "lecture/board": "train", "interview/duo": "val"}


def _pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def _mask(value: int = 255) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[6:18, 8:24] = value  # a quarter of the picture
    return mask


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _image(root: Path, clip: str, stem: str) -> Path:
    return root / "Keyframes/480p" / clip / f"{stem}.jpg"


def _annotation(root: Path, clip: str, stem: str) -> Path:
    return root / "Annotations/480p" / clip / f"{stem}.png"


def _add_clip(root: Path, clip: str, split: str = "train", stems: tuple[str, ...] = STEMS) -> None:
    for seed, stem in enumerate(stems):
        _save(_image(root, clip, stem), _pixels(seed))
        _save(_annotation(root, clip, stem), _mask())
    _list(root, clip, split)


def _list(root: Path, clip: str, split: str) -> None:
    (root / "ImageSets").mkdir(exist_ok=True)
    with (root / "ImageSets" / f"{split}.txt").open("a") as names:
        names.write(f"{clip}\n")


def _make_valid(root: Path) -> Path:
    for clip, split in VALID.items():
        _add_clip(root, clip, split)
    for name in ("a", "b", "c"):
        _save(root / "Stills/Images" / f"{name}.png", _pixels(ord(name)))
        _save(root / "Stills/Labels" / f"{name}.png", _mask(1))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return _make_valid(tmp_path / "set")


def _tables(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """As the step reads them: half pairs too."""
    frames, stills = index_clips(root, complete=False), index_stills(root / "Stills", complete=False)
    return frame_table(frames), still_table(stills)


def _validate(root: Path, config: ValidationConfig = CONFIG) -> ValidationResult:
    frames, stills = _tables(root)
    return validate_tables(frames, clip_table(frames, config), stills, config)


def _broken(result: ValidationResult) -> dict[str, list[str]]:
    return {
        f"{outcome.rule.table}: {outcome.rule.name}": list(outcome.offenders)
        for outcome in result.outcomes
        if not outcome.passed
    }


def _make_faulty(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add to a valid set a clip (named after it) or a still for every fault, and a few that only look like one."""
    _make_valid(root)
    for clip in (
        "truncated", "no_image", "vanished", "empty_file", "coloured", "other_size", "grey", "nobody", "both_splits",
        "listed_twice", "two_sizes", "leaves", "full_and_1_bit",
    ):  # fmt: skip
        _add_clip(root, f"x/{clip}")
    _add_clip(root, "x/gap", stems=("00000", "00005", "00015", "00020"))
    _add_clip(root, "x/every_third", stems=("00", "03", "06", "09", "12", "15"))
    _add_clip(root, "x/time_order", stems=("0", "5", "10", "15"))
    _add_clip(root, "x/two_names", stems=("00000", "000005", "00005", "00010"))
    _add_clip(root, "x/unnumbered", stems=(*STEMS, "cover"))
    _add_clip(root, "x/prefix", stems=tuple(f"img_{stem}" for stem in STEMS))
    _add_clip(root, "x/short", stems=STEMS[:2])
    _add_clip(root, "x/single", stems=STEMS[:1])
    _add_clip(root, "x/small")

    jpeg = _image(root, "x/truncated", "00005")
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    _image(root, "x/no_image", "00005").write_bytes(b"text")
    _annotation(root, "x/empty_file", "00005").write_bytes(b"")
    _save(_annotation(root, "x/coloured", "00005"), _pixels(1))
    _save(_annotation(root, "x/other_size", "00005"), _mask()[:20])
    grey = _mask()
    grey[6, 8:11] = (10, 128, 250)
    _save(_annotation(root, "x/grey", "00005"), grey)
    for stem in STEMS:
        _save(_annotation(root, "x/nobody", stem), 0 * _mask())
        _save(_image(root, "x/small", stem), _pixels(0)[:20])
        _save(_annotation(root, "x/small", stem), _mask()[:20])
    _save(_annotation(root, "x/leaves", "00005"), 0 * _mask())
    _save(_annotation(root, "x/full_and_1_bit", "00000"), np.full_like(_mask(), 255))
    Image.fromarray(_mask() > 0).save(_annotation(root, "x/full_and_1_bit", "00005"))
    _list(root, "x/both_splits", "val")
    _list(root, "x/listed_twice", "train")
    _save(_image(root, "x/two_sizes", "00005"), _pixels(0).transpose(1, 0, 2))
    _save(_annotation(root, "x/two_sizes", "00005"), _mask().T)

    for name in ("truncated", "other_size", "grey", "nobody"):
        _save(root / "Stills/Images" / f"{name}.png", _pixels(1))
        _save(root / "Stills/Labels" / f"{name}.png", _mask())
    png = root / "Stills/Images/truncated.png"
    png.write_bytes(png.read_bytes()[:1000])
    _save(root / "Stills/Labels/other_size.png", _mask().T)
    _save(root / "Stills/Labels/grey.png", grey)
    _save(root / "Stills/Labels/nobody.png", 0 * _mask())
    names = [path.stem for path in sorted((root / "Stills/Images").iterdir())]
    (root / "Stills/train.txt").write_text("\n".join([*names, "b"]) + "\n")

    _image(root, "x/vanished", "00005").unlink()
    _annotation(root, "x/vanished", "00010").unlink()
    return _tables(root)


#: What is said of every fault, without what Pillow says of a damaged file.
FAULTS = {
    "clips: splits are apart": ["x/both_splits: named in train and val, expected one split"],
    "clips: clip has a pair": ["x/single (train): 1 keyframe, expected 2 or more"],
    "clips: clip is long enough": [
        "x/short (train): 0.33 s long, expected at least 0.5 s (validation.min_seconds)",
        "x/single (train): 0.17 s long, expected at least 0.5 s (validation.min_seconds)",
    ],
    "clips: keyframes are evenly spaced": [
        "x/gap (train): 1 of 3 steps between keyframes are not 5 frames, first 00005 -> 00015",
        "x/time_order (train): 2 of 3 steps between keyframes are not 5 frames, first 0 -> 10",
        "x/two_names (train): 1 of 3 steps between keyframes are not 5 frames, first 000005 -> 00005",
    ],
    "clips: keyframe interval": [
        "x/every_third (train): a keyframe every 3 frames, expected every 5 (validation.keyframe_interval)"
    ],
    "clips: clip has one size": ["x/two_sizes (train): 2 sizes (32x24, 24x32), expected one"],
    "clips: clip is large enough": [
        "x/small (train): 32x20, expected a short side of at least 24 pixels (validation.min_short_side)"
    ],
    "clips: clip shows portraits": ["x/nobody (train): 4 of 4 masks are empty, expected at most 50%"],
    "frames: image decodes": [
        "{images}/truncated/00005.jpg: damaged image ..., expected an image that decodes",
        "{images}/no_image/00005.jpg: not an image that can be read ..., expected an image that decodes",
        "{images}/vanished/00005.jpg: no such file, expected an image that decodes",
    ],
    "frames: mask decodes": [
        "{masks}/vanished/00010.png: no such file, expected a mask that decodes",
        "{masks}/empty_file/00005.png: not an image that can be read ..., expected a mask that decodes",
        "{masks}/coloured/00005.png: a mask must be a grey or palette image, found mode RGB, "
        "expected a mask that decodes",
    ],
    "frames: mask fits its image": ["{masks}/other_size/00005.png: 32x20, expected 32x24 as its image"],
    "frames: mask is binary": ["{masks}/grey/00005.png: holds 0, 10, 128, 250, 255, expected 0 and one other value"],
    "frames: frame is numbered": [
        "{images}/unnumbered/cover.jpg: the name 'cover' does not end in a frame number, expected one like 00005"
    ],
    "frames: frame is there once": [
        *(
            f"{{images}}/listed_twice/{stem}.jpg: frame {int(stem)} of x/listed_twice is in train more than once, "
            "expected once"
            for stem in STEMS
        ),
        "{images}/two_names/000005.jpg: frame 5 of x/two_names is in train more than once, expected once",
        "{images}/two_names/00005.jpg: frame 5 of x/two_names is in train more than once, expected once",
    ],
    "stills: image decodes": ["{stills}/Images/truncated.png: damaged image ..., expected an image that decodes"],
    "stills: mask fits its image": ["{stills}/Labels/other_size.png: 24x32, expected 32x24 as its image"],
    "stills: mask is binary": ["{stills}/Labels/grey.png: holds 0, 10, 128, 250, 255, expected 0 and one other value"],
    "stills: still shows a portrait": ["{stills}/Labels/nobody.png: no portrait, expected one (at most 0% without)"],
    "stills: still is there once": ["{stills}/Images/b.png: 'b' is listed more than once, expected once"],
}


@pytest.fixture(scope="module")
def faulty_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faulty")


@pytest.fixture(scope="module")
def faulty(faulty_root: Path) -> ValidationResult:
    frames, stills = _make_faulty(faulty_root)
    return validate_tables(frames, clip_table(frames, CONFIG), stills, CONFIG)


@pytest.mark.parametrize("rule", FAULTS)
def test_each_fault_is_named_and_nothing_else(faulty_root: Path, faulty: ValidationResult, rule: str) -> None:
    folders = {
        "images": faulty_root / "Keyframes/480p/x",
        "masks": faulty_root / "Annotations/480p/x",
        "stills": faulty_root / "Stills",
    }
    expected = [line.format(**folders) for line in FAULTS[rule]]
    said = [re.sub(r"(damaged image|can be read) \(.*\)", r"\1 ...", line) for line in _broken(faulty)[rule]]
    assert said == expected


def test_the_other_rules_hold(faulty: ValidationResult) -> None:
    assert list(_broken(faulty)) == list(FAULTS)
    assert not faulty.success


def test_failures_are_one_line_each_with_five_offenders(faulty: ValidationResult) -> None:
    assert len(faulty.failures) == len(FAULTS)
    assert all("\n" not in line for line in faulty.failures)
    line = next(line for line in faulty.failures if "frame is there once" in line)
    assert line.startswith("rule 'frame is there once' broken by 10 of ")
    assert line.count("expected once") == 5
    assert line.endswith("; and 1 more")
    assert faulty.headline == f"{len(FAULTS)} of {len(rules(CONFIG))} rules broken, first: {faulty.failures[0]}"


def test_a_valid_set_passes_every_rule(root: Path) -> None:
    result = _validate(root)
    assert result.failures == ()
    assert result.success
    assert result.headline == f"all {len(rules(CONFIG))} rules hold"
    assert result.frames["portrait_share"].tolist() == [0.25] * 12
    assert result.frames["step"].isna().tolist() == [True, False, False, False] * 3
    assert result.frames["mask_values"].unique().tolist() == ["0, 255"]
    clip = result.clips.set_index("clip").loc["interview/duo"]
    assert (clip["split"], clip["frames"], clip["orientation"], clip["spacing"]) == ("val", 4, "landscape", 5)
    assert clip["seconds"] == pytest.approx(20 / 30)


def test_limits_come_from_the_config(root: Path) -> None:
    _save(_annotation(root, "lecture/board", "00000"), 0 * _mask())
    _save(root / "Stills/Labels/b.png", 0 * _mask())
    frames, stills = _tables(root)

    def broken(config: ValidationConfig) -> dict[str, list[str]]:
        return _broken(validate_tables(frames, clip_table(frames, config), stills, config))

    # 20 frames of video have 4 keyframes; whether there were 16 or 20 cannot be seen from them.
    assert broken(ValidationConfig(min_seconds=20 / 30, min_short_side=24, max_empty_stills=0.4)) == {}
    strict = broken(ValidationConfig(keyframe_interval=4, min_seconds=0.7, max_empty_frames=0, max_empty_stills=0.3))
    assert {rule: len(lines) for rule, lines in strict.items()} == {
        "clips: clip is long enough": 3,
        "clips: keyframe interval": 3,
        "clips: clip is large enough": 3,
        "clips: clip shows portraits": 1,
        "stills: still shows a portrait": 1,
    }


def test_rules_of_collection_only_warn_where_the_config_says_so(root: Path, tmp_path: Path) -> None:
    frames, stills = _tables(root)

    def result(collection: Severity) -> ValidationResult:
        config = ValidationConfig(collection, keyframe_interval=4, min_seconds=0.7)
        return validate_tables(frames, clip_table(frames, config), stills, config)

    strict, lenient = result("error"), result("warning")
    assert not strict.success
    assert strict.warnings == ()
    assert lenient.success
    assert lenient.failures == ()
    assert [line.split("'")[1] for line in lenient.warnings] == [
        *("clip is long enough", "keyframe interval", "clip is large enough")
    ]
    assert lenient.headline == strict.headline
    write_report(lenient, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Valid, with warnings." in page
    assert "✗" not in page
    # What training relies on stays an error.
    _save(_annotation(root, "lecture/board", "00000"), _pixels(1))
    frames, stills = _tables(root)
    spoilt = result("warning")
    assert not spoilt.success
    assert len(spoilt.failures) == 1
    assert "mask decodes" in spoilt.headline


def test_empty_splits_and_no_stills(root: Path, tmp_path: Path) -> None:
    stills = still_table(pd.DataFrame(columns=list(STILL_COLUMNS)))
    empty = "no clip in {0}; expected ImageSets/{0}.txt to name at least one <scenario>/<clip>"
    for split in ("val", "train"):
        (root / "ImageSets" / f"{split}.txt").write_text("")
        frames = frame_table(index_clips(root))
        result = validate_tables(frames, clip_table(frames, CONFIG), stills, CONFIG)
        assert _broken(result)[f"clips: {split} is not empty"] == [empty.format(split)]
    assert len(result.failures) == 2
    write_report(result, tmp_path / "report")  # of nothing at all


def test_every_missing_file_is_named_in_one_go(root: Path) -> None:
    images = [_image(root, "news/anchor", "00000"), _image(root, "interview/duo", "00010")]
    masks = [_annotation(root, "news/anchor", "00005"), _annotation(root, "news/anchor", "00015")]
    stills = [root / "Stills/Images/a.jpg", root / "Stills/Labels/c.png"]
    (root / "Stills/Images/a.png").unlink()
    for path in [*images, *masks, stills[1]]:
        path.unlink()
    assert _broken(_validate(root)) == {
        "frames: image decodes": [f"{path}: no such file, expected an image that decodes" for path in images],
        "frames: mask decodes": [f"{path}: no such file, expected a mask that decodes" for path in masks],
        "stills: image decodes": [f"{stills[0]}: no such file, expected an image that decodes"],
        "stills: mask decodes": [f"{stills[1]}: no such file, expected a mask that decodes"],
    }


def test_the_step_names_missing_files_in_its_report(root: Path, tmp_path: Path) -> None:
    _annotation(root, "news/anchor", "00005").unlink()
    _image(root, "interview/duo", "00000").unlink()
    out = tmp_path / "validation"
    with pytest.raises(ValidationError, match=r"2 of .* rules broken, first: rule 'image decodes' broken by 1 of 12"):
        validate(videos=root, images=root / "Stills", out=out, config=Config(validation=CONFIG))
    failures = "\n".join(json.loads((out / "summary.json").read_text())["failures"])
    assert f"{_annotation(root, 'news/anchor', '00005')}: no such file" in failures
    assert f"{_image(root, 'interview/duo', '00000')}: no such file" in failures


def test_a_clip_without_images_is_named_image_by_image(root: Path) -> None:
    shutil.rmtree(root / "Keyframes/480p/news")
    result = _validate(root)
    assert list(_broken(result)) == ["frames: image decodes"]
    assert len(_broken(result)["frames: image decodes"]) == len(STEMS)


def test_double_stems_and_clips_without_any_file_are_the_index_own_errors(root: Path) -> None:
    _list(root, "news/nothing", "train")
    with pytest.raises(DataError, match=r"ImageSets: names clips without a file in .*: news/nothing$"):
        _validate(root)
    _save(_image(root, "news/anchor", "00005").with_suffix(".png"), _pixels(1))
    with pytest.raises(DataError, match=r"two images of one name: 00005\.jpg and 00005\.png"):
        _validate(root)


class _Page(HTMLParser):
    """Every tag is closed in order; collects the addresses that a page loads or links."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report(root: Path, tmp_path: Path) -> None:
    bad = _image(root, "news/anchor", "00005")
    bad.write_bytes(b"<script>")
    clip = "lecture/a<b>&c"  # names are text, not markup
    for folder in ("Keyframes/480p", "Annotations/480p"):
        (root / folder / "lecture/board").rename(root / folder / clip)
    (root / "ImageSets/train.txt").write_text(f"news/anchor\n{clip}\n")
    result = _validate(root)
    out = tmp_path / "report"
    write_report(result, out)

    text = (out / "index.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert not re.search(r"https?:|url\(|@import", text)
    assert page.addresses == ["data_docs/clips.html", "data_docs/frames.html", "data_docs/stills.html"]
    assert all((out / address).is_file() for address in page.addresses)
    assert f"{bad}: not an image" in page.text
    assert clip in page.text

    summary = json.loads((out / "summary.json").read_text())
    assert summary["success"] is False
    assert summary["failures"] == list(result.failures)
    assert summary["splits"]["train"] == {"clips": 2, "frames": 8, "seconds": 1.333}
    assert summary["scenarios"]["interview"]["val"]["clips"] == 1
    assert summary["stills"] == 3
    assert [rule["name"] for rule in summary["rules"] if not rule["passed"]] == ["image decodes"]

    frames = pd.read_parquet(out / "frames.parquet")
    assert frames.loc[~frames["readable_image"], "image"].tolist() == [str(bad)]
    assert len(pd.read_parquet(out / "clips.parquet")) == 3
    assert len(pd.read_parquet(out / "stills.parquet")) == 3


def test_same_data_same_bytes_and_the_folder_is_replaced(root: Path, tmp_path: Path) -> None:
    def written(out: Path) -> dict[str, bytes]:
        write_report(_validate(root), out)
        return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    first = written(tmp_path / "first")
    written(tmp_path / "second")
    (tmp_path / "second/old.txt").write_text("of an earlier run")
    assert written(tmp_path / "second") == first


def test_great_expectations_says_nothing(root: Path) -> None:
    """In a fresh process, where import-time noise would show too."""
    code = """
import logging, sys
from pathlib import Path
from pdnet.validation import write_report
from tests.validation.test_validation import _validate

logging.basicConfig(level=logging.INFO)  # as a command line that shows its own progress
result = _validate(Path(sys.argv[1]))
write_report(result, Path(sys.argv[1], "report"))
print(result.headline)
"""
    (root / "ImageSets/val.txt").write_text("interview/duo\nnews/anchor\n")  # a failure too
    repository = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True, cwd=repository
    )
    assert run.stderr == ""
    assert run.stdout.count("\n") == 1
    assert "rule 'splits are apart' broken" in run.stdout


def test_rules_speak_and_have_one_name_each() -> None:
    everything = rules(CONFIG)
    assert len({(rule.table, rule.name) for rule in everything}) == len(everything)
    assert all(rule.sentence.endswith(".") and len(rule.sentence.split()) > 4 for rule in everything)


@pytest.mark.parametrize(
    ("key", "value"),
    [("keyframe_interval", 0), ("fps", 0.0), ("min_seconds", -1.0), ("min_short_side", 0), ("max_empty_frames", 1.0),
     ("max_empty_stills", -0.1), ("fps", float("nan"))],
)  # fmt: skip
def test_senseless_limits_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"validation.{key}: "):
        ValidationConfig(**{key: value})  # type: ignore[arg-type]


def test_real_clips_and_stills() -> None:
    shared = os.environ.get("PDNET_SHARED")
    if not shared:
        pytest.skip("PDNET_SHARED is not set: the folder with the real data sets")
    portraits = Path(shared) / "data/portraits"
    config = ValidationConfig(keyframe_interval=4, min_seconds=0)
    frames = frame_table(index_clips(portraits / "DAVIS_people"))
    stills = still_table(index_stills(portraits / "EG1800").head(100))
    result = validate_tables(frames, clip_table(frames, config), stills, config)
    assert result.failures == ()
    as_paper = ValidationConfig()
    result = validate_tables(frames, clip_table(frames, as_paper), stills, as_paper)
    broken = [outcome.rule.name for outcome in result.outcomes if not outcome.passed]
    assert broken == ["clip is long enough", "keyframe interval"]
