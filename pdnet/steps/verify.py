"""Whether a registered version still is what it claims: its files, what they say of themselves, and its scores."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pdnet.config import config_hash
from pdnet.data.index import index_clips
from pdnet.data.io import UInt8Array
from pdnet.devices import pick_device
from pdnet.errors import CheckpointError, DataError, TrackingError, VerificationError
from pdnet.evaluation.evaluate import score_table
from pdnet.evaluation.scoring import summarise
from pdnet.export.onnx import PAIR
from pdnet.files import file_digest
from pdnet.inference.onnx_backend import OnnxModel, PairBackend, StreamingBackend
from pdnet.inference.session import Backend, PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.steps.run_record import data_facts
from pdnet.tracking.lineage import data_commands
from pdnet.tracking.pyfunc import RELEASE_PATH, served_digest
from pdnet.tracking.release import (
    ENGINE,
    LINEAGE,
    WEIGHTS,
    Release,
    claims,
    damage,
    exported,
    exported_files,
    read_release,
)
from pdnet.tracking.store import open_store
from pdnet.tracking.versions import Version, download, find_version
from pdnet.weights import load_model, model_facts

#: Largest difference of a J&F of the data set that counts as the same, in points of 100: another processor's rounding.
TOLERANCE = 0.05
#: The same of a figure that is computed from the same numbers once more.
ROUNDING = 1e-6

_DIGITS = 16
_MOST_REASONS = 3
_MARKS = {True: "ok", False: "NOT ok", None: ""}


class Check(NamedTuple):
    """One line of the table.

    Attributes:
        what: is looked at.
        recorded: what it was.
        found: what it is.
        ok: None where the line only informs.
    """

    what: str
    recorded: str
    found: str
    ok: bool | None


def verify(*, version: str, videos: Path | None = None, hashes_only: bool = False) -> str:
    """Check that a registered version still is what it claims: hash its files again, and score it again.

    The files against lineage.json, lineage.json against the tags in the registry; then what the weights, the graphs
    and the tables say of themselves; then the network and the ONNX files, in every precision that there is, on the
    data that they were scored on, with the version's own parameters. Each stage follows where the one before found
    nothing. A TensorRT engine is hashed and not run.

    Args:
        version: `pdnet@champion` or `pdnet/3`.
        videos: data set in the MVPS layout that the version was scored on; without it the folder that its parameters
            name.
        hashes_only: leave out the scoring, which needs the data.

    Returns:
        The table, and that all is well.

    Raises:
        VerificationError: something is not as it was recorded; with the table.
        DataError: the data are missing or of another version; says how to have the right one.
        TrackingError: there is no such version, or its files cannot be had.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "model")
        with open_store(write=False) as store:
            found = find_version(store, version)
            download(store, found, model)
        folder = model / RELEASE_PATH
        if not (folder / LINEAGE).is_file():
            raise TrackingError(f"{found.name}: holds no {RELEASE_PATH / LINEAGE}; it was not registered by pdnet")
        checks = list(_digests(found, folder))
        checks.append(_same("served model, tag served.sha256", found.tags.get("served.sha256"), served_digest(model)))
        if not checks[0].ok:  # the list of the other files cannot be trusted
            raise _refused(found, checks)
        release = read_release(folder)
        stages = [_files(found, release), _contents(found, release)]
        if not hashes_only:
            stages.append(_scores(found, release, videos))
        for stage in stages:  # each is computed when its turn comes
            checks += stage
            if any(check.ok is False for check in checks):
                raise _refused(found, checks)
    scope = " as far as digests tell; it was not scored" if hashes_only else ""
    return f"{format_table(checks)}\n\n{found.name} is what it claims{scope}"


def format_table(checks: Sequence[Check]) -> str:
    """The checks for a terminal, a line each."""
    rows = [("", "recorded", "found", "")]
    rows += [(check.what, check.recorded, check.found, _MARKS[check.ok]) for check in checks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _refused(version: Version, checks: Sequence[Check]) -> VerificationError:
    wrong = [check for check in checks if check.ok is False]
    reasons = [f"{check.what}: recorded {check.recorded}, found {check.found}" for check in wrong[:_MOST_REASONS]]
    if len(wrong) > _MOST_REASONS:
        reasons.append(f"and {len(wrong) - _MOST_REASONS} more")
    return VerificationError(f"{version.name} is not what it claims: {'; '.join(reasons)}", table=format_table(checks))


def _digests(version: Version, folder: Path) -> Iterator[Check]:
    """The files that the registry itself has a digest of; lineage.json, which lists the others, first."""
    for tag, name in {"release": LINEAGE, "weights": WEIGHTS, "onnx": PAIR, "tensorrt": ENGINE}.items():
        recorded = version.tags.get(f"{tag}.sha256")
        found = file_digest(folder / name) if (folder / name).is_file() else None
        if name != ENGINE or recorded or found:
            yield _same(f"{name}, tag {tag}.sha256", recorded, found)


def _files(version: Version, release: Release) -> Iterator[Check]:
    """Every file against lineage.json, and lineage.json against the other tags of the version."""
    facts, listed = release.facts, release.facts["files"]
    wrong = dict(line.split(": ", 1) for line in damage(release))
    for name in sorted(listed.keys() | wrong.keys()):
        recorded = _short(listed[name]["sha256"]) if name in listed else "not listed"
        found = wrong.get(name, recorded)
        if found.startswith("SHA-256 "):
            found = _short(found.split()[1].rstrip(","))
        yield Check(name, recorded, found, name not in wrong)
    tags = {"config.hash": facts["config_hash"], "git.commit": facts["git"]["commit"], "image": facts["image"]}
    tags |= {f"data.{kind}.md5": entry["md5"] for kind, entry in facts["data"].items() if entry}
    for tag, value in tags.items():
        if value is not None or tag in version.tags:
            yield _same(f"lineage.json, tag {tag}", version.tags.get(tag), value)


def _contents(version: Version, release: Release) -> Iterator[Check]:
    """What the files say of themselves and of each other.

    A step that was not run again after a change of other steps' parameters keeps the configuration hash that it ran
    with; so weights and graphs are held against the records of their own steps.
    """
    facts, parity, scores = release.facts, release.parity, release.scores
    yield _same("params.yaml, its hash", facts["config_hash"], config_hash(release.config))
    train, export = release.step("train"), release.step("export_onnx")
    try:
        inside = model_facts(release.weights)
    except CheckpointError as error:
        yield Check(f"{WEIGHTS}, inside", "a model", str(error).removeprefix(f"{release.weights}: "), ok=False)
    else:
        yield _same(f"{WEIGHTS}, config_hash inside", train.get("config_hash"), inside.get("config_hash"))
        for kind, entry in (train.get("data") or {}).items():
            yield _same(f"{WEIGHTS}, {kind} inside", entry["md5"], (inside.get("data") or {}).get(kind))
    for claim in claims(release):
        yield _same(f"{claim.file}, {claim.how}", claim.recorded, claim.found)
    videos = ((export.get("data") or {}).get("videos") or {}).get("md5")
    recorded = {"config_hash": export.get("config_hash"), "data_md5": videos, "git_commit": export.get("git_commit")}
    for name in exported_files(parity):
        inside = _graph_facts(release.folder / name)
        for key, value in recorded.items():
            yield _same(f"{name}, {key} inside", value, inside.get(key) or None)
    yield _same("scores.json, tag jf_mean", version.tags.get("jf_mean"), f"{scores['jf_mean']:.4f}")
    yield _same("scores.json, tag fps", version.tags.get("fps"), f"{scores['speed']['network_fps']:.1f}")
    yield from _tables(release, scores)


def _tables(release: Release, scores: Mapping[str, Any]) -> Iterator[Check]:
    """The figures of the data set and of the clips, from those of the frames."""
    protocol = release.config["evaluation"]["protocol"]
    again = summarise(release.frames(), protocol)
    recorded = {"J&F": scores["jf_mean"], "J": scores["j"]["mean"], "F": scores["f"]["mean"]}
    found = {name: again.dataset[key] for name, key in (("J&F", "jf_mean"), ("J", "j_mean"), ("F", "f_mean"))}
    for name, value in recorded.items():
        yield _figure(f"scores.json, {name} by frames.parquet", value, found[name], tolerance=ROUNDING)
    columns = ["jf_mean", "j_mean", "f_mean"]
    clips, stored = (table.set_index("clip")[columns] for table in (again.clips, release.clips()))
    same = set(clips.index) == set(stored.index) and bool((100 * (clips - stored).abs() <= ROUNDING).all(axis=None))
    shown = f"clips: {len(clips)}" if same else "other figures"
    yield Check("clips.parquet by frames.parquet", f"clips: {len(stored)}", shown, same)


def _scores(version: Version, release: Release, videos: Path | None) -> Iterator[Check]:
    """The network and the ONNX files, scored once more on the data that they were scored on."""
    config = release.config  # not parsed as `Config`: that of another version of pdnet may have other keys
    folder = videos or Path(config["data"]["videos"])
    md5 = _check_data(version, release, folder)
    yield Check("videos", _short(md5), _short(md5), ok=True)
    frames = index_clips(folder, resolution=config["data"]["resolution"], splits=("val",))
    recorded = release.frames()
    for name, model in _models(release).items():
        open_clip = partial(_open, model.backend)
        table = score_table(open_clip, frames, threshold=config["evaluation"]["threshold"], label=f"score {name}")
        figures = summarise(table, config["evaluation"]["protocol"]).dataset
        yield _figure(f"{name}, J&F", model.jf_mean, figures["jf_mean"], tolerance=model.tolerance)
        yield _largest_difference(name, recorded, table)


class _Model(NamedTuple):
    """A model of a release: what runs it, its recorded J&F, and how far a new one may be from that, in points."""

    backend: Backend
    jf_mean: float
    tolerance: float = TOLERANCE


def _models(release: Release) -> dict[str, _Model]:
    """The network, and the graphs in every precision, by the names of their files."""
    network, size = load_model(release.weights), release.config["data"]["size"]
    backend = TorchBackend(network, size=size, device=pick_device("auto"))
    found = {WEIGHTS: _Model(backend, release.scores["jf_mean"])}
    for each in exported(release.parity):
        first, *others = (release.folder / name for name in each.files)
        graphs = StreamingBackend(first.parent) if others else PairBackend(OnnxModel(first))
        # Other processors round int8 and fp16 in other ways; what was allowed then is allowed now.
        allowed = TOLERANCE if each.precision == "fp32" else each.bounds.get("max_jf_difference", TOLERANCE)
        found[", ".join(each.files)] = _Model(graphs, each.figures["onnx"]["jf_mean"], allowed)
    return found


def _open(backend: Backend, reference: UInt8Array) -> PortraitSession:
    return PortraitSession(backend, reference=reference)


def _check_data(version: Version, release: Release, folder: Path) -> str:
    """The MD5 of the videos, which is the recorded one.

    Raises:
        DataError: they are missing or of another version; says how to have the right one.
    """
    expected = release.facts["data"]["videos"]
    found = data_facts(folder)["md5"] if folder.is_dir() else "no such folder"
    if found == expected["md5"]:
        return str(found)
    commands = data_commands(release.facts)
    remedy = f"to have it: {' && '.join(commands)}" if commands else "DVC does not track it"
    raise DataError(
        f"{folder}: {found}; expected {expected['md5']} ({expected['files']} files), the version that {version.name} "
        f"was scored on; {remedy}; then --videos, where it lies elsewhere. --hashes-only needs no data"
    )


def _largest_difference(name: str, recorded: pd.DataFrame, found: pd.DataFrame) -> Check:
    """Where a model differs most from the recorded scores; refused where it was scored on other frames."""
    tables = [table.set_index(["clip", "frame"])[["j", "f"]].sort_index() for table in (recorded, found)]
    what = f"{name}, largest difference of a frame"
    if not tables[0].index.equals(tables[1].index):
        return Check(f"{name}, frames", f"{len(recorded)}", f"{len(found)}, not the same ones", ok=False)
    apart = 100 * (tables[1] - tables[0]).abs()
    worst: Any = apart.max(axis=1).idxmax()
    where = "/".join(worst)
    return Check(what, "", f"J {apart['j'].max():.2f}, F {apart['f'].max():.2f} points ({where})", ok=None)


def _graph_facts(path: Path) -> dict[str, str]:
    """The facts that an ONNX file was written with; none of a file that is no ONNX."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's own classes
        return {}
    return {entry.key: entry.value for entry in model.metadata_props}


def _same(what: str, recorded: Any, found: Any) -> Check:
    shown = ["none" if value is None else _short(str(value)) for value in (recorded, found)]
    return Check(what, shown[0], shown[1], recorded == found)


def _figure(what: str, recorded: float, found: float, *, tolerance: float) -> Check:
    """Two shares, shown in percent; `tolerance` in points."""
    same = abs(100 * (recorded - found)) <= tolerance
    shown = [f"{100 * value:.2f}" for value in (recorded, found)]
    if not same and shown[0] == shown[1]:
        shown = [f"{100 * value:.6f}" for value in (recorded, found)]
    return Check(what, shown[0], shown[1], same)


def _short(digest: str) -> str:
    return digest if len(digest) <= _DIGITS else f"{digest[:_DIGITS]}…"
