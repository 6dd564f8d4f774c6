"""A step has one signature and several faces: the function, its command, its DVC stage, its Kubeflow component."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pdnet import steps
from pdnet.cli import STEPS, _plain, build_parser, step_of
from pdnet.config import Config, load_config, to_mapping

ROOT = Path(__file__).parents[2]
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
DVC: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
WHOLE_FILE = {"params.yaml": None}
#: a step reads them, but they change how fast it runs or where it is recorded, not what it writes
SPEED_ONLY = {"train.workers", "train.cache_mb", "train.checkpoint_seconds", "tracking"}


def lookup(mapping: dict[str, Any], dotted: str) -> Any:
    value: Any = mapping
    for key in dotted.split("."):
        assert isinstance(value, dict), f"{dotted}: nothing below {value!r}"
        assert key in value, f"{dotted}: unknown"
        value = value[key]
    return value


def interpolated(value: Any) -> Any:
    """A part of dvc.yaml with each `${key}` replaced as DVC does it, from params.yaml."""
    if isinstance(value, str):
        return re.sub(r"\$\{([^}]+)\}", lambda match: str(lookup(PARAMS, match[1])), value)
    if isinstance(value, list):
        return [interpolated(item) for item in value]
    if isinstance(value, dict):
        return {key: interpolated(item) for key, item in value.items()}
    return value


STAGES: dict[str, dict[str, Any]] = interpolated(DVC["stages"])


def parameters(step: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(steps, step)).parameters)


def path_parameters(step: str) -> list[str]:
    hints = typing.get_type_hints(getattr(steps, step))
    return [name for name in parameters(step) if _plain(hints[name]) is Path]


def required(step: str) -> list[str]:
    return [name for name, parameter in parameters(step).items() if parameter.default is inspect.Parameter.empty]


def as_option(name: str) -> str:
    return "--params" if name == "config" else "--" + name.replace("_", "-")


def words(stage: str) -> list[str]:
    return shlex.split(STAGES[stage]["cmd"])


def parsed(stage: str) -> argparse.Namespace:
    program, *arguments = words(stage)
    assert program == "pdnet"
    return build_parser().parse_args(arguments)


def command_of(step: str) -> argparse.ArgumentParser:
    """The parser of a step's command."""
    parser = build_parser()
    (command,) = (name for name in STEPS if step_of(name) == step)
    for name in command.split():
        (choices,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = choices.choices[name]
    return parser


#: options that a stage gives beside those that its command requires
GIVEN_TOO = {"export_onnx": {"--bounds"}}
#: data.dvc stands for the data, and an engine needs a GPU: no stages of DVC
NO_STAGE = {"data", "export_tensorrt"}
#: commands that are no step of the pipeline, but write a folder or a record as one does
BESIDE = ("synthesise", "outcome")
#: commands that people give to the registry
REGISTRY = {"export_triton", "promote", "rollback", "show_lineage", "verify", "track_sync"}
#: commands that people give to a network
NETWORK = {"bench"}
NAMES = [step.__name__ for step in steps.STEPS]


def test_every_step_is_a_stage_in_order():
    assert [name for name in NAMES if name not in NO_STAGE] == list(STAGES)
    assert {name for name in steps.__all__ if name != "STEPS"} == {*NAMES, *BESIDE}
    commands = [step_of(command) for command in STEPS]
    assert sorted(commands) == sorted([*NAMES, *BESIDE, *REGISTRY, *NETWORK])
    assert [name for name in commands if name in NAMES] == NAMES


@pytest.mark.parametrize("step", [*NAMES, *BESIDE])
class TestCommand:
    def test_a_step_takes_keywords_only_and_says_what_each_is(self, step):
        hints = typing.get_type_hints(getattr(steps, step))
        assert hints["return"] is type(None)
        for name, parameter in parameters(step).items():
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert hints[name] in (Path, Path | None, str, int, Config)
            assert (hints[name] == Path | None) == (parameter.default is None)
            assert re.search(rf"^    {name}: \S", inspect.getdoc(getattr(steps, step)), re.MULTILINE), name
        assert step == "outcome" or hints["out"] is Path
        assert ("config" in hints) == (step not in ("data", "synthesise"))

    def test_the_options_are_the_parameters(self, step):
        options = {
            option: action
            for action in command_of(step)._actions
            for option in action.option_strings
            if option not in ("-h", "--help")
        }
        assert set(options) == {as_option(name) for name in parameters(step)}
        for name, parameter in parameters(step).items():
            action = options[as_option(name)]
            if name == "config":
                assert action.default == Path("params.yaml")
                continue
            assert action.dest == name
            assert action.required == (parameter.default is inspect.Parameter.empty)
            assert action.required or action.default == parameter.default
            assert action.type is _plain(typing.get_type_hints(getattr(steps, step))[name])
            assert action.help


@pytest.mark.parametrize("stage", list(STAGES))
class TestStage:
    def test_the_command_is_that_of_the_step_with_every_required_option_given(self, stage):
        (command,) = (command for command in STEPS if step_of(command) == stage)
        assert shlex.join(words(stage)).startswith(f"pdnet {command} --")
        given = [word for word in words(stage) if word.startswith("-")]
        assert sorted(given) == sorted({as_option(name) for name in required(stage)} | GIVEN_TOO.get(stage, set()))
        arguments = parsed(stage)
        assert arguments.params == Path("params.yaml")
        for name in set(path_parameters(stage)) & set(required(stage)):
            assert isinstance(getattr(arguments, name), Path)

    def test_what_it_reads_are_the_dependencies(self, stage):
        arguments = parsed(stage)
        given = (getattr(arguments, name) for name in path_parameters(stage) if name != "out")
        read = {str(path) for path in given if path is not None}
        found = [path for path in STAGES[stage]["deps"] if not path.startswith(("pdnet/", "benchmarks/"))]
        assert len(found) == len(read)
        for path in read:  # the folder, or the one file in it that matters
            assert [dep for dep in found if dep == path or (path.startswith("build/") and dep.startswith(f"{path}/"))]

    def test_what_it_writes_is_its_only_output(self, stage):
        assert STAGES[stage]["outs"] == [str(parsed(stage).out)]
        assert STAGES[stage]["outs"][0].startswith("build/")

    def test_what_it_reads_of_others_was_written_before(self, stage):
        earlier = [out for name in list(STAGES)[: list(STAGES).index(stage)] for out in STAGES[name]["outs"]]
        for path in STAGES[stage]["deps"]:
            if path.startswith("build/"):
                assert any(f"{path}/".startswith(f"{out}/") for out in earlier), path

    def test_code_it_depends_on_is_there(self, stage):
        code = [path for path in STAGES[stage]["deps"] if path.startswith(("pdnet/", "benchmarks/"))]
        assert f"pdnet/steps/{stage}.py" in code
        assert [path for path in code if not (ROOT / path).exists()] == []

    def test_its_parameters_are_in_the_configuration_and_in_the_file(self, stage):
        known = to_mapping(Config())
        names = STAGES[stage]["params"]
        assert names
        for name in names:
            if isinstance(name, str):
                lookup(known, name)
                lookup(PARAMS, name)
            else:
                assert name == WHOLE_FILE

    def test_it_is_run_again_when_a_parameter_that_it_reads_changes(self, stage):
        read = parameters_read(ROOT / "pdnet" / "steps" / f"{stage}.py")
        watched = STAGES[stage]["params"]
        if WHOLE_FILE in watched:
            return
        assert "" not in read, "the step hands on the whole configuration: it depends on the whole file"
        unseen = {name for name in read if not any(f"{name}.".startswith(f"{known}.") for known in watched)}
        assert unseen <= SPEED_ONLY


def component_of(step: str) -> ast.FunctionDef:
    """The source of a step's Kubeflow component."""
    tree = ast.parse((ROOT / "components" / step / "component.py").read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert function.name == step
    return function


def calls_of(function: ast.FunctionDef, step: str) -> Iterator[set[str]]:
    """The keywords of each call of the step in a component, by itself or by `run.launch(step, ...)`."""
    literals = {
        target.id: {ast.literal_eval(key) for key in node.value.keys if key is not None}
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        launched = isinstance(node.func, ast.Attribute) and node.func.attr == "launch"
        name = node.args[0] if launched else node.func
        if not isinstance(name, ast.Name) or name.id != step:
            continue
        keys: set[str] = set()
        for keyword in node.keywords:
            keys |= {keyword.arg} if keyword.arg else literals[keyword.value.id]
        yield (keys - {"processes"}) | {"config"} if launched else keys


def test_every_step_is_a_component():
    folders = {path.parent.name for path in (ROOT / "components").glob("*/component.py")}
    assert folders == {*NAMES, "outcome"}


@pytest.mark.parametrize("step", [*NAMES, "outcome"])
class TestComponent:
    def test_it_calls_the_step_with_all_that_it_takes(self, step):
        calls = list(calls_of(component_of(step), step))
        assert calls == [set(parameters(step))]

    def test_a_folder_that_the_step_reads_is_an_artifact_of_the_same_name(self, step):
        """Data come by pointer, `out` is an output, checkpoints, policy and bounds lie in the workspace."""
        function = component_of(step)
        named = {argument.arg: ast.unparse(argument.annotation) for argument in function.args.args}
        known = {"videos": "dataset", "images": "dataset", "checkpoints": "workspace"}
        optional = {name for name, value in parameters(step).items() if value.default is None}
        for name in path_parameters(step):
            if name == "out" and step == "data":
                continue  # into the workspace
            if name == "timing_cache":
                continue  # of a machine, and no run has a place that lasts
            annotation = named[known.get(name, name)]
            if name in ("checkpoints", "policy", "bounds"):
                assert annotation == "str"
            else:
                assert annotation.startswith("Output[" if name == "out" else "Input["), name
                given = dict(zip(reversed(list(named)), reversed(function.args.defaults), strict=False))
                assert (name in given) == (name in optional) or name in known

    def test_every_parameter_is_described(self, step):
        function = component_of(step)
        told = re.findall(r"^    (\w+): \S", inspect.cleandoc(ast.get_docstring(function) or ""), re.MULTILINE)
        assert told == [argument.arg for argument in function.args.args]

    def test_it_installs_nothing(self, step):
        decorator = ast.unparse(component_of(step).decorator_list[0])
        assert "install_kfp_package=False" in decorator
        assert "packages_to_install" not in decorator


def parameters_read(path: Path) -> set[str]:
    """The dotted names below `config` that a module reads; "" for the configuration handed to `to_mapping`."""
    tree = ast.parse(path.read_text())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    known = to_mapping(Config())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner and (name := below_config(node)):
            lookup(known, name)
            found.add(name)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "to_mapping":
            found.add("")
    return found


def below_config(node: ast.expr) -> str | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join(reversed(names)) if isinstance(node, ast.Name) and node.id == "config" else None


def test_what_parameters_read_finds(tmp_path):
    (tmp_path / "step.py").write_text("def step(config):\n    a = config.train\n    f(config.data.size, g(config))\n")
    assert parameters_read(tmp_path / "step.py") == {"train", "data.size"}
    (tmp_path / "step.py").write_text("def step(config):\n    to_mapping(config)\n    config.model\n")
    assert parameters_read(tmp_path / "step.py") == {"model", ""}


def test_metrics_are_files_of_a_stage():
    outs = [out for stage in STAGES.values() for out in stage["outs"]]
    assert DVC["metrics"]
    for path in DVC["metrics"]:
        assert any(path.startswith(f"{out}/") for out in outs), path


def test_outputs_are_apart():
    outs = sorted(out for stage in STAGES.values() for out in stage["outs"])
    assert len(outs) == len(set(outs)) == len(STAGES)
    assert not any(b.startswith(f"{a}/") for a in outs for b in outs)


def test_data_dvc_owns_the_data_that_the_parameters_name():
    tracked = yaml.safe_load((ROOT / "data.dvc").read_text())["outs"]
    assert [out["path"] for out in tracked] == ["data"]
    assert re.fullmatch(r"[0-9a-f]{32}\.dir", tracked[0]["md5"])
    for key in ("videos", "images"):
        assert PARAMS["data"][key].startswith("data/")


@pytest.mark.parametrize("name", ["params.yaml", "configs/paper.yaml", "configs/realtime.yaml"])
def test_every_key_of_a_params_file_is_known(name):
    config = load_config(ROOT / name)  # refuses an unknown key
    known = to_mapping(config)
    written = list(dotted_names(yaml.safe_load((ROOT / name).read_text())))
    assert len(written) > 20
    for key in written:
        lookup(known, key)


def dotted_names(mapping: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from dotted_names(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.size", 480),
        ("model.backbone", "resnet50"),
        ("model.parts", 5),
        ("model.ipda", True),
        ("losses.semantic_features", "imagenet"),
        ("pretrain.weights", "imagenet"),
        ("train.optimizer", "sgd"),
        ("train.momentum", 0.9),
        ("train.weight_decay", 5e-4),
        ("train.batch_size", 4),
        ("train.image_batch_size", 4),
        ("train.epochs", 60),
        ("train.video_steps_per_image", 2),
        ("train.image_backbone_lr", 2.5e-4),
        ("train.video_backbone_lr", 2.5e-5),
        ("train.video_rest_lr", 2.5e-3),
        ("evaluation.threshold", 0.5),
    ],
)
def test_the_paper_profile_states_the_numbers_of_section_5(key, value):
    file = ROOT / "configs" / "paper.yaml"
    assert lookup(yaml.safe_load(file.read_text()), key) == value  # written down, not left to a default
    assert lookup(to_mapping(load_config(file)), key) == value


def test_training_and_pretraining_of_the_paper_are_at_its_one_size():
    config = load_config(ROOT / "configs" / "paper.yaml")
    assert {config.data.size, config.train.size or 480, config.pretrain.size or 480} == {480}
