"""Self-supervision of the parts by their shape and size (paper: 4.4).

The parts of a portrait are X^k = Y * D^k, shape (B, K, H, W): Y the portrait, D the softmax over the K part logits.
All three losses of a part see only sums of X over rows, columns or pixels, so nothing of full size is kept for them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pdnet.losses.precision import full_precision

#: Added to a part's area where the concentration divides by it: a part without area scores 0.
AREA_FLOOR = 1e-7
#: The paper's epsilon in eq. (3); the paper gives no value, this is the released one.
NORM_FLOOR = 1e-12


@full_precision
def geometric_concentration(parts: Tensor) -> Tensor:
    """L_geo: the spatial variance of each part about its own centre.

        q_k = X^k / (sum X^k + 1e-7),   c_k = sum q_k (x, y),   L = mean_b sum_k sum_p q_k |(x, y) - c_k|^2

    with coordinates x = 2j/W - 1 and y = 2i/H - 1. The variance along x needs only the column sums of X, the one along
    y only the row sums. A uniform part scores about 2/3, an empty one 0 without gradient.

    Paper: 4.4, as in SCOPS. Paper silent: coordinates, floor and reduction (released choices).

    Args:
        parts: (B, K, H, W) >= 0.

    Returns:
        Scalar in [0, 2 K].
    """
    rows, columns = parts.sum(dim=3), parts.sum(dim=2)  # (B, K, H), (B, K, W)
    area = rows.sum(dim=2, keepdim=True) + AREA_FLOOR  # (B, K, 1)
    spread = _variance_along_axis(rows / area) + _variance_along_axis(columns / area)  # (B, K)
    return spread.sum(dim=1).mean()


def _variance_along_axis(density: Tensor) -> Tensor:
    """Variance of the coordinate 2n/N - 1 under `density` (..., N), which sums to 1 (or to 0 for an empty part)."""
    length = density.shape[-1]
    coordinate = torch.arange(length, dtype=density.dtype, device=density.device) * (2 / length) - 1
    centre = (density * coordinate).sum(dim=-1, keepdim=True)
    return (density * (coordinate - centre).square()).sum(dim=-1)


@full_precision
def area_variance(parts: Tensor) -> Tensor:
    """L_area: the variance over the parts of their areas, the areas of a portrait scaled to norm 1.

    Paper: eq. (3) and (4). Paper silent: the variance divides by K - 1, epsilon is 1e-12 (released choices); the mean
    over the batch is taken.

    Args:
        parts: (B, K, H, W) >= 0.

    Returns:
        Scalar from 0 (equal areas, or no portrait) to 1/K (one part takes all); 0 for K = 1.
    """
    area = parts.sum(dim=(2, 3))  # (B, K), expected number of pixels: eq. (4)
    share = F.normalize(area, dim=1, eps=NORM_FLOOR)
    return share.var(dim=1, correction=min(1, parts.shape[1] - 1)).mean()
