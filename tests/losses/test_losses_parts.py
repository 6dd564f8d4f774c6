from __future__ import annotations

import pytest
import torch
from direct_losses import direct_area, direct_geometric
from torch import Tensor
from torch.autograd import gradcheck

from pdnet.losses import area_variance, geometric_concentration


def random_parts(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_concentration_by_hand():
    # 2 x 4 pixels: x in {-1, -1/2, 0, 1/2}, y in {-1, 0}.
    parts = torch.zeros(1, 2, 2, 4)
    # Part 0: equal mass at x = -1 and x = 1/2, same row. Centre -1/4, distance 3/4 each: 9/16.
    parts[0, 0, 0, 0] = parts[0, 0, 0, 3] = 0.7
    # Part 1: mass 3 at y = -1 and 1 at y = 0, same column. Centre -3/4: (3 * 1/16 + 9/16) / 4 = 3/16.
    parts[0, 1, 0, 1], parts[0, 1, 1, 1] = 3.0, 1.0
    assert geometric_concentration(parts).item() == pytest.approx(9 / 16 + 3 / 16)
    # The batch is averaged: a second image whose parts are single pixels scores 0.
    points = torch.zeros(1, 2, 2, 4)
    points[0, 0, 1, 2] = points[0, 1, 0, 0] = 1.0
    assert geometric_concentration(torch.cat([parts, points])).item() == pytest.approx((9 / 16 + 3 / 16) / 2)


def test_concentration_of_a_uniform_part():
    # The variance of 2i/N - 1 over i = 0..N-1 is (1 - 1/N^2) / 3.
    expected = (1 - 1 / 12**2) / 3 + (1 - 1 / 20**2) / 3
    assert geometric_concentration(torch.full((2, 1, 12, 20), 0.3)).item() == pytest.approx(expected)


def test_concentration_of_a_compact_part_keeps_its_digits():
    # Two neighbouring pixels far from the centre: half a pixel each side, (1 / 480)^2. E[x^2] - E[x]^2 would lose it.
    parts = torch.zeros(1, 1, 480, 480)
    parts[0, 0, 470, 475] = parts[0, 0, 470, 476] = 1.0
    assert geometric_concentration(parts).item() == pytest.approx(1 / 480**2, rel=1e-3)


def test_area_by_hand():
    # Areas 3 and 4 have norm 5: 0.6 and 0.8, mean 0.7, (0.1^2 + 0.1^2) / (2 - 1).
    parts = torch.zeros(1, 2, 2, 4)
    parts[0, 0, 0, :3], parts[0, 1, 0, :4] = 1.0, 1.0
    assert area_variance(parts).item() == pytest.approx(0.02)


def test_area_range():
    equal = torch.full((2, 5, 3, 3), 0.2)
    assert area_variance(equal).item() == pytest.approx(0, abs=1e-12)
    alone = torch.zeros(2, 5, 3, 3)
    alone[:, 3] = 1
    assert area_variance(alone).item() == pytest.approx(1 / 5)
    assert area_variance(torch.ones(2, 1, 3, 3)).item() == 0
    # Scaled to norm 1: the portrait's size does not matter.
    parts = random_parts(2, 5, 6, 7)
    torch.testing.assert_close(area_variance(parts), area_variance(parts / 10))


@pytest.mark.parametrize("loss", [geometric_concentration, area_variance])
def test_nothing_to_divide_costs_nothing(loss):
    parts = torch.zeros(2, 3, 5, 6, requires_grad=True)
    portrait = torch.zeros(2, 1, 5, 6)
    value = loss(portrait * parts.softmax(dim=1))
    value.backward()
    assert value.item() == 0
    assert parts.grad is not None
    assert parts.grad.abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 3, 5, 9), (3, 8, 33, 17)])
def test_against_the_formulas(shape):
    parts = random_parts(*shape)
    torch.testing.assert_close(geometric_concentration(parts), direct_geometric(parts))
    torch.testing.assert_close(area_variance(parts), direct_area(parts))


@pytest.mark.parametrize("loss", [geometric_concentration, area_variance])
def test_gradients(loss):
    assert gradcheck(loss, (random_parts(2, 3, 4, 5).requires_grad_(),))
