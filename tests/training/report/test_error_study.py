"""`mmcot errors` as a user runs it: labels asked for in the terminal, counted, gone on with."""

import io
import json

import pytest

from mmcot.training.cli import main
from mmcot.training.data.embedded.misread import other_solutions
from mmcot.training.data.problems import load_problems
from mmcot.training.evaluation.predictions import header

SOURCE = "embedded:n=24,seed=4,skills=flower+layers+tense"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A blind run's predictions, wrong with another picture's solution, and a seeing one's, right but for one."""
    folder = tmp_path_factory.mktemp("errors")
    blind, seeing = [], []
    for index, problem in enumerate(load_problems(SOURCE, "test")):
        others = sorted(other_solutions(index, seed=4, skills=["flower", "layers", "tense"], split="test"))
        right = {"id": problem["id"], "answer": problem["answer"], "rationale": problem["solution"]}
        seeing.append(right)
        wrong = {"answer": (problem["answer"] + 1) % len(problem["choices"])}
        blind.append({**right, **wrong, "rationale": others[0]} if others and index % 2 else right)
    seeing[1] = blind[1]
    for name, records in (("blind", blind), ("seeing", seeing)):
        lines = [{"header": header("multimodal-cot", protocol="generated", split="test")}, *records]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def errors(monkeypatch, *arguments, typed=""):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return main(["errors", SOURCE, *map(str, arguments)])


def test_labels_are_asked_for_and_gone_on_with(files, tmp_path, monkeypatch, capsys):
    labels, out = tmp_path / "labels.jsonl", tmp_path / "out.json"
    command = ("--predictions", files / "blind.jsonl", "--n", 4, "--labels", labels, "--json", out)
    assert errors(monkeypatch, *command, typed="h\n?\nl\n") == 0  # then the input ends
    text = capsys.readouterr().out
    assert "published [v5]: 56 % of 50 errors" in text
    assert "labelled: 2 of 4" in text and "<- right" in text and "<- answered" in text
    assert "common sense: lacks or breaks" in text  # what `?` shows
    drawn = json.loads(out.read_text())["drawn"]
    pictures = tmp_path / "labels-pictures"
    assert sorted(path.stem for path in pictures.glob("*.png")) == sorted(drawn)
    assert str(pictures / f"{drawn[0]}.png") in text

    assert errors(monkeypatch, *command, "--other", files / "seeing.jsonl", typed="s\nb\na\nh\n") == 0
    text = capsys.readouterr().out
    assert "[3 of 4]" in text and "[1 of 4]" not in text  # it goes on where it was left
    result = json.loads(out.read_text())
    assert result["drawn"] == drawn and result["labels"]["n"] == 4
    counts = {label: row["count"] for label, row in result["labels"]["shares"].items() if row["count"]}
    assert counts == {"hallucination": 2, "logic": 1, "answer": 1}
    assert result["indicator_against_labels"] == {"n": 4, "precision": 50, "recall": 100}
    wrong_again = "test-4-1" in drawn
    assert result["corrected"]["all"]["corrected"] == (75 if wrong_again else 100)
    assert result["indicator"]["wrong"]["hallucinated"] == 100 and result["indicator"]["right"]["hallucinated"] == 0
    lines = labels.read_text().splitlines()
    assert len(lines) == 5 and json.loads(lines[0])["header"]["seed"] == 0

    second = tmp_path / "second.jsonl"
    second.write_text("".join(json.dumps({"id": id_, "label": "hallucination"}) + "\n" for id_ in drawn))
    assert errors(monkeypatch, *command, "--agreement", second, "--count-only") == 0
    assert "agree on 50.0 % of 4, Cohen's kappa 0.000" in capsys.readouterr().out
    # labels of this sample aren't joined to another run's
    assert errors(monkeypatch, "--predictions", files / "seeing.jsonl", "--labels", labels) == 2
    assert "labels of another sample (predictions differs)" in capsys.readouterr().err


def test_the_indicator_is_validated_on_what_a_run_wrote(files, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    assert errors(monkeypatch, "--validate", "--predictions", files / "blind.jsonl", "--json", out) == 0
    result = json.loads(out.read_text())
    written = result["validation"]["written"]
    assert (written["n"], written["precision"], written["recall"], written["unknown"]) == (24, 100, 100, 0)
    assert (
        result["validation"]["constructed"]["recall"] > 90 and "indicator of hallucination" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "give --predictions FILE"),
        (("--predictions", "{blind}", "--count-only"), "--count-only has no effect without --labels"),
        (("--predictions", "{blind}", "--n", "0"), "--n 0: give a whole number"),
        (("--predictions", "nowhere.jsonl"), "no predictions file"),
    ],
)
def test_what_the_user_has_to_mend(arguments, message, files, monkeypatch, capsys):
    arguments = [argument.format(blind=files / "blind.jsonl") for argument in arguments]
    assert errors(monkeypatch, *arguments) == 2 and message in capsys.readouterr().err


def test_validation_needs_generated_questions(tmp_path, capsys):
    assert main(["errors", str(tmp_path), "--validate"]) == 2
    assert "give embedded:…" in capsys.readouterr().err


def test_errors_of_real_problems(shared_dir, tmp_path, monkeypatch, capsys):
    """Labels are asked for with the pictures of an original folder."""
    source = str(shared_dir / "data" / "scienceqa")
    problems = load_problems(source, "test", image_rule="none")
    records = [
        {"id": problem["id"], "answer": (problem["answer"] + 1) % len(problem["choices"]), "rationale": "It is."}
        for problem in problems
    ]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr("sys.stdin", io.StringIO("h\no\n"))
    assert main(["errors", source, "--predictions", str(file), "--n", "3", "--labels", str(tmp_path / "l.jsonl")]) == 0
    assert "labelled: 2 of 3" in capsys.readouterr().out
