from pathlib import Path

import pytest

from scripts.render_benchmarks import BEGIN, END, RESULTS, insert_table, read_cases, render_table

README = Path(__file__).parents[2] / "README.md"


def test_the_table_of_the_readme_is_that_of_the_results():
    page = README.read_text(encoding="utf-8")
    assert insert_table(page, render_table(read_cases(RESULTS))) == page, "run scripts/render_benchmarks.py"


def test_a_case_has_its_rates_ratio_and_memory():
    case = {"row": "Loss", "unit": "pairs", "case": "4 pairs", "ours": "clip_hf", "best_peer": "open_clip"}
    case |= {"per_second": {"clip_hf": 1234.5, "open_clip": 600.0}, "times_faster": 2.057, "target": 1.5}
    case |= {"share_of_floor": 0.9, "peak_megabytes_above_inputs": {"clip_hf": 12, "open_clip": 3456}}
    row = "| Loss: 4 pairs; clip_hf 12 MB, open_clip 3,456 MB | 1,234 pairs/s | 600, open_clip | 2.06 (1.5) | 90% |"
    assert render_table([case]).splitlines()[2] == row


def test_the_table_replaces_the_one_before():
    page = f"before\n{BEGIN}old\n{END}after\n"
    assert insert_table(page, "new\n") == f"before\n{BEGIN}new\n{END}after\n"
    with pytest.raises(ValueError, match="the page has no lines"):
        insert_table("no marks", "new\n")


def test_a_file_that_is_not_there_is_no_row(tmp_path):
    assert read_cases(tmp_path) == []
