"""Training over several nodes of a cluster: a TrainJob of Kubeflow Trainer, started and watched by a task."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from urllib3.exceptions import HTTPError

from pdnet.config import to_yaml
from pdnet.container import Task, command_line, last_words
from pdnet.errors import ConfigError, TrainingError, UnavailableError
from pdnet.files import write_text

logger = logging.getLogger("pdnet.trainjob")

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
#: The runtime that Kubeflow Trainer installs for PyTorch; its container is called `node`.
RUNTIME = "torch-distributed"
MANAGER = "pdnet.io/train"
LABELS = {"app.kubernetes.io/name": "pdnet", "app.kubernetes.io/component": "train"}
#: What the task's own pod has at /dev/shm for loader processes; Kubeflow Pipelines does not pass it on.
SHM = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
#: What the record of a run is told by the environment.
ABOUT = ("PDNET_GIT_COMMIT", "PDNET_IMAGE", "PDNET_MLFLOW_BUFFER", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_POLL_SECONDS = 10.0
_PATIENCE_SECONDS = 3600.0
_REQUEST_SECONDS = 60.0


def train_on_nodes(
    run: Task,
    *,
    image: str,
    nodes: int,
    processes: int,
    pod: Mapping[str, Any],
    videos: Path,
    images: Path,
    init: Path,
    out: Path,
) -> None:
    """Train in a TrainJob and bring its result to `out`.

    The job reads and writes in the run's workspace, which all its pods mount. Its name is kept there: a task that is
    retried because its pod was lost finds the job that is under way.

    SIGTERM announces the end of this task's pod, whether a user has stopped the run, its time is up or its node is
    drained, and nothing says which: so the job is deleted, its GPUs are free, and its pods write a last checkpoint. If
    the task is retried, a new job goes on from there: a wrong guess costs minutes, not GPU days.

    Args:
        run: the task.
        image: of the job's pods; the one that this task runs.
        nodes: number of pods.
        processes: a pod, one a GPU.
        pod: what this task's own pod was given, to be passed on: `resources`, `node_selector`, `tolerations`, `env`,
            `volumes`, `volume_mounts`, as in the Kubernetes API.
        videos, images: the data, in the workspace.
        init: folder of the pretrain step.
        out: folder of the train step.

    Raises:
        ConfigError: the workspace is not among the volumes that the pods get.
        UnavailableError: there is no Kubernetes API here, it refuses or does not answer.
        TrainingError: the job has failed or was deleted, or this task was told to stop.
    """
    mounts = [mount["mountPath"] for mount in pod.get("volume_mounts") or []]
    if not any(run.workspace.is_relative_to(path) for path in mounts):
        raise ConfigError(
            f"training on several nodes: every pod needs the workspace {run.workspace}; passed on were"
            f" {', '.join(mounts) or 'no volumes'}"
        )
    shared = run.workspace / "trainjob"
    result = shared / "out"
    if not result.is_dir():  # it appears whole, and an earlier attempt may have seen it no more
        _train(
            run, shared, videos=videos, images=images, init=init, image=image, nodes=nodes, processes=processes, pod=pod
        )
    shutil.copytree(result, out, dirs_exist_ok=True)


def _train(run: Task, shared: Path, *, videos: Path, images: Path, init: Path, **job: Any) -> None:
    """Have `shared/out` made by a TrainJob, a new one or that of an earlier attempt.

    Args:
        run: the task.
        shared: folder in the workspace, for all that the job needs.
        videos, images, init: as in `train_on_nodes`.
        job: other arguments of `trainjob`.
    """
    cluster = Cluster()
    note = shared / "job.txt"
    if not note.is_file():
        shutil.copytree(init, shared / "init", dirs_exist_ok=True)
        write_text(shared / "params.yaml", to_yaml(run.config))
        write_text(note, f"pdnet-train-{uuid.uuid4().hex[:8]}")
    name = note.read_text(encoding="utf-8")
    logs = shared / "logs" / name
    logs.mkdir(parents=True, exist_ok=True)
    paths = {"videos": videos, "images": images, "init": shared / "init", "out": shared / "out"}
    train = command_line("train", shared / "params.yaml", paths | {"checkpoints": run.checkpoints})
    body = trainjob(name, command=["torchrun", f"--log-dir={logs}", "--tee=2", *train], **job)
    try:
        with _sigterm_interrupts():
            cluster.create(body)
            failure = wait(name, cluster.read)
    except KeyboardInterrupt:
        cluster.delete(name)
        note.unlink()
        raise TrainingError(f"told to stop, and TrainJob {name} with it; a retry goes on from its checkpoint") from None
    if failure:
        note.unlink()  # a retry needs a job of its own
        raise TrainingError(last_words(logs)[1] or failure)


def trainjob(
    name: str, *, image: str, nodes: int, processes: int, command: list[str], pod: Mapping[str, Any]
) -> dict[str, Any]:
    """The TrainJob as Kubeflow Trainer 2.2 and later take it.

    This task's pod owns it, where it is one of Kubeflow Pipelines: the job goes when the run's pods are removed, and
    does not go on alone when this one vanished without a signal.

    Args:
        name: of the job.
        image: of its pods.
        nodes: number of pods.
        processes: a pod.
        command: that every pod runs; torchrun learns from the environment which pod it is in.
        pod: as in `train_on_nodes`.
    """
    env = list(pod.get("env") or [])
    given = {variable["name"] for variable in env}
    env += [{"name": key, "value": os.environ[key]} for key in ABOUT if os.environ.get(key) and key not in given]
    volumes, mounts = list(pod.get("volumes") or []), list(pod.get("volume_mounts") or [])
    if all(mount["mountPath"] != "/dev/shm" for mount in mounts):  # noqa: S108
        volumes.append(SHM)
        mounts.append({"name": SHM["name"], "mountPath": "/dev/shm"})  # noqa: S108
    trainer = {
        "image": image,
        "command": command,
        "numNodes": nodes,
        "numProcPerNode": max(1, processes),
        "resourcesPerNode": pod.get("resources"),
        "env": env,
    }
    pod_name, pod_uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    owner = [{"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": pod_uid}] if pod_name and pod_uid else None
    unprivileged = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    spec = {
        "volumes": volumes,
        "nodeSelector": pod.get("node_selector"),
        "tolerations": pod.get("tolerations"),
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "node", "volumeMounts": mounts, "securityContext": unprivileged}],
    }
    # Runtime, JobSet, Job and Pod are wrapped in each other.
    node = {"name": "node", "template": {"spec": {"template": {"spec": _given(spec)}}}}
    patch = {"template": {"spec": {"replicatedJobs": [node]}}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": _given({"name": name, "labels": LABELS, "ownerReferences": owner}),
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "trainer": _given(trainer),
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": patch}],
        },
    }


class ApiError(UnavailableError):
    """The Kubernetes API refuses, or does not answer.

    Attributes:
        status: of HTTP; 0 where nobody answered.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """The TrainJobs in the namespace of this pod.

    Raises:
        UnavailableError: this is no pod.
    """

    def __init__(self) -> None:
        from kubernetes import client, config

        here = client.Configuration()
        try:
            config.load_incluster_config(here)
        except config.ConfigException:
            raise UnavailableError(
                "training on several nodes needs a Kubernetes cluster; here nodes must be 1"
            ) from None
        here.retries = False  # `wait` does it, and tells
        self.namespace = _NAMESPACE.read_text(encoding="utf-8").strip()
        self._api = client.CustomObjectsApi(client.ApiClient(here))

    def create(self, body: Mapping[str, Any]) -> None:
        """Start a job; one of that name that is there already is the one that an earlier attempt started.

        Raises:
            UnavailableError: the cluster refuses, does not answer, or knows no TrainJobs.
        """
        name = body["metadata"]["name"]
        try:
            self._ask("create", name, body)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise UnavailableError(f"this cluster has no {PLURAL}.{GROUP}: install Kubeflow Trainer") from None
            if error.status != HTTPStatus.CONFLICT:
                raise
            logger.info("TrainJob %s: found under way", name)
        else:
            logger.info("TrainJob %s: started on %d nodes", name, body["spec"]["trainer"]["numNodes"])

    def read(self, name: str) -> Mapping[str, Any]:
        """The job as it is now.

        Raises:
            ApiError: status 404 where there is none.
        """
        job: Mapping[str, Any] = self._ask("get", name, name)
        return job

    def delete(self, name: str) -> None:
        """Delete the job and its pods; one that is not there is no error.

        Raises:
            ApiError: the cluster refuses or does not answer.
        """
        try:
            self._ask("delete", name, name)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    def _ask(self, verb: str, name: str, argument: object) -> Any:
        from kubernetes.client import ApiException

        ask = getattr(self._api, f"{verb}_namespaced_custom_object")
        try:
            return ask(GROUP, VERSION, self.namespace, PLURAL, argument, _request_timeout=_REQUEST_SECONDS)
        except ApiException as error:
            try:
                reason = json.loads(error.body)["message"]
            except (TypeError, ValueError, KeyError):
                reason = error.reason
            line = f"the Kubernetes API refuses to {verb} TrainJob {name}: {reason}"
            raise ApiError(line, error.status or 0) from None
        except HTTPError as error:
            reason = str(error).rpartition(": ")[2]
            line = f"the Kubernetes API does not answer, asked to {verb} TrainJob {name}: {reason}"
            raise ApiError(line, 0) from None


def wait(
    name: str,
    read: Callable[[str], Mapping[str, Any]],
    *,
    every: float = _POLL_SECONDS,
    patience: float = _PATIENCE_SECONDS,
) -> str | None:
    """Wait until a TrainJob has ended.

    Args:
        name: of the job.
        read: reads the job.
        every: seconds between two looks.
        patience: for an API that does not answer, seconds: the training itself does not need it.

    Returns:
        None when it is complete, or why it failed.

    Raises:
        ApiError: patience is at its end.
    """
    told, answered = "", time.monotonic()
    while True:
        try:
            job = read(name)
            answered = time.monotonic()
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return f"TrainJob {name} was deleted"
            if time.monotonic() - answered > patience:
                raise
            state = str(error)
        else:
            if "deletionTimestamp" in job["metadata"]:
                return f"TrainJob {name} was deleted"
            conditions = job.get("status", {}).get("conditions") or []
            holding = {condition["type"]: condition for condition in conditions if condition.get("status") == "True"}
            if "Complete" in holding:
                return None
            if failed := holding.get("Failed"):
                reason = failed.get("message") or failed.get("reason") or "no reason given"
                return f"TrainJob {name} failed: {reason}; see `kubectl describe trainjob {name}`"
            state = f"TrainJob {name}: {', '.join(holding) or 'running'}"
        if state != told:
            logger.info("%s", state)
            told = state
        time.sleep(every)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in (None, {}, [])}


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM interrupt the block as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
