"""Renders scripts/benchmarks/results and its folder gpu: the tables in the README, and the bars in overview.png.

python scripts/render_benchmarks.py
"""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))
RESULTS = ROOT / "scripts" / "benchmarks" / "results"
# What the README calls each table, and where its files are.
TABLES = {"benchmarks": RESULTS, "benchmarks on a GPU": RESULTS / "gpu"}
# In the order of the table; each is the name of a script and of the file it writes.
ROWS = ("image_features", "text_features", "zero_shot_pipeline", "training_step", "contrastive_loss", "chunked_step")
ROWS += ("large_batch_step", "image_loading", "tokenization", "start_up", "large_retrieval", "communication")


def read_cases(results: Path) -> list[dict[str, Any]]:
    """Returns the cases of all rows that were measured, each with its row and unit."""
    files = [file for row in ROWS if (file := results / f"{row}.json").is_file()]
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [{"row": report["row"], "unit": report["unit"]} | case for report in reports for case in report["cases"]]


def render_table(cases: list[dict[str, Any]]) -> str:
    """Returns the cases as Markdown, a line for each comparison with a peer."""
    lines = ["| | clip_hf | peer | times as fast (quartiles) | aim | share of floor |", "|---|---|---|---|---|---|"]
    for case in cases:
        title = f"{case['row']}: {case['case']}"
        if "bytes_sent" in case:
            share = f"{case['bytes_sent'] / case['formula']:.2%} of the formula"
            lines.append(f"| {title} | {case['bytes_sent']:,} bytes | {case['formula']:,}, formula | {share} | | |")
            continue
        ours = f"{_rate(case['per_second'][case['ours']])} {case['unit']}/s"
        share = f"{case['share_of_floor'][case['ours']]:.0%}" if "share_of_floor" in case else ""
        front = f"| {title}{case.get('note', '')} | {ours} |"
        for one in case["versus"]:
            low, high = one["quartiles"]
            peer = f"{_rate(case['per_second'][one['peer']])}, {one['peer']}"
            ratio, aim = (
                f"{one['times_faster']:.3g} ({low:.3g} to {high:.3g})",
                f"{one['aim']:g}" if one["aim"] else "",
            )
            lines.append(f"{front} {peer} | {ratio} | {aim} | {share} |")
            front, share = "| | |", ""
        if not case["versus"]:
            lines.append(f"{front} | | | {share} |")
    return "\n".join(lines) + "\n"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def insert_table(page: str, name: str, table: str) -> str:
    """Returns a page with the table between the marks of its name.

    Raises:
        ValueError: the page has not both marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if not 0 <= page.find(begin) < page.find(end):
        raise ValueError(f"the page has no lines {begin.strip()} and {end.strip()}")
    return page[: page.find(begin) + len(begin)] + table + page[page.find(end) :]


def main() -> None:
    """Renders all."""
    ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    from measuring.drawing import draw_ratios

    readme = ROOT / "README.md"
    for name, folder in TABLES.items():
        cases = read_cases(folder)
        page = insert_table(readme.read_text(encoding="utf-8"), name, render_table(cases))
        readme.write_text(page, encoding="utf-8")
        versus = [(case, one) for case in cases for one in case.get("versus", [])]
        bars = {f"{case['row']}: {case['case']} / {one['peer']}": one for case, one in versus}
        draw_ratios(bars, folder / "overview.png")
        print(f"rendered {len(cases)} cases into {readme} and {folder / 'overview.png'}")


if __name__ == "__main__":
    main()
