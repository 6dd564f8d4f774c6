"""What a version of the registered model holds: one folder that stands for itself, with the digest of every file.

    pdnet.onnx  reference_encoder.onnx  segmenter.onnx     the exported graphs,
    fp16/  int8/                                           the same in smaller number formats, where they were made, and
    parity.json                                            how closely they agree with the network
    model.safetensors  params.yaml                         the weights, and the resolved configuration
    evaluation/{scores.json,frames.parquet,clips.parquet,baselines.parquet}
    tensorrt/{pdnet,reference_encoder,segmenter}.engine    where engines were built,
    tensorrt/parity.json                                   with how closely they agree
    lineage.json                                           where all of it came from, and its SHA-256

Whoever has the folder needs neither the registry nor the repository to know what it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from pdnet import __version__
from pdnet.data.tables import read_table
from pdnet.errors import DataError
from pdnet.files import file_digest, read_object, write_json, write_text

#: Name of the folder within a version.
RELEASE = "release"
#: What is written last, and lists everything else.
LINEAGE = "lineage.json"
WEIGHTS, PAIR = "model.safetensors", "pdnet.onnx"
ENGINE, ENGINE_PARITY = "tensorrt/pdnet.engine", "tensorrt/parity.json"
EVALUATION = ("scores.json", "frames.parquet", "clips.parquet", "baselines.parquet")

_FORMAT = 1
_SCORED = "run.json of evaluate"
_SCORES = ("jf_mean", "j", "f", "all_frames", "baselines", "speed")
_PARITY = ("sha256", "torch.jf_mean", "onnx.jf_mean")
_ENGINE_PARITY = ("sha256", "onnx_sha256", "max_probability_difference", "torch.jf_mean", "tensorrt.jf_mean")


class Claim(NamedTuple):
    """That a file is the one which a step looked at.

    Attributes:
        file: its name in the release.
        how: what the step did with it: `as scored`, `as compared`, `as built into the engine`.
        record: where the step said so.
        recorded: SHA-256 of what the step had; None where it did not say.
        found: SHA-256 of what the release has; None where it has none.
    """

    file: str
    how: str
    record: str
    recorded: str | None
    found: str | None


class Exported(NamedTuple):
    """Files that were compared with the network together.

    Attributes:
        precision: in which they compute: `fp32`, `tf32`, `fp16` or `int8`.
        files: SHA-256 of what was compared, by name: in the export's folder or, of engines, in the release.
        figures: of the comparison.
        bounds: how far they were allowed to be from the network; empty where that was not noted.
    """

    precision: str
    files: dict[str, str]
    figures: Mapping[str, Any]
    bounds: Mapping[str, float]


@dataclass(frozen=True)
class Release:
    """A release on disk.

    Attributes:
        folder: where it is.
        facts: content of lineage.json.
    """

    folder: Path
    facts: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        content: dict[str, Any] = yaml.safe_load((self.folder / "params.yaml").read_text(encoding="utf-8"))
        return content

    @property
    def scores(self) -> dict[str, Any]:
        """Content of scores.json."""
        return read_object(self.folder / "evaluation" / "scores.json", _SCORES)

    @property
    def parity(self) -> dict[str, Any]:
        """Content of parity.json."""
        return read_object(self.folder / "parity.json", _PARITY)

    @property
    def engine(self) -> dict[str, Any] | None:
        """Content of the engine's parity.json; None where there is no engine."""
        return read_object(self.folder / ENGINE_PARITY, _ENGINE_PARITY) if ENGINE in self.facts["files"] else None

    @property
    def weights(self) -> Path:
        """The network."""
        return self.folder / WEIGHTS

    @property
    def onnx(self) -> Path:
        """The pair graph."""
        return self.folder / PAIR

    @property
    def sha256(self) -> str:
        """Digest of lineage.json, and so of all that it lists."""
        return file_digest(self.folder / LINEAGE)

    @property
    def content(self) -> dict[str, str]:
        """The SHA-256 of every file by name: all that the release is, without when and where it came about."""
        return {name: str(facts["sha256"]) for name, facts in self.facts["files"].items()}

    def frames(self) -> pd.DataFrame:
        """The scored frames: clip, frame, j, f in 0..1."""
        return read_table(self.folder / "evaluation" / "frames.parquet", ("clip", "frame", "j", "f"))

    def clips(self) -> pd.DataFrame:
        """The scored clips: clip, jf_mean, j_mean, f_mean in 0..1."""
        return read_table(self.folder / "evaluation" / "clips.parquet", ("clip", "jf_mean", "j_mean", "f_mean"))

    def step(self, name: str) -> dict[str, Any]:
        """The record of a step; empty where the release has none."""
        record: dict[str, Any] = self.facts["steps"].get(name) or {}
        return record


def write_release(
    out: Path,
    *,
    config: Mapping[str, Any],
    config_hash: str,
    validation: Path,
    pretrain: Path,
    train: Path,
    evaluation: Path,
    export: Path,
    tensorrt: Path | None = None,
) -> Release:
    """Gather the results of a finished pipeline run.

    Args:
        out: folder to make.
        config: the resolved configuration as plain values.
        config_hash: its hash.
        validation: folder of the validate step.
        pretrain: folder of the pretrain step.
        train: folder of the train step.
        evaluation: folder of the evaluate step.
        export: folder of the export_onnx step.
        tensorrt: folder of the export_tensorrt step; None where there is none.

    Raises:
        DataError: a folder lacks a file that its step writes, or a file is not the one that another step looked at.
    """
    folders = {"validate": validation, "pretrain": pretrain, "train": train, "evaluate": evaluation}
    folders |= {"export_onnx": export} | ({"export_tensorrt": tensorrt} if tensorrt else {})
    steps = {step: read_object(present(folder / "run.json"), ("step",)) for step, folder in folders.items()}
    sources = {name: export / name for name in exported_files(read_object(present(export / "parity.json"), _PARITY))}
    sources |= {"parity.json": export / "parity.json", WEIGHTS: train / WEIGHTS}
    sources |= {f"evaluation/{name}": evaluation / name for name in EVALUATION}
    if tensorrt:
        # Read here already, so that an error names the user's file.
        engines = built(read_object(present(tensorrt / "parity.json"), _ENGINE_PARITY))
        names = (ENGINE_PARITY, *(name for each in engines for name in each.files))
        sources |= {name: tensorrt / Path(name).name for name in names}

    out.mkdir(parents=True)
    for name, source in sources.items():
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(present(source), out / name)
    write_text(out / "params.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    files = {
        name: {"sha256": file_digest(out / name), "bytes": (out / name).stat().st_size}
        for name in sorted([*sources, "params.yaml"])
    }
    trained = steps["train"]
    facts = {
        "format": _FORMAT,
        "pdnet": __version__,
        "config_hash": config_hash,
        "git": {"commit": trained.get("git_commit"), "dirty": trained.get("git_dirty")},
        "data": steps["evaluate"].get("data") or {},
        "data_dvc": trained.get("data_dvc"),
        "data_revision": trained.get("data_revision"),
        "image": trained.get("image"),
        "validation": read_object(present(validation / "data.json"), ("valid",)),
        "steps": {
            step: {key: value for key, value in record.items() if key != "parents"} | _weights(folders[step])
            for step, record in steps.items()
        },
        "files": files,
    }
    release = Release(out, facts)
    for claim in broken_claims(release):
        record = evaluation / "run.json" if claim.record == _SCORED else sources[claim.record]
        raise DataError(
            f"{sources.get(claim.file, export / claim.file)}: its SHA-256 is {claim.found or 'not on record'}; "
            f"{claim.how} ({record}) it was {claim.recorded or 'unknown'}"
        )
    write_json(out / LINEAGE, facts)
    return release


def read_release(folder: Path) -> Release:
    """Open a release; `damage` tells whether it is whole.

    Raises:
        DataError: the folder is no release.
    """
    facts = read_object(folder / LINEAGE, ("format", "config_hash", "steps", "files"))
    if facts["format"] != _FORMAT:
        raise DataError(f"{folder / LINEAGE}: format {facts['format']}, expected {_FORMAT}; it needs another pdnet")
    return Release(folder, facts)


def damage(release: Release) -> list[str]:
    """What is no longer as lineage.json says, a line a file: missing, of other content, or not listed."""
    listed = release.facts["files"]
    found = {path.relative_to(release.folder).as_posix() for path in release.folder.rglob("*") if path.is_file()}
    lines = [f"{name}: not in the list of files" for name in sorted(found - {LINEAGE, *listed})]
    for name, facts in listed.items():
        if name not in found:
            lines.append(f"{name}: missing")
        elif (sha256 := file_digest(release.folder / name)) != facts["sha256"]:
            lines.append(f"{name}: SHA-256 {sha256}, recorded {facts['sha256']}")
    return lines


def claims(release: Release) -> Iterator[Claim]:
    """What the steps said of each other's files; whoever changed a file and its record alike is found here."""
    held = release.content
    yield Claim(WEIGHTS, "as scored", _SCORED, release.step("evaluate").get("model_sha256"), held.get(WEIGHTS))
    for name, compared in exported_files(release.parity).items():
        yield Claim(name, "as compared", "parity.json", compared, held.get(name))
    if (engine := release.engine) is not None:
        for each in built(engine):
            for name, compared in each.files.items():
                yield Claim(name, "as compared", ENGINE_PARITY, compared, held.get(name))
        for name, source in (engine.get("sources") or {PAIR: engine["onnx_sha256"]}).items():
            yield Claim(name, "as built into the engine", ENGINE_PARITY, source, held.get(name))


def broken_claims(release: Release) -> list[Claim]:
    """Those of `claims` that do not hold."""
    return [claim for claim in claims(release) if claim.recorded != claim.found]


def exported(parity: Mapping[str, Any]) -> Iterator[Exported]:
    """The ONNX files that the export's parity.json is about: in float32, and in a folder each what else there is."""
    bounds = parity.get("bounds") or {}

    def both(precision: str, folder: str, pair: Mapping[str, Any], streaming: Mapping[str, Any]) -> Iterator[Exported]:
        allowed = bounds.get(precision) or {}
        yield Exported(precision, {f"{folder}{PAIR}": pair["sha256"]}, pair, allowed)
        if files := streaming.get("files"):
            yield Exported(precision, {f"{folder}{name}": files[name] for name in files}, streaming, allowed)

    yield from both("fp32", "", parity, parity.get("streaming") or {})
    for precision, facts in (parity.get("precisions") or {}).items():
        yield from both(precision, f"{precision}/", facts["pair"], facts.get("streaming") or {})


def built(parity: Mapping[str, Any]) -> Iterator[Exported]:
    """The engines that the parity.json of the TensorRT export is about."""
    precision = str(parity.get("precision") or "fp32")
    bounds = (parity.get("bounds") or {}).get(precision) or {}
    yield Exported(precision, {ENGINE: parity["sha256"]}, parity, bounds)
    if streaming := parity.get("streaming"):
        folder = Path(ENGINE).parent
        files = {(folder / name).as_posix(): sha256 for name, sha256 in streaming["files"].items()}
        yield Exported(precision, files, streaming, bounds)


def exported_files(parity: Mapping[str, Any]) -> dict[str, str]:
    """The ONNX files that a parity.json is about, each with the SHA-256 of what was compared."""
    return {name: sha256 for each in exported(parity) for name, sha256 in each.files.items()}


def _weights(folder: Path) -> dict[str, str]:
    """The digest of the weights that a step wrote."""
    path = folder / "model.safetensors"
    return {"weights_sha256": file_digest(path)} if path.is_file() else {}


def present(path: Path) -> Path:
    """`path`, which a step has written.

    Raises:
        DataError: it is not there.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected what the step before writes there")
    return path
