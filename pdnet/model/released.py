"""Import of a checkpoint of the network that the paper's authors released."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pdnet.errors import CheckpointError
from pdnet.model.backbone import BackboneName, check_state, is_state_dict, read_checkpoint
from pdnet.model.pdnet import ModelConfig, PDNet

# released prefix -> ours; `{i}` stands for the index inside a block of convolutions and norms
_NAMES = {
    "bkbone.": "encoder.backbone.",
    "l2_adapt.": "encoder.laterals.0.",
    "l3_adapt.": "encoder.laterals.1.",
    "l4_adapt.": "encoder.laterals.2.",
    "l5_adapt.": "encoder.laterals.3.",
    "head_1.": "encoder.heads.0.",
    "head_2.": "encoder.heads.1.",
    "head_3.": "encoder.heads.2.",
    "head_4.": "encoder.heads.3.",
    "head.": "head.",
    "ipda.sup_adapt1.": "ipda.compress.0.",
    "ipda.sup_adapt2.": "ipda.compress.1.",
    "ipda.sup_head.": "ipda.saliency_head.",
    "ipda.part_sep_pred.": "ipda.part_head.",
    "spatiotemporal_fusion.conv_t.": "fusion.expand.",
    "spatiotemporal_fusion.bn_t.": "fusion.expand_norm.",
    "spatiotemporal_fusion.conv_t1.": "fusion.gate.",
}
_NAMES |= {
    f"{block}{kind}_{i + 1}.": f"{ours}{i}.{slot}."
    for block, ours in (
        ("fuse2.", "encoder.fusions.0."),
        ("fuse3.", "encoder.fusions.1."),
        ("fuse4.", "encoder.fusions.2."),
        ("spatiotemporal_fusion.", "fusion.mix."),
    )
    for i in range(2)
    for kind, slot in (("conv", 0), ("bn", 1))
}

# Per part in the released network, one grouped layer in ours: stacked along the first axis.
_PART_NAMES = {
    f"ipda.part_{x}_conv.{{part}}.": f"ipda.to_{y}." for x, y in (("q", "query"), ("k", "key"), ("v", "value"))
}
_PART_NAMES["ipda.part_att_conv.{part}."] = "ipda.from_attention."
_PART_NAMES |= {
    f"ipda.part_sep_conv.{{part}}.{kind}_{i + 1}.": f"ipda.branches.{i}.{slot}."
    for i in range(3)
    for kind, slot in (("conv", 0), ("bn", 1))
}

# (bottleneck blocks, blocks in layer3) -> backbone
_BACKBONES: dict[tuple[bool, int], BackboneName] = {
    (False, 2): "resnet18",
    (False, 6): "resnet34",
    (True, 6): "resnet50",
    (True, 23): "resnet101",
}


def load_released(path: Path) -> PDNet:
    """Read a released checkpoint (`torch.save` of `{"model": state_dict}`) into our network.

    The architecture is read off the shapes: backbone, widths, number of parts. The released choices are switched
    on: assembly sums (P+Q)*R-hat, attention is not scaled.

    Raises:
        CheckpointError: the file is missing, damaged, or no released PDNet.
    """
    content = read_checkpoint(path, "a checkpoint of the released PDNet")
    state = content.get("model") if isinstance(content, dict) else None
    if not is_state_dict(state):
        raise CheckpointError(f"{path}: has no dict of tensors under the key 'model'; expected a released checkpoint")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    network = PDNet(_architecture(state, path))
    try:
        converted = convert_released(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not a checkpoint of the released PDNet: {error}") from None
    check_state(converted, network.state_dict(), f"{path}: not a checkpoint of the released PDNet")
    network.load_state_dict(converted)
    return network.eval()


def convert_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename released parameters to ours and stack those of the parts; unknown names are kept as they are.

    Raises:
        CheckpointError: the parts of a layer differ in shape.
    """
    converted: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        for theirs, ours in _NAMES.items():
            if name.startswith(theirs):
                converted[ours + name.removeprefix(theirs)] = value
                break
        else:
            part_name, part = _part_of(name)
            if part is None:
                converted[name] = value
            else:
                stacks.setdefault(part_name, {})[part] = value
    for name, values in stacks.items():
        ordered = [values[part] for part in sorted(values)]
        shapes = sorted({tuple(value.shape) for value in ordered})
        if len(shapes) > 1:
            raise CheckpointError(f"{name} has shapes {' and '.join(map(str, shapes))} for different parts")
        converted[name] = ordered[0] if ordered[0].dim() == 0 else torch.cat(ordered)
    return converted


def _part_of(name: str) -> tuple[str, int | None]:
    pieces = name.split(".")
    if len(pieces) > 2 and pieces[2].isdigit():
        for theirs, ours in _PART_NAMES.items():
            prefix = theirs.format(part=pieces[2])
            if name.startswith(prefix):
                return ours + name.removeprefix(prefix), int(pieces[2])
    return name, None


def _architecture(state: dict[str, Tensor], path: Path) -> ModelConfig:
    try:
        blocks = len({name.split(".")[2] for name in state if name.startswith("bkbone.layer3.")})
        bottleneck = "bkbone.layer1.0.conv3.weight" in state
        if (bottleneck, blocks) not in _BACKBONES:
            raise CheckpointError(
                f"{path}: not a checkpoint of the released PDNet: {blocks} blocks in bkbone.layer3, "
                "expected those of a ResNet-18, 34, 50 or 101"
            )
        return ModelConfig(
            backbone=_BACKBONES[bottleneck, blocks],
            width=state["l5_adapt.0.weight"].shape[0],
            part_width=state["ipda.sup_adapt2.0.weight"].shape[0],
            attention_width=state["ipda.part_q_conv.0.weight"].shape[0],
            parts=len({name.split(".")[2] for name in state if name.startswith("ipda.part_q_conv.")}),
            assembly="residual",
            attention_scale="none",
        )
    except KeyError as missing:
        raise CheckpointError(f"{path}: not a checkpoint of the released PDNet: {missing} is missing") from None
