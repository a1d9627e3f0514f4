"""What a configuration keeps, refuses and writes."""

import pytest
from tiny_models import T5, tiny_config, vision_config
from transformers import AutoConfig, T5Config, ViTConfig

from mmcot import MMCoTConfig, MMCoTTwoStageConfig


def test_a_t5_configuration_is_the_text_only_network(tmp_path):
    T5Config(**T5, feed_forward_proj="gated-gelu").save_pretrained(tmp_path)
    config = MMCoTConfig.from_pretrained(tmp_path)
    assert (config.d_model, config.is_gated_act, config.has_fusion) == (32, True, False)
    assert config.decoder_start_token_id == 0


def test_every_field_survives_saving(tmp_path):
    fields = {
        "vision_config": vision_config(),
        "vision_feature": "pooler_output",
        "image_feature_size": 16,
        "fusion_num_heads": 2,
        "fusion_gate": "none",
        "freeze_vision": False,
        "stage": "answer",
        "prompt_format": "QCMG-A",
        "use_caption": True,
        "loss_on_padding": True,
        "max_source_length": 300,
    }
    tiny_config(**fields).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, MMCoTConfig) and isinstance(config.vision_config, ViTConfig)
    assert config.vision_config.to_dict() == fields.pop("vision_config").to_dict()
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(("tied", "scaled"), [(True, True), (False, False), (None, True)])
def test_a_head_of_its_own_is_remembered(tmp_path, tied, scaled):
    """T5Config forgets `tie_word_embeddings=False`, which FLAN-T5's head depends on."""
    config = MMCoTConfig(**T5, **({} if tied is None else {"tie_word_embeddings": tied}))
    for _ in range(2):
        assert config.tie_word_embeddings is (tied is not False)
        assert config.scale_decoder_outputs is scaled
        config.save_pretrained(tmp_path)
        config = MMCoTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vision_feature", "logits"),
        ("fusion_gate", "relu"),
        ("stage", "third"),
        ("image_feature_size", 0),
        ("fusion_num_heads", 5),
        ("vision_config", {"hidden_size": 16}),
    ],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        tiny_config(**{field: value})


def test_two_stages_keep_three_configurations(tmp_path):
    stages = {
        "rationale_config": tiny_config(stage="rationale"),
        "answer_config": tiny_config(stage="answer").to_dict(),
    }
    ids = {"answer_suffix_ids": [5, 1], "option_prefix_ids": [6, 7], "option_letter_ids": list(range(8, 34))}
    MMCoTTwoStageConfig(**stages, vision_config=vision_config(), **ids).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, MMCoTTwoStageConfig) and isinstance(config.vision_config, ViTConfig)
    assert (config.rationale_config.stage, config.answer_config.stage) == ("rationale", "answer")
    assert config.answer_config.d_model == 32
    assert {name: getattr(config, name) for name in ids} == ids


def test_shared_stages_have_one_configuration(tmp_path):
    MMCoTTwoStageConfig(rationale_config=tiny_config(), share_stages=True).save_pretrained(tmp_path)
    config = MMCoTTwoStageConfig.from_pretrained(tmp_path)
    assert config.answer_config is config.rationale_config and config.rationale_config.d_model == 32
