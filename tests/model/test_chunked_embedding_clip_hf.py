"""Chunks give the embeddings and the gradients of the whole batch, and hold the activations of one chunk."""

import os
import sys
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clip_hf import ClipHfConfig, ClipHfModel
from clip_hf.model import chunked_embedding_clip_hf
from clip_hf.model.chunked_embedding_clip_hf import (
    embed_in_chunks,
    embed_texts_in_chunks,
    length_group_sizes,
    num_length_groups,
)
from tests.tiny_models import TOWERS, random_ids, random_pixels, tiny_model

BATCH_SIZE = 10


def embed_all(model: nn.Module, chunk_sizes: tuple[int | None, int | None], is_drawn_anew: bool = True) -> Tensor:
    """Embeddings of a batch, after their backward pass."""
    if is_drawn_anew:
        torch.manual_seed(1)
    ids, pixels = random_ids(model.config, BATCH_SIZE), random_pixels(model.config, BATCH_SIZE)
    output = model(input_ids=ids, pixel_values=pixels, chunk_sizes=chunk_sizes)
    embeds = torch.cat([output.image_embeds, output.text_embeds])
    # Weights that differ from row to row: a row in another's place would show.
    (embeds * torch.linspace(-1, 1, embeds.numel()).view_as(embeds)).sum().backward()
    return embeds.detach()


def resident_bytes() -> int:
    """Memory of this process that is in use or kept for later use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("chunk_sizes", [(3, 4), (10, 3), (None, 1), (20, 20)])
def test_chunks_give_the_embeddings_and_gradients_of_the_batch(chunk_sizes):
    plain, chunked = tiny_model("vit").double().train(), tiny_model("vit").double().train()
    ids, pixels = random_ids(plain.config, BATCH_SIZE), random_pixels(plain.config, BATCH_SIZE)
    output = plain(input_ids=ids, pixel_values=pixels)
    embeds = torch.cat([output.image_embeds, output.text_embeds])
    (embeds * torch.linspace(-1, 1, embeds.numel()).view_as(embeds)).sum().backward()

    torch.testing.assert_close(embed_all(chunked, chunk_sizes), embeds.detach(), rtol=0, atol=1e-12)
    for (name, parameter), expected in zip(chunked.named_parameters(), plain.parameters(), strict=True):
        if name != "logit_scale":
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("given", ["input_ids", "pixel_values"])
def test_one_modality_alone(given):
    model = tiny_model("vit").eval()
    make = {"input_ids": random_ids, "pixel_values": random_pixels}[given]
    output = model(**{given: make(model.config)}, chunk_sizes=(2, 2))
    assert set(output.keys()) == {"scale", {"input_ids": "text_embeds", "pixel_values": "image_embeds"}[given]}


def test_the_recomputation_draws_the_same_random_numbers(monkeypatch):
    """With dropout, recomputed chunks equal chunks whose activations were kept."""
    recomputed, kept = tiny_model("vit").train(), tiny_model("vit").train()
    for model in (recomputed, kept):
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
    found = embed_all(recomputed, (3, 3))
    monkeypatch.setattr(chunked_embedding_clip_hf, "checkpoint", lambda embed, chunk, **_options: embed(chunk))
    expected = embed_all(kept, (3, 3))

    assert torch.equal(found, expected)
    for parameter, other in zip(recomputed.parameters(), kept.parameters(), strict=True):
        assert parameter.grad is other.grad is None or torch.equal(parameter.grad, other.grad)
    assert not torch.equal(embed_all(kept, (3, 3), is_drawn_anew=False), expected), "dropout is off"


def test_batch_norm_sees_each_chunk_once(monkeypatch):
    recomputed, kept = tiny_model("resnet").train(), tiny_model("resnet").train()
    embed_all(recomputed, (5, 5))
    monkeypatch.setattr(chunked_embedding_clip_hf, "checkpoint", lambda embed, chunk, **_options: embed(chunk))
    embed_all(kept, (5, 5))

    statistics = dict(kept.named_buffers())
    assert statistics["vision_model.stem.bn1.num_batches_tracked"] == 2
    for name, buffer in recomputed.named_buffers():
        assert torch.equal(buffer, statistics[name]), name


def test_texts_of_a_chunk_are_of_like_length_and_trimmed():
    eos_token_id, lengths = 9, torch.tensor([7, 3, 5, 2, 6, 4, 8])
    ids = torch.where(torch.arange(8) >= lengths[:, None] - 1, eos_token_id, 1)
    shapes = []

    def embed(chunk: Tensor) -> Tensor:
        shapes.append(tuple(chunk.shape))
        return (chunk == 1).sum(dim=1, keepdim=True) + 1.0

    embeds = embed_texts_in_chunks(embed, ids, eos_token_id, chunk_size=3)
    assert shapes == [(3, 4), (3, 7), (1, 8)]
    assert embeds.flatten().tolist() == lengths.tolist()


def test_texts_of_one_length_are_embedded_beside_those_that_begin_alike():
    ids = torch.tensor([[1, 5, 2, 9], [1, 3, 2, 9], [1, 5, 9, 7], [1, 3, 4, 9], [1, 5, 3, 9]])
    chunks = []
    found = embed_texts_in_chunks(lambda chunk: chunks.append(chunk) or chunk[:, 1:3].double(), ids, 9, chunk_size=3)
    assert torch.cat([chunk[:, :3] for chunk in chunks]).tolist() == [
        [1, 5, 9],
        [1, 3, 2],
        [1, 3, 4],
        [1, 5, 2],
        [1, 5, 3],
    ]
    assert torch.equal(found, ids[:, 1:3].double())


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_training_step_computes_what_texts_share_once(chunk_size):
    model = tiny_model("vit").train()
    ids = random_ids(model.config).repeat(2, 1)
    rows = []
    model.text_model.layers[0].mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    model(input_ids=ids, chunk_sizes=(None, chunk_size))
    assert rows and set(rows) == {1}


def test_texts_of_a_whole_batch_are_embedded_in_groups_of_like_length(monkeypatch):
    plain, grouped = tiny_model("vit").double().train(), tiny_model("vit").double().train()
    expected = embed_all(plain, (None, None))
    monkeypatch.setattr(chunked_embedding_clip_hf, "TEXTS_PER_LENGTH_GROUP", 3)
    lengths = []
    grouped.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    found = embed_all(grouped, (None, None))
    assert len(lengths) == 4 and sum(rows for rows, _ in lengths) == BATCH_SIZE
    assert lengths[0][1] < lengths[-1][1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for (name, parameter), other in zip(grouped.named_parameters(), plain.parameters(), strict=True):
        if name != "logit_scale":
            torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("num_texts", [33, 64, 97])
def test_groups_of_a_batch_have_the_least_padding(num_texts):
    """Against all ways to cut it at 32 places."""
    generator = torch.Generator().manual_seed(num_texts)
    lengths = (torch.randn(num_texts, generator=generator) * 5 + 14).clamp(3, 77).int().sort().values.tolist()
    num_groups = every = -(-num_texts // 32)
    places = range(every, num_texts, every)

    def num_tokens(ends: tuple[int, ...]) -> int:
        return sum((end - start) * lengths[end - 1] for start, end in pairwise((0, *ends, num_texts)))

    sizes = length_group_sizes(lengths, num_groups)
    assert len(sizes) == num_groups and min(sizes) > 0 and sum(sizes) == num_texts
    found = tuple(sum(sizes[: count + 1]) for count in range(num_groups - 1))
    assert num_tokens(found) == min(map(num_tokens, combinations(places, num_groups - 1)))


@pytest.mark.parametrize(
    ("device_type", "num_texts", "num_groups"),
    [
        *(("cpu", 1, 1), ("cpu", 64, 1), ("cpu", 65, 2), ("cpu", 192, 3), ("cpu", 256, 4), ("cpu", 5000, 4)),
        *(("cuda", 256, 1), ("cuda", 2048, 1), ("cuda", 2049, 2), ("cuda", 32_768, 4)),
    ],
)
def test_the_number_of_groups_does_not_depend_on_the_lengths(device_type, num_texts, num_groups):
    """Processes that gather weights for each group would wait for each other for ever."""
    assert num_length_groups(num_texts, device_type) == num_groups
    for lengths in ([7] * num_texts, [3] * (num_texts - 1) + [77], sorted(5 + i % 60 for i in range(num_texts))):
        sizes = length_group_sizes(lengths, num_groups)
        assert len(sizes) == num_groups and min(sizes) > 0 and sum(sizes) == num_texts


def test_the_number_of_groups_is_that_of_where_the_texts_are(monkeypatch):
    asked = []
    monkeypatch.setattr(chunked_embedding_clip_hf, "num_length_groups", lambda *what: asked.append(what) or 1)
    monkeypatch.setattr(chunked_embedding_clip_hf, "trim_padding", lambda ids, eos_token_id: ids)
    embed_texts_in_chunks(lambda ids: ids, torch.ones(40, 5, dtype=torch.long, device="meta"), 1, None)
    assert asked == [(40, "meta")]


def test_a_text_without_an_end_is_an_error():
    with pytest.raises(ValueError, match="no end-of-text token 9"):
        embed_texts_in_chunks(lambda chunk: chunk, torch.ones(4, 3, dtype=torch.long), 9, chunk_size=2)
    ids = torch.tensor([[1, 1, 9], [1, 9, 9], [1, 1, 1], [9, 9, 9]])  # by length, the third would come first
    with pytest.raises(ValueError, match=r"1 of 4 texts \(first: number 2\)"):
        embed_texts_in_chunks(lambda chunk: chunk, ids, 9, chunk_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_sizes": (4,)}, r"chunk_sizes is \(4,\), but must be two numbers of 1 or more, or None"),
        ({"chunk_sizes": (4, 0)}, r"chunk_sizes is \(4, 0\)"),
        ({"chunk_sizes": (-1, None)}, r"chunk_sizes is \(-1, None\)"),
        ({"chunk_sizes": (2, 2), "return_loss": True}, "but return_loss came along: leave it out"),
        ({"chunk_sizes": (2, 2), "output_attentions": True}, "but output_attentions came along"),
    ],
)
def test_what_chunks_do_not_give_is_refused(options, message):
    model = tiny_model("vit")
    with pytest.raises(ValueError, match=message):
        model(random_ids(model.config), random_pixels(model.config), **options)
    model(random_ids(model.config), random_pixels(model.config), chunk_sizes=(2, None), return_loss=False)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_chunk_is_dropped_before_the_next(tower):
    """After the forward pass the graph holds inputs, whatever the depth of the towers."""
    model = tiny_model(tower).train()
    pixels = random_pixels(model.config, BATCH_SIZE)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        embeds = embed_in_chunks(lambda part: model.get_image_features(part).pooler_output, pixels, 2)
    assert embeds.requires_grad
    assert sum(saved) <= pixels.numel()


def test_gradients_of_chunks_add_up_in_float32():
    """Each of 512 adds 1 to a gradient: in bfloat16, 256 + 1 is 256."""
    layer = nn.Linear(1, 1, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        embed_in_chunks(layer, torch.ones(512, 1), chunk_size=1).sum().backward()
        assert torch.is_autocast_cache_enabled()
    assert layer.weight.grad.item() == 512


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process from /proc")
def test_the_allocator_does_not_keep_what_chunks_have_freed():
    """Otherwise glibc 2.36 keeps 300 MB of these 32 chunks."""
    tower = {"hidden_size": 128, "num_hidden_layers": 4}
    vision_config = tower | {"image_size": 32, "patch_size": 8}
    model = ClipHfModel(ClipHfConfig(projection_dim=128, text_config=tower, vision_config=vision_config)).train()
    pixels = torch.randint(0, 256, (2048, 3, 32, 32), dtype=torch.uint8)

    def embed(chunk: Tensor) -> Tensor:
        return model.get_image_features(chunk).pooler_output

    embed_in_chunks(embed, pixels[:128], 64)
    before = resident_bytes()
    embeds = embed_in_chunks(embed, pixels, 64)
    assert embeds.requires_grad
    assert resident_bytes() - before < 150e6
