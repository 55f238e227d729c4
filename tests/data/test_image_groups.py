import numpy as np

from clip_hf.data.image_groups import ImageGroups


def test_rows_of_an_image_are_a_group_in_the_order_of_first_rows():
    groups = ImageGroups.find(["b", "a", "b", "c", "a", "b"])
    assert list(groups) == [[0, 2, 5], [1, 4], [3]]


def test_different_images_need_no_groups():
    assert ImageGroups.find(map(str, range(1000))) is None


def test_groups_are_those_of_a_dictionary():
    ids = [str(number) for number in np.random.default_rng(0).integers(0, 300, 2000)]
    expected = {}
    for row, id_ in enumerate(ids):
        expected.setdefault(id_, []).append(row)
    assert list(ImageGroups.find(ids)) == list(expected.values())
