"""A two-stage model with random weights, its processor and some problems; a module may have its own in their place."""

import pytest
from two_stage_models import make_stage

from mmcot import MMCoTModel, MMCoTProcessor
from mmcot.processing import image_processor_for
from mmcot.training.data.embedded.generate import generate_problems


@pytest.fixture(scope="module")
def processor(tiny_tokenizer):
    return MMCoTProcessor(image_processor_for(64), tiny_tokenizer, max_source_length=200)


@pytest.fixture(scope="module")
def problems():
    return list(generate_problems(8, seed=5))


@pytest.fixture(scope="module")
def inputs(processor, problems):
    return processor(problems)


@pytest.fixture
def model(processor):
    return MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)
