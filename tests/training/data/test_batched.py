"""Batches give what a loop over rows gives, and hold few pictures."""

import datasets
import pytest
from record_files import json_lines, picture, problem

from mmcot.training.data.batched import BATCH, PICTURES, read_column, read_records
from mmcot.training.data.fingerprint import content_fingerprint
from mmcot.training.data.problems import load_problems


@pytest.fixture
def problems(tmp_path):
    picture(tmp_path / "a.png")
    rows = [problem(id=str(number), image="a.png" if number % 2 else None) for number in range(25)]
    return load_problems(json_lines(tmp_path / "mine.jsonl", *rows))


def test_the_same_values_in_the_same_order(problems):
    for some in (problems, problems.select(range(0, 25, 3)), problems.select([])):
        assert list(read_records(some)) == list(some)
        assert all(list(read_column(some, name)) == list(some[name]) for name in some.column_names)


def test_what_is_no_data_set_is_gone_through_as_it_is(problems):
    records = list(problems)
    assert list(read_records(iter(records))) == records
    assert next(read_records(problems.to_iterable_dataset())) == records[0]
    assert list(read_column({"id": ["a", "b"]}, "id")) == ["a", "b"]


def test_many_rows_are_read_at_once_but_few_pictures(problems, monkeypatch):
    sizes, read = [], datasets.Dataset.iter
    monkeypatch.setattr(datasets.Dataset, "iter", lambda self, size: sizes.append(size) or read(self, size))
    monkeypatch.setattr(datasets.Dataset, "__iter__", None)  # row by row
    content_fingerprint(problems)
    assert list(read_column(problems, "images")) and list(read_column(problems, "id"))
    assert sizes == [PICTURES, PICTURES, BATCH]
