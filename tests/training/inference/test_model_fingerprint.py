"""A model's fingerprint changes with any weight and any setting that its shapes don't tell."""

import pytest
import torch
from transformers import PreTrainedConfig

from mmcot.training.inference.fingerprint import SAMPLED, model_fingerprint


class Model(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.config = PreTrainedConfig(**settings)
        self.weight = torch.nn.Parameter(torch.arange(3.0 * SAMPLED))


def test_any_weight_counts_also_those_between_the_sampled_ones():
    before = model_fingerprint(Model())
    for place in (0, 1, 2, 3 * SAMPLED - 1):
        model = Model()
        with torch.no_grad():
            model.weight[place] += 1
        assert model_fingerprint(model) != before
    assert model_fingerprint(Model()) == before
    half = Model().half()
    assert model_fingerprint(half) != before


@pytest.mark.parametrize(
    "settings",
    [{"num_heads": 2}, {"feed_forward_proj": "relu"}, {"layer_norm_epsilon": 1e-3}, {"fusion_num_heads": 2}]
    + [{"relative_attention_max_distance": 9}, {"fusion_gate": "tanh"}, {"vision_feature": "pooler_output"}]
    + [{"max_source_length": 9}, {"source_truncation": "end"}],
)
def test_settings_of_the_network_count(settings):
    assert model_fingerprint(Model(**settings)) != model_fingerprint(Model())
