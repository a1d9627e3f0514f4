"""Copies of weights that a CPU multiplies faster: the same sums, made where they are worth it."""

import pytest
import torch
from tiny_models import image_inputs, text_inputs, tiny_model

from mmcot.training.inference import matrices
from mmcot.training.inference.engine import StageWeights
from mmcot.training.inference.matrices import PackedMatrix, multiply, packs

needs_packing = pytest.mark.skipif(
    not packs(tiny_model(), torch.float32, True), reason="oneDNN packs no weights on this processor"
)

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN packs no bfloat16 on this processor"
)


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_packed_products_are_the_same_for_one_row_and_for_many(dtype):
    torch.manual_seed(0)
    weight, states = torch.randn(40, 24).to(dtype), torch.randn(300, 24).to(dtype)
    matrix = PackedMatrix(weight)
    expected = (states.double() @ weight.double().T).float()
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for state in (states, states[:1], states[:5], states.view(3, 100, 24), states.T.contiguous().T):
        found = multiply(state, matrix)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected[: len(found.flatten(0, -2))].view(found.shape), **near)


@needs_packing
@pytest.mark.parametrize("fields", [{}, {"feed_forward_proj": "gated-gelu", "d_kv": 5}])
def test_a_stage_reads_packed_weights_as_its_own(fields):
    model, inputs = tiny_model(**fields), {**text_inputs(length=20), **image_inputs()}
    own = inputs["attention_mask"].bool()
    found = {}
    for packed in (False, True):
        weights = StageWeights(model, torch.float32, packed)
        assert (weights.decoder.packed, weights.encoder.packed) == (packed, packed)
        ids, mask, *images = (inputs[name] for name in inputs)
        found[packed] = weights.encode(ids, mask, dict(zip(list(inputs)[2:], images, strict=True)))[own]
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-5)


@needs_packing
def test_where_copies_are_made(monkeypatch):
    model = tiny_model()
    assert not packs(model, torch.float32)  # the model's own, which may change with it
    assert packs(model, torch.float32, True) and not packs(model, torch.int8, True)
    monkeypatch.setattr(matrices, "has_native_bf16", lambda device: True)
    assert packs(model, torch.bfloat16) and packs(model, torch.bfloat16, False)  # a copy is made anyway
    assert not packs(model.to(torch.bfloat16), torch.bfloat16)
    monkeypatch.setattr(matrices, "has_native_bf16", lambda device: False)
    assert not packs(tiny_model(), torch.bfloat16)
    monkeypatch.setattr(matrices, "LARGEST_PACKED", 1000)
    assert not packs(tiny_model(), torch.float32, True)  # it would not fit beside the network


@needs_packing
def test_a_network_that_changes_between_two_calls_answers_by_its_new_weights():
    from mmcot.training.inference.answering import Answering

    model = tiny_model().eval()
    answering = Answering(model)
    before = answering.weights(packed=True).decoder.logits(torch.ones(1, model.config.d_model))
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    after = answering.weights(packed=True).decoder.logits(torch.ones(1, model.config.d_model))
    torch.testing.assert_close(after, 2 * before)


@needs_packing
@needs_bf16
def test_a_model_that_has_answered_by_packed_weights_can_be_copied_and_saved(monkeypatch, tmp_path):
    import copy

    from mmcot.training.inference.answering import use_answering

    monkeypatch.setattr(matrices, "has_native_bf16", lambda device: True)
    model = tiny_model().eval()
    inputs = {**text_inputs(length=9), **image_inputs()}
    answering = use_answering(model, "bfloat16")
    assert answering.weights().decoder.packed
    before = model.generate(**inputs, max_new_tokens=4)
    assert torch.equal(copy.deepcopy(model).generate(**inputs, max_new_tokens=4), before)
    torch.save(model, tmp_path / "whole.pt")
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), before)


def test_few_questions_pack_no_weights(two_stage_repository, tmp_path, monkeypatch):
    import importlib

    from mmcot.training import load_problems, predict
    from mmcot.training.inference.answering import Answering

    asked, weights = [], Answering.weights
    monkeypatch.setattr(Answering, "weights", lambda self, packed=None: asked.append(packed) or weights(self, packed))
    monkeypatch.setattr(importlib.import_module("mmcot.training.inference.predict"), "WORTH_PACKING", 3)
    for count in (2, 3):
        problems = load_problems("embedded:n=4", "test").select(range(count))
        options = {"dtype": "float32", "device": "cpu", "max_new_tokens": 2}
        predict(two_stage_repository, problems, tmp_path / f"{count}.jsonl", **options)
    assert asked == [False, True]
