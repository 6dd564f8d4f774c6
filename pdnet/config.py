"""The configuration: the parts' frozen dataclasses put together, and a strict parser for the params file."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pdnet.data.config import DataConfig
from pdnet.errors import ConfigError
from pdnet.evaluation.config import EvaluationConfig
from pdnet.export.config import ExportConfig
from pdnet.losses import LossConfig
from pdnet.model import ModelConfig
from pdnet.tracking.config import TrackingConfig
from pdnet.training.config import PretrainConfig, TrainConfig
from pdnet.validation import ValidationConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """Everything a pipeline run can be told; the defaults are the paper's.

    Attributes:
        seed: every random draw of a run follows from it.
        device: `auto` takes CUDA where there is one; else a torch device name (`cpu`, `cuda:1`).
        data: where the data lie and how frames become inputs.
        validation: the rules that the data must meet.
        model: the architecture (section 4).
        losses: weights of the losses (4.4).
        pretrain: the encoder on single images, before the paper's recipe starts.
        train: the paper's recipe (5.1).
        evaluation: protocol and speed measurement (5.2).
        export: the ONNX files and how closely they must agree with the network.
        tracking: where runs and models are recorded.
    """

    seed: int = 0
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: {self.seed}, expected 0 to 2^63 - 1")


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that a mapping holds twice; YAML forbids it, but PyYAML lets the last one win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise ConfigError(f"line {line}: the key '{key.value}' is in line {lines[key.value]} already")
                lines[key.value] = line
        return node


def load_config(path: Path) -> Config:
    """Read a params file.

    Raises:
        ConfigError: the file is missing or no YAML, or holds a key twice, or a key or value that `Config` does not
            know.
    """
    return load_yaml(Config, path, what="the parameters")


def parse_config(text: str, *, source: str = "params") -> Config:
    """Read the text of a params file; `source` names it in errors.

    Raises:
        ConfigError: no YAML, a key twice, or a key or value that `Config` does not know.
    """
    return parse_yaml(Config, text, source=source)


def load_yaml(kind: type[T], path: Path, *, what: str) -> T:
    """Read a YAML file as the dataclass `kind`; `what` says in errors what it should hold.

    Raises:
        ConfigError: the file is missing or no YAML, or holds a key twice, or a key or value that `kind` does not know.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected {what} as YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return parse_yaml(kind, text, source=str(path))


def parse_yaml(kind: type[T], text: str, *, source: str) -> T:
    """Read YAML text as the dataclass `kind`; `source` names it in errors.

    Raises:
        ConfigError: no YAML, a key twice, or a key or value that `kind` does not know.
    """
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        reason = str(getattr(error, "problem", error)).splitlines()[0]
        raise ConfigError(f"{source}: not YAML{where}: {reason}") from None
    return from_mapping(kind, {} if content is None else content, source=source)


def from_mapping(kind: type[T], content: Any, *, source: str, key: str = "") -> T:
    """Build the dataclass `kind` from a mapping; every key and every type must be right.

    Raises:
        ConfigError: names the key by its full path, what was found and what was expected.
    """
    where = f"{source}: {key or 'the file'}"
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: found {_shown(content)}, expected a mapping of keys")
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = {f.name for f in fields}
    for name in content:
        if name not in known:
            path = f"{key}.{name}" if key else str(name)
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{source}: unknown key '{path}'; {hint}")
    required = (f for f in fields if f.default is f.default_factory is dataclasses.MISSING)
    if missing := [f.name for f in required if f.name not in content]:
        raise ConfigError(f"{where}: lacks {', '.join(missing)}")
    hints = typing.get_type_hints(kind)
    values = {
        name: _convert(hints[name], value, source, f"{key}.{name}" if key else name) for name, value in content.items()
    }
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def to_mapping(config: Any) -> dict[str, Any]:
    """The configuration as plain dicts, lists and scalars, in the order of declaration."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def to_yaml(config: Any) -> str:
    """The configuration as YAML that `parse_config` reads back."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def config_hash(config: Any) -> str:
    """Twelve hexadecimal digits that change with any value that can change a result.

    That leaves out `tracking`: where a model is recorded, and under which name.

    Args:
        config: the configuration, or what `to_mapping` makes of it.
    """
    content = dict(config if isinstance(config, Mapping) else to_mapping(config))
    content.pop("tracking", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:  # noqa: PLR0912 - one branch a kind of type
    """Check `value` against a type hint; integers are accepted as floats, and numbers YAML 1.1 reads as text."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    wrong = ConfigError(f"{source}: {key}: found {_shown(value)}, expected {_expected(hint)}")
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, source=source, key=key)
    if origin is typing.Literal:
        if value not in options:
            raise wrong
        return value
    if origin in (types.UnionType, typing.Union):
        for option in options:
            try:
                return _convert(option, value, source, key)
            except ConfigError:
                continue
        raise wrong
    if origin is tuple:
        if not isinstance(value, list) or (options[-1] is not Ellipsis and len(value) != len(options)):
            raise wrong
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else options
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_convert(kind, item, source, f"{key}[{i}]") for i, (kind, item) in pairs)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 1e-4 as text
        except (ValueError, OverflowError):
            raise wrong from None
        if not math.isfinite(number):
            raise wrong
        return number
    if hint is type(None):
        if value is not None:
            raise wrong
        return None
    if type(value) is not hint:
        raise wrong
    return value


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})" if value is not None else "nothing"


def _expected(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, options))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_expected(option) for option in options)
    if origin is tuple:
        return "a list of " + _expected(options[0])
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return plain.get(hint, str(hint))
