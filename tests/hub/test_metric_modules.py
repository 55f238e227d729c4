"""The modules of `evaluate` on the Hub: shared by the README's commands, and loaded by name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOAD = """
import evaluate, json
metric = evaluate.load("tester/retrieval_metric")
metric.add_batch(image_embeds=[[1.0, 0.0], [0.0, 1.0]], text_embeds=[[[1.0, 0.0]], [[0.8, 0.6], [0.0, 1.0]]])
print(json.dumps(metric.compute(ks=[1])))
"""


def test_a_metric_is_shared_and_loaded_by_its_name(hub, run_python):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^hf (.* --type space.*)$", readme, re.MULTILINE)
    assert len(commands) == 2, "the README's two commands are gone"
    for command in commands:
        arguments = command.replace("me/", "tester/").split()
        run = [str(Path(sys.executable).with_name("hf")), *arguments]
        subprocess.run(run, cwd=ROOT, env=hub.env, check=True, timeout=120)
    assert hub.repository("tester/retrieval_metric", "space").read("retrieval_metric.py")
    env = hub.env | {"HF_UPDATE_DOWNLOAD_COUNTS": "false"}
    found = json.loads(run_python(LOAD, env, with_clip_hf=True).splitlines()[-1])
    # Of two images both find their text; of three texts two find their image, and one the other image.
    assert found["text_retrieval_recall@1"] == 1 and found["image_retrieval_recall@1"] == pytest.approx(2 / 3)
