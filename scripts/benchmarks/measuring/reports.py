"""The file that a benchmark writes: what was measured, on what, and with which versions."""

import json
import os
import platform
import re
import subprocess
from argparse import Namespace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results"
RESULTS_ON_GPU = RESULTS / "gpu"
PACKAGES = ("torch", "torchvision", "transformers", "open_clip_torch", "accelerate", "deepspeed", "tokenizers")
PACKAGES += ("numpy", "pillow")
LOAD_BEFORE = os.getloadavg()  # once the measurement runs, it is the load


def environment() -> dict[str, Any]:
    """Returns date, commit, hardware, versions, threads, and how busy the machine was before."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    git = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {
        "date": date.today().isoformat(),
        "commit": commit or None,
        "system": f"{platform.system()} {platform.machine()}",
        "hardware": f"{_processor()}, {os.cpu_count()} processors, {memory:.0f} GB",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average_before": [round(load, 2) for load in LOAD_BEFORE],
        "threads": torch.get_num_threads(),
        "blas": blas[1] if blas else None,
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        re.findall(r"^model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"), re.M) if cpuinfo.exists() else []
    )
    return names[0] if names else platform.processor() or "unnamed"


def write(file: Path, row: str, unit: str, options: Namespace, **facts: Any) -> None:
    """Writes the file of a row.

    Args:
        file: to write; one of `RESULTS` is written to `RESULTS_ON_GPU` if the options name another device than a CPU.
        row: what is measured.
        unit: of the work, such as "images".
        options: of the command line.
        facts: what was measured.
    """
    chosen = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    report = {"row": row, "unit": unit, **environment(), "options": chosen, **facts}
    if file.resolve().parent == RESULTS.resolve() and getattr(options, "device", "cpu") != "cpu":
        file = RESULTS_ON_GPU / file.name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nsaved to {file}")


def save(row: str, unit: str, options: Namespace, cases: list[dict[str, Any]], **facts: Any) -> None:
    """Prints the cases of a row and writes them to its file.

    Args:
        row: what is measured.
        unit: of the work, such as "images".
        options: of the command line, with the file as `output`.
        cases: from `compare`.
        facts: further entries.
    """
    for case in cases:
        print(f"\n{row}: {case['case']}{case.get('note', '')}")
        for name, rate in case["per_second"].items():
            share = f"{case['share_of_floor'][name]:8.0%} of the floor" if "share_of_floor" in case else ""
            print(f"  {name:34}{rate:12,.4g} {unit} per second{share}")
        for one in case["versus"]:
            low, high = one["quartiles"]
            aim = f", aim {one['aim']:g}" if one["aim"] else ""
            print(f"  {one['times_faster']} ({low} to {high}) times {one['peer']}{aim}")
        for fact in ("floor", "bound", "why"):
            if fact in case:
                print(f"  {fact}: {case[fact]}")
    write(options.output, row, unit, options, **facts, cases=cases)
