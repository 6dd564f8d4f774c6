"""What the registry tells of a version: every figure here is one that `finished_run` or the fixture put there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from finished_run import SIZE, write_finished_run, write_weights
from onnx import TensorProto, helper

from pdnet.cli import main
from pdnet.config import Config, config_hash, to_mapping
from pdnet.data.config import DataConfig
from pdnet.errors import DataError, TrackingError
from pdnet.files import file_digest, read_json, write_json
from pdnet.steps.show_lineage import show_lineage
from pdnet.tracking import Registration, TrackingConfig, register_model
from pdnet.tracking.aliases import carry_out, current_aliases, promotion, refusal, rollback
from pdnet.tracking.lineage import data_commands, differences
from pdnet.tracking.promotion_log import read_log
from pdnet.tracking.store import open_store
from pdnet.training.config import PretrainConfig, TrainConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISION = "fedcba9876543210fedcba9876543210fedcba98"
IMAGE = "registry.example.org/pdnet@sha256:" + "4" * 64
VIDEOS, IMAGES, DVC = ("1" * 32 + ".dir", "2" * 32 + ".dir", "3" * 32 + ".dir")


GRAPHS = ("pdnet.onnx", "reference_encoder.onnx", "segmenter.onnx")
WHERE = "--remote URL --out DIR"
TRACKING = TrackingConfig(experiment="tiny", model="tiny")
#: Six values unlike the paper's.
CHANGED = Config(
    seed=7,
    data=DataConfig(size=225),
    pretrain=PretrainConfig(weights="none"),
    train=TrainConfig(clip_grad_norm=1.0),
    tracking=TRACKING,
)


@dataclass(frozen=True)
class Registry:
    """Three versions of `tiny`: 1 the champion again after 2 was rolled back, 3 made by other means.

    Attributes:
        database: the store.
        first: version 1, trained by the paper's recipe with uncommitted changes.
        second: version 2, trained in a container, with streaming graphs and an engine.
        folders: of version 2.
    """

    database: Path
    first: Registration
    second: Registration
    folders: dict[str, Path]

    @property
    def release(self) -> Path:
        """The files of version 2 in the store."""
        return Path(self.second.model_artifact_uri.removeprefix("file://")) / "artifacts" / "release"


@pytest.fixture(scope="module")
def registry(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    root = tmp_path_factory.mktemp("registry")
    database = root / "mlflow.db"
    shutil.copyfile(empty_database, database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
        patch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
        first = register(write_finished_run(root / "first"), Config(tracking=TRACKING))
        folders = write_second_run(root / "second")
        second = register(folders, CHANGED)
        with open_store() as store:
            store.client.create_model_version("tiny", source=(root / "nothing").as_uri())
            reasons = ["J&F 86.00, the first champion"]
            carry_out(store, TRACKING, promotion("tiny", "1", reasons, champion=None, facts={"reasons": reasons}))
            carry_out(store, TRACKING, promotion("tiny", "2", ["a lead of 3.00"], champion="1", facts={}))
            reasons = ["dance is 9.00 worse", "too slow"]
            carry_out(store, TRACKING, refusal("tiny", "1", reasons, champion="2", facts={"reasons": reasons}))
            aliases, log = current_aliases(store, "tiny"), read_log(store, "tiny")
            carry_out(store, TRACKING, rollback("tiny", aliases, log, {"1", "2"}))
        yield Registry(database, first, second, folders)


def register(folders: dict[str, Path], config: Config) -> Registration:
    return register_model(
        config=to_mapping(config), config_hash=config_hash(config), **folders, tracking=config.tracking
    )


def write_second_run(root: Path) -> dict[str, Path]:
    """A run in a container, whose network streams and has an engine."""
    folders = write_finished_run(root)
    (folders["pretrain"] / "model.safetensors").write_text("other weights of pretrain")
    write_weights(folders, b"other weights of train")
    for name, folder in folders.items():
        where = {"image": IMAGE, "git_dirty": False, "data_revision": REVISION, "git_commit": COMMIT}
        write_json(folder / "run.json", read_json(folder / "run.json") | where)
        if name == "export":
            write_json(folder / "run.json", read_json(folder / "run.json") | {"git_commit": REVISION, "seconds": 4000})
    export, files = folders["export"], {}
    for name, model in streaming_graphs().items():
        onnx.save(model, export / name)
        files[name] = file_digest(export / name)
    parity = read_json(export / "parity.json")
    streaming = {"max_probability_difference": 2e-4, "mean_probability_difference": 1e-6, "mask_agreement": 0.995}
    parity["streaming"] = streaming | {"onnx": {"jf_mean": 0.858}, "files": files}
    write_json(export / "parity.json", parity)
    folders["tensorrt"] = root / "tensorrt"
    folders["tensorrt"].mkdir()
    shutil.copyfile(export / "run.json", folders["tensorrt"] / "run.json")
    (folders["tensorrt"] / "pdnet.engine").write_text("a plan")
    write_json(
        folders["tensorrt"] / "parity.json",
        {key: value for key, value in parity.items() if key != "streaming"}
        | {
            "max_probability_difference": 5e-4,
            "tensorrt": {"jf_mean": 0.857},
            "sha256": file_digest(folders["tensorrt"] / "pdnet.engine"),
            "onnx_sha256": parity["sha256"],
            "device": "Example GPU",
        },
    )
    return folders


def streaming_graphs() -> dict[str, onnx.ModelProto]:
    """A pair that streams what the pair graph of a finished run computes; key and value are half the image each."""
    image, features = ["batch", 3, SIZE, SIZE], ["batch", 1, 3, SIZE, SIZE]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    encode = [
        helper.make_node("Mul", ["image", "half"], ["halved"]),
        helper.make_node("Unsqueeze", ["halved", "axis"], ["key"]),
        helper.make_node("Identity", ["key"], ["value"]),
    ]
    segment = [
        helper.make_node("Add", ["key", "value"], ["frames"]),
        helper.make_node("Squeeze", ["frames", "axis"], ["reference"]),
        helper.make_node("Sub", ["image", "reference"], ["difference"]),
        helper.make_node("ReduceMean", ["difference", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sigmoid", ["mean"], ["probability"]),
    ]
    pair = {
        "reference_encoder.onnx": (encode, {"image": image}, {"key": features, "value": features}),
        "segmenter.onnx": (
            segment,
            {"image": image, "key": features, "value": features},
            {"probability": ["batch", 1, SIZE, SIZE]},
        ),
    }
    models = {}
    for name, (nodes, *ends) in pair.items():
        inputs, outputs = (
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in end.items()] for end in ends
        )
        constants = [tensor for tensor in (axis, half) if any(tensor.name in node.input for node in nodes)]
        graph = helper.make_graph(nodes, "half", inputs, outputs, initializer=constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        model.metadata_props.add(key="references", value="1")
        models[name] = model
    return models


def lineage(version: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(show_lineage(version=version, json=True))
    return facts


def short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    """Another content of a file, or none, while the block runs."""
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


# What is told


def test_the_text_of_a_version(registry: Registry) -> None:
    text = show_lineage(version="tiny/2")
    facts = lineage("tiny/2")
    created, log = facts["version"]["created"], [entry["at"] for entry in facts["promotions"]]
    at = [f"{moment[:10]} {moment[11:16]}" for moment in (created, *log)]
    who = f"alice@{socket.gethostname()}"
    digests = [file_digest(registry.folders["export"] / name)[:16] for name in GRAPHS]
    sizes = [f"{(registry.folders['export'] / name).stat().st_size / 1e3:.1f} kB" for name in GRAPHS]
    assert (
        text.splitlines()
        == f"""\
Version        tiny/2  @candidate  registered {at[0]} UTC
MLflow         version  /#/models/tiny/versions/2
               run      /#/experiments/1/runs/{registry.second.run_id}  FINISHED
Code           commit {COMMIT}, nothing uncommitted; pdnet 0.1.0
               container image {IMAGE}
Configuration  {config_hash(CHANGED)}; 6 values unlike the paper's
               seed                  0         ->  7
               data.size             480       ->  225
               pretrain.weights      imagenet  ->  none
               train.clip_grad_norm  null      ->  1.0
               tracking.experiment   pdnet     ->  tiny
               tracking.model        pdnet     ->  tiny
Data           videos  {VIDEOS}  24 files  2.0 kB  data/mvps
               images  {IMAGES}  12 files  1.0 kB  data/images
               DVC {DVC}, git revision {REVISION}
               to have it: git checkout {REVISION} -- data.dvc && dvc pull data.dvc
Parents        backbone weights none -> pretrained {short("other weights of pretrain")} -> trained \
{short("other weights of train")} (SHA-256)
Steps                           started (UTC)     took     host          device
               validate         2026-01-02 03:04  0:00:12  example-host  Example(R) CPU, 2 threads, fp32
               pretrain         2026-01-02 03:04  0:00:12  example-host  Example(R) CPU, 2 threads, fp32
               train            2026-01-02 03:04  0:00:12  example-host  Example(R) CPU, 2 threads, fp32, 2 processes
               evaluate         2026-01-02 03:04  0:00:12  example-host  Example(R) CPU, 2 threads, fp32
               export_onnx      2026-01-02 03:04  1:06:40  example-host  Example(R) CPU, 2 threads, fp32, \
commit fedcba987654
               export_tensorrt  2026-01-02 03:04  1:06:40  example-host  Example(R) CPU, 2 threads, fp32, \
commit fedcba987654
Exports                                SHA-256, first 16  size    J&F   masks alike  probability off by at most
               pdnet.onnx              {digests[0]}   {sizes[0]}  85.9  100.000 %    1e-05
               reference_encoder.onnx  {digests[1]}   {sizes[1]}  85.8  99.500 %     0.0002
               segmenter.onnx          {digests[2]}   {sizes[2]}  85.8  99.500 %     0.0002
               tensorrt/pdnet.engine   {short("a plan")}   0.0 kB  85.7  100.000 %    0.0005
Evaluation     J&F 86.0 (95 % interval 40.0 to 90.0); J 85.0, F 87.0
               3 clips, 12 frames, protocol mvps
                      clips  J&F   J     F
               dance  1      40.0  40.0  40.0
               talk   2      80.0  80.0  80.0
               31.5 frames/s for the network, 21.5 from file to mask: Example(R) CPU, 2 threads, fp32, 8 x 8
Promotions     {at[1]}  version 2 promoted by {who}; champion version 1 -> version 2
                 a lead of 3.00
               {at[2]}  version 2 rolled back by {who}; champion version 2 -> version 1
                 version 1 is the champion again
""".splitlines()
    )


def test_the_json_of_a_version(registry: Registry) -> None:
    facts = lineage("tiny@candidate")
    assert list(facts) == [
        *("version", "run", "pdnet", "git", "image", "config", "data", "parents", "steps", "exports"),
        *("evaluation", "promotions"),
    ]
    version = facts["version"]
    assert version["tags"]["release.sha256"] == file_digest(registry.release / "lineage.json")
    assert (version["name"], version["number"], version["aliases"]) == ("tiny/2", "2", ["candidate"])
    assert facts["run"]["id"] == registry.second.run_id
    assert (facts["git"], facts["image"]) == ({"commit": COMMIT, "dirty": False}, IMAGE)
    assert facts["config"]["hash"] == config_hash(CHANGED)
    assert {"key": "train.clip_grad_norm", "paper": None, "here": 1.0} in facts["config"]["differs"]
    assert facts["data"] == {
        "videos": {"path": "data/mvps", "md5": VIDEOS, "files": 24, "bytes": 2048},
        "images": {"path": "data/images", "md5": IMAGES, "files": 12, "bytes": 1024},
        "dvc": {"md5": DVC, "revision": REVISION},
        "commands": [f"git checkout {REVISION} -- data.dvc", "dvc pull data.dvc"],
    }
    trained, pretrained = (hashlib.sha256(f"other weights of {x}".encode()).hexdigest() for x in ("train", "pretrain"))
    assert facts["parents"] == {"backbone": "none", "pretrain": pretrained, "train": trained}
    train = next(step for step in facts["steps"] if step["step"] == "train")
    assert (train["host"], train["seconds"], train["processes"]) == ("example-host", 12.5, 2)
    assert train["started"] == "2026-01-02T03:04:05+00:00"
    assert [export["file"] for export in facts["exports"]] == [*GRAPHS, "tensorrt/pdnet.engine"]
    assert facts["exports"][3]["agreement"] == {
        "max_probability_difference": 5e-4,
        "mean_probability_difference": 1e-7,
        "mask_agreement": 1.0,
        "jf_mean": 0.857,
        "device": "Example GPU",
    }
    assert facts["evaluation"] == read_json(registry.folders["evaluation"] / "scores.json")
    assert [(entry["outcome"], entry["from"], entry["to"]) for entry in facts["promotions"]] == [
        ("promoted", "1", "2"),
        ("rolled back", "2", "1"),
    ]


def test_the_champion_by_its_alias(registry: Registry) -> None:
    facts, text = lineage("tiny@champion"), show_lineage(version="tiny@champion")
    assert facts["version"]["name"] == "tiny/1"
    assert facts["config"]["differs"] == [
        {"key": "tracking.experiment", "paper": "pdnet", "here": "tiny"},
        {"key": "tracking.model", "paper": "pdnet", "here": "tiny"},
    ]
    # Of whose judgement it was the candidate, or which moved the alias to it or away from it.
    assert [entry["outcome"] for entry in facts["promotions"]] == ["promoted", "promoted", "refused", "rolled back"]
    assert f"commit {COMMIT}, with uncommitted changes" in text
    assert f"to have it: pdnet data pull --md5 {DVC} --remote URL --out DIR" in text
    assert "version 1 refused by" in text
    assert "champion none -> version 1" in text
    assert "dance is 9.00 worse" in text


def test_files_in_other_precisions_and_engines_that_stream_are_told_too(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    folders = write_second_run(tmp_path / "run")
    written = add_other_forms(folders["export"], folders["tensorrt"])
    register(folders, CHANGED)
    exports = {each["file"]: each for each in lineage("tiny/1")["exports"]}
    assert set(exports) == {*GRAPHS, "tensorrt/pdnet.engine", *written}
    for name, path in written.items():
        assert exports[name]["sha256"] == file_digest(path)
        assert exports[name]["bytes"] == path.stat().st_size
    assert [exports[f"{form}/segmenter.onnx"]["agreement"]["jf_mean"] for form in ("fp16", "int8")] == [0.854, 0.844]
    assert exports["tensorrt/segmenter.engine"]["agreement"]["jf_mean"] == 0.834
    assert exports["tensorrt/segmenter.engine"]["agreement"]["device"] == "Example GPU"
    rows = {line.split()[0]: line.split()[1] for line in show_lineage(version="tiny/1").splitlines() if line.split()}
    assert {name: rows[name] for name in written} == {name: file_digest(path)[:16] for name, path in written.items()}


def add_other_forms(export: Path, tensorrt: Path) -> dict[str, Path]:
    """Let a run have graphs in fp16 and int8, and engines that stream; the files by their names in the release."""
    written = {f"{form}/{name}": export / form / name for form in ("fp16", "int8") for name in GRAPHS}
    written |= {f"tensorrt/{name}.engine": tensorrt / f"{name}.engine" for name in ("reference_encoder", "segmenter")}
    for name, path in written.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    figures = {"max_probability_difference": 0.03, "mean_probability_difference": 1e-4, "mask_agreement": 0.999}
    graphs, engines = read_json(export / "parity.json"), read_json(tensorrt / "parity.json")
    graphs["precisions"] = {}
    for form, jf_mean in (("fp16", 0.854), ("int8", 0.844)):
        compared = figures | {"onnx": {"jf_mean": jf_mean}}
        streams = {name: file_digest(export / form / name) for name in GRAPHS[1:]}
        pair = compared | {"sha256": file_digest(export / form / GRAPHS[0])}
        graphs["precisions"][form] = {"pair": pair, "streaming": compared | {"files": streams}}
    files = {path.name: file_digest(path) for path in written.values() if path.suffix == ".engine"}
    engines["streaming"] = figures | {"tensorrt": {"jf_mean": 0.834}, "files": files}
    write_json(export / "parity.json", graphs)
    write_json(tensorrt / "parity.json", engines)
    return written


def test_the_command_line(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", "tiny/2"]) == 0
    assert capsys.readouterr().out.removesuffix("\n") == show_lineage(version="tiny/2")
    assert main(["lineage", "tiny/2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == lineage("tiny/2")
    assert main(["lineage", "tiny@blue"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_models_large_files_are_not_asked_for(registry: Registry) -> None:
    with contextlib.ExitStack() as gone:
        for name in ("model.safetensors", *GRAPHS, "tensorrt/pdnet.engine", "evaluation/frames.parquet"):
            gone.enter_context(changed(registry.release / name, None))
        assert len(lineage("tiny/2")["exports"]) == 4


def test_a_run_that_was_removed_is_named(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(registry.database, tmp_path / "mlflow.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("UPDATE model_versions SET run_id = ? WHERE version = 2", ("0" * 32,))
        connection.execute("UPDATE model_versions SET run_id = NULL WHERE version = 1")
        connection.commit()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert lineage("tiny/2")["run"] == {"id": "0" * 32, "name": None, "status": None, "page": None}
    assert f"run      {'0' * 32}  removed\n" in show_lineage(version="tiny/2")
    assert "run      none\n" in show_lineage(version="tiny/1")


# What is refused


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tiny@blue", r"tiny has no alias 'blue'; there is: @candidate \(version 2\), @champion \(version 1\)"),
        ("tiny/9", "tiny has no version 9; there is: 1, 2, 3"),
        ("other@champion", "no registered model 'other'; there is: tiny"),
        ("tiny", "'tiny': expected a version as MODEL@ALIAS or MODEL/NUMBER"),
        ("tiny/3", "tiny/3: registered by other means than `pdnet register`: it has no tag release.sha256"),
    ],
)
def test_what_is_not_there_is_said(registry: Registry, name: str, reason: str) -> None:
    with pytest.raises(TrackingError, match=reason):
        show_lineage(version=name)


@pytest.mark.parametrize("name", ["lineage.json", "params.yaml", "parity.json", "evaluation/scores.json"])
def test_nothing_is_told_from_a_file_that_was_changed(registry: Registry, name: str) -> None:
    path = registry.release / name
    reason = f"^tiny/2: {name} is not the file that was registered: SHA-256 .*`pdnet verify tiny/2`"
    with changed(path, path.read_bytes() + b"\n"), pytest.raises(DataError, match=reason):
        show_lineage(version="tiny/2")
    with changed(path, None), pytest.raises(TrackingError, match=f"^tiny/2: artifacts/release/{name} cannot be had"):
        show_lineage(version="tiny/2")


# The parts


@pytest.mark.parametrize(
    ("facts", "commands"),
    [
        ({"data_dvc": None}, []),
        ({"data_dvc": None, "data_revision": REVISION}, []),
        ({"data_revision": REVISION}, [f"git checkout {REVISION} -- data.dvc", "dvc pull data.dvc"]),
        # The code's commit says nothing of the data.
        ({"git": {"commit": COMMIT, "dirty": False}, "image": IMAGE}, [f"pdnet data pull --md5 {DVC} {WHERE}"]),
        ({"git": {"commit": COMMIT, "dirty": True}}, [f"pdnet data pull --md5 {DVC} {WHERE}"]),
        ({"git": {"commit": None, "dirty": None}}, [f"pdnet data pull --md5 {DVC} {WHERE}"]),
    ],
)
def test_how_the_data_are_had(facts: dict[str, Any], commands: list[str]) -> None:
    known = {"data_dvc": DVC, "data_revision": None, "image": None, "git": {"commit": None, "dirty": None}}
    assert data_commands(known | facts) == commands


def test_differences_of_configurations() -> None:
    paper = {"seed": 0, "data": {"size": 480, "images": "x"}, "gone": {"a": 1}, "same": [1, 2]}
    here = {"seed": 0, "data": {"size": 65, "images": None}, "same": [1, 2], "new": False}
    assert differences(paper, here) == [
        {"key": "data.size", "paper": 480, "here": 65},
        {"key": "data.images", "paper": "x", "here": None},
        {"key": "gone.a", "paper": 1},
        {"key": "new", "here": False},
    ]
    assert differences(to_mapping(Config()), to_mapping(Config())) == []
