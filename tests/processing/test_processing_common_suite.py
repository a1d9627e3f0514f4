"""transformers' own common suite for processors, run on MMCoTProcessor.

transformers doesn't install it. Point MMCOT_TRANSFORMERS_TESTS at a source tree of the installed version (the folder
that holds `tests/`) to run it; without it, it is skipped.
"""

import os
import sys
import types
import unittest

import pytest
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from mmcot.processing import MMCoTProcessor, image_processor_for
from mmcot.training.stages.tokenizer import train_tokenizer

SOURCE_TREE = os.environ.get("MMCOT_TRANSFORMERS_TESTS")
if not SOURCE_TREE:
    pytest.skip("MMCOT_TRANSFORMERS_TESTS names no transformers source tree", allow_module_level=True)
sys.path.insert(0, SOURCE_TREE)
# A source tree's `tests` package, not this repository's test folder of the same name.
for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
    del sys.modules[name]
if "fetch_hub_objects_for_ci" not in sys.modules and not os.path.isdir(os.path.join(SOURCE_TREE, "utils")):
    # The source distribution lacks this helper, which maps URLs of test files to local copies.
    helper = types.ModuleType("fetch_hub_objects_for_ci")
    helper.url_to_local_path = lambda url, *args, **kwargs: url
    sys.modules[helper.__name__] = helper

from tests.test_processing_common import ProcessorTesterMixin  # noqa: E402


class MMCoTProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MMCoTProcessor

    @classmethod
    def _setup_image_processor(cls):
        return image_processor_for(32)

    @classmethod
    def _setup_tokenizer(cls):
        texts = ["lower newer upper older longer string Question: Context: Options: (A) (B) Answer: Solution:"] * 4
        return train_tokenizer(texts)

    @staticmethod
    def prepare_processor_dict():
        return {"rationale_format": None, "answer_format": "QCM-A", "max_source_length": 64}


class PaddingImageProcessorTest(MMCoTProcessorTest):
    """With a pixel mask beside the pixel values."""

    @classmethod
    def _setup_image_processor(cls):
        return image_processor_for("detr")


class OtherPartsTest(MMCoTProcessorTest):
    """With an image processor of transformers and a tokenizer that knows segment ids and no end token."""

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    @classmethod
    def _setup_tokenizer(cls):
        backend = super()._setup_tokenizer().backend_tokenizer
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
