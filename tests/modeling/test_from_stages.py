"""Joining two stages into one model, and taking one out again."""

import copy

import pytest
import torch
from two_stage_models import VISION, make_stage

from mmcot import MMCoTModel, MMCoTProcessor
from mmcot.answers_mmcot import prepare_generation_config
from mmcot.errors_mmcot import ModelError
from mmcot.processing import build_prompt
from mmcot.training.data.embedded.generate import generate_problems


@pytest.fixture(scope="module")
def problems():
    return list(generate_problems(12, seed=5))


@pytest.fixture(scope="module")
def model(processor):
    return MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)


def changed_backbone(stage):
    with torch.no_grad():
        next(stage.encoder.vision.parameters()).add_(1.0)


ONE_MORE_LAYER = {**VISION, "num_hidden_layers": 2}
DIFFERENT = {
    "vocab_size": ({"vocab_size": 2000}, "vocab_size"),
    "limit": ({"max_source_length": 100}, "max_source_length and 200 and 100"),
    "truncation": ({"source_truncation": "end"}, "source_truncation"),
    "end token": ({"eos_token_id": [1, 2]}, "eos_token_id"),
    "no features": ({"vision_config": None}, "image_feature_size and 24 and None"),
    "one more layer": ({"vision_config": ONE_MORE_LAYER}, "two different vision backbones"),
    "one layer less": ({"vision_config": {**VISION, "num_hidden_layers": 0}}, "two different vision backbones"),
    "other architecture": ({"vision_config": {**VISION, "model_type": "dinov2"}}, "two different vision backbones"),
    "other feature": ({"vision_feature": "pooler_output"}, "vision_feature"),
}


@pytest.mark.parametrize(("settings", "message"), DIFFERENT.values(), ids=DIFFERENT)
@pytest.mark.parametrize("order", [1, -1])
def test_stages_that_do_not_fit_are_refused_and_left_as_they_were(processor, settings, message, order):
    """Something of one of them would be lost without a word."""
    stages = [make_stage(processor, 0), make_stage(processor, 1, **settings)]
    before = [(stage.config.to_dict(), stage.encoder.vision, stage.generation_config) for stage in stages]
    with pytest.raises(ModelError) as error:
        MMCoTModel.from_stages(*stages[::order], processor)
    assert all(part in str(error.value) for part in message.split(" and "))
    for stage, (config, vision, options) in zip(stages, before, strict=True):
        assert stage.config.to_dict() == config and stage.encoder.vision is vision
        assert stage.generation_config is options


def test_backbones_of_other_weights_are_refused(processor):
    stages = [make_stage(processor, seed) for seed in (0, 1)]
    changed_backbone(stages[1])
    with pytest.raises(ModelError, match="two different vision backbones"):
        MMCoTModel.from_stages(*stages, processor)
    assert all(stage.encoder.vision is not None for stage in stages)


def test_a_processor_that_does_not_fit_is_refused(processor):
    stages = [make_stage(processor, seed) for seed in (0, 1)]
    longer = MMCoTProcessor(processor.image_processor, processor.tokenizer, max_source_length=300)
    with pytest.raises(ModelError, match="max_source_length is 200, the processor's is 300"):
        MMCoTModel.from_stages(*stages, longer)
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_tokens(["×"])
    with pytest.raises(ModelError, match="resize_token_embeddings"):
        MMCoTModel.from_stages(*stages, MMCoTProcessor(None, tokenizer, max_source_length=200))
    assert all(stage.encoder.vision is not None for stage in stages)


@pytest.mark.parametrize("seeing", [0, 1])
def test_a_backbone_of_one_stage_serves_both(processor, problems, seeing):
    """The other one was trained on features that were computed before."""
    both = MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)
    stages = [make_stage(processor, 0), make_stage(processor, 1)]
    other = stages[1 - seeing]
    other.encoder.vision = other.encoder.config.vision_config = other.config.vision_config = None
    stages[seeing].config.freeze_vision = False
    other.config.vision_feature = "pooler_output"  # of the backbone that it doesn't have
    model = MMCoTModel.from_stages(*stages, processor)
    assert model.config.freeze_vision is False and model.config.vision_config is not None
    for config in (model.config, model.stage_alone("rationale").config, model.stage_alone("answer").config):
        assert config.vision_feature == "last_hidden_state" and config.freeze_vision is False
    expected, output = (each.generate(**processor(problems), max_new_tokens=8) for each in (both, model))
    assert torch.equal(output.rationale_ids, expected.rationale_ids)
    assert torch.equal(output.option_log_probs, expected.option_log_probs)


def test_one_network_given_twice_is_shared(processor):
    stage = make_stage(processor, 0)
    model = MMCoTModel.from_stages(stage, stage, processor)
    assert model.config.share_stages and model.answer is model.rationale
    assert not any(name.startswith("answer.") for name in model.state_dict())


def test_special_tokens_are_the_stages(processor, problems):
    stages = [make_stage(processor, seed, decoder_start_token_id=3, eos_token_id=[1, 416]) for seed in (0, 1)]
    stages[0].generation_config.num_beams = 2
    model = MMCoTModel.from_stages(*stages, processor)
    assert (model.config.decoder_start_token_id, model.config.eos_token_id) == (3, [1, 416])
    config, _ = prepare_generation_config(model)
    assert (config.decoder_start_token_id, config.eos_token_id, config.num_beams) == (3, [1, 416], 2)
    assert model.generate(**processor(problems), max_new_tokens=3).rationale_ids[:, 0].eq(3).all()


@pytest.mark.parametrize("stage", ["rationale", "answer"])
def test_a_stage_alone_is_that_stage(model, processor, problems, stage):
    """By its outputs, and with its own weights."""
    gold = [build_prompt(problem, "QCM-E")[1] for problem in problems] if stage == "answer" else None
    inputs = processor(problems, stage=stage, rationales=gold)
    alone = model.stage_alone(stage)
    labels = inputs["input_ids"][:, :5].contiguous()
    with torch.no_grad():
        expected = model(**inputs, labels=labels, stage=stage)
        other = model(**inputs, labels=labels, stage={"rationale": "answer", "answer": "rationale"}[stage])
        given = alone(**inputs, labels=labels)
    assert torch.equal(given.logits, expected.logits) and not torch.allclose(given.logits, other.logits)
    assert alone.shared.weight is model.get_stage(stage).shared.weight and alone.encoder.vision is model.vision
    assert not alone.training and not alone.encoder.training
    assert model.get_stage(stage).encoder.vision is None, "the model itself is as it was"
    assert model.get_stage(stage).config.vision_config is None


def test_options_of_a_stage_alone_are_its_own(processor):
    model = MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)
    model.generation_config.update(num_beams=4, max_new_tokens=99)
    assert model.stage_alone("rationale").generation_config.num_beams == 4
    assert model.stage_alone("answer").generation_config.num_beams in (None, 1), "the rationale's options"


def test_the_feature_of_the_stages_backbone_is_used(processor, problems):
    """A pooled vector, where the stages were trained on it."""
    stages = [make_stage(processor, seed, vision_feature="pooler_output") for seed in (0, 1)]
    pixels = processor(problems)["pixel_values"].flatten(0, -4)
    expected = stages[0].get_image_features(pixels).pooler_output
    model = MMCoTModel.from_stages(*stages, processor)
    for each in (model, model.stage_alone("answer")):
        features = each.get_image_features(pixels).pooler_output
        assert features.shape[1] == 1 and torch.equal(features, expected)
