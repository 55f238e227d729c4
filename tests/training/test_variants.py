"""Variants of a recipe: what each is trained with, and what is wrong with a file of them."""

import pytest
import yaml

from clip_hf.training.variants import merge, read_variants


def write(folder, variants, **recipe) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    content = {"recipe": "recipe.yaml", "options": {"num_train_epochs": 2}, "variants": variants}
    (folder / "variants.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "variants.yaml")


def test_a_variant_has_the_recipes_options_those_for_all_and_its_own(tmp_path):
    path = write(tmp_path, {"as it is": {}, "other": {"seed": 1}}, seed=0, eval_strategy="epoch")
    plain, other = read_variants(path).values()
    assert plain.options == {"seed": 0, "num_train_epochs": 2, "eval_strategy": "epoch"}
    assert other.options == plain.options | {"seed": 1} and other.changes == {"seed": 1}
    assert plain.folder == "as_it_is"


def test_a_variant_changes_single_fields_of_a_configuration():
    base = {"architecture": "RN50", "config": {"projection_dim": 64, "vision_config": {"width": 8, "image_size": 64}}}
    assert merge(base, {"config": {"vision_config": {"width": 16}}}) == {
        "architecture": "RN50",
        "config": {"projection_dim": 64, "vision_config": {"width": 16, "image_size": 64}},
    }
    other = {"architecture": "ViT-B/32", "config": {"projection_dim": 32}}
    assert merge(base, other) == other


@pytest.mark.parametrize(
    ("variants", "problem"),
    [
        ({"a b": {}, "a_b": {}}, "2 variants whose folder would be a_b"),
        ([{"seed": 1}], "but must map each name to its options"),
        ({"one": None}, "variant one of .* is None, but must be options"),
        ({"one": {}, "two": {"eval_strategy": False}}, "variant two of .* would not be evaluated"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(variants, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        read_variants(write(tmp_path, variants, eval_strategy="epoch"))


def test_the_command_line_prevails(tmp_path):
    path = write(tmp_path, {"one": {}})
    with pytest.raises(ValueError, match="would not be evaluated"):
        read_variants(path)
    assert read_variants(path, ["--seed", "1", "--eval_strategy", "steps"])
    with pytest.raises(ValueError, match="would not be evaluated"):
        read_variants(write(tmp_path, {"one": {}}, eval_strategy="epoch"), ["--eval_strategy", "no"])
