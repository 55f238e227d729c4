"""The command that pushes, and its page's examples, run as they stand by somebody who has only the repository."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clip_hf import ClipHfModel
from tests.model_card.test_rendered_page import assert_tables_and_sections, html_of
from tests.tiny_models import random_ids, random_pixels

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "push_to_hub.py"
PHOTO = """
import os
from PIL import Image
os.makedirs("path/to/images")
for place in (".", "path/to/images"):
    Image.linear_gradient("L").convert("RGB").save(f"{place}/photo.jpg")
    Image.linear_gradient("L").convert("RGB").save(f"{place}/other.jpg")
lines = ['{"file_name": "%s.jpg", "text": "a %s of a dog"}' % (name, name) for name in ("photo", "other")]
open("path/to/images/metadata.jsonl", "w").write("\\n".join(lines))
"""
CLIP_FEATURES = """
import json
import torch
with torch.no_grad():
    output = model(**torch.load(inputs))
print(type(model).__module__)
print(json.dumps([output.image_embeds.tolist(), output.text_embeds.tolist()]))
"""
PRINTED = "\nprint(type(model).__name__, type(model).__module__, model.num_parameters())\n"


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Runs the script in this process, and returns what it printed; what it exits with is its error."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


def examples(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_a_model_goes_by_command_and_opens_by_what_it_prints(
    hub, checkpoint, run_script, run_python, this_process_uses_hub
):
    """It opens in a process without clip_hf, which has nothing but the repository's name."""
    printed = run_script(checkpoint, "tester/whole", "--with_code", "--private", "--tag", "v1")
    url, empty, *usage = printed.splitlines()[-5:]
    assert (url, empty, len(usage)) == (f"{hub.url}/tester/whole/tree/v1", "", 3)

    page = hub.repository("tester/whole").read("README.md").decode()
    blocks = [block for block in examples(page, "python") if "clip_hf" not in block]
    assert len(blocks) == 2
    code = PHOTO + "\n".join([*blocks, *usage]) + PRINTED + "print(outputs.logits_per_image.shape)"
    printed = run_python(code, hub.env, with_clip_hf=False).splitlines()
    assert printed[-2].startswith("ClipHfModel transformers_modules.tester.whole.")
    assert printed[-1] == "torch.Size([1, 2])"


def test_transformers_own_class_opens_as_the_page_says(
    hub, checkpoint, run_script, run_python, this_process_uses_hub, tmp_path
):
    """With the page's lines and no more: by the repository's name, without clip_hf and without trust in its code."""
    run_script(checkpoint, "tester/formats", "--formats", "clip_hf,transformers,open_clip", "--private")
    page = hub.repository("tester/formats").read("README.md").decode()
    (block,) = [block for block in examples(page, "python") if "CLIPModel" in block]
    *imports, opening = block.strip().splitlines()
    ours = ClipHfModel.from_pretrained(checkpoint)
    inputs = {"input_ids": random_ids(ours.config), "pixel_values": random_pixels(ours.config)}
    torch.save(inputs, tmp_path / "inputs.pt")
    code = "\n".join([*imports, f"model = {opening}", f"inputs = '{tmp_path}/inputs.pt'", CLIP_FEATURES])
    home, found = run_python(code, hub.env, with_clip_hf=False).splitlines()[-2:]
    assert home == "transformers.models.clip.modeling_clip"
    with torch.no_grad():
        output = ours(**inputs)
    for features, expected in zip(json.loads(found), (output.image_embeds, output.text_embeds), strict=True):
        torch.testing.assert_close(torch.tensor(features), expected, rtol=0, atol=1e-5)


def test_a_dry_run_says_what_would_go_and_asks_only(hub, checkpoint, run_script, this_process_uses_hub):
    with hub.recording() as exchanges:
        printed = run_script(checkpoint, "tester/dry", "--dry_run")
    assert {exchange.method for exchange in exchanges} == {"GET"}
    assert "model.safetensors" in printed and re.search(r"files to send, \d+\.\d kB\.\n$", printed)
    printed = run_script(checkpoint, "tester/dry")
    places = [printed.index(text) for text in ("files to send", f"{hub.url}/tester/dry", "from clip_hf import")]
    assert places == sorted(places)


def test_formats_are_a_list_with_commas(checkpoint, run_script, this_process_uses_hub):
    printed = run_script(checkpoint, "tester/listed", "--dry_run", "--formats", "clip_hf, transformers,")
    assert "transformers/model.safetensors" in printed


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere", "tester/clip"], "nowhere has no config.json"),
        (["{checkpoint}", "clip"], "must be NAMESPACE/NAME, such as me/clip"),
        (["{checkpoint}", "other/clip"], "may not write to other/clip"),
        (["{checkpoint}", "tester/clip", "--create_pr"], "There is no tester/clip"),
        (["{checkpoint}", "tester/clip", "--formats", "clip_hf,onnx"], "unknown formats"),
    ],
)
def test_errors_are_one_line(arguments, problem, checkpoint, run_script, this_process_uses_hub):
    with pytest.raises(SystemExit) as error:
        run_script(*(argument.format(checkpoint=checkpoint) for argument in arguments))
    assert problem in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_a_trained_model_goes_through_every_door_of_its_page(hub, run_python, tmp_path):
    """Trained by the script, pushed with and without code, and each of the five examples run as the pages have it."""
    python = f"{sys.executable} {ROOT}/scripts/"
    env = os.environ | hub.env | {"OMP_NUM_THREADS": "1"}
    folder = tmp_path / "trained"
    options = "--use_cpu --max_steps 2 --logging_steps 1 --global_batch_size 8 --eval_steps 2"
    options += " --dataloader_num_workers 0 --warmup_steps 0"
    train = f"{python}train.py {ROOT}/scripts/recipes/shapes.yaml {options} --output_dir {folder}"
    pushes = [f"{python}push_to_hub.py {folder} {what}" for what in ("tester/coded --with_code", "tester/trained")]
    usages = []
    for command in (train, *pushes):
        run = subprocess.run(shlex.split(command), env=env, cwd=tmp_path, check=True, capture_output=True, text=True)
        assert hub.token not in run.stdout + run.stderr
        usages.append("\n".join(run.stdout.splitlines()[-3:]))

    coded, page = (hub.repository(f"tester/{name}").read("README.md").decode() for name in ("coded", "trained"))
    results = json.loads((folder / "results.json").read_text())
    for one in (coded, page):
        assert_tables_and_sections(one)
        html = html_of(one)
        assert f"<td>pairs seen</td>\n<td>{results['training']['num_pairs_seen']}</td>" in html
        assert "<h3>Retrieval</h3>" in html and '<img src="curves.png" alt="Training curves" />' in html
    blocks = [block for block in examples(coded, "python") if "clip_hf" not in block]
    assert len(blocks) == 2
    printed = run_python(PHOTO + "\n".join([*blocks, usages[1]]) + PRINTED, hub.env, with_clip_hf=False)
    home, num_parameters = printed.splitlines()[-1].split()[1:]
    assert home.startswith("transformers_modules.tester.coded.") and int(num_parameters) == results["num_parameters"]
    blocks = examples(page, "python")
    assert len(blocks) == 3
    run_python(PHOTO + "\n".join([*blocks, usages[2]]), hub.env, with_clip_hf=True)

    subprocess.run([sys.executable, "-c", PHOTO], cwd=tmp_path, check=True)
    for command in examples(page, "bash"):
        command = command.replace("python scripts/", python).strip()
        if "train.py" in command:
            command += " --use_cpu --max_steps 1 --per_device_train_batch_size 2 --dataloader_num_workers 0"
        run = subprocess.run(shlex.split(command), env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
    assert list((tmp_path / "embeddings").iterdir()) and (tmp_path / "outputs" / "further" / "config.json").is_file()
