"""`kfp run pipelines/pdnet.py`: the pipeline in processes, in containers or on a cluster."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import inspect
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pdnet.config import Config, load_config, load_yaml
from pdnet.data.versions import MD5, tracked_version
from pdnet.errors import ConfigError, DataError, PDNetError
from pdnet.export.config import ParityBounds
from pdnet.tracking.promotion import PromotionPolicy
from pdnet.tracking.store import public_uri
from pdnet.training.config import check_divisible

RUNNERS = ("local", "docker", "cluster")
#: What `make images` builds here; a cluster pulls one by digest.
IMAGES = {"docker": "pdnet:cpu", "cluster": ""}
ENDPOINTS = ("KF_PIPELINES_ENDPOINT", "KFP_ENDPOINT")
#: Where the manifests under infra/k8s/ put the tracking server.
CLUSTER_MLFLOW = "http://mlflow.pdnet.svc.cluster.local:5000"
#: Parameters that are a file's text, and the option that takes the file.
FILES = {"params": "--params", "promotion_policy": "--policy", "export_bounds": "--bounds"}
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Place:
    """Where a run goes.

    Attributes:
        root: the project's folder.
        runner: one of `RUNNERS`.
        endpoint: of the Kubeflow API; None leaves it to the kube config.
        token: bearer token for it.
        namespace: of the run; None for the only one of a single-user installation.
        wait: follow a run on the cluster until it ends.
        cache: take finished tasks of earlier runs.
    """

    root: Path
    runner: str
    endpoint: str | None
    token: str | None
    namespace: str | None
    wait: bool
    cache: bool


def main(argv: Sequence[str], *, root: Path, prog: str) -> int:
    """Run the pipeline; the exit code is 0, 1 of a run that failed, 2 of wrong input or of a cluster that does not
    answer, 4 of what this machine lacks, 130 of an interruption.
    """
    options = parser(prog).parse_intermixed_args(argv)
    for stop in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: nothing stays behind
        if signal.getsignal(stop) is not signal.SIG_IGN:  # as under nohup
            signal.signal(stop, signal.default_int_handler)
    try:
        place = placed(options, root)
        arguments = pipeline_arguments(options, place)
        package = compiled()
        if place.runner == "cluster":
            from pipelines.cluster import run
        else:
            from pipelines.local import run
        return run(package, arguments, place)
    except PDNetError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return 130


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog=f"{prog} run pipelines/pdnet.py" if prog == "kfp" else f"{prog} run",
        description="Run the pipeline: in processes here, in containers here, or on a Kubeflow cluster.",
        epilog="Pipeline parameters (key=value):\n"
        + "".join(f"  {name:18} {told}\n" for name, told in parameters().items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("overrides", nargs="*", metavar="key=value", help="pipeline parameters, listed below")
    made.add_argument(
        "--runner",
        choices=RUNNERS,
        help="local: processes; docker: containers; cluster: pods (default: cluster if one is configured, else local)",
    )
    made.add_argument("--params", type=Path, metavar="FILE", help="params file (default: params.yaml of the project)")
    made.add_argument(
        "--data-version", metavar="REV", help="git revision whose data.dvc names the data (default: the file as it is)"
    )
    made.add_argument("--policy", type=Path, metavar="FILE", help="promotion policy (default: nothing is promoted)")
    made.add_argument(
        "--bounds", type=Path, metavar="FILE", help="how far exported files may be from the network (default: built in)"
    )
    made.add_argument("--wait", action="store_true", help="cluster: follow the run to its end, which is the exit code")
    made.add_argument("--no-cache", action="store_true", help="run every task, also those with unchanged inputs")
    made.add_argument("--endpoint", metavar="URL", help="cluster: its API (default: KF_PIPELINES_ENDPOINT)")
    made.add_argument("--existing-token", metavar="TOKEN", help="cluster: bearer token (default: KFP_EXISTING_TOKEN)")
    made.add_argument("-n", "--namespace", metavar="NAME", help="cluster: namespace of the run, with several users")
    return made


def placed(options: argparse.Namespace, root: Path) -> Place:
    """Decide where the run goes."""
    endpoint = options.endpoint or next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)
    kubeconfig = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")  # noqa: PTH111 - HOME may be unset
    configured = endpoint or any(Path(path).is_file() for path in kubeconfig.split(os.pathsep))
    runner = options.runner or ("cluster" if configured else "local")
    if options.endpoint and runner != "cluster":
        raise ConfigError(f"--endpoint names a cluster, but --runner is {runner}")
    return Place(
        root=root,
        runner=runner,
        endpoint=endpoint,
        token=options.existing_token or os.environ.get("KFP_EXISTING_TOKEN"),
        namespace=options.namespace or os.environ.get("KFP_NAMESPACE"),
        wait=options.wait,
        cache=not options.no_cache,
    )


def parameters() -> dict[str, str]:
    """The pipeline's parameters, each with what is said of it."""
    from pipelines.pdnet import pdnet

    section = (inspect.getdoc(pdnet.pipeline_func) or "").partition("Args:\n")[2]
    return dict(re.findall(r"^    (\w+): (.+)$", section, re.MULTILINE))


def pipeline_arguments(options: argparse.Namespace, place: Place) -> dict[str, Any]:
    """The pipeline's parameters: what the project says, then what was typed.

    Raises:
        ConfigError: an unknown parameter, a value of the wrong type, a wrong params file, an image without digest.
        DataError: no such data version.
    """
    typed = overrides(options.overrides)
    params = options.params or place.root / "params.yaml"
    config = load_config(params)  # a wrong key is told here, not by a pod
    md5, revision = data_version(place.root, options.data_version)
    found: dict[str, Any] = {
        "params": params.read_text(encoding="utf-8"),
        "data_md5": md5,
        "data_revision": revision,
        "data_remote": data_remote(place.root),
        "image": "" if place.runner == "local" else os.environ.get("PDNET_IMAGE") or IMAGES[place.runner],
        "code": code_version(place.root),
        "mlflow_uri": tracking_uri(place),
        "gpus": 1 if place.runner == "cluster" else 0,
    }
    if options.policy:
        load_yaml(PromotionPolicy, options.policy, what="the promotion policy")  # likewise
        found["promotion_policy"] = options.policy.read_text(encoding="utf-8")
    if options.bounds:
        load_yaml(ParityBounds, options.bounds, what="the bounds of parity")
        found["export_bounds"] = options.bounds.read_text(encoding="utf-8")
    found |= typed
    check(found, place, config)
    return found


def tracking_uri(place: Place) -> str:
    """The MLflow store; a SQLite file by its whole path, as containers have another working folder."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if place.runner == "cluster":
        return given or CLUSTER_MLFLOW
    file = given.removeprefix("sqlite:///")
    return f"sqlite:///{place.root / file}" if file and file != given else given


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` as typed, in the types of the pipeline.

    Raises:
        ConfigError: an unknown key, or a value of another type.
    """
    from pipelines.pdnet import pdnet

    types = {name: hint.annotation for name, hint in inspect.signature(pdnet.pipeline_func).parameters.items()}
    found = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"'{word}': expected key=value")
        if key in FILES:
            raise ConfigError(f"{key}: is the text of a file; give the file, {FILES[key]} FILE")
        if key not in types:
            near = difflib.get_close_matches(key, types, 1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; it has {', '.join(types)}"
            raise ConfigError(f"the pipeline has no parameter '{key}'{hint}")
        try:
            value = text if types[key] is str else yaml.safe_load(text)
        except yaml.YAMLError:
            value = None
        if type(value) is not types[key]:
            raise ConfigError(f"{key}={text}: expected {types[key].__name__}")
        found[key] = value
    return found


def check(arguments: Mapping[str, Any], place: Place, config: Config) -> None:
    """Refuse what could only fail later.

    Raises:
        ConfigError: which parameter, what was found, what was expected.
    """
    for name, least in (("gpus", 0), ("nodes", 1)):
        if arguments.get(name, least) < least:
            raise ConfigError(f"{name}={arguments[name]}: expected at least {least}")
    if place.runner != "cluster" and arguments.get("nodes", 1) > 1:
        raise ConfigError(f"nodes={arguments['nodes']}: several nodes need a cluster; here it is 1")
    if not MD5.fullmatch(arguments["data_md5"]):
        raise ConfigError(f"data_md5={arguments['data_md5']}: expected <32 hex digits>.dir, as data.dvc has it")
    if not all(isinstance(value, str) for value in arguments.get("gpu_type", {}).values()):
        raise ConfigError(f"gpu_type={arguments['gpu_type']}: expected labels, which are text: {{name: 'value'}}")
    if not all(isinstance(entry, dict) for entry in arguments.get("tolerations", [])):
        raise ConfigError(f"tolerations={arguments['tolerations']}: expected a list as in a pod's specification")
    processes = max(1, arguments["gpus"])
    check_divisible(config.pretrain, processes)
    check_divisible(config.train, processes * arguments.get("nodes", 1))
    if place.runner == "cluster":
        check_for_pods(arguments)


def check_for_pods(arguments: Mapping[str, Any]) -> None:
    """Refuse what pods could not use, or should not be told.

    Raises:
        ConfigError: an image without digest, an MLflow store of this machine, a password.
        DataError: a DVC remote that pods cannot read.
    """
    wanted = ["image", *(["tensorrt_image"] if arguments.get("tensorrt") else [])]
    for name in wanted:
        if not DIGEST.fullmatch(arguments.get(name, "")):
            shown = f"'{arguments[name]}'" if arguments.get(name) else "none given"
            remedy = f"{name}=NAME@sha256:..." + (" (or PDNET_IMAGE)" if name == "image" else "")
            raise ConfigError(f"{name}: {shown}, expected an image by digest, which caching relies on: {remedy}")
    for name in ("mlflow_uri", "data_remote"):
        if urlsplit(arguments[name]).password:
            raise ConfigError(f"{name}: holds a password, which the run's page would show; the Secrets are for that")
    store = urlsplit(arguments["mlflow_uri"])
    if store.scheme not in ("http", "https") or store.hostname in ("localhost", "127.0.0.1", "::1"):
        shown = public_uri(arguments["mlflow_uri"])
        raise ConfigError(
            f"mlflow_uri: {shown} is a store of this machine, which pods cannot reach; try {CLUSTER_MLFLOW}"
        )
    if not arguments["data_remote"]:
        raise DataError("no DVC remote for pods to read: `dvc remote add --default NAME s3://BUCKET/PATH`, `dvc push`")
    if "://" not in arguments["data_remote"]:
        raise DataError(f"the DVC remote {arguments['data_remote']} is a folder here, which pods cannot read")


def data_version(root: Path, revision: str | None) -> tuple[str, str]:
    """MD5 of the data that a revision's data.dvc names, and that revision as a commit ('' where it is not committed).

    Raises:
        DataError: no such revision, or it has no data.dvc.
    """
    if revision is None:
        md5, _ = tracked_version(root / "data.dvc")
        if md5 is None:
            raise DataError(f"{root / 'data.dvc'}: missing or not a DVC file; `make data` or `dvc add data` makes it")
        committed = git(root, "ls-files", "data.dvc") and git(root, "diff", "--quiet", "HEAD", "--", "data.dvc") == ""
        return md5, (git(root, "rev-parse", "HEAD") or "") if committed else ""
    commit = git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if not commit:
        raise DataError(f"--data-version {revision}: no such revision of {root}")
    text = git(root, "show", f"{commit}:./data.dvc")
    if text is None:
        raise DataError(f"--data-version {revision}: has no data.dvc")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.dvc"
        path.write_text(text, encoding="utf-8")
        md5, _ = tracked_version(path)
    if md5 is None:
        raise DataError(f"--data-version {revision}: its data.dvc is not a DVC file")
    return md5, commit


def data_remote(root: Path) -> str:
    """URL of the project's default DVC remote, a local folder as an absolute path; '' where there is none."""
    name = dvc(root, "config", "core.remote")
    url = dvc(root, "config", f"remote.{name}.url") if name else ""
    return url if "://" in url or not url else str((root / ".dvc" / url).resolve())


def cache_folder(root: Path) -> Path:
    """The project's DVC cache."""
    return Path(dvc(root, "cache", "dir") or root / ".dvc" / "cache")


def code_version(root: Path) -> str:
    """The code's commit; with a digest of the package's source where it has been changed since."""
    commit = git(root, "rev-parse", "HEAD")
    source = ("pdnet", "components")
    if commit and git(root, "status", "--porcelain", "--", *source) == "":
        return commit
    digest = hashlib.sha256()
    files = (path for folder in source for path in (root / folder).rglob("*") if path.suffix in (".py", ".j2"))
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{commit or 'unknown'}-dirty.{digest.hexdigest()[:8]}"


def compiled() -> str:
    """The pipeline as Kubeflow takes it, YAML."""
    from kfp.compiler import Compiler

    from pipelines.pdnet import pdnet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pdnet.yaml"
        Compiler().compile(pdnet, str(path))
        return path.read_text(encoding="utf-8")


def tasks_of(pipeline: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task of a compiled pipeline, of the groups too."""
    for graph in (pipeline["root"], *pipeline["components"].values()):
        yield from graph.get("dag", {}).get("tasks", {}).items()


def git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it fails."""
    return _output(root, "git", *arguments)


def dvc(root: Path, *arguments: str) -> str:
    """What DVC says; '' where it fails."""
    return _output(root, sys.executable, "-m", "dvc", *arguments) or ""


def _output(root: Path, *command: str) -> str | None:
    try:
        run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
