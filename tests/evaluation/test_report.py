"""A small run as the steps leave it, its report, and what the report must say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pdnet.config import Config
from pdnet.errors import DataError
from pdnet.evaluation.charts import Line, line_chart, log_ticks, smooth, thin, ticks
from pdnet.evaluation.report import number, percent, points_apart, write_report
from pdnet.evaluation.scoring import FIGURES
from pdnet.files import read_json, write_json
from pdnet.metrics import RegionContour, frame_scores, mean_of_sequences, statistics
from pdnet.overlays import (
    FALSE_NEGATIVE_COLOUR,
    FALSE_POSITIVE_COLOUR,
    HIT_COLOUR,
    mistake_overlay,
    part_colours,
    part_overlay,
)
from pdnet.steps.report import _fits
from pdnet.steps.run_record import RunRecord

CLIPS = ("news/news_01", "lecture/lecture_01")
WIDTH, HEIGHT, FRAMES, PARTS = 64, 48, 6, 3
MD5 = "0123456789abcdef0123456789abcdef.dir"
SECTIONS = ("scores", "clips", "time", "frames", "parts", "training", "data", "record")
VOID_TAGS = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order; collects ids, attributes, text and the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())
        self.ids = [value for _, name, value in self.attributes if name == "id"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def row(self, name: str) -> list[str]:
        (found,) = [row for table in self.tables for row in table if row and row[0].strip() == name]
        return found[1:]

    def pictures(self, kind: str) -> list[str]:
        images = [value for tag, name, value in self.attributes if (tag, name) == ("img", "alt")]
        return [alt for alt in images if alt.startswith(kind)]


def _body(position: int, *, shift: int = 0) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - 26) ** 2 / 18**2 + (columns - 24 - 2 * position - shift) ** 2 / 10**2 < 1


def _figures(scores: RegionContour) -> dict[str, Any]:
    return {"jf_mean": scores.jf_mean, "j": scores.j._asdict(), "f": scores.f._asdict()}


class Run:
    """The folders of a small finished run; `report` writes and parses its page."""

    def __init__(self, root: Path, *, ipda: bool = True) -> None:
        self.root, self.ipda = root, ipda
        self.config: dict[str, Any] = {
            "seed": 0,
            "data": {"size": 192},
            "validation": {"fps": 30.0},
            "model": {"backbone": "resnet50", "parts": PARTS, "ipda": ipda},
        }
        self._videos()
        self._evaluation()
        self._training()
        self._others()

    def report(self, *, out: str = "report", **options: Any) -> Page:
        write_report(
            videos=self.root / "set",
            validation=self.root / "validation",
            pretrain=self.root / "pretrain",
            train=self.root / "train",
            evaluation=self.root / "evaluation",
            export=self.root / "export",
            out=self.root / out,
            config=self.config,
            config_hash="c0ffee123456",
            **options,
        )
        return Page((self.root / out / "index.html").read_text(encoding="utf-8"))

    def change_scores(self, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.root / "evaluation/scores.json"
        scores = read_json(path)
        change(scores)
        path.write_text(json.dumps(scores))

    def comparison(self, jf_mean: float) -> Path:
        scores = read_json(self.root / "evaluation/scores.json") | {"jf_mean": jf_mean, "parts": None}
        facts = {"label": "without IPDA (ipda: false), same recipe", "scores": scores}
        write_json(self.root / "comparison.json", facts | {"config_hash": "beef", "data_md5": MD5})
        return self.root / "comparison.json"

    def _videos(self) -> None:
        shades = np.random.default_rng(0).integers(40, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for clip in CLIPS:
            for position in range(FRAMES):
                body = _body(position)
                _save(self.root / "set/Keyframes/480p" / clip / f"{5 * position:05d}.jpg",
                      np.where(body[..., None], np.uint8(220), shades))  # fmt: skip
                _save(self.root / "set/Annotations/480p" / clip / f"{5 * position:05d}.png", body * np.uint8(255))
        (self.root / "set/ImageSets").mkdir()
        (self.root / "set/ImageSets/val.txt").write_text("\n".join(CLIPS) + "\n")

    def _evaluation(self) -> None:
        out = self.root / "evaluation"
        frames, clips, counted, whole = [], [], [], []
        for number_of_clip, clip in enumerate(CLIPS):
            scenario, scores = clip.split("/")[0], []
            for position in range(FRAMES):
                stem, mask = f"{5 * position:05d}", _body(position, shift=position // 2 + 2 * number_of_clip)
                _save(out / "masks" / clip / f"{stem}.png", mask * np.uint8(255))
                if self.ipda:
                    labels = np.repeat(np.arange(12, dtype=np.uint8) * PARTS // 12 + 1, 12).reshape(12, 12)
                    inside = np.asarray(Image.fromarray(mask).resize((12, 12), Image.Resampling.NEAREST))
                    _save(out / "parts" / clip / f"{stem}.png", labels * inside)
                scores.append(frame_scores(mask, _body(position)))
                frames.append((clip, scenario, stem, position, *scores[-1]))
            j, f = (np.array([getattr(score, name) for score in scores]) for name in "jf")
            counted.append(RegionContour(statistics(j[1:-1]), statistics(f[1:-1])))
            whole.append(RegionContour(statistics(j), statistics(f)))
            clips.append((clip, scenario, FRAMES - 2, counted[-1].jf_mean, *counted[-1].j, *counted[-1].f))
        columns = ["clip", "scenario", "frame", "position", "j", "f"]
        table = pd.DataFrame(frames, columns=columns).assign(image="elsewhere.jpg", mask="elsewhere.png")
        table.to_parquet(out / "frames.parquet")
        pd.DataFrame(clips, columns=["clip", "scenario", "frames", *FIGURES]).to_parquet(out / "clips.parquet")
        zero = {"mean": 0.25, "recall": 0.0, "decay": None}
        baselines = [
            {"method": "all foreground", "jf_mean": 0.2, "j": zero, "f": zero},
            {"method": "first-frame mask carried forward", "jf_mean": 0.5, "j": zero, "f": zero},
        ]
        match = {
            "true_parts": ["head", "torso"],
            "confusion": [[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]],
            "purity": 0.88,
            "nmi": 0.4321,
        }
        speed = {"network_fps": 43.21, "end_to_end_fps": 21.5, "device": "Abacus 9", "precision": "fp32", "size": 192}
        write_json(
            out / "scores.json",
            {"protocol": "mvps", "clips": len(CLIPS), "frames": len(frames)}
            | _figures(mean_of_sequences(counted))
            | {
                "all_frames": _figures(mean_of_sequences(whole)),
                "baselines": baselines,
                "speed": speed,
                "parts": {"share": [0.5, 0.3, 0.2], "pixels": [0.6, 0.3, 0.1], "match": match} if self.ipda else None,
            },
        )

    def _training(self) -> None:
        steps = np.arange(30)
        log = pd.DataFrame({"step": steps, "epoch": steps // 15, "phase": np.where(steps % 3 == 0, "image", "video")})
        video = log["phase"] == "video"
        log["loss"] = 9.0 / (1 + steps)
        for name in ("final", "encoder_t", *(("geometric_t", "area_t") if self.ipda else ())):
            log[name] = np.where(video, 1.0 / (1 + steps), np.nan)
        log["lr_backbone"], log["lr_rest"] = np.where(video, 2.5e-5, 2.5e-4), np.where(video, 2.5e-3, 0.0)
        log["data_seconds"], log["seconds"] = 0.1, steps * 1.0
        (self.root / "train").mkdir()
        log.to_parquet(self.root / "train/log.parquet")
        (self.root / "pretrain").mkdir()
        curves = {"loss": 3.0 / (1 + steps), "lr_encoder": 0.05, "seconds": 1.0 * steps}
        pretrain = pd.DataFrame({"step": steps, "epoch": 0, "phase": "pretrain"} | curves)
        pretrain.to_parquet(self.root / "pretrain/log.parquet")

    def _others(self) -> None:
        data = {"path": "data/mvps", "md5": MD5, "files": 24, "bytes": 1_500_000}
        for folder, step in (("pretrain", "pretrain"), ("train", "train"), ("evaluation", "evaluate")):
            record = {
                "step": step,
                "pdnet": "0.1.0",
                "git_commit": "f00dfeed" * 5,
                "git_dirty": False,
                "config_hash": "c0ffee123456",
                "data": {"videos": data},
                "data_dvc": MD5,
                "image": None,
                "device": "cpu",
                "precision": "fp32",
                "started": "2026-01-02T03:04:05+00:00",
                "seconds": 75.0,
            }
            write_json(self.root / folder / "run.json", record)
        sizes = {"clips": 2, "frames": 12, "seconds": 2.0}
        rules = [{"passed": True}, {"passed": True}]
        write_json(
            self.root / "validation/summary.json",
            {"success": True, "splits": {"val": sizes}, "stills": 7, "rules": rules},
        )
        jf = read_json(self.root / "evaluation/scores.json")["jf_mean"]
        parity = {"frames": 8, "max_probability_difference": 1.2e-5, "mask_agreement": 0.999999}
        same = {"torch": {"jf_mean": jf}, "onnx": {"jf_mean": jf}}
        write_json(self.root / "export/parity.json", parity | same)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Page]:
    """A run and its page, for tests that change nothing."""
    run = Run(tmp_path_factory.mktemp("finished"))
    return run, run.report()


def test_page_is_whole_and_needs_no_network(finished: tuple[Run, Page]) -> None:
    run, page = finished
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert len(set(page.ids)) == len(page.ids)
    assert "PDNet on mvps" in page.text
    assert "commit f00dfeedf0" in page.text
    assert "2026-01-02 03:04 UTC" in page.text
    assert "configuration c0ffee123456" in page.text
    assert "nan" not in page.text.lower()
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert {value.split(":")[0].split("#")[0] for value in loaded} == {"data", "", "../validation/index.html"}
    text = (run.root / "report/index.html").read_text()
    assert re.findall(r"https?://|@import|url\(", text) == []


def test_every_in_page_link_has_its_section(finished: tuple[Run, Page]) -> None:
    _, page = finished
    links = [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href") and value[0] == "#"]
    assert links == list(SECTIONS)
    assert set(links) <= set(page.ids)


def test_table_holds_the_scores(finished: tuple[Run, Page]) -> None:
    run, page = finished
    scores = read_json(run.root / "evaluation/scores.json")

    def expected(figures: dict[str, Any]) -> list[str]:
        values = [figures["jf_mean"], *figures["j"].values(), *figures["f"].values()]
        return ["–" if value is None else f"{100 * value:.1f}".replace("-", "−") for value in values]

    assert page.row("PDNet") == [*expected(scores), "43.2"]
    assert page.row("PDNet, all frames counted") == [*expected(scores["all_frames"]), "–"]
    assert page.row("PDNet, through ONNX Runtime") == [f"{100 * scores['jf_mean']:.1f}", *["–"] * 7]
    assert page.row("all foreground") == ["20.0", "25.0", "0.0", "–", "25.0", "0.0", "–", "–"]
    clips = pd.read_parquet(run.root / "evaluation/clips.parquet")
    jf, j = (f"{100 * clips[name][1]:.1f}" for name in ("jf_mean", "j_mean"))
    assert page.row("lecture_01")[:4] == ["lecture", "4", jf, j]
    assert "on Abacus 9, fp32" in page.text
    assert "the same as in torch" in page.text
    assert "agree in 99.9999 % of the pixels; the largest difference in probability is 0.000012." in page.text


@pytest.mark.parametrize(
    ("jf_mean", "sentence"),
    [
        (0.881, "J&F 88.1, 38.1 points above the best trivial baseline (first-frame mask carried forward, 50.0)."),
        (0.4, "J&F 40.0, 10.0 points below the best trivial baseline"),
        (0.5, "J&F 50.0, no better than the best trivial baseline"),
    ],
)
def test_verdict(run: Run, jf_mean: float, sentence: str) -> None:
    run.change_scores(lambda scores: scores.update(jf_mean=jf_mean))
    assert sentence in run.report().text


def test_same_inputs_same_bytes(finished: tuple[Run, Page]) -> None:
    run, _ = finished
    run.report(out="again")
    assert (run.root / "again/index.html").read_bytes() == (run.root / "report/index.html").read_bytes()


def test_comparison_says_whether_ipda_scores_higher(run: Run) -> None:
    run.change_scores(lambda scores: scores.update(jf_mean=0.881))
    assert "not measured in this run: make ablation trains the same recipe without IPDA." in run.report().text
    page = run.report(comparison=run.comparison(0.85))
    assert "IPDA scores higher: J&F 88.1 with it, 85.0 without, 3.1 points more." in page.text
    assert page.row("without IPDA (ipda: false), same recipe")[0] == "85.0"
    assert "make ablation" not in page.text
    page = run.report(comparison=run.comparison(0.9))
    assert "IPDA does not score higher here: J&F 88.1 with it, 90.0 without, 1.9 points less." in page.text
    page = run.report(comparison=run.comparison(0.8811))
    assert "IPDA does not score higher here: J&F is 88.1 with it and without it." in page.text


def test_parts(finished: tuple[Run, Page]) -> None:
    _, page = finished
    assert "No part is degenerate: each holds at least 3 % of the portrait." in page.text
    assert page.row("news_01") is not None
    assert ["part 2", "", "30.0", "30.0", ""] in page.tables[3]
    assert page.tables[4][1:] == [["part 1", "90.0", "10.0"], ["part 2", "20.0", "80.0"], ["part 3", "0.0", "100.0"]]
    assert "Purity 88.0 %" in page.text
    assert "Calling all of it head, the commonest body part, would reach about 60 %." in page.text
    assert "Normalised mutual information 0.43" in page.text
    maps = page.pictures("Parts")
    assert maps[:4] == [f"Parts of frame {stem} of news_01" for stem in ("00000", "00010", "00015", "00025")]
    assert page.text.count(", reference") == len(CLIPS)


def test_degenerate_part_is_flagged(run: Run) -> None:
    # The third by its share, the second because another part is likelier everywhere.
    shares = {"share": [0.68, 0.30, 0.02], "pixels": [0.89, 0.01, 0.1]}
    run.change_scores(lambda scores: scores["parts"].update(**shares, match=None))
    page = run.report()
    assert "Part 2 and part 3 are degenerate: below 3 % of the portrait." in page.text
    assert page.tables[3][1:] == [
        ["part 1", "", "68.0", "89.0", ""],
        ["part 2", "", "30.0", "1.0", "degenerate, below 3 %"],
        ["part 3", "", "2.0", "10.0", "degenerate, below 3 %"],
    ]
    assert "Not measured: the data set has no true body parts" in page.text


def test_run_without_ipda(tmp_path: Path) -> None:
    page = Run(tmp_path, ipda=False).report()
    assert "there are no parts" in page.text
    assert "This run is trained without IPDA" in page.text
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert len(page.row("PDNet without IPDA")) == 8
    assert "Part maps" not in page.text


def test_worst_frames_come_first_and_two_of_a_clip_at_most(finished: tuple[Run, Page]) -> None:
    run, page = finished
    shown = page.pictures("Prediction")
    frames = pd.read_parquet(run.root / "evaluation/frames.parquet")
    worst = frames.assign(jf=frames["j"] + frames["f"]).nsmallest(1, "jf").iloc[0]
    assert shown[0] == f"Prediction on frame {worst['frame']} of {worst['clip'].split('/')[1]}"
    assert len(shown) == len(set(shown)) == 8
    for part in (shown[:4], shown[4:]):
        assert sorted(alt.split()[-1] for alt in part) == ["lecture_01"] * 2 + ["news_01"] * 2


def test_missing_figures_show_as_dashes(run: Run) -> None:
    def remove(scores: dict[str, Any]) -> None:
        scores["j"]["decay"] = None
        scores["f"]["decay"] = float("nan")
        scores["speed"] = {}

    run.change_scores(remove)
    frames = pd.read_parquet(run.root / "evaluation/frames.parquet")
    frames.loc[2, "f"] = float("nan")
    frames.to_parquet(run.root / "evaluation/frames.parquet")
    write_json(run.root / "validation/summary.json", {})
    page = run.report()
    assert [page.row("PDNet")[index] for index in (3, 6, 7)] == ["–"] * 3
    text = (run.root / "report/index.html").read_text()
    without_pictures = re.sub('base64,[^"]+', "", text)
    assert re.search(r"\bnan\b", without_pictures, re.IGNORECASE) is None


def test_no_pretraining(run: Run) -> None:
    log = pd.read_parquet(run.root / "pretrain/log.parquet")
    log.iloc[:0].to_parquet(run.root / "pretrain/log.parquet")
    assert "No pretraining in this run." in run.report().text


def test_text_from_files_is_escaped(run: Run) -> None:
    run.change_scores(lambda scores: scores["speed"].update(device="<script>alert(1)</script>"))
    assert "<script>alert(1)</script>" in run.report().text  # as text: the parser saw no such tag


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("evaluation/scores.json", "no such file"),
        ("evaluation/frames.parquet", "no such file"),
        ("export/parity.json", "no such file"),
        ("train/log.parquet", "no such file"),
        ("train/run.json", "no such file"),
        ("validation/summary.json", "no such file"),
        ("evaluation/masks/news/news_01/00000.png", "no such file"),
        ("evaluation/parts/news/news_01/00000.png", "no such file"),
    ],
)
def test_missing_input(run: Run, name: str, message: str) -> None:
    (run.root / name).unlink()
    with pytest.raises(DataError) as caught:
        run.report()
    assert str(run.root / name) in str(caught.value)
    assert message in str(caught.value)
    assert not (run.root / "report/index.html").exists()


def test_damaged_inputs(run: Run) -> None:
    path = run.root / "evaluation/scores.json"
    whole = path.read_text()
    run.change_scores(lambda scores: scores.pop("all_frames"))
    with pytest.raises(DataError, match=r"scores.json: lacks 'all_frames.jf_mean'"):
        run.report()
    path.write_text("[]")
    with pytest.raises(DataError, match=r"scores.json: holds a list, expected an object"):
        run.report()
    path.write_text(whole)
    table = run.root / "evaluation/clips.parquet"
    pd.read_parquet(table).drop(columns="jf_mean").to_parquet(table)
    with pytest.raises(DataError, match=r"clips.parquet: lacks the columns jf_mean"):
        run.report()
    table.write_bytes(b"not a table")
    with pytest.raises(DataError, match=r"clips.parquet: cannot be read"):
        run.report()


def test_frames_of_another_data_set(run: Run) -> None:
    (run.root / "set/ImageSets/val.txt").write_text(CLIPS[0] + "\n")
    with pytest.raises(DataError, match=r"6 of 12 frames are not among .* first: lecture/lecture_01/00000"):
        run.report()


def test_mask_of_another_size(run: Run) -> None:
    path = run.root / "evaluation/masks/lecture/lecture_01/00025.png"
    _save(path, np.zeros((8, 9), dtype=np.uint8))
    with pytest.raises(DataError, match=r"00025.png: the prediction is 9x8, expected 64x48"):
        run.report()


def test_mistakes_are_marked_where_they_are() -> None:
    image = np.full((60, 80, 3), 128, dtype=np.uint8)
    annotation, prediction = np.zeros((60, 80), dtype=bool), np.zeros((60, 80), dtype=bool)
    annotation[10:50, 10:50], prediction[10:50, 30:70] = True, True
    overlay = mistake_overlay(image, prediction, annotation).astype(int)
    (red, green, blue), outside = overlay[30, 60], overlay[5, 5]
    assert (red, green, blue) == tuple(round(0.25 * 128 + 0.75 * part) for part in FALSE_POSITIVE_COLOUR)
    assert np.ptp(outside) == 0
    hit = overlay[30, 40]
    assert tuple(hit) == tuple(round(0.78 * 128 + 0.22 * part) for part in HIT_COLOUR)
    missed = overlay[20:40, 12:28].reshape(-1, 3)
    assert len(np.unique(missed, axis=0)) == 2  # stripes
    assert (np.abs(missed - np.array(FALSE_NEGATIVE_COLOUR)).max(axis=1) < 80).all()
    assert overlay[30, 69].min() > 200  # contour


def test_part_overlay_fills_gaps_and_dims_the_rest() -> None:
    image = np.full((64, 64, 3), 100, dtype=np.uint8)
    prediction = np.zeros((64, 64), dtype=bool)
    prediction[8:56, 8:56] = True
    labels = np.zeros((4, 4), dtype=np.uint8)
    labels[1, 1:3], labels[2, 1:3] = 1, 2  # the outer cells are empty though the portrait reaches into them
    overlay = part_overlay(image, labels, prediction, parts=2).astype(int)
    for row, part in ((9, 0), (54, 1)):
        expected = [round(0.3 * 100 + 0.7 * value) for value in part_colours(2)[part]]
        assert overlay[row, 9].tolist() == expected
    assert overlay[2, 2].min() > 180
    with pytest.raises(DataError, match="label 2, expected 0 to 1"):
        part_overlay(image, labels, prediction, parts=1)


def test_part_colours_are_distinct() -> None:
    colours = part_colours(16)
    assert len(set(colours)) == 16
    assert part_colours(5) == colours[:5]


def test_numbers_as_shown() -> None:
    assert [percent(value) for value in (0.8814, -0.012, -0.0001, None, math.nan)] == ["88.1", "−1.2", "0.0", "–", "–"]
    assert [number(value, signed=True) for value in (1.0, -1.0, 0.0)] == ["+1.0", "−1.0", "+0.0"]
    assert points_apart(0.8814, 0.6876) == 19.3  # 88.1 and 68.8 as printed
    assert points_apart(0.88049, 0.87951) == 0.0


def test_chart_scales_its_lines() -> None:
    svg = line_chart([Line([0, 1, 2, 3], [0, math.nan, 50, 100], "red")], title="a < b", y_range=(0, 100))
    assert 'aria-label="a &lt; b"' in svg
    (path,) = re.findall(r'<path class="line" stroke="red" d="([^"]+)"', svg)
    assert path == "M42.0 138.0h0M232.7 73.0L328.0 8.0"
    Page(svg)


def test_chart_without_values_is_empty_axes() -> None:
    for log in (False, True):
        svg = line_chart([Line([0.0], [math.nan], "red"), Line([], [], "blue")], title="none", log=log)
        assert "nan" not in svg
        assert svg.count("<text") >= 2


def test_smooth_and_thin() -> None:
    values = np.random.default_rng(0).normal(size=23)
    for window in (1, 4, 5):
        before, after = window // 2, (window - 1) // 2
        expected = [values[max(0, i - before) : i + after + 1].mean() for i in range(23)]
        np.testing.assert_allclose(smooth(values, window), expected, atol=1e-12)
    assert thin(range(10), 3).tolist() == [1.5, 5.0, 8.0]
    assert thin([3, 4], 3).tolist() == [3, 4]


def test_ticks() -> None:
    assert ticks(0, 100, 4) == [0, 50, 100]
    assert ticks(0.13, 0.97, 4) == pytest.approx([0.5])
    assert ticks(80, 100, 4) == [80, 85, 90, 95, 100]
    assert log_ticks(2.5e-6, 2.5e-3) == pytest.approx([1e-5, 1e-4, 1e-3])
    assert log_ticks(0.01, 0.05) == pytest.approx([0.01, 0.02, 0.05])


def test_a_comparison_that_does_not_say_what_it_was_measured_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ablation.json").write_text("{}")
    with pytest.raises(DataError, match=r"ablation\.json: lacks 'config_hash'; found nothing"):
        _fits(tmp_path / "ablation.json", RunRecord("report", Config()))
    assert not _fits(tmp_path / "none.json", RunRecord("report", Config()))
