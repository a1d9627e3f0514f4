"""A predictions file says how it came about, is whole or not there, and is gone on with by the same model only."""

import pytest

from mmcot.training.common import UserError, read_jsonl
from mmcot.training.evaluation.predictions import PredictionsWriter, header, read_header


def test_header_and_records(tmp_path):
    facts = header("multimodal-cot", model="m", protocol="generated")
    path = tmp_path / "p.jsonl"
    with PredictionsWriter(path, facts) as writer:
        writer.add({"id": "2", "answer": 1})
        writer.add({"id": "1", "answer": 0})
        assert not path.exists()
        writer.finish(["1", "2"])
    assert read_header(path) == facts
    assert [record.get("id") for record in read_jsonl(path)] == [None, "1", "2"]
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


def test_goes_on_with_what_is_whole_even_when_cut_inside_a_character(tmp_path):
    facts, path = header("multimodal-cot", model="m"), tmp_path / "p.jsonl"
    with PredictionsWriter(path, facts) as writer:
        writer.add({"id": "1", "rationale": "20 °C"})
        writer.add({"id": "2", "rationale": "30 °C"})
    content = writer.part.read_bytes()
    writer.part.write_bytes(content[: content.rindex("°".encode()) + 1])
    with PredictionsWriter(path, facts) as writer:
        assert list(writer.done) == ["1"]
        writer.add({"id": "2", "rationale": "30 °C"})
        writer.finish(["1", "2"])
    assert [record["rationale"] for record in list(read_jsonl(path))[1:]] == ["20 °C", "30 °C"]


def test_another_model_does_not_go_on(tmp_path):
    with PredictionsWriter(tmp_path / "p.jsonl", header("multimodal-cot", model="a")) as writer:
        writer.add({"id": "1"})
    with pytest.raises(UserError, match="another model"):
        PredictionsWriter(tmp_path / "p.jsonl", header("multimodal-cot", model="b"))


def test_processes_write_a_part_each(tmp_path):
    facts, path = header("multimodal-cot", model="m"), tmp_path / "p.jsonl"
    for rank in (0, 1):
        with PredictionsWriter(path, facts, rank=rank, num_processes=2) as writer:
            writer.add({"id": str(rank)})
    writer.finish(["1", "0"])
    assert [record["id"] for record in list(read_jsonl(path))[1:]] == ["1", "0"]
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize(
    "content", ["5\n", "[]\n", '{"id": "a"}\n', '{"header": 3}\n', '{"header": {}}\n{"answer": 1}\n', "{no\n"]
)
def test_a_damaged_interrupted_file_is_named(tmp_path, content):
    (tmp_path / "p.jsonl.partial-records").write_text(content)
    with pytest.raises(UserError, match="partial-records: is damaged: remove it to start anew"):
        PredictionsWriter(tmp_path / "p.jsonl", {})
