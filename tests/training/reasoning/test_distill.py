"""Distilled rationales are right ones, of the training split, with their provenance; a mixture follows validation."""

import json

import pytest
from scripted import ScriptedModel
from test_reason import TEST, TRAIN, teacher

from mmcot.training import load_problems
from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.data.rationales import read_rationales, with_rationales
from mmcot.training.evaluation.predictions import read_header
from mmcot.training.reasoning.distill import distill, mix_by_skill
from mmcot.training.reasoning.methods import Settings
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.stages.run import Run


def half_right(request):
    """Wrong about every question whose id is odd, and a different rationale for every seed."""
    said = teacher(request)
    asked = max(TRAIN, key=lambda one: request.prompt.rfind(one["question"]))
    if int(asked["id"].rsplit("-", 1)[1]) % 2:
        return (
            said.replace("The answer is A", "The answer is B") if "is A" in said else "A)." if said == "B)." else "B)."
        )
    return f"{said.partition(' The answer')[0]} Seed {request.seed}." if request.step == "reason" else said


@pytest.mark.parametrize("method", ["zero-shot-cot", "few-shot-cot", "plan"])
def test_only_right_rationales_are_kept(tmp_path, method):
    model = ScriptedModel(half_right if method == "zero-shot-cot" else teacher)
    counts = distill(model, {"train": TRAIN}, tmp_path / "r.jsonl", method=method, settings=Settings(samples=3))
    kept = read_rationales(tmp_path / "r.jsonl")
    known = {problem["id"]: problem for problem in TRAIN}
    facts = read_header(tmp_path / "r.jsonl")
    assert facts["teacher"] == "scripted" and facts["counts"] == counts and facts["prompt"]
    if method == "zero-shot-cot":
        assert set(kept) == {id_ for id_ in known if not int(id_.rsplit("-", 1)[1]) % 2}
        assert all(len(texts) == 3 and len(set(texts)) == 3 for texts in kept.values())
        assert counts["train"] == {"asked": 40, "answered": 20, "kept": 60}
    elif method == "few-shot-cot":
        assert counts["train"]["asked"] == 38 and not set(facts["demonstrations"]) & set(kept)
    for id_, texts in kept.items():
        assert all(known[id_]["solution"] in text and "The answer is" not in text for text in texts)


def test_nothing_of_the_test_split(tmp_path):
    with pytest.raises(UserError, match="test split"):
        distill(ScriptedModel(teacher), {"train": TRAIN, "test": TEST}, tmp_path / "r.jsonl")
    with pytest.raises(UserError, match="none of the questions right"):
        distill(ScriptedModel(lambda request: "no idea"), {"train": TRAIN}, tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_cut_off_it_goes_on(tmp_path):
    distill(ScriptedModel(teacher), {"train": TRAIN}, tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        distill(ScriptedModel(teacher, stop_after=7), {"train": TRAIN}, tmp_path / "r.jsonl")
    again = ScriptedModel(teacher)
    distill(again, {"train": TRAIN}, tmp_path / "r.jsonl")
    assert len(again.asked) == 80 - 7
    assert (tmp_path / "r.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_several_rationales_are_several_samples():
    problems = load_problems("embedded:n=4", "train")
    first, second, *_ = problems["id"]
    found = with_rationales(problems, {first: ["one", "two"], second: ["three"], "other": ["x"]})
    assert found["id"] == [first, f"{first}#2", second]
    assert found["solution"] == ["one", "two", "three"] and set(found["lecture"]) == {""}
    assert found[1]["images"] == problems[0]["images"] and found[1]["answer"] == problems[0]["answer"]
    with pytest.raises(UserError, match="no rationale of any"):
        with_rationales(problems, {"other": ["x"]})


@pytest.mark.parametrize(
    ("line", "said"), [('{"id": 1}', "line 2"), ('{"id": "1", "rationale": 5}', "line 2"), ("[1]", "line 2")]
)
def test_a_bad_line_is_named(tmp_path, line, said):
    file = tmp_path / "r.jsonl"
    file.write_text('{"id": "0", "rationale": "r"}\n' + line + "\n")
    with pytest.raises(UserError, match=said):
        read_rationales(file)


def test_mixture_follows_the_validation_errors(tmp_path):
    for name in ("plain", "plan"):
        records = [{"id": problem["id"], "split": "train", "rationale": name} for problem in TRAIN]
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    skills = sorted({problem["skill"] for problem in TRAIN})
    validation = [{"id": str(i), "skill": skill} for i, skill in enumerate(skills)]
    plain = {problem["id"]: problem["skill"] == skills[0] for problem in validation}
    plans = {problem["id"]: problem["skill"] == skills[1] for problem in validation}
    arguments = (tmp_path / "plain", tmp_path / "plan", TRAIN, plain, plans, validation, tmp_path / "mixed")
    choice = mix_by_skill(*arguments)
    assert choice[skills[0]] == "plan" and choice[skills[1]] == choice[skills[2]] == "plain"
    mixed = read_rationales(tmp_path / "mixed")
    assert all(mixed[problem["id"]] == [choice[problem["skill"]]] for problem in TRAIN)


def test_a_multimodal_cot_model_teaches(tmp_path, two_stage_repository, capsys):
    """The random network is right now and then; what it wrote then is kept."""
    arguments = [str(two_stage_repository), "embedded:n=40", "--splits", "train", "--device", "cpu"]
    assert main(["distill", "--teacher", *arguments, "--output", str(tmp_path / "r.jsonl")]) == 0
    assert "train with rationales=" in capsys.readouterr().out
    kept = read_rationales(tmp_path / "r.jsonl")
    assert 0 < len(kept) < 40


def test_a_teachers_rationales_are_for_training_alone(tmp_path):
    """Validation and test questions stay all there, with the data's own solutions."""
    source = "embedded:n=8,val=3,test=4,skills=flower"
    ids = load_problems(source, "train")["id"][:2]
    lines = [{"header": {}}, *({"id": id_, "split": "train", "rationale": "So."} for id_ in ids)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [f"data={source}", f"rationales={tmp_path / 'r.jsonl'}", f"output_dir={tmp_path}", "use_cpu=true"]
    problems = Run(load_recipe("embedded", settings)).problems
    assert problems["train"]["id"][:] == ids and set(problems["train"]["solution"]) == {"So."}
    for split in ("val", "test"):
        assert problems[split]["solution"][:] == load_problems(source, split)["solution"][:]
