"""Model files: what goes in comes out, and a damaged file is named in one line."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_networks import images, small_network

from pdnet.errors import CheckpointError
from pdnet.model import PDNet
from pdnet.weights import load_model, model_facts, save_model

FACTS = {"size": 64, "config_hash": "0123abcd", "nested": {"list": [1, 2.5, None], "text": "Übergröße"}}


@pytest.fixture(scope="module")
def network() -> PDNet:
    return small_network(references=2, assembly="residual")


@pytest.fixture(scope="module")
def model_file(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, network, FACTS)
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_round_trip_is_exact(network, model_file):
    loaded = load_model(model_file, expected=network.config)
    assert not loaded.training
    assert loaded.config == network.config
    assert model_facts(model_file) == FACTS
    state = loaded.state_dict()
    assert list(state) == list(network.state_dict())
    for name, value in network.state_dict().items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name
    with torch.no_grad():
        frames = images(1, 2, 64, 48)
        assert torch.equal(loaded(frames[:, 0], frames)[0].logits, network(frames[:, 0], frames)[0].logits)


def test_others_may_read_it(model_file):
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(model_file.stat().st_mode) == 0o666 & ~umask


def test_damaged_headers(network, tmp_path):
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    for text in ("no JSON", "[]", '{"format": "pdnet-model-1"}', '{"format": "pdnet-model-1", "architecture": 1}'):
        save_file(state, tmp_path / "model.safetensors", metadata={"pdnet": text})
        assert "pdnet" in refusal(tmp_path / "model.safetensors")


def test_same_network_same_bytes(network, model_file, tmp_path):
    again = tmp_path / "again.safetensors"
    save_model(again, network, dict(reversed(FACTS.items())))
    assert again.read_bytes() == model_file.read_bytes()
    # ... whatever the memory format it was trained in, and after a round trip.
    save_model(again, load_model(model_file).to(memory_format=torch.channels_last), FACTS)
    assert again.read_bytes() == model_file.read_bytes()


def test_another_architecture_names_the_keys_with_both_values(network, model_file):
    expected = dataclasses.replace(network.config, parts=5, assembly="paper")
    assert refusal(model_file, expected=expected) == (
        "another architecture: model.parts: 3 in the file, 5 in the parameters, "
        "model.assembly: residual in the file, paper in the parameters"
    )


def test_missing_file(tmp_path):
    path = tmp_path / "absent.safetensors"
    assert refusal(path) == "no such file; expected a model written by pdnet (.safetensors)"
    with pytest.raises(CheckpointError, match="no such file"):
        model_facts(path)


@pytest.mark.parametrize("kept", [0, 5, 200, 1_000_000, -1])
def test_truncated_file(model_file, tmp_path, kept):
    path = tmp_path / "half.safetensors"
    path.write_bytes(model_file.read_bytes()[:kept])
    assert refusal(path).startswith("not a safetensors file, or damaged (")
    with pytest.raises(CheckpointError, match="damaged"):
        model_facts(path)


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_text("not tensors at all, though the name says so\n")
    assert refusal(path).startswith("not a safetensors file, or damaged (")
    torch.save({"a": torch.zeros(1)}, path)
    assert refusal(path).startswith("not a safetensors file, or damaged (")
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        assert refusal(path) == "a safetensors file, but not a model written by pdnet"


def save_with_other_architecture(network: PDNet, path: Path, **architecture) -> None:
    """Write the network under a header that is not its own, as another version of the package might."""
    values = dataclasses.asdict(network.config) | architecture
    network.config = dataclasses.make_dataclass("OtherConfig", list(values))(**values)
    save_model(path, network)


def test_weights_that_do_not_fit_the_header(tmp_path):
    path = tmp_path / "model.safetensors"
    save_with_other_architecture(small_network(), path, attention_width=5)
    assert refusal(path) == (
        "weights and architecture do not fit: "
        "ipda.to_query.weight has shape (12, 6, 1, 1), expected (15, 6, 1, 1) (and 3 more differences)"
    )
    network = small_network()
    network.head.bias = None
    save_model(path, network)
    assert refusal(path) == "weights and architecture do not fit: head.bias is missing"


@pytest.mark.parametrize("architecture", [{"layers": 7}, {"backbone": "resnet200"}, {"parts": 0}, {"parts": "many"}])
def test_a_file_of_another_version(tmp_path, architecture):
    path = tmp_path / "model.safetensors"
    save_with_other_architecture(small_network(), path, **architecture)
    assert refusal(path).startswith("written by another version of pdnet (")


@pytest.mark.parametrize("existing", [True, False])
def test_an_interrupted_save_leaves_what_was_there(existing, model_file, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    if existing:
        path.write_bytes(model_file.read_bytes())

    def interrupted(fresh, content):
        with fresh.open("wb") as file:
            file.write(content[:1000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_bytes", interrupted)
        save_model(path, small_network(seed=9))
    assert list(tmp_path.iterdir()) == ([path] if existing else [])
    if existing:
        assert path.read_bytes() == model_file.read_bytes()


def test_a_full_disk(tmp_path):
    """The system refuses files above 100 kB: the same failure as a disk without room."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"the old model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            save_model(path, small_network())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(caught.value).startswith(f"{path}: cannot be written (")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"the old model"
    assert list(tmp_path.iterdir()) == [path]
