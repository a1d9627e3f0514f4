"""The cache of `datasets` holds each picture once, in whichever order splits are asked for."""

import base64
import errno
import io
import json
import os
import tarfile

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet
from record_files import json_lines, picture, problem

from mmcot.training.common import FullDiskError, UserError
from mmcot.training.data.problems import load_problems

SPLITS = ("train", "test", "val", "train", "val", "train")  # scattered
ORDERS = [("train", "val", "test", None, "trainval"), (None, "test", "trainval", "val", "train")]


def rows(count: int = 30) -> list[dict]:
    return [
        problem(id=f"q{n}", question=f"What is {n}?", split=SPLITS[n % 6], image=picture(color=f"#{n:02x}4080"))
        for n in range(count)
    ]


def write_parquet(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [record | {"image": {"bytes": record["image"], "path": None}} for record in records]
    parquet.write_table(pa.Table.from_pylist(cells), path)
    return path


def without(records, *names):
    return [{name: value for name, value in record.items() if name not in names} for record in records]


def write_shard(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for record in records:
            content = json.dumps(without([record], "image", "split")[0]).encode()
            for ending, data in ((".json", content), (".png", record["image"])):
                member = tarfile.TarInfo(record["id"] + ending)
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


def make(kind: str, folder):
    by_split = {name: [row for row in rows() if row["split"] == name] for name in dict.fromkeys(SPLITS)}
    if kind == "hub folder":
        for name, records in by_split.items():
            write_parquet(folder / "data" / f"{name}-00000-of-00001.parquet", without(records, "split"))
        return folder
    if kind == "shards":
        for name, records in by_split.items():
            write_shard(folder / f"{name}-000.tar", records)
        return folder
    if kind == "one parquet":
        return write_parquet(folder / "all.parquet", rows())
    if kind == "no splits":
        return write_parquet(folder / "all.parquet", without(rows(), "split"))
    lines = [row | {"image": f"data:image/png;base64,{base64.b64encode(row['image']).decode()}"} for row in rows()]
    return json_lines(folder / "mine.jsonl", *lines)


KINDS = ("hub folder", "shards", "one parquet", "no splits", "data addresses")


def in_cache(pictures) -> list[int]:
    """How often the cache holds each picture."""
    files = [file.read_bytes() for file in datasets.config.HF_DATASETS_CACHE.rglob("*") if file.is_file()]
    return [sum(content.count(data) for content in files) for data in pictures]


@pytest.mark.parametrize("order", ORDERS, ids=("train first", "all first"))
@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_is_there_once(tmp_path, kind, order):
    source = make(kind, tmp_path / "source")
    found = {split: load_problems(source, split) for split in order}
    for split in order:
        load_problems(source, split, require_answer=False)
        # as samples of a stage are put together
        table = found[split] if split is not None else found["train"]
        beside = datasets.Dataset.from_dict({"tokens": list(range(len(table)))})
        datasets.concatenate_datasets([beside, table.select_columns("images")], axis=1)
    assert in_cache(row["image"] for row in rows()) == [1] * 30
    by_id = {row["id"]: row["image"] for row in rows()}
    for split, table in found.items():
        assert all([image["bytes"] for image in record["images"]] == [by_id[record["id"]]] for record in table)
        if kind != "no splits":
            members = {"trainval": ("train", "val")}.get(split, (split,) if split else SPLITS)
            assert sorted(table["id"]) == sorted(row["id"] for row in rows() if row["split"] in members)
            assert set(table["split"]) == set(members)
    if kind not in ("hub folder", "shards"):
        assert found[None]["id"][:] == [row["id"] for row in rows()]  # in the source's order


@pytest.mark.parametrize("order", ORDERS, ids=("train first", "all first"))
def test_generated_pictures_too(order):
    for split in order:
        load_problems("embedded:n=8,val=5", split)
    pictures = [image["bytes"] for row in load_problems("embedded:n=8,val=5") for image in row["images"]]
    assert len(pictures) > 4 and in_cache(set(pictures)) == [pictures.count(data) for data in set(pictures)]


def test_a_split_of_files_of_its_own_is_read_alone(tmp_path):
    source = make("hub folder", tmp_path / "source")
    load_problems(source, "test")
    counts = dict(zip((row["id"] for row in rows()), in_cache(row["image"] for row in rows()), strict=True))
    assert all(counts[row["id"]] == (row["split"] == "test") for row in rows())


def test_a_record_that_cannot_be_read_stops_its_own_split_alone(tmp_path):
    records = rows()
    records[1]["answer"] = 9  # test
    path = write_parquet(tmp_path / "all.parquet", records)
    for _ in range(2):
        assert len(load_problems(path, "train")) == 15 and len(load_problems(path, "val")) == 10
        for split in ("test", None):
            with pytest.raises(UserError, match="all.parquet: row 1: 'answer' is 9"):
                load_problems(path, split)


def test_a_withheld_answer_stops_those_who_need_it(tmp_path):
    records = rows()
    records[1]["answer"] = -1
    path = write_parquet(tmp_path / "all.parquet", records)
    assert load_problems(path, "test", require_answer=False)["answer"][0] is None
    assert len(load_problems(path, "train")) == 15
    with pytest.raises(UserError, match="all.parquet: row 1: 'answer' is -1, which stands for a withheld answer"):
        load_problems(path, "test")
    assert in_cache(row["image"] for row in rows()) == [1] * 30


def test_an_id_of_two_files_is_still_refused_where_both_are_read(tmp_path):
    for split in ("test", "train"):
        write_parquet(tmp_path / f"{split}.parquet", without(rows(3), "split"))
    assert len(load_problems(tmp_path, "test")) == len(load_problems(tmp_path, "train")) == 3
    with pytest.raises(UserError, match="id 'q0' occurs twice"):
        load_problems(tmp_path)


def test_a_table_is_known_by_one_fingerprint_from_the_first_call_on(tmp_path):
    """Samples of a stage are cached under it."""
    for source in (make("hub folder", tmp_path / "a"), make("one parquet", tmp_path / "b"), "embedded:n=3"):
        for split in ("train", "trainval", None):
            assert len({load_problems(source, split)._fingerprint for _ in range(3)}) == 1, (source, split)


def test_what_is_in_the_way_once_is_not_for_ever(tmp_path, monkeypatch):
    source = make("one parquet", tmp_path)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "from_generator", full)
        with pytest.raises(FullDiskError, match="its disk is full"):
            load_problems(source, "train")
    for split in ORDERS[0]:
        load_problems(source, split)
    assert in_cache(row["image"] for row in rows()) == [1] * 30


def test_tables_whose_notes_were_removed_are_read_anew(tmp_path):
    path = make("one parquet", tmp_path)
    first = {split: load_problems(path, split)[:] for split in ORDERS[0]}
    for file in (datasets.config.HF_DATASETS_CACHE / "mmcot_notes").iterdir():
        file.unlink()
    assert {split: load_problems(path, split)[:]["id"] for split in ("train", None)} == {
        split: first[split]["id"] for split in ("train", None)
    }
    assert in_cache(row["image"] for row in rows()) == [1] * 30
