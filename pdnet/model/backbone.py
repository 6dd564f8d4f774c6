"""The residual backbone and where its weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet, resnet18, resnet34, resnet50, resnet101
from torchvision.models._api import WeightsEnum

from pdnet.errors import CheckpointError

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]

_BUILDERS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}
_IMAGENET: dict[str, WeightsEnum] = {
    "resnet18": resnet.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": resnet.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": resnet.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": resnet.ResNet101_Weights.IMAGENET1K_V1,
}


class Backbone(nn.Module):
    """A ResNet without its pooling and classifier; parameter names are torchvision's.

    Paper: 4.1 (ResNet-50).
    """

    def __init__(self, name: BackboneName = "resnet50") -> None:
        super().__init__()
        trunk = _BUILDERS[name](weights=None)
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
            torch's own cache); anything else is the path of a torchvision ResNet state dict (`.pth`).

    Raises:
        CheckpointError: the file is missing or damaged, belongs to another network, or cannot be downloaded.
    """
    if source == "none":
        return
    if source == "imagenet":
        try:
            state = _IMAGENET[backbone.name].get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise CheckpointError(
                f"ImageNet weights of {backbone.name} cannot be downloaded ({error}); "
                "give the path of a torchvision state dict instead, or 'none'"
            ) from None
    else:
        state = read_state_dict(Path(source))
    wanted = backbone.state_dict()
    given = {name: value for name, value in state.items() if not name.startswith("fc.")}
    check_state(given, wanted, f"{source}: not the weights of a {backbone.name}")
    backbone.load_state_dict(given)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a flat dict of tensors saved by `torch.save`, without unpickling code.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a torch state dict") from None
    except Exception as error:  # torch raises a wide family here: pickle, zip, runtime and OS errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a torch state dict ({reason})") from None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no flat dict of tensors; expected a torch state dict")
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
