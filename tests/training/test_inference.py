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


def test_predictions_are_the_pipelines(processor, tmp_path):
    """`mmcot predict` doesn't wait for the longest rationale of a batch, and writes what the pipeline gives."""
    from mmcot import MMCoTPipeline
    from mmcot.training.files import read_jsonl
    from mmcot.training.predict import predict
    from mmcot.training.sources import load_problems

    model = MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)
    problems = load_problems("embedded:n=4,val=2,test=5", "test")
    written = list(read_jsonl(predict(model, problems, tmp_path / "out.jsonl", batch_size=2, max_new_tokens=10)))
    assert [record["id"] for record in written] == problems["id"]
    pipeline = MMCoTPipeline(model=model, processor=processor)
    for record, problem in zip(written, problems, strict=True):
        result = pipeline(dict(problem), max_new_tokens=10)
        assert record["rationale"] == result["rationale"] and record["generated"] == result["generated"]
        assert record["answer"] == ord(result["answer"]) - ord("A")
        assert list(record["scores"].values()) == pytest.approx(list(result["scores"].values()), abs=1e-4)
