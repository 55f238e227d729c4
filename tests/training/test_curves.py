import sys

import pytest
from PIL import Image

from clip_hf.training.curves import plot_curves

KEYS = ("loss", "scale", "grad_norm", "learning_rate")


def make_log(*keys: str) -> list[dict[str, float]]:
    return [{"step": step} | dict.fromkeys(keys, 1.0 / step) for step in range(1, 30)]


@pytest.mark.parametrize(("keys", "columns", "rows"), [(KEYS[:1], 1, 1), (KEYS[:3], 3, 1), (KEYS, 3, 2)])
def test_there_is_a_panel_for_what_was_logged(keys, columns, rows, tmp_path):
    plot_curves([*make_log(*keys), {"step": 29, "eval_loss": 2.0}], tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (500 * columns, 350 * rows)


def test_nothing_logged_draws_nothing(tmp_path):
    plot_curves([{"step": 1, "train_runtime": 3.0}], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_matplotlib_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        plot_curves(make_log("loss"), tmp_path / "curves.png")
