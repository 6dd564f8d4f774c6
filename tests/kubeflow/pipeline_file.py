"""The pipeline's definition, and its compiled form, for tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    """`pipelines/<name>.py` as a module; it is no package, and one of its files is called like ours."""
    spec = importlib.util.spec_from_file_location(f"pipelines_{name}", ROOT / "pipelines" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def compiled(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pipeline specification and platform configuration of a compiled file."""
    pipeline, platform = yaml.safe_load_all(text)
    return pipeline, platform["platforms"]["kubernetes"]
