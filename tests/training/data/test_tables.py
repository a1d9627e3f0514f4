"""CSV, TSV, JSON lists and objects, parquet: the same records from each."""

import csv
import io
import json
import tarfile

import pandas as pd
import pytest
from record_files import json_lines, picture, problem

from mmcot.training.common import UserError
from mmcot.training.data.problems import load_problems


def written(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        'question,choices,answer\nWhich?,"[""this"", ""that""]",1\n',
        "question,choices,answer\nWhich?,\"['this', 'that']\",B\n",
        "question,choices,answer\nWhich?,this | that,that\n",
        "question,options,answer\nWhich?,this|that,1\n",
        "question;choices;answer\nWhich?;this | that;1\n",
        "question,choice_a,choice_b,choice_c,answer\nWhich?,this,that,,1\n",
        "question,A,B,answer\nWhich?,this,that,(B)\n",
        "question,option1,option2,answer\nWhich?,this,that,B\n",
        "\ufeffquestion,choices,answer\n\nWhich?,this | that,1\n",
        'question,hint,choices,answer\nWhich?,"two\nlines",this | that,1\n',
    ],
)
def test_csv_in_every_common_form(tmp_path, text):
    [record] = load_problems(written(tmp_path / "mine.csv", text))
    assert (record["question"], record["choices"], record["answer"]) == ("Which?", ["this", "that"], 1)
    assert record["context"] == ("two\nlines" if "two" in text else "")


def test_tsv_and_empty_cells(tmp_path):
    picture(tmp_path / "a.png")
    text = "id\tquestion\tchoices\tanswer\timage\tcaption\tsplit\n7\tWhich?\tx | y\t0\ta.png\t\ttrain\n"
    text += "8\tWhich?\tx | y\t\t\tred\tval\n"
    first, second = load_problems(written(tmp_path / "mine.tsv", text), require_answer=False)
    assert first["has_image"] and first["caption"] is None and first["split"] == "train"
    assert second["answer"] is None and not second["has_image"] and second["caption"] == "red"


def test_what_pandas_writes_is_read(tmp_path):
    frame = pd.DataFrame([problem(hint="h", image=None, id=5), problem(hint=None, id=7), problem(id=6)])
    frame.to_csv(tmp_path / "mine.csv", index=False)
    frame.to_json(tmp_path / "mine.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "mine.json", orient="records")
    frame.to_parquet(tmp_path / "mine.parquet")
    tables = [load_problems(tmp_path / f"mine.{end}") for end in ("csv", "jsonl", "json", "parquet")]
    for table in tables[1:]:
        assert table.to_list() == tables[0].to_list()
    assert tables[0]["id"][:] == ["5", "7", "6"]
    assert tables[0]["context"][:] == ["h", "", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,choices,answer\nWhich?,red,0\n", "mine.csv: line 2: 'choices' is 'red': write a JSON list"),
        ("question,choices,answer\nWhich?,[red],0\n", "line 2: 'choices' is '.red.', which is no JSON list"),
        ("question,choices,answer\nWhich?,red | blue,0,more\n", "line 2: has 4 cells, but the head has 3"),
        ("question,question,answer\n", "two columns are called 'question'"),
        ('question,choices,answer\nWhich?,"red | blue,0\n', "not valid CSV"),
        ("question,choices,answer\n", "has no problems"),
        ("", "has no problems"),
    ],
)
def test_bad_csv_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_problems(written(tmp_path / "mine.csv", text))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("name", ["mine.csv", "mine.json", "mine.jsonl"])
def test_another_encoding_is_called_by_its_name_once(tmp_path, name, encoding):
    line = '{"question": "Où?", "choices": ["a", "b"], "answer": 0}\n'
    text = {"mine.csv": "question,choices,answer\nOù?,a|b,A\n", "mine.json": f"[{line}]", "mine.jsonl": line * 3}
    (tmp_path / name).write_text(text[name], encoding=encoding)
    told = "UTF-16" if encoding == "utf-16" else "not UTF-8 text"
    with pytest.raises(UserError, match=rf"{name}: (line 1: )?(line 1, line 2, line 3: )?{told}.*: save it as UTF-8$"):
        load_problems(tmp_path / name, None)


def test_csv_that_is_not_utf8(tmp_path):
    (tmp_path / "mine.csv").write_bytes("question,choices,answer\nWährung?,a | b,0\n".encode("latin-1"))
    with pytest.raises(UserError, match="mine.csv: not UTF-8 text"):
        load_problems(tmp_path / "mine.csv")


def test_json_lists_and_objects(tmp_path):
    def ids(content, split=None):
        (tmp_path / "mine.json").write_text(json.dumps(content))
        return load_problems(tmp_path / "mine.json", split)["id"][:]

    assert ids([problem(id="a"), problem()]) == ["a", "mine-000001"]
    assert ids({"x1": problem(), "x2": problem(id="own")}) == ["x1", "own"]
    assert ids({"data": [problem(), problem()], "version": 1}) == ["mine-000000", "mine-000001"]
    assert ids({"train": [problem()], "validation": [problem(), problem()]}, "val") == ["val-000000", "val-000001"]
    assert ids(problem(id="alone")) == ["alone"]
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "problems.json").write_text(json.dumps([problem(id="a")]))  # not the original's layout
    assert (
        load_problems(tmp_path / "list")["id"][:] == load_problems(tmp_path / "list/problems.json")["id"][:] == ["a"]
    )
    (tmp_path / "mine.json").write_text(json.dumps(problem(id=1)) + "\n" + json.dumps(problem(id=2)))
    assert load_problems(tmp_path / "mine.json")["id"][:] == ["1", "2"]  # JSON Lines by another name


@pytest.mark.parametrize("content", ["[]", "{}", "3", '"a"', "null", '{"a": 1}', "", "[1", '{"a": {}, "a": {}}'])
def test_json_that_holds_no_records(tmp_path, content):
    with pytest.raises(UserError, match="mine.json"):
        load_problems(written(tmp_path / "mine.json", content))


def test_a_json_list_names_its_bad_records(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps([problem(), 3, problem(answer=9)]))
    with pytest.raises(UserError, match="2 bad records: .*mine.json: record 1: expected a JSON .*record 2: 'answ"):
        load_problems(tmp_path / "mine.json")


def test_a_mapped_split_wins_over_the_files_name(tmp_path):
    pd.DataFrame([problem(part="test"), problem(part="train")]).to_parquet(tmp_path / "train.parquet")
    for split in ("train", "test"):
        assert load_problems(tmp_path, split, columns={"split": "part"})["split"][:] == [split]


def test_broken_parquet(tmp_path):
    good = tmp_path / "good.parquet"
    pd.DataFrame([problem(text="x" * 1000)] * 50).to_parquet(good)
    for content in (b"PAR1 and no more", b"", good.read_bytes()[:-20]):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(UserError, match="bad.parquet: not a parquet file"):
            load_problems(tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="row 0: 'question'"):
        pd.DataFrame([{"a": 1}]).to_parquet(tmp_path / "bad.parquet")
        load_problems(tmp_path / "bad.parquet")


def test_a_line_cut_inside_a_character_is_named(tmp_path):
    path = json_lines(tmp_path / "mine.jsonl", problem())
    path.write_bytes(path.read_bytes() + '{"question": "20 °'.encode()[:-1])
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        load_problems(path)


def test_files_of_another_kind_are_left_out_with_a_word(tmp_path, caplog):
    json_lines(tmp_path / "all" / "train.jsonl", problem())
    with open(tmp_path / "all" / "val.csv", "w", newline="") as file:
        csv.writer(file).writerows([["question", "choices", "answer"], ["Which?", "a | b", "0"]])
    assert len(load_problems(tmp_path / "all")) == 1
    assert "reads *.jsonl; 1 other files are left out (*.csv)" in caplog.text


# --- WebDataset ---


def shard(path, **members: bytes | dict | None):
    """A shard; double underscores in names stand for dots, None for a link."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = json.dumps(content).encode() if isinstance(content, dict) else content or b""
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(data)
            if content is None:
                member.type, member.linkname = tarfile.LNKTYPE, "elsewhere.png"
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_webdataset_shard_is_read_with_its_pictures(tmp_path):
    red, blue = picture(color="red"), picture(color="blue")
    tmp_path = tmp_path / "shards"
    tmp_path.mkdir()
    shard(tmp_path / "train-0000.tar", a1__json=problem(image="gone.png"), a1__png=red, a2__json=problem(answer=0))
    shard(tmp_path / "train-0001.tar", b1__2__png=blue, b1__1__png=red, b1__json=problem(id="own"))
    shard(tmp_path / "test-0000.tar", c1__json=problem(), c1__jpg=red)
    one, two, three = load_problems(tmp_path, "train")
    assert [[image["bytes"] for image in row["images"]] for row in (one, two, three)] == [[red], [], [red, blue]]
    assert [row["id"] for row in (one, two, three)] == ["train-000000", "train-000001", "own"]
    assert [row["answer"] for row in (one, two, three)] == [1, 0, 1] and one["has_image"]
    assert len(load_problems(tmp_path, "test")) == 1


def test_a_shards_many_pictures_are_in_the_order_of_their_numbers(tmp_path):
    pictures = {f"a__{number}__png": f"{number}".encode() for number in (12, 1, 2, 10)}
    [row] = load_problems(shard(tmp_path / "train.tar", a__JSON=problem(), README__md=b"hello", **pictures), "train")
    assert [image["bytes"] for image in row["images"]] == [b"1", b"2", b"10", b"12"]


def test_shards_of_one_name_in_two_folders_do_not_share_ids(tmp_path):
    tmp_path = tmp_path / "shards"
    for split in ("train", "val"):
        (tmp_path / split).mkdir(parents=True)
        shard(tmp_path / split / "0000.tar", a__json=problem(), b__json=problem())
    assert len(set(load_problems(tmp_path)["id"])) == 4


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a__json": problem(split="val")}, "says split 'val', and its shard's name says train"),
        ({"a__json": problem(), "a__JSON": problem()}, "occurs twice"),
        ({"a__json": problem(), "a__png": None}, "is a link"),
    ],
)
def test_what_a_shard_would_lose_is_refused(tmp_path, members, said):
    with pytest.raises(UserError, match=said):
        load_problems(shard(tmp_path / "train.tar", **members), "train")


def test_a_shards_samples_and_damage_are_named(tmp_path):
    bad = {"a1__json": b"{", "a2__json": problem(answer=9), "a3__png": picture()}
    with pytest.raises(UserError) as caught:
        load_problems(shard(tmp_path / "train.tar", **bad), "train")
    for part in ("sample 'a1'", "not valid JSON", "sample 'a2'", "answer", "sample 'a3'", "no .json member"):
        assert part in str(caught.value)
    whole = shard(tmp_path / "train.tar", a1__json=problem(), a1__png=b"x" * 4096).read_bytes()
    for end in (700, 1500, 3000):
        (tmp_path / "train.tar").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"train\.tar: (damaged|not a tar)"):
            load_problems(tmp_path / "train.tar", "train")
    (tmp_path / "train.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(UserError, match=r"train\.tar: not a tar archive"):
        load_problems(tmp_path / "train.tar", "train")


def test_an_archive_of_pictures_beside_records_is_no_shard(tmp_path):
    json_lines(tmp_path / "train.jsonl", problem())
    shard(tmp_path / "images.tar", a__png=picture())
    assert len(load_problems(tmp_path, "train")) == 1
