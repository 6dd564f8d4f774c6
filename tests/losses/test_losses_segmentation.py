from __future__ import annotations

import math

import pytest
import torch
from direct_losses import direct_bce
from torch.autograd import gradcheck

from pdnet.losses import l1, segmentation_loss, weighted_bce

LN2 = math.log(2)


def test_weighted_bce_by_hand():
    # 4 pixels, 1 portrait: weight 4 / (1 + 1) = 2. Logit 0 is probability 1/2: every pixel costs ln 2.
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert weighted_bce(torch.zeros(1, 1, 2, 2), mask).item() == pytest.approx(2 * LN2)
    # Logit ln 3 is probability 3/4. 2 pixels, 1 portrait: weight 2 / 2 = 1; (-ln 3/4 - ln 1/4) / 2 = 0.8369882.
    logits = torch.full((1, 1, 1, 2), math.log(3))
    assert weighted_bce(logits, torch.tensor([[[[1.0, 0.0]]]])).item() == pytest.approx(0.8369882)


def test_soft_masks_count_as_portrait_from_a_half():
    # Both pixels are at 0.5 or above: weight 2 / 3. -0.5 ln 3/4 - 0.5 ln 1/4 = 0.8369882 and, at label 1, 0.2876821.
    logits = torch.full((1, 1, 1, 2), math.log(3))
    value = weighted_bce(logits, torch.tensor([[[[0.5, 1.0]]]]))
    assert value.item() == pytest.approx(2 / 3 * (0.8369882 + 0.2876821) / 2)
    # Just below a half it is none: weight 2 / 2.
    value = weighted_bce(logits, torch.tensor([[[[0.499, 1.0]]]]))
    assert value.item() == pytest.approx((-0.499 * math.log(0.75) - 0.501 * math.log(0.25) + 0.2876821) / 2)


def test_the_weight_is_capped_without_a_portrait():
    # 4 pixels, none portrait: weight 4 / 1, or the cap.
    logits, mask = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert weighted_bce(logits, mask).item() == pytest.approx(4 * LN2)
    assert weighted_bce(logits, mask, 3.0).item() == pytest.approx(3 * LN2)


def test_l1_and_sum_by_hand():
    # Probability 3/4 against 1 and 0: (1/4 + 3/4) / 2.
    logits, mask = torch.full((1, 1, 1, 2), math.log(3)), torch.tensor([[[[1.0, 0.0]]]])
    assert l1(logits, mask).item() == pytest.approx(0.5)
    both = segmentation_loss(logits, mask, l1_weight=0.8, max_bce_weight=50)
    assert both.item() == pytest.approx(0.8369882 + 0.8 * 0.5)


def test_the_weight_is_of_the_batch_not_of_the_image():
    # 1 portrait pixel among 4 in two images: weight 4 / 2 for both images, not 2 / 2 and 2 / 1.
    mask = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(2, 1, 1, 2)
    assert weighted_bce(torch.zeros(2, 1, 1, 2), mask).item() == pytest.approx(2 * LN2)


@pytest.mark.parametrize("loss", [weighted_bce, l1])
def test_heads_add_up(loss):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 7, 5, generator=generator)
    mask = torch.rand(3, 1, 7, 5, generator=generator)
    one_by_one = sum(loss(logits[:, [head]], mask) for head in range(4))
    torch.testing.assert_close(loss(logits, mask), one_by_one)


def test_against_the_formula_on_probabilities():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 1, 9, 11, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 1, 9, 11, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(weighted_bce(logits, mask), direct_bce(logits, mask))


@pytest.mark.parametrize("loss", [weighted_bce, l1])
def test_gradients(loss):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    mask = (torch.rand(2, 1, 4, 5, generator=generator, dtype=torch.float64) > 0.6).double()
    assert gradcheck(lambda x: loss(x, mask), (logits,))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(RuntimeError):
        weighted_bce(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 5, 4))
