import json

import numpy as np
import pytest
from PIL import Image

from clip_hf.data.shapes import SEEN, UNSEEN
from clip_hf.data.sources import all_captions, captions_of, load_examples, load_image_folder


@pytest.fixture
def image_folder(tmp_path):
    """Makes a folder of two pictures from two lines of metadata."""

    def make(*lines):
        folder = tmp_path / "images"
        folder.mkdir()
        for number, line in enumerate(lines):
            Image.fromarray(np.full((20, 30, 3), 50 * number, np.uint8)).save(folder / line["file_name"])
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
        return folder

    return make


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": "a cat"}, ["a cat"]),
        ({"captions": ["a cat", "an animal"]}, ["a cat", "an animal"]),
        ({"text": "a cat", "captions": ["a cat", "an animal"]}, ["a cat", "an animal"]),
    ],
)
def test_a_folder_gives_files_and_captions(columns, expected, image_folder):
    folder = image_folder({"file_name": "0.png"} | columns, {"file_name": "1.png"} | columns)
    examples = load_image_folder(folder)
    assert len(examples) == 2
    assert examples[1]["image"]["path"] == str(folder / "1.png") and examples[1]["image"]["bytes"] is None
    assert captions_of(examples[0]) == expected
    assert list(all_captions(examples)) == [expected, expected]
    assert len(load_examples(folder, "training")) == 2


def test_a_folder_without_captions_says_what_is_missing(tmp_path, image_folder):
    with pytest.raises(ValueError, match=r"has no metadata.jsonl"):
        load_image_folder(tmp_path)
    with pytest.raises(ValueError, match=r"needs captions or text"):
        load_image_folder(image_folder({"file_name": "0.png", "label": 3}))


def test_shapes_of_evaluation_are_never_trained_on():
    training, evaluation = load_examples("shapes", "training"), load_examples("shapes", "evaluation")
    assert len(training) == 64 * len(SEEN) and len(evaluation) == len(UNSEEN)
    learned = {caption for captions in all_captions(training) for caption in captions}
    assert not learned & {caption for captions in all_captions(evaluation) for caption in captions}
    assert evaluation[0]["text"] not in learned
