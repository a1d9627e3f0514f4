"""A broken picture inside a shard or table is named by file and member or row; its path there leads nowhere."""

import base64
import io
import json
import tarfile

import pyarrow
import pytest
from pyarrow import parquet
from record_files import json_lines, picture, problem

from mmcot.processing import load_images
from mmcot.training.common import UserError
from mmcot.training.data.check.pictures import check_pictures
from mmcot.training.data.fingerprint import content_fingerprint
from mmcot.training.data.image_check import check_images
from mmcot.training.data.problems import load_problems
from mmcot.training.data.stream import stream_problems
from mmcot.training.features.pictures import Pictures, Unreadable, unreadable_error

CUT = picture()[:50]


def shard(path, **members: bytes):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def of_a_shard(folder, content: bytes):
    record = json.dumps(problem()).encode()
    return shard(folder / "train-1.tar", a__json=record, a__png=picture(), b__json=record, b__2__PNG=content)


def of_a_table(folder, content: bytes):
    rows = [problem(image={"bytes": data, "path": "/etc/hostname"}) for data in (picture(), content)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-1.parquet")
    return folder / "train-1.parquet"


def of_lines(folder, content: bytes):
    addresses = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in (content, picture())]
    return json_lines(folder / "train-1.jsonl", problem(), problem(image=addresses))


def of_files(folder, content: bytes):
    (folder / "b.png").write_bytes(content)
    return json_lines(folder / "train-1.jsonl", problem(), problem(image="b.png"))


SOURCES = [
    (of_a_shard, "train-1.tar/b.2.PNG"),
    (of_a_table, "train-1.parquet/row 1"),
    (of_lines, "train-1.jsonl/line 2, image 1"),
    (of_files, "b.png"),
]


@pytest.mark.parametrize(("made", "name"), SOURCES)
def test_file_and_member_or_row_are_named(tmp_path, made, name):
    source = made(tmp_path, CUT)
    problems = load_problems(source, "train")
    with pytest.raises(UserError, match=f"^problem train-000001: image '{tmp_path}/{name}': .*; mend or remove"):
        check_images(problems)
    broken = check_pictures({"train": problems})["broken"]["train-000001"]
    assert broken.startswith(f"image '{tmp_path}/{name}': ")
    for record in (problems[1], list(stream_problems(source, "train"))[1]):  # what training and `predict` read
        with pytest.raises(
            ValueError, match=f"^problem train-000001: .* image '{tmp_path}/{name}': .*; mend or remove"
        ):
            load_images(record)
    [fault, *_] = Pictures(problems, range(2), None, ())[1]  # of `features`
    told = str(unreadable_error([Unreadable("problem 1", "image 'x.png': cut"), fault]))
    assert f"; so can't those of problem train-000001 (image '{tmp_path}/{name}': " in told


def test_a_picture_without_bytes_is_named_by_its_member(tmp_path):
    with pytest.raises(
        UserError, match=r"train-1.tar: sample 'b': its image 'b.2.PNG' holds no bytes: mend or remove"
    ):
        load_problems(of_a_shard(tmp_path, b""), "train")


@pytest.mark.parametrize("made", [of_a_shard, of_a_table])
def test_bytes_are_read_whatever_path_stands_beside_them(tmp_path, made):
    """Equal pictures in two places are one, with one fingerprint."""
    whole = [
        load_problems(made(folder, picture()), "train")
        for folder in (tmp_path / "a", tmp_path / "b")
        if not folder.mkdir()
    ]
    assert len({content_fingerprint(problems) for problems in whole}) == 1
    found = check_pictures(dict(zip(("train", "test"), whole, strict=True)))
    assert (found["pictures"], found["files"], found["formats"], found["broken"]) == (4, 1, {"PNG": 1}, {})
    [image] = whole[0][1]["images"]
    assert image["bytes"] == picture() and not image["path"].endswith("hostname")
    assert load_images(whole[0][1])[0].size == (5, 4)


def test_a_member_s_name_leads_out_of_no_shard(tmp_path):
    record = json.dumps(problem()).encode()
    source = shard(tmp_path / "train.tar", **{"../../x__json": record, "../../x__png": picture()})
    [row] = load_problems(source, "train")
    assert ".." not in row["images"][0]["path"]


def test_a_data_address_is_no_member(tmp_path):
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    record = json.dumps(problem(image=[{"path": url}])).encode()
    (row,) = load_problems(shard(tmp_path / "train.tar", a__json=record), "train")
    assert row["images"][0]["bytes"] == picture() and "base64" not in row["images"][0]["path"]
