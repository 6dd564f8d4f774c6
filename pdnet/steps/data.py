"""Step 1: the data set, in the version that the run is told."""

from __future__ import annotations

from pathlib import Path

from pdnet.data.versions import materialise


def data(*, md5: str, out: Path, remote: str = "", revision: str = "") -> None:
    """Bring a version of the data set from the DVC remote, once.

    Args:
        md5: of the data folder, as data.dvc gives it.
        out: folder for data/ and the data.dvc that names it; left alone where it holds that version already.
        remote: URL of the DVC remote; not needed where the cache that PDNET_DVC_CACHE names holds the version.
        revision: the git revision that tracks this version, for the record.

    Raises:
        DataError: no such version there, no access, or what came is not what the MD5 says.
        UnavailableError: DVC is not installed.
    """
    materialise(md5, out, remote=remote, revision=revision)
