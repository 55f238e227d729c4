"""The file that a benchmark writes: what was measured, on what, and with which versions."""

import json
import os
import platform
from argparse import Namespace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "transformers", "open_clip_torch", "pillow", "tokenizers", "deepspeed")


def environment() -> dict[str, Any]:
    """Returns date, hardware, versions, threads, and how busy the machine was before."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": date.today().isoformat(),
        "hardware": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def save(file: Path, row: str, unit: str, options: Namespace, cases: list[dict[str, Any]], **facts: Any) -> None:
    """Writes and prints a row.

    Args:
        file: to write.
        row: what is measured.
        unit: of the work, such as "images".
        options: of the command line.
        cases: from `compare`.
        facts: further entries.
    """
    chosen = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    report = {"row": row, "unit": unit, **environment(), "options": chosen, **facts, "cases": cases}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for case in cases:
        print(f"\n{row}: {case['case']}")
        for name, rate in case["per_second"].items():
            print(f"  {name:34}{rate:12,.4g} {unit} per second")
        if "times_faster" in case:
            target = f", aim {case['target']}" if "target" in case else ""
            print(f"  {case['times_faster']} times the best peer{target}")
        if "share_of_floor" in case:
            print(f"  {case['share_of_floor']:.0%} of the floor: {case['floor']}")
        if "why" in case:
            print(f"  {case['why']}")
    print(f"\nsaved to {file}")
