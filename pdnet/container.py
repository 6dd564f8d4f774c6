"""A step as a task in a container: what comes in as text and pointers becomes the step's arguments.

The components under `components/` are adapters over this; it knows nothing of the orchestrator that starts them.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pdnet.cli import explain, show_progress
from pdnet.config import Config, parse_config, to_yaml
from pdnet.errors import ConfigError, DataError, PDNetError
from pdnet.files import read_object, write_json, write_text

#: who computed a J&F in parity.json
ENGINES = ("torch", "onnx", "tensorrt")
#: how the line begins that `pdnet` ends with
ERROR = "pdnet: error: "


class Footage(NamedTuple):
    """Where a version of the data set lies: its clips and its image set."""

    videos: Path
    images: Path


@dataclasses.dataclass(frozen=True)
class Task:
    """One step of one pipeline run.

    Attributes:
        step: name of the step.
        config: the parsed parameters.
        workspace: folder that all tasks of the run share.
    """

    step: str
    config: Config
    workspace: Path

    @property
    def checkpoints(self) -> Path:
        """Where this step keeps what a retry continues from."""
        return self.workspace / "checkpoints" / self.step

    def place_of(self, md5: str) -> Path:
        """Where a version of the data set is brought to."""
        return self.workspace / "data" / md5.removesuffix(".dir")

    def footage(self, pointer: Path, md5: str) -> Footage:
        """The data set that `pointer` names, brought into the workspace where it is not there yet.

        Args:
            pointer: file of the data step: md5, revision, remote.
            md5: the version that the run is about; the pointer must name the same.

        Raises:
            DataError: the pointer names another version, or the version cannot be had.
            ConfigError: `data.videos` or `data.images` lies outside the data set.
        """
        from pdnet.steps import data

        named = read_object(pointer, ("md5", "revision", "remote"))
        if named["md5"] != md5:
            raise DataError(f"{pointer}: names data version {named['md5']}, expected {md5}")
        place = self.place_of(md5)
        data(md5=md5, out=place, remote=named["remote"], revision=named["revision"])
        return Footage(*(self._inside(place, key) for key in ("videos", "images")))

    def file(self, name: str, text: str) -> Path | None:
        """A parameter that is a file's text, as that file in the workspace; None where there is none."""
        if not text.strip():
            return None
        path = self.workspace / name
        write_text(path, text)
        return path

    def _inside(self, place: Path, key: str) -> Path:
        path = Path(getattr(self.config.data, key))
        if path.is_absolute() or path.parts[:1] != ("data",) or ".." in path.parts:
            raise ConfigError(f"data.{key}: {path}, expected a folder below data/, the folder that data.dvc tracks")
        return place / path

    def launch(self, step: Callable[..., None], *, processes: int, **paths: Path) -> None:
        """Run a training step: in this process, or in `processes` of them as torchrun starts them.

        Args:
            step: the step function; `config` is added.
            processes: one a GPU; 0 and 1 run here.
            paths: its other arguments.

        Raises:
            PDNetError: a process failed; its own words, and its exit code.
        """
        if processes <= 1:
            step(**paths, config=self.config)
            return
        with tempfile.TemporaryDirectory() as folder:
            params = Path(folder) / "params.yaml"
            write_text(params, to_yaml(self.config))
            run_in_processes(processes, command_line(self.step, params, paths), logs=Path(folder) / "logs")


def run_in_processes(count: int, command: list[str], *, logs: Path) -> None:
    """Run a command of `python` in several processes that train together; what they say goes to stderr.

    A SIGTERM that comes meanwhile is passed on, and waited for.

    Args:
        count: number of processes.
        command: as `command_line` gives it.
        logs: folder for what each process says.

    Raises:
        PDNetError: a process failed; its own words, and its exit code.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # It would tell a second time, and at length, how the processes ended.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    logs.mkdir()
    torchrun = ["--standalone", f"--nproc-per-node={count}", "--role=process", f"--log-dir={logs}", "--tee=2"]
    try:
        run(parse_args([*torchrun, *command]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        told, words = last_words(logs)
        rank, failure = error.get_first_failure()
        stopped = (128 + signal.SIGTERM, -signal.SIGTERM)  # as torchrun ends the others, perhaps the one that told
        if told in error.failures and error.failures[told].exitcode not in stopped:
            rank, failure = told, error.failures[told]
        ended = f"exit code {failure.exitcode}" if failure.exitcode > 0 else failure.signal_name()
        known = PDNetError(words or f"process {rank} of {count} ended with {ended}; what it said is above")
        known.exit_code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        raise known from None
    except SignalException as error:
        raise PDNetError(last_words(logs)[1] or f"told to stop by {error.sigval.name}") from None


def last_words(logs: Path) -> tuple[int, str]:
    """Which of the processes that left their logs here failed for a reason that a user can act on, and its line.

    Args:
        logs: the `--log-dir` of torchrun, with the stderr of every process.

    Returns:
        Its local rank and what it said; -1 and nothing where none told.
    """
    for log in sorted(logs.rglob("stderr.log"), key=lambda path: path.stat().st_mtime, reverse=True):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(ERROR):
                return int(log.parent.name), line.removeprefix(ERROR)
    return -1, ""


def command_line(step: str, params: Path, paths: dict[str, Path]) -> list[str]:
    """The arguments of `python` that run a step as a command of its own."""
    options = [word for name, path in paths.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    return ["-m", "pdnet", step.replace("_", "-"), *options, "--params", str(params)]


@contextmanager
def task(
    step: str,
    *,
    params: str,
    workspace: str,
    code: str = "",
    image: str = "",
    mlflow_uri: str = "",
    experiment: str = "",
    tolerant: bool = False,
) -> Iterator[Task]:
    """Run a step: parsed parameters in, a failure as one line and an exit code out.

    The table that an error may have stands before the line. The line is also left in
    `<workspace>/failures/<step>.txt`, for the record of the run, until a retry succeeds.

    Args:
        step: its name.
        params: text of the params file.
        workspace: folder that the tasks of the run share.
        code: commit of the code, for the record.
        image: container image, for the record.
        mlflow_uri: tracking server; empty for that of the environment.
        experiment: replaces `tracking.experiment` where not empty.
        tolerant: take the defaults for parameters that are wrong: for what has to tell of just that.

    Raises:
        SystemExit: with the exit code of the failure.
    """
    # An image says itself which code is in it.
    known = {"PDNET_GIT_COMMIT": os.environ.get("PDNET_GIT_COMMIT") or code, "PDNET_IMAGE": image}
    known["MLFLOW_TRACKING_URI"] = mlflow_uri
    os.environ.update({key: value for key, value in known.items() if value})
    shared = Path(workspace)
    os.environ.setdefault("PDNET_MLFLOW_BUFFER", str(shared / "mlflow-buffer"))  # a pod's own folder goes with it
    failure = shared / "failures" / f"{step}.txt"
    try:
        with show_progress():
            try:
                config = parse_config(params, source="params")
            except ConfigError:
                if not tolerant:
                    raise
                config = Config()
            if experiment:
                tracking = dataclasses.replace(config.tracking, experiment=experiment)
                config = dataclasses.replace(config, tracking=tracking)
            yield Task(step, config, shared)
    except Exception as error:
        known_failure = explain(error)
        line = known_failure.line if known_failure else f"{type(error).__name__}: {error}"
        with suppress(DataError):  # where the workspace cannot be written, that is likely what the line says
            write_text(failure, line + "\n")
        if known_failure is None:  # a defect of ours: all of it is wanted
            raise
        if known_failure.table:
            sys.stderr.write(f"{known_failure.table}\n")
        sys.stderr.write(f"{ERROR}{step}: {line}\n")
        sys.exit(known_failure.exit_code)
    failure.unlink(missing_ok=True)


def failures(workspace: Path) -> dict[str, str]:
    """The steps that failed last, each with its line."""
    return {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(workspace.glob("failures/*.txt"))}


def write_pointer(path: Path, *, md5: str, revision: str, remote: str) -> None:
    """Write the pointer that `Task.footage` reads."""
    write_json(path, {"md5": md5, "revision": revision, "remote": remote})


def headline(folder: Path) -> dict[str, Any]:
    """What a person wants to read beside an artifact: whence it came, and its figures where it has some.

    Args:
        folder: of a step.
    """
    record = read_object(folder / "run.json")
    facts: dict[str, Any] = {"step": record["step"], "config_hash": record["config_hash"]}
    facts |= {f"{name}_md5": entry["md5"] for name, entry in record["data"].items()}
    for key in ("data_dvc", "data_revision", "git_commit", "image", "device", "precision", "seconds"):
        if record.get(key) is not None:
            facts[key] = record[key]
    if (folder / "scores.json").is_file():
        facts["J&F"] = round(100 * read_object(folder / "scores.json", ("jf_mean",))["jf_mean"], 2)
    if (folder / "parity.json").is_file():
        parity = read_object(folder / "parity.json")
        facts |= {f"J&F {side}": round(100 * parity[side]["jf_mean"], 2) for side in ENGINES if side in parity}
        facts["sha256"] = parity["sha256"]
    return facts


def figures(evaluation: Path) -> dict[str, float]:
    """The scores of the evaluate step as the orchestrator's page lists them, in percent, and frames per second."""
    scores = read_object(evaluation / "scores.json", ("jf_mean", "j", "f", "speed"))
    percent = {
        "J&F": scores["jf_mean"],
        "J mean": scores["j"]["mean"],
        "J recall": scores["j"]["recall"],
        "F mean": scores["f"]["mean"],
        "F recall": scores["f"]["recall"],
    }
    speed = scores["speed"]
    fps = {"FPS network": speed["network_fps"], "FPS end to end": speed["end_to_end_fps"]}
    return {name: round(100 * value, 2) for name, value in percent.items()} | {
        name: round(value, 2) for name, value in fps.items()
    }


def confusion(evaluation: Path) -> tuple[list[str], list[list[int]]]:
    """The pixels of the validation clips: categories, and a row a true category with its predicted ones."""
    pixels = read_object(evaluation / "scores.json", ("pixels",))["pixels"]
    names = ["background", "portrait"]
    return names, [[int(pixels[true][predicted]) for predicted in names] for true in names]


def registration_card(folder: Path) -> str:
    """What the register step did, as Markdown."""
    facts = read_object(folder / "registration.json")
    lines = [
        f"# {facts['model']}, version {facts['version']}",
        "",
        f"- experiment: {facts['experiment']}",
        f"- run: `{facts['run_id']}`",
        f'- load it: `mlflow.pyfunc.load_model("{facts["model_uri"]}")`',
    ]
    promotion = facts.get("promotion")
    if promotion:
        verdict = "promoted to champion" if promotion["promoted"] else "not promoted"
        lines.append(f"- {verdict}: {'; '.join(promotion['reasons'])}")
    return "\n".join(lines) + "\n"
