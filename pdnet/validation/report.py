"""The validation report: one self-contained page, a summary for programs, and the tables behind both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from pdnet.data.index import SPLITS
from pdnet.files import atomic_folder, write_json, write_text
from pdnet.pages import page_template
from pdnet.validation.suites import RuleOutcome, ValidationResult, data_docs
from pdnet.validation.tables import records

#: Offenders of one rule that page and summary spell out; all are in the tables.
SHOWN_OFFENDERS = 50


def write_report(result: ValidationResult, out: Path) -> None:
    """Write the report of a validation; an existing folder `out` is replaced in full.

    out/index.html                                      the report; needs no other file and no network
    out/summary.json                                    the same for programs; same data, same bytes
    out/frames.parquet, clips.parquet, stills.parquet   the tables that were checked
    out/data_docs/{clips,frames,stills}.html            Great Expectations' own pages (styled when online)
    """
    summary = summarise(result)
    with atomic_folder(Path(out)) as folder:
        write_json(folder / "summary.json", summary)
        result.frames.to_parquet(folder / "frames.parquet")
        result.clips.to_parquet(folder / "clips.parquet")
        result.stills.to_parquet(folder / "stills.parquet")
        for table, page in data_docs(result).items():
            write_text(folder / "data_docs" / f"{table}.html", page)
        write_text(folder / "index.html", _page(result, summary))


def summarise(result: ValidationResult) -> dict[str, Any]:
    """The result as plain dicts and lists: success, failures, limits, sizes of the data set, every rule."""
    clips = result.clips
    return {
        "success": result.success,
        "failures": list(result.failures),
        "warnings": list(result.warnings),
        "config": dataclasses.asdict(result.config),
        "splits": {split: _sizes(clips[clips["split"] == split]) for split in SPLITS},
        "scenarios": {
            str(scenario): {split: _sizes(group[group["split"] == split]) for split in SPLITS}
            for scenario, group in clips.groupby("scenario")
        },
        "stills": len(result.stills),
        "rules": [_rule_entry(outcome) for outcome in result.outcomes],
    }


def _sizes(clips: pd.DataFrame) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "frames": int(clips["frames"].sum()),
        "seconds": round(float(clips["seconds"].sum()), 3),
    }


def _rule_entry(outcome: RuleOutcome) -> dict[str, Any]:
    return {
        "table": outcome.rule.table,
        "name": outcome.rule.name,
        "rule": outcome.rule.sentence,
        "expectation": outcome.rule.expectation,
        "severity": outcome.rule.severity,
        "passed": outcome.passed,
        "checked": outcome.checked,
        "broken": len(outcome.offenders),
        "offenders": list(outcome.offenders[:SHOWN_OFFENDERS]),
    }


def _page(result: ValidationResult, summary: dict[str, Any]) -> str:
    return page_template(Path(__file__).with_name("report.html.j2")).render(
        summary=summary,
        splits=SPLITS,
        clips=_clip_entries(result),
        kept=sum(outcome.passed for outcome in result.outcomes),
        shares=_still_shares(result.stills),
    )


def _clip_entries(result: ValidationResult) -> list[dict[str, Any]]:
    """The rows of the clip table as the page shows them, each with the titles of the rules that it breaks."""
    broken: dict[tuple[str, str], list[str]] = {}
    stopped: set[tuple[str, str]] = set()
    for outcome in result.outcomes:
        if outcome.rule.table == "stills" or outcome.passed:
            continue
        table = result.clips if outcome.rule.table == "clips" else result.frames
        rows = table.iloc[list(outcome.rows)]
        for key in dict.fromkeys(zip(rows["split"], rows["clip"], strict=True)):
            broken.setdefault(key, []).append(outcome.rule.name)
            stopped |= {key} if outcome.stops else set()
    entries = []
    for row in records(result.clips):
        key = (row["split"], row["clip"])
        level = "bad" if key in stopped else "warn" if key in broken else "good"
        entries.append(row | {"broken": broken.get(key, []), "level": level})
    return entries


def _still_shares(stills: pd.DataFrame) -> dict[str, float] | None:
    shares = stills["portrait_share"].dropna()
    if shares.empty:
        return None
    return {"least": float(shares.min()), "mean": float(shares.mean()), "most": float(shares.max())}
