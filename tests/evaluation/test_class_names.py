import json
import re

import pytest

from clip_hf.evaluation.class_names import Classes, read_class_names


def labels_of(*labels):
    return [[label] for label in labels]


def number_classes(texts, class_names, **options):
    classes = Classes.find(texts, class_names, **options)
    return classes.names, classes.of([values for values in texts if classes.holds(values[0])])


def test_classes_are_those_of_the_data_in_alphabetical_order():
    names, classes = number_classes(labels_of("ox", "dog", "ox", "cat"), None)
    assert names == ("cat", "dog", "ox")
    assert classes.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize(
    ("class_names", "labels", "classes"),
    [
        (["ox", "dog"], ("dog", "ox", "dog"), [1, 0, 1]),
        (["ox", "dog"], ("1", "0", "1"), [1, 0, 1]),
        ({"n01": "ox", "n02": "dog"}, ("n02", "n01", "n02"), [1, 0, 1]),
    ],
)
def test_class_names_name_labels_and_numbers(class_names, labels, classes):
    names, found = number_classes(labels_of(*labels), class_names)
    assert names == ("ox", "dog")
    assert found.tolist() == classes


@pytest.mark.parametrize(
    ("class_names", "labels", "message"),
    [
        (None, ("0", "1"), "the labels are numbers (0, 1): pass class_names, a file of names"),
        (["ox", "dog"], ("ox", "cow", "dog"), "1 labels are none of 2 classes (ox, dog): cow"),
        (["ox", "dog"], ("0", "2"), "1 labels are none of 2 classes (0, 1): 2"),
        (["ox", "dog", "cat"], ("ox", "dog"), "1 of 3 classes have no image, the first: cat"),
        (["ox", "ox"], ("ox",), "these more than once, 'ox'"),
        ({"a": "ox", "b": "ox"}, ("a", "b"), "these more than once, 'ox'"),
        (None, ("Dog", "ox", "dog"), "'Dog' and 'dog' are two classes, but read alike by a tokenizer"),
        (["hot  dog", "hot dog "], ("0", "1"), "'hot  dog' and 'hot dog ' are two classes, but read alike"),
        (None, (), "not one image has a label"),
        (None, ("-1", "-1"), "not one image has a label"),
    ],
)
def test_labels_that_do_not_fit_are_refused(class_names, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        number_classes(labels_of(*labels), class_names)


def test_negative_numbers_are_no_labels():
    names, classes = number_classes(labels_of("1", "-1", "0"), ["ox", "dog"])
    assert names == ("ox", "dog") and classes.tolist() == [1, 0]


def test_classes_that_are_no_prompts_may_be_numbers():
    names, classes = number_classes(labels_of("10", "2", "10", "-1"), None, names_are_prompts=False)
    assert names == ("2", "10") and classes.tolist() == [1, 0, 1]
    assert number_classes(labels_of("Dog", "dog"), None, names_are_prompts=False)[0] == ("Dog", "dog")


def test_an_image_has_one_label():
    with pytest.raises(ValueError, match="image 1 has 2 labels, ox, dog, but must have one"):
        number_classes([["ox"], ["ox", "dog"]], None)
    assert number_classes([["ox", "ox"]], None)[1].tolist() == [0]


def test_files_of_names(tmp_path):
    lines, table = tmp_path / "names.txt", tmp_path / "names.json"
    lines.write_text("ox\n\n hot air balloon \n")
    assert read_class_names(lines) == ["ox", "hot air balloon"]
    table.write_text(json.dumps({"n01": "ox"}))
    assert read_class_names(table) == {"n01": "ox"}
    for content, message in {"{": "is not JSON", "[1]": "must be a list of names", '"ox"': "must be a list"}.items():
        table.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_class_names(table)
    table.write_text('{"n01": "ox", "n02": "dog", "n01": "cat"}')
    with pytest.raises(ValueError, match=r"names\.json .*: it names a label twice, 'n01'"):
        read_class_names(table)
    lines.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"names\.txt is not text in UTF-8"):
        read_class_names(lines)
    with pytest.raises(ValueError, match="is no file"):
        read_class_names(tmp_path / "none.txt")
