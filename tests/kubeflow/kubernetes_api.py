"""A server that plays the part of the Kubernetes API that TrainJobs need, for pods that run it as theirs."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

TOKEN = "token-of-the-service-account"
PATH = re.compile(r"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/pdnet/trainjobs(?:/([\w-]+))?")


class KubernetesApi(ThreadingHTTPServer):
    """TrainJobs by name, and what the server does with them.

    Attributes:
        jobs: what was created.
        made: names of all that ever was.
        asked: the requests, as `GET` and so on.
        states: what successive looks at a job find: `Running`, or the type of a condition, with its message; a status
            to refuse with; None to hang up. The last one stays.
        refusal: status and message with which every creation is answered.
        shown: called with a job and its state before it is shown.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.made: list[str] = []
        self.asked: list[str] = []
        self.states: list[tuple[str, str] | int | None] = [("Complete", "")]
        self.refusal: tuple[int, str] | None = None
        self.shown: Callable[[dict[str, Any], str], None] = lambda job, state: None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class Handler(BaseHTTPRequestHandler):
    server: KubernetesApi

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        if self.accepted() is not None:
            if self.server.refusal:
                self.refuse(*self.server.refusal)
            elif name in self.server.jobs:
                self.refuse(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
            else:
                self.server.jobs[name] = body
                self.server.made.append(name)
                self.answer(201, body)

    def do_GET(self) -> None:
        job = self.job()
        if job is None:
            return
        states = self.server.states
        state = states.pop(0) if len(states) > 1 else states[0]
        if state is None:
            self.close_connection = True
        elif isinstance(state, int):
            self.refuse(state, "the server is currently unable to handle the request")
        else:
            kind, message = state
            self.server.shown(job, kind)
            conditions = [{"type": "Suspended", "status": "False", "reason": "Resumed", "message": ""}]
            if kind != "Running":
                conditions.append({"type": kind, "status": "True", "reason": kind, "message": message})
            self.answer(200, job | {"status": {"conditions": conditions}})

    def do_DELETE(self) -> None:
        if (job := self.job()) is not None:
            del self.server.jobs[job["metadata"]["name"]]
            self.answer(200, {"kind": "Status", "status": "Success"})

    def job(self) -> dict[str, Any] | None:
        name = self.accepted()
        if name and name not in self.server.jobs:
            self.refuse(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
        return self.server.jobs.get(name) if name else None

    def accepted(self) -> str | None:
        """The name in the path; None when the request was refused."""
        self.server.asked.append(self.command)
        if self.headers["Authorization"] != f"bearer {TOKEN}":
            self.refuse(401, "Unauthorized")
        elif not (path := PATH.fullmatch(self.path)):
            self.refuse(404, "the server could not find the requested resource")
        else:
            return path[1] or ""
        return None

    def refuse(self, code: int, message: str) -> None:
        self.answer(code, {"kind": "Status", "status": "Failure", "code": code, "message": message})

    def answer(self, code: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def in_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """Let this process be one of a pod in the namespace `pdnet`."""
    from kubernetes.config import incluster_config

    from pdnet import trainjob

    certificate, key = folder / "ca.crt", folder / "key.pem"
    write_certificate(certificate, key)
    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text("pdnet")
    server = KubernetesApi()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    host, port = server.server_address[:2]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(host))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
    monkeypatch.setattr(trainjob, "_NAMESPACE", folder / "namespace")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_certificate(certificate: Path, key: Path) -> None:
    """One that signs itself, for 127.0.0.1."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
