from __future__ import annotations

import itertools

import pytest
import torch
from direct_losses import direct_part_losses
from torch import Tensor
from torch.autograd import gradcheck

from pdnet.errors import CheckpointError, ConfigError
from pdnet.losses import FrameLogits, LossConfig, PDNetLoss, l1, part_losses, segmentation_loss, weighted_bce

B, K, H, W = 2, 3, 33, 40


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def frame(seed: int, dtype: torch.dtype = torch.float32) -> FrameLogits:
    encoder = draw(B, 4, H, W, seed=seed, dtype=dtype)
    saliency, parts = draw(B, 1, H, W, seed=seed + 1, dtype=dtype), draw(B, K, H, W, seed=seed + 2, dtype=dtype)
    return FrameLogits(*(tensor.requires_grad_() for tensor in (encoder, saliency, parts)))


@pytest.fixture(scope="module")
def ordinary_loss() -> PDNetLoss:
    return PDNetLoss(LossConfig(semantic_features="none"), parts=K)


@pytest.fixture
def step() -> dict[str, Tensor]:
    """Images and masks of a video step."""
    masks = {"mask_t": (draw(B, 1, H, W, seed=50) > 0.4).float(), "mask_ref": draw(B, 1, H, W, seed=51).sigmoid()}
    return {"image_t": draw(B, 3, H, W, seed=52), "image_ref": draw(B, 3, H, W, seed=53)} | masks


def test_part_losses_against_the_formulas():
    arguments = [draw(B, K, 17, 23, seed=0, dtype=torch.float64), draw(B, 1, 17, 23, seed=1, dtype=torch.float64)]
    mask = (draw(B, 1, 17, 23, seed=2, dtype=torch.float64) > 0).double()
    features, basis = draw(B, 6, 2, 3, seed=3, dtype=torch.float64).abs(), draw(K, 6, seed=4, dtype=torch.float64).abs()
    terms = part_losses(*arguments, mask, features, basis)
    expected = direct_part_losses(*arguments, mask, features, basis)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])


def test_the_released_sum_of_the_branches_adds_half_the_true_branch():
    part_logits = draw(B, K, 17, 23, seed=0)
    mask, features, basis = (draw(B, 1, 17, 23, seed=2) > 0).float(), draw(B, 6, 2, 3, seed=3), draw(K, 6, seed=4).abs()
    nowhere = torch.full_like(mask, -torch.inf)  # saliency 0: its branch is 0 in L_geo and L_sem
    mean = part_losses(part_logits, nowhere, mask, features, basis)
    released = part_losses(part_logits, nowhere, mask, features, basis, branches="released")
    for name in ("geometric", "semantic"):
        torch.testing.assert_close(released[name], 2 * mean[name])
    for name in ("area", "orthonormal"):
        torch.testing.assert_close(released[name], mean[name])


@pytest.mark.parametrize("detach", [False, True])
def test_part_losses_gradients(detach):
    part_logits, saliency_logits = draw(B, K, 4, 5, seed=0, dtype=torch.float64), draw(B, 1, 4, 5, seed=1).double()
    mask = (draw(B, 1, 4, 5, seed=2) > 0).double()
    features, basis = draw(B, 6, 1, 2, seed=3).double().abs(), draw(K, 6, seed=4).double()

    def loss(part_logits: Tensor, saliency_logits: Tensor, basis: Tensor) -> Tensor:
        terms = part_losses(part_logits, saliency_logits, mask, features, basis.relu(), detach_saliency=detach)
        return torch.stack(list(terms.values())).sum()

    leaves = [tensor.requires_grad_() for tensor in (part_logits, saliency_logits, basis)]
    if detach:
        gradient = torch.autograd.grad(loss(*leaves), saliency_logits, allow_unused=True)[0]
        assert gradient is None
        leaves[1].requires_grad_(False)
    assert gradcheck(loss, leaves)


def test_video_loss_adds_the_terms_with_their_weights(step):
    weights = [2.0, 9.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0]
    config = LossConfig(*weights, semantic_features="none")
    loss = PDNetLoss(config, parts=K, seed=1)
    final, frame_t, frame_ref = draw(B, 1, H, W, seed=9), frame(10), frame(20)
    total, terms = loss.video(final, frame_t, frame_ref, **step)

    def l(logits: Tensor, mask: Tensor) -> Tensor:  # noqa: E743
        return weighted_bce(logits, mask, 9.0) + 2.0 * l1(logits, mask)

    assert loss.features is not None
    assert loss.basis is not None
    expected = l(final, step["mask_t"])
    for outputs, name, weight in ((frame_t, "t", 3.0), (frame_ref, "ref", 5.0)):
        mask, image = step[f"mask_{name}"], step[f"image_{name}"]
        parts = part_losses(outputs.parts, outputs.saliency, mask, loss.features(image), loss.basis())
        part_loss = 7 * parts["geometric"] + 11 * parts["semantic"] + 13 * parts["area"] + 17 * parts["orthonormal"]
        heads = sum(l(outputs.encoder[:, [head]], mask) for head in range(4))
        expected = expected + weight * (heads + l(outputs.saliency, mask) + part_loss)
        assert terms[f"semantic_{name}"].item() == pytest.approx(parts["semantic"].item())
        assert terms[f"encoder_{name}"].item() == pytest.approx(heads.item())
    torch.testing.assert_close(total, expected)
    assert not any(term.requires_grad for term in terms.values())
    each = ("encoder", "saliency", "geometric", "area", "semantic", "orthonormal")
    assert set(terms) == {"final"} | {f"{name}_{which}" for name, which in itertools.product(each, ("t", "ref"))}


def test_image_loss_has_no_parts(step, ordinary_loss):
    final, frame_t, mask = draw(B, 1, H, W, seed=9), frame(10), step["mask_t"]
    total, terms = ordinary_loss.image(final, frame_t, mask_t=mask)
    values = [segmentation_loss(x, mask, l1_weight=0.8, max_bce_weight=50) for x in (final, *frame_t[:2])]
    torch.testing.assert_close(total, values[0] + 0.8 * (values[1] + values[2]))
    assert set(terms) == {"final", "encoder_t", "saliency_t"}


def test_one_part_has_no_part_losses(step):
    loss = PDNetLoss(LossConfig(semantic_features="/nowhere/at/all.pth"), parts=1)
    assert list(loss.parameters()) == []
    frames = [frame(10)._replace(parts=draw(B, 1, H, W, seed=5)), frame(20)._replace(parts=draw(B, 1, H, W, seed=6))]
    final = draw(B, 1, H, W, seed=9)
    total, terms = loss.video(final, *frames, **step)
    bare, _ = loss.video(final, *(f._replace(parts=None) for f in frames), **step)
    assert torch.equal(total, bare)
    assert set(terms) == {"final", "encoder_t", "saliency_t", "encoder_ref", "saliency_ref"}


def test_a_network_without_ipda(step):
    loss = PDNetLoss(LossConfig(), parts=1)
    frames = [FrameLogits(frame(10).encoder), FrameLogits(frame(20).encoder)]
    _, terms = loss.video(draw(B, 1, H, W, seed=9), *frames, **step)
    assert set(terms) == {"final", "encoder_t", "encoder_ref"}


def test_without_semantic_weight_nothing_semantic_is_made(step):
    loss = PDNetLoss(LossConfig(semantic_weight=0, semantic_features="/nowhere/at/all.pth"), parts=K)
    assert loss.features is None
    assert loss.basis is None
    _, terms = loss.video(draw(B, 1, H, W, seed=9), frame(10), frame(20), **step)
    assert {"geometric_t", "area_t"} <= set(terms)
    assert "semantic_t" not in terms


def test_missing_weights_are_reported_when_they_are_needed():
    with pytest.raises(CheckpointError, match="no such file"):
        PDNetLoss(LossConfig(semantic_features="/nowhere/at/all.pth"), parts=2)


def test_every_output_and_the_basis_learn(step):
    loss = PDNetLoss(LossConfig(semantic_features="none"), parts=K).train()
    final, frame_t, frame_ref = draw(B, 1, H, W, seed=9).requires_grad_(), frame(10), frame(20)
    loss.video(final, frame_t, frame_ref, **step).total.backward()
    assert [name for name, p in loss.named_parameters() if p.requires_grad] == ["basis.weight"]
    assert loss.basis is not None
    for leaf in (final, *frame_t, *frame_ref, loss.basis.weight):
        assert leaf.grad is not None
        assert leaf.grad.abs().max() > 0


def test_autocast_does_not_reach_the_losses():
    logits = frame(10)
    mask, features, basis = (draw(B, 1, H, W, seed=2) > 0).float(), draw(B, 6, 2, 2, seed=3).abs(), draw(K, 6, seed=4)

    def values() -> list[Tensor]:
        terms = part_losses(logits.parts, logits.saliency, mask, features, basis.relu())
        return [*terms.values(), segmentation_loss(logits.encoder, mask, l1_weight=0.8, max_bce_weight=50)]

    plain = values()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = values()
    for one, other in zip(plain, mixed, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("portrait", ["none", "all", "point", "one of two images"])
@pytest.mark.parametrize("logits", ["ordinary", "sure of portrait", "sure of background", "one part takes all"])
def test_finite_whatever_comes(ordinary_loss, dtype, portrait, logits):
    masks = {
        "none": torch.zeros(B, 1, H, W),
        "all": torch.ones(B, 1, H, W),
        "point": torch.zeros(B, 1, H, W).index_put_(tuple(torch.tensor([0, 0, 5, 7])), torch.tensor(1.0)),
        "one of two images": torch.stack([torch.zeros(1, H, W), torch.ones(1, H, W)]),
    }
    mask = masks[portrait]
    final, frame_t, frame_ref = (
        draw(B, 1, H, W, seed=9, dtype=dtype).requires_grad_(),
        frame(10, dtype),
        frame(20, dtype),
    )
    with torch.no_grad():
        if logits == "one part takes all":
            frame_t.parts[:, 1], frame_ref.parts[:, 1] = 1e4, -1e4
        elif logits != "ordinary":
            for tensor in (final, frame_t.encoder, frame_t.saliency, frame_ref.encoder, frame_ref.saliency):
                tensor.fill_(1e4 if logits == "sure of portrait" else -1e4)
    images = {"image_t": draw(B, 3, H, W, seed=52), "image_ref": draw(B, 3, H, W, seed=53)}
    total, terms = ordinary_loss.video(final, frame_t, frame_ref, **images, mask_t=mask, mask_ref=mask)
    total.backward()
    assert total.dtype == torch.float32
    assert total.isfinite()
    assert all(term.isfinite() for term in terms.values())
    for leaf in (final, *frame_t, *frame_ref):
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", ["l1_weight", "reference_weight", "orthonormal_weight", "max_bce_weight"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_senseless_weights_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"losses\.{name}: .*expected a finite number >= 0"):
        LossConfig(**{name: value})


def test_a_cap_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"losses\.max_bce_weight: 0"):
        LossConfig(max_bce_weight=0.0)
