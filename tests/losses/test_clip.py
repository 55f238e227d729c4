import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from clip_hf.distributed import rank, world_size
from clip_hf.losses import clip, clip_loss
from tests.ranks import run_on_ranks

NUM_PAIRS = 12
TILE_SIZES = {"plain": 10**6, "tiled": 5, "chosen": None}
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6}  # with the error allowed
KINDS = ("plain", "grouped")
GROUPS = torch.tensor([0, 1, 2, 0, 3, 3, 4, 0, 5, 3, 6, 1])  # some within one rank, some across all


def _global_batch(dtype: torch.dtype = torch.float64, num_pairs: int = NUM_PAIRS):
    generator = torch.Generator().manual_seed(0)
    shared, *noise = torch.randn(3, num_pairs, 10, dtype=torch.float64, generator=generator)
    images, texts = (F.normalize(shared + part, dim=1).to(dtype).requires_grad_() for part in noise)
    return images, texts, torch.tensor([30.0], dtype=dtype, requires_grad=True)


def _paper_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, groups: torch.Tensor | None = None
) -> torch.Tensor:
    logits = images @ texts.T * scale
    labels = torch.arange(len(logits))
    if groups is not None:
        is_other = (groups[:, None] == groups) & (labels[:, None] != labels)
        logits = logits.masked_fill(is_other, -torch.inf)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("groups", [None, GROUPS, torch.zeros(NUM_PAIRS, dtype=torch.long)])
@pytest.mark.parametrize("tile_size", [*TILE_SIZES.values(), 1, NUM_PAIRS - 1, NUM_PAIRS])
def test_one_process_needs_no_process_group(tile_size, groups):
    batch = _global_batch()

    actual, expected = clip_loss(*batch, tile_size, groups), _paper_loss(*batch, groups)

    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(torch.autograd.grad(actual, batch), torch.autograd.grad(expected, batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tile_size", [None, 5])
def test_half_precision_embeddings_are_compared_in_float32(tile_size):
    images, texts, _ = _global_batch(torch.bfloat16)
    scale = torch.tensor(100.0)

    loss = clip_loss(images, texts, scale, tile_size)
    grad, _ = torch.autograd.grad(loss, (images, texts))

    assert (loss.dtype, grad.dtype) == (torch.float32, torch.bfloat16)
    expected = _paper_loss(images.double(), texts.double(), scale.double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("num_pairs", [1000, 5001])  # held whole, and in tiles that do not divide it
def test_a_gpu_gives_the_loss_and_gradients_of_float64(num_pairs, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")  # the loss is not to follow it
    expected_batch = _global_batch(num_pairs=num_pairs)
    batch = [part.detach().float().cuda().requires_grad_() for part in expected_batch]

    with torch.autocast("cuda", torch.bfloat16):
        loss = clip_loss(*batch)
    expected = _paper_loss(*expected_batch)

    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(loss, batch), torch.autograd.grad(expected, expected_batch), strict=True
    ):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.gpu
def test_a_gpu_holds_a_tenth_of_a_gigabyte_above_a_large_batch():
    images, texts = (F.normalize(torch.randn(32_768, 512, device="cuda")).requires_grad_() for _ in range(2))
    scale = torch.tensor(100.0, device="cuda", requires_grad=True)
    clip_loss(images[:64], texts[:64], scale).backward()  # libraries take memory of their own
    images.grad = texts.grad = scale.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    clip_loss(images, texts, scale).backward()

    gradients = images.nbytes + texts.nbytes
    assert torch.cuda.max_memory_allocated() - before - gradients < 100e6


@pytest.mark.parametrize("tile_size", [0, -4, 2.5])
def test_tile_size_is_checked(tile_size):
    with pytest.raises(ValueError, match=f"tile_size must be None or a whole number of at least 1, got {tile_size}"):
        clip_loss(*_global_batch(), tile_size)


def test_pairs_of_one_group_learn_nothing_of_each_other():
    batch = _global_batch()

    loss = clip_loss(*batch, groups=torch.zeros(NUM_PAIRS, dtype=torch.long))

    assert loss == 0
    assert not torch.autograd.grad(loss, batch)[0].any()


def test_shapes_are_checked():
    images, texts, scale = _global_batch()

    with pytest.raises(ValueError, match=r"a number for each of 12 pairs, got \(11,\)"):
        clip_loss(images, texts, scale, groups=GROUPS[1:])

    with pytest.raises(ValueError, match=r"\(12, 10\) and text_embeds \(11, 10\)"):
        clip_loss(images, texts[:-1], scale)


@pytest.mark.parametrize(("tile_size", "tiled"), [(None, False), (1023, True), (1024, False), (4096, False)])
def test_logits_are_held_whole_where_they_fill_one_tile(monkeypatch, tile_size, tiled):
    sizes = []
    reduce_logits_in_tiles = clip.reduce_logits_in_tiles
    monkeypatch.setattr(
        clip, "reduce_logits_in_tiles", lambda *args: sizes.append(args[4]) or reduce_logits_in_tiles(*args)
    )

    clip_loss(*_global_batch(torch.float32, 1024), tile_size)

    assert sizes == ([tile_size] if tiled else [])


def test_large_batches_are_tiled_by_default(monkeypatch):
    sizes = []
    reduce_logits_in_tiles = clip.reduce_logits_in_tiles
    monkeypatch.setattr(
        clip, "reduce_logits_in_tiles", lambda *args: sizes.append(args[4]) or reduce_logits_in_tiles(*args)
    )

    clip_loss(*_global_batch(torch.float32, 1025))

    assert sizes == [1024]


class _Towers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.vision, self.text = (
            torch.nn.Linear(10, 6, dtype=torch.float64),
            torch.nn.Linear(10, 6, dtype=torch.float64),
        )
        self.logit_scale = torch.nn.Parameter(torch.full((1,), 3.0, dtype=torch.float64))

    def forward(self, images, texts):
        return F.normalize(self.vision(images), dim=1), F.normalize(self.text(texts), dim=1), self.logit_scale.exp()


def _mismatches() -> list[str]:
    """The messages for ranks of different batch size, text count, width and tile size, and for one without groups."""
    last = rank() == world_size() - 1
    images, texts, scale = torch.ones(4, 8), torch.ones(4, 8), torch.tensor(10.0)
    cases = [
        (images[: 3 if last else 4], texts[: 3 if last else 4], None),
        (images, texts[: 3 if last else 4], None),
        (images[:, : 6 if last else 8], texts[:, : 6 if last else 8], None),
        (images, texts, 2 if last else 3),
        (images, texts, None, None if last else torch.arange(4)),
    ]
    messages = []
    for image_embeds, text_embeds, *others in cases:
        with pytest.raises(ValueError) as error:
            clip_loss(image_embeds, text_embeds, scale, *others)
        messages.append(str(error.value))
    return messages


def _ranks_results() -> dict[str, object]:
    # The mismatches come first: whatever follows shows that they left the ranks in step.
    results: dict[str, object] = {"mismatches": _mismatches()}
    for dtype, kind, (name, tile_size) in itertools.product(DTYPES, KINDS, TILE_SIZES.items()):
        images, texts, scale = _global_batch(dtype)
        own = [part.chunk(world_size())[rank()].detach().requires_grad_() for part in (images, texts)]
        groups = GROUPS.chunk(world_size())[rank()] if kind == "grouped" else None
        loss = clip_loss(*own, scale, tile_size, groups)
        results[f"{name} {kind} {dtype}"] = [loss.detach(), *torch.autograd.grad(loss, [*own, scale])]
    for name, tile_size in TILE_SIZES.items():
        towers = DistributedDataParallel(_Towers())
        own = [part.chunk(world_size())[rank()].detach() for part in _global_batch()[:2]]
        clip_loss(*towers(*own), tile_size).backward()
        results[f"{name} DDP"] = [parameter.grad for parameter in towers.parameters()]

    images, texts, scale = (part.detach() for part in _global_batch())
    images[0, 0] = math.nan if rank() == 1 else 1.0
    results["nan"] = [clip_loss(images, texts, scale, tile_size) for tile_size in TILE_SIZES.values()]
    return results


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def ranks_results(request) -> list[dict]:
    return run_on_ranks(_ranks_results, request.param)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", TILE_SIZES)
def test_mean_over_ranks_is_the_loss_of_the_global_batch(ranks_results, way, kind, dtype, tolerance):
    batch = [part.detach().double().requires_grad_() for part in _global_batch(dtype)]
    expected = _paper_loss(*batch, GROUPS if kind == "grouped" else None)
    expected_grads = torch.autograd.grad(expected, batch)

    losses, image_grads, text_grads, scale_grads = zip(
        *(result[f"{way} {kind} {dtype}"] for result in ranks_results), strict=True
    )
    num_ranks = len(ranks_results)
    # Each rank holds the gradients of its own rows, of which an average over ranks takes 1 / num_ranks.
    actual_grads = (
        torch.cat(image_grads) / num_ranks,
        torch.cat(text_grads) / num_ranks,
        sum(scale_grads) / num_ranks,
    )

    torch.testing.assert_close((sum(losses) / num_ranks).double(), expected.detach(), rtol=tolerance, atol=0)
    for ours, theirs in zip(actual_grads, expected_grads, strict=True):
        assert (ours.double() - theirs).abs().max() <= tolerance * max(1, theirs.abs().max())


@pytest.mark.parametrize("way", TILE_SIZES)
def test_each_rank_reports_the_loss_of_its_own_pairs(ranks_results, way):
    images, texts, scale = _global_batch()
    logits, labels = images @ texts.T * scale, torch.arange(NUM_PAIRS)
    pair_losses = sum(F.cross_entropy(matrix, labels, reduction="none") for matrix in (logits, logits.T)) / 2

    for result, expected in zip(ranks_results, pair_losses.detach().chunk(len(ranks_results)), strict=True):
        torch.testing.assert_close(result[f"{way} plain torch.float64"][0], expected.mean())


@pytest.mark.parametrize("way", TILE_SIZES)
def test_data_parallel_gradients_are_those_of_one_process(ranks_results, way):
    towers = _Towers()
    images, texts, _ = _global_batch()
    _paper_loss(*towers(images.detach(), texts.detach())).backward()

    for result in ranks_results:
        for ours, parameter in zip(result[f"{way} DDP"], towers.parameters(), strict=True):
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-10, atol=1e-12)


def test_nan_on_one_rank_is_seen_by_all(ranks_results):
    for result in ranks_results:
        assert all(loss.isnan() for loss in result["nan"])


@pytest.mark.parametrize(
    ("case", "first", "last"),
    [
        (0, (4, 4, 8, 0, 0), (3, 3, 8, 0, 0)),
        (1, (4, 4, 8, 0, 0), (4, 3, 8, 0, 0)),
        (2, (4, 4, 8, 0, 0), (4, 4, 6, 0, 0)),
        (3, (4, 4, 8, 3, 0), (4, 4, 8, 2, 0)),
        (4, (4, 4, 8, 0, 1), (4, 4, 8, 0, 0)),
    ],
)
def test_ranks_that_differ_raise_on_every_rank(ranks_results, case, first, last):
    for result in ranks_results:
        rows = f"rank 0 has (images, texts, width, tile_size, has groups) = {first}, rank {len(ranks_results) - 1} has"
        assert f"{rows} {last}" in result["mismatches"][case]
