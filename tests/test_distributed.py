import pytest
import torch

from clip_hf.distributed import all_gather, all_to_all, gather_lists, rank, world_size
from tests.ranks import run_on_ranks

WORLD_SIZE = 3


def test_without_a_process_group_the_world_is_this_process():
    tensor = torch.randn(4, 2, requires_grad=True)

    assert (rank(), world_size()) == (0, 1)
    assert all_gather(tensor) is tensor
    assert all_to_all(tensor) is tensor
    assert gather_lists(["a"]) == ["a"]


def _collect() -> dict[str, torch.Tensor]:
    # A transposed tensor, as collectives take contiguous memory only; each rank weighs what it receives differently.
    own = (torch.arange(6.0).view(3, 2) + 10 * rank()).T.requires_grad_()
    gathered = all_gather(own)
    (gather_grad,) = torch.autograd.grad((gathered * (rank() + 1)).sum(), own)

    shared = (torch.arange(6.0).view(WORLD_SIZE, 2) + 10 * rank()).requires_grad_()
    exchanged = all_to_all(shared)
    (exchange_grad,) = torch.autograd.grad((exchanged * (rank() + 1)).sum(), shared)
    numbers = gather_lists([10 * rank() + place for place in range(rank())])
    return {
        "lists": torch.tensor(numbers),
        "rank": torch.tensor([rank(), world_size()]),
        "own": own.detach(),
        "gathered": gathered.detach(),
        "gather_grad": gather_grad,
        "shared": shared.detach(),
        "exchanged": exchanged.detach(),
        "exchange_grad": exchange_grad,
    }


@pytest.fixture(scope="module")
def collected() -> list[dict[str, torch.Tensor]]:
    return run_on_ranks(_collect, WORLD_SIZE)


def test_ranks_are_numbered(collected):
    assert [result["rank"].tolist() for result in collected] == [[0, 3], [1, 3], [2, 3]]


def test_lists_of_any_length_are_joined_in_the_order_of_the_ranks(collected):
    assert [result["lists"].tolist() for result in collected] == [[10, 20, 21]] * WORLD_SIZE


def test_all_gather_concatenates_in_the_order_of_the_ranks(collected):
    expected = torch.cat([result["own"] for result in collected])

    for result in collected:
        assert torch.equal(result["gathered"], expected)


def test_gradient_of_all_gather_is_the_sum_over_the_ranks(collected):
    for result in collected:
        assert torch.equal(result["gather_grad"], torch.full((2, 3), 1.0 + 2.0 + 3.0))


def test_all_to_all_transposes_the_chunks_of_the_ranks(collected):
    sent = torch.stack([result["shared"] for result in collected])

    for number, result in enumerate(collected):
        assert torch.equal(result["exchanged"], sent[:, number])


def test_gradient_of_all_to_all_comes_from_the_receiver(collected):
    for result in collected:
        assert torch.equal(result["exchange_grad"], torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
