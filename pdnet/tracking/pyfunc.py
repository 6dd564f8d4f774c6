"""A release becomes an MLflow model that `mlflow models serve` can serve."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pdnet.errors import ExportError
from pdnet.files import file_digest
from pdnet.tracking.release import RELEASE

#: The file that MLflow copies into the model and runs.
SCRIPT = Path(__file__).with_name("served_model.py")
#: What the script imports. MLflow installs these, pinned, in the environment that it serves the model in.
LIBRARIES = ("av", "mlflow", "numpy", "onnxruntime", "pandas", "pillow")

#: Where the release is in the model's folder.
RELEASE_PATH = Path("artifacts", RELEASE)

#: Portrait from this probability on, where the release's configuration names no `evaluation.threshold`.
_THRESHOLD = 0.5
#: A request may not ask for more: pixels of a frame (8K), frames of a clip (some 5 minutes at 30 a second), frames of
#: all its clips, and bytes of all its masks, of which the server makes several copies on the way out.
_LARGEST_FRAME = 8192 * 4320
_LONGEST_CLIP = 10_000
_LONGEST_REQUEST = 10_000
_LARGEST_ANSWER = 256 * 2**20


def save_served_model(path: Path, release: Path) -> None:
    """Write an MLflow pyfunc model that segments with the release's ONNX graph, the release inside it.

    The model is code (`served_model.py`) and data, without pickle. It says nothing of this machine's folders. Its
    input example, a drawn portrait, has gone through it before this returns, as a server would send it.

    Args:
        path: folder to make.
        release: a release (`pdnet.tracking.release`), in a folder called `release`; becomes `artifacts/release`, byte
            for byte.

    Raises:
        ExportError: the model does not answer its own example.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    assert release.name == RELEASE, "MLflow names an artifact after its folder"
    config: dict[str, Any] = yaml.safe_load((release / "params.yaml").read_text(encoding="utf-8"))
    model = Model()
    with _no_uv_project():
        mlflow.pyfunc.save_model(
            path,
            mlflow_model=model,
            python_model=SCRIPT,
            artifacts={RELEASE: release.absolute().as_posix()},
            signature=_signature(),
            input_example=_example(),
            pip_requirements=[f"{library}=={version(library)}" for library in LIBRARIES],
            model_config={
                "threshold": float((config.get("evaluation") or {}).get("threshold", _THRESHOLD)),
                "largest_frame": _LARGEST_FRAME,
                "longest_clip": _LONGEST_CLIP,
                "longest_request": _LONGEST_REQUEST,
                "largest_answer": _LARGEST_ANSWER,
            },
        )
    _forget_folders(model, path)
    _try_example(path)


def served_digest(model: Path) -> str:
    """SHA-256 over all files of a model but those of the release, which lists its own."""
    names = (path.relative_to(model) for path in model.rglob("*") if path.is_file())
    # MLflow writes the latter beside the model where it downloads one.
    ours = sorted(name for name in names if RELEASE_PATH not in name.parents and name.name != "registered_model_meta")
    listing = {name.as_posix(): file_digest(model / name) for name in ours}
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()


def draw_portrait() -> bytes:
    """A head on shoulders before a wall, 160x120, as JPEG: an example that shows nobody and needs no data."""
    y, x = np.mgrid[:120, :160].astype(np.float32)
    picture = np.empty((120, 160, 3), np.uint8)
    picture[:] = (110 + 30 * np.sin(x / 9 + y / 25))[..., None]
    picture[((x - 80) / 52) ** 2 + ((y - 125) / 48) ** 2 < 1] = (60, 80, 140)
    picture[((x - 80) / 22) ** 2 + ((y - 52) / 28) ** 2 < 1] = (224, 178, 148)
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue()


def _example() -> Any:
    import pandas as pd

    return pd.DataFrame({"frame": [draw_portrait()]})


def _signature() -> Any:
    """What a request and its answer look like; see `served_model.py`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, name, required=False) for name in ("frame", "clip")]),
        outputs=Schema(
            [ColSpec(DataType.long, "clip"), ColSpec(DataType.long, "frame"), ColSpec(DataType.binary, "mask")]
        ),
        params=ParamSchema([ParamSpec("output", DataType.string, "mask")]),
    )


def _forget_folders(model: Any, path: Path) -> None:
    """Leave out of the file `MLmodel` where the script and the release were on this machine."""
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = SCRIPT.name
    flavor["artifacts"][RELEASE]["uri"] = RELEASE
    model.save(path / "MLmodel")


def _try_example(path: Path) -> None:
    """Load the model and put its example to it.

    Raises:
        ExportError: there is no mask of the example's size in the answer, or no answer.
    """
    import mlflow.pyfunc

    try:
        answer = mlflow.pyfunc.load_model(str(path)).predict(_example())
        with Image.open(io.BytesIO(answer.loc[0, "mask"])) as mask:
            assert mask.size == (160, 120)
    except Exception as error:  # MLflow, ONNX Runtime and the script have errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(f"the model cannot be served: it fails on its own example ({reason})") from error
    shutil.rmtree(path / "__pycache__", ignore_errors=True)  # of the script


@contextlib.contextmanager
def _no_uv_project() -> Iterator[None]:
    """Keep MLflow from taking the uv project of the working folder, if there is one, for the model's."""
    name = "MLFLOW_UV_AUTO_DETECT"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
