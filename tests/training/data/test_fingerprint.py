"""A content fingerprint changes with the content, and with nothing else."""

import os
import shutil

import pytest
from record_files import json_lines, picture, problem

from mmcot.training.common import MissingFileError
from mmcot.training.data.fingerprint import content_fingerprint
from mmcot.training.data.problems import load_problems


@pytest.fixture
def source(tmp_path):
    picture(tmp_path / "one" / "a.png")
    rows = [problem(id="1", image="a.png", split="train"), problem(id="2", hint="h", split="train")]
    return json_lines(tmp_path / "one" / "mine.jsonl", *rows)


def fingerprint(path, **kwargs) -> str:
    return content_fingerprint(load_problems(path), **kwargs)


def test_path_name_and_time_do_not_count(source, tmp_path):
    first = fingerprint(source)
    shutil.copytree(source.parent, tmp_path / "two")
    (tmp_path / "two" / "mine.jsonl").rename(tmp_path / "two" / "yours.jsonl")
    os.utime(tmp_path / "two" / "a.png", (1, 1))
    assert fingerprint(tmp_path / "two" / "yours.jsonl") == first
    assert content_fingerprint(list(load_problems(source))) == first
    assert len(first) == 64


@pytest.mark.parametrize(
    ("old", "new"), [('"answer": 1', '"answer": 0'), ('"h"', '"i"'), ("this", "thus"), ('"id": "2"', '"id": "3"')]
)
def test_every_field_counts_also_where_size_and_time_stay(source, old, new):
    first, stat = fingerprint(source), source.stat()
    source.write_text(source.read_text().replace(old, new))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source.stat().st_size == stat.st_size and fingerprint(source) != first


def test_an_images_bytes_count_also_where_size_and_time_stay(source):
    first, image = fingerprint(source), source.parent / "a.png"
    without = fingerprint(source, images=False)
    stat, content = image.stat(), image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(source) != first and fingerprint(source, images=False) == without
    image.write_bytes(content)
    assert fingerprint(source) == first


def test_order_and_number_count(source):
    problems = load_problems(source)
    every = {content_fingerprint(problems.select(rows)) for rows in ([0, 1], [1, 0], [0], [1], [0, 0])}
    assert len(every) == 5


def test_an_image_that_is_gone_is_named(source):
    problems = load_problems(source)
    (source.parent / "a.png").unlink()
    with pytest.raises(MissingFileError, match="problem 1: its image .*a.png is missing"):
        content_fingerprint(problems)


def test_generated_questions_have_one_fingerprint():
    assert fingerprint("embedded:n=6,seed=1") == fingerprint("embedded:n=6,seed=1") != fingerprint("embedded:n=6")
