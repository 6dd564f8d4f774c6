"""The values of the original implementations (SCOPS, COSNet and its kin, the released PDNet)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pdnet.losses import (
    area_variance,
    geometric_concentration,
    l1,
    orthonormal_penalty,
    part_losses,
    semantic_consistency,
    weighted_bce,
)


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Tensor], dict[str, float]]:
    shared = os.environ.get("PDNET_SHARED")
    if not shared:
        pytest.skip("PDNET_SHARED is not set: the values of the original code are not at hand")
    folder = Path(shared) / "reference" / "loss_golden"
    with np.load(folder / "losses.npz") as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays}
    return tensors, json.loads((folder / "losses.json").read_text(encoding="utf-8"))["values"]


def check(value: Tensor, expected: float) -> None:
    assert value.item() == pytest.approx(expected, rel=1e-5)


def check_gradient(loss: Tensor, leaf: Tensor, expected: Tensor) -> None:
    gradient = torch.autograd.grad(loss, leaf)[0]
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


def test_released_segmentation(golden):
    tensors, values = golden
    logits, mask = tensors["pd_logit"], tensors["pd_label_soft"]
    check(weighted_bce(logits, mask), values["pd_weighted_bce"])
    check(l1(logits, mask), values["pd_l1"])
    check(weighted_bce(logits, torch.zeros_like(mask)), values["pd_weighted_bce_no_positive"])


def test_cosnet_segmentation(golden):
    tensors, values = golden
    logits, mask = tensors["seg_prob"].double().logit(), tensors["seg_label"].double()
    # COSNet weighs N / n1, without the + 1.
    positive = mask.sum().item()
    assert positive / mask.numel() == pytest.approx(values["seg_positive_fraction"])
    check(weighted_bce(logits, mask) * (positive + 1) / positive, values["cosnet_weighted_bce"])
    check(l1(logits, mask), values["cosnet_l1"])


def test_released_part_losses(golden):
    tensors, values = golden
    part_prob, features, basis = tensors["pd_part_logits"].softmax(dim=1), tensors["pd_features"], tensors["pd_basis"]
    portraits = {"gt": tensors["pd_gt"], "saliency": tensors["pd_saliency_logit"].sigmoid()}
    of = {}
    for name, portrait in portraits.items():
        parts = portrait * part_prob
        of[name] = [
            geometric_concentration(parts),
            semantic_consistency(part_prob, portrait.square(), features, basis),
            area_variance(parts),
        ]
        for value, term in zip(of[name], ("concentration", "semantic", "area"), strict=True):
            check(value, values[f"pd_{term}_{name}"])
    orthonormal = orthonormal_penalty(basis)
    check(orthonormal, values["pd_orthonormal"])

    # The released sum halves the saliency branch alone in the first two terms; the paper's eq. (6) halves both.
    (geo_g, sem_g, area_g), (geo_s, sem_s, area_s) = of["gt"], of["saliency"]
    released = geo_g + geo_s / 2 + sem_g + sem_s / 2 + orthonormal + (area_g + area_s) / 2
    check(released, values["pd_part_loss"])
    arguments = (tensors["pd_part_logits"], tensors["pd_saliency_logit"], tensors["pd_gt"], features, basis)
    check(sum(part_losses(*arguments, branches="released").values(), torch.zeros(())), values["pd_part_loss"])
    terms = part_losses(*arguments)
    check(sum(terms.values(), torch.zeros(())), values["pd_part_loss"] - (geo_g + sem_g).item() / 2)


def test_scops_concentration(golden):
    tensors, values = golden
    logits = tensors["scops_logits"].requires_grad_()
    parts = logits.softmax(dim=1)[:, 1:]
    torch.testing.assert_close(parts, tensors["scops_parts"])
    loss = geometric_concentration(parts + 1e-3)  # SCOPS's floor
    check(loss, values["scops_concentration_times_B"])
    check_gradient(loss / len(logits), logits, tensors["scops_concentration_grad_logits"])


def test_scops_semantic_consistency(golden):
    tensors, values = golden
    logits, basis = tensors["scops_logits"].requires_grad_(), tensors["scops_basis"].requires_grad_()
    everywhere = torch.ones(len(logits), 1, *logits.shape[2:])
    loss = semantic_consistency(logits.softmax(dim=1)[:, 1:], everywhere, tensors["scops_features"], basis)
    check(loss, values["scops_semantic_consistency"])
    gradients = torch.autograd.grad(loss, (logits, basis))
    for gradient, name in zip(gradients, ("scops_semantic_grad_logits", "scops_semantic_grad_basis"), strict=True):
        assert (gradient - tensors[name]).norm() <= 1e-5 * tensors[name].norm()


def test_scops_orthonormal(golden):
    tensors, values = golden
    basis = tensors["scops_basis"].requires_grad_()
    loss = orthonormal_penalty(basis)
    check(loss, values["scops_orthonormal"])
    check_gradient(loss, basis, tensors["scops_orthonormal_grad_basis"])
