"""A registered version as a Triton model repository."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pdnet.errors import DataError
from pdnet.export.triton import write_repository
from pdnet.tracking.release import damage
from pdnet.tracking.store import open_store
from pdnet.tracking.versions import download_release, find_version


def export_triton(*, version: str, out: Path) -> str:
    """Write a registered version as a Triton model repository.

    The registry is MLFLOW_TRACKING_URI, or `sqlite:///mlflow.db` in the working folder.

    Args:
        version: a registered version, such as pdnet@champion or pdnet/3.
        out: folder for reference_encoder/, segmenter/, README.md.

    Returns:
        What was written.

    Raises:
        TrackingError: the store does not answer, or has no such version.
        DataError: the version is no release, or damaged.
        ExportError: the version has no streaming pair.
    """
    with tempfile.TemporaryDirectory() as folder:
        with open_store(write=False) as store:
            found = find_version(store, version)
            release = download_release(store, found, Path(folder) / "release")
        if broken := damage(release):
            raise DataError(f"{found.name}: not the files that were registered: {'; '.join(broken)}")
        write_repository(release.folder, out, model=found.model, version=found.version)
    return f"{out}: {found.name} as a Triton model repository; {out / 'README.md'} tells how to serve it"
