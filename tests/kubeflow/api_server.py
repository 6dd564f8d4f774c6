"""A stand-in for the API server of Kubeflow Pipelines 2.17, over HTTP, and for what of Kubernetes lies before it.

It has the routes of the v2beta1 API that the client asks for experiments and runs, and refuses what the real server
refuses, in its words: a pipeline that is none, parameters that are missing, of another type or unknown, a token that is
not known. A run passes through `frames`, one a look at it.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from kfp.pipeline_spec import pipeline_spec_pb2

PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
#: Codes of gRPC, which stand in the answers.
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13}
#: Which kind of JSON value a parameter type takes, and what the server calls it.
KINDS = {
    "NUMBER_INTEGER": ("number_value", "double or integer"),
    "NUMBER_DOUBLE": ("number_value", "double or integer"),
    "STRING": ("string_value", "string"),
    "BOOLEAN": ("bool_value", "bool"),
    "LIST": ("list_value", "list"),
    "STRUCT": ("struct_value", "struct"),
}


class RefusalError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Frame:
    """A run as one look at it finds it: its state, and those of the steps that have begun."""

    state: str
    steps: dict[str, str]
    errors: dict[str, str] | None = None


SUCCESS = [
    Frame("PENDING", {}),
    Frame("RUNNING", {"data": "RUNNING"}),
    Frame("RUNNING", {"data": "SUCCEEDED", "validate": "RUNNING"}),
    Frame("SUCCEEDED", {"data": "SUCCEEDED", "validate": "SUCCEEDED", "outcome": "SUCCEEDED"}),
]
FAILURE = [
    Frame("RUNNING", {"data": "SUCCEEDED", "train": "RUNNING"}),
    Frame("FAILED", {"data": "SUCCEEDED", "train": "FAILED", "outcome": "SUCCEEDED"}),
]


class PipelinesAPI:
    """The server, in a thread; use it in a `with` block.

    Attributes:
        token: bearer token that it wants, or None.
        refusal: status for a request without that token; 302 sends on to a login page, as an authenticating proxy does.
        several_users: an installation with profiles.
        frames: what the looks at a run find, one after the other; the last one stays.
        on_look: called with the number of each look at a run, before it is answered.
        kubernetes: the API is reached through the Kubernetes API's proxy alone.
        installed: that cluster has Kubeflow.
        secrets: status with which the Kubernetes API answers for a (namespace, Secret); 200 for others.
        faults: status and message for requests of a method and a kind of thing, as ("POST", "runs").
        page: status and text with which everything is answered: it is no such API at all.
        requests: (method, path) of each request.
        runs: the runs by their identifier, as they were submitted.
    """

    def __init__(self) -> None:
        self.token: str | None = None
        self.refusal = 401
        self.several_users = False
        self.frames = SUCCESS
        self.on_look: Callable[[int], None] = lambda look: None
        self.kubernetes = False
        self.installed = True
        self.secrets: dict[tuple[str, str], int] = {}
        self.faults: dict[tuple[str, str], tuple[int, str]] = {}
        self.page: tuple[int, str] | None = None
        self.requests: list[tuple[str, str]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, int] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.port = 0

    def __enter__(self) -> PipelinesAPI:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the port of before where there was one."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Handler", (_Handler,), {"api": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        """Go away."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        target = urlsplit(re.sub("//+", "/", path))
        self.requests.append((method, target.path))
        query = {key: values[0] for key, values in parse_qs(target.query).items()}
        if self.page:
            return self.page[0], {"Content-Type": "text/html; charset=utf-8"}, self.page[1].encode()
        if target.path == "/login":
            return 200, {"Content-Type": "text/html"}, b"<html><body><form>Log in</form></body></html>"
        if self.token is not None and headers.get("Authorization") != f"Bearer {self.token}":
            if self.refusal == 302:
                return 302, {"Location": f"{self.url}/login?rd={target.path}"}, b""
            return self._refused(self.refusal, "Request header error: there is no user identity header.")
        try:
            content = self._route(method, target.path, query, json.loads(body) if body else {})
        except RefusalError as error:
            return self._refused(error.status, str(error))
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def _refused(self, status: int, message: str) -> tuple[int, dict[str, str], bytes]:
        content = {"error": message, "code": CODES.get(status, 2), "message": message, "details": []}
        return status, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def _route(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        if self.kubernetes:
            if path.startswith(PROXY) and self.installed:
                path = path.removeprefix(PROXY)
            else:
                return self._kubernetes(path)
        elif path.startswith("/api/"):
            return self._kubernetes(path)
        if fault := self.faults.get((method, path.split("/")[3])):
            raise RefusalError(*fault)
        match method, path.removeprefix("/apis/v2beta1/").split("/"):
            case "GET", ["healthz"]:
                return {"commit_sha": "unknown", "tag_name": "2.17.0", "multi_user": self.several_users}
            case "GET", ["experiments"]:
                return {"experiments": list(self._experiments(query)), "total_size": len(self.experiments)}
            case "POST", ["experiments"]:
                return self._create_experiment(body)
            case "GET", ["experiments", identifier]:
                return self._known(self.experiments, identifier, "Experiment")
            case "GET", ["runs"]:
                return {"runs": [self._shown(run, self.frames[0]) for run in self.runs], "total_size": len(self.runs)}
            case "POST", ["runs"]:
                return self._create_run(body)
            case "GET", ["runs", identifier]:
                self._known(self.runs, identifier, "Run")
                look = self.looks[identifier]
                self.looks[identifier] += 1
                self.on_look(look)
                return self._shown(identifier, self.frames[min(look, len(self.frames) - 1)])
        raise RefusalError(404, "Not Found")

    def _kubernetes(self, path: str) -> Any:
        status = 404
        if found := re.fullmatch(r"/api/v1/namespaces/([^/]+)/secrets/([^/]+)", path):
            status = self.secrets.get((found[1], found[2]), 200)
        elif path == "/api/v1/namespaces/kubeflow/services/ml-pipeline":
            status = 200
        if status != 200:
            raise RefusalError(status, f"{path} not found" if status == 404 else f"{path} is forbidden")
        return {"apiVersion": "v1", "metadata": {"name": path.rpartition("/")[2]}}

    def _known(self, things: dict[str, dict[str, Any]], identifier: str, kind: str) -> dict[str, Any]:
        if identifier not in things:
            raise RefusalError(404, f"{kind} {identifier} not found.")
        return things[identifier]

    def _experiments(self, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        if self.several_users and not query.get("namespace"):
            raise RefusalError(400, "An experiment cannot have an empty namespace in multi-user mode")
        predicates = json.loads(query.get("filter") or "{}").get("predicates", [])
        for experiment in self.experiments.values():
            if all(experiment[wanted["key"]] == wanted["stringValue"] for wanted in predicates):
                yield experiment

    def _create_experiment(self, body: dict[str, Any]) -> dict[str, Any]:
        if not body.get("display_name"):
            raise RefusalError(400, "Experiment name is empty")
        if self.several_users and not body.get("namespace"):
            raise RefusalError(400, "An experiment cannot have an empty namespace in multi-user mode")
        identifier = str(uuid.uuid4())
        given = {key: body[key] for key in ("display_name", "description") if body.get(key)}
        self.experiments[identifier] = as_json(
            kfp_server_api.V2beta1Experiment(
                experiment_id=identifier,
                created_at=datetime.now(UTC),
                namespace=body.get("namespace") if self.several_users else "kubeflow",
                storage_state="AVAILABLE",
                **given,
            )
        )
        return self.experiments[identifier]

    def _create_run(self, body: dict[str, Any]) -> dict[str, Any]:
        if unknown := set(body) - set(kfp_server_api.V2beta1Run.attribute_map.values()):
            raise RefusalError(400, f"unknown fields: {', '.join(sorted(unknown))}")
        if not body.get("display_name"):
            raise RefusalError(400, "Run name cannot be empty")
        self._known(self.experiments, body.get("experiment_id", ""), "Experiment")
        validate(body.get("pipeline_spec") or {}, (body.get("runtime_config") or {}).get("parameters") or {})
        identifier = str(uuid.uuid4())
        self.runs[identifier] = body
        self.looks[identifier] = 0
        return self._shown(identifier, self.frames[0])

    def _shown(self, identifier: str, frame: Frame) -> dict[str, Any]:
        """A run as the server tells it, with the nodes of the workflow as tasks."""
        now = datetime.now(UTC)
        body = self.runs[identifier]
        ended = frame.state in ("SUCCEEDED", "FAILED", "CANCELED")
        nodes = {"pdnet-7k2xq": frame.state, "root": frame.state, "root-driver": "SUCCEEDED"} if frame.steps else {}
        nodes |= {"exit-handler-1": "RUNNING", "exit-handler-1-driver": "SUCCEEDED"} if frame.steps else {}
        listed = list(nodes.items())
        for step, state in frame.steps.items():
            listed += [(f"{step}-driver", "SUCCEEDED"), ("executor", state), ("executor(0)", state), (step, state)]
        error = kfp_server_api.GoogleRpcStatus
        tasks = [
            kfp_server_api.V2beta1PipelineTaskDetail(
                run_id=identifier,
                task_id=str(uuid.uuid4()),
                display_name=name,
                create_time=now,
                start_time=now,
                state=state,
                execution_id="0",
                error=error(code=2, message=frame.errors[name]) if frame.errors and name in frame.errors else None,
            )
            for name, state in listed
        ]
        return as_json(
            kfp_server_api.V2beta1Run(
                experiment_id=body["experiment_id"],
                run_id=identifier,
                display_name=body["display_name"],
                storage_state="AVAILABLE",
                pipeline_spec=body["pipeline_spec"],
                runtime_config=body["runtime_config"],
                service_account=body.get("service_account"),
                created_at=now,
                scheduled_at=now,
                finished_at=now if ended else datetime.fromtimestamp(0, UTC),
                state=frame.state,
                run_details=kfp_server_api.V2beta1RunDetails(task_details=tasks) if tasks else None,
            )
        )


def validate(package: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Refuse a pipeline that is none, and parameters that it does not take, as the server does."""
    pipeline = package.get("pipeline_spec", package)
    try:
        spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
        platform = json_format.ParseDict(package.get("platform_spec", {}), pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise RefusalError(400, f"invalid v2 pipeline spec: {error}") from None
    if spec.schema_version != "2.1.0":
        raise RefusalError(
            400, f"KFP only supports schema version 2.1.0, but the pipeline spec has {spec.schema_version}"
        )
    if not spec.pipeline_info.name:
        raise RefusalError(400, "invalid v2 pipeline spec: name is empty")
    if not spec.HasField("root"):
        raise RefusalError(400, "invalid v2 pipeline spec: root component is empty")
    if "platform_spec" in package and "kubernetes" not in platform.platforms:
        raise RefusalError(400, "no platform spec of Kubernetes")
    defined = spec.root.input_definitions.parameters
    for name, definition in defined.items():
        if name not in parameters:
            if not definition.is_optional and not definition.HasField("default_value"):
                raise RefusalError(
                    400, f"parameter {name} is not optional, yet has neither default value nor user provided value"
                )
            continue
        kind, called = KINDS[pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(definition.parameter_type)]
        if json_format.ParseDict(parameters[name], Value()).WhichOneof("kind") != kind:
            raise RefusalError(
                400,
                f"input parameter {name} requires type {called}, "
                f"but the parameter value is not of {called.partition(' ')[0]} value type",
            )
    if extra := [name for name in parameters if name not in defined]:
        raise RefusalError(400, f"parameter(s) provided are not required by pipeline: {', '.join(extra)}")


def as_json(model: Any) -> dict[str, Any]:
    """A model of the API as it goes over the wire."""
    content: dict[str, Any] = kfp_server_api.ApiClient().sanitize_for_serialization(model)
    return content


class _Handler(BaseHTTPRequestHandler):
    api: PipelinesAPI

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, content = self.api.answer(self.command, self.path, self.headers, body)
        with contextlib.suppress(ConnectionError):  # whoever asked is gone
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = _serve  # noqa: N815 - names of http.server

    def log_message(self, *_: object) -> None:
        """Say nothing."""
