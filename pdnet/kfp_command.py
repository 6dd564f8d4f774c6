"""The command `kfp`: `kfp run FILE.py` runs our pipeline, all else is Kubeflow's own command.

Kubeflow's `kfp run` knows create, get, list, ... and has no place for a plugin, so this script takes the name, and is
installed after Kubeflow's. `pdnet run` is the same without that name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pdnet.errors import ConfigError, PDNetError, UnavailableError

#: Options of Kubeflow's command that may stand before `run` and have a value.
_GLOBAL = ("--endpoint", "--existing-token", "--namespace", "-n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kfp`."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if (found := split(words)) is not None:
            definition, options = found
            return run(options, definition=definition, prog="kfp")
        command = upstream()
    except PDNetError as error:
        sys.stderr.write(f"kfp: error: {error}\n")
        return error.exit_code
    # `kfp dsl compile --py pipelines/pdnet.py` imports that file by its name, which is ours too.
    for name in [name for name in sys.modules if name.partition(".")[0] == "pdnet"]:
        del sys.modules[name]
    if words == ["run", "--help"]:
        sys.stdout.write("pdnet: `kfp run pipelines/pdnet.py --help` tells of running the pipeline.\n\n")
        sys.stdout.flush()
    groups: Any = importlib.import_module(command.__module__.replace("__main__", "cli"))
    groups.client = SimpleNamespace(Client=Later)
    sys.argv = ["kfp", *words]
    command()
    return 0


def split(words: Sequence[str]) -> tuple[Path, list[str]] | None:
    """`[options] run [options] FILE.py [options]` as (FILE.py, options); None for another command."""
    position = 0
    while position < len(words) and words[position].startswith("-"):
        position += 2 if words[position] in _GLOBAL else 1
    if position >= len(words) or words[position] != "run":
        return None
    before, after = list(words[:position]), list(words[position + 1 :])
    for index, word in enumerate(after):
        if word.endswith(".py"):
            return Path(word), [*before, *after[:index], *after[index + 1 :]]
        if not word.startswith("-") and (index == 0 or not after[index - 1].startswith("-")):
            return None  # `run create`, `run list`, ...
    return None


def run(options: Sequence[str], *, definition: Path, prog: str) -> int:
    """Run the pipeline that `definition` holds, with what stands beside it.

    Raises:
        ConfigError: no such file, or not the definition of our pipeline.
        UnavailableError: Kubeflow's SDK is not installed.
    """
    if not definition.is_file():
        raise ConfigError(f"{definition}: no such file; run it in the project's folder, or name the file there")
    folder = definition.resolve().parent
    if not (folder / "run.py").is_file() or folder.name != "pipelines":
        raise ConfigError(f"{definition}: expected pipelines/pdnet.py of the project; others run by `kfp run create`")
    upstream()
    root = folder.parent
    sys.path.insert(0, str(root))
    pipelines = importlib.import_module("pipelines.run")
    code: int = pipelines.main(options, root=root, prog=prog)
    return code


def upstream() -> Callable[[], Any]:
    """Kubeflow's own command.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        scripts = importlib.metadata.distribution("kfp").entry_points.select(group="console_scripts", name="kfp")
        command: Callable[[], Any] = next(iter(scripts)).load()
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        raise UnavailableError("the package 'kfp' is not installed; try: pip install 'pdnet[pipeline]'") from None
    return command


class Later:
    """Kubeflow's client, made where it is first used: its command makes it even for help, and asks the server."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __getattr__(self, name: str) -> Any:
        client = importlib.import_module("kfp.client").Client(*self.arguments)
        self.__dict__.update(vars(client))
        return getattr(client, name)


if __name__ == "__main__":
    sys.exit(main())
