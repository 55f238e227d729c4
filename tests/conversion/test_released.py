"""The verification of released checkpoints, against files on this disk in their place."""

import hashlib
import importlib.util
import re
from pathlib import Path

import pytest

from clip_hf.conversion.reading import read_checkpoint
from clip_hf.conversion.released import RELEASED, Released, download_released, verify_released
from clip_hf.conversion.writing import write_checkpoint
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from tests.conversion.tiny_checkpoints import write_all_layouts

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_released.py"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_all_layouts(tmp_path_factory.mktemp("vit"), "vit")


@pytest.fixture
def released(paths, tmp_path):
    """A small checkpoint at an address like those of the released ones, and a copy in transformers' files."""
    content = paths["openai"].read_bytes()
    folder = tmp_path / "server" / hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True)
    (folder / "Tiny.pt").write_bytes(content)
    return Released((folder / "Tiny.pt").as_uri(), (str(paths["transformers"]), str(paths["open_clip"])))


def test_all_nine_are_listed():
    assert RELEASED.keys() == ARCHITECTURES.keys()
    assert len({released.sha256 for released in RELEASED.values()}) == 9
    for name, released in RELEASED.items():
        assert re.fullmatch("[0-9a-f]{64}", released.sha256)
        assert released.url.endswith(f"/{name.replace('/', '-').replace('@', '-')}.pt")
        assert len(released.copies) == (1 if name.startswith("RN") else 2)


def test_download_is_kept_and_not_repeated(released, tmp_path):
    path = download_released(released, tmp_path / "cache")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == released.sha256
    Path(tmp_path, "server", released.sha256, "Tiny.pt").unlink()
    assert download_released(released, tmp_path / "cache") == path


def test_damaged_file_in_the_cache_is_downloaded_again(released, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "Tiny.pt").write_bytes(b"half")
    path = download_released(released, tmp_path / "cache")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == released.sha256


def test_wrong_digest_is_an_error_and_leaves_nothing(released, tmp_path):
    Path(tmp_path, "server", released.sha256, "Tiny.pt").write_bytes(b"another file")
    with pytest.raises(ValueError, match=r"Tiny\.pt could not be downloaded: invalid hash value"):
        download_released(released, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_missing_file_is_an_error(released, tmp_path):
    Path(tmp_path, "server", released.sha256, "Tiny.pt").unlink()
    with pytest.raises(ValueError, match=r"Tiny\.pt could not be downloaded"):
        download_released(released, tmp_path / "cache")


def test_conversion_is_compared_with_every_copy(released, tmp_path):
    found = verify_released(released, tmp_path / "cache")
    assert found.num_parameters == 252_801
    assert list(found.comparisons) == [str(tmp_path / "cache" / "Tiny.pt"), *released.copies]
    with_transformers = found.comparisons[released.copies[0]]
    assert with_transformers.original.startswith("transformers ")
    assert with_transformers.difference < 1e-5
    assert found.differences == {copy: ["tokenizer"] for copy in released.copies}  # which is the tests' own
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["Tiny.pt"]


def test_copy_with_other_weights_fails(released, tmp_path, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    copy = write_all_layouts(other, "vit", seed=1)["transformers"]
    with pytest.raises(ValueError, match="features differ by"):
        verify_released(Released(released.url, (str(copy),)), tmp_path / "cache")


def test_copy_is_compared_part_by_part(released, tmp_path):
    checkpoint = read_checkpoint(released.copies[0])
    checkpoint.tokenizer = None
    checkpoint.weights = {name: tensor.float() for name, tensor in checkpoint.weights.items()}
    write_checkpoint(checkpoint, tmp_path / "same", "transformers")
    name = "text_model.final_layer_norm.bias"
    checkpoint.weights[name] = checkpoint.weights[name] + 1e-7
    checkpoint.image_processor.resample = 2
    write_checkpoint(checkpoint, tmp_path / "changed", "transformers")
    same, changed = str(tmp_path / "same"), str(tmp_path / "changed")
    found = verify_released(Released(released.url, (same, changed)), tmp_path / "cache").differences
    assert found == {same: [], changed: [f"1 of 62 weights, {name} the first of them", "preprocessing"]}


def test_script_prints_the_table_and_fails_at_the_end(released, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("verify_released", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = Released((tmp_path / ("0" * 64) / "no.pt").as_uri(), ())
    monkeypatch.setattr(module, "RELEASED", {"missing": missing, "broken": None, "tiny": released})
    message = (
        r"failed:\nmissing: .*no\.pt could not be downloaded.*\nbroken: AttributeError: .*\ntiny: .* differs: tok"
    )
    with pytest.raises(SystemExit, match=message):
        module.main(["--download_dir", str(tmp_path / "cache")])
    printed = capsys.readouterr().out
    assert re.search(r"^\| tiny \| 252,801 \| Tiny\.pt \| ", printed, re.MULTILINE)
    assert re.search(
        rf"^\| tiny .*{released.copies[0]} \| differ by at most .* transformers.* \| differs: tokenizer \|$",
        printed,
        re.MULTILINE,
    )
    with pytest.raises(SystemExit):
        module.main(["ViT-B/33"])
    assert "ViT-B/33: there are missing, broken, tiny" in capsys.readouterr().err
