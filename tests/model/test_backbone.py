"""Where the backbone's weights come from, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision.models
from small_networks import images, randomise
from torchvision.models import resnet18
from torchvision.models._api import Weights, WeightsEnum

from pdnet.errors import CheckpointError
from pdnet.model.backbone import Backbone, load_backbone_weights


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    """torchvision's ResNet-18 with the statistics of a trained one."""
    network = resnet18(weights=None)
    randomise(network, seed=5)
    return network.eval()


@pytest.fixture(scope="module")
def weights_file(classifier, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(classifier.state_dict(), path)
    return path


def refusal(source: Path | str, name: str = "resnet18") -> str:
    """The message of the CheckpointError: one line."""
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(Backbone(name), str(source))
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    return message


@torch.no_grad()
def test_torchvision_weights_compute_what_torchvision_computes(classifier, weights_file):
    backbone = Backbone("resnet18").eval()
    load_backbone_weights(backbone, str(weights_file))  # fc.* in the file is left out
    image = images(2, 64, 96)
    stages = backbone(image)
    torch.testing.assert_close(classifier.fc(stages[-1].mean((2, 3))), classifier(image), rtol=1e-5, atol=1e-5)
    assert [stage.shape[1:] for stage in stages] == [(64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)]
    assert backbone.channels == (64, 128, 256, 512)


def test_none_leaves_the_weights_alone():
    backbone = Backbone("resnet18")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    load_backbone_weights(backbone, "none")
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_another_architecture(classifier, weights_file):
    message = refusal(weights_file, "resnet34")
    assert message.startswith(f"{weights_file}: not the weights of a resnet34: layer1.2.conv1.weight is missing (and ")
    message = refusal(weights_file, "resnet50")
    assert "not the weights of a resnet50: layer1.0.conv3.weight is missing" in message


def test_another_shape(classifier, tmp_path):
    state = classifier.state_dict() | {"layer2.0.conv1.weight": torch.zeros(128, 64, 1, 1)}
    torch.save(state, tmp_path / "odd.pth")
    backbone = Backbone("resnet18")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(backbone, str(tmp_path / "odd.pth"))
    assert str(caught.value) == (
        f"{tmp_path / 'odd.pth'}: not the weights of a resnet18: "
        "layer2.0.conv1.weight has shape (128, 64, 1, 1), expected (128, 64, 3, 3)"
    )
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items()), "half loaded"


def test_missing_file(tmp_path):
    assert refusal(tmp_path / "absent.pth") == f"{tmp_path / 'absent.pth'}: no such file; expected a torch state dict"
    assert "Is a directory" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 100, 1_000_000, -10])
def test_truncated_file(weights_file, tmp_path, kept):
    path = tmp_path / "half.pth"
    path.write_bytes(weights_file.read_bytes()[:kept])
    assert refusal(path).startswith(f"{path}: damaged, or holds Python objects, which are not loaded")


def test_no_weights_but_text(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("these are not the weights you are looking for\n")
    assert refusal(path).startswith(f"{path}: damaged, or holds Python objects")


class Trap:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def set_trap(path: Path) -> Path:
    target = path.with_suffix(".sprung")
    path.write_bytes(pickle.dumps(Trap(target), protocol=2))
    return target


def test_code_in_a_file_is_not_run(tmp_path):
    target = set_trap(tmp_path / "trap.pth")
    assert refusal(tmp_path / "trap.pth").startswith(f"{tmp_path / 'trap.pth'}: damaged, or holds Python objects")
    assert not target.exists()
    torch.save(resnet18, tmp_path / "function.pth")
    assert "holds Python objects, which are not loaded" in refusal(tmp_path / "function.pth")


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"state_dict": {"conv1.weight": torch.zeros(1)}}, {0: torch.zeros(1)}, torch.zeros(3)]
)
def test_something_else_saved_by_torch(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    assert refusal(path) == f"{path}: holds no flat dict of tensors; expected a torch state dict"


# --- by name: torchvision's ImageNet weights, in a cache of the test's own --------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """torch's cache of downloads, empty; the way out leads to a closed port of this machine."""
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    # urllib keeps the proxies that it finds at its first use: not these for later tests, not earlier ones here.
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_imagenet_without_a_network(cache):
    message = refusal("imagenet")
    assert message.startswith("ImageNet weights of resnet18 cannot be downloaded (")
    assert message.endswith("; give the path of a torchvision state dict instead, or 'none'")
    assert not list(cache.iterdir())


@pytest.mark.parametrize("content", ["garbage", "weights of somebody else", "code"])
def test_imagenet_in_the_cache_but_not_what_was_published(cache, weights_file, content):
    path = cache / "resnet18-f37072fd.pth"
    if content == "code":
        set_trap(path)
    elif content == "garbage":
        path.write_bytes(b"garbage")
    else:
        shutil.copy(weights_file, path)
    message = refusal("imagenet")
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert message.startswith(
        f"{path}: damaged ImageNet weights: SHA-256 starts with {found}, expected f37072fd; delete"
    )
    assert not path.with_suffix(".sprung").exists()


def test_imagenet_from_the_cache(cache, weights_file, monkeypatch):
    """The published file is not at hand: weights of the test are published in its place."""
    digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()[:8]

    class Published(WeightsEnum):
        IMAGENET1K_V1 = Weights(url=f"https://example.invalid/models/resnet18-{digest}.pth", transforms=None, meta={})

    monkeypatch.setattr(torchvision.models, "get_model_weights", {"resnet18": Published}.__getitem__)
    shutil.copy(weights_file, cache / f"resnet18-{digest}.pth")
    backbone = Backbone("resnet18")
    load_backbone_weights(backbone, "imagenet")
    expected = torch.load(weights_file, weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())
