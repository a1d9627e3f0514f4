"""`mmcot evaluate`: all forms of predictions and problems, none dropped in silence, published numbers met."""

import argparse
import json
import subprocess
import sys

import pytest

from mmcot.training.commands.evaluate_predictions import add_arguments, run
from mmcot.training.evaluation.comparison import compare
from mmcot.training.evaluation.reading import match, read_predictions, read_problems
from mmcot.training.evaluation.scoring import evaluate_predictions
from mmcot.training.evaluation.tables import format_comparison, format_table


def problem(answer=0, choices=("yes", "no", "maybe"), **fields):
    return {"question": "Is it?", "choices": list(choices), "answer": answer, **fields}


PROBLEMS = {
    "1": problem(0, subject="natural science", grade="grade2", hint="a", image=None, solution="So it is."),
    "2": problem(1, subject="social science", grade="grade8", hint="", image="image.png", solution="It is not so."),
    "3": problem(2, subject="language science", grade="grade3", hint="", image=None, solution=""),
    "4": problem(
        1, ("a", "b"), subject="natural science", grade="grade12", hint="b", image="image.png", solution="b."
    ),
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, content)) + "\n" if lines else json.dumps(content))
    return path


def command(*arguments) -> int:
    parser = argparse.ArgumentParser("mmcot evaluate")
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def folder(tmp_path):
    """ScienceQA's layout: 1 and 2 are test (2 first), 3 is val, 4 is train."""
    write(tmp_path / "sqa" / "problems.json", PROBLEMS)
    write(tmp_path / "sqa" / "pid_splits.json", {"train": ["4"], "val": ["3"], "trainval": ["4", "3"], "test": [2, 1]})
    return tmp_path / "sqa"


# ---- published numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,expected",
    [
        ("gpt3_qcm_ale", {"TXT": 74.68, "IMG": 67.43, "NO": 79.93, "Avg": 75.17}),
        ("mmcot_base_predictions", {"TXT": 83.87, "IMG": 83.29, "NO": 85.64, "Avg": 85.95}),
    ],
)
@pytest.mark.parametrize("split", [[], ["--split", "test"]])
def test_published_accuracies(shared_dir, tmp_path, name, expected, split):
    data = shared_dir / "data" / "scienceqa_test"
    out = tmp_path / "new" / "out.json"
    predictions = data / f"{name}.json"
    arguments = ["--predictions", predictions, "--problems", data / "index.json", "--protocol", "generated"]
    assert command(*arguments, "--json", out, *split) == 0
    result = json.loads(out.read_text())
    assert {column: round(value, 2) for column, value in result["accuracy"].items()} == expected
    assert result["n"] == {"TXT": 2046, "IMG": 2017, "NO": 1435, "Avg": 4241}
    assert result["ci95"].keys() == expected.keys() and result["rationale"] == {}
    assert (result["protocol"], result["unparsable"]) == ("generated", 0)
    assert list(out.parent.iterdir()) == [out]


def test_gold_text_of_a_real_folder_scores_a_hundred(shared_dir, tmp_path):
    from mmcot.processing import build_prompt

    folder = shared_dir / "data" / "scienceqa"
    problems, splits = read_problems(folder)
    records = [
        {
            "id": id_,
            "answer": build_prompt(problems[id_], "QCM-A")[1],
            "rationale": build_prompt(problems[id_], "QCM-LE")[1],
        }
        for id_ in splits["test"]
    ]
    file = write(tmp_path / "predictions.jsonl", records)
    chosen, predictions = match(problems, splits, read_predictions(file))
    assert list(chosen) == splits["test"]
    result = evaluate_predictions(chosen, predictions, rationale_format="QCM-LE")
    assert set(result["accuracy"].values()) == {100.0} and result["unparsable"] == 0
    assert result["rationale"]["rougeL"] == result["rationale"]["bleu1"] == pytest.approx(100)
    assert result["rationale_n"] == 323
    assert evaluate_predictions(chosen, predictions)["rationale"]["rougeL"] < 90  # against QCM-E's targets


# ---- forms of predictions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        {"1": 0, "2": 1, "3": 0, "4": 1},
        {"1": "0", "2": "1", "3": "0", "4": "1"},
        {"1": "A", "2": "(B)", "3": "a", "4": "B."},
        {"1": "The answer is (A).", "2": "Because. The answer is (B).", "3": "The answer is (A).", "4": "B"},
        {"1": {"answer": 0}, "2": {"answer": "B"}, "3": {"answer": "The answer is (A)."}, "4": {"answer": 1}},
        [{"id": 4, "answer": 1}, {"id": 2, "answer": "B"}, {"id": "1", "answer": 0}, {"id": "3", "answer": 0}],
    ],
)
def test_every_form_of_predictions_says_the_same(tmp_path, content):
    for name in ["predictions.json"] + ["predictions.jsonl"] * isinstance(content, list):
        result = evaluate_predictions(PROBLEMS, read_predictions(write(tmp_path / name, content)))
        assert result["accuracy"] == pytest.approx(
            {"NAT": 100, "SOC": 100, "LAN": 0, "TXT": 100, "IMG": 100, "NO": 0, "G1-6": 50, "G7-12": 100, "Avg": 75}
        )
        assert result["n"]["NAT"] == 2 and result["n"]["Avg"] == 4
        assert result["unparsable"] == 0


def test_json_lines_under_another_name_and_of_one_line(tmp_path):
    file = tmp_path / "predictions.txt"
    file.write_text('{"id": 1, "answer": 0}\n\n{"id": 2, "answer": 1}\n')
    assert read_predictions(file).keys() == {"1", "2"}
    file.write_text('{"id": 1, "answer": 0}\n')
    assert read_predictions(file).keys() == {"1"}


def test_unparsable_answers_are_wrong_and_counted():
    predictions = {"1": "I don't know", "2": 3, "3": None, "4": "The answer is (C)."}  # 4 has two choices
    result = evaluate_predictions(PROBLEMS, predictions)
    assert result["unparsable"] == 4 and result["accuracy"]["Avg"] == 0
    assert result["unparsable_counted_as"] == "wrong"
    assert "unparsable: 4, counted as wrong" in format_table({"x": result})


def test_random_draws_are_seeded_and_over_the_own_choices():
    problems = {str(i): problem(1, ("a", "b")) for i in range(400)}
    predictions = dict.fromkeys(problems, "?")
    result = evaluate_predictions(problems, predictions, unparsable="random", seed=1)
    assert result["unparsable"] == 400
    assert 40 < result["accuracy"]["Avg"] < 60  # 20 were it over five
    backwards = dict(reversed(problems.items()))
    assert evaluate_predictions(backwards, predictions, unparsable="random", seed=1) == result
    assert evaluate_predictions(problems, predictions, unparsable="random", seed=2)["accuracy"] != result["accuracy"]


def test_output_of_the_original_is_joined_by_position_and_checked(folder, tmp_path):
    labels = ["The answer is (B).", "The answer is (A)."]  # the split's order: 2, 1
    output = {"num_fail": 0, "scores": {}, "preds": ["The answer is (B).", "The answer is (C)."], "labels": labels}
    file = write(tmp_path / "predictions_ans_test.json", output)
    chosen, predictions = match(*read_problems(folder), read_predictions(file))
    assert predictions == {"2": "The answer is (B).", "1": "The answer is (C)."}
    assert evaluate_predictions(chosen, predictions)["accuracy"]["Avg"] == 50
    with pytest.raises(ValueError, match="not the answers of any split"):
        match(*read_problems(folder), {**output, "labels": labels[::-1]})
    with pytest.raises(ValueError, match="rationale stage"):
        match(*read_problems(folder), {**output, "labels": ["Solution: a", "Solution: b"]})


# ---- rationales ----------------------------------------------------------------------------------------------------


def test_reference_rationales():
    predictions = {
        "1": {"answer": 0, "rationale": "Solution: So it is."},
        "2": {"answer": 0, "rationale": "Solution: It is not so."},
        "3": {"answer": 0, "rationale": "Solution:"},
        "4": {"answer": 0, "rationale": "mine"},
    }
    problems = {**PROBLEMS, "4": {**PROBLEMS["4"], "rationale": "mine"}}  # its own reference wins over the target
    result = evaluate_predictions(problems, predictions)
    assert set(result["rationale"]) == {"rougeL", "rougeL_original", "bleu1", "bleu4"}
    assert result["rationale"]["rougeL"] == result["rationale"]["bleu1"] == pytest.approx(100)
    assert result["rationale_n"] == 4
    assert evaluate_predictions(problems, predictions, rationale_format=None)["rationale_n"] == 1
    missing = {**predictions, "4": {"answer": 0}}  # counts as empty
    assert evaluate_predictions(problems, missing)["rationale"]["rougeL"] == pytest.approx(75)
    assert evaluate_predictions(problems, dict.fromkeys(PROBLEMS, 0))["rationale"] == {}
    empty = {**problems, "1": {**problems["1"], "rationale": " "}}  # scored nowhere, so not counted
    assert evaluate_predictions(empty, predictions)["rationale_n"] == 3
    flags_only = {"1": {"num_choices": 3, "answer": 0, "solution": "So it is."}}
    assert evaluate_predictions(flags_only, {"1": predictions["1"]})["rationale"]["rougeL"] == pytest.approx(100)


@pytest.mark.parametrize("text", ["", ".", "...", "word " * 1200])
def test_rationales_that_break_the_original_packages(text):
    problems = {"1": {"num_choices": 2, "answer": 0, "rationale": "word " * 1200 + "."}}
    scores = evaluate_predictions(problems, {"1": {"answer": 0, "rationale": text}})["rationale"]
    assert all(0 <= score <= 100 for score in scores.values())
    assert (scores["rougeL_original"] > 99) == text.startswith("word")


# ---- forms of problems, and the joining of both --------------------------------------------------------------------


def test_the_split_is_the_one_that_was_predicted(folder, tmp_path):
    problems, splits = read_problems(folder)
    assert splits["test"] == ["2", "1"]
    assert read_problems(folder / "problems.json") == (problems, splits)
    for ids, split in [("12", "test"), ("3", "val"), ("34", "trainval"), ("1234", None)]:
        chosen, predictions = match(problems, splits, dict.fromkeys(ids, 0))
        assert set(chosen) == set(predictions) == set(ids)
        assert match(problems, splits, dict.fromkeys(ids, 0), split)[0] == chosen
    with pytest.raises(ValueError, match="no split 'tset'; there is train, val, trainval, test"):
        match(problems, splits, {"1": 0}, "tset")


def test_missing_ids_are_refused_in_one_line(folder):
    problems, splits = read_problems(folder)
    with pytest.raises(ValueError) as error:
        match(problems, splits, {"1": 0, "77": 0}, "test")
    message = "2 predictions do not match 2 problems: 1 without a prediction (2); 1 without a problem (77)"
    assert str(error.value) == message
    with pytest.raises(ValueError, match=r"2 without a prediction \(2, 1\).*--split"):
        match(problems, splits, {})
    many = {str(i): problem() for i in range(9)}
    with pytest.raises(ValueError, match=r"9 without a prediction \(0, 1, 2, 3, 4, …\)"):
        evaluate_predictions(many, {})
    with pytest.raises(ValueError, match="1 without a problem"):
        compare(many, dict.fromkeys(many, 0), {**dict.fromkeys(many, 0), "x": 0})


def test_problems_as_json_lines(tmp_path):
    records = [{"id": id_, "split": "val" if id_ == "3" else "test", **fields} for id_, fields in PROBLEMS.items()]
    problems, splits = read_problems(write(tmp_path / "problems.jsonl", records))
    assert splits == {"test": ["1", "2", "4"], "val": ["3"]}
    assert len(match(problems, splits, {"1": 0, "2": 0, "4": 0})[0]) == 3
    assert evaluate_predictions(records, dict.fromkeys(PROBLEMS, 0))["n"]["IMG"] == 2


def test_problems_without_splits_are_taken_whole():
    assert len(match(PROBLEMS, {}, dict.fromkeys(PROBLEMS, 0), "test")[0]) == 4


def test_problems_from_other_sources():
    problems, splits = read_problems("embedded:n=6", "test")
    predictions = {id_: record["answer"] for id_, record in problems.items()}
    chosen, predictions = match(problems, splits, predictions, "test")
    result = evaluate_predictions(chosen, predictions)
    assert result["accuracy"]["Avg"] == 100 and result["n"]["Avg"] == 6


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"1": 0, "1": 1}', "'1' occurs twice"),
        ('{"1": 0,\n "2": }', "line 2: not valid JSON"),
        ('{"id": 1, "answer": 0}\n{"id": 1, "answer": 1}', "id 1 occurs twice"),
        ('{"id": 1, "answer": 0}\n{"id": 2, ', "line 2: not valid JSON"),
        ('{"id": 1, "answer": 0}\n{"answer": 0}', "record 2 has no `id`"),
        ("3", "expected an object"),
    ],
)
def test_broken_predictions_are_named(tmp_path, text, message):
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_bad_records_and_options_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        read_predictions(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError):
        read_problems(tmp_path / "none.json")
    for predictions, message in [({"1": True}, "prediction 1: the answer True"), ({"1": {}}, "prediction 1 has no")]:
        with pytest.raises(ValueError, match=message):
            evaluate_predictions({"1": problem()}, predictions)
    with pytest.raises(ValueError, match="problem 1 has no `answer`"):
        evaluate_predictions({"1": problem(None)}, {"1": 0})
    with pytest.raises(ValueError, match="num_choices"):
        evaluate_predictions({"1": {"answer": 0}}, {"1": 0})
    for option in ({"protocol": "free"}, {"unparsable": "drop"}):
        with pytest.raises(ValueError, match=next(iter(option.values()))):
            evaluate_predictions({"1": problem()}, {"1": 0}, **option)


# ---- output --------------------------------------------------------------------------------------------------------


def test_table_and_comparison_name_protocol_n_and_interval(folder, tmp_path, capsys):
    good = write(tmp_path / "good.json", {"1": {"answer": "A", "rationale": "Solution: So it is."}, "2": "B"})
    bad = write(tmp_path / "bad.json", {"1": 0, "2": 0})
    assert command("--predictions", good, "--problems", folder, "--protocol", "teacher_forced") == 0
    table = capsys.readouterr().out
    for part in ("SOC", "G7-12", "Avg", "100.00", "±", "protocol: teacher_forced", "ROUGE-L", "BLEU-4"):
        assert part in table
    assert "LAN" not in table and max(map(len, table.splitlines())) < 120

    out = tmp_path / "compare.json"
    assert command("--compare", good, bad, "--problems", folder, "--json", out) == 0
    printed = capsys.readouterr().out
    assert "McNemar" in printed and "protocol: not stated" in printed and "good.json" in printed
    average = json.loads(out.read_text())["columns"]["Avg"]
    assert (average["only_a"], average["only_b"], average["difference"], average["p_value"]) == (1, 0, -50, 1)
    assert average["ci95"][0] < -50 < average["ci95"][1]


def test_compare_on_real_predictions(shared_dir):
    data = shared_dir / "data" / "scienceqa_test"
    problems, _ = read_problems(data / "index.json")
    a, b = (read_predictions(data / f"{name}.json") for name in ("gpt3_qcm_ale", "mmcot_base_predictions"))
    result = compare(problems, a, b)
    average = result["columns"]["Avg"]
    assert average["difference"] == pytest.approx(85.9467 - 75.1710, abs=1e-3)
    assert average["only_b"] - average["only_a"] == 457
    assert average["ci95"][0] < average["difference"] < average["ci95"][1] and average["p_value"] < 1e-40
    back = compare(problems, b, a)["columns"]["Avg"]
    assert back["difference"] == -average["difference"] and back["p_value"] == average["p_value"]
    same = compare(problems, a, a)["columns"]["Avg"]
    assert same["difference"] == 0 and same["p_value"] == 1
    assert format_comparison(result).count("\n") == 8


def test_the_command_imports_nothing_heavy():
    code = (
        "import sys, mmcot.training.commands.evaluate_predictions, mmcot.training.evaluation.scoring; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'evaluate', 'nltk', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
