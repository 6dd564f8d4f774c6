"""What is asked of the MLflow server over HTTP: whether it answers, and who may sign in."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from settings import PASSWORDS, PORT, StackError


def ask(port: int | str, path: str, user: str = "", password: str = "", body: Any = None) -> int:
    """The status that MLflow answers with; 0 where nothing answers."""
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def make_user(settings: Mapping[str, str]) -> None:
    """Make the pipelines' user where there is none, and see that both users can sign in.

    Raises:
        StackError: MLflow knows another password.
    """
    port, users = settings[PORT], "/api/2.0/mlflow/users"
    admin, pdnet = (settings[name] for name in PASSWORDS.values())
    if ask(port, f"{users}/get?username=pdnet", "admin", admin) == 404:
        status = ask(port, f"{users}/create", "admin", admin, {"username": "pdnet", "password": pdnet})
        if status != 200:
            raise StackError(f"MLflow does not make the user pdnet: it answers {status} (passwords have 12 characters)")
    for user, name in PASSWORDS.items():
        if (status := ask(port, f"{users}/current", user, settings[name])) != 200:
            why = f"it has another {name}, that of its first start" if status == 401 else f"it answers {status}"
            raise StackError(f"MLflow does not let {user} in: {why}")
