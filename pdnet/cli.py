"""The command line: thin. The pipeline's commands are made from the step functions' own signatures."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import logging
import os
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pdnet import __version__
from pdnet.errors import PDNetError, UnavailableError
from pdnet.progress import Progress

Command = Callable[[argparse.Namespace], None]

#: The commands of `pdnet.steps`, for the list that `pdnet --help` prints without importing what they need.
STEPS = {
    "data synth": "draw a synthetic data set",
    "data pull": "bring a version of the data set from the DVC remote",
    "validate": "check the data against the rules that training relies on",
    "pretrain": "train the encoder on single images",
    "train": "train the network on images and video in turn",
    "evaluate": "segment and score the validation clips",
    "export onnx": "write the network as ONNX and score it again",
    "export tensorrt": "build a TensorRT engine from the ONNX file and score it again",
    "export triton": "write a registered version as a Triton model repository",
    "report": "write the report, one HTML page",
    "register": "record run and model in MLflow, and promote it where the policy allows",
    "outcome": "record a failed pipeline run in MLflow",
    "promote": "make a registered version the champion, where it has earned it",
    "rollback": "make the champion's predecessor the champion again",
    "lineage": "tell where a registered version came from",
    "verify": "check that a registered version still is what it claims",
    "track sync": "send what could not be recorded to MLflow",
    "bench": "time a network by every backend that this machine has",
}
#: The first words of commands of two.
GROUPS = {"data": "make data sets", "export": "write models in other forms", "track": "see to the MLflow records"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or that of the error (2 wrong input, 3 refused, 4 not available here)."""
    try:
        with _terminated_as_interrupted():
            return _execute(list(sys.argv[1:] if argv is None else argv))
    except _Terminated:
        sys.stderr.write("pdnet: terminated\n")
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        sys.stderr.write("pdnet: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of our output went away; nobody is left to tell. Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


class _Terminated(KeyboardInterrupt):
    """SIGTERM, with which Kubernetes, systemd and `timeout` stop a process."""


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM clean up as ^C does, where nobody else has a use for it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(*_: object) -> None:
        if os.getpid() != process:  # a child that was forked
            os._exit(128 + signal.SIGTERM)
        raise _Terminated

    process = os.getpid()
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _execute(given: list[str]) -> int:
    words = [word for word in given if not word.startswith("-")]
    try:
        if given[:1] == ["run"]:  # has a parser of its own, which needs Kubeflow's SDK
            from pdnet.kfp_command import run

            return run(given[1:], definition=Path("pipelines/pdnet.py"), prog="pdnet")
        arguments = build_parser(" ".join(words[:2]) + " ").parse_args(given)
        with show_progress():
            arguments.execute(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # for `main`; to `explain` it is one of the errors of files
    except Exception as error:
        if (known := explain(error)) is None:
            raise
        _print(known.table)
        sys.stdout.flush()
        sys.stderr.write(f"pdnet: error: {known.line}\n")
        return known.exit_code
    return 0


class Explanation(NamedTuple):
    """A failure as a user sees it: a line for stderr, and what is to be read on stdout before it."""

    line: str
    exit_code: int
    table: str = ""


def explain(error: Exception) -> Explanation | None:
    """A failure that a user can act on; None for a defect of ours."""
    if isinstance(error, PDNetError):
        return Explanation(str(error), error.exit_code, error.table)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        remedy = "try: pip install 'pdnet[pipeline]'"
        line = f"the package '{package}' is not installed; {remedy}"
        return None if package in ("", "pdnet") else Explanation(line, UnavailableError.exit_code)
    if isinstance(error, OSError):  # a full disk, a folder that may not be read
        return Explanation(str(error), PDNetError.exit_code)
    return None


@contextlib.contextmanager
def show_progress() -> Iterator[None]:
    """Show what the `pdnet` loggers tell on stderr while the block runs."""
    handler = _ProgressHandler()
    log = logging.getLogger("pdnet")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        handler.close_bar()
        log.removeHandler(handler)
        log.setLevel(level)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line.

    Args:
        command: what the user typed first; the options of other steps are left out, and torch with them, which takes
            seconds to import. None makes the whole of it.
    """
    parser = argparse.ArgumentParser(
        prog="pdnet", description="Video portrait segmentation: train, score, export and register PDNet."
    )
    parser.add_argument("--version", action="version", version=f"pdnet {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    groups = {"": commands}
    for name, help_text in STEPS.items():
        group, _, word = name.rpartition(" ")
        if group not in groups:
            group_parser = commands.add_parser(group, help=GROUPS[group])
            groups[group] = group_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        parser_of_step = groups[group].add_parser(word, help=help_text)
        if command is None or command.startswith(f"{name} "):
            _add_options(parser_of_step, step_of(name))

    score = commands.add_parser(
        "score", help="score any method's masks: J, F, recall, decay", description=_score.__doc__
    )
    score.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="folder of predicted masks")
    score.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="folder of true masks")
    score.add_argument(
        "--protocol",
        choices=("mvps", "davis2016", "davis2017", "all-frames"),
        default="mvps",
        help="which frames count; all but davis2017 and all-frames leave out a clip's first and last (default: mvps)",
    )
    score.add_argument(
        "--threshold", type=int, metavar="T", help="portrait where a grey value is at least T, for probability maps"
    )
    score.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to this file")
    score.set_defaults(execute=_score)

    predict = commands.add_parser("predict", help="segment a video or a folder of frames", description=_predict.__doc__)
    predict.add_argument("source", type=Path, metavar="SOURCE", help="video, or folder of frames in order of name")
    predict.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="video (.mp4, .mov, .mkv, .webm) with times and sound of the source, or folder for PNG files",
    )
    predict.add_argument(
        "--model",
        type=Path,
        default=Path("build"),
        metavar="PATH",
        help="trained model, or folder with weights, graphs or engines (default: build, the pipeline's)",
    )
    view = predict.add_mutually_exclusive_group()
    view.add_argument(
        "--background",
        metavar="WHAT",
        help="blur, #rrggbb, an image file, or transparent (in .webm, .mov and folders) "
        "(default: blur in videos; folders get masks)",
    )
    view.add_argument("--show", choices=("parts",), help="the likeliest parts in colours, to look at")
    predict.add_argument(
        "--backend",
        choices=("auto", "torch", "onnxruntime", "openvino", "tensorrt"),
        default="auto",
        help="what runs the network (default: auto)",
    )
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    predict.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
        default="auto",
        help="number format (default: auto)",
    )
    predict.add_argument(
        "--compile",
        action="store_true",
        help="let torch.compile make kernels first (CUDA graphs on a GPU): a minute before the first frame",
    )
    predict.set_defaults(execute=_predict)

    released = commands.add_parser(
        "import-checkpoint",
        help="convert a checkpoint of the authors' released network",
        description=_import_checkpoint.__doc__,
    )
    released.add_argument("released", type=Path, metavar="RELEASED.pth", help="the authors' checkpoint")
    released.add_argument("out", type=Path, metavar="OUT", help="model file to write (.safetensors), for `predict`")
    released.set_defaults(execute=_import_checkpoint)

    commands.add_parser("run", help="run the pipeline as Kubeflow tasks: processes, containers or pods")

    summary = commands.add_parser(
        "summary", help="print the scores of the last pipeline run", description=_summary.__doc__
    )
    summary.add_argument(
        "--build", type=Path, default=Path("build"), metavar="DIR", help="the pipeline's results (default: build)"
    )
    summary.set_defaults(execute=_summary)

    config = commands.add_parser("config", help="look at the configuration")
    config_commands = config.add_subparsers(metavar="COMMAND", required=True)
    show = config_commands.add_parser("show", help="print the resolved configuration", description=_config_show.__doc__)
    _add_params(show)
    show.set_defaults(execute=_config_show)
    return parser


def step_of(command: str) -> str:
    """The function in `pdnet.steps` that a command of `STEPS` runs."""
    named = {"data synth": "synthesise", "data pull": "data", "lineage": "show_lineage"}
    return named.get(command, command.replace(" ", "_"))


def _add_options(parser: argparse.ArgumentParser, step: str) -> None:
    """Add the keyword arguments of `pdnet.steps.<step>` as options, but `version`, which is typed alone."""
    function = _step(step)
    lines = inspect.getdoc(function)
    assert lines is not None
    parser.description, helps = lines.splitlines()[0], _argument_help(lines)
    hints = typing.get_type_hints(function)
    for key, parameter in inspect.signature(function).parameters.items():
        kind, option = _plain(hints[key]), f"--{key.replace('_', '-')}"
        if key == "config":
            _add_params(parser)
        elif key == "version":
            parser.add_argument(key, metavar="MODEL", help=helps[key])
        elif kind is bool:
            parser.add_argument(option, dest=key, action="store_true", help=helps[key])
        else:
            required = parameter.default is inspect.Parameter.empty
            parser.add_argument(
                option,
                dest=key,
                type=kind,
                required=required,
                default=None if required else parameter.default,
                metavar={Path: "PATH", int: "N"}.get(kind, "TEXT"),
                help=helps[key] + (f" (default: {parameter.default})" if parameter.default and not required else ""),
            )
    parser.set_defaults(execute=_run_step(function))


def _plain(hint: Any) -> Any:
    """`Path` of `Path | None`: the type of what is typed."""
    return next((kind for kind in typing.get_args(hint) if kind is not type(None)), hint)


def _run_step(function: Callable[..., str | None]) -> Command:
    def run(arguments: argparse.Namespace) -> None:
        values = {key: getattr(arguments, key) for key in inspect.signature(function).parameters if key != "config"}
        if "config" in inspect.signature(function).parameters:
            from pdnet.config import load_config

            values["config"] = load_config(arguments.params)
        _print(function(**values))

    return run


def _print(text: str | None) -> None:
    if text:
        sys.stdout.write(text.removesuffix("\n") + "\n")


def _step(name: str) -> Callable[..., str | None]:
    function: Callable[..., str | None] = getattr(importlib.import_module(f"pdnet.steps.{name}"), name)
    return function


def _argument_help(docstring: str) -> dict[str, str]:
    """The `Args:` section of a Google-style docstring: what is said of each argument, as one line."""
    section = docstring.partition("Args:\n")[2].partition("\n\n")[0]
    key = ""
    helps: dict[str, str] = {}
    for line in section.splitlines():
        if line.startswith("        "):  # goes on with the argument before
            helps[key] += " " + line.strip()
        else:
            key, _, text = line.strip().partition(":")
            helps[key] = text.strip()
    return {key: text.rstrip(".") for key, text in helps.items()}


def _add_params(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        metavar="FILE",
        help="parameters as YAML (default: params.yaml)",
    )


def _score(arguments: argparse.Namespace) -> None:
    """Score masks against annotations: per-clip rows and the data set's figures, in percent."""
    from pdnet.evaluation.scoring import format_table, score_folders
    from pdnet.files import write_json

    table = score_folders(
        arguments.predictions,
        arguments.annotations,
        protocol=arguments.protocol,
        threshold=arguments.threshold,
    )
    sys.stdout.write(format_table(table) + "\n")
    if arguments.json is not None:
        write_json(arguments.json, table.to_json())


def _predict(arguments: argparse.Namespace) -> None:
    """Segment the frames of a video or a folder against the first, and write masks or another background."""
    from pdnet.inference.predict import predict

    done = predict(
        arguments.source,
        arguments.out,
        model=arguments.model,
        backend=arguments.backend,
        device=arguments.device,
        precision=arguments.precision,
        compiled=arguments.compile,
        background=arguments.background,
        show=arguments.show,
    )
    kind = done.kind if done.frames != 1 else done.kind.removesuffix("s")
    _print(f"{done.frames} {kind} in {arguments.out}, {done.fps:.1f} frames/s from file to file ({done.backend})")


def _summary(arguments: argparse.Namespace) -> None:
    """Print the scores of the last pipeline run beside the trivial baselines, and where to look."""
    from pdnet.evaluation.summary import format_summary

    sys.stdout.write(format_summary(arguments.build) + "\n")


def _import_checkpoint(arguments: argparse.Namespace) -> None:
    """Convert a released checkpoint (480x480, residual assembly, unscaled attention) into a model file."""
    from pdnet.model.released import load_released
    from pdnet.weights import save_model

    network = load_released(arguments.released)
    save_model(arguments.out, network, {"imported_from": arguments.released.name, "size": 480})
    config = network.config
    sys.stdout.write(f"{arguments.out}: {config.backbone}, {config.parts} parts, {config.assembly} assembly\n")


def _config_show(arguments: argparse.Namespace) -> None:
    """Print the configuration with every default filled in, as YAML, and its hash."""
    from pdnet.config import config_hash, load_config, to_yaml

    config = load_config(arguments.params)
    sys.stdout.write(f"# {arguments.params}, hash {config_hash(config)}\n{to_yaml(config)}")


class _ProgressHandler(logging.Handler):
    """Draws progress records as a bar in a terminal, elsewhere as a line every ten seconds; messages as lines."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[Any] | None = None
        self.told = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        state: Progress | None = getattr(record, "progress", None)
        if state is None:
            with tqdm.external_write_mode(file=sys.stderr):
                sys.stderr.write(f"pdnet: {record.getMessage()}\n")
        elif self.terminal:
            if self.bar is None or self.bar.desc != state.label:
                self.close_bar()
                self.bar = tqdm(total=state.total, desc=state.label, file=sys.stderr, leave=True)
            self.bar.set_postfix_str(state.note, refresh=False)
            self.bar.total = state.total
            self.bar.update(state.done - self.bar.n)
            if state.done == state.total:
                self.close_bar()
        elif state.done == state.total or time.monotonic() - self.told > 10:
            self.told = time.monotonic()
            of = "" if state.total is None else f"/{state.total}"
            sys.stderr.write(f"{state.label} {state.done}{of} {state.note}".rstrip() + "\n")

    def close_bar(self) -> None:
        """Leave the bar as it stands and go on below it."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


if __name__ == "__main__":
    sys.exit(main())
