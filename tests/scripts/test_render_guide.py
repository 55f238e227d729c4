import re

from clip_hf.training.planning import Hardware, Training, plan
from clip_hf.training.recipe import read_recipe
from scripts.render_guide import PAGE, RECIPES, largest_chunk, render_page
from tests.tiny_models import tiny_config


def test_the_guide_is_the_planners():
    page = PAGE.read_text(encoding="utf-8")
    assert render_page(page) == page, "run scripts/render_guide.py"
    for name in RECIPES:
        assert page.count(f"| [{name}]({name}.yaml) |") == 2


def test_the_recipes_fit_eight_gpus_of_80_gb():
    page = PAGE.read_text(encoding="utf-8")
    for name in RECIPES:
        (row,) = re.findall(rf"^\| \[{name}\].* ([\d,]+) \|$", page.partition("## Time")[0], re.MULTILINE)
        recipe = read_recipe(str(PAGE.with_name(f"{name}.yaml")))
        assert recipe["grad_cache_chunk_size"] <= int(row.replace(",", "")), name


def test_the_largest_chunk_fits_and_twice_as_many_images_do_not():
    training, devices = Training(tiny_config("vit"), 4096), Hardware(8, 1e12, 0.5, 1e9)

    def gigabytes_of(size: int) -> float:
        training.chunk_size = size
        return sum(plan(training, devices, "zero1").memory.values()) / 1e9

    assert largest_chunk(training, devices, 1.0) == 4096 / 8
    assert largest_chunk(training, devices, 1e-6) == 0
    chunk_size = largest_chunk(training, devices, 0.05)
    assert 1 < chunk_size < 4096 / 8
    assert gigabytes_of(chunk_size) <= 0.9 * 0.05 < gigabytes_of(2 * chunk_size)
