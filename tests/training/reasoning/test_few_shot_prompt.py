"""The few-shot prompt equals the original's."""

import gzip
import json

from mmcot.training import build_few_shot_prompt


def test_all_prompts_are_the_original_s(golden_dir):
    content = json.loads(gzip.decompress((golden_dir / "fewshot_free.json.gz").read_bytes()))
    problems = content["problems"]
    for record in content["records"]:
        shots = [problems[id_] for id_ in record["shots"]]
        got = build_few_shot_prompt(
            shots, problems[record["test"]], record["format"], use_caption=record["use_caption"]
        )
        assert got == record["prompt"], record
    assert len(content["records"]) == 60


def test_the_question_is_asked_and_not_answered():
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "solution": "Because of b."}
    prompt = build_few_shot_prompt([problem], {**problem, "question": "And which?"})
    assert prompt.count("The answer is B.") == 1 and prompt.endswith("Options: (A) a (B) b\nSolution:")
