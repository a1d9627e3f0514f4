"""Samples of a stage on disk: each picture lies there once."""

import pytest

from mmcot import MMCoTProcessor
from mmcot.processing import build_prompt
from mmcot.training import load_problems
from mmcot.training.stages.samples import stage_dataset
from mmcot.training.stages.tokenizer import train_tokenizer


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


@pytest.mark.parametrize("order", ["whole", "first", "shuffled"])
def test_a_picture_lies_on_disk_once(cache, tiny_tokenizer, order):
    problems = load_problems("embedded:n=30", "train")
    if order == "first":
        problems = problems.select(range(20))
    if order == "shuffled":
        problems = problems.select([5, 3, 8, 20, 21])
    processor = MMCoTProcessor(None, tiny_tokenizer)
    seen = next(problem for problem in problems if problem["images"])
    picture = seen["images"][0]["bytes"]
    for stage in ("rationale", "answer"):
        samples = stage_dataset(problems, processor, stage)
        assert samples.column_names == ["id", "input_ids", "labels", "length", "target_length", "images"]
        assert samples["id"][:] == problems["id"][:]
        assert [row["images"] for row in samples] == [problem["images"] for problem in problems]
        encoded = processor.encode(seen, stage, rationale=None, target=True)
        row = next(row for row in samples if row["id"] == seen["id"])
        assert row["labels"] == encoded["labels"] and row["target_length"] == len(encoded["labels"])
    holding = [path for path in cache.rglob("*.arrow") if picture in path.read_bytes()]
    assert len(holding) == (1 if order != "shuffled" else 2)  # a selection by indices is written out, once


def test_kept_pictures_are_those_that_are_read_each_time(tiny_tokenizer):
    """Also where a batch has some that are kept, none, or several in one question."""
    import torch

    from mmcot.processing import image_processor_for
    from mmcot.training.stages.samples import StageCollator

    processor = MMCoTProcessor(image_processor_for(32), tiny_tokenizer)
    rows = [dict(row) for row in load_problems("embedded:n=24", "train")]
    shown = [row for row in rows if row["images"]]
    rows[3] = {**rows[3], "id": "two", "images": [*shown[0]["images"], *shown[1]["images"]]}
    kept, fresh = StageCollator(processor, keep_images=True), StageCollator(processor)
    for batch in (rows[:8], rows[4:16], [row for row in rows if not row["images"]][:2], rows[:8]):
        found, expected = kept.image_inputs(batch), fresh.image_inputs(batch)
        assert torch.equal(found["image_attention_mask"], expected["image_attention_mask"])
        torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "limit, changes",
    [
        (512, {"use_caption": True}),
        (512, {"rationale_format": "QCM-LE"}),
        (512, {"answer_format": "CQMG-A"}),
        (512, {"tokenizer": "another"}),
        (100, {"source_truncation": "end"}),  # shorter than the problems are
        (100, {"max_source_length": 120}),
    ],
)
def test_other_settings_make_other_samples(cache, tiny_tokenizer, limit, changes):
    """Never those that the cache of `datasets` holds of the same problems."""
    long = {"context": "one two three " * 20, "caption": "A drawing of it."}
    problems = load_problems("embedded:n=6,skills=flower", "train").map(lambda _: long)
    settings = {"tokenizer": tiny_tokenizer, "max_source_length": limit}
    if "tokenizer" in changes:
        changes = {"tokenizer": train_tokenizer(["Which flower is it?", "The answer is (A)."])}
    before, after = MMCoTProcessor(None, **settings), MMCoTProcessor(None, **{**settings, **changes})
    first = stage_dataset(problems, before, "answer")["input_ids"][:]
    found = stage_dataset(problems, after, "answer")["input_ids"][:]
    for problem, ids in zip(problems, found, strict=True):
        rationale = build_prompt(problem, after.rationale_format)[1]
        assert ids == after.encode(problem, "answer", rationale=rationale)["input_ids"]
    assert found != first and stage_dataset(problems, before, "answer")["input_ids"][:] == first


def test_other_rationales_and_limits_make_other_samples(cache, tiny_tokenizer):
    problems, processor = load_problems("embedded:n=4,skills=flower", "train"), MMCoTProcessor(None, tiny_tokenizer)
    texts = [dict.fromkeys(problems["id"], text) for text in ("It is one.", "It is another.")]
    kinds = ["target", "lecture_and_solution", *texts]
    found = [stage_dataset(problems, processor, "answer", rationales=kind)["input_ids"][:] for kind in kinds]
    assert all(
        one != other for i, one in enumerate(found) for other in found[:i] if kinds[i] != "lecture_and_solution"
    )
    for limit in (5, 7):
        labels = stage_dataset(problems, processor, "rationale", max_target_length=limit)["labels"][:]
        assert [len(row) for row in labels] == [limit] * 4
