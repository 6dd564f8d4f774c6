"""Versions of the registered model, as they are looked up and fetched."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pdnet.errors import TrackingError, UnknownVersionError
from pdnet.files import atomic_path
from pdnet.tracking.release import RELEASE, Release, read_release
from pdnet.tracking.store import Store

_NAME = re.compile(r"(?P<model>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    Attributes:
        model: name of the registered model.
        version: its number.
        aliases: of this version, in order of name.
        tags: what the registry says of it.
        run_id: the MLflow run of the model; None where it was registered by other means.
        created: when.
        description: the model card.
        source: what MLflow downloads.
    """

    model: str
    version: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str | None
    created: datetime
    description: str
    source: str

    @property
    def name(self) -> str:
        """As people write it: `pdnet/3`."""
        return f"{self.model}/{self.version}"


def find_version(store: Store, name: str) -> Version:
    """Look a version up.

    Args:
        store: the registry.
        name: `pdnet@champion` or `pdnet/3`.

    Raises:
        UnknownVersionError: there is no such model, alias or version; says what there is instead.
    """
    if not (parts := _NAME.fullmatch(name)):
        raise UnknownVersionError(
            f"'{name}': expected a version as MODEL@ALIAS or MODEL/NUMBER, such as pdnet@champion"
        )
    model, alias, number = parts["model"], parts["alias"], parts["version"]
    registered = registered_model(store, model)
    if registered is None:
        known = ", ".join(sorted(str(each.name) for each in store.client.search_registered_models())) or "none"
        raise UnknownVersionError(f"MLflow at {store.uri}: no registered model '{model}'; there is: {known}")
    if alias is not None and (number := registered.aliases.get(alias)) is None:
        known = ", ".join(f"@{key} (version {value})" for key, value in sorted(registered.aliases.items())) or "none"
        raise UnknownVersionError(f"MLflow at {store.uri}: {model} has no alias '{alias}'; there is: {known}")
    found = {str(each.version): each for each in store.client.search_model_versions(f"name = '{model}'")}
    if str(number) not in found:
        known = ", ".join(sorted(found, key=int)) or "none"
        raise UnknownVersionError(f"MLflow at {store.uri}: {model} has no version {number}; there is: {known}")
    return _version(found[str(number)], registered.aliases)


def registered_model(store: Store, model: str) -> Any:
    """MLflow's entity of a registered model; None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def download_release(store: Store, version: Version, out: Path) -> Release:
    """Fetch the release of a version.

    Args:
        store: the registry.
        version: which one.
        out: folder to make.

    Raises:
        TrackingError: the files cannot be had.
        DataError: the version holds no release of pdnet.
    """
    download(store, version, out, f"artifacts/{RELEASE}")
    return read_release(out)


def download(store: Store, version: Version, out: Path, path: str = "") -> None:
    """Fetch the files of a version, or one file or folder of it.

    Raises:
        TrackingError: the files cannot be had.
    """
    import mlflow.artifacts

    with atomic_path(out) as fresh, tempfile.TemporaryDirectory(dir=fresh.parent) as scratch:
        uri = "/".join(["models:", version.model, version.version, path]).rstrip("/")
        try:
            place = store.client.tracking_uri
            got = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch, tracking_uri=place)
        except Exception as error:  # stores are plug-ins with errors of many kinds
            reason = str(error).strip().splitlines()[0]
            raise TrackingError(
                f"{version.name}: {path or 'its files'} cannot be had, or it was not registered by pdnet ({reason})"
            ) from None
        Path(got).rename(fresh)


def _version(entity: Any, aliases: dict[str, Any]) -> Version:
    number = str(entity.version)
    return Version(
        model=str(entity.name),
        version=number,
        aliases=tuple(sorted(alias for alias, holder in aliases.items() if str(holder) == number)),
        tags=dict(entity.tags),
        run_id=entity.run_id or None,
        created=datetime.fromtimestamp(entity.creation_timestamp / 1000, UTC),
        description=entity.description or "",
        source=str(entity.source),
    )
