import pytest

from clip_hf.data.columns import USUAL_COLUMNS, Columns, choose_columns


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"image": b"", "caption": "a"}, Columns("image", "caption", None)),
        ({"image": {"bytes": b"", "path": None}, "text": "a", "id": 3}, Columns("image", "text", "id")),
        ({"file_name": "a.jpg", "text": "a", "captions": ["a"]}, Columns("file_name", "captions", "file_name")),
        ({"filepath": "a.jpg", "title": "a", "id": 3}, Columns("filepath", "title", "filepath")),
        ({"image": "a.jpg", "image_id": 5, "id": 3, "caption": "a"}, Columns("image", "caption", "image_id")),
        ({"URL": "a.jpg", "TEXT": "a", "Id": 3}, Columns("URL", "TEXT", "URL")),
        ({"image_url": "a.jpg", "Caption": "A", "caption": "a"}, Columns("image_url", "caption", "image_url")),
        ({"image": b"", "jpg": b"", "key": "0", "text": "a", "txt": "a"}, Columns("image", "text", "key")),
    ],
)
def test_usual_columns_are_found(row, found):
    assert choose_columns("a", list(row), USUAL_COLUMNS, row) == found


@pytest.mark.parametrize(
    ("row", "wanted", "message"),
    [
        (
            {"text": "a", "label": 1},
            USUAL_COLUMNS,
            r"a.csv has no column of images \(image, .*; there are text, label",
        ),
        ({"image": "a"}, USUAL_COLUMNS, r"a.csv has no column of texts \(captions, .*; there are image: name one"),
        ({"image": "a", "text": "a"}, Columns(image="photo"), "no column 'photo'; there are image, text: name one"),
        ({"image": "a", "text": "a"}, Columns(id="key"), "no column 'key'; there are image, text: name one"),
    ],
)
def test_what_is_missing_is_named(row, wanted, message):
    with pytest.raises(ValueError, match=message):
        choose_columns("a.csv", list(row), wanted, row)
