"""The pipeline on this machine: its tasks as processes, or as containers of the real image."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from pdnet.errors import UnavailableError
from pipelines.run import Place, cache_folder, tasks_of

#: What a container needs to know of the caller's environment.
PASSED_ON = re.compile(r"(AWS|MLFLOW|OMP)_\w+")


def run(package: str, arguments: dict[str, Any], place: Place) -> int:
    """Run the compiled pipeline here.

    Returns:
        0, or 1 when a task failed.

    Raises:
        UnavailableError: no Docker, or no such image.
    """
    from kfp import components, local

    base = place.root / "build" / "kubeflow"
    stamp = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{os.getpid()}"
    workspace = base / f"workspace-{stamp}"
    docker = place.runner == "docker"
    if docker:
        runner = docker_runner(arguments, place)
    else:
        os.environ.setdefault("PDNET_DVC_CACHE", str(cache_folder(place.root)))
        os.environ.pop("PDNET_IMAGE", None)  # the caller's default for a cluster; here no image runs
        runner = local.SubprocessRunner(use_venv=False)
    pipeline = components.load_component_from_text(adapted(package, arguments, retries=docker))
    workspace.mkdir(parents=True)
    try:
        # Tasks find the tracking store as the project's own commands do.
        with contextlib.chdir(place.root), warnings.catch_warnings(), told(base / f"run-{stamp}.log") as console:
            warnings.simplefilter("ignore")
            local.init(
                runner,
                pipeline_root=str(base),
                workspace_root=str(workspace),
                raise_on_error=False,
                # Kubeflow's local cache does not know what is inside an image.
                enable_caching=place.cache and not docker,
                cache_root=str(base / "cache"),
            )
            pipeline(**arguments)
    finally:  # Kubeflow sees to it after a run that was not interrupted
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(workspace, ignore_errors=True)
    return console.summary()


def adapted(package: str, arguments: Mapping[str, Any], *, retries: bool) -> str:
    """The compiled pipeline as Kubeflow's local runners can run it.

    They leave a parameter in an image's name as it is, and sit out the waits between retries that are meant for
    preempted nodes. In processes nothing is preempted: a task that failed would fail again.
    """
    pipeline, platform = yaml.safe_load_all(package)
    for executor in pipeline["deploymentSpec"]["executors"].values():
        parameter = executor["container"]["image"].rpartition("pipelinechannel--")[2].partition("'")[0]
        executor["container"]["image"] = arguments.get(parameter) or "python"
    for _, task in tasks_of(pipeline):
        if "retryPolicy" in task:
            task["retryPolicy"] |= {"maxRetryCount": 2 if retries else 0, "backoffDuration": "1s"}
    return yaml.safe_dump_all([pipeline, platform], sort_keys=False)


def docker_runner(arguments: Mapping[str, Any], place: Place) -> Any:
    """Containers as the caller, without more rights than a pod has; the project's folder at its own path.

    That folder holds the DVC cache, the tracking store and the results. The code is the image's.

    Raises:
        UnavailableError: no Docker, or no such image.
    """
    import docker
    from kfp import local
    from kfp.local import docker_task_handler

    try:
        client = docker.from_env()
        client.images.get(arguments["image"])
    except docker.errors.ImageNotFound:
        raise UnavailableError(f"there is no image {arguments['image']} here; `make images` builds pdnet:cpu") from None
    except docker.errors.DockerException as error:
        raise UnavailableError(f"Docker does not answer ({error}); is it running?") from None
    docker_task_handler.run_docker_container = run_container
    root = str(place.root)
    environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    store = arguments["mlflow_uri"] or f"sqlite:///{place.root / 'mlflow.db'}"
    cache = str(cache_folder(place.root))
    environment |= {"MLFLOW_TRACKING_URI": store, "PDNET_DVC_CACHE": cache}
    database = Path(store.removeprefix("sqlite:///")).parent if store.startswith("sqlite:///") else place.root
    remote = arguments["data_remote"]
    wanted = (cache, str(database), remote if "://" not in remote else "")
    folders = {root, *(path for path in wanted if path and Path(path).is_dir() and not Path(path).is_relative_to(root))}
    gpus = arguments.get("gpus", 0)
    devices = [docker.types.DeviceRequest(count=gpus, capabilities=[["gpu"]])] if gpus else None
    return local.DockerRunner(
        user=f"{os.getuid()}:{os.getgid()}",
        network_mode="host",
        read_only=True,
        tmpfs={"/tmp": "exec"},  # noqa: S108 - the one place that a pod may write too
        shm_size="1g",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mounts=[docker.types.Mount(target=folder, source=folder, type="bind") for folder in sorted(folders)],
        environment=environment,
        device_requests=devices,
    )


def run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any) -> int:
    """Run one container and say how it ended.

    In place of Kubeflow's own, which takes a container that vanished before its end was read for a success.
    """
    import docker

    container = client.containers.run(image=image, command=command, volumes=volumes, detach=True, **options)
    try:
        for line in container.logs(stream=True):
            print(line.decode(errors="replace"), end="")
        return int(container.wait()["StatusCode"])
    except docker.errors.NotFound:
        print("the container was removed\n", end="")
        return 137
    finally:
        with contextlib.suppress(docker.errors.APIError):
            container.remove(force=True)


class Console(io.TextIOBase):
    """Takes what Kubeflow's local runner prints: all of it into a file, what a person wants onto the terminal."""

    def __init__(self, log: Path, terminal: Any) -> None:
        self.log = log.open("w", encoding="utf-8")
        self.path = log
        self.terminal = terminal
        self.rest = ""
        self.started: dict[str, float] = {}
        self.failed: list[str] = []
        self.skipping = False
        self.begun = time.monotonic()
        self.complete = False

    def write(self, text: str) -> int:
        """Take a piece of text; whole lines are looked at."""
        self.log.write(text)
        self.log.flush()
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.line(re.sub(r"\x1b\[\d+m", "", line))
        return len(text)

    def line(self, line: str) -> None:
        """Show a line, or what it means, or nothing."""
        if self.skipping:  # the executor's input, JSON
            self.skipping = not line.startswith("    }")
            return
        if "Got executor_input:" in line:
            self.skipping = True
        elif match := re.search(r"Executing task '([\w-]+)'", line):
            self.started[match[1]] = time.monotonic()
            self.show(f"{match[1]} ...")
        elif match := re.search(r"Task '([\w-]+)' finished with status (\w+)", line):
            seconds = time.monotonic() - self.started.get(match[1], self.begun)
            succeeded = match[2] == "SUCCESS"
            self.show(f"{match[1]}: {'done' if succeeded else 'FAILED'} after {seconds:.1f} s")
            if succeeded:
                self.failed = [name for name in self.failed if name != match[1]]
            elif match[1] not in self.failed:
                self.failed.append(match[1])
        elif match := re.search(r"Task ([\w-]+) cache hit", line):
            self.show(f"{match[1]}: unchanged, taken from an earlier run")
        elif match := re.search(r"Task ([\w-]+) failed \(attempt (\d+/\d+)\)\. Retrying", line):
            self.show(f"{match[1]}: attempt {match[2]} failed, trying again")
        elif match := re.search(r"Pipeline '[\w-]+' finished with status (\w+)", line):
            self.complete = match[1] == "SUCCESS"
        elif line.startswith("    ") and line.strip() and "[KFP Executor" not in line:
            told = line[4:]
            if not re.match(r"\s*(\w+: \w+\(\s+name=|uri='|metadata=|Output: )", told):
                self.show(f"    {told}")

    def show(self, text: str) -> None:
        """Write a line to the terminal."""
        self.terminal.write(text + "\n")
        self.terminal.flush()

    def summary(self) -> int:
        """Say how the run ended; the exit code."""
        seconds = time.monotonic() - self.begun
        if self.complete:
            self.show(f"pipeline: done after {seconds:.0f} s; results below {self.path.parent}")
            return 0
        failed = ", ".join(self.failed) or "it did not start"
        self.show(f"pipeline: FAILED after {seconds:.0f} s: {failed}; all of its output: {self.path}")
        return 1


@contextlib.contextmanager
def told(log: Path) -> Iterator[Console]:
    """Send what is printed in the block through a `Console`."""
    console = Console(log, sys.stdout)
    root, handler = logging.getLogger(), logging.StreamHandler(console)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(console):
            yield console
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        console.log.close()
