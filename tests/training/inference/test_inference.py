"""Many questions at once give the answers of one at a time."""

import pytest
import torch
from two_stage_models import make_stage

from mmcot import MMCoTModel, MMCoTProcessor
from mmcot.processing import image_processor_for
from mmcot.training.data.embedded.generate import generate_problems
from mmcot.training.inference.engine import _groups, _Question, answer_questions


@pytest.fixture(scope="module")
def processor(tiny_tokenizer):
    return MMCoTProcessor(image_processor_for(64), tiny_tokenizer, max_source_length=200)


@pytest.mark.parametrize(("slots", "encoder_tokens"), [(2, None), (16, None), (16, 150)])
def test_answers_equal_one_by_one(processor, slots, encoder_tokens):
    model = MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)
    problems = {problem["id"]: problem for problem in generate_problems(9, seed=3)}
    assert {len(problem["images"]) for problem in problems.values()} >= {0, 1}
    ids = list(problems)
    batches = [ids[i : i + 4] for i in range(0, len(ids), 4)]
    found = {}
    inputs = ((batch, processor([problems[id_] for id_ in batch])) for batch in batches)
    settings = {"max_new_tokens": 10, "slots": slots, "encoder_tokens": encoder_tokens}
    for keys, output in answer_questions(model, inputs, **settings):
        found.update(zip(keys, processor.post_process(output, [problems[key] for key in keys]), strict=True))
    assert len(found) == len(problems)
    for id_, problem in problems.items():
        alone = processor.post_process(model.generate(**processor(problem), max_new_tokens=10), [problem])[0]
        assert found[id_]["generated"] == alone["generated"]
        assert found[id_]["answer"] == alone["answer"]
        assert found[id_]["scores"] == pytest.approx(alone["scores"], abs=1e-4)


def test_predictions_are_the_pipelines(processor, tmp_path):
    """`mmcot predict` doesn't wait for the longest rationale of a batch, and writes what the pipeline gives."""
    from mmcot import MMCoTPipeline
    from mmcot.training.common import read_jsonl
    from mmcot.training.data.problems import load_problems
    from mmcot.training.inference.predict import predict

    model = MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)
    problems = load_problems("embedded:n=4,val=2,test=5", "test")
    path = predict(model, problems, tmp_path / "out.jsonl", batch_size=2, max_new_tokens=10)
    _, *written = read_jsonl(path)
    assert [record["id"] for record in written] == problems["id"]
    pipeline = MMCoTPipeline(model=model, processor=processor)
    for record, problem in zip(written, problems, strict=True):
        result = pipeline(dict(problem), max_new_tokens=10)
        assert record["rationale"] == result["rationale"] and record["generated"] == result["generated"]
        assert record["answer"] == ord(result["answer"]) - ord("A")
        assert list(record["scores"].values()) == pytest.approx(list(result["scores"].values()), abs=1e-4)


def test_groups_hold_like_lengths_within_the_limit_and_lose_nobody():
    rows = [(length, number % 3 > 0) for number, length in enumerate([90, 12, 40, 41, 300, 39, 11, 13, 38, 92])]
    patches = {True: torch.zeros(4, 2), False: None}
    questions = [
        _Question(number, torch.zeros(length), torch.zeros(1), torch.tensor(2), patches[seeing])
        for number, (length, seeing) in enumerate(rows)
    ]
    groups = list(_groups(questions, 100, lambda question: len(question.source)))
    assert sorted(question.key for group in groups for question in group) == list(range(10))
    for group in groups:
        longest = max(len(question.source) for question in group)
        assert len(group) == 1 or len(group) * longest <= 100
        assert len({question.patches is None for question in group}) == 1
    widths = [len(group[0].source) for group in groups]
    assert widths == sorted(widths, reverse=True) and max(map(len, groups)) > 1
