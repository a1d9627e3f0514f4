"""Samples of a stage on disk: each picture lies there once."""

import pytest

from mmcot import MMCoTProcessor
from mmcot.training import load_problems
from mmcot.training.stages.samples import stage_dataset


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
