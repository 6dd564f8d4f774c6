"""The loss of a training step, from every output of the network (paper: 4.4; image steps: 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from torch import Tensor, nn

from pdnet.errors import ConfigError
from pdnet.losses.parts import area_variance, geometric_concentration
from pdnet.losses.precision import full_precision
from pdnet.losses.segmentation import segmentation_loss
from pdnet.losses.semantic import PartBasis, SemanticFeatures, orthonormal_penalty, semantic_consistency


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses and the origin of the semantic features.

    Paper silent on every weight but those of eq. (6) and (7), which are 1; the defaults are the released ones.

    Raises:
        ConfigError: a weight is negative or not finite, or the cap is not positive.
    """

    #: L1 beside the weighted BCE, for every portrait output.
    l1_weight: float = 0.8
    #: Upper limit of the weighted BCE's weight (pixels over portrait pixels); 50 is a portrait of 2 % of the pixels.
    max_bce_weight: float = 50.0
    #: The target frame's encoder outputs, saliency and parts, beside the final output's 1.
    auxiliary_weight: float = 0.8
    #: The same six terms of the reference frame.
    reference_weight: float = 0.64
    #: L_geo in eq. (7).
    geometric_weight: float = 1.0
    #: L_sem in eq. (7); 0 leaves out the orthonormal term too, and the frozen network is not made.
    semantic_weight: float = 1.0
    #: L_area in eq. (7).
    area_weight: float = 1.0
    #: Orthonormality of the part basis, once for each frame.
    orthonormal_weight: float = 1.0
    #: How L_geo and L_sem add up their branches of truth and saliency: "mean", as eq. (6) reads, or
    #: "released", L(R, G) + L(R-hat, S) / 2. L_area is a mean in both.
    branches: Literal["mean", "released"] = "mean"
    #: Stop the gradient of the part losses into the predicted saliency (L_sem pulls it towards 0).
    detach_saliency: bool = False
    #: Weights of the frozen ResNet-18 of L_sem: "imagenet", "none" (random) or the path of a state dict.
    semantic_features: str = "imagenet"

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name.endswith("_weight")):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"losses.{name}: {value}, expected a finite number >= 0")
        if self.max_bce_weight == 0:
            raise ConfigError("losses.max_bce_weight: 0, expected a number > 0")


class FrameLogits(NamedTuple):
    """What the encoder and IPDA say about one frame, all at the input's size.

    A network without IPDA has neither saliency nor parts: their losses are left out.
    """

    encoder: Tensor  #: (B, A, H, W), the A auxiliary heads (4 in PDNet)
    saliency: Tensor | None = None  #: (B, 1, H, W)
    parts: Tensor | None = None  #: (B, K, H, W)


class Loss(NamedTuple):
    """The loss of a step, and what it is made of."""

    total: Tensor  #: scalar to differentiate
    terms: dict[str, Tensor]  #: unweighted scalars by name, detached: final, encoder_t, geometric_ref, ...


@full_precision
def part_losses(
    part_logits: Tensor,
    saliency_logits: Tensor,
    mask: Tensor,
    features: Tensor | None = None,
    basis: Tensor | None = None,
    *,
    branches: Literal["mean", "released"] = "mean",
    detach_saliency: bool = False,
) -> dict[str, Tensor]:
    """The self-supervised losses of one frame's parts, each the mean of two branches.

    The parts are cut out of the ground truth, R^k = G D^k, and out of the predicted saliency, R-hat^k = S D^k; a term
    is (L(R, G) + L(R-hat, S)) / 2. Paper: eq. (1) and (5)-(7). Paper silent: D is a softmax over the K part logits
    (released), so the parts of a pixel add up to the portrait.

    Args:
        part_logits: (B, K, H, W).
        saliency_logits: (B, 1, H, W).
        mask: (B, 1, H, W) in [0, 1], G.
        features: (B, C, h, w) of `SemanticFeatures`; None leaves out the semantic and the orthonormal term.
        basis: (K, C) >= 0; goes with `features`.
        branches: "released" adds L_geo and L_sem of the two branches with weights 1 and 1/2.
        detach_saliency: treat S as a constant.

    Returns:
        Unweighted scalars: geometric, area, semantic, orthonormal.
    """
    part_prob = part_logits.contiguous().softmax(dim=1)  # D; the sums below run over the pixels of one part
    saliency = saliency_logits.sigmoid()
    portraits = (mask, saliency.detach() if detach_saliency else saliency)  # Y of the two branches
    parts = [portrait * part_prob for portrait in portraits]  # X of the two branches: R, R-hat
    of_truth, of_saliency = (0.5, 0.5) if branches == "mean" else (1.0, 0.5)
    terms = {
        "geometric": of_truth * geometric_concentration(parts[0]) + of_saliency * geometric_concentration(parts[1]),
        "area": (area_variance(parts[0]) + area_variance(parts[1])) / 2,
    }
    if features is not None and basis is not None:
        portrait_squared = of_truth * portraits[0].square() + of_saliency * portraits[1].square()
        terms["semantic"] = semantic_consistency(part_prob, portrait_squared, features, basis)
        terms["orthonormal"] = orthonormal_penalty(basis)
    return terms


class PDNetLoss(nn.Module):
    """The loss of a video step and of an image step.

    Its only parameters to train are those of `basis`, with the network's outside the backbone; the frozen
    `SemanticFeatures` is no part of its state dict. The losses are computed in float32 whatever the outputs' precision;
    only the frozen network follows autocast, so call `video` inside the network's autocast block.

    Args:
        config: weights and origin of the semantic features.
        parts: K; 1, or a network without IPDA, has no part losses (paper: 5.5), and then nothing to train here.
        seed: of the basis, and of the semantic features if they are random.

    Raises:
        CheckpointError: the semantic features' weights cannot be had.
    """

    def __init__(self, config: LossConfig, *, parts: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.parts = parts
        self.features: SemanticFeatures | None = None
        self.basis: PartBasis | None = None
        if parts > 1 and config.semantic_weight > 0:
            self.features = SemanticFeatures(config.semantic_features, seed=seed)
            self.basis = PartBasis(parts, SemanticFeatures.channels, seed=seed)

    def video(
        self,
        final_logits: Tensor,
        frame_t: FrameLogits,
        frame_ref: FrameLogits,
        *,
        image_t: Tensor,
        image_ref: Tensor,
        mask_t: Tensor,
        mask_ref: Tensor,
    ) -> Loss:
        """A target and a reference frame:  l(final) + 0.8 [ sum l(encoder) + l(S) + L_part ]_t + 0.64 [ the same ]_ref.

        Paper: 4.4, eq. (6) and (7). Paper silent: the factors 0.8 and 0.64 (released).

        Args:
            final_logits: (B, 1, H, W).
            frame_t: the target frame's other outputs.
            frame_ref: the reference frame's.
            image_t: (B, 3, H, W), normalised by ImageNet's mean and standard deviation.
            image_ref: as `image_t`.
            mask_t: (B, 1, H, W) in [0, 1].
            mask_ref: as `mask_t`.
        """
        final = self._segmentation(final_logits, mask_t)
        loss_t, terms_t = self._frame(frame_t, mask_t, image_t)
        loss_ref, terms_ref = self._frame(frame_ref, mask_ref, image_ref)
        total = final + self.config.auxiliary_weight * loss_t + self.config.reference_weight * loss_ref
        return _loss(total, final, t=terms_t, ref=terms_ref)

    def image(self, final_logits: Tensor, frame_t: FrameLogits, *, mask_t: Tensor) -> Loss:
        """A single image, fed as both frames:  l(final) + 0.8 [ sum l(encoder) + l(S) ].

        Paper: 5.1 has the image steps but not their loss; this is the released one.

        Args:
            final_logits: (B, 1, H, W).
            frame_t: the image's other outputs; its parts are left alone.
            mask_t: (B, 1, H, W) in [0, 1].
        """
        final = self._segmentation(final_logits, mask_t)
        loss_t, terms_t = self._frame(frame_t._replace(parts=None), mask_t, image=None)
        return _loss(final + self.config.auxiliary_weight * loss_t, final, t=terms_t)

    def _segmentation(self, logits: Tensor, mask: Tensor) -> Tensor:
        config = self.config
        return segmentation_loss(logits, mask, l1_weight=config.l1_weight, max_bce_weight=config.max_bce_weight)

    def _frame(self, frame: FrameLogits, mask: Tensor, image: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The auxiliary losses of one frame: their weighted sum, and each by itself."""
        terms = {"encoder": self._segmentation(frame.encoder, mask)}
        if frame.saliency is not None:
            terms["saliency"] = self._segmentation(frame.saliency, mask)
            if frame.parts is not None and self.parts > 1:
                features = self.features(image) if self.features is not None else None
                basis = self.basis() if self.basis is not None else None
                terms |= part_losses(
                    *(frame.parts, frame.saliency, mask, features, basis),
                    branches=self.config.branches,
                    detach_saliency=self.config.detach_saliency,
                )
        weights = {
            "geometric": self.config.geometric_weight,
            "semantic": self.config.semantic_weight,
            "area": self.config.area_weight,
            "orthonormal": self.config.orthonormal_weight,
        }
        return sum((weights.get(name, 1.0) * term for name, term in terms.items()), mask.new_zeros(())), terms


def _loss(total: Tensor, final: Tensor, **frames: dict[str, Tensor]) -> Loss:
    terms = {"final": final}
    for frame, of_frame in frames.items():
        terms |= {f"{name}_{frame}": term for name, term in of_frame.items()}
    return Loss(total, {name: term.detach() for name, term in terms.items()})
