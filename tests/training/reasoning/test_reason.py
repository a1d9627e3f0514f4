"""Every method from the question to the predictions file: its prompts, its votes, its demonstrations, going on."""

import json
import re
from pathlib import Path

import pytest
import torch
from scripted import ScriptedModel

from mmcot.training import evaluate_predictions, generate_problems
from mmcot.training.common import UserError, read_jsonl
from mmcot.training.evaluation.predictions import read_header
from mmcot.training.reasoning import METHODS, complexity, promptpg
from mmcot.training.reasoning.demonstrations import read_demonstrations, sample_demonstrations, write_demonstrations
from mmcot.training.reasoning.least_to_most import parts_of
from mmcot.training.reasoning.methods import Settings, without_answer
from mmcot.training.reasoning.reason import reason
from mmcot.training.reasoning.texts import read_answer, steps_of, vote

EXPECTED = Path(__file__).parent / "expected_prompts.json"


def problems(split, count=6):
    found = generate_problems(count, seed=3, split=split)
    return [{**one, "images": [], "question": f"{one['question']} ({one['id']})"} for one in found]


TRAIN, TEST = problems("train", 40), problems("test")


def teacher(request):
    """Knows every answer, and speaks as each step wants it."""
    asked = [problem for problem in [*TRAIN, *TEST] if problem["question"] in request.prompt]
    problem = max(asked, key=lambda one: request.prompt.rfind(one["question"]))
    letter = "ABCDE"[problem["answer"]]
    if request.letters:
        return {one: 0.0 if one == letter else -3.0 for one in request.letters}
    if request.step == "decompose":
        return "1. What does the picture show?\n2. Which rule holds?\nThen answer."
    if request.step == "solve":
        return "Something red.\nQ: more?"
    if request.step in ("extract", "answer"):
        return f"{letter})."
    if request.max_new_tokens == 16:
        return f"The answer is {letter}.\n\nQuestion: another?"
    return f"{problem['solution']} The answer is {letter}.\n\nQuestion: another one?"


@pytest.fixture(autouse=True)
def embeddings(monkeypatch):
    """Sentence embeddings by the letters of a text; the real ones need a model from the Hub."""

    def embed(texts, model, batch_size=64):
        assert model == "embedder"
        counts = torch.tensor([[float(text.lower().count(chr(97 + i))) for i in range(26)] for text in texts])
        return torch.nn.functional.normalize(counts, dim=-1)

    monkeypatch.setattr("mmcot.training.evaluation.similarity.embed", embed)


def settings(**changes):
    return Settings(**{"embedding_model": "embedder", **changes})


def run(tmp_path, method, model=None, name="p.jsonl", **changes):
    model = model or ScriptedModel(teacher)
    path = reason(method, model, TEST, tmp_path / name, train=TRAIN, settings=settings(**changes))
    return path, model


@pytest.mark.parametrize("score_options", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_methods_find_what_the_model_knows(tmp_path, method, score_options):
    path, _ = run(tmp_path, method, score_options=score_options)
    records = list(read_jsonl(path))[1:]
    assert [record["id"] for record in records] == [problem["id"] for problem in TEST]
    result = evaluate_predictions({p["id"]: p for p in TEST}, {record["id"]: record for record in records})
    assert result["accuracy"]["Avg"] == 100
    facts = read_header(path)
    assert facts["method"] == method and facts["model"] == "scripted" and facts["protocol"] == "generated"
    assert facts["mode"] == ("score" if score_options else "generate")
    assert facts["tokens"]["prompt"] > 0 and facts["seed"] == 0 and facts["prompt"]
    if method != "direct":
        assert all(record["rationale"] for record in records)
        assert not any("The answer is" in record["rationale"] for record in records)


def test_the_counts_are_not_said_twice_and_missing_answers_are(tmp_path, caplog):
    with caplog.at_level("INFO", logger="mmcot"):
        run(tmp_path, "direct")
        assert "predictions" not in caplog.text and "{" not in caplog.text
        run(tmp_path, "direct", ScriptedModel(lambda request: "hm"), name="q.jsonl")
    assert "6 of 6 questions got no answer" in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_prompts_are_the_stored_ones(tmp_path, method):
    """Run with UPDATE_PROMPTS=1 after a change that is meant, and read the difference."""
    import os

    _, model = run(tmp_path, method)
    first = TEST[0]["question"]
    asked = [request for request in model.asked if request.prompt.rfind(first) > request.prompt.rfind("\n\n")]
    got = [{"step": request.step, "prompt": request.prompt} for request in asked if first in request.prompt][-3:]
    stored = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    if os.environ.get("UPDATE_PROMPTS"):
        EXPECTED.write_text(json.dumps({**stored, method: got}, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    assert got and got == stored.get(method) or os.environ.get("UPDATE_PROMPTS")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [1, 9])
def test_cut_off_it_goes_on_and_asks_nothing_twice(tmp_path, method, cut):
    whole, model = run(tmp_path, method, name="whole.jsonl", samples=2)
    cut_off = ScriptedModel(teacher, stop_after=cut)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, method, cut_off, samples=2)
    assert not (tmp_path / "p.jsonl").exists()
    path, again = run(tmp_path, method, ScriptedModel(teacher), samples=2)
    (first, *lines), (expected, *others) = (file.read_text().splitlines() for file in (path, whole))
    headers = [json.loads(line)["header"] for line in (first, expected)]
    assert all(found.pop("seconds_per_question") >= 0 for found in headers)
    assert headers[0] == headers[1] and lines == others
    assert len(again.asked) == len(model.asked) - cut


@pytest.mark.parametrize("method", ["few-shot-cot", "auto-cot", "complexity", "promptpg"])
def test_demonstrations_come_from_the_training_split_alone(tmp_path, method):
    path, model = run(tmp_path, method, name="a.jsonl", seed=1)
    shown = read_header(path)["demonstrations"]
    assert shown and set(shown) <= {problem["id"] for problem in TRAIN}
    # other questions, and none of their answers known: the same demonstrations
    hidden = [{**problem, "answer": None, "solution": ""} for problem in TEST[:2]]
    path = reason(method, ScriptedModel(teacher), hidden, tmp_path / "b.jsonl", train=TRAIN, settings=settings(seed=1))
    assert read_header(path)["demonstrations"] == shown
    with pytest.raises(UserError, match="would give it away"):
        reason(method, model, TEST, tmp_path / "c.jsonl", train=[*TRAIN, TEST[0]], settings=settings())
    with pytest.raises(UserError, match="needs demonstrations"):
        reason(method, model, TEST, tmp_path / "d.jsonl", settings=settings())


def test_seed_chooses_the_demonstrations():
    chosen = [[shot["id"] for shot in sample_demonstrations(TRAIN, 3, seed)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_demonstrations_can_be_read_mended_and_reused(tmp_path):
    run(tmp_path, "few-shot-cot", name="a.jsonl")
    model = ScriptedModel(teacher)
    file = tmp_path / "shots.jsonl"
    reason("auto-cot", model, TEST, tmp_path / "b.jsonl", train=TRAIN, settings=settings(), save_demonstrations=file)
    shots = read_demonstrations(file)
    assert len(shots) == 2 and all(shot["rationale"] for shot in shots)
    again = ScriptedModel(teacher)
    reason("auto-cot", again, TEST, tmp_path / "c.jsonl", settings=settings(demonstrations=tuple(shots)))
    assert [request.prompt for request in again.asked] == [request.prompt for request in model.asked[-len(TEST) :]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: a demonstration is a JSON object"),
        ('{"question": "Q?", "choices": ["a"], "answer": 0}', "line 2: 'choices'"),
        ('{"question": "Q?", "choices": ["a", "b"], "answer": "C"}', "line 2: 'answer'"),
    ],
)
def test_a_bad_demonstration_is_named(tmp_path, line, said):
    file = tmp_path / "shots.jsonl"
    write_demonstrations(file, TRAIN[:1])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match=said):
        read_demonstrations(file)


def test_samples_vote():
    def sample(answer, rationale="r"):
        return {"answer": answer, "rationale": rationale}

    assert vote([sample(1), sample(0), sample(0), sample(None)])["answer"] == 0
    assert vote([sample(1), sample(0)])["answer"] == 1  # the first one
    assert vote([sample(None), sample(None)])["answer"] is None
    assert vote([sample(2, "wrong"), sample(0, "first"), sample(0, "second")])["rationale"] == "first"
    assert vote([sample(2), sample(0), sample(0)])["votes"] == {"A": 2, "C": 1}


def test_complex_samples_vote():
    simple, complex_ = {"answer": 0, "rationale": "One."}, {"answer": 1, "rationale": "One. Two. Three."}
    assert complexity.vote_among([simple, simple, complex_, complex_])["answer"] == 1
    shots = complexity.prepare(
        [{**TRAIN[0], "solution": "One. Two.", "lecture": ""}, *TRAIN[1:3]], settings(shots=1), None
    )
    assert steps_of(shots.demonstrations[0]["rationale"]) >= 2


def test_samples_are_different_calls(tmp_path):
    _, model = run(tmp_path, "zero-shot-cot", samples=3)
    reasons = [request for request in model.asked if request.step == "reason"]
    assert {request.seed for request in reasons} == {0, 1, 2} and {request.temperature for request in reasons} == {0.7}
    assert all(request.temperature == 0 for request in model.asked if request.step == "extract")


def test_policy_learns_what_helps(monkeypatch):
    """Candidates whose solution says so make the model right; the policy comes to prefer them."""
    helpful = [{**problem, "solution": f"{problem['solution']} helps"} for problem in TRAIN[:4]]
    candidates = [*helpful, *TRAIN[4:20]]

    class Caller:
        def run(self, works):
            results = {}
            for name, work in works:
                prompt = next(work).prompt
                known = next(p for p in TRAIN if name.endswith(f"/{p['id']}"))
                results[name] = {"answer": known["answer"] if " helps" in prompt else -1}
            return results

    monkeypatch.setattr(promptpg, "EPOCHS", 40)
    own = settings(shots=1)
    asked, offered = (promptpg._embed(group, own) for group in (TRAIN[20:], candidates))
    before = promptpg.Policy(26, 0)(asked, offered).exp()[:, :4].sum(1).mean().item()
    policy = promptpg.train_policy(TRAIN[20:], asked, candidates, offered, own, Caller())
    assert policy(asked, offered).exp()[:, :4].sum(1).mean().item() > 1.5 * before


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So it is red. The answer is (B).", 1),
        ("The answer is B. BECAUSE: A and C are wrong.", 1),
        ("the answer is A ... no, the answer is **C**", 2),
        ("(C) because it floats", 2),
        ("B", 1),
        ("A", 0),
        ("A red thing", None),
        ("I think green petals.", 1),
        ("(A) or (B)", None),
        ("The answer is E.", None),
        ("", None),
        ("The answer is Zebra", None),
    ],
)
def test_answers_are_read(text, answer):
    problem = {"question": "Q?", "choices": ["red petals", "green petals", "blue petals"]}
    assert read_answer(text, problem) == answer


def test_rationales_are_kept_without_the_answer():
    assert without_answer("It is red. So, the answer is (B).") == "It is red."
    assert without_answer("The answer is B. BECAUSE: It is red.") == "It is red."


def test_parts_of_a_decomposition():
    text = 'To answer, we need:\n1. "What is red?"\n- What is red?\n2) Which is it? And why?\nnothing'
    assert parts_of(text) == ["What is red?", "Which is it?", "And why?"]


def test_a_text_only_model_gets_captions_or_a_warning(tmp_path, caplog):
    shown = [{**problem, "images": ["x.png"], "caption": ""} for problem in TEST[:1]]
    model = ScriptedModel(teacher)
    model.takes_images = False
    reason("zero-shot-cot", model, shown, tmp_path / "a.jsonl", settings=settings())
    assert "1 of 1 questions have a picture that it won't see" in caplog.text
    assert model.asked[0].images == () and read_header(tmp_path / "a.jsonl")["images"] == "none"
    captioned = [{**problem, "caption": "a caption"} for problem in shown]
    reason("zero-shot-cot", model, captioned, tmp_path / "b.jsonl", settings=settings())
    assert "a caption" in model.asked[-2].prompt


def test_an_output_that_exists_is_not_overwritten(tmp_path):
    run(tmp_path, "direct")
    with pytest.raises(UserError, match="is there already"):
        run(tmp_path, "direct")
    assert re.search("p.jsonl.calls.jsonl", " ".join(path.name for path in tmp_path.iterdir()))
