"""The model card: what a version says of itself, as Markdown on its page in the registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pdnet.tracking.record import cut
from pdnet.tracking.release import Release

#: Longest description of a version: the width of MLflow's column.
MAX_CARD = 5000
#: Clips and frames that are named among the known failures.
WORST = 3
#: A frame below this J&F is one that a viewer would call wrong.
POOR = 0.7


def model_card(release: Release, *, licence: str) -> str:
    """Write the card: scores, known failures, data, recipe, files, licence. At most `MAX_CARD` characters.

    Args:
        release: of the version.
        licence: under which the weights may be used; empty where nobody stated it.
    """
    scores, config = release.scores, release.config
    speed = scores["speed"]
    lines = [
        f"J&F {_percent(scores['jf_mean'])}{_interval(scores)} on {scores.get('clips')} validation clips, "
        f"{scores.get('frames')} frames, protocol {scores.get('protocol')}. "
        f"{speed['network_fps']:.1f} frames/s for the network, {speed['end_to_end_fps']:.1f} from file to mask "
        f"({speed['device']}, {speed['precision']}, {speed['size']} x {speed['size']}).",
        "",
        *_scenarios(scores),
        "## Known failures",
        "",
        *_failures(release),
        "",
        "## Data",
        "",
        *_data(release.facts),
        "",
        "## Recipe",
        "",
        *_recipe(config, release),
        "",
        "## Licence",
        "",
        licence or "Not stated (`tracking.licence` in the parameters).",
        "",
        "## Use",
        "",
        'Segments a clip: `mlflow.pyfunc.load_model("models:/...")` takes a table with a column `frame` (encoded '
        "images, in order; the first is the reference) or `clip` (encoded videos), and gives masks as PNG. "
        "Weights, ONNX files, tables and lineage lie in `artifacts/release`.",
    ]
    return cut("\n".join(lines) + "\n", MAX_CARD)


def _scenarios(scores: Mapping[str, Any]) -> Iterator[str]:
    rows = scores.get("scenarios") or []
    if not rows:
        return
    yield from ("| scenario | clips | J&F | J | F |", "|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row["jf_mean"]):
        figures = " | ".join(_percent(row[key]) for key in ("jf_mean", "j_mean", "f_mean"))
        yield f"| {cut(str(row['scenario']), 40)} | {row['clips']} | {figures} |"
    yield ""


def _failures(release: Release) -> Iterator[str]:
    """The worst clips and frames, and how often a frame is poor."""
    frames = release.frames()
    frames = frames.assign(jf=(frames["j"] + frames["f"]) / 2)
    poor = int((frames["jf"] < POOR).sum())
    yield f"- {poor} of {len(frames)} frames ({100 * poor / len(frames):.1f} %) have a J&F below {100 * POOR:g}."
    clips = release.clips().nsmallest(WORST, "jf_mean")
    named = ", ".join(f"{row['clip']} ({_percent(row['jf_mean'])})" for row in clips.to_dict("records"))
    yield f"- Worst clips: {named}."
    worst = frames.nsmallest(WORST, "jf").to_dict("records")
    named = ", ".join(f"{row['clip']}/{row['frame']} ({_percent(row['jf'])})" for row in worst)
    yield f"- Worst frames: {named}."
    yield "- Each clip is segmented against its first frame: a portrait that is not in it yet is an untested case."


def _data(facts: Mapping[str, Any]) -> Iterator[str]:
    for kind, data in facts["data"].items():
        yield f"- {kind}: `{data['md5']}`, {data['files']:,} files, {data['bytes'] / 1e6:,.1f} MB"
    if facts["data_dvc"]:
        revision = f", `data.dvc` of commit `{facts['data_revision']}`" if facts["data_revision"] else ""
        yield f"- tracked by DVC as `{facts['data_dvc']}`{revision}"


def _recipe(config: Mapping[str, Any], release: Release) -> Iterator[str]:
    model, train, pretrain = (config.get(section) or {} for section in ("model", "train", "pretrain"))
    record = release.step("train")
    ipda = f"{model.get('parts')} parts" if model.get("ipda") else "without IPDA"
    references = f"{model.get('references')} reference frame(s)"
    yield f"- {model.get('backbone')}, {ipda}, {references}, {model.get('assembly')} assembly"
    yield (
        f"- encoder from weights `{pretrain.get('weights')}`, {pretrain.get('epochs')} epochs on images; then "
        f"{train.get('epochs')} epochs with {train.get('optimizer')} on video and images in turn"
    )
    yield f"- trained on {record.get('device')} in {record.get('precision')}, {_hours(record.get('seconds'))}"
    commit, dirty = release.facts["git"]["commit"], release.facts["git"]["dirty"]
    code = f"`{commit}`{', with uncommitted changes' if dirty else ''}" if commit else "of unknown commit"
    yield f"- code {code}; parameters `{release.facts['config_hash']}`; pdnet {release.facts['pdnet']}"


def _interval(scores: Mapping[str, Any]) -> str:
    intervals = scores.get("intervals") or {}
    if "jf_mean" not in intervals:
        return ""
    low, high = intervals["jf_mean"]
    return f" ({100 * intervals['level']:g} % interval over clips {_percent(low)} to {_percent(high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "time not recorded"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
