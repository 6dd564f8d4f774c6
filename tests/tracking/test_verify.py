"""Whether `verify` passes a version that is what it claims, and finds every way here of not being it.

The network is real and tiny; evaluation, export, registration and store are the real ones. Two kinds of damage: files
that changed, and forgeries, where whoever changed a file made lineage.json, and perhaps the registry's tags, fit it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pandas as pd
import pytest
import yaml
from onnx import numpy_helper
from real_run import write_real_run
from tiny_profile import decided_network, tiny_config, write_params

from pdnet.cli import main
from pdnet.config import config_hash, to_mapping
from pdnet.errors import DataError, TrackingError, VerificationError
from pdnet.evaluation.scoring import summarise
from pdnet.files import file_digest, folder_digest, read_json, write_json
from pdnet.steps.evaluate import nested
from pdnet.steps.verify import verify
from pdnet.tracking import Registration, register_model
from pdnet.tracking.store import open_store
from pdnet.weights import load_model, model_facts, save_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISION = "fedcba9876543210fedcba9876543210fedcba98"
NAME = "tiny/1"
EXPORT: dict[str, Any] = {"export": {"precisions": ["fp16"]}}
#: What is scored.
GRAPHS = ("pdnet.onnx", "reference_encoder.onnx, segmenter.onnx")
MODELS = ("model.safetensors", *GRAPHS, *(", ".join(f"fp16/{name}" for name in each.split(", ")) for each in GRAPHS))
WEIGHTS_TAG, GRAPH_TAG = "model.safetensors, tag weights.sha256", "pdnet.onnx, tag onnx.sha256"
GRAPH_FACTS = ("config_hash", "data_md5", "git_commit")
#: Changes the files of a release, given its folder.
Forgery = Callable[[Path], None]


@dataclass(frozen=True)
class Registry:
    """A working folder with `data/mvps`, and version 1 of `tiny` in the store.

    Attributes:
        root: the working folder.
        registration: of the version.
        videos: MD5 of the data.
    """

    root: Path
    registration: Registration
    videos: str

    @property
    def release(self) -> Path:
        """The files of the version in the store."""
        return Path(self.registration.model_artifact_uri.removeprefix("file://")) / "artifacts" / "release"


@pytest.fixture(scope="module")
def registry(portraits: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    root = tmp_path_factory.mktemp("work")
    shutil.copyfile(empty_database, root / "mlflow.db")
    shutil.copytree(portraits, root / "data" / "mvps")
    tracked = {"outs": [{"md5": folder_digest(root / "data")[0], "path": "data"}], "meta": {"revision": REVISION}}
    (root / "data.dvc").write_text(yaml.safe_dump(tracked))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("PDNET_GIT_COMMIT", COMMIT)
        patch.chdir(root)
        write_params(root / "params.yaml", **EXPORT)
        config = tiny_config(**EXPORT)
        folders = write_real_run(root / "build", Path("data/mvps"), config=config)
        registration = register_model(
            config=to_mapping(config),
            config_hash=config_hash(config),
            **folders,
            report=None,
            tracking=config.tracking,
        )
        yield Registry(root, registration, folder_digest(root / "data" / "mvps")[0])


@contextlib.contextmanager
def put_back(registry: Registry) -> Iterator[Path]:
    """The folder of the release in the store; afterwards it, and the tags of the version, are as they were."""
    saved = registry.root / "saved"
    shutil.copytree(registry.release, saved)
    with open_store() as store:
        tags = store.client.get_model_version("tiny", "1").tags
    try:
        yield registry.release
    finally:
        shutil.rmtree(registry.release)
        saved.rename(registry.release)
        with open_store() as store:
            for key, value in tags.items():
                store.client.set_model_version_tag("tiny", "1", key, value)


def refused(*, hashes_only: bool = False, **more: Any) -> list[str]:
    """What `verify` finds wrong: the names of the lines of its table that are not ok."""
    with pytest.raises(VerificationError, match=r"^tiny/1 is not what it claims: ") as caught:
        verify(version=NAME, hashes_only=hashes_only, **more)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    wrong = [line.partition("  ")[0] for line in caught.value.table.splitlines() if line.endswith("NOT ok")]
    assert wrong
    assert all(f"{name}: recorded " in str(caught.value) for name in wrong[:3])
    assert str(caught.value).endswith(f"; and {len(wrong) - 3} more") == (len(wrong) > 3)
    return wrong


def rewrite_lineage(release: Path) -> None:
    """Make lineage.json fit the files."""
    facts = read_json(release / "lineage.json")
    for name, entry in facts["files"].items():
        entry |= {"sha256": file_digest(release / name), "bytes": (release / name).stat().st_size}
    weights = file_digest(release / "model.safetensors")
    facts["steps"]["train"]["weights_sha256"] = facts["steps"]["evaluate"]["model_sha256"] = weights
    write_json(release / "lineage.json", facts)


def rewrite_parity(release: Path) -> None:
    """Make parity.json fit the graphs."""
    facts = read_json(release / "parity.json")
    streaming = facts["streaming"]["files"]
    streaming |= {name: file_digest(release / name) for name in streaming}
    write_json(release / "parity.json", facts | {"sha256": file_digest(release / "pdnet.onnx")})


def rewrite_tags(release: Path) -> None:
    """Make the tags in the registry fit the files."""
    names = {"release": "lineage.json", "weights": "model.safetensors", "onnx": "pdnet.onnx"}
    tags = {f"{tag}.sha256": file_digest(release / name) for tag, name in names.items()}
    tags["jf_mean"] = f"{read_json(release / 'evaluation' / 'scores.json')['jf_mean']:.4f}"
    with open_store() as store:
        for key, value in tags.items():
            store.client.set_model_version_tag("tiny", "1", key, value)


# What is what it claims


def test_a_version_that_is_what_it_claims(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "tiny@candidate"]) == 0
    printed = capsys.readouterr()
    *table, empty, verdict = printed.out.splitlines()
    assert (empty, verdict) == ("", "tiny/1 is what it claims")
    assert "error" not in printed.err
    lines = {line.partition("  ")[0]: line.split()[-3:] for line in table}
    scores = read_json(registry.release / "evaluation" / "scores.json")
    recorded = f"{100 * scores['jf_mean']:.2f}"
    assert 0 < scores["jf_mean"] < 1, "the case says nothing where all pixels are alike"
    for model in MODELS:
        assert float(lines[f"{model}, J&F"][0]) == pytest.approx(float(recorded), abs=0.1)
        assert lines[f"{model}, J&F"][-1] == "ok"
        assert f"{model}, largest difference of a frame" in lines
    files = {path.relative_to(registry.release).as_posix() for path in registry.release.rglob("*") if path.is_file()}
    assert files - {"lineage.json"} <= lines.keys()
    assert f"{COMMIT[:16]}…" in lines["lineage.json, tag git.commit"]
    assert all(line.endswith("ok") for line in table[1:] if "largest difference" not in line)
    assert "NOT ok" not in printed.out


def test_digests_alone_need_no_data(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = verify(version=NAME, hashes_only=True)
    assert text.endswith("\n\ntiny/1 is what it claims as far as digests tell; it was not scored")
    assert "pdnet.onnx, J&F" not in text
    assert "pdnet.onnx, config_hash inside" in text
    assert list(tmp_path.iterdir()) == []


# Damage


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "pdnet.onnx", "segmenter.onnx", "evaluation/frames.parquet", "evaluation/scores.json"),
        *("params.yaml", "parity.json"),
    ],
)
def test_a_flipped_bit_is_found_and_its_file_named(registry: Registry, name: str) -> None:
    tagged = {
        "model.safetensors": ["model.safetensors, tag weights.sha256"],
        "pdnet.onnx": ["pdnet.onnx, tag onnx.sha256"],
    }
    content = (registry.release / name).read_bytes()
    with put_back(registry) as release:
        (release / name).write_bytes(flip(content, len(content) // 2))
        assert refused() == [*tagged.get(name, []), name]


def test_a_flipped_bit_in_the_list_of_files_is_found(registry: Registry) -> None:
    content = (registry.release / "lineage.json").read_bytes()
    places = [
        0,
        len(content) - 1,
        *(content.index(word) + 1 for word in (b"sha256", b"files", b"format", b"pdnet.onnx")),
    ]
    for position in places:
        with put_back(registry) as release:
            (release / "lineage.json").write_bytes(flip(content, position))
            assert refused() == ["lineage.json, tag release.sha256"]


def test_missing_and_added_files_are_found(registry: Registry) -> None:
    with put_back(registry) as release:
        (release / "segmenter.onnx").unlink()
        (release / "evaluation" / "notes.txt").write_text("not ours")
        assert refused() == ["evaluation/notes.txt", "segmenter.onnx"]
    with put_back(registry) as release:
        (release / "pdnet.onnx").unlink()
        assert refused() == ["pdnet.onnx, tag onnx.sha256", "pdnet.onnx"]


@pytest.mark.parametrize("name", ["served_model.py", "MLmodel", "requirements.txt"])
def test_what_is_served_is_as_it_was_registered(registry: Registry, name: str) -> None:
    with put_back(registry) as release:
        path = release.parents[1] / name
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        try:
            assert refused(hashes_only=True) == ["served model, tag served.sha256"]
        finally:
            path.write_bytes(content)


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("tag", ["config.hash", "data.videos.md5", "git.commit", "jf_mean", "fps", "release.sha256"])
def test_a_tag_that_was_changed_or_removed_is_found(registry: Registry, tag: str) -> None:
    with put_back(registry), open_store() as store:
        store.client.set_model_version_tag("tiny", "1", tag, "0.9999")
        (wrong,) = refused(hashes_only=True)
        assert wrong.endswith(f"tag {tag}")
        store.client.delete_model_version_tag("tiny", "1", tag)
        assert refused(hashes_only=True) == [wrong]


# Forgeries


def swap_graph(release: Path) -> None:
    """The graph of another network, with the facts of the real one inside."""
    model = onnx.load(release / "pdnet.onnx")
    for weights in model.graph.initializer:
        if len(weights.dims) == 4:
            other = -numpy_helper.to_array(weights)
            weights.CopyFrom(numpy_helper.from_array(other, weights.name))
    onnx.save(model, release / "pdnet.onnx")


def swap_weights(release: Path) -> None:
    """Another network's weights, with the facts of the real one inside."""
    path = release / "model.safetensors"
    save_model(path, decided_network(seed=5), model_facts(path))


def other_facts_in_weights(release: Path) -> None:
    """The very weights, said to be of other data."""
    path = release / "model.safetensors"
    facts = model_facts(path)
    save_model(path, load_model(path), facts | {"data": facts["data"] | {"videos": "9" * 32 + ".dir"}})


def other_facts_in_graph(release: Path) -> None:
    """The very graph, said to be of other data."""
    model = onnx.load(release / "segmenter.onnx")
    next(entry for entry in model.metadata_props if entry.key == "data_md5").value = "9" * 32 + ".dir"
    onnx.save(model, release / "segmenter.onnx")


def no_graph(release: Path) -> None:
    """Something that is no ONNX at all, and other parameters with it."""
    (release / "pdnet.onnx").write_bytes(b"\xff" * 100)
    other_parameters(release)


def no_weights(release: Path) -> None:
    """Something that is no model at all."""
    (release / "model.safetensors").write_bytes(b"\xff" * 100)


def better_score(release: Path) -> None:
    """Five points more in scores.json."""
    path = release / "evaluation" / "scores.json"
    facts = read_json(path)
    write_json(path, facts | {"jf_mean": facts["jf_mean"] + 0.05})


def better_clips(release: Path) -> None:
    """Five points more in clips.parquet, which promotion judges by."""
    path = release / "evaluation" / "clips.parquet"
    pd.read_parquet(path).assign(jf_mean=lambda table: table["jf_mean"] + 0.05).to_parquet(path)


def better_everywhere(release: Path) -> None:
    """Better frames, and all other figures as they follow from them."""
    folder = release / "evaluation"
    frames = pd.read_parquet(folder / "frames.parquet")
    frames = frames.assign(j=frames["j"] + 0.001, f=frames["f"] + 0.001)  # 0.1 points
    frames.to_parquet(folder / "frames.parquet")
    scores = summarise(frames, "mvps")
    scores.clips.to_parquet(folder / "clips.parquet")
    path = folder / "scores.json"
    write_json(path, read_json(path) | nested(scores.dataset))


def other_parameters(release: Path) -> None:
    """Another threshold."""
    path = release / "params.yaml"
    path.write_text(path.read_text().replace("threshold: 0.5", "threshold: 0.4"))


@pytest.mark.parametrize(
    ("forge", "named"),
    [(swap_graph, [GRAPH_TAG]), (swap_weights, [WEIGHTS_TAG]), (better_score, []), (other_parameters, [])],
)
def test_a_list_of_files_that_was_made_to_fit_is_caught_by_the_tags(
    registry: Registry, forge: Forgery, named: list[str]
) -> None:
    with put_back(registry) as release:
        forge(release)
        rewrite_parity(release)
        rewrite_lineage(release)
        assert refused() == ["lineage.json, tag release.sha256", *named]


@pytest.mark.parametrize(
    ("forge", "named"),
    [
        (other_facts_in_weights, ["model.safetensors, videos inside"]),
        (other_facts_in_graph, ["segmenter.onnx, data_md5 inside"]),
        (
            no_graph,
            [
                "params.yaml, its hash",
                *(f"pdnet.onnx, {key} inside" for key in ("config_hash", "data_md5", "git_commit")),
            ],
        ),
        (no_weights, ["model.safetensors, inside"]),
        (better_score, ["scores.json, J&F by frames.parquet"]),
        (better_clips, ["clips.parquet by frames.parquet"]),
        (other_parameters, ["params.yaml, its hash"]),
    ],
)
def test_where_the_tags_were_made_to_fit_too_the_files_contradict_each_other(
    registry: Registry, forge: Forgery, named: list[str]
) -> None:
    with put_back(registry) as release:
        forge(release)
        rewrite_parity(release)
        rewrite_lineage(release)
        rewrite_tags(release)
        assert refused() == named


@pytest.mark.parametrize(
    ("forge", "named"),
    [
        (swap_graph, ["pdnet.onnx, J&F"]),
        (swap_weights, ["model.safetensors, J&F"]),
        (
            better_everywhere,
            ["model.safetensors, J&F"],
        ),
    ],
)
def test_where_nothing_contradicts_it_the_scores_do(registry: Registry, forge: Forgery, named: list[str]) -> None:
    with put_back(registry) as release:
        forge(release)
        rewrite_parity(release)
        rewrite_lineage(release)
        rewrite_tags(release)
        assert verify(version=NAME, hashes_only=True)
        assert refused() == named


def test_other_frames_are_found_where_their_figures_are_the_same(registry: Registry) -> None:
    with put_back(registry) as release:
        path = release / "evaluation" / "frames.parquet"
        frames = pd.read_parquet(path)
        frames.assign(frame=[f"x{name}" for name in frames["frame"]]).to_parquet(path)
        rewrite_lineage(release)
        rewrite_tags(release)
        assert refused() == [f"{model}, frames" for model in MODELS]


# Data and names


def test_other_data_are_refused_with_the_command_that_brings_the_right_ones(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(registry.root / "data" / "mvps", tmp_path / "other")
    (tmp_path / "other" / "more.txt").write_text("more")
    found = folder_digest(tmp_path / "other")[0]
    brought = f"git checkout {REVISION} -- data.dvc && dvc pull data.dvc"
    expected = (
        rf"expected {registry.videos} \(48 files\), the version that tiny/1 was scored on; to have it: {brought};"
    )
    with pytest.raises(DataError, match=f"^{tmp_path}/other: {found}; {expected}"):
        verify(version=NAME, videos=tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"^data/mvps: no such folder; {expected}") as caught:
        verify(version=NAME)
    assert main(["verify", NAME]) == caught.value.exit_code == 2
    assert capsys.readouterr().err == f"pdnet: error: {caught.value}\n"


def test_what_is_refused_on_the_command_line(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    with put_back(registry) as release:
        (release / "params.yaml").write_text("seed: 1\n")
        assert main(["verify", NAME, "--hashes-only"]) == 3
    printed = capsys.readouterr()
    assert [line.partition("  ")[0] for line in printed.out.splitlines() if line.endswith("NOT ok")] == ["params.yaml"]
    assert printed.err.startswith("pdnet: error: tiny/1 is not what it claims: params.yaml: recorded ")
    assert printed.err.count("\n") == 1


def test_versions_that_are_not_there_or_hold_no_release(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="tiny has no version 9; there is: 1"):
        verify(version="tiny/9")
    with open_store() as store:
        store.client.create_registered_model("bare")
        (tmp_path / "MLmodel").write_text("{}")
        store.client.create_model_version("bare", source=tmp_path.as_uri())
    with pytest.raises(
        TrackingError, match=r"bare/1: holds no artifacts/release/lineage\.json; it was not registered by pdnet"
    ):
        verify(version="bare/1")


def test_the_hash_of_plain_values_is_that_of_the_configuration() -> None:
    config = tiny_config(seed=3)
    text = yaml.safe_dump(to_mapping(config))
    assert config_hash(yaml.safe_load(text)) == config_hash(config)
