"""What one iteration computes: the network's outputs at the input's size, and their loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pdnet.data.streams import Pairs, Stills
from pdnet.losses import FrameLogits, Loss, LossConfig, PDNetLoss
from pdnet.losses.segmentation import segmentation_loss
from pdnet.model import FrameMaps, PDNet, resize


class Task(nn.Module):
    """Network and loss of the video and image iterations; the network alone is what is kept.

    Args:
        network: trained in place.
        losses: weights of the losses.
        seed: of the part basis.
        dtype: number format of the forward pass (autocast); losses are float32 always.
        parts: False where no part loss will be asked for (pretraining): saves the frozen feature network.
    """

    def __init__(
        self,
        network: PDNet,
        losses: LossConfig,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        parts: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        count = network.config.parts if network.config.ipda and parts else 1
        self.loss = PDNetLoss(losses, parts=count, seed=seed)
        self.dtype = dtype

    def video(self, batch: Pairs) -> Loss:
        """A video iteration: target and reference frames, every loss of section 4.4."""
        with self._autocast(batch.image_t):
            output, reference = self.network(batch.image_t, batch.image_ref, auxiliary=True)
            assert reference.maps is not None
            # Inside autocast for the frozen feature network alone; the losses see to their own float32.
            return self.loss.video(
                output.logits,
                _at_size(output.maps, batch.mask_t),
                _at_size(reference.maps, batch.mask_t),
                image_t=batch.image_t,
                image_ref=batch.image_ref.flatten(0, -4),
                mask_t=batch.mask_t,
                mask_ref=batch.mask_ref,
            )

    def image(self, batch: Stills) -> Loss:
        """An image iteration: the image as its own reference, no part losses (released)."""
        with self._autocast(batch.image):
            output = self.network.segment_alone(batch.image, auxiliary=True)
        return self.loss.image(output.logits, _at_size(output.maps, batch.mask), mask_t=batch.mask)

    def pretrain(self, batch: Stills) -> Tensor:
        """The encoder's four heads alone on single images; mean of their segmentation losses."""
        with self._autocast(batch.image):
            maps = self.network.encode_image(batch.image)
        config = self.loss.config
        logits = _at_size(maps, batch.mask).encoder
        summed = segmentation_loss(logits, batch.mask, l1_weight=config.l1_weight, max_bce_weight=config.max_bce_weight)
        return summed / logits.shape[1]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """`backbone` and `rest` (5.1); the part basis belongs to the rest (released)."""
        groups = self.network.parameter_groups()
        if self.loss.basis is not None:
            groups["rest"] += list(self.loss.basis.parameters())
        return groups

    def _autocast(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def _at_size(maps: FrameMaps, like: Tensor) -> FrameLogits:
    """Every map in float32 at the size of `like` (B, 1, H, W), as the losses want them."""
    size = like.shape[-2:]

    def grown(logits: Tensor | None) -> Tensor | None:
        return None if logits is None else resize(logits.float(), size)

    encoder = torch.cat([resize(logits.float(), size) for logits in maps.aux_logits], dim=1)
    return FrameLogits(encoder, grown(maps.saliency_logits), grown(maps.part_logits))
