"""A process that fails or dies ends the run on all of them, soon and with a message."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks import deepspeed_launcher, launched_environment

PATIENCE_SECONDS = 240
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
NOT_FINITE = (
    "FloatingPointError: In step 2 the loss is nan. The samples ['pair-12'] have embeddings that are not finite. "
    "The last good checkpoint is {folder}/checkpoint-1\n"
)
DEEPSPEED = deepspeed_launcher()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "end", "message"),
    [
        (TORCHRUN, "raises", "ValueError: pair-12 cannot be read, says rank 1"),
        (TORCHRUN, "killed", "SIGKILL"),
        (TORCHRUN, "not-finite", NOT_FINITE),
        (DEEPSPEED, "raises", "ValueError: pair-12 cannot be read, says rank 1"),
        (DEEPSPEED, "killed", "exits with return code"),
        (DEEPSPEED, "not-finite", NOT_FINITE),
    ],
    ids=[f"{name}-{end}" for name in ("torchrun", "deepspeed") for end in ("raises", "killed", "not-finite")],
)
def test_a_rank_that_fails_ends_the_others(launcher, end, message, tmp_path):
    script = Path(__file__).with_name("run_failure.py")
    started = time.monotonic()
    run = subprocess.run(
        [*launcher, script, tmp_path, end],
        env=launched_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert run.returncode != 0
    printed = run.stdout + run.stderr
    assert message.format(folder=tmp_path) in printed
    assert ("pair-12" in printed) == (end != "killed")
    assert time.monotonic() - started < PATIENCE_SECONDS
