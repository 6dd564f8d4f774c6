"""Make golden/outputs.npz: what the plain functions of `loop_reference` give for a small released checkpoint.

Weights and images are not stored: each follows from its name and shape by the rule of the original golden set. The
plain functions compute in float64; the outputs are stored as float32, each at its own resolution.

    python tests/model/make_golden.py
"""

from __future__ import annotations

import zlib
from pathlib import Path

import loop_reference as loop
import numpy as np
import torch
from torch import Tensor
from torchvision.models import resnet18

SEED = 11
WIDTH, PART_WIDTH, ATTENTION_WIDTH, PARTS = 12, 6, 4, 3
#: height and width of the images
SIZES = ((97, 65), (64, 96))
PATH = Path(__file__).parent / "golden" / "outputs.npz"


def synthesise(seed: int, name: str, shape: list[int], damped: str = ".bn3.") -> Tensor:
    """The value of a released parameter or of an image; `damped` marks the last norm of a residual block."""
    random = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()) & 0x7FFFFFFF)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.startswith("image"):
        value = random.randn(*shape)
    elif name.endswith("running_var"):
        value = 0.5 + random.rand(*shape)
    elif name.endswith("running_mean"):
        value = 0.1 * random.randn(*shape)
    elif len(shape) == 4:
        value = random.randn(*shape) * np.sqrt(1.5 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = (0.25 if damped in name else 1.0) * (0.8 + 0.4 * random.rand(*shape))
    else:
        value = 0.1 * random.randn(*shape)
    return torch.from_numpy(value.astype(np.float32))


def released_shapes() -> dict[str, list[int]]:
    """Names and shapes of a released checkpoint on a ResNet-18, with few channels after it."""
    W, C, d = WIDTH, PART_WIDTH, ATTENTION_WIDTH
    shapes = {
        f"bkbone.{name}": list(value.shape)
        for name, value in resnet18(weights=None).state_dict().items()
        if not name.startswith("fc.")
    }

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{leaf}": [channels] for leaf in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = []

    def block(conv_name: str, norm_name: str, out: int, into: int, side: int) -> None:
        shapes[f"{conv_name}.weight"] = [out, into, side, side]
        norm(norm_name, out)

    def head(name: str, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [1, into, 3, 3], [1]

    for level, channels in zip((2, 3, 4, 5), (64, 128, 256, 512), strict=True):
        block(f"l{level}_adapt.0", f"l{level}_adapt.1", W, channels, 1)
    for name in ("fuse2", "fuse3", "fuse4", "spatiotemporal_fusion"):
        for i in (1, 2):
            block(f"{name}.conv_{i}", f"{name}.bn_{i}", W, W, 3)
    block("spatiotemporal_fusion.conv_t", "spatiotemporal_fusion.bn_t", W, C, 1)
    shapes["spatiotemporal_fusion.conv_t1.weight"] = [W, W, 1, 1]
    for name in ("head", "head_1", "head_2", "head_3", "head_4"):
        head(name, W)
    block("ipda.sup_adapt1.0", "ipda.sup_adapt1.1", W, W, 3)
    block("ipda.sup_adapt2.0", "ipda.sup_adapt2.1", C, W, 1)
    head("ipda.sup_head", C)
    head("ipda.part_sep_pred", C)
    for k in range(PARTS):
        for i, side in ((1, 1), (2, 3), (3, 1)):
            block(f"ipda.part_sep_conv.{k}.conv_{i}", f"ipda.part_sep_conv.{k}.bn_{i}", C, C, side)
        for letter in "qkv":
            shapes[f"ipda.part_{letter}_conv.{k}.weight"] = [d, C, 1, 1]
        block(f"ipda.part_att_conv.{k}.0", f"ipda.part_att_conv.{k}.1", C, d, 1)
    return shapes


def released_checkpoint() -> dict[str, Tensor]:
    """What the released checkpoint holds under `model`."""
    return {name: synthesise(SEED, name, shape, ".bn2.") for name, shape in released_shapes().items()}


def inputs(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Target and reference, (2, 3, H, W) each."""
    target, reference = (synthesise(SEED, f"image {name} {size}", [2, 3, *size]) for name in ("target", "reference"))
    return target, reference


@torch.no_grad()
def compute() -> dict[str, Tensor]:
    """`HxW/<output>` -> logits."""
    weights = {name: value.double() for name, value in released_checkpoint().items()}
    outputs: dict[str, Tensor] = {}
    for size in SIZES:
        target, reference = (image.double() for image in inputs(size))
        result = loop.segment(weights, target, [reference])
        named = {
            "pred": result.logits,
            "saliency_target": result.target.saliency,
            "saliency_reference": result.references[0].saliency,
            "parts_target": torch.cat(result.target.logits, dim=1),
            "parts_reference": torch.cat(result.references[0].logits, dim=1),
        }
        for i in range(4):
            named[f"aux_target_{i}"] = result.aux_target[i]
            named[f"aux_reference_{i}"] = result.aux_references[0][i]
        outputs |= {f"{size[0]}x{size[1]}/{name}": value.float() for name, value in named.items()}
    return outputs


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, **{name: value.numpy() for name, value in compute().items()})
    print(f"{PATH}: {PATH.stat().st_size} bytes")
