"""PDNet: the network as five verbs. Read this file first.

encode_reference(image)      -> ReferenceFeatures   once a clip
segment(image, references)   -> PDNetOutput         once a frame
segment_alone(image)         -> PDNetOutput         an image as its own reference
forward(target, reference)   the two composed       training, the paper's pair graph
encode_image(image)          -> FrameMaps           the encoder alone, for image pretraining
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pdnet.errors import ConfigError
from pdnet.model.backbone import BackboneName
from pdnet.model.encoder import Encoder
from pdnet.model.fusion import SpatiotemporalFusion
from pdnet.model.ipda import IPDA
from pdnet.model.layers import resize


@dataclass(frozen=True)
class ModelConfig:
    """The architecture.

    Attributes:
        backbone: residual network of the encoder. Paper: 5.1, resnet50.
        width: channels of the pyramid. Paper silent: 128 (released).
        part_width: channels of part and motion features. Paper silent: 64 (released).
        attention_width: channels of query, key and value. Paper silent: 32 (released).
        parts: number of parts p. Paper: 5.1, 5.
        references: number of reference frames N the network is trained and exported with. Paper: 4.1, 1.
        ipda: False removes IPDA and fusion. Paper: table 3, row 1.
        assembly: `paper` is eq. (2), M = sum Q*R; `residual` is the released sum (P+Q)*R.
        attention_scale: `none` (released) or `sqrt_dim`. Paper silent.
    """

    backbone: BackboneName = "resnet50"
    width: int = 128
    part_width: int = 64
    attention_width: int = 32
    parts: int = 5
    references: int = 1
    ipda: bool = True
    assembly: Literal["paper", "residual"] = "paper"
    attention_scale: Literal["none", "sqrt_dim"] = "none"

    def __post_init__(self) -> None:
        for name in ("width", "part_width", "attention_width", "parts", "references"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: {getattr(self, name)}, expected at least 1")


class FrameMaps(NamedTuple):
    """What a frame alone predicts, each map at its own resolution.

    Attributes:
        aux_logits: the encoder's four heads, finest first, each (B, 1, h_i, w_i); empty unless asked for.
        saliency_logits: (B, 1, h, w); None without IPDA.
        part_logits: (B, K, h, w); None without IPDA.
    """

    aux_logits: tuple[Tensor, ...]
    saliency_logits: Tensor | None
    part_logits: Tensor | None


class ReferenceFeatures(NamedTuple):
    """Everything of N reference frames that a clip's targets need: the keys and values of every part.

    Attributes:
        key: (B, K, N*h*w, d); empty without IPDA.
        value: as `key`.
        maps: the reference frames' own predictions, batch axis B*N; None for joined features.
    """

    key: Tensor
    value: Tensor
    maps: FrameMaps | None = None

    @staticmethod
    def concatenate(references: Sequence[ReferenceFeatures]) -> ReferenceFeatures:
        """Join features that were encoded one by one; all frames are attended together."""
        return ReferenceFeatures(
            torch.cat([reference.key for reference in references], dim=2),
            torch.cat([reference.value for reference in references], dim=2),
        )


class PDNetOutput(NamedTuple):
    """The prediction for a target frame.

    Attributes:
        logits: (B, 1, H, W) at the size of the input; portrait where the sigmoid is at least 0.5.
        maps: the target's own intermediate predictions.
        as_reference: the target's own features, for later frames to refer to; None unless asked for.
    """

    logits: Tensor
    maps: FrameMaps
    as_reference: ReferenceFeatures | None = None


class PDNet(nn.Module):
    """Part-decoupling network for video portrait segmentation.

    Paper: section 4, figure 5. Images are RGB, ImageNet-normalised, (B, 3, H, W) of any size from 32 pixels a side.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.backbone, config.width)
        if config.ipda:
            self.ipda = IPDA(
                width=config.width,
                part_width=config.part_width,
                attention_width=config.attention_width,
                parts=config.parts,
                assembly=config.assembly,
                attention_scale=config.attention_scale,
            )
            self.fusion = SpatiotemporalFusion(config.width, config.part_width)
        self.head = nn.Conv2d(config.width, 1, 3, padding=1)
        self._initialise()

    def encode_reference(self, image: Tensor, *, auxiliary: bool = False) -> ReferenceFeatures:
        """Encode the reference frame(s) of each clip.

        Args:
            image: (B, 3, H, W), or (B, N, 3, H, W) for N reference frames that are attended together.
            auxiliary: also run the encoder's four heads (training).
        """
        frames = 1
        if image.dim() == 5:
            frames = image.shape[1]
            image = image.flatten(0, 1)
        pyramid = self.encoder(image)
        aux_logits = self.encoder.auxiliary_logits(pyramid) if auxiliary else ()
        if not self.config.ipda:
            empty = image.new_zeros(image.shape[0] // frames, 0, 0, 0)
            return ReferenceFeatures(empty, empty, FrameMaps(aux_logits, None, None))
        decoupled = self.ipda.decouple(pyramid.appearance)
        key, value = self.ipda.key_value(decoupled, frames)
        return ReferenceFeatures(key, value, FrameMaps(aux_logits, decoupled.saliency_logits, decoupled.part_logits))

    def segment(
        self, image: Tensor, references: ReferenceFeatures, *, auxiliary: bool = False, as_reference: bool = False
    ) -> PDNetOutput:
        """Segment target frames (B, 3, H, W) against their encoded references.

        Args:
            image: the targets.
            references: of the same clips; features of a batch of one serve a batch of targets of one clip.
            auxiliary: also run the encoder's four heads (training).
            as_reference: also return the targets' own features, what `encode_reference(image)` would compute again.
        """
        return self._segment(image, references, auxiliary, as_reference)

    def segment_alone(self, image: Tensor, *, auxiliary: bool = False) -> PDNetOutput:
        """Segment images (B, 3, H, W) that are their own reference; equals `forward(image, image)` at half the work."""
        return self._segment(image, None, auxiliary, as_reference=False)

    def forward(
        self, target: Tensor, reference: Tensor, *, auxiliary: bool = False
    ) -> tuple[PDNetOutput, ReferenceFeatures]:
        """Segment `target` (B, 3, H, W) given `reference` (B, 3, H, W) or (B, N, 3, H, W)."""
        encoded = self.encode_reference(reference, auxiliary=auxiliary)
        return self.segment(target, encoded, auxiliary=auxiliary), encoded

    def encode_image(self, image: Tensor) -> FrameMaps:
        """The encoder's heads alone on single images (B, 3, H, W); nothing else of the network runs."""
        return FrameMaps(self.encoder.auxiliary_logits(self.encoder(image)), None, None)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The two groups of the paper's recipe (5.1): `backbone` (the ResNet) and `rest`."""
        backbone = list(self.encoder.backbone.parameters())
        inside = {id(parameter) for parameter in backbone}
        return {"backbone": backbone, "rest": [p for p in self.parameters() if id(p) not in inside]}

    def _segment(
        self, image: Tensor, references: ReferenceFeatures | None, auxiliary: bool, as_reference: bool
    ) -> PDNetOutput:
        """Segment against `references`, or each image against itself where there are none."""
        pyramid = self.encoder(image)
        features = pyramid.appearance
        maps = FrameMaps(self.encoder.auxiliary_logits(pyramid) if auxiliary else (), None, None)
        empty = image.new_zeros(image.shape[0], 0, 0, 0)
        own = ReferenceFeatures(empty, empty)
        if self.config.ipda:
            target = self.ipda.decouple(features)
            if references is None or as_reference:
                own_key, own_value = self.ipda.key_value(target)
                own = ReferenceFeatures(own_key, own_value)
            key, value, _ = references or own
            key, value = (x.expand(image.shape[0], -1, -1, -1) for x in (key, value))
            motion = self.ipda.assemble(target, self.ipda.correlate(target, key, value))
            features = self.fusion(features, motion)
            maps = maps._replace(saliency_logits=target.saliency_logits, part_logits=target.part_logits)
        logits = resize(self.head(features), image.shape[-2:])
        return PDNetOutput(logits, maps, own if as_reference else None)

    def _initialise(self) -> None:
        """He initialisation outside the backbone (which has torchvision's), without its gain in the prediction heads.

        Paper silent. Heads that start near 0 end with nearly all weights negative where the background rules; what that
        costs is not settled (ADR 11).
        """
        inside = set(self.encoder.backbone.modules())
        heads: set[nn.Module] = {self.head, *self.encoder.heads}
        if self.config.ipda:
            heads |= {self.ipda.saliency_head, self.ipda.part_head}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module not in inside:
                nonlinearity: Literal["linear", "relu"] = "linear" if module in heads else "relu"
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity=nonlinearity)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
