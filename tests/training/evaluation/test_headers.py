"""A file whose header says other questions than the command, or is damaged, is named with the way out."""

import json

import pytest

from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.evaluation.predictions import read_header

FACTS = {"method": "multimodal-cot", "model": "runs/mine", "split": "test", "protocol": "generated"}
SOURCE = "embedded:n=8,val=6,test=6"


def write(path, split="test", of="test", n=6, **facts):
    """Predictions of the split `of` whose header says `split`."""
    lines = [{"header": {**FACTS, "split": split, **facts}}]
    lines += [{"id": f"{of}-0-{row}", "answer": 0} for row in range(n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def said(capsys, *arguments) -> str:
    assert main(list(map(str, arguments))) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("of", ["val", "test"])  # ids that fit make it no better
def test_another_split_than_asked_for_is_named_by_every_command(tmp_path, capsys, of):
    good, other = write(tmp_path / "good.jsonl"), write(tmp_path / "other.jsonl", "val", of)
    way_out = (
        "other.jsonl: has predictions of the split 'val', says its header, and 'test' is asked for: give --split val"
    )
    both = ("--problems", SOURCE, "--split", "test")
    assert way_out in said(capsys, "evaluate", "--predictions", other, *both)
    assert way_out in said(capsys, "evaluate", "--compare", good, other, *both)
    assert way_out in said(capsys, "errors", SOURCE, "--split", "test", "--predictions", other)
    assert way_out in said(capsys, "errors", SOURCE, "--split", "test", "--predictions", good, "--other", other)
    way_out = way_out.replace("other.jsonl:", f"two ({other}):")
    runs = ("--run", f"one={good}", "--run", f"two={other}")
    assert way_out in said(capsys, "compare", SOURCE, "--split", "test", *runs)
    page = ("--output", tmp_path / "report.md")
    assert way_out in said(capsys, "report", f"one={good}", f"two={other}", *both, *page)
    assert way_out in said(capsys, "report", f"one={good}", "--probe", f"two={other}", *both, *page)


def test_other_names_of_a_split_are_the_same(tmp_path):
    file = write(tmp_path / "p.jsonl", "validation", "val")
    assert main(["evaluate", "--predictions", str(file), "--problems", SOURCE, "--split", "val"]) == 0


def test_every_command_takes_a_part_when_asked_and_says_how_when_not(tmp_path, capsys):
    one, two = write(tmp_path / "one.jsonl", n=4), write(tmp_path / "two.jsonl", n=4)
    both = ("--problems", SOURCE, "--split", "test")
    out = ("--output", tmp_path / "report.md", "--json", tmp_path / "figures.json")
    commands = [
        ("evaluate", "--predictions", one, *both),
        ("compare", SOURCE, "--split", "test", "--run", f"a={one}", "--run", f"b={two}"),
        ("errors", SOURCE, "--split", "test", "--predictions", one),
        ("report", one, *both, *out),
    ]
    for command in commands:
        assert "2 without a prediction" in (err := said(capsys, *command)) and "--partial takes" in err
        assert main([*map(str, command), "--partial"]) == 0
        printed = capsys.readouterr().out
        assert command[0] not in ("evaluate", "errors") or "4 of 6 questions" in printed or "of 4 answers" in printed
    assert json.loads((tmp_path / "figures.json").read_text())["n"] == 4


def test_a_run_that_tested_a_part_names_a_report_that_works():
    from mmcot.training.stages.recipe import load_recipe
    from mmcot.training.train import next_commands

    for limits, partial in (["max_test_samples=4"], " --partial "), ([], " "), (["max_train_samples=4"], " "):
        recipe = load_recipe("embedded", ["output_dir=/nowhere/hub-less", *limits])
        assert f"report /nowhere/hub-less{partial}" in _with_hub(next_commands, recipe)


def _with_hub(function, recipe) -> str:
    from unittest.mock import patch

    with patch("pathlib.Path.is_file", return_value=True):
        return function(recipe)


def test_predictions_of_other_questions_are_told_as_such(tmp_path, capsys):
    file = tmp_path / "other.jsonl"
    file.write_text('{"id": "x1", "answer": 0}\n{"id": "x2", "answer": 0}\n')
    for command in ("evaluate", "--predictions", file, "--problems", SOURCE), ("report", file, "--problems", SOURCE):
        for more in ([], ["--partial"]):
            err = said(capsys, *command, "--split", "test", *more)
            assert f"{file}" in err and "these are predictions of other questions" in err and "x1" in err
            assert "--partial takes" not in err


def test_a_run_without_questions_to_answer_names_no_report(tmp_path):
    from mmcot.training.stages.recipe import load_recipe
    from mmcot.training.train import next_commands

    recipe = load_recipe("embedded", ["output_dir=/nowhere/run", "test_split=null", "eval_split=null"])
    told = _with_hub(next_commands, recipe)
    assert "mmcot app" in told and "mmcot report" not in told


def test_a_header_without_a_split_tells_to_leave_it_out(tmp_path, capsys):
    file = write(tmp_path / "all.jsonl", None, "test")
    with open(file, "a") as lines:
        lines.write(json.dumps({"id": "val-0-0", "answer": 0}) + "\n")
    err = said(capsys, "evaluate", "--predictions", file, "--problems", SOURCE, "--split", "test")
    assert f"{file}: 7 predictions do not match 6 problems" in err
    assert "its header names no split, so it may be of all: leave out --split, or predict with --split test" in err


def test_runs_of_two_splits_are_not_compared(tmp_path, capsys):
    one, two = write(tmp_path / "one.jsonl"), write(tmp_path / "two.jsonl", "val", "val")
    err = said(capsys, "compare", SOURCE, "--run", f"a={one}", "--run", f"b={two}")
    assert f"b ({two}): answers 6 questions, a 6, and 0 of them are the same" in err
    err = said(capsys, "evaluate", "--compare", one, two, "--problems", SOURCE)
    assert f"{two}: answers 6 questions, {one} 6, and 0 of them are the same" in err


def test_evaluate_says_whose_predictions_they_are(tmp_path, capsys):
    file = write(tmp_path / "p.jsonl", source=SOURCE)
    assert main(["evaluate", "--predictions", str(file), "--problems", SOURCE]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"model runs/mine, split test, source {SOURCE}"


DAMAGED = [
    ({"tokens": 5}, "'tokens' must be an object of numbers, but is 5"),
    ({"tokens": {"prompt": "many"}}, "'tokens' must be an object of numbers"),
    ({"parameters": "5 M"}, "'parameters' must be a number, but is '5 M'"),
    ({"seconds_per_question": [1]}, "'seconds_per_question' must be a number"),
    ({"source": 7}, "'source' must be a text, but is 7"),
    ({"source": ["a"]}, "'source' must be a text"),
    ({"split": 1}, "'split' must be a text"),
    ({"model": {}}, "'model' must be a text"),
    ({"decoding": "greedy"}, "'decoding' must be an object"),
    ({"rationale_format": 3}, "'rationale_format' must be a text"),
    ({"protocol": True}, "'protocol' must be a text"),
    ({"protocol": "guessed"}, "'protocol' must be generated or teacher_forced, but is 'guessed'"),
]


@pytest.mark.parametrize(("facts", "message"), DAMAGED)
def test_a_damaged_header_is_one_line_of_file_and_field(tmp_path, capsys, facts, message):
    file = write(tmp_path / "p.jsonl", **{"split": "test", **facts})
    with pytest.raises(UserError, match="p.jsonl: its header is damaged: "):
        read_header(file)
    for arguments in (
        ("compare", SOURCE, "--run", f"a={file}", "--run", f"b={file}"),
        ("report", file, "--output", tmp_path / "r.md"),
        ("evaluate", "--predictions", file, "--problems", SOURCE),
        ("errors", SOURCE, "--predictions", file),
    ):
        assert f"{file}: its header is damaged: {message}" in said(capsys, *arguments)


def test_a_prompt_format_that_does_not_exist_is_named(tmp_path, capsys):
    file = write(tmp_path / "p.jsonl", rationale_format="XYZ")
    err = said(capsys, "evaluate", "--predictions", file, "--problems", SOURCE)
    assert f"{file}: its header is damaged: 'rationale_format': prompt format 'XYZ' does not exist" in err


def test_a_missing_file_is_named(tmp_path, capsys):
    good = write(tmp_path / "good.jsonl")
    arguments = ("evaluate", "--compare", good, tmp_path / "gone.jsonl", "--problems", SOURCE)
    assert "there is no predictions file" in said(capsys, *arguments)
