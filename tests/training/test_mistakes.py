import pytest

from clip_hf.data.data_args import DataArguments
from clip_hf.training.mistakes import told_in_a_line


def test_an_error_that_the_package_raises_is_a_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["some/where/train.py"])
    with pytest.raises(SystemExit) as end, told_in_a_line():
        DataArguments(train_data=["shapes"], dry_run_data=0)
    assert end.value.code == "train.py: dry_run_data is 0, but must be at least 1, or not given"


def test_an_error_of_a_kind_that_is_the_users_is_a_line():
    with pytest.raises(SystemExit, match="No such file"), told_in_a_line(OSError):
        open("missing", encoding="utf-8")


@pytest.mark.parametrize("argument", [5, None])
def test_a_bug_keeps_its_traceback(argument):
    """Here it begins in the package, but in a line that meant no harm, and in the test itself."""
    with pytest.raises(TypeError), told_in_a_line(OSError):
        DataArguments(train_data=argument, train_weights=[1])
    with pytest.raises(ValueError, match="bug"), told_in_a_line(OSError):
        raise ValueError("bug")
