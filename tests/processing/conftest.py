"""The processor of the example problems, and the one with T5's vocabulary."""

import json

import pytest
from example_problems import PROBLEM
from transformers import PreTrainedTokenizerFast

from mmcot.processing import MMCoTProcessor, build_prompt, image_processor_for
from mmcot.training.stages.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([part for name in ("QCM-LE", "QCMG-A") for part in build_prompt(PROBLEM, name)])


@pytest.fixture(scope="module")
def processor(tokenizer):
    return MMCoTProcessor(image_processor_for(16), tokenizer)


@pytest.fixture(scope="module")
def real(shared_dir):
    """(processor with T5's vocabulary, real problems)"""
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(shared_dir / "data/t5_tokenizer.json"), **names)
    problems = json.loads((shared_dir / "data/scienceqa/problems.json").read_text())
    return MMCoTProcessor(None, tokenizer), [{**problem, "id": name} for name, problem in problems.items()]
