"""A process that fails ends the run on all of them, soon and with a message."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 240


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("run_failure.py")
    started = time.monotonic()
    run = subprocess.run(
        [*launcher, script, tmp_path], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert run.returncode != 0
    assert "ValueError: pair-12 cannot be read, says rank 1" in run.stderr
    assert time.monotonic() - started < PATIENCE_SECONDS
