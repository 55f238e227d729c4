import time

import pytest
import torch

from clip_hf.training.training_log import TrainingLog


def test_report_describes_the_last_batch_and_the_time_since_the_last_report():
    log = TrainingLog()
    log.start()
    log.record(torch.eye(4), torch.eye(4), torch.tensor([3.0]))
    texts = torch.eye(4)[[0, 1, 3, 2]]
    log.record(torch.eye(4), texts, torch.tensor([5.0]))
    time.sleep(0.05)
    report = log.report()

    assert report["scale"] == 5.0
    assert report["text_retrieval_accuracy"] == report["image_retrieval_accuracy"] == 0.5
    assert 0 < report["pairs_per_second"] < 8 / 0.05
    assert log.report() == {}


def test_the_two_directions_are_told_apart():
    """Texts 1 and 2 are both nearest to image 0."""
    log = TrainingLog()
    log.start()
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.9, 0.0, 0.1]])
    log.record(images, texts, torch.ones(1))
    report = log.report()
    assert report["image_retrieval_accuracy"] == pytest.approx(1 / 3)
    assert report["text_retrieval_accuracy"] == pytest.approx(1)


def test_what_is_not_training_does_not_count():
    log = TrainingLog()
    log.start()
    log.record(torch.eye(4), torch.eye(4), torch.ones(1))
    with log.paused():
        time.sleep(0.2)
    log.start()
    assert log.report()["pairs_per_second"] > 4 / 0.2
