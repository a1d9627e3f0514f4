"""Fixtures shared by all tests. Nothing here needs a network."""

import os
import tempfile
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several at once: one thread each, before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# a processor that multiplies bf16 itself would take it for `auto`; what tests compare is exact in float32
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")

# `datasets` reads it when it is imported; tables of tests don't belong in the home folder
_tables = tempfile.TemporaryDirectory(prefix="mmcot-tests-")
os.environ["HF_DATASETS_CACHE"] = _tables.name

from hub_server import hub  # noqa: E402, F401 - a fixture: the local Hub server


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real ScienceQA problems and the predictions; tests that need it skip without it."""
    folder = Path(os.environ.get("MMCOT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data" / "scienceqa" / "problems.json").is_file():
        pytest.skip("the shared real data is not here (set MMCOT_SHARED to its folder)")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """What the original project's code gave: checkpoints with inputs and outputs, prompts (see its README)."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A small T5-style tokenizer, trained on the embedded problems' text."""
    from mmcot.processing import build_prompt
    from mmcot.training.data.embedded.generate import generate_problems
    from mmcot.training.stages.tokenizer import train_tokenizer

    texts = [part for problem in generate_problems(200, seed=0) for part in build_prompt(problem, "QCM-LE")]
    return train_tokenizer([*texts, "Answer: The answer is (A)."])


@pytest.fixture(scope="session")
def two_stage_repository(tiny_tokenizer, tmp_path_factory) -> Path:
    """A saved two-stage repository with small random networks and a small vision backbone."""
    from two_stage_models import make_stage

    from mmcot import MMCoTModel, MMCoTProcessor
    from mmcot.processing import image_processor_for

    processor = MMCoTProcessor(image_processor_for(64), tiny_tokenizer, max_source_length=200)
    model = MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)
    model.generation_config.max_new_tokens = 12
    folder = tmp_path_factory.mktemp("two_stage") / "repository"
    model.save_pretrained(folder)
    return folder
