"""The training task with everything before it done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny_profile import MODEL, tiny_params

from pdnet.model import ModelConfig, PDNet
from pdnet.weights import save_model


class Training:
    """Ten iterations (image, video, video, image, video, twice), each with a checkpoint."""

    SCRIPT = """
import json, sys
from pathlib import Path
from pdnet.container import task
from pdnet.steps import train
given = json.loads(sys.argv[1])
with task("train", params=given["params"], workspace=given["workspace"]) as run:
    paths = {name: Path(path) for name, path in given["paths"].items()}
    run.launch(train, processes=given["processes"], **paths, checkpoints=run.checkpoints)
"""

    def __init__(self, root: Path, portraits: Path, **options: Any) -> None:
        self.workspace, self.init, self.out = root / "workspace", root / "init", root / "out"
        self.init.mkdir()
        (self.init / "run.json").write_text(json.dumps({"step": "pretrain", "data": {}, "parents": {}}))
        torch.manual_seed(0)
        save_model(self.init / "model.safetensors", PDNet(ModelConfig(**MODEL)))
        options = {"epochs": 2, "batch_size": 4, "image_batch_size": 2, "checkpoint_seconds": 0, **options}
        self.params = tiny_params(train=options)
        self.data = {"videos": portraits, "images": portraits / "Stills"}

    def run(self, processes: int) -> None:
        """To the end."""
        process = self.started(processes)
        said = process.communicate()[1]
        assert process.returncode == 0, said

    def started(self, processes: int) -> subprocess.Popen[str]:
        """As a container starts it."""
        paths = {name: str(path) for name, path in (self.data | {"init": self.init, "out": self.out}).items()}
        given = {
            "params": yaml.safe_dump(self.params),
            "workspace": str(self.workspace),
            "processes": processes,
            "paths": paths,
        }
        command = [sys.executable, "-c", self.SCRIPT, json.dumps(given)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
