"""A registered model behind `mlflow models serve`, asked over HTTP by a client that knows nothing of pdnet."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_served_model import decode, encode, make_video, session_masks, write_release

from pdnet.data.io import read_image
from pdnet.inference.onnx_backend import OnnxModel, PairBackend
from pdnet.inference.session import PortraitSession
from pdnet.tracking.pyfunc import save_served_model
from pdnet.tracking.store import open_store

MODEL = "pdnet"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("served"), references=2, streaming=False)


@pytest.fixture(scope="module")
def registry(release: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An embedded store whose model has a champion."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        with open_store() as store:
            client = store.client
            save_served_model(folder / "model", release)
            experiment = client.create_experiment("served", artifact_location=store.artifact_location)
            run = client.create_run(experiment)
            logged = client.create_logged_model(experiment, name=MODEL, source_run_id=run.info.run_id)
            client.log_model_artifacts(logged.model_id, str(folder / "model"))
            client.finalize_logged_model(logged.model_id, "READY")
            client.create_registered_model(MODEL)
            version = client.create_model_version(
                MODEL, f"models:/{logged.model_id}", run.info.run_id, model_id=logged.model_id
            )
            client.set_registered_model_alias(MODEL, "champion", version.version)
    return uri


@contextlib.contextmanager
def serving(registry: str, folder: Path, *, manager: str, patience: float, **environment: str) -> Iterator[str]:
    """Run `mlflow models serve`; yield the server's address, and end it with all that it has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}@champion"]
    command += ["--env-manager", manager, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": "", "MLFLOW_TRACKING_URI": registry}
    with (folder / "server.log").open("w+") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet | environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/ping", server, log, patience)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Any, patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    log.seek(0)
    pytest.fail(f"no server ({server.poll()}):\n{log.read()[-4000:]}")


@pytest.fixture(scope="module")
def server(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(registry, tmp_path_factory.mktemp("server"), manager="local", patience=120) as address:
        yield address


def post(address: str, content: bytes, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(address, content, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def ask(address: str, **request: Any) -> list[dict[str, Any]]:
    status, answer = post(address, json.dumps(request).encode())
    assert status == 200, answer
    return list(answer["predictions"])


def refusal(address: str, **request: Any) -> str:
    status, answer = post(address, json.dumps(request).encode())
    assert status == 400, answer
    return str(answer["message"])


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def masks_of(rows: list[dict[str, Any]]) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(row["mask"])))) for row in rows]


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return len(found) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.fixture(scope="module")
def drawn(portraits: Path) -> list[np.ndarray]:
    return [read_image(path) for path in sorted((portraits / "Keyframes").rglob("*.jpg"))][:8]


@pytest.fixture(scope="module")
def wanted(release: Path) -> Any:
    """The masks of the package."""
    model = OnnxModel(release / "pdnet.onnx")
    return lambda frames: session_masks(lambda first: PortraitSession(PairBackend(model), reference=first), frames)


def test_frames(server: str, drawn: list[np.ndarray], wanted: Any):
    table = {"columns": ["frame"], "data": [[text(encode(frame))] for frame in drawn]}
    rows = ask(server, dataframe_split=table)
    assert [(row["clip"], row["frame"]) for row in rows] == [(0, position) for position in range(8)]
    assert same(masks_of(rows), wanted(drawn))
    cells = [cell for (cell,) in table["data"]]
    assert same(masks_of(ask(server, dataframe_records=[{"frame": cell} for cell in cells])), wanted(drawn))
    assert same(masks_of(ask(server, inputs={"frame": cells})), wanted(drawn))
    assert same(masks_of(ask(server, instances=[{"frame": cell} for cell in cells])), wanted(drawn))
    levels = masks_of(ask(server, dataframe_split=table, params={"output": "probability"}))
    assert same([(level >= 128).astype(np.uint8) * np.uint8(255) for level in levels], wanted(drawn))
    assert len(np.unique(levels)) > 20


def test_videos(server: str, drawn: list[np.ndarray], wanted: Any, tmp_path: Path):
    clips = [make_video(tmp_path / "a.mp4", drawn), make_video(tmp_path / "b.webm", drawn[:2], codec="libvpx-vp9")]
    rows = ask(server, dataframe_split={"columns": ["clip"], "data": [[text(clip)] for clip in clips]})
    assert [(row["clip"], row["frame"]) for row in rows] == [*((0, n) for n in range(8)), (1, 0), (1, 1)]
    assert same(masks_of(rows), wanted(decode(clips[0])) + wanted(decode(clips[1])))


def test_parquet_is_smaller_and_the_same(server: str, drawn: list[np.ndarray], wanted: Any):
    table = io.BytesIO()
    pd.DataFrame({"frame": [encode(frame) for frame in drawn]}).to_parquet(table)
    status, answer = post(server, table.getvalue(), "application/vnd.apache.parquet")
    assert status == 200, answer
    assert same(masks_of(answer["predictions"]), wanted(drawn))


def test_the_models_own_example_is_answered(server: str, registry: str):
    example = Path(registry.removeprefix("sqlite:///")).parent / "model" / "serving_input_example.json"
    status, answer = post(server, example.read_bytes())
    assert status == 200, answer
    assert masks_of(answer["predictions"])[0].shape == (120, 160)


def test_a_bad_request_is_told_why_and_the_server_lives(
    server: str, drawn: list[np.ndarray], wanted: Any, tmp_path: Path
):
    good, clip = text(encode(drawn[0])), make_video(tmp_path / "a.mp4", drawn, movflags="faststart")
    both = {"columns": ["frame", "clip"], "data": [[good, good]]}
    assert "the table has both columns `frame` and `clip`; expected one:" in refusal(server, dataframe_split=both)
    other = {"columns": ["image"], "data": [[good]]}
    assert "the table has neither a column `frame` nor" in refusal(server, dataframe_split=other)
    broken = {"columns": ["frame"], "data": [[good], [text(b"no image at all")]]}
    message = refusal(server, dataframe_split=broken)
    assert message.endswith(
        "row 1 of `frame`: not an image (15 bytes); expected an encoded image (JPEG, PNG, WebP, BMP)"
    )
    cut = {"columns": ["clip"], "data": [[text(clip[: len(clip) // 2])]]}
    assert "row 0 of `clip`: cut off: " in refusal(server, dataframe_split=cut)
    frames = {"columns": ["frame"], "data": [[good]]}
    message = refusal(server, dataframe_split=frames, params={"output": "rgba"})
    assert message.endswith("parameter `output` is 'rgba'; expected mask or probability")
    for nothing in (
        {"columns": ["frame"], "data": []},
        {"columns": [], "data": []},
        {"columns": ["frame"], "data": [[None]]},
    ):
        assert refusal(server, dataframe_split=nothing)
    assert post(server, b"no JSON")[0] == 400
    assert same(masks_of(ask(server, dataframe_split=frames)), wanted(drawn[:1]))


@pytest.mark.slow
def test_the_pinned_requirements_are_enough(registry: str, drawn: list[np.ndarray], wanted: Any, tmp_path: Path):
    """In an environment that holds what requirements.txt names and nothing else; installing takes minutes."""
    try:
        socket.create_connection(("pypi.org", 443), timeout=10).close()
    except OSError as error:
        pytest.skip(f"pypi.org cannot be reached ({error})")
    places = {
        "MLFLOW_ENV_ROOT": str(tmp_path / "environments"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with serving(registry, tmp_path, manager="uv", patience=1200, **places) as address:
        clip = make_video(tmp_path / "a.mp4", drawn)
        rows = ask(address, dataframe_split={"columns": ["clip"], "data": [[text(clip)]]})
        assert same(masks_of(rows), wanted(decode(clip)))
    (python,) = (tmp_path / "environments").rglob("bin/python")
    listed = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "freeze", "--python", python], capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0] for line in listed.stdout.split()}
    assert {"av", "mlflow", "onnxruntime"} <= names
    assert not {"pdnet", "torch", "torchvision", "onnx"} & names
