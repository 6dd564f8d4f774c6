"""The command line as a user meets it: exit codes, streams, one line for every mistake, nothing half written."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_profile import SIZE, decided_network, tiny_config, write_params

from pdnet import __version__, cli
from pdnet.cli import build_parser, main
from pdnet.config import load_config, parse_config
from pdnet.errors import PromotionError
from pdnet.inference.backends import NAMES, PRECISIONS
from pdnet.weights import save_model

ROOT = Path(__file__).parents[1]
#: a loop that told how far it had come before the error; `_ProgressHandler`, outside a terminal
PROGRESS = re.compile(r"[\w ]+ \d+/\d+( \S.*)?|pdnet: [a-z].*")
STEPS = ("validate", "pretrain", "train", "evaluate", "export onnx", "report", "register")


def shell(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """The real command."""
    command = [sys.executable, "-m", "pdnet", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, **options)


@pytest.fixture
def fails(capsys):
    """Run a command that must fail with one line on stderr and nothing on stdout; that line without its prefix."""

    def run(*arguments: object, code: int = 2) -> str:
        capsys.readouterr()
        assert main(list(map(str, arguments))) == code
        out, err = capsys.readouterr()
        assert out == ""
        *progress, error = err.splitlines()
        assert [line for line in progress if not PROGRESS.fullmatch(line) or "error" in line] == []
        assert error.startswith("pdnet: error: ")
        return error.removeprefix("pdnet: error: ")

    return run


@pytest.fixture
def prints(capsys):
    """Run a command that must succeed; what it prints."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 0
        out, err = capsys.readouterr()
        assert "error" not in err
        return out

    return run


def tree(folder: Path) -> dict[str, Any]:
    """Every file below a folder with its content (of models the time of writing), every folder as None."""

    def content(path: Path) -> Any:
        if path.suffix == ".safetensors":
            return path.stat().st_ino, path.stat().st_mtime_ns
        return path.read_bytes() if path.is_file() else None

    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*")}


class Project:
    """A folder where every step but the last ones seems to have run; `command(step)` is a step's command line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data, self.params, self.out = root / "mvps", root / "params.yaml", root / "out"

    def command(self, step: str, **changes: object) -> list[object]:
        """The command with some options changed; those of `changes` that are None are left out."""
        folder = self.root
        videos, images = {"--videos": self.data}, {"--images": self.data / "Stills"}
        folders = {f"--{name}": folder / name for name in ("validation", "pretrain", "train", "evaluation", "export")}
        options: dict[str, object] = {
            "validate": videos | images,
            "pretrain": images | {"--validation": folder / "validation"},
            "train": videos | images | {"--init": folder / "pretrain"},
            "evaluate": videos | {"--model": folder / "train"},
            "export onnx": videos | {"--model": folder / "train", "--evaluation": folder / "evaluation"},
            "report": videos | folders,
            "register": folders | {"--report": folder / "report"},
        }[step]
        options = options | {"--out": self.out, "--params": self.params}
        options |= {f"--{key}": value for key, value in changes.items()}
        return [*step.split(), *(word for key, value in options.items() if value is not None for word in (key, value))]

    @property
    def frame(self) -> Path:
        """A frame of the validation clip."""
        return self.data / "Keyframes" / "480p" / "talk" / "c" / "00010.jpg"


@pytest.fixture(scope="module")
def pristine(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(portraits, root / "mvps")
    write_params(root / "params.yaml")
    for step, folder in (
        ("validate", "validation"),
        ("pretrain", "pretrain"),
        ("train", "train"),
        ("evaluate", "evaluation"),
        ("export_onnx", "export"),
        ("report", "report"),
    ):
        (root / folder).mkdir()
        (root / folder / ".pdnet").touch()
        (root / folder / "run.json").write_text(json.dumps({"step": step, "data": {}, "parents": {}}))
    (root / "validation" / "data.json").write_text(json.dumps({"valid": True, "data": {}}))
    for folder in ("pretrain", "train"):
        save_model(root / folder / "model.safetensors", decided_network(), {"size": SIZE})
    (root / "evaluation" / "scores.json").write_text(json.dumps({"jf_mean": 0.5}))
    return root


@pytest.fixture
def project(pristine: Path, tmp_path: Path) -> Project:
    """A copy to break; the models are links to the same files: replace them, never write into them."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith(".safetensors") else shutil.copyfile)(source, target)

    return Project(Path(shutil.copytree(pristine, tmp_path / "project", copy_function=copy)))


# --- the program


def test_the_command_and_the_module_are_one_program():
    program = Path(sys.executable).parent / "pdnet"
    script = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    module = shell("--version")
    assert script.stdout == module.stdout == f"pdnet {__version__}\n"
    assert script.returncode == module.returncode == 0
    assert script.stderr == module.stderr == ""


def test_an_error_is_one_line_on_stderr_and_exit_code_2(tmp_path):
    run = shell("score", "--predictions", "nowhere", "--annotations", "nowhere else", cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == "pdnet: error: nowhere else: no such folder\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(tmp_path, unbuffered):
    write_params(tmp_path / "params.yaml")
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "pdnet", "config", "show"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, env=environment) as process:
        os.close(write)
        _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(("sent", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_an_interrupt_is_one_line_and_leaves_nothing(project, sent, said):
    frames = project.frame.parent
    (frames / "00015.jpg").unlink()
    os.mkfifo(frames / "00015.jpg")  # the command waits here
    command = [sys.executable, "-m", "pdnet", "predict", frames, "-o", project.out]
    command += ["--model", project.root / "train" / "model.safetensors"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        (frames / "00015.jpg").open("wb"),  # opens when the command does
    ):
        process.send_signal(sent)
        out, err = process.communicate()
    assert process.returncode == 128 + sent
    assert out == ""
    *progress, last = err.splitlines()
    assert last == f"pdnet: {said}"
    assert all(PROGRESS.fullmatch(line) for line in progress)
    assert {path.name for path in project.root.iterdir()} == {path.name for path in project.root.glob("[!.]*")}
    assert not project.out.exists()


def test_without_a_command_it_shows_how_it_is_used(capsys):
    for arguments in ([], ["data"], ["config"], ["export"], ["trian"], ["export-onnx"], ["score"], ["predict", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("usage: pdnet ")
        assert err.splitlines()[-1].startswith("pdnet")
        assert ": error: " in err.splitlines()[-1]


def commands(parser: argparse.ArgumentParser, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from commands(below, *path, name)


ALL_COMMANDS = list(commands(build_parser("")))


def test_predict_offers_every_backend_and_precision():
    (above,) = (each for each in build_parser("")._actions if isinstance(each, argparse._SubParsersAction))
    offered = {action.dest: action.choices for action in above.choices["predict"]._actions}
    assert tuple(offered["backend"]) == NAMES
    assert tuple(offered["precision"]) == PRECISIONS


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=" ".join)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"usage: {' '.join(['pdnet', *command])}")
    parser = build_parser(" ".join(command) + " ")
    for name in command:
        (choices,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        assert next(action.help for action in choices._choices_actions if action.dest == name), name
        parser = choices.choices[name]
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action.dest
        for option in action.option_strings:
            assert option in out


def test_the_commands():
    groups = {
        "data": {"synth", "pull"},
        "export": {"onnx", "tensorrt", "triton"},
        "track": {"sync"},
        "config": {"show"},
    }
    registry = {"promote", "rollback", "lineage", "verify"}
    steps = {step for step in STEPS if " " not in step} | {"outcome"}
    others = {"run", "score", "predict", "bench", "import-checkpoint", "summary"}
    top = {path[0] for path in ALL_COMMANDS if path}
    assert top == {*groups, *steps, *registry, *others}
    for group, words in groups.items():
        assert {path[1] for path in ALL_COMMANDS if path[:1] == (group,) and len(path) == 2} == words


def test_the_list_of_commands_needs_none_of_them():
    """`pdnet --help` imports no step: torch takes seconds."""
    told = "import sys; from pdnet.cli import build_parser; build_parser(''); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    loaded = run.stdout.split()
    assert "argparse" in loaded
    assert [name for name in loaded if name.startswith(("pdnet.steps", "torch", "mlflow", "pandas"))] == []


# --- commands made from functions


@pytest.fixture
def judge(monkeypatch) -> list[dict[str, Any]]:
    """`pdnet verify` replaced by a function of every kind of argument; what it was called with."""
    called: list[dict[str, Any]] = []

    def verify(
        *, version: str, dry_run: bool = False, keep: int | None = None, out: Path | None = None, word: str = "yes"
    ) -> str | None:
        """Judge a version.

        Second paragraph.

        Args:
            version: the version to judge,
                by its name.
            dry_run: change nothing.
            keep: how many.
            out: where to.
            word: `no` is refused with a table, `nothing` says nothing.
        """
        called.append({"version": version, "dry_run": dry_run, "keep": keep, "out": out, "word": word})
        if word == "no":
            raise PromotionError("it has not earned it", table="figure  wanted\n0.1  0.2")
        return None if word == "nothing" else word

    monkeypatch.setattr(cli, "_step", {"verify": verify}.__getitem__)
    return called


def test_a_function_becomes_a_command(prints, judge):
    assert prints("verify", "pdnet@champion") == "yes\n"
    assert (
        prints("verify", "--keep", 3, "--dry-run", "pdnet/3", "--out", "a", "--word", "two\nlines\n") == "two\nlines\n"
    )
    assert judge == [
        {"version": "pdnet@champion", "dry_run": False, "keep": None, "out": None, "word": "yes"},
        {"version": "pdnet/3", "dry_run": True, "keep": 3, "out": Path("a"), "word": "two\nlines\n"},
    ]
    assert prints("verify", "pdnet@champion", "--word", "nothing") == ""
    assert prints("verify", "pdnet@champion", "--word", "") == ""


def test_the_help_of_a_function(judge, capsys):
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    usage = "usage: pdnet verify [-h] [--dry-run] [--keep N] [--out PATH] [--word TEXT] MODEL Judge a version. "
    assert out.startswith(usage)
    assert "MODEL the version to judge, by its name options:" in out
    assert "--dry-run change nothing --keep N how many --out PATH where to --word TEXT" in out
    assert out.endswith("(default: yes)")
    assert "None" not in out
    assert "False" not in out
    assert judge == []


def test_a_version_must_be_named(judge, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["verify"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("the following arguments are required: MODEL")


def test_a_refusal_shows_its_table_first(judge, capsys):
    assert main(["verify", "pdnet@candidate", "--word", "no"]) == 3
    out, err = capsys.readouterr()
    assert out == "figure  wanted\n0.1  0.2\n"
    assert err == "pdnet: error: it has not earned it\n"
    assert PromotionError("alone").table == ""


@pytest.mark.parametrize("word", ["no", "yes"])
def test_a_reader_that_goes_away_before_a_table_is_no_error(judge, monkeypatch, word):
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["verify", "pdnet@candidate", "--word", word]) == 141


# --- the configuration


@pytest.mark.parametrize("name", ["params.yaml", "configs/paper.yaml", "configs/realtime.yaml"])
def test_config_show_prints_what_reads_back(prints, name):
    out = prints("config", "show", "--params", ROOT / name)
    assert parse_config(out) == load_config(ROOT / name)
    assert re.match(rf"# {re.escape(str(ROOT / name))}, hash [0-9a-f]{{12}}\n", out)
    assert len(yaml.safe_load(out)["train"]) > len(yaml.safe_load((ROOT / name).read_text())["train"])  # defaults too


def test_config_show_of_the_working_folder(prints, tmp_path, monkeypatch):
    write_params(tmp_path / "params.yaml", seed=77)
    monkeypatch.chdir(tmp_path)
    assert parse_config(prints("config", "show")) == tiny_config(seed=77)


BROKEN_PARAMS = {
    "unknown key": ("train: {epoch: 3}\n", "unknown key 'train.epoch'; did you mean 'epochs'?"),
    "unknown section": ("trian: {}\n", "unknown key 'trian'; did you mean 'train'?"),
    "wrong type": ("data: {size: large}\n", "data.size: found 'large' (str), expected a whole number"),
    "out of range": ("model: {parts: 0}\n", "model.parts: 0, expected at least 1"),
    "no mapping": ("- train\n", "the file: found ['train'] (list), expected a mapping of keys"),
    "no YAML": ("train: {epochs: 3\n", "not YAML at line 2: expected ',' or '}', but got '<stream end>'"),
}


@pytest.mark.parametrize("kind", BROKEN_PARAMS)
def test_a_params_file_with_a_mistake(fails, tmp_path, kind):
    text, message = BROKEN_PARAMS[kind]
    params = tmp_path / "p.yaml"
    params.write_text(text)
    assert fails("config", "show", "--params", params) == f"{params}: {message}"


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_params_file_that_cannot_be_read(fails, tmp_path, kind):
    params = tmp_path / "p.yaml"
    if kind == "folder":
        params.mkdir()
    elif kind == "binary":
        params.write_bytes(b"\x89PNG\r\n\xff")
    expected = {"missing": "no such file; expected the parameters as YAML"}.get(kind, "cannot be read (")
    assert fails("config", "show", "--params", params).startswith(f"{params}: {expected}")


@pytest.mark.parametrize("step", STEPS)
def test_every_step_reads_the_params_file_first(fails, project, step):
    project.params.write_text("seed: 0\nmodel: {part: 3}\n")
    shutil.rmtree(project.data)
    before = tree(project.root)
    assert fails(*project.command(step)) == f"{project.params}: unknown key 'model.part'; did you mean 'parts'?"
    assert tree(project.root) == before


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("pretrain", {"size": 8}),
        ("train", {"size": 8}),
        ("evaluation", {"threshold": 0.0}),
        ("evaluation", {"threshold": 1.5}),
        ("evaluation", {"speed_frames": 0}),
        ("export", {"opset": 0}),
        ("export", {"parity_frames": 0}),
        ("export", {"calibration_frames": 0}),
    ],
)
def test_a_number_that_a_later_step_could_not_use_is_refused_at_once(fails, tmp_path, section, key):
    params = write_params(tmp_path / "p.yaml", **{section: key})
    (name,) = key
    message = fails("config", "show", "--params", params)
    assert message.startswith(f"{params}: {section}.{name}: {key[name]}, expected ")


def test_a_seed_beyond_64_bits(fails, tmp_path):
    params = write_params(tmp_path / "p.yaml", seed=2**63)
    assert fails("config", "show", "--params", params) == f"{params}: seed: {2**63}, expected 0 to 2^63 - 1"


# --- the steps


@pytest.mark.parametrize(
    ("step", "option"),
    [
        ("validate", "videos"),
        ("validate", "images"),
        ("pretrain", "images"),
        ("train", "videos"),
        ("train", "images"),
        ("evaluate", "videos"),
        ("export onnx", "videos"),
    ],
)
def test_a_missing_data_folder(fails, project, step, option):
    before = tree(project.root)
    missing = project.root / "elsewhere"
    message = fails(*project.command(step, **{option: missing}))
    assert message.startswith(f"{missing}: no such folder; expected ")
    assert tree(project.root) == before


@pytest.mark.parametrize(
    ("step", "option"),
    [
        ("pretrain", "validation"),
        ("train", "init"),
        ("evaluate", "model"),
        ("export onnx", "evaluation"),
        ("report", "evaluation"),
        ("register", "export"),
    ],
)
def test_a_step_whose_predecessor_has_not_run(fails, project, step, option):
    before = tree(project.root)
    missing = project.root / "elsewhere"
    first = missing / ("data.json" if step == "pretrain" else "run.json")
    assert fails(*project.command(step, **{option: missing})) == f"{first}: no such file"
    assert tree(project.root) == before


def test_data_that_are_not_valid_are_not_trained_on(fails, project):
    (project.root / "validation" / "data.json").write_text('{"valid": false}')
    message = f"{project.root / 'validation'}: the data are not valid; see {project.root / 'validation' / 'index.html'}"
    assert fails(*project.command("pretrain")) == message
    assert not project.out.exists()


@pytest.mark.parametrize("content", ["[]", "{}", '"step"', "{"])
def test_a_record_that_is_none(fails, project, content):
    record = project.root / "pretrain" / "run.json"
    record.write_text(content)
    message = fails(*project.command("train"))
    assert message.startswith(f"{record}: ")
    assert not project.out.exists()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["folder", "file", "below a file"])
def test_an_output_that_is_not_ours_is_refused_before_the_work(capsys, project, step, kind):
    thesis = project.out / "thesis.txt" if kind == "folder" else project.out
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("years of work")
    out = project.out / "build" if kind == "below a file" else project.out
    before = tree(project.root)
    assert main(list(map(str, project.command(step, out=out)))) == 2
    printed, err = capsys.readouterr()
    expected = {
        "folder": "holds other files; expected a new or empty folder",
        "file": "a file; expected a new or empty folder",
        "below a file": "cannot be written (",
    }[kind]
    assert printed == ""
    assert len(err.splitlines()) == 1, "the work was done before the refusal"
    assert err.startswith(f"pdnet: error: {out}: {expected}")
    assert tree(project.root) == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
    ("step", "workers"),
    [("pretrain", 0), ("pretrain", 2), ("train", 0), ("train", 2), ("evaluate", 0)],
)
def test_a_truncated_jpeg(fails, project, step, workers):
    write_params(project.params, train={"workers": workers, "batch_size": 12})
    image = {
        "pretrain": project.data / "Stills" / "Images" / "003.jpg",
        "train": project.data / "Keyframes" / "480p" / "dance" / "b" / "00005.jpg",
    }.get(step, project.frame)
    truncate(image)
    before = tree(project.root)
    assert fails(*project.command(step)).startswith(f"{image}: damaged image (")
    assert tree(project.root) == before


@pytest.mark.parametrize("step", ["pretrain", "train", "evaluate"])
def test_a_mask_of_another_size(fails, project, step):
    write_params(project.params, train={"batch_size": 12})
    image = {
        "pretrain": project.data / "Stills" / "Images" / "003.jpg",
        "train": project.data / "Keyframes" / "480p" / "dance" / "b" / "00005.jpg",
    }.get(step, project.frame)
    folder = "Labels" if step == "pretrain" else "Annotations"
    mask = Path(str(image).replace("/Images/" if step == "pretrain" else "/Keyframes/", f"/{folder}/"))
    mask = mask.with_suffix(".png")
    Image.new("L", (40, 30)).save(mask)
    before = tree(project.root)
    size = "{}x{}".format(*Image.open(image).size)
    assert fails(*project.command(step)) == f"{mask}: the mask is 40x30, expected {size}, the size of {image}"
    assert tree(project.root) == before


def test_an_evaluation_of_other_data_is_no_measure(fails, project):
    record = {"step": "evaluate", "data": {"videos": {"path": "elsewhere", "md5": "0" * 32}}, "parents": {}}
    (project.root / "evaluation" / "run.json").write_text(json.dumps(record))
    line = fails(*project.command("export onnx"))
    assert line.startswith(f"{project.root / 'evaluation'}: scored on other data than ")
    assert not project.out.exists()


def test_validation_names_the_broken_rule_and_writes_its_findings(fails, project):
    pytest.importorskip("great_expectations")
    truncate(project.frame)
    message = fails(*project.command("validate"))
    assert re.match(r"1 of \d+ rules broken, first: rule 'image decodes' broken by 1 of 18 frames: ", message)
    assert f"{project.frame}: damaged image" in message
    assert message.endswith(f"; report: {project.out / 'index.html'}")
    assert (project.out / "index.html").is_file()
    assert json.loads((project.out / "summary.json").read_text())["success"] is False
    assert json.loads((project.out / "run.json").read_text())["success"] is False


@pytest.mark.parametrize("step", ["train", "evaluate", "export onnx"])
def test_a_model_of_another_architecture(fails, project, step):
    folder = "pretrain" if step == "train" else "train"
    model = project.root / folder / "model.safetensors"
    save_model(model, decided_network(parts=2, ipda=True), {"size": SIZE})
    before = tree(project.root)
    expected = f"{model}: another architecture: model.parts: 2 in the file, 3 in the parameters"
    assert fails(*project.command(step)) == expected
    assert tree(project.root) == before


@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_a_damaged_model(fails, project, damage):
    model = project.root / "train" / "model.safetensors"
    content = model.read_bytes()[:5000] if damage == "truncated" else b"weights\n" * 40
    model.unlink()
    if damage != "missing":
        model.write_bytes(content)
    assert fails(*project.command("evaluate")).startswith(f"{model}: ")
    assert not project.out.exists()


def test_a_loss_that_is_no_number(fails, project):
    write_params(project.params, pretrain={"epochs": 4, "lr": 1e30})
    message = fails(*project.command("pretrain"))
    assert re.fullmatch(r"the loss is (nan|inf) at step \d; a lower learning rate usually helps", message)
    assert not project.out.exists()


def test_backbone_weights_that_are_none(fails, project):
    weights = project.root / "resnet18.pth"
    write_params(project.params, pretrain={"weights": str(weights)})
    assert fails(*project.command("pretrain")).startswith(f"{weights}: no such file; expected ")
    weights.write_text("weights")
    assert fails(*project.command("pretrain")).startswith(f"{weights}: damaged, or holds Python objects")
    assert not project.out.exists()


def test_a_device_that_is_none(fails, project):
    write_params(project.params, device="tpu")
    assert fails(*project.command("evaluate")) == "device: 'tpu', expected auto, cpu, cuda or cuda:<index>"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_this_machine_lacks_is_exit_code_4(fails, project):
    write_params(project.params, device="cuda:1")
    message = fails(*project.command("evaluate"), code=4)
    assert message == "device: 'cuda:1' is not here; torch sees 0 CUDA devices"


@pytest.mark.parametrize(("step", "package"), [("validate", "great_expectations"), ("export onnx", "onnx")])
def test_a_package_that_is_not_installed_is_exit_code_4(fails, project, monkeypatch, step, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    message = fails(*project.command(step), code=4)
    assert message == f"the package '{package}' is not installed; try: pip install 'pdnet[pipeline]'"
    assert not project.out.exists()


def test_a_step_replaces_what_it_wrote_before(prints, project):
    assert prints(*project.command("pretrain")) == ""
    first = tree(project.out)
    assert {"model.safetensors", "log.parquet", "run.json", ".pdnet"} == set(first)
    (project.out / "stale").write_text("of an earlier run")
    write_params(project.params, seed=1)
    prints(*project.command("pretrain"))
    second = tree(project.out)
    assert set(second) == set(first)
    assert second["model.safetensors"] != first["model.safetensors"]


def test_evaluate_draws_the_line_where_the_parameters_say(prints, project):
    portrait = {}
    for threshold in (0.5, 0.9):
        write_params(project.params, evaluation={"threshold": threshold})
        prints(*project.command("evaluate"))
        masks = [np.asarray(Image.open(path)) > 0 for path in sorted((project.out / "masks").rglob("*.png"))]
        portrait[threshold] = np.array(masks)
        assert len(masks) == json.loads((project.out / "scores.json").read_text())["frames"] == 6
    assert portrait[0.9].sum() < portrait[0.5].sum()
    assert not (portrait[0.9] & ~portrait[0.5]).any()


def test_registering_in_a_store_that_is_none(fails, project, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(project.root / "mlruns"))
    assert fails(*project.command("register")).startswith(f"{project.root / 'export' / 'parity.json'}: no such file")
    assert not project.out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "huge"], "preset 'huge' is unknown; expected one of mini, tiny"),
        (["--seed", "-1"], "seed is -1; expected 0 or more"),
    ],
)
def test_a_data_set_that_cannot_be_made(fails, tmp_path, options, message):
    assert fails("data", "synth", "--out", tmp_path / "mvps", *options) == message
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_is_never_replaced(fails, tmp_path):
    (tmp_path / "mvps").mkdir()
    (tmp_path / "mvps" / "clip.mp4").write_text("footage")
    message = fails("data", "synth", "--out", tmp_path / "mvps", "--preset", "tiny")
    assert message.startswith(f"{tmp_path / 'mvps'}: exists and is not empty; expected a new folder")
    assert tree(tmp_path) == {"mvps": None, "mvps/clip.mp4": b"footage"}


# --- score


def square(*corners: tuple[int, int], shape: tuple[int, int] = (30, 40)) -> np.ndarray:
    """Squares of 10 x 10 pixels with their first corners (row, column) given."""
    mask = np.zeros(shape, np.uint8)
    for y, x in corners:
        mask[y : y + 10, x : x + 10] = 255
    return mask


def save(folder: Path, *masks: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{5 * index:05d}.png")
    return folder


@pytest.fixture
def masks(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and annotations of one clip whose figures are worked out in `test_score`."""
    truth = square((5, 5))
    predictions = save(
        tmp_path / "predictions" / "talk" / "a",
        square(),  # the first and the last are left out
        truth,
        square((5, 5), (18, 28)),
        square((5, 6)),
        square((18, 28)),
    )
    annotations = save(tmp_path / "annotations" / "talk" / "a", *[truth] * 5)
    return predictions.parents[1], annotations.parents[1]


# The contour's tolerance at 30 x 40 is 0.008 * 50 pixels, rounded up to 1.
J = [0, 1, 100 / 200, 90 / 110, 0]
F = [0, 1, 2 / (1 + 2), 1, 0]  # two equal squares of which one is right: precision 1/2, recall 1


def test_score(prints, masks, tmp_path):
    out = tmp_path / "scores" / "score.json"
    text = prints("score", "--predictions", masks[0], "--annotations", masks[1], "--json", out)
    scores = json.loads(out.read_text())
    assert [row["j"] for row in scores["frames"]] == pytest.approx(J, abs=1e-12)
    assert [row["f"] for row in scores["frames"]] == pytest.approx(F, abs=1e-12)
    # Of frames 2 to 4 (1-based). Quarters of three frames: the first is frames 2 and 3, the last is frame 4.
    figures = {
        "j_mean": sum(J[1:4]) / 3,
        "j_recall": 2 / 3,  # above 0.5: 1/2 is not
        "j_decay": (J[1] + J[2]) / 2 - J[3],
        "f_mean": sum(F[1:4]) / 3,
        "f_recall": 1,
        "f_decay": (F[1] + F[2]) / 2 - F[3],
    }
    figures["jf_mean"] = (figures["j_mean"] + figures["f_mean"]) / 2
    assert scores["dataset"] == pytest.approx(figures, abs=1e-12)
    assert scores["clips"] == [pytest.approx({"clip": "talk/a", "frames": 3, **figures}, abs=1e-12)]
    assert scores["dataset_all_frames"]["j_mean"] == pytest.approx(sum(J) / 5, abs=1e-12)
    assert scores["dataset_all_frames"]["f_recall"] == pytest.approx(3 / 5, abs=1e-12)
    assert scores["protocol"] == "mvps"
    (row,) = (line for line in text.splitlines() if line.startswith("talk/a"))
    assert row.split() == ["talk/a", "3", "83.1", "77.3", "66.7", "-6.8", "88.9", "100.0", "-16.7"]
    assert "mean of 1 clip (mvps)" in text
    assert "with all frames" in text


def test_score_of_every_frame_and_two_clips(prints, masks, tmp_path):
    save(masks[1] / "dance" / "b", square((0, 0)), square())
    save(masks[0] / "dance" / "b", square((0, 0)), square())  # both empty: 1
    out = tmp_path / "score.json"
    options = ["--predictions", masks[0], "--annotations", masks[1], "--json", out]
    text = prints("score", *options, "--protocol", "all-frames")
    scores = json.loads(out.read_text())
    assert scores["dataset"]["j_mean"] == pytest.approx((sum(J) / 5 + 1) / 2, abs=1e-12)  # of clips, not of frames
    assert [row["clip"] for row in scores["clips"]] == ["dance/b", "talk/a"]
    assert "mean of 2 clips (all-frames)" in text
    prints("score", *options)
    scores = json.loads(out.read_text())
    assert scores["left_out"] == ["dance/b"]  # nothing between its first and last frame
    assert scores["dataset"]["j_mean"] == pytest.approx(sum(J[1:4]) / 3, abs=1e-12)


def test_score_of_the_masks_themselves(prints, masks):
    text = prints("score", "--predictions", masks[1], "--annotations", masks[1])
    (row,) = (line for line in text.splitlines() if line.startswith("talk/a"))
    assert row.split()[1:] == ["3", "100.0", "100.0", "100.0", "0.0", "100.0", "100.0", "0.0"]


def test_a_terminal_shows_one_bar_that_fills(masks):
    reader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, "-m", "pdnet", "score", "--predictions", masks[0], "--annotations", masks[1]]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    shown = b""
    with (
        contextlib.suppress(OSError),
        os.fdopen(reader, "rb", buffering=0) as stream,
    ):  # the end of a terminal is an error
        while part := stream.read(4096):
            shown += part
    assert b"talk/a" in run.stdout
    (line,) = (line for line in shown.decode().split("\n") if line.strip())  # drawn again and again in one place
    first, *_, last = (state for state in line.split("\r") if state.strip())
    assert first.startswith("score:   0%")
    assert last.startswith("score: 100%")
    assert " 5/5 " in last


def test_score_of_probabilities_needs_a_threshold(fails, prints, masks, tmp_path):
    soft = masks[0] / "talk" / "a" / "00010.png"
    Image.fromarray((square((5, 5)) // 255 * 200 + square((18, 28)) // 255 * 90).astype(np.uint8)).save(soft)
    options = ["--predictions", masks[0], "--annotations", masks[1], "--json", tmp_path / "score.json"]
    message = fails("score", *options)
    assert message.startswith(f"{soft}: not a binary mask, it holds several values from 1 to 200; pass --threshold T ")
    assert not (tmp_path / "score.json").exists()
    for threshold, j in ((128, 1.0), (90, 0.5), (91, 1.0), (201, 0.0)):
        prints("score", *options, "--threshold", threshold)
        scores = json.loads((tmp_path / "score.json").read_text())
        assert scores["frames"][2]["j"] == pytest.approx(j, abs=1e-12)
        assert scores["threshold"] == threshold
    for threshold in (0, 256, -3):
        assert fails("score", *options, "--threshold", threshold).startswith(f"threshold {threshold}: expected 1 to ")


def test_score_refuses_what_does_not_belong_together(fails, masks):
    predictions, annotations = masks
    first, clip = predictions / "talk" / "a" / "00000.png", annotations / "talk" / "a"
    options = ["score", "--predictions", predictions, "--annotations", annotations]
    Image.fromarray(square(shape=(31, 40))).save(first)
    assert fails(*options) == f"{first}: the mask is 40x31, expected 40x30, the size of {clip / '00000.png'}"
    first.write_bytes(first.read_bytes()[:40])
    assert fails(*options).startswith(f"{first}: ")
    first.unlink()
    assert fails(*options) == f"{predictions}: 1 of 5 annotated frames have no prediction, first: talk/a/00000"
    shutil.rmtree(first.parent)
    assert fails(*options).startswith(f"{predictions}: 1 of 1 annotated clips have no folder of predictions, first: ")
    shutil.rmtree(predictions)
    assert fails(*options) == f"{predictions}: no such folder"
    shutil.rmtree(clip)
    assert fails(*options) == f"{annotations}: no PNG masks in this folder or below it"


@pytest.mark.parametrize("kind", ["folder", "below a file"])
def test_score_never_replaces_a_folder_by_its_figures(capsys, masks, tmp_path, kind):
    figures = tmp_path / "figures"
    if kind == "folder":
        figures.mkdir()
        (figures / "thesis.txt").write_text("years of work")
        out, expected = figures, "a folder; expected the path of a file to write"
    else:
        figures.write_text("years of work")
        out, expected = figures / "score.json", "cannot be written ("
    before = tree(tmp_path)
    options = ["--predictions", masks[0], "--annotations", masks[1], "--json", out]
    assert main(["score", *map(str, options)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"pdnet: error: {out}: {expected}")
    assert tree(tmp_path) == before


# --- predict, import-checkpoint, summary


def test_predict(prints, project):
    frames = project.frame.parent
    model = project.root / "train" / "model.safetensors"
    text = prints("predict", frames, "-o", project.out, "--model", model, "--device", "cpu")
    assert re.fullmatch(
        rf"6 masks in {re.escape(str(project.out))}, \d+\.\d frames/s from file to file \(torch, .+\)\n", text
    )
    assert sorted(path.stem for path in project.out.glob("*.png")) == sorted(path.stem for path in frames.iterdir())
    values = set()
    for path in project.out.glob("*.png"):
        mask = Image.open(path)
        assert (mask.mode, mask.size) == ("L", Image.open(frames / f"{path.stem}.jpg").size)
        values |= set(np.unique(np.asarray(mask)))
    assert values == {0, 255}
    clip = project.data / "Annotations" / "480p" / "talk" / "c"
    assert "protocol mvps" in prints("score", "--predictions", project.out, "--annotations", clip)


def test_predict_takes_the_architecture_from_the_model(prints, project):
    model = project.root / "model.safetensors"
    save_model(model, decided_network(parts=2, width=12, ipda=False), {"size": 97})
    prints("predict", project.frame.parent, "--out", project.out, "--model", model)
    assert len(list(project.out.glob("*.png"))) == 6


def test_predict_mistakes(fails, project):
    frames, model = project.frame.parent, project.root / "train" / "model.safetensors"
    empty = project.root / "empty"
    empty.mkdir()
    before = tree(project.root)

    def message(frames: Path = frames, out: Path = project.out, model: Path = model, **options: object) -> str:
        more = [word for key, value in options.items() for word in (f"--{key}", value)]
        return fails("predict", frames, "-o", out, "--model", model, *more)

    missing = frames / "nowhere"
    assert message(frames=missing) == f"{missing}: no such file or folder; expected a video or a folder of frames"
    assert message(frames=project.frame).startswith(f"{project.frame}: not a video that can be read (")
    assert message(frames=empty) == f"{empty}: no images"
    assert message(out=frames) == f"{frames}: what is written would replace the source; expected another path"
    assert message(out=project.data).startswith(f"{project.data}: holds other files; expected ")
    assert message(out=project.frame / "masks").startswith(f"{project.frame / 'masks'}: cannot be written (")
    assert message(model=frames).startswith(f"{frames}: holds neither model.safetensors nor ")
    assert message(model=project.frame).startswith(f"{project.frame}: not a safetensors file, or damaged (")
    assert message(device="tpu") == "device: 'tpu', expected auto, cpu, cuda or cuda:<index>"
    assert tree(project.root) == before
    truncate(project.frame)
    assert message().startswith(f"{project.frame}: damaged image (")
    assert not project.out.exists()


def test_predict_without_a_pipeline_run(fails, project, monkeypatch):
    monkeypatch.chdir(project.root)
    message = fails("predict", project.frame.parent, "-o", project.out)
    assert message == "build: no such folder; expected one with weights, graphs or engines, or a model file"


def test_import_checkpoint_mistakes(fails, tmp_path):
    out = tmp_path / "model.safetensors"
    released = tmp_path / "released.pth"
    assert fails("import-checkpoint", released, out).startswith(f"{released}: no such file; expected a checkpoint")
    released.write_text("weights")
    assert fails("import-checkpoint", released, out).startswith(f"{released}: damaged, or holds Python objects")
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, released)
    assert fails("import-checkpoint", released, out).startswith(f"{released}: not a checkpoint of the released PDNet: ")
    torch.save({"state_dict": {}}, released)
    assert fails("import-checkpoint", released, out).startswith(f"{released}: has no dict of tensors under the key ")
    assert [path.name for path in tmp_path.iterdir()] == ["released.pth"]


def test_summary_before_the_pipeline_has_run(fails, tmp_path):
    missing = tmp_path / "evaluation" / "scores.json"
    assert fails("summary", "--build", tmp_path) == f"{missing}: no such file"


def test_summary_names_a_file_that_is_gone(fails, tmp_path):
    figures = {measure: {"mean": 0.5, "recall": 0.5, "decay": 0.0} for measure in "jf"} | {"jf_mean": 0.5}
    scores = figures | {"clips": 1, "frames": 6, "protocol": "mvps", "baselines": [figures | {"method": "all"}]}
    speed = {"network_fps": 9.0, "end_to_end_fps": 5.0, "size": 65, "precision": "fp32", "device": "CPU"}
    for name, content in {
        "evaluation/scores.json": scores | {"speed": speed},
        "export/parity.json": {"onnx": {"jf_mean": 0.5}},
        "registration/registration.json": {"model": "m", "version": "1", "experiment_id": "1"},
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(content))
    assert str(tmp_path / "evaluation" / "frames.parquet") in fails("summary", "--build", tmp_path)


def test_progress_is_told_only_while_a_command_runs(prints, masks, capsys):
    import logging

    handlers = list(logging.getLogger("pdnet").handlers)
    with contextlib.suppress(SystemExit):
        main(["score", "--predictions", str(masks[0]), "--annotations", str(masks[1])])
    assert capsys.readouterr().err.splitlines()[-1] == "score 5/5"
    assert logging.getLogger("pdnet").handlers == handlers
