"""Streams give the records of the table, keep nothing, and name what is wrong where they come to it."""

import logging
import tracemalloc

import pytest
from record_files import json_lines, picture, problem

from mmcot.training.common import UserError
from mmcot.training.data.problems import load_problems
from mmcot.training.data.stream import stream_problems, stream_stamp


def records(count: int) -> list[dict]:
    return [problem(question=f"Which? ({number})", solution=f"Number {number}.") for number in range(count)]


def test_a_stream_gives_the_tables_records_in_every_pass(tmp_path):
    picture(tmp_path / "red.png")
    for split, count in (("train", 5), ("test", 2)):
        json_lines(tmp_path / f"{split}.jsonl", *({**record, "image": "red.png"} for record in records(count)))
    stream = stream_problems(tmp_path, "train")
    assert list(stream) == list(stream) == list(load_problems(tmp_path, "train"))
    assert list(stream_problems("embedded:n=4", "val")) == list(load_problems("embedded:n=4", "val"))


def test_a_bad_record_is_named_when_its_turn_comes(tmp_path):
    file = json_lines(tmp_path / "train.jsonl", *records(3), problem(answer=7), *records(3))
    rows = iter(stream_problems(file, "train"))
    assert [next(rows)["question"] for _ in range(3)] == ["Which? (0)", "Which? (1)", "Which? (2)"]
    with pytest.raises(UserError, match=r"train\.jsonl.*line 4.*answer"):
        next(rows)
    last = json_lines(tmp_path / "other.train.jsonl", *records(2), problem(choices="ab"))
    with pytest.raises(UserError, match="line 3"):
        list(stream_problems(last, "train"))


@pytest.mark.parametrize(
    ("split", "said"), [("train", "don't say their split, which streaming needs"), ("dev", "don't say their split")]
)
def test_splits_are_not_made_of_a_stream(tmp_path, split, said):
    file = json_lines(tmp_path / "mine.jsonl", *records(3))
    with pytest.raises(UserError, match=said):
        list(stream_problems(file, split))


def test_a_split_that_is_not_there_and_several_sources_are_refused(tmp_path):
    file = json_lines(tmp_path / "train.jsonl", *records(2))
    with pytest.raises(UserError, match="no problems of split 'test'"):
        list(stream_problems(file, "test"))
    (tmp_path / "mixture.yaml").write_text(f"sources:\n  - {{source: {file}, weight: 1}}\n")
    with pytest.raises(UserError, match="several sources aren't streamed"):
        stream_problems(tmp_path / "mixture.yaml", "train")


def test_keys_that_are_not_read_are_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("mmcot.training.data.stream.NOTED", 2)
    file = json_lines(tmp_path / "train.jsonl", *({**record, "imgae": "red.png"} for record in records(4)))
    stream = stream_problems(file, "train")
    with caplog.at_level(logging.WARNING, "mmcot"):
        assert len(list(stream)) == len(list(stream)) == 4
    assert sum("imgae" in record.getMessage() for record in caplog.records) == 1


def grown(stream, first: int, last: int) -> int:
    """Bytes that a pass holds more of at the last record than at the first."""
    held = {}
    tracemalloc.start()
    try:
        for count, _ in enumerate(stream, start=1):
            if count in (first, last):
                held[count] = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return held[last] - held[first]


def test_memory_is_flat(tmp_path):
    file = json_lines(tmp_path / "train.jsonl", *(problem(id=f"{n:040}", context="word " * 40) for n in range(6000)))
    assert grown(stream_problems(file, "train"), 2000, 5900) < 100_000, "ids alone would be 500,000 bytes"


def folders(place, **questions: range) -> None:
    for name, numbers in questions.items():
        json_lines(place / name / "train.jsonl", *(problem(question=f"Which? ({number})") for number in numbers))


def test_memory_is_flat_where_folders_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("mmcot.training.data.reading.SAMPLE", 500, raising=False)
    folders(tmp_path, a=range(3000), b=range(3000, 6000))
    assert grown(stream_problems(tmp_path, "train"), 2000, 5900) < 200_000, "all questions would be 600,000 bytes"


def test_configurations_are_told_by_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("mmcot.training.data.reading.SAMPLE", 500, raising=False)
    folders(tmp_path / "same", full=range(4000), some=range(0, 4000, 2))
    with pytest.raises(UserError, match=r"2 configurations, full, some.*they share \d+ questions of a sample of \d+$"):
        list(stream_problems(tmp_path / "same", "train"))
    # few of the sample's questions are of the small folder: all of them, by chance, may be the one that is shared
    folders(tmp_path / "parts", large=range(4000), small=range(3995, 4015), other=range(3000, 7000))
    assert len(list(stream_problems(tmp_path / "parts", "train"))) == 8020
    folders(tmp_path / "few", full=range(100), some=range(50))
    with pytest.raises(UserError, match="they share 50 questions$"):
        list(stream_problems(tmp_path / "few", "train"))


def test_the_stamp_changes_with_the_files(tmp_path):
    file = json_lines(tmp_path / "train.jsonl", *records(2))
    before = stream_stamp(file, "train")
    file.touch()
    json_lines(tmp_path / "test.jsonl", *records(1))
    assert stream_stamp(file, "train") == before != stream_stamp(tmp_path / "test.jsonl", "test")
    json_lines(file, *records(3))
    assert stream_stamp(file, "train") != before
