import math

import pytest
import torch
import torch.nn.functional as F

from clip_hf.model.contrastive_loss_clip_hf import contrastive_loss


def _pairs(num_pairs: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_pairs)
    shared, *noise = torch.randn(3, num_pairs, width, dtype=torch.float64, generator=generator)
    image_embeds, text_embeds = (F.normalize(shared + part, dim=1).to(dtype) for part in noise)
    return image_embeds, text_embeds


def _paper_loss(image_embeds: torch.Tensor, text_embeds: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    # Figure 3 of the paper, line by line.
    logits = image_embeds @ text_embeds.T * scale
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("num_pairs", [1, 2, 33])
def test_loss_and_gradients_equal_cross_entropy(num_pairs, scale):
    inputs = [*_pairs(num_pairs, 16), torch.tensor(scale, dtype=torch.float64)]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    actual, expected = contrastive_loss(*inputs), _paper_loss(*inputs)

    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_indistinguishable_pairs_cost_the_logarithm_of_their_number():
    ones = F.normalize(torch.ones(50, 8), dim=1)

    assert contrastive_loss(ones, ones, torch.tensor([100.0])).item() == pytest.approx(math.log(50), abs=1e-5)


def test_perfect_model_costs_nothing_and_never_less():
    embeds = F.normalize(torch.randn(64, 512), dim=1)

    assert 0 <= contrastive_loss(embeds, embeds, torch.tensor(100.0)).item() < 1e-6


def test_scale_may_have_either_shape():
    embeds = _pairs(5, 8)
    single = torch.tensor([20.0], requires_grad=True)

    loss = contrastive_loss(*embeds, single)
    loss.backward()

    assert loss.shape == ()
    assert single.grad.shape == (1,)
    assert loss == contrastive_loss(*embeds, torch.tensor(20.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_compared_in_float32(dtype):
    image_embeds, text_embeds = (tensor.requires_grad_() for tensor in _pairs(40, 64, dtype))
    scale = torch.tensor(100.0)

    loss = contrastive_loss(image_embeds, text_embeds, scale)
    image_grad, text_grad = torch.autograd.grad(loss, (image_embeds, text_embeds))

    assert loss.dtype == torch.float32
    assert (image_grad.dtype, text_grad.dtype) == (dtype, dtype)
    torch.testing.assert_close(loss.double(), _paper_loss(image_embeds.double(), text_embeds.double(), scale.double()))


def test_embeddings_of_two_dtypes_meet_in_the_wider_one():
    image_embeds, text_embeds = _pairs(6, 8)

    assert contrastive_loss(image_embeds.bfloat16(), text_embeds.float(), torch.tensor(10.0)).dtype == torch.float32
    assert contrastive_loss(image_embeds.bfloat16(), text_embeds, torch.tensor(10.0)).dtype == torch.float64


def test_autocast_does_not_reach_the_logits():
    image_embeds, text_embeds = _pairs(40, 64, torch.float32)
    scale = torch.tensor(100.0)

    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(image_embeds, text_embeds, scale)

    assert torch.equal(loss, contrastive_loss(image_embeds, text_embeds, scale))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_embeddings_are_not_hidden(value):
    image_embeds, text_embeds = _pairs(6, 8)
    image_embeds[2, 3] = value

    assert contrastive_loss(image_embeds, text_embeds, torch.tensor(10.0)).isnan()


@pytest.mark.parametrize(
    ("image_shape", "text_shape", "message"),
    [
        ((4, 8), (3, 8), r"image_embeds \(4, 8\) and text_embeds \(3, 8\)"),
        ((4, 8), (4, 6), r"image_embeds \(4, 8\) and text_embeds \(4, 6\)"),
        ((4, 8, 1), (4, 8, 1), r"image_embeds \(4, 8, 1\)"),
        ((0, 8), (0, 8), "at least one pair"),
    ],
)
def test_shapes_are_checked(image_shape, text_shape, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.ones(image_shape), torch.ones(text_shape), torch.tensor(1.0))


def test_precisions_that_are_inherited_stay_so():
    """Pinned by the loss, they would not follow what is set for all later."""
    try:
        torch.backends.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        contrastive_loss(*_pairs(4, 8, torch.float32), torch.tensor(1.0))
        matmuls = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        assert [matmul.fp32_precision for matmul in matmuls] == ["tf32", "bf16"]
        torch.backends.fp32_precision = "ieee"
        assert [matmul.fp32_precision for matmul in matmuls] == ["ieee", "bf16"]
    finally:
        torch.backends.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_scale_must_be_one_number():
    with pytest.raises(ValueError, match=r"scale must be a tensor of 1 number.*\(2,\)"):
        contrastive_loss(torch.ones(4, 8), torch.ones(4, 8), torch.ones(2))
