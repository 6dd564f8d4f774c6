"""The compiled pipeline as a platform engineer reads it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pipeline_file import ROOT, compiled

pytest.importorskip("kfp")

GOLDEN = ROOT / "tests" / "kubeflow" / "golden" / "pdnet.yaml"
GPU_STEPS = {"exec-pretrain", "exec-train", "exec-evaluate", "exec-export-tensorrt"}
NEVER_CACHED = {"register", "register-2", "register-3", "outcome"}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `kfp dsl compile` makes of the definition now."""
    out = tmp_path_factory.mktemp("compiled") / "pdnet.yaml"
    command = ["-m", "kfp.cli", "dsl", "compile", "--py", "pipelines/pdnet.py", "--output", str(out)]
    code = "import sys; from kfp.cli.__main__ import main; sys.argv = ['kfp', *sys.argv[3:]]; main()"
    run = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return out.read_text()


@pytest.fixture(scope="module")
def spec(fresh: str) -> dict[str, Any]:
    return compiled(fresh)[0]


@pytest.fixture(scope="module")
def kubernetes(fresh: str) -> dict[str, Any]:
    return compiled(fresh)[1]["deploymentSpec"]["executors"]


def dags(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every graph: the root and the groups."""
    yield "root", spec["root"]
    for name, component in spec["components"].items():
        if "dag" in component:
            yield name, component


def defined(component: dict[str, Any], kind: str) -> set[str]:
    return set(component.get("inputDefinitions", {}).get(kind, {}))


def test_the_golden_file_is_what_the_definition_compiles_to(fresh):
    assert GOLDEN.read_text() == fresh, (
        "the compiled pipeline has changed: `make golden` writes it again; review the diff"
    )


def test_every_reference_resolves(spec):
    """What a task takes from its group, the group has; what it takes of a task before, that task gives."""
    for name, group in dags(spec):
        tasks = group["dag"]["tasks"]
        for task_name, task in tasks.items():
            for kind in ("parameters", "artifacts"):
                for key, value in task.get("inputs", {}).get(kind, {}).items():
                    where = f"{name}/{task_name}: {key}"
                    if outer := value.get("componentInputParameter") or value.get("componentInputArtifact"):
                        assert outer in defined(group, kind), where
                    if made := value.get("taskOutputArtifact") or value.get("taskOutputParameter"):
                        producer = spec["components"][tasks[made["producerTask"]]["componentRef"]["name"]]
                        output = made.get("outputArtifactKey") or made.get("outputParameterKey")
                        assert output in producer["outputDefinitions"][kind], where
            for earlier in task.get("dependentTasks", []):
                assert earlier in tasks


def test_every_required_input_of_a_task_is_given(spec):
    for name, group in dags(spec):
        for task_name, task in group["dag"]["tasks"].items():
            component = spec["components"][task["componentRef"]["name"]]
            for kind in ("parameters", "artifacts"):
                for key, definition in component.get("inputDefinitions", {}).get(kind, {}).items():
                    special = definition.get("parameterType") == "TASK_CONFIG"
                    if not definition.get("isOptional") and not special:
                        assert key in task["inputs"][kind], f"{name}/{task_name}: {key}"


def test_every_placeholder_in_an_executor_is_an_input_of_its_task(spec, kubernetes):
    """Also those that set image, accelerator, node selector and tolerations."""
    executor_of = {name: part["executorLabel"] for name, part in spec["components"].items() if "executorLabel" in part}
    seen = set()
    for name, group in dags(spec):
        for task_name, task in group["dag"]["tasks"].items():
            label = executor_of.get(task["componentRef"]["name"])
            if label is None:
                continue
            seen.add(label)
            text = str(spec["deploymentSpec"]["executors"][label])
            wanted = set(re.findall(r"inputs\.parameters\[\\*'+([\w-]+)\\*'+\]", text))
            assert "pipelinechannel--image" in wanted or "pipelinechannel--tensorrt_image" in wanted
            given = set(task["inputs"]["parameters"])
            assert wanted <= given, f"{name}/{task_name}: {sorted(wanted - given)}"
            # The platform's settings are resolved in the group.
            wanted = set(re.findall(r"'componentInputParameter': '([\w-]+)'", str(kubernetes[label])))
            assert wanted == (
                {"pipelinechannel--gpu_type", "pipelinechannel--tolerations"} if label in GPU_STEPS else set()
            )
            assert wanted <= defined(group, "parameters"), f"{name}/{task_name}: {sorted(wanted)}"
    assert seen == set(executor_of.values())


def test_every_image_is_the_runs_own_and_none_is_named_in_the_definition(spec):
    for label, executor in spec["deploymentSpec"]["executors"].items():
        wanted = "tensorrt_image" if label == "exec-export-tensorrt" else "image"
        assert executor["container"]["image"] == f"{{{{$.inputs.parameters['pipelinechannel--{wanted}']}}}}"
    for name, group in dags(spec):  # and it is the one on record
        for task_name, task in group["dag"]["tasks"].items():
            label = spec["components"][task["componentRef"]["name"]].get("executorLabel")
            if label:
                wanted = "tensorrt_image" if label == "exec-export-tensorrt" else "image"
                told = task["inputs"]["parameters"]["image"]["componentInputParameter"]
                assert told.removeprefix("pipelinechannel--") == wanted, f"{name}/{task_name}"
    assert "defaultValue" not in spec["root"]["inputDefinitions"]["parameters"]["image"]


def test_nothing_is_installed_at_run_time(fresh):
    assert "pip install" not in fresh
    assert "packages_to_install" not in fresh


def test_every_step_has_requests_limits_a_deadline_and_retries(spec, kubernetes):
    for label, executor in spec["deploymentSpec"]["executors"].items():
        resources = executor["container"]["resources"]
        for name in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            assert resources[name], f"{label}: {name}"
        assert int(kubernetes[label]["activeDeadlineSeconds"]) >= 3600
    for name, group in dags(spec):
        for task_name, task in group["dag"]["tasks"].items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                retry = task["retryPolicy"]
                assert retry["maxRetryCount"] >= 2, f"{name}/{task_name}"
                assert retry["backoffFactor"] > 1
                assert retry["backoffDuration"] == "30s"
                # Argo retries nothing after this time, counted from the first attempt's start.
                label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
                deadline = int(kubernetes[label]["activeDeadlineSeconds"])
                longest = int(retry["backoffMaxDuration"].removesuffix("s"))
                assert longest >= deadline * (retry["maxRetryCount"] + 1), f"{name}/{task_name}"


def test_gpu_steps_and_they_alone_have_accelerator_shm_tolerations_and_a_node_selector(spec, kubernetes):
    executors = spec["deploymentSpec"]["executors"]
    assert set(executors) > GPU_STEPS
    for label, executor in executors.items():
        accelerator = executor["container"]["resources"].get("accelerator")
        mounts = kubernetes[label].get("emptyDirMounts", [])
        shm = [mount for mount in mounts if mount["mountPath"] == "/dev/shm" and mount["medium"] == "Memory"]
        if label in GPU_STEPS:
            assert accelerator == {
                "resourceCount": "{{$.inputs.parameters['pipelinechannel--gpus']}}",
                "resourceType": "nvidia.com/gpu",
                "type": "nvidia.com/gpu",
            }
            assert len(shm) == 1
            assert shm[0]["sizeLimit"]
            assert "nodeSelectorJson" in kubernetes[label]["nodeSelector"]
            taint, others = kubernetes[label]["tolerations"]
            assert taint == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
            assert "tolerationJson" in others
        else:
            assert accelerator is None
            assert not shm
            assert "nodeSelector" not in kubernetes[label]


def test_secrets_come_by_reference_alone(fresh, kubernetes):
    for label, settings in kubernetes.items():
        assert {secret["secretName"] for secret in settings["secretAsEnv"]} == {"pdnet-s3", "pdnet-mlflow"}, label
    for line in fresh.splitlines():
        assert not re.search(
            r"(?i)(secret|password|token|access_key_id)\w*['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9/+]{16,}", line
        )
    assert "env:" not in fresh  # no value is written into a container's environment


def test_pure_steps_are_cached_by_data_code_and_image(spec):
    for _, group in dags(spec):
        for name, task in group["dag"]["tasks"].items():
            component = spec["components"][task["componentRef"]["name"]]
            if "executorLabel" not in component:
                continue
            cached = task.get("cachingOptions", {}).get("enableCache", False)
            assert cached == (name not in NEVER_CACHED), name
            if cached:
                assert {"md5", "code", "image", "params"} <= set(task["inputs"]["parameters"])


@pytest.mark.parametrize(
    ("parameter", "name", "takers"),
    [
        ("promotion_policy", "policy", {"register", "register-2", "register-3"}),
        ("export_bounds", "bounds", {"export-onnx", "export-tensorrt"}),
    ],
)
def test_the_text_of_a_file_reaches_the_tasks_that_it_is_for_and_no_other(spec, parameter, name, takers):
    """Another text changes the cache key of these alone."""
    given = {"componentInputParameter": f"pipelinechannel--{parameter}"}
    tasks = {task: told for _, group in dags(spec) for task, told in group["dag"]["tasks"].items()}
    inputs = {
        task: {key for key, value in told["inputs"].get("parameters", {}).items() if value == given}
        for task, told in tasks.items()
        if "executorLabel" in spec["components"][told["componentRef"]["name"]]
    }
    assert {task: keys for task, keys in inputs.items() if keys} == {task: {name} for task in takers}
    root = spec["root"]["inputDefinitions"]["parameters"][parameter]
    assert root["defaultValue"] == ""


def test_data_travel_by_pointer(spec):
    """The data set is an artifact of one step, and every other takes that small file."""
    executors = spec["components"]["comp-data"]["outputDefinitions"]["artifacts"]
    assert set(executors) == {"dataset"}
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    for name in ("validate", "pretrain", "evaluate", "export-onnx", "report"):
        made = tasks[name]["inputs"]["artifacts"]["dataset"]["taskOutputArtifact"]
        assert made == {"outputArtifactKey": "dataset", "producerTask": "data"}


def test_the_workspace_is_shared_by_pods_on_several_nodes(fresh):
    workspace = compiled(fresh)[1]["pipelineConfig"]["workspace"]
    assert workspace["kubernetes"]["pvcSpecPatch"]["accessModes"] == ["ReadWriteMany"]
    assert re.fullmatch(r"\d+Gi", workspace["size"])


def test_a_run_ends_within_a_week(fresh):
    assert compiled(fresh)[1]["pipelineConfig"]["activeDeadlineSeconds"] == 7 * 24 * 3600


def test_training_hands_on_to_a_trainjob_what_it_was_given(spec):
    handed_on = {
        entry["field"]: entry.get("applyToTask", False)
        for entry in spec["components"]["comp-train"]["taskConfigPassthroughs"]
    }
    wanted = ("RESOURCES", "ENV", "KUBERNETES_NODE_SELECTOR", "KUBERNETES_TOLERATIONS", "KUBERNETES_VOLUMES")
    assert handed_on == dict.fromkeys(wanted, True)  # and it is given them itself: on one node it trains here
