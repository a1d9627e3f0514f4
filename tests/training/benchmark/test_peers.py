"""`mmcot benchmark peers`: every arm answers the same questions with the same network; what is missing is said."""

import argparse
import sys

import pytest
import torch

from mmcot.training.benchmark import peers
from mmcot.training.benchmark.generate import two_stage_repository
from mmcot.training.benchmark.inputs import Setting
from mmcot.training.benchmark.table import describe
from mmcot.training.common import UserError
from mmcot.training.inference.predict import load_pipeline

OPTIONS = argparse.Namespace(questions=5, max_new_tokens=4, slots=2, repeats=1, deadline=None)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    setting = Setting(OPTIONS.questions, 1, folder, "detr")
    repository = two_stage_repository(folder / "repository", "tiny", setting, image_feature_size=None)
    model = load_pipeline(repository, "cpu").model
    with torch.no_grad():  # larger weights make rationales that differ
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(2.0)
    work = peers._work(model, setting, OPTIONS)
    networks = {stage: peers.plain_t5(model.get_stage(stage)) for stage in peers.STAGES}
    for network in networks.values():  # as the benchmark's model: no row ends by itself
        network.generation_config.eos_token_id = -1
    return model, work, networks, setting.processor.tokenizer, folder


@pytest.fixture(scope="module")
def expected(setting):
    _, work, networks, *_ = setting
    found = peers._transformers(networks)(work)
    assert len({tuple(row) for row in found}) > 2 and all(len(row) == 4 for row in found)
    return found


def test_ours_writes_what_transformers_writes(setting, expected):
    model, work, *_ = setting
    assert peers._ours(model, "float32")(work) == expected
    assert len(peers._ours(model, "int8")(work)) == len(expected)


def test_ctranslate2_writes_what_transformers_writes(setting, expected):
    pytest.importorskip("ctranslate2")
    _, work, networks, tokenizer, folder = setting
    ways = peers._ctranslate2(networks, tokenizer, folder, 1, work.tokens)
    known = {token: id_ for id_, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))}
    found = ways["CTranslate2 float32"](work)
    same = [
        known.get(token, own) == own
        for row, ids in zip(found, expected, strict=True)
        for token, own in zip(row, ids, strict=True)
    ]
    assert all(same) and len(ways["CTranslate2 int8"](work)) == len(expected)


def test_onnxruntime_writes_what_transformers_writes(setting, expected):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    _, work, networks, tokenizer, folder = setting
    ways = peers._onnxruntime(networks, tokenizer, folder, 1, work.tokens)
    assert ways["onnxruntime float32"](work) == expected
    assert len(ways["onnxruntime int8"](work)) == len(expected)


def test_what_is_not_installed_is_left_out_with_a_word(monkeypatch):
    for name in ("ctranslate2", "onnxruntime", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    found = peers.benchmark_peers("tiny", torch.device("cpu"), OPTIONS)
    assert {"transformers float32", "ours float32", "ours int8"} <= set(found["arms"])
    assert "pip install 'mmcot[peers]'" in found["failed"]["CTranslate2"]
    assert "not installed" in found["failed"]["onnxruntime"]
    place = {"device_name": "a processor", "threads": 1, "torch": "2"}
    text = describe({"environment": place, "shapes": {"tiny": {"peers": found}}})
    assert "ours over transformers float32" in text and "one question alone, ours int8" in text
    with pytest.raises(UserError, match="--device cpu"):
        peers.benchmark_peers("tiny", torch.device("cuda"), OPTIONS)
