import json

import pytest
from transformers.utils import logging

from clip_hf.data.broken_samples import BrokenSamples, TooManyBrokenSamplesError


@pytest.fixture
def warnings_of_transformers(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def read(broken, whole, num_broken, source=0):
    for _ in range(whole):
        broken.count_whole(source)
    for number in range(num_broken):
        broken.count_broken(source, f"id-{number}", "it is truncated")


def test_a_tenth_of_the_last_thousand_of_a_source_may_be_broken():
    broken = BrokenSamples(["a", "b"])
    read(broken, 900, 100)
    read(broken, 0, 100, source=1)
    with pytest.raises(TooManyBrokenSamplesError, match=r"a: 101 of the last 1,000 samples are broken"):
        broken.count_broken(0, "last", "it is truncated")


def test_what_was_broken_long_ago_does_not_count():
    broken = BrokenSamples(["a"])
    for _ in range(50):
        read(broken, 1900, 100)
    assert broken.num_broken == [5000] and broken.num_read == [100_000]


def test_the_limit_may_be_any_share():
    read(BrokenSamples(["a"], max_fraction=1), 0, 5000)
    with pytest.raises(TooManyBrokenSamplesError, match="max_broken_fraction=0"):
        read(BrokenSamples(["a"], max_fraction=0), 10, 1)
    with pytest.raises(ValueError, match="max_broken_fraction is 10, but must be between 0 and 1"):
        BrokenSamples(["a"], max_fraction=10)


def test_the_summary_tells_why(tmp_path):
    broken = BrokenSamples(["a"], list_file=tmp_path / "out" / "broken.jsonl")
    with pytest.raises(TooManyBrokenSamplesError) as error:
        for number in range(101):
            broken.count_broken(0, f"{number}.jpg", f"{number}.jpg: " + ("it is empty" if number % 3 else "not found"))
    assert "101 of 101 samples are broken (67 x ...: it is empty; 34 x ...: not found)" in str(error.value)
    assert f"All are listed in {tmp_path / 'out' / 'broken.jsonl'}" in str(error.value)
    entries = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
    assert len(entries) == 101 and entries[2] == {"source": "a", "sample_id": "2.jpg", "reason": "2.jpg: it is empty"}


def test_any_name_can_be_listed_and_logged(tmp_path, warnings_of_transformers):
    broken = BrokenSamples(["a"], list_file=tmp_path / "broken.jsonl")
    names = ["caf\udce9.jpg", "夏\u2028.jpg"]
    for name in names:
        broken.count_broken(0, name, "it is empty")
    broken.begin()
    lines = (tmp_path / "broken.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["sample_id"] for line in lines[:-1]] == names
    logged = [record.getMessage().encode() for record in warnings_of_transformers.records]  # or a log would break off
    assert rb"sample caf\udce9.jpg is broken" in logged[0]


def test_the_log_names_some_of_them(warnings_of_transformers):
    read(BrokenSamples(["photos"], max_fraction=1), 0, 1000)
    records = [record.getMessage() for record in warnings_of_transformers.records]
    assert len(records) == 12, "the first five, and then 8, 16, ..., 512"
    assert "photos: sample id-0 is broken and passed over, 1 so far: it is truncated" in records[0]


@pytest.mark.parametrize("num_former", [1, 2, 3])
def test_counts_go_on_where_they_were(num_former):
    former = [BrokenSamples(["a", "b"]) for _ in range(num_former)]
    for one in former:
        read(one, 500, 60)
    states = json.loads(json.dumps([one.state_dict() for one in former]))
    broken = BrokenSamples(["a", "b"])
    broken.load_state_dicts(states)
    assert broken.num_broken == [60 * num_former, 0] and broken.num_read == [560 * num_former, 0]
    read(broken, 0, 40)
    with pytest.raises(TooManyBrokenSamplesError, match="101 of the last"):
        read(broken, 0, 1)


def test_a_process_that_is_new_begins_at_nothing():
    broken = BrokenSamples(["a"])
    broken.load_state_dicts([])
    assert broken.num_read == [0]
