"""Processes on a CPU share its cores."""

import subprocess

import psutil

from tests.ranks import deepspeed_launcher, launched_environment

SCRIPT = """
import sys
import torch
from clip_hf.training import ClipTrainingArguments
torch.set_num_threads(64)
args = ClipTrainingArguments(sys.argv[-1], use_cpu=True)
assert args.world_size == 2
with open(f"{sys.argv[-1]}/threads{args.process_index}", "w") as file:
    file.write(str(torch.get_num_threads()))
"""


def test_a_process_of_deepspeed_starts_threads_for_its_share_of_the_cores(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in launched_environment().items() if name != "OMP_NUM_THREADS"}
    subprocess.run([*deepspeed_launcher(), script, tmp_path], env=environment, check=True, timeout=240)
    share = max(1, psutil.cpu_count(logical=False) // 2)
    assert [(tmp_path / f"threads{rank}").read_text() for rank in range(2)] == [str(share)] * 2
