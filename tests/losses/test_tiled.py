import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clip_hf.losses import tiled as tiled_losses
from clip_hf.losses.tiled import reduce_logits_in_tiles
from clip_hf.model.contrastive_loss_clip_hf import reduce_logits


def _inputs(num_images: int, num_texts: int, scale: float, width: int = 12, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(num_images + num_texts)
    embeds = torch.randn(num_images + num_texts, width, dtype=torch.float64, generator=generator)
    images, texts = (part.clone() for part in F.normalize(embeds, dim=1).to(dtype).split([num_images, num_texts]))
    return images.requires_grad_(), texts.requires_grad_(), torch.tensor(scale, dtype=dtype, requires_grad=True)


def _weighted_sum(reduced):
    # Unequal, partly negative weights: the gradient of every entry of every output takes part.
    return sum((part * torch.linspace(-0.5, 2, len(part), dtype=part.dtype)).sum() for part in reduced)


def _assert_equal_reductions(inputs, first_match, tile_size, groups=None):
    tiled = reduce_logits_in_tiles(*inputs, first_match, tile_size, groups)
    plain = reduce_logits(*inputs, first_match, groups)

    for ours, theirs in zip(tiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(_weighted_sum(tiled), inputs), torch.autograd.grad(_weighted_sum(plain), inputs)
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("tile_size", [1, 4, 7, 29, 64])
@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_tiles_equal_the_plain_reduction(tile_size, scale):
    _assert_equal_reductions(_inputs(29, 29, scale), 0, tile_size)


@pytest.mark.parametrize(("num_images", "num_texts", "first_match"), [(5, 15, 0), (5, 15, 5), (5, 15, 10), (1, 9, 8)])
def test_tiles_of_one_rank_equal_the_plain_reduction(num_images, num_texts, first_match):
    _assert_equal_reductions(_inputs(num_images, num_texts, 14.0), first_match, 4)


@pytest.mark.parametrize(("num_images", "num_texts", "first_match"), [(29, 29, 0), (5, 15, 5), (5, 15, 10), (1, 9, 8)])
@pytest.mark.parametrize("num_groups", [1, 3, 100])
def test_tiles_leave_out_what_the_plain_reduction_does(num_images, num_texts, first_match, num_groups):
    text_groups = torch.randint(num_groups, (num_texts,), generator=torch.Generator().manual_seed(num_groups))
    groups = text_groups[first_match : first_match + num_images], text_groups
    _assert_equal_reductions(_inputs(num_images, num_texts, 14.0), first_match, 4, groups)


def test_duplicates_and_far_logits():
    images, texts, scale = _inputs(20, 20, 1000.0)
    with torch.no_grad():
        images[3:9] = images[0]
        texts[5] = -images[5]
        texts[11:14] = texts[11]

    _assert_equal_reductions((images, texts, scale), 0, 6)


def test_identical_rows():
    rows = F.normalize(torch.ones(11, 12, dtype=torch.float64), dim=1)
    inputs = (
        rows.clone().requires_grad_(),
        rows.clone().requires_grad_(),
        torch.tensor(100.0).double().requires_grad_(),
    )

    _assert_equal_reductions(inputs, 0, 4)
    _, image_log_sums, _ = reduce_logits_in_tiles(*inputs, 0, 4)
    torch.testing.assert_close(image_log_sums, torch.full((11,), 100 + math.log(11), dtype=torch.float64))


@pytest.mark.parametrize("scale", [14.0, 1000.0])  # with one exponential for images and texts, and with two
@pytest.mark.parametrize("block_size", [1, 20, 1000])  # a row, two rows and the whole of a tile of nine at a time
def test_blocks_of_a_tile_equal_the_plain_reduction(block_size, scale, monkeypatch):
    monkeypatch.setattr(tiled_losses, "BLOCK_SIZE", block_size)
    _assert_equal_reductions(_inputs(29, 29, scale), 0, 9)


class _CountExponentials(TorchDispatchMode):
    """Counts the exponentials of whole tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("exp", "exp_") and args[0].ndim == 2:
            self.number += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("scale", "forward", "backward"),
    [(14.0, 4, 4), (100.0, 4, 4), (1000.0, 12, 8)],  # of four tiles; too far apart, the first try comes on top
)
def test_one_exponential_serves_images_and_texts_unless_they_are_far_apart(scale, forward, backward):
    inputs = _inputs(40, 40, scale, width=64)
    if scale == 1000:
        with torch.no_grad():
            inputs[1][:] = -inputs[0]  # each pair is as far apart as can be
    with _CountExponentials() as counter:
        loss = _weighted_sum(reduce_logits_in_tiles(*inputs, 0, 20))
        assert counter.number == forward
        torch.autograd.grad(loss, inputs)
    assert counter.number == forward + backward
    _assert_equal_reductions(inputs, 0, 20)


@pytest.mark.parametrize("reduction", [reduce_logits, lambda *inputs: reduce_logits_in_tiles(*inputs, 0, 8)])
def test_products_are_float32_where_less_is_allowed(reduction):
    class Watch(TorchDispatchMode):
        precisions: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
                self.precisions.append(torch.backends.cuda.matmul.fp32_precision)
            return func(*args, **(kwargs or {}))

    before, torch.backends.cuda.matmul.fp32_precision = torch.backends.cuda.matmul.fp32_precision, "tf32"
    try:
        with Watch() as watch:
            inputs = _inputs(20, 20, 100.0, dtype=torch.float32)
            torch.autograd.grad(_weighted_sum(reduction(*inputs)), inputs)
        assert len(watch.precisions) >= 3 and set(watch.precisions) == {"ieee"}
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("scale", [14.0, 100.0, 400.0])
def test_float32_is_as_exact_as_the_plain_reduction(scale):
    def errors(reduction, *arguments):
        exact = _inputs(300, 300, scale, width=64)
        inputs = [tensor.detach().float().requires_grad_() for tensor in exact]
        actual = torch.autograd.grad(_weighted_sum(reduction(*inputs, *arguments)), inputs)
        expected = torch.autograd.grad(_weighted_sum(reduce_logits(*exact)), exact)
        return [(a - e).norm() / e.norm() for a, e in zip(actual, expected, strict=True)]

    for tiled, plain in zip(errors(reduce_logits_in_tiles, 0, 64), errors(reduce_logits), strict=True):
        assert tiled < max(2 * plain, 1e-6)


@pytest.mark.parametrize("tile_size", [2, 3, 5])
def test_gradients_pass_gradcheck(tile_size):
    inputs = _inputs(3, 5, 5.0, width=4)

    assert torch.autograd.gradcheck(lambda *args: reduce_logits_in_tiles(*args, 1, tile_size), inputs)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_frozen_inputs_get_no_gradient(needed):
    inputs = _inputs(9, 9, 14.0)
    expected = torch.autograd.grad(_weighted_sum(reduce_logits(*inputs)), [inputs[position] for position in needed])
    for position, tensor in enumerate(inputs):
        tensor.requires_grad_(position in needed)

    _weighted_sum(reduce_logits_in_tiles(*inputs, 0, 4)).backward()

    for position, grad in zip(needed, expected, strict=True):
        torch.testing.assert_close(inputs[position].grad, grad)
    assert all(tensor.grad is None for position, tensor in enumerate(inputs) if position not in needed)


def test_nan_stays():
    images, texts, scale = _inputs(9, 9, 14.0)
    with torch.no_grad():
        images[2, 1] = math.nan

    matching, image_log_sums, text_log_sums = reduce_logits_in_tiles(images, texts, scale, 0, 4)
    (grad,) = torch.autograd.grad(matching.sum() + image_log_sums.sum() + text_log_sums.sum(), texts)

    assert matching.isnan().nonzero().tolist() == [[2]]
    assert image_log_sums.isnan().nonzero().tolist() == [[2]]
    assert text_log_sums.isnan().all()
    assert grad.isnan().all()


def test_autocast_around_the_backward_pass_does_not_reach_the_logits():
    inputs = _inputs(30, 30, 100.0, dtype=torch.float32)
    expected = torch.autograd.grad(_weighted_sum(reduce_logits_in_tiles(*inputs, 0, 8)), inputs)
    loss = _weighted_sum(reduce_logits_in_tiles(*inputs, 0, 8))

    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(loss, inputs)

    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)


class _LargestStorage(TorchDispatchMode):
    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.num_bytes = max(self.num_bytes, leaf.untyped_storage().nbytes())
        return result


def _memory(reduction, inputs, *arguments) -> tuple[int, int]:
    """Bytes of the largest tensor of a forward and backward pass, and of all that is saved in between."""
    saved: dict[int, int] = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with _LargestStorage() as largest:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            matching, image_log_sums, text_log_sums = reduction(*inputs, *arguments)
            loss = matching.sum() + image_log_sums.sum() + text_log_sums.sum()
        loss.backward()
    return largest.num_bytes, sum(saved.values())


def test_no_matrix_of_logits_is_ever_held():
    inputs = _inputs(600, 600, 14.0, width=8)
    matrix = 600 * 600 * 8
    features = inputs[0].nbytes

    largest, saved = _memory(reduce_logits_in_tiles, inputs, 0, 50)
    assert largest == features
    assert saved < 3 * features

    largest, saved = _memory(reduce_logits, inputs)
    assert largest == matrix
    assert saved >= matrix


_PEAK_MEMORY = """
import torch
from clip_hf.losses.tiled import reduce_logits_in_tiles
from tests.peak_memory import forget_peak, peak_bytes

torch.set_num_threads(1)
images, texts = (torch.nn.functional.normalize(torch.randn(8192, 128), dim=1).requires_grad_() for _ in range(2))
scale = torch.tensor(50.0, requires_grad=True)
small = torch.randn(64, 128, requires_grad=True)
sum(part.sum() for part in reduce_logits_in_tiles(small, small, scale, 0, 32)).backward()
before = forget_peak()
sum(part.sum() for part in reduce_logits_in_tiles(images, texts, scale, 0, 1024)).backward()
print(peak_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel forgets and tells the peak on Linux alone")
def test_peak_memory_is_far_below_the_matrix():
    output = subprocess.run([sys.executable, "-c", _PEAK_MEMORY], capture_output=True, text=True, check=True).stdout

    matrix, gradient = 8192 * 8192 * 4, 8192 * 128 * 4
    assert gradient < int(output) < matrix / 4
