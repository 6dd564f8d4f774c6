"""Where a registered version came from, and what became of it: a screen of text, or JSON."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pdnet.config import Config, to_mapping
from pdnet.tracking.lineage import read_lineage
from pdnet.tracking.store import open_store
from pdnet.tracking.versions import find_version

#: Hexadecimal digits of a digest that a person compares; --json has all of them.
DIGITS = 16


def show_lineage(*, version: str, json: bool = False) -> str:
    """Tell where a registered version came from: run, code, data, parents, exports, scores, promotions.

    Asks the registry alone: no data, no repository, none of the model's large files. The JSON is one object; what is
    not known is null:

        version     name, model, number, aliases, created, page, tags
        run         of MLflow: id, name, status, page
        pdnet       its version
        git         commit, dirty
        image       container image
        config      hash, differs: [{key, paper, here}]; a key that one side does not have lacks that side's entry
        data        videos and images: {path, md5, files, bytes}; dvc: {md5, revision}; commands: [those that bring it]
        parents     backbone (`pretrain.weights`), pretrain and train (SHA-256 of their weights)
        steps       [{step, started, seconds, host, device, precision, processes, accelerators, image, config_hash,
                    git_commit}]
        exports     [{file, sha256, bytes, agreement: {max_probability_difference, mean_probability_difference,
                    mask_agreement, jf_mean}}]
        evaluation  scores.json: jf_mean, j, f, intervals, scenarios, speed, ...
        promotions  entries of the promotion log: {outcome, by, at, from, to, text, reasons, ...}, oldest first

    Args:
        version: `pdnet@champion` or `pdnet/3`.
        json: everything as JSON.

    Returns:
        The text.

    Raises:
        TrackingError: there is no such version, it was registered by other means, or the store does not answer.
        DataError: a file is not the one that was registered.
    """
    with open_store(write=False) as store:
        lineage = read_lineage(store, find_version(store, version), paper=to_mapping(Config()))
    return json_format.dumps(lineage, indent=1, ensure_ascii=False) if json else format_lineage(lineage)


def format_lineage(lineage: Mapping[str, Any]) -> str:
    """The text: a label in the left column, what is known beside it."""
    sections = {
        "Version": _version(lineage),
        "MLflow": _pages(lineage),
        "Code": _code(lineage),
        "Configuration": _configuration(lineage["config"]),
        "Data": _data(lineage["data"]),
        "Parents": _parents(lineage["parents"]),
        "Steps": _steps(lineage),
        "Exports": _exports(lineage["exports"]),
        "Evaluation": _evaluation(lineage["evaluation"]),
        "Promotions": _promotions(lineage["promotions"]),
    }
    width = max(map(len, sections)) + 2
    return "\n".join(
        f"{label if index == 0 else '':<{width}}{line}".rstrip()
        for label, lines in sections.items()
        for index, line in enumerate(lines)
    )


def _version(lineage: Mapping[str, Any]) -> Iterator[str]:
    version = lineage["version"]
    aliases = ", ".join(f"@{alias}" for alias in version["aliases"]) or "no alias"
    yield f"{version['name']}  {aliases}  registered {_time(version['created'])} UTC"


def _pages(lineage: Mapping[str, Any]) -> Iterator[str]:
    run = lineage["run"]
    yield f"version  {lineage['version']['page']}"
    if run is None:
        yield "run      none"
    else:
        yield f"run      {run['page'] or run['id']}  {run['status'] or 'removed'}"


def _code(lineage: Mapping[str, Any]) -> Iterator[str]:
    git = lineage["git"]
    state = {True: ", with uncommitted changes", False: ", nothing uncommitted", None: ""}[git["dirty"]]
    yield f"commit {git['commit'] or 'unknown'}{state}; pdnet {lineage['pdnet']}"
    yield f"container image {lineage['image'] or 'none'}"


def _configuration(config: Mapping[str, Any]) -> Iterator[str]:
    differs = config["differs"]
    yield f"{config['hash']}; {len(differs) or 'no'} value{'' if len(differs) == 1 else 's'} unlike the paper's"
    sides = [[_value(entry, side) for side in ("paper", "here")] for entry in differs]
    yield from _table([[entry["key"], paper, "->", here] for entry, (paper, here) in zip(differs, sides, strict=True)])


def _value(entry: Mapping[str, Any], side: str) -> str:
    if side not in entry:
        return "(no such key)"
    value = entry[side]
    return value if isinstance(value, str) and value else json_format.dumps(value, ensure_ascii=False)


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    kinds = [kind for kind in data if kind not in ("dvc", "commands")]
    yield from _table(
        [
            [kind, data[kind]["md5"], f"{data[kind]['files']:,} files", _size(data[kind]["bytes"]), data[kind]["path"]]
            for kind in kinds
        ]
    )
    dvc, commands = data["dvc"], data["commands"]
    if dvc["md5"] is None:
        yield "not tracked by DVC: a folder with this MD5 is this version"
        return
    yield f"DVC {dvc['md5']}, " + (f"git revision {dvc['revision']}" if dvc["revision"] else "of unknown git revision")
    yield f"to have it: {' && '.join(commands)}"


def _parents(parents: Mapping[str, Any]) -> Iterator[str]:
    pretrained = f"pretrained {_short(parents['pretrain'])}" if parents["pretrain"] else "no pretrained weights"
    yield f"backbone weights {parents['backbone']} -> {pretrained} -> trained {_short(parents['train'])} (SHA-256)"


def _steps(lineage: Mapping[str, Any]) -> Iterator[str]:
    rows = [["", "started (UTC)", "took", "host", "device"]]
    for record in lineage["steps"]:
        device = ", ".join(str(record[key]) for key in ("device", "precision") if record[key])
        processes = f", {record['processes']} processes" if (record["processes"] or 1) > 1 else ""
        commit = record["git_commit"]
        other = f", commit {commit[:12]}" if commit not in (None, lineage["git"]["commit"]) else ""
        rows.append(
            [
                record["step"],
                _time(record["started"]),
                "–" if record["seconds"] is None else str(timedelta(seconds=round(record["seconds"]))),
                record["host"] or "–",
                f"{device or '–'}{processes}{other}",
            ]
        )
    yield from _table(rows)


def _exports(exports: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [["", f"SHA-256, first {DIGITS}", "size", "J&F", "masks alike", "probability off by at most"]]
    for export in exports:
        agreement = export["agreement"]
        alike, largest = agreement["mask_agreement"], agreement["max_probability_difference"]
        rows.append(
            [
                *(export["file"], _short(export["sha256"]), _size(export["bytes"]), _percent(agreement["jf_mean"])),
                *("–" if alike is None else f"{100 * alike:.3f} %", "–" if largest is None else f"{largest:.1g}"),
            ]
        )
    yield from _table(rows)


def _evaluation(scores: Mapping[str, Any]) -> Iterator[str]:
    intervals = scores.get("intervals") or {}
    low, high = intervals.get("jf_mean") or (None, None)
    within = "" if low is None else f" ({100 * intervals['level']:g} % interval {_percent(low)} to {_percent(high)})"
    figures = f"J {_percent(scores['j']['mean'])}, F {_percent(scores['f']['mean'])}"
    yield f"J&F {_percent(scores['jf_mean'])}{within}; {figures}"
    yield f"{scores.get('clips')} clips, {scores.get('frames')} frames, protocol {scores.get('protocol')}"
    if scenarios := scores.get("scenarios"):
        rows = [["", "clips", "J&F", "J", "F"]]
        for row in scenarios:
            shares = (row[key] for key in ("jf_mean", "j_mean", "f_mean"))
            rows.append([row["scenario"], str(row["clips"]), *map(_percent, shares)])
        yield from _table(rows)
    speed = scores["speed"]
    yield (
        f"{speed['network_fps']:.1f} frames/s for the network, {speed['end_to_end_fps']:.1f} from file to mask: "
        f"{speed['device']}, {speed['precision']}, {speed['size']} x {speed['size']}"
    )


def _promotions(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not entries:
        yield "none on record"
    for entry in entries:
        before, after = (f"version {entry[key]}" if entry[key] else "none" for key in ("from", "to"))
        move = f"champion {before} -> {after}" if before != after else f"{after} stays the champion"
        judged = f"version {entry['version']} {entry['outcome']}"
        yield f"{_time(entry['at'])}  {judged} by {entry['by']}; {move}"
        yield from (f"  {reason}" for reason in entry.get("reasons") or [entry["text"]])


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _short(digest: str) -> str:
    return digest[:DIGITS]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
