"""The test Hub against the clients it stands in for: huggingface_hub, transformers and datasets."""

import json

import pytest

from tests.hub.hub_server import matching

BIG_BYTES = 11 * 1024**2


def test_a_folder_goes_up_and_comes_down_and_nothing_travels_twice(hub, client):
    upload = """
api.create_repo("tester/folder", exist_ok=True)
Path("deep/er").mkdir(parents=True)
Path("config.json").write_text('{"model_type": "tiny"}')
Path("deep/er/notes.txt").write_text("")
Path("deep/model.safetensors").write_bytes(b"weights")
Path("big.dat").write_bytes(bytes(range(256)) * (11 * 4096))
commit = api.upload_folder(repo_id="tester/folder", folder_path=".", commit_message="all of it")
print(json.dumps(commit.oid))
"""
    with hub.recording() as exchanges:
        first = client(upload)
    held = hub.repository("tester/folder")
    assert held.history()[0].oid == first
    assert [commit.title for commit in held.history()] == ["all of it", "initial commit"]
    assert held.read("big.dat") == bytes(range(256)) * (11 * 4096)
    lfs = {path for path, entry in held.resolve("main").files.items() if entry.lfs}
    assert lfs == {"big.dat", "deep/model.safetensors"}  # the one by its size, the other by .gitattributes
    assert sorted(one.received_bytes for one in matching(exchanges, "PUT", "^/lfs/")) == [len(b"weights"), BIG_BYTES]
    with hub.recording() as exchanges:
        assert client(upload) == first
    assert not matching(exchanges, "PUT", "") and not matching(exchanges, "POST", "/commit/")

    download = """
folder = snapshot_download("tester/folder")
print(json.dumps({
    "files": {str(p.relative_to(folder)): p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()},
    "info": [api.model_info("tester/folder").sha, api.model_info("tester/folder").config],
    "root": [entry.path for entry in api.list_repo_tree("tester/folder")],
    "deep": [entry.path for entry in api.list_repo_tree("tester/folder", "deep", recursive=True)],
    "infos": [[i.path, i.blob_id] for i in api.get_paths_info("tester/folder", ["config.json", "none"])],
    "blobs": {s.rfilename: s.lfs and s.lfs.sha256 for s in
              api.model_info("tester/folder", files_metadata=True).siblings},
}))
"""
    env = hub.client_env(hub.token)
    with hub.recording() as exchanges:
        seen = client(download, env)
    assert seen["files"] == {path: entry.size for path, entry in held.resolve("main").files.items()}
    assert seen["info"] == [first, {"model_type": "tiny"}]
    assert seen["root"] == [".gitattributes", "big.dat", "config.json", "deep"]
    assert seen["deep"] == ["deep/er", "deep/er/notes.txt", "deep/model.safetensors"]
    git_hash_object = "acfb5d72b280d1928946c2d9ae9f53d92caafcee"  # what Git prints for config.json
    assert seen["infos"] == [["config.json", git_hash_object]]
    assert seen["blobs"]["big.dat"] == held.resolve("main").files["big.dat"].sha256
    assert sum(one.sent_bytes for one in matching(exchanges, "GET", "^/lfs/")) == BIG_BYTES + len(b"weights")
    assert not any(one.authorized for one in exchanges if one.path.startswith("/lfs/"))
    with hub.recording() as exchanges:
        client(download, env)
    assert not matching(exchanges, "GET", "^/lfs/|/resolve/")


def test_history_is_kept_and_named(hub, client):
    seen = client("""
repo = "tester/history"
api.create_repo(repo)
def put(text, **kwargs):
    return api.upload_file(path_or_fileobj=text.encode(), path_in_repo="a.txt", repo_id=repo, **kwargs)
one = put("one").oid
api.create_tag(repo, tag="v1", tag_message="the first")
api.create_branch(repo, branch="try/out", revision="v1")
two = put("two").oid
put("other", revision="try/out")
pull = put("proposal", create_pr=True)
put("better proposal", revision=pull.pr_revision)
def read(revision):
    return Path(hf_hub_download(repo, "a.txt", revision=revision)).read_text()
refs = api.list_repo_refs(repo, include_pull_requests=True)
print(json.dumps({
    "texts": [read(r) for r in ("v1", one, two, two[:8], "main", "try/out", "refs/pr/1", "refs/heads/main")],
    "snapshot": (Path(snapshot_download(repo, revision="v1")) / "a.txt").read_text(),
    "refs": [[r.name for r in group] for group in (refs.branches, refs.tags, refs.pull_requests)],
    "commits": [[c.title, c.authors] for c in api.list_repo_commits(repo, revision="try/out")],
    "pr": [pull.pr_num, pull.pr_revision],
    "again": error(api.create_tag, repo, tag="v1"),
    "exist_ok": error(api.create_branch, repo, branch="try/out", exist_ok=True),
    "stale": error(put, "three", parent_commit=one),
    "to a tag": [error(put, "three", revision=tag) for tag in ("v1", "refs/tags/v1")],
    "deleted": [error(api.delete_tag, repo, tag="v1"), error(api.delete_branch, repo, branch="try/out")],
    "gone": [error(read, "v1"), error(api.delete_tag, repo, tag="v1"), error(api.model_info, repo, revision="no")],
}))
""")
    assert seen["texts"] == ["one", "one", "two", "two", "two", "other", "better proposal", "two"]
    assert seen["snapshot"] == "one"
    assert seen["refs"] == [["main", "try/out"], ["v1"], ["1"]]
    title = "Upload a.txt with huggingface_hub"
    assert seen["commits"] == [[title, ["tester"]], [title, ["tester"]], ["initial commit", ["tester"]]]
    assert seen["pr"] == [1, "refs/pr/1"]
    assert seen["again"] == ["HfHubHTTPError", 409] and seen["exist_ok"] is None
    assert seen["stale"] == ["HfHubHTTPError", 412]
    assert seen["to a tag"] == [["RevisionNotFoundError", 404]] * 2
    assert seen["deleted"] == [None, None]
    assert seen["gone"] == [["RevisionNotFoundError", 404]] * 3


def test_files_are_deleted_and_missing_ones_say_so(hub, client):
    seen = client("""
from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
repo = "tester/deletions"
api.create_repo(repo)
adds = [CommitOperationAdd(path, path.encode()) for path in ("a", "b", "c/d", "c/e/f", "cc")]
api.create_commit(repo, adds, commit_message="add")
api.create_commit(repo, [CommitOperationDelete("a"), CommitOperationAdd("g", b"g")], commit_message="swap")
api.delete_file("b", repo)
api.delete_folder("c", repo)
seen = {
    "files": api.list_repo_files(repo),
    "exists": [api.file_exists(repo, "cc"), api.file_exists(repo, "b"), api.repo_exists("tester/none")],
    "entry": [error(hf_hub_download, repo, "b"), error(list, api.list_repo_tree(repo, "none"))],
    "remembered": try_to_load_from_cache(repo, "b") is _CACHED_NO_EXIST,
    "delete": [error(api.delete_file, "b", repo), error(api.delete_folder, "none", repo)],
    "repo": [error(api.model_info, "tester/none"), error(hf_hub_download, "tester/none", "a"),
             error(hf_hub_download, "bert-base", "a"), error(snapshot_download, "tester/none")],
    "revision": [error(hf_hub_download, repo, "g", revision="no"), error(snapshot_download, repo, revision="no")],
    "create": [error(api.create_repo, repo), error(api.create_repo, repo, exist_ok=True)],
}
api.delete_repo(repo)
assert not api.repo_exists(repo)
print(json.dumps(seen))
""")
    assert seen["files"] == [".gitattributes", "cc", "g"]
    assert seen["exists"] == [True, False, False]
    assert seen["entry"] == [["RemoteEntryNotFoundError", 404]] * 2
    assert seen["remembered"]
    assert seen["delete"] == [["RemoteEntryNotFoundError", 404]] * 2
    assert seen["repo"] == [["RepositoryNotFoundError", 404]] * 4
    assert seen["revision"] == [["RevisionNotFoundError", 404]] * 2
    assert seen["create"] == [["HfHubHTTPError", 409], None]


def test_rights(hub, client):
    tokens = {
        "anonymous": False,  # what huggingface_hub calls anonymous
        "stranger": hub.add_account("stranger", "write"),
        "reader": hub.add_account("tester", "read"),
        "expired": hub.add_account("tester", "expired"),
        "unknown": "hf_made_up",
    }
    seen = client(f"""
for name, private in (("open", False), ("secret", True)):
    api.create_repo(f"tester/{{name}}", private=private)
    api.upload_file(path_or_fileobj=b"text", path_in_repo="a.txt", repo_id=f"tester/{{name}}")
assert api.model_info("tester/secret").private
def attempts(token, cache_dir):
    def upload(repo, **kwargs):
        api.upload_file(path_or_fileobj=os.urandom(8), path_in_repo="b.txt", repo_id=repo, token=token, **kwargs)
    return [
        error(hf_hub_download, "tester/open", "a.txt", token=token, cache_dir=cache_dir),
        error(hf_hub_download, "tester/secret", "a.txt", token=token, cache_dir=cache_dir),
        error(snapshot_download, "tester/secret", token=token, cache_dir=cache_dir),
        error(api.model_info, "tester/secret", token=token),
        error(upload, "tester/open"),
        error(upload, "tester/open", create_pr=True),
        error(api.create_repo, "tester/new", token=token),
    ]
print(json.dumps({{name: attempts(token, name) for name, token in {tokens}.items()}}))
""")
    hidden_401, hidden_404 = (["RepositoryNotFoundError", status] for status in (401, 404))
    denied, forbidden = (["HfHubHTTPError", status] for status in (401, 403))
    assert seen["anonymous"] == [None, hidden_401, hidden_401, hidden_401, denied, denied, denied]
    assert seen["stranger"] == [None, hidden_404, hidden_404, hidden_404, forbidden, None, forbidden]
    assert seen["reader"] == [None, None, None, None, forbidden, forbidden, forbidden]
    assert seen["expired"] == seen["unknown"] == [denied] * 7
    assert "b.txt" not in hub.repository("tester/open").resolve("main").files
    client('api.update_repo_settings("tester/secret", private=False)')
    assert client('print(json.dumps(api.model_info("tester/secret").private))', hub.client_env(None)) is False


def test_cards_are_read_and_invalid_ones_refused_before_anything_is_uploaded(hub, client):
    with hub.recording() as exchanges:
        seen = client("""
import warnings
repo = "tester/card"
api.create_repo(repo)
def put(text):
    adds = [CommitOperationAdd("README.md", text.encode()), CommitOperationAdd("m.safetensors", b"w")]
    api.create_commit(repo, adds, commit_message="card")
first = error(put, "---\\ntags: [a\\n---\\n# Title\\n")
with warnings.catch_warnings(record=True) as caught:
    put("# No metadata\\n")
put("---\\nlicense: mit\\ntags: [clip]\\npipeline_tag: image-classification\\n---\\n# Title\\n")
info = api.model_info(repo)
print(json.dumps([first, [str(w.message) for w in caught], info.tags, info.pipeline_tag, info.card_data.license]))
""")
    assert seen[0] == ["ValueError", None]
    assert "empty or missing yaml metadata" in seen[1][0]
    assert seen[2:] == [["clip"], "image-classification", "mit"]
    assert (
        len(matching(exchanges, "POST", "/validate-yaml")) == 3 and len(matching(exchanges, "POST", "/commit/")) == 2
    )


def test_parts_of_files(hub, client):
    seen = client("""
from huggingface_hub.utils import get_session
api.create_repo("tester/parts")
api.upload_file(path_or_fileobj=b"0123456789", path_in_repo="small.txt", repo_id="tester/parts")
api.upload_file(path_or_fileobj=b"0123456789", path_in_repo="large.bin", repo_id="tester/parts")
def read(name, part):
    url = f"{api.endpoint}/tester/parts/resolve/main/{name}"
    response = get_session().get(url, headers={"Range": f"bytes={part}"}, follow_redirects=True)
    return [response.status_code, response.text, response.headers.get("Content-Range")]
parts = ("2-4", "7-", "-3", "8-99", "10-", "nonsense")
print(json.dumps([[read(name, part) for part in parts] for name in ("small.txt", "large.bin")]))
""")
    expected = [
        [206, "234", "bytes 2-4/10"],
        [206, "789", "bytes 7-9/10"],
        [206, "789", "bytes 7-9/10"],
        [206, "89", "bytes 8-9/10"],
        [416, "", "bytes */10"],
        [416, "", "bytes */10"],
    ]
    assert seen == [expected, expected]


def test_many_clients_at_once_lose_nothing(hub, client):
    client("""
from concurrent.futures import ThreadPoolExecutor
api.create_repo("tester/busy")
def put(i):
    name = f"{i}.bin" if i % 2 else f"{i}.txt"
    api.upload_file(path_or_fileobj=str(i).encode(), path_in_repo=name, repo_id="tester/busy")
    return Path(hf_hub_download("tester/busy", name)).read_text() == str(i)
with ThreadPoolExecutor(8) as pool:
    assert all(pool.map(put, range(40)))
""")
    history = hub.repository("tester/busy").history()
    assert len(history) == 41 and len(history[0].files) == 41
    assert [len(commit.files) for commit in history] == list(range(41, 0, -1))


PUSH_CLIP = """
import json, torch
from huggingface_hub import HfApi
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer
from doubling.modeling_doubling import DoublingConfig, DoublingModel

sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
text = dict(vocab_size=6, max_position_embeddings=16, bos_token_id=4, eos_token_id=5, **sizes)
vision = dict(image_size=8, patch_size=4, **sizes)
model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
words = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
crop = dict(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
inputs = dict(input_ids=torch.tensor([[4, 0, 3, 5]]), pixel_values=torch.ones(1, 3, 8, 8))

model.push_to_hub("tiny-clip")
CLIPProcessor(CLIPImageProcessorPil(**crop), tokenizer).push_to_hub("tiny-clip")
HfApi().create_tag("tester/tiny-clip", tag="v1")
logits = [model(**inputs).logits_per_image.item()]
torch.nn.init.normal_(model.visual_projection.weight)
model.push_to_hub("tiny-clip", commit_message="other weights")
logits.append(model(**inputs).logits_per_image.item())

DoublingConfig.register_for_auto_class("AutoConfig")
DoublingModel.register_for_auto_class("AutoModel")
DoublingModel(DoublingConfig()).push_to_hub("doubling", private=True)
print(json.dumps(logits))
"""
LOAD_CLIP = """
import json, numpy, sys, torch
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("tester/tiny-clip")
image = numpy.full((8, 8, 3), 255, dtype=numpy.uint8)
inputs = processor(text=["a", "ab"], images=image, return_tensors="pt", padding=True)
inputs["pixel_values"] = torch.ones_like(inputs["pixel_values"])
models = [AutoModel.from_pretrained("tester/tiny-clip", revision=revision).eval() for revision in ("v1", "main")]
logits = [model(torch.tensor([[4, 0, 3, 5]]), inputs["pixel_values"]).logits_per_image.item() for model in models]
doubling = AutoModel.from_pretrained("tester/doubling", trust_remote_code=True)
print(json.dumps({
    "logits": logits,
    "input_ids": inputs["input_ids"].tolist(),
    "module": [type(doubling).__module__, sys.modules[type(doubling).__module__].__file__],
    "doubled": doubling(torch.ones(1)).item(),
    "threads": torch.get_num_threads(),
}))
"""
CONFIGURATION_DOUBLING = """
from transformers import PreTrainedConfig


class DoublingConfig(PreTrainedConfig):
    model_type = "doubling"
"""
MODELING_DOUBLING = """
import torch
from transformers import PreTrainedModel

from .configuration_doubling import DoublingConfig


class DoublingModel(PreTrainedModel):
    config_class = DoublingConfig

    def __init__(self, config):
        super().__init__(config)
        self.factor = torch.nn.Parameter(torch.tensor([2.0]))
        self.post_init()

    def forward(self, inputs):
        return inputs * self.factor
"""


def test_transformers_pushes_and_loads_models_processors_and_code(hub, run_python, tmp_path):
    package = tmp_path / "doubling"
    package.mkdir()
    (package / "configuration_doubling.py").write_text(CONFIGURATION_DOUBLING)
    (package / "modeling_doubling.py").write_text(MODELING_DOUBLING)
    pushed = run_python(PUSH_CLIP, hub.env | {"PYTHONPATH": str(tmp_path)}, with_clip_hf=False)
    logits = json.loads(pushed.splitlines()[-1])
    titles = [commit.title for commit in hub.repository("tester/tiny-clip").history()]
    assert titles[:2] == ["other weights", "Upload processor"]
    env = hub.client_env(hub.token)
    with hub.recording() as exchanges:
        loaded = json.loads(run_python(LOAD_CLIP, env, with_clip_hf=False).splitlines()[-1])
    assert loaded["logits"] == pytest.approx(logits, abs=1e-5) and abs(logits[0] - logits[1]) > 1e-3
    assert loaded["input_ids"] == [[4, 2, 5, 5], [4, 0, 3, 5]]
    assert loaded["module"][0].startswith("transformers_modules.tester.doubling.") and loaded["doubled"] == 2.0
    assert loaded["module"][1].startswith(env["HF_HOME"]) and loaded["threads"] == 1
    assert len(matching(exchanges, "GET", "^/lfs/")) == 3  # two states of the one model, and the other


@pytest.mark.slow
def test_datasets_loads_a_dataset_repository(hub, client):
    rows = client("""
from datasets import load_dataset
api.create_repo("tester/rows", repo_type="dataset")
content = b"caption,count\\na dog,1\\na cat,2\\n"
api.upload_file(path_or_fileobj=content, path_in_repo="data/train.csv", repo_id="tester/rows", repo_type="dataset")
whole, stream = (load_dataset("tester/rows", split="train", streaming=streaming) for streaming in (False, True))
print(json.dumps([list(whole), list(stream)]))
""")
    assert rows == [[{"caption": "a dog", "count": 1}, {"caption": "a cat", "count": 2}]] * 2
