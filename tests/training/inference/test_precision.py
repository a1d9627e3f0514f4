"""Answers in bfloat16 and int8: near those in float32, the same by every route, and the model stays as it is."""

import copy

import pytest
import torch
from tiny_models import image_inputs, text_inputs, tiny_model

from mmcot import MMCoTModel, MMCoTProcessor
from mmcot.training import load_pipeline, load_problems, predict
from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.evaluation.predictions import read_header
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.inference import precision
from mmcot.training.inference.encoder_weights import EncoderWeights, is_plain_encoder
from mmcot.training.inference.matrices import INT8_ENGINES, Int8Matrix

NEAR = {"bfloat16": 0.3, "int8": 0.3}  # of log-probabilities of small random networks


@pytest.fixture(scope="module")
def problems():
    return load_problems("embedded:n=6", "test")


def test_auto_is_what_the_processor_multiplies_itself(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for flags, expected in (({"avx2", "avx512f"}, "float32"), ({"amx_bf16"}, "bfloat16"), ({"bf16"}, "bfloat16")):
        monkeypatch.setattr(precision, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert precision.answering_dtype("auto", "cpu") == getattr(torch, expected)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core")  # oneDNN is told to do without
    assert precision.answering_dtype("auto", "cpu") == torch.float32
    with pytest.raises(UserError, match="int8 is for CPUs"):
        precision.answering_dtype("int8", "cuda")
    with pytest.raises(UserError, match="float16"):
        precision.answering_dtype("float16", "cpu")


@pytest.mark.parametrize("engine", INT8_ENGINES)
def test_int8_products_are_near_and_each_row_stands_alone(engine):
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"PyTorch has no {engine} here")
    torch.manual_seed(0)
    weight, bias, state = torch.randn(24, 64) * torch.logspace(-2, 1, 24)[:, None], torch.randn(24), torch.randn(5, 64)
    state[3] *= 1000  # beside a row of another scale
    matrix = Int8Matrix(weight, bias, engine)
    found, expected = matrix(state), torch.nn.functional.linear(state, weight, bias)
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.04
    if engine != "qnnpack":
        torch.testing.assert_close(torch.cat([matrix(row[None]) for row in state]), found, rtol=1e-5, atol=1e-5)
        positive = torch.nn.functional.linear(state.relu(), weight)
        assert (
            Int8Matrix(weight, engine=engine)(state.relu(), nonnegative=True) - positive
        ).norm() < 0.03 * positive.norm()
    assert not Int8Matrix(weight, engine=engine)(torch.zeros(2, 64)).any()


def test_weights_that_are_quantised_already_are_read():
    from torch.testing._internal.two_tensor import TwoTensor

    class Quantised(TwoTensor):
        def dequantize(self):
            return self.a * self.b

    weight, state = torch.randn(8, 16), torch.randn(3, 16)
    found = Int8Matrix(Quantised(weight, torch.full((8, 16), 2.0)))(state)
    assert torch.equal(found, Int8Matrix(2 * weight)(state))


@pytest.mark.parametrize("fields", [{}, {"feed_forward_proj": "gated-gelu", "fusion_gate": None}, {"d_kv": 5}])
def test_the_encoder_is_the_networks(fields):
    fields = {name: value for name, value in fields.items() if value is not None}
    model = tiny_model(**fields)
    assert is_plain_encoder(model.get_encoder())
    for images in ({}, image_inputs(), {"image_features": image_inputs()["image_features"]}):
        inputs = text_inputs(length=40)
        expected = model.get_encoder()(**inputs, **images)[0]
        found = EncoderWeights(model)(inputs["input_ids"], inputs["attention_mask"], **images)
        own = inputs["attention_mask"].bool()
        torch.testing.assert_close(found[own], expected[own], atol=1e-5, rtol=1e-5)
        for dtype, near in ((torch.bfloat16, 0.03), (torch.int8, 0.06)):
            low = EncoderWeights(model, dtype)(inputs["input_ids"], inputs["attention_mask"], **images)
            assert low.dtype == torch.float32
            assert 0 < (low - expected)[own].norm() < near * expected[own].norm()


def test_encoders_that_are_not_plain_read_by_their_own_passes():
    model = tiny_model()
    assert not is_plain_encoder(copy.deepcopy(model).train().get_encoder())
    model.encoder.fusion.q_proj.register_forward_hook(lambda *args: None)
    assert not is_plain_encoder(model.get_encoder())
    peft = pytest.importorskip("peft")
    model = tiny_model()
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q"]), model)
    assert not is_plain_encoder(model.get_encoder())


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"mode": "generate"}], ids=["engine", "beams", "generate"])
def test_predictions_are_near_those_in_float32(two_stage_repository, problems, tmp_path, dtype, options):
    options = {"device": "cpu", "max_new_tokens": 2, **options}  # so few that rationales are the same
    whole = read_predictions(
        predict(two_stage_repository, problems, tmp_path / "32.jsonl", dtype="float32", **options)
    )
    path = predict(two_stage_repository, problems, tmp_path / "low.jsonl", dtype=dtype, **options)
    assert read_header(path)["dtype"] == dtype and read_header(tmp_path / "32.jsonl")["dtype"] == "float32"
    same = [id_ for id_, record in read_predictions(path).items() if record["rationale"] == whole[id_]["rationale"]]
    assert len(same) >= 4
    for id_ in same:
        own, other = read_predictions(path)[id_]["scores"], whole[id_]["scores"]
        assert own == pytest.approx(other, abs=NEAR[dtype]) and own != other


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_model_in_memory_stays_as_it_is(two_stage_repository, problems, tmp_path, dtype):
    model = MMCoTModel.from_pretrained(two_stage_repository)
    model.processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    paths = [
        predict(given, problems, tmp_path / name, device="cpu", dtype=dtype, max_new_tokens=4)
        for name, given in (("memory.jsonl", model), ("folder.jsonl", two_stage_repository))
    ]
    one, other = map(read_predictions, paths)
    assert one == other
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_command_takes_a_dtype(two_stage_repository, tmp_path, capsys):
    command = ["predict", str(two_stage_repository), "embedded:n=3", "--split", "test", "--device", "cpu"]
    command += ["--max-new-tokens", "2", "--output", str(tmp_path / "p.jsonl")]
    assert main([*command, "--dtype", "int8"]) == 0
    assert read_header(tmp_path / "p.jsonl")["dtype"] == "int8"
    with pytest.raises(SystemExit):
        main([*command, "--dtype", "float8"])


def in_memory(two_stage_repository, dtype=torch.float32):
    model = MMCoTModel.from_pretrained(two_stage_repository, dtype=dtype)
    model.processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    return model


def test_float16_weights_compute_in_what_was_asked_for_or_it_is_refused(two_stage_repository, problems, tmp_path):
    from mmcot.training.stages.predict import predict_stage

    model = in_memory(two_stage_repository, torch.float16)
    model.save_pretrained(tmp_path / "hub", processor=model.processor)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(UserError, match=f"dtype {dtype}: the model's weights are float16"):
            load_pipeline(model, "cpu", dtype)
    for given in (model, tmp_path / "hub"):
        pipeline = load_pipeline(given, "cpu", "auto")
        assert pipeline.answering.name == "float16" and pipeline(problems[0], max_new_tokens=2)["answer"]
        assert load_pipeline(given, "cpu", "int8")(problems[0], max_new_tokens=2)["answer"]
    expected = load_pipeline(in_memory(tmp_path / "hub"), "cpu")(problems[0], max_new_tokens=2)
    assert load_pipeline(tmp_path / "hub", "cpu")(problems[0], max_new_tokens=2)["scores"] == expected["scores"]
    assert load_pipeline(tmp_path / "hub", "cpu", "bfloat16")(problems[0], max_new_tokens=2)["answer"]
    with pytest.raises(UserError, match="weights are float16"):
        predict_stage(
            model.answer, model.processor, None, "answer", tmp_path / "p.jsonl", num_choices={}, dtype="bfloat16"
        )


@pytest.mark.parametrize("more", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_adapters_are_part_of_what_int8_answers(two_stage_repository, problems, more):
    peft = pytest.importorskip("peft")
    model = in_memory(two_stage_repository)
    torch.manual_seed(0)
    for stage in (model.rationale, model.answer):
        # the output layer's weights may be the embeddings' too
        settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q", "v", "lm_head"], "init_lora_weights": False}
        peft.inject_adapter_in_model(peft.LoraConfig(**settings, **more), stage)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    inputs, options = model.processor(list(problems)), {"rationale_ids": torch.arange(20, 25).expand(6, -1)}
    expected = model.generate(**inputs, **options).option_log_probs
    found = load_pipeline(model, "cpu", "int8").model.generate(**inputs, **options).option_log_probs
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.enable_adapters(False)
    without = load_pipeline(model, "cpu", "int8").model.generate(**inputs, **options).option_log_probs
    error, change = ((other - expected)[expected.isfinite()].abs().mean() for other in (found, without))
    assert 0 < 4 * error < change  # how large it is depends on the processor
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_pipeline_answers_as_the_network_does(two_stage_repository, problems, dtype):
    """One by one or in batches, with every field that `generate` gives."""
    pipeline = load_pipeline(two_stage_repository, "cpu", dtype)
    processor, records = pipeline.processor, list(problems)
    model = MMCoTModel.from_pretrained(two_stage_repository)
    inputs = processor(records)
    expected, found = model.generate(**inputs), pipeline.model.generate(**inputs)
    assert set(found) == set(expected)
    assert [tuple(found[name].shape) for name in found] == [
        tuple(expected[name].shape) for name in found
    ] or dtype == "int8"
    if dtype == "float32":
        for name in ("rationale_ids", "answer_source_ids", "answer_source_mask", "image_attention_mask"):
            assert torch.equal(found[name], expected[name]), name
        torch.testing.assert_close(found.option_log_probs, expected.option_log_probs, atol=1e-4, rtol=1e-4)
    alone, together = [pipeline(record) for record in records], pipeline(records, batch_size=4)
    for one, other in zip(alone, together, strict=True):
        assert one["rationale"] == other["rationale"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)
    assert pipeline(records[0], return_attention=True)["attention"] is not None
