"""Both stages and the backbone with quantised, offloaded or half-precision weights: one `from_pretrained` for all."""

import pytest
import torch
from two_stage_models import SIZES, VISION, make_stage

from mmcot import MMCoTModel, MMCoTPipeline
from mmcot.training.data.embedded.generate import generate_problems

WIDE = {**SIZES, "d_model": 64, "d_kv": 16}  # bitsandbytes quantises blocks of 64
WIDE_VISION = {**VISION, "hidden_size": 64, "intermediate_size": 64}


@pytest.fixture(scope="module", params=[False, True], ids=["two networks", "one network"])
def folder(request, processor, tmp_path_factory):
    stages = [make_stage(processor, seed, **WIDE, vision_config=WIDE_VISION) for seed in (0, 1)]
    model = MMCoTModel.from_stages(stages[0], None if request.param else stages[1], processor)
    folder = tmp_path_factory.mktemp("wide")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def problems():
    return [problem for problem in generate_problems(12, seed=5) if len(problem["images"]) < 2][:6]


def scores(model, processor, problems, **options):
    """Log-probabilities of the options, given a rationale that doesn't depend on the model."""
    ids = torch.arange(20, 25).expand(len(problems), -1)
    inputs = processor(problems).to(model.device if model.device.type != "meta" else "cpu")
    return model.generate(**inputs, rationale_ids=ids, **options).option_log_probs.nan_to_num(0, 0, 0)


def bits(number):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    if number == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


def torchao():
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


WAYS = {
    "bitsandbytes, 8 bits": (lambda: bits(8), torch.float32, 0.2),
    "bitsandbytes, 4 bits": (lambda: bits(4), torch.float32, 1.0),
    "torchao, bfloat16": (torchao, torch.bfloat16, 0.3),
    "bfloat16": (lambda: None, torch.bfloat16, 0.3),
}


@pytest.mark.parametrize("how", WAYS)
def test_quantised_models_answer_and_see(folder, processor, problems, how):
    exact = scores(MMCoTModel.from_pretrained(folder), processor, problems)
    config, dtype, tolerance = WAYS[how]
    model = MMCoTModel.from_pretrained(folder, quantization_config=config(), dtype=dtype)
    found = scores(model, processor, problems)
    assert 0 < (found - exact).abs().mean() < tolerance
    shown = [problem for problem in problems if problem["images"]]
    blind = [{**problem, "images": []} for problem in shown]
    assert all((scores(model, processor, shown) - scores(model, processor, blind)).abs().amax(1) > 0)
    results = MMCoTPipeline(model, processor=processor)(problems, max_new_tokens=4, batch_size=3, num_beams=2)
    assert [result["answer_text"] in problem["choices"] for result, problem in zip(results, problems, strict=True)]


def test_features_of_another_type_are_taken(folder, processor, problems):
    """As a cache holds them, in half precision; the model computes in its own."""
    model = MMCoTModel.from_pretrained(folder)
    inputs = processor(problems)
    images = model.get_image_features(inputs.pop("pixel_values"), None, inputs.pop("image_attention_mask"))
    ids = torch.arange(20, 25).expand(len(problems), -1)
    given = {"rationale_ids": ids, "image_attention_mask": images.image_attention_mask}
    exact = model.generate(**inputs, **given, image_features=images.pooler_output).option_log_probs
    for dtype in (torch.float16, torch.float64):
        found = model.generate(**inputs, **given, image_features=images.pooler_output.to(dtype)).option_log_probs
        torch.testing.assert_close(found, exact, atol=1e-2, rtol=1e-2)


# --- offloading ------------------------------------------------------------------------------------------------------


def test_weights_may_wait_in_memory_or_on_disk(folder, processor, problems, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    kept = MMCoTModel.from_pretrained(folder)
    expected = kept.generate(**processor(problems), max_new_tokens=6, num_beams=2, mode="generate")
    offloaded = accelerate.cpu_offload(MMCoTModel.from_pretrained(folder), torch.device("cpu"))
    assert offloaded.answer.encoder.fusion.gate_proj.weight.is_meta
    names = ["rationale", "vision", *([] if kept.answer is kept.rationale else ["answer"])]
    on_disk = MMCoTModel.from_pretrained(
        folder,
        device_map={"rationale": "cpu", "vision": "disk", "answer": "disk"} if len(names) == 3 else {"": "cpu"},
        offload_folder=tmp_path,
    )
    assert len(names) < 3 or on_disk.answer.lm_head.weight.is_meta and on_disk.vision.device.type == "meta"
    for model in (offloaded, on_disk):
        output = model.generate(**processor(problems), max_new_tokens=6, num_beams=2, mode="generate")
        assert torch.equal(output.rationale_ids, expected.rationale_ids)
        assert torch.equal(output.answer_ids, expected.answer_ids)
        torch.testing.assert_close(output.option_log_probs, expected.option_log_probs)
    assert MMCoTPipeline(on_disk, processor=processor)(problems[0], max_new_tokens=3)["answer"]


def test_no_block_or_fusion_is_split_between_devices(folder):
    """`device_map="auto"` would else put parts of one sum on two devices."""
    accelerate = pytest.importorskip("accelerate")
    model = MMCoTModel.from_pretrained(folder)
    whole = set(model._no_split_modules)
    assert {"T5Block", "GatedFusion"} <= whole and whole & set(model.vision._no_split_modules)
    memory = {0: 300_000, 1: 300_000, "cpu": 10**9}
    spread = accelerate.infer_auto_device_map(model, max_memory=memory, no_split_module_classes=list(whole))
    assert len(set(spread.values())) > 1
    for name, module in model.named_modules():
        if type(module).__name__ in whole:
            devices = {device for part, device in spread.items() if f"{part}.".startswith(f"{name}.")}
            assert len(devices) <= 1, (name, devices)
