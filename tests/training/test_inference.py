"""Many questions at once give the answers of one at a time."""

import pytest
from two_stage_models import make_stage

from mmcot import MMCoTModel, MMCoTProcessor
from mmcot.processing import image_processor_for
from mmcot.training.embedded import generate_problems
from mmcot.training.inference import answer_questions


@pytest.fixture(scope="module")
def processor(tiny_tokenizer):
    return MMCoTProcessor(image_processor_for(64), tiny_tokenizer, max_source_length=200)


@pytest.mark.parametrize("slots", [2, 16])
def test_answers_equal_one_by_one(processor, slots):
    model = MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)
    problems = {problem["id"]: problem for problem in generate_problems(9, seed=3)}
    assert {len(problem["images"]) for problem in problems.values()} >= {0, 1}
    ids = list(problems)
    batches = [ids[i : i + 4] for i in range(0, len(ids), 4)]
    found = {}
    inputs = ((batch, processor([problems[id_] for id_ in batch])) for batch in batches)
    for keys, output in answer_questions(model, inputs, max_new_tokens=10, slots=slots):
        found.update(zip(keys, processor.post_process(output, [problems[key] for key in keys]), strict=True))
    assert len(found) == len(problems)
    for id_, problem in problems.items():
        alone = processor.post_process(model.generate(**processor(problem), max_new_tokens=10), [problem])[0]
        assert found[id_]["generated"] == alone["generated"]
        assert found[id_]["answer"] == alone["answer"]
        assert found[id_]["scores"] == pytest.approx(alone["scores"], abs=1e-4)
