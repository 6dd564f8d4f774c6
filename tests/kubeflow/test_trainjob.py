"""Training on several nodes: the TrainJob as its API takes it, and how it is watched."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_profile import tiny_config, write_params
from training_task import Training

from pdnet import trainjob
from pdnet.cli import build_parser
from pdnet.config import parse_config
from pdnet.container import Task, task
from pdnet.errors import ConfigError, TrainingError, UnavailableError

pytest.importorskip("kubernetes")
pytest.importorskip("cryptography")

from kubernetes_api import KubernetesApi, in_cluster

RUNNING = ("Running", "")
COMPLETE = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
IMAGE = "registry.example.org/pdnet@sha256:" + "a" * 64
SECRET = {"secretKeyRef": {"name": "pdnet-s3", "key": "AWS_ACCESS_KEY_ID", "optional": True}}
RESOURCES = {
    "limits": {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "2"},
    "requests": {"cpu": "8", "memory": "32Gi"},
}


def pod_with(workspace: Path) -> dict[str, Any]:
    """What Kubeflow Pipelines tells a task of its pod."""
    return {
        "affinity": None,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "node_selector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
        "env": [{"name": "AWS_ACCESS_KEY_ID", "valueFrom": SECRET}],
        "volumes": [
            {"name": "pdnet-dvc-cache", "persistentVolumeClaim": {"claimName": "pdnet-dvc-cache"}},
            {"name": "kfp-workspace", "persistentVolumeClaim": {"claimName": "pdnet-x7k2-kfp-workspace"}},
        ],
        "volume_mounts": [
            {"name": "pdnet-dvc-cache", "mountPath": "/dvc-cache"},
            {"name": "kfp-workspace", "mountPath": str(workspace)},
        ],
        "resources": RESOURCES,
    }


@pytest.fixture(autouse=True)
def no_record(monkeypatch):
    for name in (*trainjob.ABOUT, "KFP_POD_NAME", "KFP_POD_UID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


class Launcher:
    """The training task of one run, and its retries."""

    def __init__(self, root: Path) -> None:
        self.workspace, self.init, self.out = root / "workspace", root / "init", root / "out"
        self.shared = self.workspace / "trainjob"
        self.init.mkdir(parents=True)
        (self.init / "model.safetensors").write_text("pretrained")
        self.run = Task("train", tiny_config(), self.workspace)

    def train(self, **changes: Any) -> None:
        data = self.workspace / "data" / "mvps"
        arguments: dict[str, Any] = {
            "image": IMAGE,
            "nodes": 2,
            "processes": 2,
            "pod": pod_with(self.workspace),
            "videos": data,
            "images": data / "Stills",
            "init": self.init,
            "out": self.out,
        }
        trainjob.train_on_nodes(self.run, **arguments | changes)

    def result(self, job: dict[str, Any], state: str) -> None:
        """What the pods of a complete job leave."""
        if state != "Complete":
            return
        assert (self.shared / "init" / "model.safetensors").read_text() == "pretrained"
        (self.shared / "out").mkdir(exist_ok=True)
        (self.shared / "out" / "model.safetensors").write_text("trained")

    def say(self, name: str, line: str) -> None:
        """What a process of a job tells, where torchrun keeps it."""
        log = self.shared / "logs" / name / "none_abc" / "attempt_0" / "1" / "stderr.log"
        log.parent.mkdir(parents=True)
        log.write_text(f"pdnet: reading\n{line}\n")

    @property
    def model(self) -> str:
        return (self.out / "model.safetensors").read_text()


@pytest.fixture
def launcher(tmp_path) -> Launcher:
    return Launcher(tmp_path)


@pytest.fixture
def api(launcher, tmp_path, monkeypatch) -> Iterator[KubernetesApi]:
    monkeypatch.setattr(trainjob.wait, "__kwdefaults__", {"every": 0.005, "patience": 30.0})
    with in_cluster(tmp_path, monkeypatch) as server:
        server.shown = launcher.result
        yield server


class TestBody:
    """What is sent is what the API's own description has, and all of it."""

    @pytest.fixture
    def body(self, monkeypatch) -> dict[str, Any]:
        monkeypatch.setenv("PDNET_GIT_COMMIT", "1234abcd")
        monkeypatch.setenv("PDNET_IMAGE", IMAGE)
        monkeypatch.setenv("KFP_POD_NAME", "pdnet-x7k2-main")
        monkeypatch.setenv("KFP_POD_UID", "1-2-3")
        pod = pod_with(Path("/kfp-workspace"))
        command = ["torchrun", "-m", "pdnet", "train"]
        return trainjob.trainjob("job", image=IMAGE, nodes=2, processes=2, command=command, pod=pod)

    def test_nothing_is_lost_in_the_published_models(self, body):
        pytest.importorskip("kubeflow_trainer_api", reason="no kubeflow-trainer-api, the models of Kubeflow Trainer")
        from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

        assert TrainerV1alpha1TrainJob.from_dict(body).to_dict() == body
        body["spec"]["trainer"]["numProcPerNode"] = "auto"
        with pytest.raises(ValueError, match="numProcPerNode"):
            TrainerV1alpha1TrainJob.from_dict(body)

    def test_pods_are_as_many_as_asked_and_like_this_one(self, body):
        trainer = body["spec"]["trainer"]
        assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (2, 2, IMAGE)
        assert trainer["resourcesPerNode"] == RESOURCES
        spec = pod_spec(body)
        assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
        assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
        (container,) = spec["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == {"pdnet-dvc-cache": "/dvc-cache", "kfp-workspace": "/kfp-workspace", "shm": "/dev/shm"}
        assert {volume["name"] for volume in spec["volumes"]} == mounted.keys()

    def test_loader_processes_have_memory_to_share(self, body):
        (shm,) = (volume for volume in pod_spec(body)["volumes"] if volume["name"] == "shm")
        assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}

    def test_no_pod_has_rights_that_a_restricted_namespace_refuses(self, body):
        spec = pod_spec(body)
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert spec["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }

    def test_the_record_is_that_of_a_task(self, body):
        assert body["spec"]["trainer"]["env"] == [
            {"name": "AWS_ACCESS_KEY_ID", "valueFrom": SECRET},
            {"name": "PDNET_GIT_COMMIT", "value": "1234abcd"},
            {"name": "PDNET_IMAGE", "value": IMAGE},
        ]

    def test_it_goes_with_the_pod_of_the_task(self, body):
        (owner,) = body["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "v1", "kind": "Pod", "name": "pdnet-x7k2-main", "uid": "1-2-3"}

    def test_an_empty_pod_adds_nothing_empty(self):
        body = trainjob.trainjob("job", image=IMAGE, nodes=3, processes=0, command=["true"], pod={})
        assert body["metadata"].keys() == {"name", "labels"}
        assert body["spec"]["trainer"] == {"image": IMAGE, "command": ["true"], "numNodes": 3, "numProcPerNode": 1}
        assert pod_spec(body).keys() == {"volumes", "securityContext", "containers"}

    def test_names_are_within_the_limits_of_the_api(self, launcher, api):
        launcher.train()
        (name,) = api.made
        # Pods are called <name>-node-0-0.<name>, a DNS label of 63 characters.
        assert len(f"{name}-node-0-0") < 63
        patch = api.jobs[name]["spec"]["runtimePatches"][0]
        assert 0 < len(patch["manager"]) <= 253


def pod_spec(body: dict[str, Any]) -> dict[str, Any]:
    (patch,) = body["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    return node["template"]["spec"]["template"]["spec"]


class TestWatching:
    def test_its_result_becomes_that_of_the_task(self, launcher, api, caplog):
        caplog.set_level(logging.INFO, logger="pdnet")
        api.states = [("Suspended", ""), RUNNING, RUNNING, ("Complete", "")]
        launcher.train()
        (name,) = api.made
        assert launcher.model == "trained"
        assert [record.message for record in caplog.records if record.name == "pdnet.trainjob"] == [
            f"TrainJob {name}: started on 2 nodes",
            f"TrainJob {name}: Suspended",
            f"TrainJob {name}: running",
        ]

    def test_the_command_is_one_that_torchrun_and_pdnet_take(self, launcher, api):
        from torch.distributed.run import parse_args

        launcher.train()
        (job,) = api.jobs.values()
        torchrun, *words = job["spec"]["trainer"]["command"]
        assert torchrun == "torchrun"
        launched = parse_args(words)
        assert (launched.module, launched.training_script) == (True, "pdnet")
        options = build_parser("train ").parse_args(launched.training_script_args)
        data = launcher.workspace / "data" / "mvps"
        assert (options.videos, options.images) == (data, data / "Stills")
        assert (options.init, options.out) == (launcher.shared / "init", launcher.shared / "out")
        assert options.checkpoints == launcher.workspace / "checkpoints" / "train"
        from pdnet.config import load_config

        assert load_config(options.params) == launcher.run.config

    def test_a_retry_after_the_copy_copies_again_and_asks_nobody(self, launcher, api):
        launcher.train()
        api.asked.clear()
        (launcher.out / "model.safetensors").write_text("half")
        launcher.train()
        assert launcher.model == "trained"
        assert not api.asked

    def test_a_retry_finds_the_job_that_is_under_way(self, launcher, api, monkeypatch):
        monkeypatch.setattr(trainjob.wait, "__kwdefaults__", {"every": 0.005, "patience": 0.0})
        api.states = [503]
        with pytest.raises(UnavailableError):
            launcher.train()
        api.states = [RUNNING, ("Complete", "")]
        launcher.init.joinpath("model.safetensors").write_text("of another attempt")
        launcher.train()
        assert launcher.model == "trained"
        assert len(api.made) == 1

    def test_a_moment_without_the_api_is_sat_out(self, launcher, api, caplog):
        caplog.set_level(logging.INFO, logger="pdnet")
        api.states = [
            RUNNING,
            503,
            503,
            None,
            None,
            None,
            None,
            401,
            403,
            429,
            RUNNING,
            ("Complete", ""),
        ]
        launcher.train()
        assert launcher.model == "trained"
        told = [record.message for record in caplog.records]
        assert any("unable to handle the request" in line for line in told)
        assert any("the Kubernetes API does not answer, asked to get TrainJob" in line for line in told)
        assert sum("TrainJob" in line for line in told) == len(told) <= 8  # a state is told once

    def test_patience_has_an_end(self, launcher, api, monkeypatch):
        monkeypatch.setattr(trainjob.wait, "__kwdefaults__", {"every": 0.005, "patience": 0.05})
        api.states = [RUNNING, 503]
        with pytest.raises(UnavailableError, match="unable to handle the request"):
            launcher.train()
        assert api.jobs  # goes on without us

    def test_a_failed_one_tells_the_reason_and_a_retry_starts_another(self, launcher, api):
        api.states = [RUNNING, ("Failed", "jobset failed due to one or more job failures")]
        with pytest.raises(TrainingError) as told:
            launcher.train()
        (name,) = api.made
        assert str(told.value) == (
            f"TrainJob {name} failed: jobset failed due to one or more job failures;"
            f" see `kubectl describe trainjob {name}`"
        )
        assert not launcher.out.exists()
        api.states = [("Complete", "")]
        launcher.train()
        assert launcher.model == "trained"
        assert len(set(api.made)) == 2

    def test_the_words_of_the_process_that_failed_are_told(self, launcher, api):
        line = "train.batch_size: 4, expected a multiple of the 3 processes that share it"
        launcher.say("pdnet-train-older", "pdnet: error: something else")
        api.states = [RUNNING, ("Failed", "jobset failed")]
        api.shown = lambda job, state: state == "Failed" and launcher.say(api.made[0], f"pdnet: error: {line}")
        with pytest.raises(TrainingError) as told:
            launcher.train()
        assert str(told.value) == line

    def test_a_job_that_somebody_deleted(self, launcher, api):
        api.states = [RUNNING, 404]
        with pytest.raises(TrainingError, match=r"^TrainJob pdnet-train-\w+ was deleted$"):
            launcher.train()
        api.states = [("Complete", "")]
        launcher.train()
        assert len(api.made) == 2

    def test_one_that_is_being_deleted_is_not_waited_for(self):
        job = {"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}, "status": {"conditions": None}}
        assert trainjob.wait("job", lambda name: job) == "TrainJob job was deleted"
        assert trainjob.wait("job", lambda name: {"metadata": {}} | COMPLETE) is None

    def test_sigterm_ends_the_job_and_a_retry_starts_another(self, launcher, api):
        api.states = [RUNNING, ("Suspended", ""), RUNNING]
        api.shown = lambda job, state: state == "Suspended" and os.kill(os.getpid(), signal.SIGTERM)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(TrainingError, match="told to stop, and TrainJob"):
            launcher.train()
        assert signal.getsignal(signal.SIGTERM) is before
        assert not api.jobs
        api.states, api.shown = [("Complete", "")], launcher.result
        launcher.train()
        assert launcher.model == "trained"
        assert len(set(api.made)) == 2


class Pods:
    """What Kubeflow Trainer makes of a job, as processes here."""

    def __init__(self, api: KubernetesApi) -> None:
        self.api, self.running = api, list[subprocess.Popen[bytes]]()
        api.states, api.shown = [RUNNING], self

    def __call__(self, job: dict[str, Any], state: str) -> None:
        if not self.running:
            self.start(job["spec"]["trainer"])
        elif all(pod.poll() is not None for pod in self.running):
            failed = any(pod.returncode for pod in self.running)
            self.api.states = [("Failed", "jobset failed") if failed else ("Complete", "")]

    def start(self, trainer: dict[str, Any]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = {variable["name"]: variable["value"] for variable in trainer["env"] if "value" in variable}
        given |= {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        for rank in range(trainer["numNodes"]):
            environment = {**os.environ, **given, "PET_NODE_RANK": str(rank)}
            self.running.append(subprocess.Popen(trainer["command"], env=environment))


@pytest.mark.slow
class TestTraining:
    """What pods do with the job, done by processes."""

    @pytest.fixture
    def training(self, portraits, launcher, tmp_path) -> Training:
        """In one pod with as many processes."""
        (tmp_path / "in-pod").mkdir()
        training = Training(tmp_path / "in-pod", portraits)
        shutil.rmtree(launcher.init)
        shutil.copytree(training.init, launcher.init)
        launcher.run = Task("train", parse_config(yaml.safe_dump(training.params), source="params"), launcher.workspace)
        return training

    def test_it_is_the_same_training(self, training, launcher, api, monkeypatch):
        monkeypatch.setenv("PDNET_GIT_COMMIT", "1234abcd")
        Pods(api)
        launcher.train(processes=1, **training.data)
        training.run(2)
        ours, theirs = launcher.out, training.out
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        records = [json.loads((out / "run.json").read_text()) for out in (ours, theirs)]
        for record in records:
            del record["started"], record["seconds"]
        assert records[0] == records[1]
        assert records[0]["git_commit"] == "1234abcd"
        assert not launcher.run.checkpoints.exists()

    def test_what_a_pod_says_is_what_the_task_says(self, training, launcher, api):
        Pods(api)
        with pytest.raises(TrainingError) as told:
            launcher.train(processes=1, nodes=3, **training.data)
        assert str(told.value) == "train.batch_size: 4, expected a multiple of the 3 processes that share it"


class TestRefusals:
    def one_line(self, launcher: Launcher, capsys: pytest.CaptureFixture[str]) -> tuple[str, int]:
        """What the user of a task sees."""
        text = write_params(launcher.workspace.parent / "params.yaml").read_text()
        with (
            pytest.raises(SystemExit) as ended,
            task("train", params=text, workspace=str(launcher.workspace)) as run,
        ):
            launcher.run = run
            launcher.train()
        (line,) = capsys.readouterr().err.splitlines()
        assert (launcher.workspace / "failures" / "train.txt").read_text() == line.partition("train: ")[2] + "\n"
        return line, int(ended.value.code or 0)

    def test_no_rights(self, launcher, api, capsys):
        message = (
            'trainjobs.trainer.kubeflow.org is forbidden: User "system:serviceaccount:pdnet:pipeline-runner" cannot'
            ' create resource "trainjobs" in API group "trainer.kubeflow.org" in the namespace "pdnet"'
        )
        api.refusal = (403, message)
        line, code = self.one_line(launcher, capsys)
        assert code == 4
        assert line.startswith("pdnet: error: train: the Kubernetes API refuses to create TrainJob pdnet-train-")
        assert line.endswith(f": {message}")

    def test_no_kubeflow_trainer(self, launcher, api, capsys):
        api.refusal = (404, "the server could not find the requested resource")
        line, code = self.one_line(launcher, capsys)
        assert line == (
            "pdnet: error: train: this cluster has no trainjobs.trainer.kubeflow.org: install Kubeflow Trainer"
        )
        assert code == 4

    def test_nobody_answers(self, launcher, api, capsys, monkeypatch):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(free.getsockname()[1]))
        line, code = self.one_line(launcher, capsys)
        assert line.endswith("Connection refused")
        assert code == 4

    def test_no_cluster(self, launcher, capsys):
        line, code = self.one_line(launcher, capsys)
        assert line == (
            "pdnet: error: train: training on several nodes needs a Kubernetes cluster; here nodes must be 1"
        )
        assert code == 4

    def test_pods_that_would_not_see_the_workspace(self, launcher):
        with pytest.raises(ConfigError, match=r"every pod needs the workspace .*; passed on were /dvc-cache, /other$"):
            launcher.train(pod=pod_with(Path("/other")))
        with pytest.raises(ConfigError, match="passed on were no volumes"):
            launcher.train(pod={})
