import pytest

from clip_hf.evaluation.templates import TEMPLATES, load_templates
from clip_hf.model.zero_shot_clip_hf import check_templates


@pytest.mark.parametrize("name", TEMPLATES)
def test_sets_are_of_different_templates(name):
    templates = load_templates(name)
    assert check_templates(templates) == templates
    assert len(set(templates)) == len(templates)


def test_a_file_has_a_template_a_line(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("# of animals\na photo of a {}, an animal.\n\n  the {} \n")
    assert load_templates(str(file)) == ("a photo of a {}, an animal.", "the {}")
    file.write_text("a photo\n")
    with pytest.raises(ValueError, match=r"templates.txt: the template 'a photo' must have exactly one \{\}"):
        load_templates(str(file))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="templates is 'specific', but must be one of plain, general, or a file"):
        load_templates("specific")
