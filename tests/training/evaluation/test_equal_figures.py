"""Equal inputs give equal figures by every route, and a number says how it came about."""

import json

import pytest

from mmcot import MMCoTModel, MMCoTProcessor
from mmcot.processing import build_prompt
from mmcot.training import load_problems, load_recipe, run_recipe
from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.evaluation.comparison import compare
from mmcot.training.evaluation.predictions import read_header
from mmcot.training.evaluation.protocol import protocol_of, rationale_format_of
from mmcot.training.evaluation.reading import match, read_predictions, read_problems
from mmcot.training.evaluation.runs import compare_runs, holm
from mmcot.training.evaluation.scoring import evaluate_predictions

FACTS = {"method": "multimodal-cot", "protocol": "generated", "mode": "score", "rationale_format": "QCM-E"}


def write(path, records, facts=None):
    lines = [{"header": facts}] if facts else []
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *records]))
    return path


@pytest.fixture(scope="module")
def problems():
    return {problem["id"]: problem for problem in load_problems("embedded:n=20", "test").remove_columns("images")}


def readable(target):
    """As `post_process` gives it: without "Solution:", new lines restored."""
    return target.replace("\\n", "\n").removeprefix("Solution:").strip()


@pytest.mark.parametrize("rationale_format", ["QCM-E", "QCM-LE"])
def test_perfect_rationales_score_a_hundred_by_every_route(problems, rationale_format):
    lines = {id_: {**problem, "solution": f"{problem['solution']}\nSecond line."} for id_, problem in problems.items()}
    targets = {id_: build_prompt(problem, rationale_format)[1] for id_, problem in lines.items()}
    routes = {
        "raw": lambda text: {"answer": 0, "rationale": text},
        "readable": lambda text: {"answer": 0, "rationale": readable(text)},
        "both": lambda text: {"answer": 0, "rationale": readable(text), "generated": {"rationale": text}},
    }
    for name, route in routes.items():
        predictions = {id_: route(text) for id_, text in targets.items()}
        scores = evaluate_predictions(lines, predictions, rationale_format=rationale_format)["rationale"]
        assert scores == pytest.approx(dict.fromkeys(scores, 100)), name


def test_a_run_and_predict_and_evaluate_give_the_same_figures(tmp_path, capsys):
    settings = ["data=embedded:n=40,val=4,test=12", "max_steps=3", "max_new_tokens=12", "use_cpu=true"]
    results = run_recipe(load_recipe("embedded", [*settings, f"output_dir={tmp_path}", "disable_tqdm=true"]))["test"]
    source = "embedded:n=40,val=4,test=12"
    evaluate = ["evaluate", "--problems", source, "--split", "test", "--json", str(tmp_path / "scores.json")]
    own = str(tmp_path / "answer" / "predictions_test.jsonl")
    again = str(tmp_path / "again.jsonl")
    assert (
        main(["predict", str(tmp_path / "hub"), source, "--split", "test", "--output", again, "--device", "cpu"]) == 0
    )
    for file in (own, again):
        assert main([*evaluate, "--predictions", file]) == 0
        found = json.loads((tmp_path / "scores.json").read_text())
        for name in ("accuracy", "ci95", "n", "rationale", "rationale_n", "protocol", "answers"):
            assert found[name] == results[name], (file, name)
    assert results["rationale_n"] == 12 and results["answers"] == "score"
    costs = [read_header(file) for file in (own, again)]  # of both stages, with the backbone once
    assert costs[0]["parameters"] == costs[1]["parameters"] and all(cost["seconds_per_question"] > 0 for cost in costs)
    alone = read_header(tmp_path / "rationale" / "predictions_test.jsonl")
    assert alone["parameters"] < costs[0]["parameters"]
    assert alone["seconds_per_question"] < costs[0]["seconds_per_question"]
    assert main(["compare", source, "--split", "test", "--run", f"run={own}", "--run", f"again={again}"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " M " in line]
    assert [row[0] for row in rows] == ["run", "again"] and rows[0][1] == rows[1][1] and len(rows[0]) == 4
    assert f"{results['accuracy']['Avg']:.2f}" in (tmp_path / "hub" / "README.md").read_text()


def test_without_gold_rationales_there_are_no_scores(problems):
    bare = {id_: {**problem, "solution": "", "lecture": ""} for id_, problem in problems.items()}
    result = evaluate_predictions(bare, {id_: {"answer": 0, "rationale": "Solution:"} for id_ in bare})
    assert result["rationale"] == {} and result["rationale_n"] == 0


def test_the_protocol_is_read_and_never_guessed(problems, tmp_path, capsys):
    records = [{"id": id_, "answer": 0, "rationale": "r"} for id_ in problems]
    bare = write(tmp_path / "bare.jsonl", records)
    forced = write(tmp_path / "forced.jsonl", records, {**FACTS, "protocol": "teacher_forced"})
    free = write(tmp_path / "free.jsonl", records, FACTS)
    arguments = ["evaluate", "--problems", "embedded:n=20", "--split", "test"]
    assert main([*arguments, "--predictions", str(bare)]) == 2
    assert "--protocol generated" in capsys.readouterr().err
    assert main([*arguments, "--predictions", str(bare), "--protocol", "generated"]) == 0
    assert "protocol: generated" in capsys.readouterr().out
    assert main([*arguments, "--predictions", str(forced)]) == 0
    assert "protocol: teacher_forced" in capsys.readouterr().out
    assert main([*arguments, "--predictions", str(forced), "--protocol", "generated"]) == 2
    assert "teacher_forced" in capsys.readouterr().err
    assert main([*arguments, "--compare", str(forced), str(free)]) == 2
    assert "two protocols" in capsys.readouterr().err
    with pytest.raises(UserError, match="doesn't say"):
        protocol_of(bare)


def test_teacher_forced_anywhere_is_teacher_forced(tmp_path):
    settings = ["data=embedded:n=24,val=4,test=4", "max_steps=2", "max_new_tokens=6", "use_cpu=true"]
    settings += ["disable_tqdm=true", "answer.protocol=teacher_forced"]
    results = run_recipe(load_recipe("embedded", [*settings, f"output_dir={tmp_path}"]))
    assert results["test"]["protocol"] == "teacher_forced" and results["test"]["answers"] == "generate"


def test_a_part_of_the_predictions_is_scored_when_asked_for(problems, tmp_path, capsys):
    part = write(tmp_path / "p.jsonl", [{"id": id_, "answer": 0} for id_ in list(problems)[:7]], FACTS)
    arguments = ["evaluate", "--problems", "embedded:n=20", "--split", "test", "--predictions", str(part)]
    assert main(arguments) == 2
    assert "--partial" in capsys.readouterr().err
    assert main([*arguments, "--partial"]) == 0
    assert "partial: 7 of 20 questions" in capsys.readouterr().out
    write(part, [{"id": "nobody", "answer": 0}], FACTS)
    assert main([*arguments, "--partial"]) == 2


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"rationale": 5}, "'rationale' must be a text, but is 5"),
        ({"rationale": ["a"]}, "'rationale' must be a text"),
        ({"generated": {"rationale": 5}}, "'generated.rationale' must be a text"),
        ({"generated": 7}, "'generated' must be"),
        ({"rationale": "\ud800"}, "lone surrogate"),
        ({"answer": "\ud800"}, "lone surrogate"),
    ],
)
def test_a_bad_prediction_is_named(tmp_path, record, said):
    path = write(tmp_path / "p.jsonl", [{"id": "1", "answer": 0}, {"id": "2", "answer": 0, **record}], FACTS)
    with pytest.raises(UserError, match=f"p.jsonl: prediction 2: .*{said}"):
        read_predictions(path)


def test_several_runs_in_one_table(problems, tmp_path, capsys):
    right = {id_: problem["answer"] for id_, problem in problems.items()}
    runs = {}
    for name, share in (("all", 1.0), ("half", 0.5), ("none", 0.0)):
        number = round(share * len(right))
        records = [
            {"id": id_, "answer": answer if i < number else None} for i, (id_, answer) in enumerate(right.items())
        ]
        facts = {**FACTS, "tokens": {"prompt": 100, "completion": 20}, "parameters": 5_000_000}
        runs[name] = write(tmp_path / f"{name}.jsonl", records, facts)
    result = compare_runs("embedded:n=20", runs, "test")
    assert [result["runs"][name]["accuracy"]["Avg"] for name in runs] == [100, 50, 0]
    assert result["tests"]["half"]["difference"] == -50 and result["runs"]["all"]["cost"]["tokens_per_question"] == 6
    read, splits = read_problems("embedded:n=20", "test")
    chosen, none = match(read, splits, read_predictions(runs["none"]), "test")
    everything = match(read, splits, read_predictions(runs["all"]), "test")[1]
    assert result["tests"]["none"]["p_value"] == compare(chosen, everything, none)["columns"]["Avg"]["p_value"]
    assert len(result["differing"]) == 10
    arguments = [argument for name, path in runs.items() for argument in ("--run", f"{name}={path}")]
    assert main(["compare", "embedded:n=20", "--split", "test", *arguments, "--json", str(tmp_path / "c.json")]) == 0
    printed = capsys.readouterr().out
    assert "5.0 M" in printed and "-50.00" in printed and "Holm" in printed
    assert main(["compare", "embedded:n=20", "--run", f"a={runs['all']}"]) == 2
    assert main(["compare", "embedded:n=20", "--run", str(runs["all"])]) == 2


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_blanked_pictures_of_the_card_row_score_as_the_run_does(two_stage_repository, tmp_path):
    """The row "(c) blanked" of the demo comes from `predict`; its rationales are scored as a run's are."""
    from mmcot.training import predict

    source = load_problems("embedded:n=8", "test")
    path = predict(two_stage_repository, source, tmp_path / "p.jsonl", blank_images=True, device="cpu")
    predictions = read_predictions(path)
    model = MMCoTModel.from_pretrained(two_stage_repository)
    processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    records = {problem["id"]: problem for problem in source.remove_columns("images")}
    raw = {}
    for id_, problem in records.items():
        output = model.generate(**processor({**problem, "images": []}))
        raw[id_] = {"answer": 0, "rationale": processor.post_process(output, [problem])[0]["generated"]["rationale"]}
    got = evaluate_predictions(records, predictions)["rationale"]
    assert got == pytest.approx(evaluate_predictions(records, raw)["rationale"])


def test_the_questions_on_which_most_runs_differ_come_first(problems, tmp_path):
    """Those that half of the runs get right tell more than those that all but one do."""
    runs = {}
    for k in range(5):  # run k misses the first 2 * k questions
        records = [
            {"id": id_, "answer": None if i < 2 * k else problem["answer"]}
            for i, (id_, problem) in enumerate(problems.items())
        ]
        runs[f"r{k}"] = write(tmp_path / f"{k}.jsonl", records, FACTS)
    found = compare_runs("embedded:n=20", runs, "test")["differing"]
    right = [sum(answer == item["answer"] for answer in item["answers"].values()) for item in found]
    assert sorted(right[:4]) == [2, 2, 3, 3] and sorted(right[4:]) == [1, 1, 4, 4]


def test_a_header_that_names_no_rationale_means_that_there_is_none(problems, tmp_path):
    """A one-stage run; a file without a header is another program's, which wrote the paper's."""
    record = [{"id": "1", "answer": 0}]
    one_stage = write(tmp_path / "one.jsonl", record, {**FACTS, "rationale_format": None})
    foreign = write(tmp_path / "foreign.jsonl", record)
    assert rationale_format_of(one_stage) is None and rationale_format_of(foreign) == "QCM-E"
    assert rationale_format_of(one_stage, "QCM-LE") == "QCM-LE"
