"""What a version must show to become the champion: rule by rule, on real releases, and from the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pandas as pd
import pytest
import yaml
from registered_models import (
    DATA,
    DEVICE,
    MODEL,
    OTHER,
    add_model,
    aliases,
    change,
    new_store,
    reset,
    scores,
    write_run,
)
from tiny_profile import decided_network, tiny_config, write_params

from pdnet import steps
from pdnet.cli import main
from pdnet.config import load_yaml, to_mapping
from pdnet.errors import ConfigError, DataError
from pdnet.files import file_digest, folder_digest, read_json, write_json
from pdnet.steps.promote import judge_and_promote
from pdnet.steps.rescore import rescore
from pdnet.steps.rollback import rollback
from pdnet.tracking import PromotionPolicy
from pdnet.tracking.promotion import (
    Evidence,
    Parity,
    Row,
    ScenarioAllowance,
    clip_scores,
    format_table,
    judge,
    read_evidence,
)
from pdnet.tracking.promotion_log import read_log
from pdnet.tracking.release import read_release, write_release
from pdnet.tracking.store import open_store
from pdnet.tracking.versions import Version, download_release, find_version
from pdnet.weights import save_model

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "configs" / "promotion.yaml"

# The judgement


def evidence(version: str, points: Mapping[str, float] | None = None, **facts: Any) -> Evidence:
    """A version with six clips in two scenarios that breaks no rule."""
    points = scores(86.0) if points is None else points
    clips = pd.DataFrame(
        {
            "clip": list(points),
            "scenario": [clip.partition("/")[0] for clip in points],
            "jf_mean": list(points.values()),
        }
    )
    clips["jf_mean"] /= 100
    held = {
        "data": DATA,
        "valid": True,
        "fps": 30.0,
        "fps_device": DEVICE,
        "exports": (Parity("pdnet.onnx", 1e-5, 0.01), Parity("pdnet.engine", 2e-5, 0.02)),
    }
    return Evidence(version, clips=clip_scores(clips), **held | facts)


CHAMPION = evidence("1")


def refusals(candidate: Evidence, champion: Evidence | None = CHAMPION, **policy: Any) -> list[str]:
    """What speaks against a candidate."""
    judgement = judge(candidate, champion, PromotionPolicy(**policy))
    assert judgement.promoted == (not any(row.ok is False for row in judgement.rows))
    return [] if judgement.promoted else list(judgement.reasons)


def test_a_better_candidate_is_promoted_and_the_reason_is_its_lead() -> None:
    judgement = judge(evidence("2", scores(88.0)), CHAMPION, PromotionPolicy())
    assert judgement.promoted
    found = judgement.figures["difference"]
    assert found["mean"] == 2.0
    assert 0 < found["low"] < 2.0 < found["high"]
    assert judgement.reasons == (
        "J&F 88.00 against 86.00 of version 1, the champion: a lead of 2.00, with other clips "
        f"{found['low']:.2f} to {found['high']:.2f}",
    )


def test_the_lead_that_counts_is_its_lower_bound() -> None:
    candidate = evidence("2", scores(88.0))
    low = judge(candidate, CHAMPION, PromotionPolicy()).figures["difference"]["low"]
    assert refusals(candidate, margin=low - 0.01) == []
    (reason,) = refusals(candidate, margin=low)
    assert reason.endswith(f"; needed: above {low:g}")
    assert judge(candidate, CHAMPION, PromotionPolicy(confidence=0.5)).figures["difference"]["low"] > low


def test_a_lead_on_one_clip_alone_is_none() -> None:
    points = scores(86.0)
    points["talk/a"] += 9
    (reason,) = refusals(evidence("2", points))
    assert "a lead of 1.50, with other clips 0.00 to" in reason


def test_a_version_is_not_better_than_itself() -> None:
    (reason,) = refusals(evidence("2"))
    assert "a lead of 0.00, with other clips 0.00 to 0.00; needed: above 0" in reason


def test_binary_fractions_make_no_lead() -> None:
    ours, theirs = dict.fromkeys(scores(0), 87.1), dict.fromkeys(scores(0), 86.1)
    assert len(refusals(evidence("2", ours), evidence("1", theirs), margin=1.0)) == 1
    assert refusals(evidence("2", dict.fromkeys(ours, 87.2)), evidence("1", theirs), margin=1.0) == []


def test_a_scenario_may_be_worse_by_its_allowance() -> None:
    candidate = evidence("2", scores(89.0, dance=-5.0))
    assert refusals(candidate, margin=0.0, confidence=0.01, scenario_allowance=3.0) == []
    (reason,) = refusals(candidate, confidence=0.01)
    assert reason.startswith("dance: J&F ")
    assert "below version 1; allowed 2" in reason
    named = (ScenarioAllowance("dance", 3.0),)
    assert refusals(candidate, confidence=0.01, scenario_allowances=named) == []
    assert len(refusals(candidate, confidence=0.01, scenario_allowance=3.0, scenario_allowances=(
        ScenarioAllowance("dance", 1.0),))) == 1  # fmt: skip


def test_exactly_the_allowance_is_allowed() -> None:
    candidate, theirs = scores(0), dict.fromkeys(scores(0), 86.1)
    candidate = {clip: 84.1 if clip.startswith("dance") else 99.0 for clip in candidate}
    rows = judge(evidence("2", candidate), evidence("1", theirs), PromotionPolicy()).rows
    assert [row.ok for row in rows if row.what.startswith("  dance")] == [True]


def without_scenarios(of: Evidence) -> Evidence:
    assert of.clips is not None
    return dataclasses.replace(of, clips=of.clips.drop(columns="scenario"))


def test_the_scenarios_of_one_side_are_those_of_both() -> None:
    candidate = evidence("2", scores(89.0, dance=-5.0))
    for pair in ((without_scenarios(candidate), CHAMPION), (candidate, without_scenarios(CHAMPION))):
        (reason,) = refusals(*pair, confidence=0.01)
        assert reason.startswith("dance: J&F ")


def test_scenarios_that_nobody_knows_are_refused_where_there_is_a_limit() -> None:
    pair = without_scenarios(evidence("2", scores(89.0))), without_scenarios(CHAMPION)
    (reason,) = refusals(*pair)
    assert reason == "neither version says of which scenarios its clips are, and the policy limits the loss in each"
    assert refusals(*pair, scenario_allowance=100.0) == []
    named = (ScenarioAllowance("dance", 3.0),)
    assert len(refusals(*pair, scenario_allowance=100.0, scenario_allowances=named)) == 1
    assert refusals(pair[0], None) == []
    clips = evidence("2", scores(89.0)).clips
    assert clips is not None
    unnamed = clips.assign(scenario=[None, *clips["scenario"][1:]])  # a row without one would be passed over
    assert len(refusals(dataclasses.replace(pair[0], clips=unnamed), pair[1])) == 1


def test_the_first_champion_is_judged_by_what_needs_no_other() -> None:
    judgement = judge(evidence("1"), None, PromotionPolicy())
    assert (judgement.promoted, judgement.reasons) == (True, ("J&F 86.00, the first champion",))
    assert refusals(evidence("1"), None, min_jf=86.0) == []
    assert refusals(evidence("1"), None, min_jf=86.5) == ["J&F 86.00, a champion needs 86.5"]
    assert len(refusals(evidence("1", valid=False), None)) == 1
    assert len(refusals(evidence("1", damage=("pdnet.onnx: missing",)), None)) == 1


def test_a_floor_for_the_speed_is_one_on_a_named_device() -> None:
    better = scores(89.0)
    floor = {"fps_device": DEVICE, "fps_floor": 30.0}
    assert refusals(evidence("2", better), **floor) == []
    assert refusals(evidence("2", better, fps=29.9), **floor) == [f"29.9 frames/s on {DEVICE}, a champion needs 30"]
    assert refusals(evidence("2", better, fps=300.0, fps_device="H200"), **floor) == [
        f"its speed was measured on H200; the floor is one of {DEVICE}"
    ]
    assert refusals(evidence("2", better, fps=0.1)) == []


@pytest.mark.parametrize(
    ("file", "probability", "jf"),
    [("pdnet.onnx", 2e-3, 0.0), ("segmenter.onnx", 0.0, 0.06), ("pdnet.engine", math.nan, 0.0)],
)
def test_every_exported_file_has_to_be_the_same_model(file: str, probability: float, jf: float) -> None:
    exports = (Parity("pdnet.onnx", 1e-5, 0.01), Parity(file, probability, jf))
    (reason,) = refusals(evidence("2", scores(89.0), exports=exports))
    assert reason.startswith(f"{file}: ")
    assert reason.endswith("from the network, allowed 0.001 and 0.05")


def test_data_that_broke_the_rules_are_no_ground() -> None:
    (reason,) = refusals(evidence("2", scores(89.0), valid=False))
    assert reason == f"its data, {DATA}, are not the ones that were validated, or they failed"


def test_clips_that_differ_cannot_be_compared() -> None:
    points = scores(89.0)
    points["walk/g"] = 99.0
    assert refusals(evidence("2", points)) == ["version 1 was scored on other clips than 2"]
    missing = dataclasses.replace(CHAMPION, clips=None, missing="bring the data")
    assert refusals(evidence("2", scores(89.0)), missing) == ["bring the data"]


def test_what_is_damaged_is_judged_by_nothing_else() -> None:
    judgement = judge(Evidence("2", damage=("pdnet.onnx: missing", "x: not listed")), CHAMPION, PromotionPolicy())
    assert judgement.reasons == ("version 2: pdnet.onnx: missing; version 2: x: not listed",)
    assert [row.what for row in judgement.rows] == ["files"]
    judgement = judge(evidence("2", scores(89.0)), Evidence("1", damage=("a: missing",)), PromotionPolicy())
    assert judgement.reasons == (
        "version 1, the champion: a: missing; nothing can be judged against it: `pdnet rollback`, or remove the alias "
        "champion on MLflow's page of the model",
    )


def test_figures_that_are_none_are_refused() -> None:
    nan = dict.fromkeys(scores(0), math.nan)
    assert len(refusals(evidence("2", nan))) >= 2
    assert refusals(evidence("2", nan), None) == ["J&F nan, a champion needs 0"]
    assert len(refusals(evidence("2", scores(89.0)), evidence("1", nan))) >= 1


def test_every_reason_is_told() -> None:
    candidate = evidence("2", scores(80.0), valid=False, fps=1.0, exports=(Parity("pdnet.onnx", 1.0, 0.0),))
    found = refusals(candidate, min_jf=85.0, fps_device=DEVICE, fps_floor=30.0)
    words = ["a champion needs 85", "a lead of -6.00", "dance: ", "talk: ", "its data", "1.0 frames/s", "pdnet.onnx"]
    assert len(found) == len(words)
    assert all(word in reason for word, reason in zip(words, found, strict=True))


def test_the_judgement_is_the_same_each_time() -> None:
    pair = (evidence("2", scores(88.0)), CHAMPION, PromotionPolicy())
    assert judge(*pair) == judge(*pair)
    other_order = evidence("2", dict(reversed(scores(88.0).items())))
    found = judge(other_order, CHAMPION, PromotionPolicy()).figures["difference"]
    assert found["mean"] == 2.0


def test_the_table() -> None:
    judgement = judge(evidence("12", scores(85.0)), dataclasses.replace(CHAMPION, scored_again=True), PromotionPolicy())
    low, high = (judgement.figures["difference"][key] for key in ("low", "high"))
    lead = f"-1.00 [{low:+.2f}, {high:+.2f}]"
    lines = format_table(MODEL, judgement).splitlines()
    assert lines[0] == "tiny version 12 against version 1, the champion; J&F in percent, speed in frames/s"
    cells = [[cell for cell in line.split("  ") if cell.strip()] for line in lines[2:-2]]
    assert [[cell.strip() for cell in line] for line in cells] == [
        ["champion 1", "candidate 12", "needed"],
        ["J&F, 6 clips", "86.00", "85.00", "at least 0", "ok"],
        ["lead, 95 % interval", lead, "all of it above 0", "NOT ok"],
        ["dance, 3 clips", "84.70", "83.75", "at least 82.70", "ok"],
        ["talk, 3 clips", "87.30", "86.25", "at least 85.30", "ok"],
        ["data, validated", "11111111, scored again", "11111111", "valid", "ok"],
        ["speed", "30.0", "30.0", "no floor"],
        ["pdnet.onnx", "1.0e-05, J&F 0.01", "1.0e-05, J&F 0.01", "at most 0.001, J&F 0.05", "ok"],
        ["pdnet.engine", "2.0e-05, J&F 0.02", "2.0e-05, J&F 0.02", "at most 0.001, J&F 0.05", "ok"],
        ["files", "whole", "whole", "as recorded and evaluated", "ok"],
    ]
    assert lines[-1].startswith("refused: J&F 85.00 against 86.00 of version 1, the champion: a lead of -1.00")
    assert {line.rfind("ok") for line in lines[3:-2] if line.endswith(" ok") and "NOT" not in line} != set()
    assert all(line == line.rstrip() for line in lines)


def test_rows_are_told_in_the_log_as_they_are() -> None:
    rows = [dataclasses.asdict(row) for row in judge(evidence("2"), None, PromotionPolicy()).rows]
    assert json.loads(json.dumps(rows)) == rows
    assert set(rows[0]) == {field.name for field in dataclasses.fields(Row)}


# Evidence


def evidence_of(folders: Mapping[str, Path], out: Path, **more: Any) -> Evidence:
    """What a release on disk shows, as it would be registered."""
    gathered = {name: folder for name, folder in folders.items() if name != "report"}
    release = write_release(out, config=to_mapping(tiny_config()), config_hash="abc", **gathered, **more)
    tags = {"release.sha256": release.sha256}
    version = Version(MODEL, "3", (), tags, run_id=None, created=datetime.now(UTC), description="", source="")
    return read_evidence(version, release)


def test_a_release_shows_its_scores_its_speed_and_every_exported_file(tmp_path: Path) -> None:
    folders = write_run(tmp_path / "run", scores(90.0))
    export, tensorrt = folders["export"], tmp_path / "tensorrt"
    names = ("reference_encoder.onnx", "segmenter.onnx")
    for name in names:
        (export / name).write_bytes(name.encode())
    parity = read_json(export / "parity.json")
    streaming = {
        "max_probability_difference": 0.02,
        "onnx": {"jf_mean": 0.9},
        "files": {name: file_digest(export / name) for name in names},
    }
    change(export / "parity.json", streaming=streaming)
    tensorrt.mkdir()
    (tensorrt / "pdnet.engine").write_bytes(b"an engine")
    engine = {
        "sha256": file_digest(tensorrt / "pdnet.engine"),
        "onnx_sha256": parity["sha256"],
        "max_probability_difference": 1e-4,
        "torch": {"jf_mean": 0.9},
        "tensorrt": {"jf_mean": 0.898},
    }
    write_json(tensorrt / "parity.json", engine)
    write_json(tensorrt / "run.json", {"step": "export_tensorrt"})
    found = evidence_of(folders, tmp_path / "release", tensorrt=tensorrt)
    assert (found.jf, found.data, found.valid, found.damage) == (90.0, DATA, True, ())
    assert (found.fps, found.fps_device) == (31.5, DEVICE)
    assert found.exports == (
        Parity("pdnet.onnx", 1e-5, 0.0),
        Parity("reference_encoder.onnx, segmenter.onnx", 0.02, 0.0),
        Parity("pdnet.engine", 1e-4, 0.2),
    )
    reasons = judge(found, None, PromotionPolicy()).reasons
    assert [reason.split(": ")[0] for reason in reasons] == ["reference_encoder.onnx, segmenter.onnx", "pdnet.engine"]


def with_other_precisions(folders: Mapping[str, Path], tensorrt: Path) -> None:
    """Let a run have int8 graphs, and engines in fp16 built from graphs of that form."""
    export = folders["export"]
    files = {}
    for precision in ("fp16", "int8"):
        (export / precision).mkdir()
        for name in ("pdnet.onnx", "reference_encoder.onnx", "segmenter.onnx"):
            (export / precision / name).write_text(f"{precision} {name}")
            files[f"{precision}/{name}"] = file_digest(export / precision / name)

    def compared(precision: str, difference: float, jf_mean: float) -> dict[str, Any]:
        figures = {"max_probability_difference": difference, "onnx": {"jf_mean": jf_mean}}
        streams = {name: files[f"{precision}/{name}"] for name in ("reference_encoder.onnx", "segmenter.onnx")}
        pair = figures | {"sha256": files[f"{precision}/pdnet.onnx"]}
        return {"pair": pair, "streaming": figures | {"files": streams}}

    bounds = {
        "fp32": {"max_probability_difference": 1.0, "max_jf_difference": 100.0},
        "fp16": {"max_probability_difference": 0.05, "max_jf_difference": 0.1},
        "int8": {"max_probability_difference": 1.0, "max_jf_difference": 0.5},
    }
    precisions = {"fp16": compared("fp16", 0.03, 0.8995), "int8": compared("int8", 0.7, 0.896)}
    change(export / "parity.json", precisions=precisions, bounds=bounds)
    tensorrt.mkdir()
    digests = {}
    for name in ("pdnet.engine", "reference_encoder.engine", "segmenter.engine"):
        (tensorrt / name).write_text(name)
        digests[name] = file_digest(tensorrt / name)
    figures = {"max_probability_difference": 0.04, "tensorrt": {"jf_mean": 0.9}}
    write_json(
        tensorrt / "parity.json",
        figures
        | {
            "sha256": digests.pop("pdnet.engine"),
            "onnx_sha256": files["fp16/pdnet.onnx"],
            "torch": {"jf_mean": 0.9},
            "streaming": figures | {"files": digests},
            "sources": {name: sha256 for name, sha256 in files.items() if name.startswith("fp16")},
            "precision": "fp16",
            "bounds": bounds,
        },
    )
    write_json(tensorrt / "run.json", {"step": "export_tensorrt"})


def test_files_in_other_number_formats_are_held_against_their_own_bounds(tmp_path: Path) -> None:
    folders, tensorrt = write_run(tmp_path / "run", scores(90.0)), tmp_path / "tensorrt"
    with_other_precisions(folders, tensorrt)
    found = evidence_of(folders, tmp_path / "release", tensorrt=tensorrt)
    assert found.exports == (
        Parity("pdnet.onnx", 1e-5, 0.0),
        Parity("fp16/pdnet.onnx", 0.03, 0.05, (0.05, 0.1)),
        Parity("fp16/reference_encoder.onnx, fp16/segmenter.onnx", 0.03, 0.05, (0.05, 0.1)),
        Parity("int8/pdnet.onnx", 0.7, 0.4, (1.0, 0.5)),
        Parity("int8/reference_encoder.onnx, int8/segmenter.onnx", 0.7, 0.4, (1.0, 0.5)),
        Parity("pdnet.engine", 0.04, 0.0, (0.05, 0.1)),
        Parity("reference_encoder.engine, segmenter.engine", 0.04, 0.0, (0.05, 0.1)),
    )
    assert judge(found, None, PromotionPolicy()).promoted
    worse = dataclasses.replace(found, exports=(Parity("int8/pdnet.onnx", 0.7, 0.6, (1.0, 0.5)),))
    (reason,) = judge(worse, None, PromotionPolicy()).reasons
    assert reason == "int8/pdnet.onnx: 0.7 in probability and 0.60 in J&F from the network, allowed 1 and 0.5"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ("export/int8/segmenter.onnx", r"int8/segmenter\.onnx: its SHA-256 is \w+; as compared \(.*parity\.json\)"),
        (
            "tensorrt/segmenter.engine",
            r"segmenter\.engine: its SHA-256 is \w+; as compared \(.*tensorrt/parity\.json\)",
        ),
        ("sources", r"fp16/pdnet\.onnx: its SHA-256 is \w+; as built into the engine \(.*\) it was 0000"),
        ("precisions", r"fp16/pdnet\.onnx: its SHA-256 is not on record; as built into the engine"),
        ("missing", r"reference_encoder\.engine: no such file"),
    ],
)
def test_a_release_holds_the_engines_and_graphs_that_were_compared(tmp_path: Path, changed: str, reason: str) -> None:
    folders, tensorrt = write_run(tmp_path / "run", scores(90.0)), tmp_path / "tensorrt"
    with_other_precisions(folders, tensorrt)
    if changed == "sources":
        change(tensorrt / "parity.json", sources={"fp16/pdnet.onnx": "0000"})
    elif changed == "precisions":
        change(folders["export"] / "parity.json", precisions={})
    elif changed == "missing":
        (tensorrt / "reference_encoder.engine").unlink()
    else:
        parent, name = changed.split("/", 1)
        (folders.get(parent, tensorrt) / name).write_text("another")
    with pytest.raises(DataError, match=reason):
        evidence_of(folders, tmp_path / "release", tensorrt=tensorrt)


@pytest.mark.parametrize("facts", [{"valid": False}, {"data": {"videos": {"md5": OTHER}}}, {"data": {}}])
def test_data_other_than_the_validated_ones_are_not_valid(tmp_path: Path, facts: dict[str, Any]) -> None:
    folders = write_run(tmp_path / "run", scores(90.0))
    change(folders["validation"] / "data.json", **facts)
    assert not evidence_of(folders, tmp_path / "release").valid


def test_much_damage_is_told_in_few_lines(tmp_path: Path) -> None:
    folders = write_run(tmp_path / "run", scores(90.0))
    evidence_of(folders, tmp_path / "release")
    for index in range(9):
        (tmp_path / "release" / f"{index}.txt").touch()
    release = read_release(tmp_path / "release")
    tags = {"release.sha256": release.sha256}
    version = Version(MODEL, "3", (), tags, run_id=None, created=datetime.now(UTC), description="", source="")
    found = read_evidence(version, release)
    assert found.damage == (*(f"{index}.txt: not in the list of files" for index in range(5)), "and 4 more")
    assert found.clips is None


# The policy file


def test_the_projects_policy_states_every_rule() -> None:
    assert load_yaml(PromotionPolicy, POLICY, what="a policy") == PromotionPolicy()
    assert set(yaml.safe_load(POLICY.read_text())) == set(PromotionPolicy.__dataclass_fields__)


def test_a_policy_of_the_two_rules_of_old_is_still_one(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("margin: 0.5\nmin_jf: 60\n")
    policy = load_yaml(PromotionPolicy, tmp_path / "old.yaml", what="a policy")
    assert policy == PromotionPolicy(margin=0.5, min_jf=60.0)


def test_allowances_by_name(tmp_path: Path) -> None:
    text = "scenario_allowance: 1\nscenario_allowances: [{scenario: dance, points: 4}]\n"
    (tmp_path / "own.yaml").write_text(text)
    policy = load_yaml(PromotionPolicy, tmp_path / "own.yaml", what="a policy")
    assert (policy.allowance("dance"), policy.allowance("talk")) == (4.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("margn: 1", "unknown key 'margn'; did you mean 'margin'?"),
        ("margin: much", "margin: found 'much' (str), expected a number"),
        ("margin: -1", "margin: -1.0, expected 0 to 100"),
        ("min_jf: 101", "min_jf: 101.0, expected 0 to 100"),
        ("confidence: 95", "confidence: 95.0, expected more than 0, less than 1"),
        ("resamples: 10", "resamples: 10, expected at least 100"),
        ("max_probability_difference: 2", "max_probability_difference: 2.0, expected 0 to 1"),
        (
            "fps_floor: 25",
            "fps_floor: 25 frames/s with fps_device ''; expected a device and a floor above 0, or neither",
        ),
        (
            "fps_device: H200",
            "fps_floor: 0 frames/s with fps_device 'H200'; expected a device and a floor above 0, or neither",
        ),
        (
            "scenario_allowances: [{scenario: dance, points: -1}]",
            "scenario_allowances, dance: -1 points, expected 0 to 100",
        ),
        ("min_jf: 1\nmin_jf: 2", "line 2: the key 'min_jf' is in line 1 already"),
        ("data_md5: abc", "data_md5: 'abc', expected 32 digits of 0-9a-f and .dir, or nothing"),
        ("- 1", "the file: found [1] (list), expected a mapping of keys"),
        (None, "no such file; expected a promotion policy as YAML"),
    ],
)
def test_a_wrong_policy_is_refused_before_anything_is_registered_or_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    path = tmp_path / "policy.yaml"
    if text is not None:
        path.write_text(text)
    names = ("validation", "pretrain", "train", "evaluation", "export", "report")
    folders = dict.fromkeys(names, tmp_path / "none")
    for call in (
        lambda: steps.register(**folders, out=tmp_path / "out", config=tiny_config(), policy=path),
        lambda: promote_module().promote(policy=path, config=tiny_config()),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == f"{path}: {message}"
    assert not (tmp_path / "mlflow.db").exists()


# From the command line, on real versions


def promote_module() -> Any:
    return importlib.import_module("pdnet.steps.promote")


@pytest.fixture(scope="module")
def registry(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a store with two models, the second better."""
    root = tmp_path_factory.mktemp("registry")
    with new_store("sqlite", root, empty_database) as uri:
        for name, jf in {"first": 80.0, "second": 82.0}.items():
            add_model(write_run(root / name, scores(jf)))
        yield uri


@pytest.fixture
def client(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Speaks to the store, in which version 1 is the champion; the working folder has parameters."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    write_params(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    client = mlflow.MlflowClient(registry)
    reset(client)
    client.set_registered_model_alias(MODEL, "candidate", "2")
    client.set_registered_model_alias(MODEL, "champion", "1")
    return client


def promote(*more: str) -> int:
    return main(["promote", "--policy", str(POLICY), *more])


def log() -> list[dict[str, Any]]:
    with open_store() as store:
        return read_log(store, MODEL)


def test_without_a_number_the_candidate_is_judged(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote() == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("tiny version 2 against version 1, the champion;")
    assert printed.out.endswith("\n\ntiny version 2 is the champion, version 1 is previous\n")
    assert aliases(client) == {"champion": "2", "previous": "1"}


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ("99", "tiny has no version 99; there is: 1, 2"),
        ("best", "--candidate best: expected the number of a version, such as 3"),
    ],
)
def test_a_version_that_is_not_there(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str], candidate: str, message: str
) -> None:
    assert promote("--candidate", candidate) == 2
    assert message in capsys.readouterr().err


def artifact(client: mlflow.MlflowClient, version: str, name: str) -> Path:
    """A file of a version, where the store keeps it."""
    (root,) = (path for path in artifact_roots(client, version) if (path / name).is_file())
    return root / name


def artifact_roots(client: mlflow.MlflowClient, version: str) -> list[Path]:
    location = urlsplit(client.get_model_version_download_uri(MODEL, version)).path
    return [path.parent for path in Path(location).rglob("lineage.json")]


@contextlib.contextmanager
def changed(path: Path) -> Iterator[None]:
    """One byte is another one."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        yield
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        *("pdnet.onnx", "model.safetensors", "params.yaml", "parity.json", "lineage.json"),
        *("evaluation/clips.parquet", "evaluation/scores.json"),
    ],
)
@pytest.mark.parametrize("version", ["1", "2"])
def test_a_byte_that_was_changed_is_found(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str], version: str, name: str
) -> None:
    with changed(artifact(client, version, name)):
        assert promote() == 3
    printed = capsys.readouterr()
    who = f"version {version}{', the champion' if version == '1' else ''}: "
    assert who in printed.err
    assert name in printed.err.partition(who)[2]
    assert [entry["outcome"] for entry in log()] == ["refused"]
    assert "Traceback" not in printed.err
    assert aliases(client) == {"champion": "1"}


def test_a_version_that_was_registered_by_other_means_is_neither_judged_nor_judged_against(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = str(client.create_model_version(MODEL, source="mlflow-artifacts:/nowhere").version)
    assert promote("--candidate", foreign) == 3
    assert f"version {foreign}: {MODEL}/{foreign}: artifacts/release cannot be had" in capsys.readouterr().err
    client.set_registered_model_alias(MODEL, "champion", foreign)
    verdict = judge_and_promote(version="2", policy=PromotionPolicy(), videos=None, config=tiny_config())
    assert (verdict.promoted, verdict.champion) == (False, foreign)
    assert f"version {foreign}, the champion: {MODEL}/{foreign}: artifacts/release cannot be had" in verdict.reasons[0]
    client.delete_model_version(MODEL, foreign)


def test_lists_of_files_that_fit_each_other_but_not_the_registry_are_found(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    lineage, weights = (artifact(client, "2", name) for name in ("lineage.json", "model.safetensors"))
    facts, text = read_json(lineage), lineage.read_text()
    with changed(weights):
        facts["files"]["model.safetensors"]["sha256"] = file_digest(weights)
        lineage.write_text(json.dumps(facts))
        assert promote() == 3
    lineage.write_text(text)
    message = capsys.readouterr().err
    assert "lineage.json: SHA-256 " in message
    assert "the registry says " in message
    assert "model.safetensors: SHA-256 " in message
    assert ", as scored it was " in message


def test_scores_under_another_protocol_are_made_comparable(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    config = tiny_config(evaluation={"protocol": "all-frames"})
    version = add_model(write_run(tmp_path / "all", scores(83.0)), config)
    assert promote("--candidate", version) == 0
    figures = log()[-1]["figures"]
    assert figures["champion"] == pytest.approx(80.0)
    assert figures["difference"]["mean"] == pytest.approx(3.0)


# A person


Wait = Callable[..., list[float]]


@pytest.fixture
def while_waiting(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Makes `promote` do something each time that it waits, in place of waiting; the list of how long it would."""

    def replace(*actions: Callable[[], Any]) -> list[float]:
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            actions[len(waits) - 1]()

        monkeypatch.setattr(promote_module(), "time", SimpleNamespace(sleep=sleep))
        return waits

    return replace


def answer(client: mlflow.MlflowClient, tag: str) -> Callable[[], None]:
    return lambda: client.set_model_version_tag(MODEL, "2", "approval", tag)


@pytest.mark.parametrize(
    ("tag", "code"),
    [("approved", 0), ("rejected", 3), ("Approved ", 0), ("approved over 1", 0), ("Rejected over 1", 3)],
)
def test_a_person_agrees_or_does_not(
    client: mlflow.MlflowClient, while_waiting: Wait, capsys: pytest.CaptureFixture[str], tag: str, code: int
) -> None:
    waits = while_waiting(answer(client, "perhaps"), answer(client, tag))
    assert promote("--require-approval") == code
    assert waits == [5.0, 5.0]
    printed = capsys.readouterr()
    assert (
        "waits for a person: on http://127.0.0.1:5000/#/models/tiny/versions/2 set the tag approval to "
        "'approved' or 'rejected'\n"
    ) in printed.err
    assert printed.err.index("lead, 95 % interval") < printed.err.index("waits for a person")
    assert aliases(client) == ({"champion": "2", "previous": "1"} if code == 0 else {"champion": "1"})
    entry = log()[-1]
    assert entry["approval"] == tag.strip().lower()
    if code:
        assert "pdnet: error: tiny/2 is refused: rejected by a person: the tag approval is 'rejected" in printed.err
        assert entry["outcome"] == "refused"


@pytest.mark.parametrize("old", ["approved", "rejected", "approved over 7", "rejected over 7"])
def test_an_old_answer_does_not_count_for_another_judgement(
    client: mlflow.MlflowClient, while_waiting: Wait, capsys: pytest.CaptureFixture[str], old: str
) -> None:
    client.set_model_version_tag(MODEL, "2", "approval", old)
    waits = while_waiting(lambda: None, answer(client, "approved over 1"))
    assert promote("--require-approval") == 0
    assert len(waits) == 2
    text = capsys.readouterr().err
    assert f"the tag approval was '{old}' before this judgement and does not count" in text
    assert "set the tag approval to 'approved over 1' or 'rejected over 1'" in text


def test_who_rejected_an_older_judgement_can_reject_this_one(client: mlflow.MlflowClient, while_waiting: Wait) -> None:
    client.set_model_version_tag(MODEL, "2", "approval", "rejected")
    while_waiting(answer(client, "Rejected"), answer(client, "Rejected over 1"))
    assert promote("--require-approval") == 3
    assert log()[-1]["approval"] == "rejected over 1"


def test_a_store_that_is_away_for_a_while_does_not_end_the_waiting(
    client: mlflow.MlflowClient,
    while_waiting: Wait,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = client.tracking_uri

    def goes() -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")

    def comes_back() -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    while_waiting(goes, lambda: None, comes_back, answer(client, "approved"))
    assert promote("--require-approval") == 0
    assert capsys.readouterr().err.count("; goes on waiting\n") == 1
    assert aliases(client) == {"champion": "2", "previous": "1"}


def test_a_version_that_is_deleted_ends_the_waiting(
    client: mlflow.MlflowClient, while_waiting: Wait, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = add_model(write_run(tmp_path / "other", scores(83.0)))
    while_waiting(lambda: client.delete_model_version(MODEL, version))
    assert promote("--candidate", version, "--require-approval") == 2
    assert f"tiny has no version {version}; there is: 1, 2" in capsys.readouterr().err
    assert aliases(client)["champion"] == "1"


def test_an_answer_that_names_the_champion_may_come_first(
    client: mlflow.MlflowClient, while_waiting: Wait, capsys: pytest.CaptureFixture[str]
) -> None:
    client.set_model_version_tag(MODEL, "2", "approval", "approved over 1")
    assert while_waiting() == []
    assert promote("--require-approval") == 0
    assert "waits" not in capsys.readouterr().err
    assert log()[-1]["approval"] == "approved over 1"


def test_who_stops_waiting_changes_nothing(client: mlflow.MlflowClient, while_waiting: Wait) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    while_waiting(interrupt)
    assert promote("--require-approval") == 130
    assert aliases(client) == {"champion": "1"}
    assert log() == []
    assert "promotion" not in client.get_model_version(MODEL, "2").tags


def test_nobody_is_asked_about_a_refusal(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    policy = tmp_path / "strict.yaml"
    policy.write_text("min_jf: 99\nrequire_approval: true\n")
    assert main(["promote", "--policy", str(policy)]) == 3
    assert log()[-1]["reasons"][0] == "J&F 82.00, a champion needs 99"


def test_a_champion_that_changed_while_a_person_thought_is_noticed(
    client: mlflow.MlflowClient, while_waiting: Wait, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = add_model(write_run(tmp_path / "other", scores(81.0)))
    while_waiting(lambda: client.set_registered_model_alias(MODEL, "champion", other), answer(client, "approved"))
    assert promote("--candidate", "2", "--require-approval") == 3
    assert f"tiny: version {other} became the champion meanwhile, by hand; judge again" in capsys.readouterr().err
    assert aliases(client) == {"champion": other}


# Other data


@pytest.fixture
def videos(portraits: Path) -> str:
    """The digest of the drawn data set."""
    return folder_digest(portraits)[0]


def add_real_champion(client: mlflow.MlflowClient, folder: Path) -> str:
    """A champion that can be run, scored on data that nobody has."""
    folders = write_run(folder, {"talk/c": 99.0}, data=OTHER)
    weights = folders["train"] / "model.safetensors"
    save_model(weights, decided_network())
    change(folders["evaluation"] / "run.json", model_sha256=file_digest(weights))
    version = add_model(folders)
    client.set_registered_model_alias(MODEL, "champion", version)
    return version


def test_a_champion_of_other_data_is_scored_again_on_the_candidates(
    client: mlflow.MlflowClient, tmp_path: Path, portraits: Path, videos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    champion = add_real_champion(client, tmp_path / "champion")
    better = add_model(write_run(tmp_path / "better", {"talk/c": 98.0}, data=videos))
    assert promote("--candidate", better, "--videos", str(portraits)) == 0
    printed = capsys.readouterr()
    assert f"{videos[:8]}, scored again" in printed.out
    assert f"score version {champion} on data version {videos[:8]} 6/6" in printed.err
    assert aliases(client) == {"champion": better, "previous": champion}

    figures, weights = log()[-1]["figures"], tmp_path / "champion" / "train"
    steps.evaluate(videos=portraits, model=weights, out=tmp_path / "evaluated", config=tiny_config())
    evaluated = read_json(tmp_path / "evaluated" / "scores.json")["jf_mean"]
    assert figures["champion"] == pytest.approx(100 * evaluated, abs=1e-6)
    assert figures["champion"] < 90  # not the 99 that it has on record for the other data
    assert figures["difference"]["low"] == figures["difference"]["high"] == pytest.approx(98 - 100 * evaluated)


def test_a_candidate_that_is_worse_on_its_own_data_is_refused(
    client: mlflow.MlflowClient, tmp_path: Path, portraits: Path, videos: str
) -> None:
    champion = add_real_champion(client, tmp_path / "champion")
    worse = add_model(write_run(tmp_path / "worse", {"talk/c": 0.5}, data=videos))
    write_params(tmp_path / "params.yaml", data={"videos": str(portraits)})  # found without --videos
    assert promote("--candidate", worse) == 3
    assert aliases(client) == {"champion": champion}
    assert log()[-1]["figures"]["difference"]["low"] < 0


def test_a_policy_may_name_the_data_that_both_are_scored_on(
    client: mlflow.MlflowClient, tmp_path: Path, portraits: Path, videos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.delete_registered_model_alias(MODEL, "champion")
    policy = tmp_path / "ground.yaml"
    policy.write_text(f"data_md5: {videos}\nmin_jf: 0.1\n")
    add_real_champion(client, tmp_path / "real")  # 99 on easy data of its own
    client.delete_registered_model_alias(MODEL, "champion")
    real = max((each.version for each in client.search_model_versions(f"name = '{MODEL}'")), key=int)
    command = ["promote", "--policy", str(policy), "--candidate", str(real)]
    assert main(command) == 3  # with no data at hand
    assert f"version {real} was scored on data version {OTHER}, the judgement is on {videos}" in capsys.readouterr().err
    assert main([*command, "--videos", str(portraits)]) == 0
    first = log()[-1]
    assert first["data"] == videos
    assert 0 < first["figures"]["candidate"] < 90

    better = add_model(write_run(tmp_path / "better", {"talk/c": 98.0}, data=videos))
    command[-1] = better
    assert main([*command, "--videos", str(portraits)]) == 0
    assert log()[-1]["figures"]["champion"] == pytest.approx(first["figures"]["candidate"])
    assert log()[-1]["figures"]["candidate"] == pytest.approx(98.0)


def test_a_defect_of_the_scoring_is_not_called_one_of_the_store(
    client: mlflow.MlflowClient, tmp_path: Path, portraits: Path, videos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_real_champion(client, tmp_path / "champion")
    better = add_model(write_run(tmp_path / "better", {"talk/c": 98.0}, data=videos))

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(promote_module(), "rescore", broken)
    with pytest.raises(RuntimeError, match=r"^a defect$"):
        judge_and_promote(version=better, policy=PromotionPolicy(), videos=portraits, config=tiny_config())


def test_data_that_are_not_there_are_named_with_the_command_that_brings_them(
    client: mlflow.MlflowClient, tmp_path: Path, portraits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    champion = add_real_champion(client, tmp_path / "champion")
    folders = write_run(tmp_path / "candidate", {"talk/c": 98.0})
    change(folders["train"] / "run.json", data_revision="0123456789abcdef0123456789abcdef01234567")
    candidate = add_model(folders)
    for more, where in ((["--videos", str(portraits)], f"{portraits} holds "), ([], "data/mvps holds nothing")):
        assert promote("--candidate", candidate, *more) == 3
        message = capsys.readouterr().err
        assert f"version {champion} was scored on data version {OTHER}, the judgement is on {DATA}; " in message
        assert where in message
        assert "`git checkout 0123456789abcdef0123456789abcdef01234567 -- data.dvc && dvc pull data.dvc`" in message
    assert aliases(client) == {"champion": champion}


def test_rescoring_needs_nothing_but_the_release(client: mlflow.MlflowClient, tmp_path: Path, portraits: Path) -> None:
    with open_store() as store:
        version = find_version(store, f"{MODEL}/{add_real_champion(client, tmp_path / 'champion')}")
        download_release(store, version, tmp_path / "release")
    release = read_release(tmp_path / "release")
    clips = rescore(release, portraits, resolution="480p", protocol="all-frames", device="cpu", label="score it again")
    assert list(clips["clip"]) == ["talk/c"]
    assert list(clips["scenario"]) == ["talk"]
    assert list(clips["frames"]) == [6]
    assert 0 < clips["jf_mean"][0] < 1


# The register step


def register(folders: Mapping[str, Path], out: Path, **more: Any) -> dict[str, Any]:
    steps.register(**folders, out=out, config=tiny_config(), **more)
    facts: dict[str, Any] = read_json(out / "registration.json")
    return facts


def test_register_promotes_by_the_policy_and_ends_well_when_that_refuses(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    plain = register(write_run(tmp_path / "a", scores(83.0)), tmp_path / "out" / "a")
    assert "promotion" not in plain
    assert aliases(client) == {"champion": "1"}

    better = register(write_run(tmp_path / "b", scores(84.0)), tmp_path / "out" / "b", policy=POLICY)
    verdict = better["promotion"]
    assert (verdict["promoted"], verdict["champion"]) == (True, better["version"])
    assert verdict["reasons"][0].startswith("J&F 84.00 against 80.00 of version 1, the champion: a lead of 4.00")
    assert aliases(client) == {"champion": better["version"], "previous": "1"}

    worse = register(write_run(tmp_path / "c", scores(70.0)), tmp_path / "out" / "c", policy=POLICY)
    assert worse["promotion"]["promoted"] is False
    assert worse["promotion"]["champion"] == better["version"]
    assert [entry["outcome"] for entry in log()] == ["promoted", "refused"]

    other = register(write_run(tmp_path / "d", scores(99.0), data=OTHER), tmp_path / "out" / "d", policy=POLICY)
    assert other["promotion"]["promoted"] is False
    assert "(no data were given): " in other["promotion"]["reasons"][0]


def test_a_pipeline_does_not_wait_for_a_person(client: mlflow.MlflowClient) -> None:
    policy = PromotionPolicy(require_approval=True)
    verdict = judge_and_promote(version="2", policy=policy, videos=None, config=tiny_config())
    assert (verdict.promoted, verdict.champion) == (False, "1")
    assert verdict.reasons[-1] == "a person has to agree: pdnet promote --candidate 2"
    assert (aliases(client), log()) == ({"champion": "1"}, [])


def test_a_pipeline_does_not_bring_back_what_was_rolled_back(client: mlflow.MlflowClient) -> None:
    config = tiny_config()
    assert judge_and_promote(version="2", policy=PromotionPolicy(), videos=None, config=config).promoted
    rollback(config=config)
    verdict = judge_and_promote(version="2", policy=PromotionPolicy(), videos=None, config=config)
    assert (verdict.promoted, verdict.champion) == (False, "1")
    assert verdict.reasons == ("it was rolled back; a person may decide otherwise: pdnet promote --candidate 2",)
    assert promote("--candidate", "2") == 0
    assert aliases(client)["champion"] == "2"


def test_a_pipeline_that_registers_the_champion_again_changes_nothing(client: mlflow.MlflowClient) -> None:
    verdict = judge_and_promote(version="1", policy=PromotionPolicy(), videos=None, config=tiny_config())
    assert (verdict.promoted, verdict.champion) == (False, "1")
    assert verdict.reasons == ("version 1 is the champion already",)
    assert log() == []


def test_a_pipeline_whose_champion_changed_meanwhile_ends_well(
    client: mlflow.MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = add_model(write_run(tmp_path / "third", scores(81.0)))
    create = mlflow.MlflowClient.create_registered_model

    def somebody_else_first(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        client.set_registered_model_alias(MODEL, "champion", third)
        return create(self, name, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "create_registered_model", somebody_else_first)
    verdict = judge_and_promote(version="2", policy=PromotionPolicy(), videos=None, config=tiny_config())
    assert (verdict.promoted, verdict.champion) == (False, third)
    assert verdict.reasons == (f"tiny: version {third} became the champion meanwhile, by hand; judge again",)
