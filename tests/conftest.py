"""Fixtures that every test may use: the folder of real test data and the devices at hand."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Read once a process: without it, none of the tests on a GPU could ask for deterministic products.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data that CLIP_HF_TEST_DATA names; the test is skipped where there is none."""
    folder = os.environ.get("CLIP_HF_TEST_DATA", "")
    if not folder:
        pytest.skip("CLIP_HF_TEST_DATA is not set: it names the folder of real test data (see CONTRIBUTING.md)")
    if not Path(folder).is_dir():
        pytest.skip(f"CLIP_HF_TEST_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def own_torch_extensions(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Extensions are compiled anew: in the user's cache, a killed run leaves a lock that all later ones wait on."""
    folder = tmp_path_factory.getbasetemp()
    workers_share = "PYTEST_XDIST_WORKER" in os.environ
    os.environ["TORCH_EXTENSIONS_DIR"] = str((folder.parent if workers_share else folder) / "torch_extensions")
