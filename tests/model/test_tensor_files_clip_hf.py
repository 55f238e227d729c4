"""Tensors out of files against torch's own readers; damage and malice are refused."""

import os
import pickle
import random
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clip_hf.model.tensor_files_clip_hf import most_common_dtype, read_tensors
from tests.openai_weights import openai_weights, save_archive

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")


class Traced(nn.Module):
    """What an archive may hold: types, views, ties, scalars, empty tensors, plain values."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4).half()
        self.norm = nn.BatchNorm1d(4)
        self.tied = nn.Linear(3, 4, bias=False)
        self.tied.weight = self.linear.weight
        big = torch.arange(24.0)
        self.register_buffer("view", big.view(4, 6)[1:3, ::2].T)
        self.register_buffer("scalar", torch.tensor(7))
        self.register_buffer("empty", torch.zeros(0, 5))
        self.register_buffer("truth", torch.tensor([True, False]))
        self.numbers = [1, 2]
        self.flag = True

    def forward(self, x):
        return self.norm(self.tied(x.half()).float()) + self.scalar


@pytest.fixture(params=["scripted", "traced"])
def archive(request, tmp_path):
    torch.manual_seed(0)
    module, path = Traced().eval(), tmp_path / "model.pt"
    made = torch.jit.script(module) if request.param == "scripted" else torch.jit.trace(module, torch.randn(2, 3))
    made.save(str(path))
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def test_archive_gives_what_torch_itself_loads(archive):
    assert_same(read_tensors(archive), torch.jit.load(archive).state_dict())


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_archive_of_a_whole_clip(tower, tmp_path):
    weights = openai_weights(tower)
    save_archive(weights, tmp_path / "clip.pt")
    assert_same(read_tensors(tmp_path / "clip.pt"), weights)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_state_dict_in_both_of_torchs_formats(zipped, tmp_path):
    weights = openai_weights("vit")
    torch.save(weights, tmp_path / "clip.pt", _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(tmp_path / "clip.pt"), weights)


def test_content_decides_what_a_file_is(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.pt")
    assert_same(read_tensors(tmp_path / "model.pt"), {"a": torch.ones(2)})


class Malice:
    def __reduce__(self):
        return os.mkdir, ("opened",)


def test_pickle_that_runs_code_is_refused_unless_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"weight": torch.ones(1)}, "more": Malice()}, "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt needs more than tensors: it wants posix\.mkdir.*--trust_pickle"):
        read_tensors("model.pt")
    assert not os.path.exists("opened")
    assert read_tensors("model.pt", trust_pickle=True).keys() == {"weight"}
    assert os.path.exists("opened")


def test_whole_model_opens_only_if_trusted(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="needs more than tensors"):
        read_tensors(tmp_path / "model.pt")
    assert read_tensors(tmp_path / "model.pt", trust_pickle=True).keys() == {"weight", "bias"}


def rewrite(archive, **replacements):
    """Writes the archive anew with the contents of some members replaced."""
    with zipfile.ZipFile(archive) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(name, replacements.get(name.partition("/")[2].replace(".", "_"), content))


@pytest.mark.parametrize(
    ("malicious", "message"),
    [
        (pickle.dumps(Malice(), 2), "wants posix.mkdir: .* refused"),
        (b"\x80\x02cbuiltins\neval\n.", "wants builtins.eval"),
        (b"\x80\x02ctorch.jit._pickle\nunpickler\n.", "wants torch.jit._pickle.unpickler"),
        (b"\x80\x02ctorch._utils\n_rebuild_qtensor\n.", "wants torch._utils._rebuild_qtensor"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo of 2147483647 entries"),
        (b"\x80\x02}.", "holds a dict, where a module is expected"),
        (b"\x80\x02}", "damaged"),
    ],
)
def test_malicious_archive_is_refused(archive, malicious, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewrite(archive, data_pkl=malicious)
    with pytest.raises(ValueError, match=f"(?s){archive}.*{message}"):
        read_tensors(archive)
    assert not (tmp_path / "opened").exists()


def tensor_pickle(offset, size, stride, numel):
    """A root module with one tensor on storage 0."""

    def number(value):
        return b"J" + value.to_bytes(4, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(numel)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + number(offset) + numbers(size)
    tensor += numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02c__torch__\nRoot\n)\x81}X\x01\x00\x00\x00w" + tensor + b"sb."


@pytest.fixture
def one_storage(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/constants.pkl", b"\x80\x02).")
        file.writestr("a/data/0", torch.arange(6.0).numpy().tobytes())
        file.writestr("a/data.pkl", b"")
    return path


def test_tensor_within_its_storage(one_storage):
    rewrite(one_storage, data_pkl=tensor_pickle(1, [2, 2], [1, 3], 6))
    assert torch.equal(read_tensors(one_storage)["w"], torch.tensor([[1.0, 4.0], [2.0, 5.0]]))


@pytest.mark.parametrize(
    ("offset", "size", "stride", "numel"),
    [
        (0, [7], [1], 6),  # one value too many
        (3, [2, 2], [1, 3], 6),  # ends behind the storage
        (-1, [2], [1], 6),
        (5, [2], [-1], 6),
        (0, [2], [1, 1], 6),
        (0, [100_000, 100_000], [0, 0], 6),  # ten billion views of one value
        (0, [7], [1], 7),  # the storage is said to be larger than its file
    ],
)
def test_tensor_beyond_its_storage_is_refused(one_storage, offset, size, stride, numel):
    rewrite(one_storage, data_pkl=tensor_pickle(offset, size, stride, numel))
    with pytest.raises(ValueError, match="is damaged"):
        read_tensors(one_storage)


def test_compressed_weights_are_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/constants.pkl", b"")
        file.writestr("a/data/0", bytes(10_000_000))
        file.writestr("a/data.pkl", tensor_pickle(0, [1], [1], 2_500_000))
    with pytest.raises(ValueError, match="compressed weights"):
        read_tensors(path)


def test_module_that_contains_itself_is_refused(archive):
    cycle = b"\x80\x02c__torch__\nRoot\n)\x81q\x00}X\x01\x00\x00\x00mh\x00sb."
    rewrite(archive, data_pkl=cycle)
    with pytest.raises(ValueError, match="in the tree twice"):
        read_tensors(archive)


@pytest.mark.parametrize("kind", ["archive", "pickle", "old pickle", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_an_error_that_names_it(kind, kept, tmp_path):
    weights, path = openai_weights("vit"), tmp_path / "model.bin"
    write(weights, path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"model\.bin is damaged or no"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_tensors(path)


@pytest.mark.parametrize("kind", ["archive", "pickle", "old pickle", "safetensors"])
def test_whatever_is_damaged_the_error_is_one_and_the_same(kind, tmp_path):
    """Bytes at random places, more often near the beginning and the end, where the structure is."""
    weights = {name: tensor[:2].clone() if tensor.dim() else tensor for name, tensor in openai_weights("vit").items()}
    path, random_place = tmp_path / "model.bin", random.Random(0)
    write(dict(list(weights.items())[:12]), path, kind)
    content, refused = path.read_bytes(), 0
    reach = min(3000, len(content))
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(random_place.choice([1, 2, 8])):
            place = random_place.randrange(-reach, reach)
            damaged[place] = random_place.randrange(256)
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 15


def write(weights, path, kind):
    if kind == "archive":
        save_archive(weights, path)
    elif kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "pickle")


def test_one_changed_bit_in_an_archive_is_noticed(tmp_path):
    weights, path = {"a.weight": torch.arange(1000.0)}, tmp_path / "model.pt"
    save_archive(weights, path)
    content = bytearray(path.read_bytes())
    content[content.index(weights["a.weight"].numpy().tobytes()[:400]) + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="CRC"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged or no checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b'{"a": 1}', "damaged or no checkpoint"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "model.pt")


def test_list_is_no_state_dict(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds a list, but a state dict is a dictionary"):
        read_tensors(tmp_path / "model.pt")


def test_names_and_tensors_alone_are_a_state_dict(tmp_path):
    for name, value in {"epoch": 3, 7: torch.ones(1), "more": {}}.items():
        torch.save({"weight": torch.ones(1), name: value}, tmp_path / "model.pt")
        with pytest.raises(ValueError, match=rf"model\.pt holds a {type(value).__name__} under the name {name!r}"):
            read_tensors(tmp_path / "model.pt")


def test_most_common_dtype_counts_values_not_tensors():
    weights = {"a": torch.zeros(9).half(), "b": torch.zeros(2), "c": torch.zeros(2), "d": torch.zeros(99).long()}
    assert most_common_dtype(weights) == torch.float16
