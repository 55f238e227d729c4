import numpy as np
import torch

from clip_hf.data.image_groups import ImageGroups, find_twins


def test_rows_of_an_image_are_a_group_in_the_order_of_first_rows():
    groups = ImageGroups.find(["b", "a", "b", "c", "a", "b"])
    assert list(groups) == [[0, 2, 5], [1, 4], [3]]


def test_an_id_may_be_half_a_character():
    assert list(ImageGroups.find(["a\ud800", "b", "a\ud800"])) == [[0, 2], [1]]


def test_different_images_need_no_groups():
    assert ImageGroups.find(map(str, range(1000))) is None


def test_groups_are_those_of_a_dictionary():
    ids = [str(number) for number in np.random.default_rng(0).integers(0, 300, 2000)]
    expected = {}
    for row, id_ in enumerate(ids):
        expected.setdefault(id_, []).append(row)
    assert list(ImageGroups.find(ids)) == list(expected.values())


def test_of_processes_with_the_same_image_the_first_keeps_it():
    ranks = [[(0, "a"), (0, 5)], [(0, 5), (1, "a")], [(1, "a"), (0, "a")]]
    digests = []
    for images in ranks:
        find_twins(images, lambda own: digests.append(own) or own.repeat(3), 0, 3)
    found = [find_twins(images, lambda _: torch.cat(digests), rank, 3) for rank, images in enumerate(ranks)]
    assert [(is_any, sorted(twins, key=str)) for is_any, twins in found] == [
        (True, []),
        (True, [(0, 5)]),
        (True, [(0, "a"), (1, "a")]),
    ]
    assert find_twins(ranks[0], lambda own: torch.cat([own, own + 1]), 1, 2) == (False, [])
