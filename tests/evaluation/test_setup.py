"""What evaluations refuse before they begin."""

import pytest

from clip_hf.evaluation.setup import EvaluationArguments


def test_the_folder_of_a_model_keeps_the_results_of_its_training(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a model's folder.* write to .*evaluations/NAME"):
        EvaluationArguments("me/clip", "photos", tmp_path)
    EvaluationArguments("me/clip", "photos", tmp_path / "evaluations" / "photos")
