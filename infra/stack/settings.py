"""What the stack is told: from the environment, else from a file of secrets that nobody else can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

PASSWORDS = {"admin": "PDNET_STACK_ADMIN_PASSWORD", "pdnet": "PDNET_STACK_USER_PASSWORD"}
DATABASE_PASSWORD, FLASK_KEY = "PDNET_STACK_POSTGRES_PASSWORD", "PDNET_STACK_FLASK_KEY"
S3_KEY, S3_SECRET = "PDNET_S3_ACCESS_KEY", "PDNET_S3_SECRET_KEY"
SECRETS = (*PASSWORDS.values(), DATABASE_PASSWORD, FLASK_KEY, S3_KEY, S3_SECRET)
PORT, IMAGE = "PDNET_STACK_PORT", "PDNET_STACK_IMAGE"
ENDPOINT, BUCKET, REGION = "PDNET_S3_ENDPOINT", "PDNET_S3_BUCKET", "PDNET_S3_REGION"
DEFAULTS = {PORT: "5000", IMAGE: "pdnet:cpu", ENDPOINT: "", BUCKET: "pdnet-mlflow", REGION: "us-east-1"}


class StackError(Exception):
    """What a person has to see to, in one line."""

    exit_code = 2


class MissingError(StackError):
    """A program or library that this machine lacks."""

    exit_code = 4


def read_settings(folder: Path) -> dict[str, str]:
    """What the environment says, else secrets.env; a secret that neither has is drawn and kept there.

    Raises:
        StackError: the keys of somebody else's S3 server would have to be guessed, or the port is not a number.
    """
    file = folder / "secrets.env"
    settings = DEFAULTS | kept_secrets(file)
    settings |= {name: os.environ[name] for name in (*SECRETS, *DEFAULTS) if os.environ.get(name)}
    fresh = {name: secrets.token_hex(20) for name in SECRETS if not settings.get(name)}
    if settings["PDNET_S3_ENDPOINT"] and not fresh.keys().isdisjoint({S3_KEY, S3_SECRET}):
        raise StackError(f"PDNET_S3_ENDPOINT names a server of your own: {S3_KEY} and {S3_SECRET} must be set too")
    if not settings["PDNET_STACK_PORT"].isdecimal():
        raise StackError(f"PDNET_STACK_PORT={settings['PDNET_STACK_PORT']}: expected a number")
    if fresh:
        write_secret(file, "".join(f"{name}={value}\n" for name, value in fresh.items()))
    return settings | fresh


def kept_secrets(file: Path) -> dict[str, str]:
    """The lines NAME=value of a file; none where there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def write_secret(file: Path, text: str) -> None:
    """Append to a file that nobody else can read."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as out:
        out.write(text)


def forget_other_servers() -> None:
    """Take from the environment what would lead the services to other servers than their own."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "PDNET_", "PG", "RCLONE_")) and name != "AWS_CA_BUNDLE":
            del os.environ[name]
    direct = ",".join(filter(None, ("127.0.0.1", os.environ.get("no_proxy") or os.environ.get("NO_PROXY"))))
    os.environ.update(no_proxy=direct, NO_PROXY=direct, DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true")
