from __future__ import annotations

import pytest
import torch
from direct_losses import direct_orthonormal, direct_semantic
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18, resnet34
from torchvision.models.feature_extraction import create_feature_extractor

from pdnet.errors import CheckpointError
from pdnet.losses import PartBasis, SemanticFeatures, orthonormal_penalty, semantic_consistency


def test_consistency_by_hand():
    # One pixel, K = C = 2, identity basis: D = (1/4, 3/4) against V = (1, 2): (9/16 + 25/16) * Y^2 / 2 with Y = 1/2.
    prob = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1)
    features = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    value = semantic_consistency(prob, torch.full((1, 1, 1, 1), 0.25), features, torch.eye(2))
    assert value.item() == pytest.approx(34 / 16 / 4 / 2)


def test_consistency_of_upsampled_features_by_hand():
    # V = (2, 0) and (0, 4), upsampled to 3 pixels: (2, 0), (1, 2), (0, 4). One part with W = (1, 1) leaves
    # (-1, 1), (0, -1), (1, -3): squared lengths 2, 1, 10; mean over 3 pixels and 2 channels.
    features = torch.tensor([[2.0, 0.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    value = semantic_consistency(torch.ones(1, 1, 1, 3), torch.ones(1, 1, 1, 3), features, torch.ones(1, 2))
    assert value.item() == pytest.approx(13 / 6)
    # A pixel outside the portrait does not count, but stays in the mean.
    portrait_squared = torch.tensor([1.0, 0.0, 1.0]).view(1, 1, 1, 3)
    value = semantic_consistency(torch.ones(1, 1, 1, 3), portrait_squared, features, torch.ones(1, 2))
    assert value.item() == pytest.approx(12 / 6)


def inputs(B: int, K: int, C: int, cells: tuple[int, int], size: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Part logits, saliency logits, signed basis, features."""
    generator = torch.Generator().manual_seed(B + K + C + sum(size))
    shapes = [(B, K, *size), (B, 1, *size), (K, C), (B, C, *cells)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [*(tensor.to(dtype).requires_grad_() for tensor in drawn[:3]), drawn[3].relu().to(dtype)]


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((1, 1), (20, 28)),
        ((1, 2), (31, 40)),
        ((3, 1), (65, 7)),
        ((3, 2), (67, 45)),
        ((4, 5), (97, 131)),
        ((6, 6), (192, 192)),
        ((9, 7), (9, 7)),
        ((5, 6), (3, 4)),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_equals_the_direct_form(cells, size, dtype, tolerance):
    *leaves, features = inputs(2, 5, 512 if size[0] < 60 else 32, cells, size, dtype)

    def value_and_gradients(loss):
        part_logits, saliency_logits, basis = leaves
        portrait = saliency_logits.sigmoid()
        value = loss(part_logits.softmax(dim=1), portrait, basis.relu())
        return value, torch.autograd.grad(value, leaves)

    value, gradients = value_and_gradients(lambda d, y, w: semantic_consistency(d, y.square(), features, w))
    expected, expected_gradients = value_and_gradients(lambda d, y, w: direct_semantic(d, y, features, w))
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()


def test_single_precision_suffices_at_the_papers_size():
    *leaves, features = inputs(1, 5, 512, (15, 15), (480, 480), torch.float64)
    part_logits, saliency_logits, basis = (leaf.detach() for leaf in leaves)
    arguments = (part_logits.softmax(dim=1), saliency_logits.sigmoid().square(), features, basis.relu())
    exact = semantic_consistency(*arguments).item()
    assert semantic_consistency(*(argument.float() for argument in arguments)).item() == pytest.approx(exact, rel=1e-5)


def test_linear_in_the_squared_portrait():
    # The mean over the branches of eq. (6) is one evaluation with the mean of the squares.
    part_logits, saliency_logits, basis, features = inputs(2, 3, 8, (2, 3), (40, 50), torch.float64)
    prob, saliency, mask = part_logits.softmax(dim=1), saliency_logits.sigmoid(), (saliency_logits > 0.5).double()
    branches = [direct_semantic(prob, portrait, features, basis) for portrait in (mask, saliency)]
    both = semantic_consistency(prob, (mask**2 + saliency**2) / 2, features, basis)
    torch.testing.assert_close(both, sum(branches) / 2)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        self.numel = max([self.numel, *(r.numel() for r in results if isinstance(r, Tensor))])
        return result


def test_features_never_grow_to_the_size_of_the_input():
    part_logits, saliency_logits, basis, features = inputs(2, 5, 512, (3, 3), (96, 96), torch.float32)
    saved = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        prob, portrait = part_logits.softmax(dim=1), saliency_logits.sigmoid()
        semantic_consistency(prob, portrait.square(), features, basis.relu()).backward()
    assert largest.numel == part_logits.numel()
    assert sum(saved.values()) < 3 * part_logits.nbytes  # two maps per part and a few per pixel


def test_consistency_gradients():
    part_logits, saliency_logits, basis, features = inputs(2, 3, 4, (2, 3), (5, 7), torch.float64)

    def loss(part_logits: Tensor, saliency_logits: Tensor, basis: Tensor) -> Tensor:
        return semantic_consistency(part_logits.softmax(dim=1), saliency_logits.sigmoid() ** 2, features, basis.relu())

    assert gradcheck(loss, (part_logits, saliency_logits, basis))
    features.requires_grad_()
    assert torch.autograd.grad(loss(part_logits, saliency_logits, basis), features, allow_unused=True) == (None,)


def test_orthonormal_by_hand():
    assert orthonormal_penalty(3 * torch.eye(4)).item() == pytest.approx(0, abs=1e-6)
    # (1, 0) and (1, 1) have cosine 1 / sqrt 2: twice one half.
    assert orthonormal_penalty(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).item() == pytest.approx(1)
    # Three equal rows: K (K - 1) ones off the diagonal. An empty row misses its own 1.
    assert orthonormal_penalty(torch.ones(3, 8)).item() == pytest.approx(6)
    assert orthonormal_penalty(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).item() == pytest.approx(1)


def test_orthonormal_formula_and_gradients():
    basis = inputs(1, 4, 7, (1, 1), (1, 1), torch.float64)[2]
    torch.testing.assert_close(orthonormal_penalty(basis), direct_orthonormal(basis))
    assert gradcheck(orthonormal_penalty, (basis,))
    empty = torch.zeros(2, 3, requires_grad=True)
    orthonormal_penalty(empty).backward()
    assert empty.grad is not None
    assert empty.grad.isfinite().all()


def test_basis_starts_as_absolute_normal_numbers_of_its_seed():
    weight = PartBasis(5, 512, seed=3).weight.detach()
    assert weight.shape == (5, 512)
    assert weight.min() >= 0
    assert weight.mean().item() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.03)  # E|N(0, 1)|
    assert torch.equal(weight, PartBasis(5, 512, seed=3).weight)
    assert not torch.equal(weight, PartBasis(5, 512, seed=4).weight)


def test_basis_is_never_negative():
    basis = PartBasis(2, 4)
    with torch.no_grad():
        basis.weight[0] = -1
    assert basis().tolist()[0] == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        network = resnet18()
        for module in network.modules():  # statistics that differ from the defaults
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.state_dict()


def test_features_are_layer4_of_resnet18(state, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    network = resnet18()
    network.load_state_dict(state)
    image = torch.randn(2, 3, 70, 96, generator=torch.Generator().manual_seed(0))
    expected = create_feature_extractor(network.eval(), ["layer4"])(image)["layer4"]
    features = SemanticFeatures(str(tmp_path / "weights.pth"))(image)
    assert features.shape == (2, 512, 3, 3)
    assert (features - expected).norm() <= 1e-5 * expected.norm()


def test_weights_of_another_network_are_refused(tmp_path):
    # How weights are found and what is said of damaged ones: tests/model/test_backbone.py.
    with torch.device("meta"):
        other = resnet34().state_dict()
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in other.items()}, tmp_path / "resnet34.pth")
    with pytest.raises(CheckpointError, match=r"resnet34\.pth: not the weights of a resnet18: layer1\.2.* is unknown"):
        SemanticFeatures(str(tmp_path / "resnet34.pth"))


def test_random_features_follow_from_the_seed_alone():
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, again, other = SemanticFeatures("none", seed=5), SemanticFeatures("none", seed=5), SemanticFeatures("none")
    assert torch.equal(torch.random.get_rng_state(), before)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(image), again(image))
    assert not torch.equal(first(image), other(image))
    assert first(image).std() > 0.1


def test_features_stay_frozen():
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = SemanticFeatures("none")
            self.basis = PartBasis(3, 512)

    task = Task().train()
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = {name: tensor.clone() for name, tensor in (*task.named_parameters(), *task.named_buffers())}
    features = task.features(image)
    assert not features.requires_grad
    assert not any(module.training for module in task.features.modules())
    optimiser = torch.optim.SGD(task.parameters(), lr=1.0, momentum=0.9, weight_decay=0.5)
    prob = torch.full((2, 3, 64, 64), 1 / 3)
    semantic_consistency(prob, torch.ones(2, 1, 64, 64), features, task.basis()).backward()
    optimiser.step()
    after = (*task.named_parameters(), *task.named_buffers())
    changed = [name for name, tensor in after if not torch.equal(before[name], tensor)]
    assert changed == ["basis.weight"]


def test_features_are_no_part_of_a_checkpoint():
    holder = nn.ModuleDict({"features": SemanticFeatures("none", seed=1), "basis": PartBasis(2, 512)})
    state = holder.state_dict()
    assert list(state) == ["basis.weight"]
    other = nn.ModuleDict({"features": SemanticFeatures("none", seed=2), "basis": PartBasis(2, 512, seed=9)})
    conv = other["features"].backbone.conv1.weight.clone()
    other.load_state_dict(state, strict=True)
    assert torch.equal(other["basis"].weight, holder["basis"].weight)
    assert torch.equal(other["features"].backbone.conv1.weight, conv)


def test_features_follow_autocast_and_return_single_precision():
    network = SemanticFeatures("none")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(image)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm() < 0.03 * exact.norm()
