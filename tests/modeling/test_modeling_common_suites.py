"""transformers' own common test suites, run on the one-stage model with images fed.

transformers doesn't install them. Point MMCOT_TRANSFORMERS_TESTS at a source tree of the installed version (the folder
that holds `tests/`) to run them; without it they are skipped.
"""

import os
import sys
import unittest

import pytest

SOURCE_TREE = os.environ.get("MMCOT_TRANSFORMERS_TESTS")
if not SOURCE_TREE:
    pytest.skip("MMCOT_TRANSFORMERS_TESTS names no transformers source tree", allow_module_level=True)
sys.path.insert(0, SOURCE_TREE)
# A source tree's `tests` package, not this repository's test folder of the same name.
for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
    del sys.modules[name]

from tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask  # noqa: E402
from transformers import ViTConfig  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

from mmcot import MMCoTConfig, MMCoTForConditionalGeneration  # noqa: E402

# The suites know by name which classes take labels.
MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES[MMCoTConfig.model_type] = MMCoTForConditionalGeneration.__name__


class MMCoTModelTester:
    """Tiny model and inputs, with image features computed outside."""

    batch_size = 3
    seq_length = encoder_seq_length = decoder_seq_length = 7
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    vocab_size = 99
    num_patches = 5
    image_feature_size = 12
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def image_fields(self) -> dict:
        return {"image_feature_size": self.image_feature_size}

    def image_inputs(self) -> dict:
        mask = random_attention_mask([self.batch_size, self.num_patches]).bool()
        mask[0] = False  # a row without an image
        features = floats_tensor([self.batch_size, self.num_patches, self.image_feature_size])
        return {"image_features": features, "image_attention_mask": mask}

    def get_config(self) -> MMCoTConfig:
        return MMCoTConfig(
            vocab_size=self.vocab_size,
            d_model=self.hidden_size,
            d_ff=37,
            d_kv=self.hidden_size // self.num_attention_heads,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            relative_attention_num_buckets=8,
            initializer_factor=0.002,
            **self.image_fields(),
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(2)
        input_ids[:, -1] = 1  # the end of the sequence
        inputs = {
            "input_ids": input_ids,
            "attention_mask": random_attention_mask([self.batch_size, self.seq_length]),
            "decoder_input_ids": ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(2),
            "decoder_attention_mask": random_attention_mask([self.batch_size, self.seq_length]),
        }
        return self.get_config(), inputs | self.image_inputs()


class MMCoTPixelsModelTester(MMCoTModelTester):
    """With a vision backbone inside and one image a row."""

    image_size = 8

    def image_fields(self) -> dict:
        vision_config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=self.image_size,
            patch_size=4,
        )
        return {"vision_config": vision_config}

    def image_inputs(self) -> dict:
        return {"pixel_values": floats_tensor([self.batch_size, 3, self.image_size, self.image_size])}


class MMCoTTextModelTester(MMCoTModelTester):
    """The text-only baseline: no fusion, no images."""

    def image_fields(self) -> dict:
        return {}

    def image_inputs(self) -> dict:
        return {}


class _CommonSuites(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (MMCoTForConditionalGeneration,)
    is_encoder_decoder = True
    test_can_init_all_missing_weights_before_2023 = True  # the suite reads a model's age from a copyright line
    suite_tester: type

    def setUp(self):
        self.model_tester = self.suite_tester(self)
        self.config_tester = ConfigTester(self, config_class=MMCoTConfig, d_model=32)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("as in T5's own tests: T5ForConditionalGeneration holds its stacks itself, there is no base model")
    def test_model_base_model_prefix(self):
        pass


class MMCoTCommonTest(_CommonSuites, unittest.TestCase):
    suite_tester = MMCoTModelTester


class MMCoTPixelsCommonTest(_CommonSuites, unittest.TestCase):
    suite_tester = MMCoTPixelsModelTester


class MMCoTTextCommonTest(_CommonSuites, unittest.TestCase):
    suite_tester = MMCoTTextModelTester
