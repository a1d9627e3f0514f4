"""`mmcot check`: exit status 2 only for what can't work; and what `mmcot train` says before its first step."""

import json

import pytest
from PIL import Image

from mmcot.training.cli import main

COLOURS = ["red", "blue", "green", "grey"]


def write(folder, count=24, **changes):
    records = []
    for i in range(count):
        Image.new("RGB", (20, 20), (i * 9, 0, 0)).save(folder / f"{i}.png")
        record = {"question": f"Which colour has box {i}?", "choices": COLOURS, "answer": i % 4, "image": f"{i}.png"}
        records.append(
            record | {"solution": "The picture shows it.", "split": ("train", "val", "test")[i % 3]} | changes
        )
    file = folder / "my.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_sound_data_pass_and_a_page_is_written(tmp_path, capsys):
    page = tmp_path / "check.html"
    assert main(["check", str(write(tmp_path)), "tokenizer=train", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "train 8 · val 8 · test 8" in shown and "nothing stands in the way" in shown and str(page) in shown
    assert "as the model will see it" in shown and "Which colour has box" in page.read_text()


@pytest.mark.parametrize(
    ("changes", "overrides", "told"),
    [
        ({"solution": ""}, [], "no rationale to learn"),
        ({"image": None}, [], "no picture in any of the 8 training problems"),
        ({"answer": 9}, [], "bad records"),
        ({"question": "Which? " * 90}, ["max_source_length=60"], "question and options alone take"),
    ],
)
def test_what_cannot_work_is_exit_status_2(tmp_path, capsys, changes, overrides, told):
    file = write(tmp_path, **changes)
    assert main(["check", str(file), "tokenizer=train", *overrides]) == 2
    assert told in " ".join(capsys.readouterr().out.split())


def test_missing_pictures_are_not_called_none(tmp_path, capsys):
    assert main(["check", str(write(tmp_path, image="photos/gone.png")), "tokenizer=train"]) == 2
    told = " ".join(capsys.readouterr().out.split())
    assert f"24 pictures are missing under {tmp_path}" in told and "to mend (1)" in told
    assert "no picture in any" not in told and "train 0 %" not in told and "left out, for what is to mend" in told


def test_the_same_data_pass_with_a_recipe_that_needs_less(tmp_path):
    one_stage = ["rationale_format=null", "answer_format=QCM-A", "vision=null", "tokenizer=train"]
    assert main(["check", str(write(tmp_path, solution="", image=None)), *one_stage]) == 0


def test_a_tokenizer_that_is_not_to_be_had_leaves_lengths_out(tmp_path, capsys):
    assert main(["check", str(write(tmp_path)), "tokenizer=./none"]) == 0
    assert "lengths and samples are left out" in " ".join(capsys.readouterr().out.split())


def test_columns_are_mapped_by_dotted_keys(tmp_path, capsys):
    file = write(tmp_path, image=None)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for i, record in enumerate(records):
        record["shot"] = f"{i}.png"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["check", str(file), "tokenizer=train"]) == 2
    assert main(["check", str(file), "tokenizer=train", "columns.image=shot"]) == 0
    assert "as columns says" in capsys.readouterr().out


def test_train_says_before_the_first_step_what_is_worth_a_thought(tmp_path, caplog):
    file = write(tmp_path, answer=0)
    tiny = ["model={d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}", "tokenizer=train", "vision=null"]
    tiny += [
        "max_steps=1",
        "eval_strategy=no",
        "save_strategy=no",
        "use_cpu=true",
        "test_split=null",
        "eval_split=null",
    ]
    with caplog.at_level("INFO", logger="mmcot"):
        assert main(["train", str(file), *tiny, "stages=rationale", f"output_dir={tmp_path / 'run'}"]) == 0
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "guessing would give 25.0 % of the train questions" in told and "questions are few" in told


def test_a_split_that_the_recipe_has_no_use_for_is_not_missed(tmp_path, capsys):
    arguments = ["check", str(write(tmp_path, split="train")), "tokenizer=train", "eval_split=null"]
    assert main([*arguments, "test_split=test"]) == 0
    told = capsys.readouterr().out
    assert "no val split to choose" in told and "no test split to measure" in told
    assert main([*arguments, "test_split=null", "eval_strategy=no", "load_best_model_at_end=false"]) == 0
    assert "split to" not in capsys.readouterr().out


def test_splits_that_are_named_otherwise_are_looked_at(tmp_path, capsys):
    file = write(tmp_path)
    renamed = (
        file.read_text().replace('"split": "train"', '"split": "fit"').replace('"split": "val"', '"split": "tune"')
    )
    file.write_text(renamed)
    assert main(["check", str(file), "tokenizer=train", "train_split=fit", "eval_split=tune"]) == 0
    assert "train 8 · val 8 · test 8" in capsys.readouterr().out


def test_of_a_stream_the_beginning_is_looked_at_and_no_table_is_made(tmp_path, capsys, monkeypatch):
    import mmcot.training.data.problems

    folder = tmp_path / "questions"
    rows = [json.loads(line) for line in write(tmp_path, image=None).read_text().splitlines()]
    folder.mkdir()
    for split, some in (("train", rows * 60), ("val", rows)):
        lines = [{**row, "split": split, "id": f"{split}-{i}"} for i, row in enumerate(some)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def table(*given, **options):
        raise AssertionError("a table is made")

    load = mmcot.training.data.problems.load_problems
    monkeypatch.setattr(mmcot.training.data.problems, "load_problems", table)
    arguments = ["check", str(folder), "tokenizer=train", "vision=null", "streaming=true", "max_steps=5"]
    assert main(arguments) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "train 1,000 · val 24" in told and "streamed: the first 1,000 questions of each split at most" in told
    assert main([*arguments, "train_split=fit"]) == 2
    assert "has no problems of split 'fit'" in " ".join(capsys.readouterr().out.split())
    with (folder / "train.jsonl").open("a") as file:
        file.write("far behind what is looked at\n")
    assert main([*arguments, "eval_split=null", "test_split=null"]) == 0
    monkeypatch.setattr(mmcot.training.data.problems, "load_problems", load)
    assert main([*arguments, "eval_split=null", "test_split=null", "streaming=false"]) == 2


def test_others_text_does_not_steer_the_terminal(tmp_path, capsys):
    file = write(tmp_path, question="\x1b[31mWhich?\x07 \u202e", image=None)
    assert main(["check", str(file), "tokenizer=train", "vision=null"]) == 0
    told = capsys.readouterr().out
    assert "\\x1b[31mWhich?\\x07 \\u202e" in told and not set("\x1b\x07\u202e") & set(told)
    file.write_text('{"question": "q", "choices": ["a", "b"], "answer": "\x1b"}')
    main(["check", str(file), "vision=null"])
    assert "\x1b" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["mine.txt", "mine.xlsx", "mine"])
def test_a_file_of_no_known_ending_is_told_which_there_are(tmp_path, capsys, name):
    for content in (b'{"question": "q"}\n{"question": "r"}\n', b"PK\x03\xff", b"words"):
        (tmp_path / name).write_bytes(content)
        assert main(["check", str(tmp_path / name)]) == 2
        told = capsys.readouterr().err
        assert f"{name}: is no recipe (YAML), and by its ending no questions" in told and ".jsonl" in told


def test_a_missing_file_is_told_before_a_tokenizer_is_asked_for(tmp_path, monkeypatch, capsys):
    import mmcot.training.stages.build as build

    monkeypatch.setattr(build, "build_processor", lambda *args: pytest.fail("asked for a tokenizer"))
    assert main(["check", str(tmp_path / "nothere.csv")]) == 2
    assert "nothere.csv: no such file" in capsys.readouterr().err
    (tmp_path / "questions.csv").write_text("")
    assert main(["check", str(tmp_path / "questons.csv")]) == 2
    assert f"did you mean {tmp_path / 'questions.csv'}?" in capsys.readouterr().err
