from pathlib import Path

import pytest

from scripts.render_benchmarks import TABLES, insert_table, read_cases, render_table

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_the_readme_is_that_of_the_results(name):
    page = README.read_text(encoding="utf-8")
    assert insert_table(page, name, render_table(read_cases(TABLES[name]))) == page, "run scripts/render_benchmarks.py"


def test_a_case_has_a_line_for_each_peer():
    case = {"row": "Loss", "unit": "pairs", "case": "4 pairs", "ours": "clip_hf", "note": "; clip_hf 12 MB"}
    case |= {"per_second": {"clip_hf": 1234.5, "open_clip": 600.0, "transformers": 100.0}}
    case |= {"share_of_floor": {"clip_hf": 0.9, "open_clip": 0.5, "transformers": 0.1}}
    versus = {"peer": "open_clip", "aim": 1.5, "times_faster": 2.057, "quartiles": [2.0, 2.11]}
    case["versus"] = [versus, versus | {"peer": "transformers", "aim": None}]
    assert render_table([case]).splitlines()[2:] == [
        "| Loss: 4 pairs; clip_hf 12 MB | 1,234 pairs/s | 600, open_clip | 2.06 (2 to 2.11) | 1.5 | 90% |",
        "| | | 100, transformers | 2.06 (2 to 2.11) |  |  |",
    ]
    del case["share_of_floor"]
    alone = "| Loss: 4 pairs; clip_hf 12 MB | 1,234 pairs/s | | | |  |"
    assert render_table([case | {"versus": []}]).splitlines()[2] == alone


def test_bytes_stand_beside_their_formula():
    case = {"row": "Communication", "unit": "bytes", "case": "ddp", "bytes_sent": 1010, "formula": 1000}
    line = "| Communication: ddp | 1,010 bytes | 1,000, formula | 101.00% of the formula | | |"
    assert render_table([case]).splitlines()[2] == line


def test_the_table_replaces_the_one_before():
    page = "before\n<!-- some -->\n{}<!-- end of some -->\nafter\n"
    assert insert_table(page.format("old\n"), "some", "new\n") == page.format("new\n")
    with pytest.raises(ValueError, match="the page has no lines <!-- other --> and"):
        insert_table(page, "other", "new\n")


def test_a_file_that_is_not_there_is_no_row(tmp_path):
    assert read_cases(tmp_path) == []
