"""The network cut where a stream needs it: what runs once a clip, and what runs once a frame.

    ReferenceEncoder   image -> key, value
    Segmenter          image, key, value -> probability, ...

Plain tensors in and out, so that a compiler or an exporter can take either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pdnet.model.pdnet import PDNet, ReferenceFeatures


class ReferenceEncoder(nn.Module):
    """image -> its features as a reference."""

    def __init__(self, network: PDNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised -> key and value, (B, 1, K, h*w, d); several frames are joined along axis 1."""
        key, value, _ = self.network.encode_reference(image)
        return key.unsqueeze(1), value.unsqueeze(1)


class Segmenter(nn.Module):
    """(image, features of N references) -> the tensors that `outputs` names.

    Attributes:
        outputs: `probability`, then `saliency` and `part_prob` where the network has IPDA, then `own_key` and
            `own_value` where it refers to more than the first frame.
    """

    def __init__(self, network: PDNet) -> None:
        super().__init__()
        self.network = network
        self.outputs: tuple[str, ...] = ("probability",)
        if network.config.ipda:
            self.outputs += ("saliency", "part_prob")
            self.outputs += ("own_key", "own_value") if network.config.references > 1 else ()

    def forward(self, image: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Segment targets.

        Args:
            image: (B, 3, H, W), normalised.
            key: (B, N, K, h*w, d) of N references; a batch of 1 serves all.
            value: as `key`.

        Returns:
            probability (B, 1, H, W) and saliency (B, 1, h, w) in 0..1; part_prob (B, K, h, w), 1 in sum over K; the
            targets' own key and value, (B, 1, K, h*w, d). All but the last two are float32.
        """
        key, value = (x.transpose(1, 2).flatten(2, 3) for x in (key, value))
        references = ReferenceFeatures(key, value)
        output = self.network.segment(image, references, as_reference=len(self.outputs) > 3)
        found = [torch.sigmoid(output.logits.float())]
        maps = output.maps
        if maps.saliency_logits is not None and maps.part_logits is not None:
            found += [torch.sigmoid(maps.saliency_logits.float()), torch.softmax(maps.part_logits.float(), dim=1)]
        if output.as_reference is not None:
            found += [output.as_reference.key.unsqueeze(1), output.as_reference.value.unsqueeze(1)]
        return tuple(found)
