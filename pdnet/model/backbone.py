"""The residual backbone and where its weights come from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from pdnet.errors import CheckpointError

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]


class Backbone(nn.Module):
    """A ResNet without its pooling and classifier; parameter names are torchvision's.

    Paper: 4.1 (ResNet-50).
    """

    def __init__(self, name: BackboneName = "resnet50") -> None:
        super().__init__()
        from torchvision.models import get_model  # takes a second, in which it imports torch's compiler

        trunk: Any = get_model(name, weights=None)
        self.name = name
        self.conv1, self.bn1, self.relu, self.maxpool = trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4
        last = trunk.fc.in_features
        #: channels of the four maps that `forward` returns
        self.channels = (last // 8, last // 4, last // 2, last)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) normalised images to the four stage outputs at strides 4, 8, 16, 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        stride4 = self.layer1(x)
        stride8 = self.layer2(stride4)
        stride16 = self.layer3(stride8)
        return stride4, stride8, stride16, self.layer4(stride16)


def load_backbone_weights(backbone: Backbone, source: str) -> None:
    """Fill a backbone with pretrained weights.

    Args:
        backbone: changed in place.
        source: `none` leaves it as it is; `imagenet` takes torchvision's ImageNet weights (downloaded once into
            torch's own cache); anything else is the path of a torchvision ResNet state dict, as `torch.save` wrote it.

    Raises:
        CheckpointError: the file is missing or damaged, belongs to another network, or cannot be downloaded.
    """
    if source == "none":
        return
    state = _imagenet_weights(backbone.name) if source == "imagenet" else read_state_dict(Path(source))
    wanted = backbone.state_dict()
    given = {name: value for name, value in state.items() if not name.startswith("fc.")}
    check_state(given, wanted, f"{source}: not the weights of a {backbone.name}")
    backbone.load_state_dict(given)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a flat dict of tensors saved by `torch.save`, without unpickling code.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    state = read_checkpoint(path, "a torch state dict")
    if not is_state_dict(state):
        raise CheckpointError(f"{path}: holds no flat dict of tensors; expected a torch state dict")
    return state


def read_checkpoint(path: Path, expected: str) -> Any:
    """Read what `torch.save` wrote, without unpickling code; `expected` says what that should be.

    Raises:
        CheckpointError: the file is missing, damaged, or holds Python objects that only their own code could load.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected {expected}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); expected {expected}") from None
    except Exception:
        # A wide family (pickle, zip, runtime errors) whose messages run over lines and advise to load code.
        raise CheckpointError(
            f"{path}: damaged, or holds Python objects, which are not loaded; expected {expected}"
        ) from None


def is_state_dict(content: Any) -> TypeGuard[dict[str, Tensor]]:
    """Whether it is a dict of named tensors, and not an empty one."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _imagenet_weights(name: BackboneName) -> dict[str, Tensor]:
    """The ImageNet weights that torchvision publishes, downloaded once into torch's own cache.

    Raises:
        CheckpointError: they cannot be downloaded, or the cached file is not what torchvision published.
    """
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(name)["IMAGENET1K_V1"]
    cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    remedy = "give the path of a torchvision state dict instead, or 'none'"
    if cached.is_file():
        # torch compares the hash of what it downloads, not that of a file it finds.
        published = cached.stem.rpartition("-")[2]
        found = hashlib.sha256(cached.read_bytes()).hexdigest()[: len(published)]
        if found != published:
            raise CheckpointError(
                f"{cached}: damaged ImageNet weights: SHA-256 starts with {found}, expected {published}; "
                f"delete the file to download it again, or {remedy}"
            )
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # the network, the disk, the hash: each raises its own family
        raise CheckpointError(f"ImageNet weights of {name} cannot be downloaded ({error}); {remedy}") from None
    return state


def check_state(given: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    """Compare names and shapes of two state dicts.

    Raises:
        CheckpointError: `what`, with the first difference and how many there are.
    """
    differences = [f"{name} is missing" for name in wanted if name not in given]
    differences += [f"{name} is unknown" for name in given if name not in wanted]
    differences += [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    if differences:
        more = f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise CheckpointError(f"{what}: {differences[0]}{more}")
