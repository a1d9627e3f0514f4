"""How a stage of a run begins: from the seed, on the samples that the recipe says."""

import pytest
import torch

from mmcot.training.stages import fit
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.stages.run import Run

SIZES = "{d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}"
TINY = [f"model={SIZES}", "vision=null", "features=null", "keep_images=false", "data=embedded:n=8,val=3,test=2"]
TINY += ["use_cpu=true", "eval_strategy=no", "load_best_model_at_end=false"]


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A function from a stage and overrides to what its training begins with: network and samples."""

    def train_stage(recipe, stage, folder, model, processor, train, val, *args, **kwargs):
        seen.update(model=model, processor=processor, train=train, val=val)

    seen: dict = {}
    monkeypatch.setattr(fit, "train_stage", train_stage)
    monkeypatch.setattr(Run, "rationales", lambda self, split: dict.fromkeys(self.problems[split]["id"], "Written."))

    def begin(stage, *overrides):
        Run(load_recipe("embedded", [*TINY, f"output_dir={tmp_path}", *overrides])).train(stage)
        return dict(seen)

    return begin


def test_fresh_weights_are_the_seeds(begun):
    weights = [begun("rationale", f"seed={seed}")["model"].shared.weight for seed in (1, 2, 1)]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


def test_the_answer_stage_learns_from_gold_rationales_and_is_validated_on_written_ones(begun):
    """On what it will read in use: else the checkpoint is kept that reads gold ones best."""
    found = begun("answer")
    texts = {
        name: found["processor"].tokenizer.batch_decode(found[name]["input_ids"][:], skip_special_tokens=True)
        for name in ("train", "val")
    }
    assert all(text.endswith("Written. Answer:") for text in texts["val"]) and len(texts["val"]) == 3
    assert all("Solution: " in text and "Written." not in text for text in texts["train"])
