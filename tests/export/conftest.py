"""One export of a network by the real steps, for all tests of this folder: it takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_profile import SIZE, decided_network, tiny_config

from pdnet import steps
from pdnet.steps.run_record import RunRecord
from pdnet.weights import save_model


@pytest.fixture(scope="session")
def finished(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`videos`, and the folders `train`, `evaluation` and `export`. Copy them to change them."""
    root = tmp_path_factory.mktemp("build")
    config = tiny_config()
    (root / "train").mkdir()
    save_model(root / "train" / "model.safetensors", decided_network(), {"size": SIZE})
    RunRecord("train", config, data={"videos": portraits}).write(root / "train")
    steps.evaluate(videos=portraits, model=root / "train", out=root / "evaluation", config=config)
    found = {"videos": portraits, "evaluation": root / "evaluation"}
    steps.export_onnx(**found, model=root / "train", out=root / "export", config=config)
    return found | {"train": root / "train", "export": root / "export"}
