"""A full disk is one line with the file that was being written; nothing half-written is left under a final name."""

import errno
import os

import datasets
import pytest

from mmcot.training.cli import main
from mmcot.training.common import UserError, write_json
from mmcot.training.data.problems import load_problems
from mmcot.training.evaluation.predictions import PredictionsWriter
from mmcot.training.stages.samples import stage_dataset

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write raises it: without a file


def refused(*args, **kwargs):
    raise FULL


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_whole_file_is_named_and_the_earlier_one_stays(tmp_path, monkeypatch, code):
    path = tmp_path / "results.json"
    write_json(path, 1)
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with pytest.raises(UserError, match=f"^{path}: its disk is full.*run it again"):
        write_json(path, 2)
    assert path.read_text() == "1\n" and list(tmp_path.iterdir()) == [path]


def test_predictions_that_are_begun_are_named_and_gone_on_with(tmp_path):
    path = tmp_path / "p.jsonl"
    told = pytest.raises(UserError, match=r"p\.jsonl\.partial-records: its disk is full")
    with told, PredictionsWriter(path, {"method": "test"}) as writer:
        writer.add({"id": "a", "answer": 0})
        writer._file.close()
        writer._file = open("/dev/full", "w")  # noqa: SIM115 - closed by the writer
        writer.add({"id": "b", "answer": 1})
    assert not path.exists()
    with PredictionsWriter(path, {"method": "test"}) as writer:
        assert set(writer.done) == {"a"}


def test_the_cache_of_tables_is_named(tmp_path, monkeypatch):
    source = tmp_path / "train.jsonl"
    source.write_text('{"question": "Which?", "choices": ["this", "that"], "answer": 1}\n')
    with monkeypatch.context() as patched:
        patched.setattr("datasets.arrow_writer.ArrowWriter.finalize", refused)
        with pytest.raises(UserError, match=f"^{datasets.config.HF_DATASETS_CACHE}: its disk is full"):
            load_problems(source)
    source.touch()
    with monkeypatch.context() as patched:  # datasets looks at the free space itself, and has words of its own
        patched.setattr("datasets.builder.has_sufficient_disk_space", lambda *args, **kwargs: False)
        with pytest.raises(UserError, match=f"^{datasets.config.HF_DATASETS_CACHE}: its disk is full"):
            load_problems(source)
    problems = load_problems(source)
    assert len(problems) == 1
    processor = type("Processor", (), {"__getattr__": lambda self, name: None, "tokenizer": None})()
    monkeypatch.setattr("mmcot.training.stages.samples.sample_encoder", lambda *args: refused)
    processor.tokenizer = type("T", (), {"backend_tokenizer": type("B", (), {"to_str": lambda self: ""})()})()
    with pytest.raises(UserError, match=f"^{datasets.config.HF_DATASETS_CACHE}: its disk is full"):
        stage_dataset(problems, processor, "answer")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (FULL, "out.jsonl"),
        (OSError(errno.ENOSPC, "x", "/somewhere/x"), "/somewhere/x"),
        (RuntimeError(f"I/O: {FULL}"), "out.jsonl"),
    ],
)
def test_the_command_line_names_a_file_or_the_fullest_place(tmp_path, monkeypatch, capsys, error, named):
    from mmcot.training.commands import predict

    monkeypatch.setattr(predict, "run", lambda args: (_ for _ in ()).throw(error))
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: type("Usage", (), {"free": 0 if str(path) == str(tmp_path) else 9})
    )
    assert main(["predict", "model", "data", "--output", str(tmp_path / "out.jsonl")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{named}: its disk is full" in told
