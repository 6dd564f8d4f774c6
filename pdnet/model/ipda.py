"""Inter-frame part-discriminated attention (paper 4.2)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdnet.model.layers import ConvBNReLU, resize


class Decoupled(NamedTuple):
    """One frame, decoupled into parts (figure 6(a)); K parts, h = H/16, w = W/16.

    Attributes:
        saliency_logits: (B, 1, h, w), before the sigmoid that gives S.
        part_logits: (B, K, h, w), before the softmax over K that gives D.
        part_feat: (B, K, C, h, w), the part-discriminated features P.
    """

    saliency_logits: Tensor
    part_logits: Tensor
    part_feat: Tensor


class IPDA(nn.Module):
    """Decouples a frame into parts, relates each part to the same part of the reference, assembles the motion.

    The parts are an axis: the p branches are grouped convolutions, the p cross-attentions one call.

    Args:
        width: channels of the appearance features A.
        part_width: channels C of P, Q and M.
        attention_width: channels d of query, key and value.
        parts: number of parts p.
        assembly: `paper` is eq. (2); `residual` adds the target's own part features (released).
        attention_scale: `none` leaves the products unscaled (Paper silent: released); `sqrt_dim` divides by sqrt(d).
    """

    def __init__(
        self,
        *,
        width: int,
        part_width: int,
        attention_width: int,
        parts: int,
        assembly: Literal["paper", "residual"],
        attention_scale: Literal["none", "sqrt_dim"],
    ) -> None:
        super().__init__()
        K, C, d = parts, part_width, attention_width
        self.parts, self.assembly = parts, assembly
        self.scale = 1.0 if attention_scale == "none" else d**-0.5
        self.compress = nn.Sequential(ConvBNReLU(width, width, 3), ConvBNReLU(width, C, 1))
        self.saliency_head = nn.Conv2d(C, 1, 3, padding=1)
        self.branches = nn.Sequential(
            ConvBNReLU(C, K * C, 1), ConvBNReLU(K * C, K * C, 3, groups=K), ConvBNReLU(K * C, K * C, 1, groups=K)
        )
        self.part_head = nn.Conv2d(C, 1, 3, padding=1)  # one head for all parts
        self.to_query = nn.Conv2d(K * C, K * d, 1, groups=K, bias=False)
        self.to_key = nn.Conv2d(K * C, K * d, 1, groups=K, bias=False)
        self.to_value = nn.Conv2d(K * C, K * d, 1, groups=K, bias=False)
        self.from_attention = ConvBNReLU(K * d, K * C, 1, groups=K)

    def decouple(self, appearance: Tensor) -> Decoupled:
        """Decouple appearance features A (B, C_A, H/4, W/4) into parts at a quarter of their size.

        Paper: 4.2, unsupervised part decoupling.
        """
        B, _, H4, W4 = appearance.shape
        h, w = max(H4 // 4, 1), max(W4 // 4, 1)
        compressed = self.compress(resize(appearance, (h, w)))
        part_feat = self.branches(compressed)  # (B, K*C, h, w)
        part_logits = self.part_head(part_feat.reshape(B * self.parts, -1, h, w))  # (B*K, 1, h, w)
        return Decoupled(
            saliency_logits=self.saliency_head(compressed),
            part_logits=part_logits.reshape(B, self.parts, h, w),
            part_feat=part_feat.reshape(B, self.parts, -1, h, w),
        )

    def key_value(self, reference: Decoupled, frames: int = 1) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, N*h*w, d) of N = `frames` reference frames whose decoupling has batch axis B*N."""
        part_feat = reference.part_feat.flatten(1, 2)
        return self._tokens(self.to_key(part_feat), frames), self._tokens(self.to_value(part_feat), frames)

    def correlate(self, target: Decoupled, key: Tensor, value: Tensor) -> Tensor:
        """Part-discriminated motion features Q of the target, (B, K, C, h, w).

        Paper: 4.2, correlation extraction: query from the target, key and value from the same part of the reference.
        """
        B, *_, h, w = target.part_feat.shape
        query = self._tokens(self.to_query(target.part_feat.flatten(1, 2)), 1)
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        maps = attended.transpose(-1, -2).reshape(B, -1, h, w)  # (B, K*d, h, w)
        motion: Tensor = self.from_attention(maps)
        return motion.reshape(B, self.parts, -1, h, w)

    def assemble(self, target: Decoupled, part_motion: Tensor) -> Tensor:
        """Motion features M of the target, (B, C, h, w).

        Paper: 4.2, eq. (1) R-hat = S * D and eq. (2) M = sum over k of Q^k * R-hat^k.
        """
        part_mask = torch.sigmoid(target.saliency_logits) * torch.softmax(target.part_logits, dim=1)  # (B, K, h, w)
        if self.assembly == "residual":
            part_motion = part_motion + target.part_feat
        return (part_motion * part_mask.unsqueeze(2)).sum(dim=1)

    def _tokens(self, x: Tensor, frames: int) -> Tensor:
        """(B*N, K*d, h, w) -> (B, K, N*h*w, d), contiguous: anything else takes the slow attention kernel."""
        BN, Kd, h, w = x.shape
        x = x.reshape(BN // frames, frames, self.parts, Kd // self.parts, h * w)
        return x.permute(0, 2, 1, 4, 3).flatten(2, 3).contiguous()
