"""Completes the bill of materials of an image: beside its Python packages, those of its Linux distribution."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def distribution_packages() -> list[dict[str, Any]]:
    """The operating system and its packages, as components."""
    system = platform.freedesktop_os_release()
    ident, version = system["ID"], system.get("VERSION_ID", "")
    components: list[dict[str, Any]] = [{"type": "operating-system", "name": ident, "version": version}]
    query = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    for line in subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines():  # noqa: S603
        name, release, architecture = line.split("\t")
        purl = f"pkg:deb/{ident}/{name}@{quote(release, safe='.-')}?arch={architecture}&distro={ident}-{version}"
        components.append({"bom-ref": purl, "type": "library", "name": name, "version": release, "purl": purl})
    return components


def main(stage: str, python_packages: Path, out: Path) -> None:
    """Write the bill of materials to `out`."""
    bom = json.loads(python_packages.read_text(encoding="utf-8"))
    image = {"bom-ref": "image", "type": "container", "name": f"pdnet:{stage}"}
    bom["metadata"]["component"] = image | {"version": os.environ.get("PDNET_GIT_COMMIT", "")}
    bom["components"] += distribution_packages()
    text = json.dumps(bom, indent=1)
    if error := JsonStrictValidator(SchemaVersion.from_version(bom["specVersion"])).validate_str(text):
        sys.exit(f"sbom.py: not CycloneDX {bom['specVersion']}: {error}")
    out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
