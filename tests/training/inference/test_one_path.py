"""One path: what commands do goes through the engine, on ordinary models that were saved and loaded."""

import json

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, MinNewTokensLengthLogitsProcessor
from transformers.generation.utils import GenerationMixin
from two_stage_models import make_stage

from mmcot import MMCoTForConditionalGeneration, MMCoTModel, MMCoTProcessor
from mmcot.training import generate_problems, load_pipeline, load_problems, load_recipe, predict, run_recipe
from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.evaluation.predictions import read_header
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.inference.decoder_weights import is_plain_t5
from mmcot.training.inference.fingerprint import model_fingerprint
from mmcot.training.inference.generation import greedy_config, use_engine


@pytest.fixture
def no_generate(monkeypatch):
    """transformers' `generate` must not be called."""

    def refuse(*args, **kwargs):
        raise AssertionError("transformers' generate was called")

    monkeypatch.setattr(GenerationMixin, "generate", refuse)


@pytest.fixture(scope="module")
def one_stage_repository(tiny_tokenizer, tmp_path_factory):
    from mmcot.processing import image_processor_for

    processor = MMCoTProcessor(
        image_processor_for(64), tiny_tokenizer, rationale_format=None, answer_format="QCM-ALE", max_source_length=200
    )
    folder = tmp_path_factory.mktemp("one_stage") / "repository"
    model = make_stage(processor, 0)
    model.config.prompt_format = "QCM-ALE"
    model.save_pretrained(folder, processor=processor)
    return folder


@pytest.mark.parametrize("kind", ["two", "one"])
def test_predict_uses_the_engine(two_stage_repository, one_stage_repository, tmp_path, no_generate, kind):
    repository = {"two": two_stage_repository, "one": one_stage_repository}[kind]
    arguments = [str(repository), "embedded:n=6", "--split", "test", "--device", "cpu", "--max-new-tokens", "5"]
    assert main(["predict", *arguments, "--output", str(tmp_path / "p.jsonl")]) == 0
    assert len(read_predictions(tmp_path / "p.jsonl")) == 6


def test_one_stage_predictions_are_those_of_generate(one_stage_repository, tmp_path):
    problems = load_problems("embedded:n=6", "test")
    written = read_predictions(predict(one_stage_repository, problems, tmp_path / "p.jsonl", max_new_tokens=9))
    model = MMCoTForConditionalGeneration.from_pretrained(one_stage_repository)
    processor = MMCoTProcessor.from_pretrained(one_stage_repository)
    for problem in problems:
        alone = model.generate(**processor(problem), max_new_tokens=9)
        result = processor.post_process(alone, [problem])[0]
        record = written[problem["id"]]
        assert record["generated"] == result["generated"] and record["rationale"] == result["rationale"]
        assert record["scores"] == pytest.approx(result["scores"], abs=1e-4)
        assert "ABCDE"[record["answer"]] == max(record["scores"], key=record["scores"].get)


def test_pipeline_and_app_use_the_engine(two_stage_repository, no_generate):
    pipeline = load_pipeline(two_stage_repository, "cpu")
    problems = list(generate_problems(3, seed=5))
    assert all(result["answer"] for result in pipeline(problems, batch_size=2))


def test_a_whole_run_uses_the_engine(tmp_path, no_generate):
    """Rationales, answers, and validation while training."""
    settings = ["data=embedded:n=24,val=4,test=4", "max_steps=2", "max_new_tokens=5", "use_cpu=true"]
    settings += ["eval_strategy=steps", "eval_steps=1", "save_strategy=steps", "save_steps=1", "disable_tqdm=true"]
    results = run_recipe(load_recipe("embedded", [*settings, f"output_dir={tmp_path}"]))
    assert results["test"]["n"]["Avg"] == 4
    manifest = json.loads((tmp_path / "rationale" / "manifest.json").read_text())
    assert any("eval_rougeL" in entry for entry in manifest["history"])


OPTIONS = [
    {"num_beams": 2},
    {"do_sample": True},
    {"min_new_tokens": 3},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5]]},
    {"suppress_tokens": [5]},
    {"forced_eos_token_id": 1},
    {"num_return_sequences": 2, "do_sample": True},
    {"return_dict_in_generate": True},
    {"output_scores": True, "return_dict_in_generate": True},
    {"decoder_start_token_id": 5},
    {"max_time": 100.0},
    {"stop_strings": ["the"]},
    {"use_cache": False},
    {"cache_implementation": "quantized"},
    {"begin_suppress_tokens": [5]},
    {"forced_bos_token_id": 5},
    {"renormalize_logits": True},
    {"logits_processor": LogitsProcessorList([MinNewTokensLengthLogitsProcessor(1, 4, 1)])},
]


def loaded(two_stage_repository):
    return MMCoTModel.from_pretrained(two_stage_repository).eval()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_what_the_engine_does_not_honour_goes_to_generate(two_stage_repository, options):
    model = loaded(two_stage_repository).rationale
    assert greedy_config(model, None, {"max_new_tokens": 7}).max_new_tokens == 7
    assert greedy_config(model, None, {"max_new_tokens": 7, **options}) is None
    fields = {name: value for name, value in options.items() if name != "logits_processor"}
    if fields:
        assert greedy_config(model, GenerationConfig(max_new_tokens=7, **fields), {}) is None


@pytest.mark.parametrize(
    ("config", "options", "limit"),
    [
        (None, {"max_new_tokens": 7}, 7),
        (None, {"max_length": 7}, 6),
        (GenerationConfig(max_new_tokens=9), {}, 9),
        (GenerationConfig(max_length=9), {"max_new_tokens": 3}, 3),
        (GenerationConfig(temperature=0.3, top_k=4, length_penalty=2.0, max_new_tokens=4), {}, 4),
        (None, {"max_new_tokens": 4, "eos_token_id": [1, 7]}, 4),
        (None, {"max_new_tokens": 4, "use_cache": True, "num_beams": 1}, 4),
    ],
)
def test_ids_equal_those_of_generate_with_what_it_honours(two_stage_repository, config, options, limit):
    model = loaded(two_stage_repository).rationale
    assert greedy_config(model, config, dict(options)).max_new_tokens == limit
    inputs = {"input_ids": torch.tensor([[9, 17, 25, 33, 1], [8, 40, 1, 0, 0]])}
    without_mask = model.generate(**inputs, generation_config=config, **options)
    assert torch.equal(use_engine(model).generate(**inputs, generation_config=config, **options), without_mask)
    model, inputs["attention_mask"] = loaded(two_stage_repository).rationale, inputs["input_ids"].ne(0).long()
    expected = model.generate(**inputs, generation_config=config, **options)
    calls = []
    model.get_encoder().register_forward_hook(lambda *args: calls.append(1))
    assert torch.equal(use_engine(model).generate(**inputs, generation_config=config, **options), expected)
    assert calls == [1]


@pytest.mark.parametrize(
    "fields",
    [
        {"output_attentions": False, "output_hidden_states": False, "token_healing": False, "min_new_tokens": 0},
        {"temperature": 0.4, "top_p": 0.9, "early_stopping": True, "length_penalty": 2.0},
        {"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "return_dict_in_generate": False},
    ],
)
def test_fields_without_effect_do_not_disqualify(two_stage_repository, fields):
    model = loaded(two_stage_repository).rationale
    assert greedy_config(model, GenerationConfig(max_new_tokens=7, **fields)) is not None
    for name, value in fields.items():
        setattr(model.generation_config, name, value)
    assert greedy_config(model, None, {"max_new_tokens": 7}) is not None


def test_ends_that_the_model_or_the_call_names(two_stage_repository, tmp_path):
    """`predict` stops where `generate` stops, and the answer stage reads what stands before."""
    problems = load_problems("embedded:n=6", "test")
    model = loaded(two_stage_repository)
    model.processor = processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    whole = model.generate(**processor(list(problems)), max_new_tokens=12).rationale_ids
    ends = [model.rationale.config.eos_token_id, int(whole[0, 4])]
    expected = processor.post_process(
        model.generate(**processor(list(problems)), max_new_tokens=12, eos_token_id=ends), list(problems)
    )
    model.generation_config.eos_token_id = ends
    written = read_predictions(predict(model, problems, tmp_path / "p.jsonl", max_new_tokens=12, device="cpu"))
    for problem, result in zip(problems, expected, strict=True):
        record = written[problem["id"]]
        assert record["generated"]["rationale"] == result["generated"]["rationale"]
        assert record["scores"] == pytest.approx(result["scores"], abs=1e-4)


def test_networks_that_are_not_plain_as_a_whole_go_to_generate(two_stage_repository):
    model = loaded(two_stage_repository).answer
    assert greedy_config(model) is not None
    assert greedy_config(model.train()) is None  # dropout
    model = loaded(two_stage_repository).answer
    model.register_forward_hook(lambda *args: None)
    assert not is_plain_t5(model)

    class Other(MMCoTForConditionalGeneration):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = loaded(two_stage_repository).answer
    assert not is_plain_t5(Other(model.config).eval())
    model.decoder.block[0].layer[0].dropout = torch.nn.Softplus()
    assert not is_plain_t5(model)
    peft = pytest.importorskip("peft")
    model = loaded(two_stage_repository).answer
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2, num_attention_heads=4)
    assert not is_plain_t5(peft.get_peft_model(model, config))


def test_default_length_is_transformers(two_stage_repository):
    model = loaded(two_stage_repository).rationale
    model.generation_config.max_new_tokens = model.generation_config.max_length = None
    inputs = {"input_ids": torch.tensor([[9, 17, 25, 33, 1]])}
    expected = model.generate(**inputs, eos_token_id=-1)
    assert torch.equal(use_engine(model).generate(**inputs, eos_token_id=-1), expected) and expected.shape[1] == 21


def test_adapters_quantised_and_offloaded_weights_go_to_generate(two_stage_repository):
    peft = pytest.importorskip("peft")
    from torch import nn

    for adapter in (
        peft.LoraConfig(target_modules=["q"]),
        peft.LoraConfig(target_modules=["embed_tokens"]),
        peft.LoraConfig(target_modules=["lm_head"]),
        peft.LNTuningConfig(target_modules=["layer_norm"]),
    ):
        model = loaded(two_stage_repository).answer
        peft.inject_adapter_in_model(adapter, model)
        assert not is_plain_t5(model), adapter

    class Quantised(nn.Linear):
        pass

    model = loaded(two_stage_repository).answer
    assert is_plain_t5(model)
    dense = model.decoder.block[0].layer[2].DenseReluDense
    dense.wo = Quantised(dense.wo.in_features, dense.wo.out_features, bias=False)
    assert not is_plain_t5(model)
    model = loaded(two_stage_repository).answer
    model.decoder.final_layer_norm.register_forward_hook(lambda *args: None)
    assert not is_plain_t5(model)
    from accelerate import cpu_offload

    model = loaded(two_stage_repository).answer
    cpu_offload(model, execution_device="cpu")
    assert not is_plain_t5(model)
    assert not is_plain_t5(loaded(two_stage_repository).answer.half())
    assert not is_plain_t5(loaded(two_stage_repository).answer.to("meta"))


def test_header_tells_how_the_predictions_came_about(two_stage_repository, tmp_path):
    problems = load_problems("embedded:n=4", "test")
    path = predict(two_stage_repository, problems, tmp_path / "p.jsonl", num_beams=2, max_new_tokens=4, device="cpu")
    facts = read_header(path)
    assert facts["method"] == "multimodal-cot" and facts["protocol"] == "generated" and facts["mode"] == "score"
    assert facts["decoding"] == {"num_beams": 2, "max_new_tokens": 4} and facts["images"] == "given"
    assert facts["split"] == "test" and facts["rationale_format"] == "QCM-E"
    assert str(tmp_path.parent.parent) not in path.read_text().splitlines()[0]


def test_header_tells_what_the_model_asks_for_by_itself(two_stage_repository, tmp_path):
    """Else an interrupted file would be finished with other options."""
    problems = load_problems("embedded:n=4", "test")
    model = loaded_with(MMCoTProcessor.from_pretrained(two_stage_repository), two_stage_repository)
    model.generation_config.no_repeat_ngram_size = 2
    model.generation_config.temperature = 0.5  # without sampling of no effect
    facts = read_header(predict(model, problems, tmp_path / "p.jsonl", device="cpu"))
    assert facts["decoding"] == {"num_beams": 1, "max_new_tokens": 12, "no_repeat_ngram_size": 2}


def test_blank_images_change_the_predictions(two_stage_repository, tmp_path):
    problems = load_problems("embedded:n=12", "test")
    given = predict(two_stage_repository, problems, tmp_path / "given.jsonl", device="cpu")
    blank = predict(two_stage_repository, problems, tmp_path / "blank.jsonl", device="cpu", blank_images=True)
    assert read_header(blank)["images"] == "blank"
    given, blank = (
        {id_: record["scores"] for id_, record in read_predictions(path).items()} for path in (given, blank)
    )
    shown = {problem["id"] for problem in problems if problem["images"]}
    assert {id_ for id_ in given if given[id_] != pytest.approx(blank[id_], abs=1e-5)} == shown


def test_another_models_work_is_not_gone_on_with(two_stage_repository, tmp_path):
    """Same folder name, other weights."""
    problems = load_problems("embedded:n=4", "test")
    model = loaded(two_stage_repository)
    processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    model.processor = processor
    whole = predict(model, problems, tmp_path / "whole.jsonl", device="cpu").read_text().splitlines(keepends=True)
    part = tmp_path / "p.jsonl.partial-records"
    part.write_text("".join(whole[:3]))
    before = model_fingerprint(model)
    with torch.no_grad():
        model.answer.decoder.block[0].layer[0].SelfAttention.q.weight[0, 0] += 1e-3
    assert model_fingerprint(model) != before
    with pytest.raises(UserError, match="another fingerprint"):
        predict(model, problems, tmp_path / "p.jsonl", device="cpu")
    with pytest.raises(UserError, match="another .*mode"):
        predict(loaded_with(processor, two_stage_repository), problems, tmp_path / "p.jsonl", mode="generate")


def loaded_with(processor, repository):
    model = loaded(repository)
    model.processor = processor
    return model


def test_the_fingerprint_of_wrapped_weights_is_of_what_they_are_made_of():
    """As torchao quantises: a tensor of tensors, which can't be read as bytes itself."""
    from torch.testing._internal.two_tensor import TwoTensor

    def model(scale: float):
        layer = torch.nn.Linear(4, 4)
        weight = TwoTensor(torch.ones(4, 4), torch.full((4, 4), scale))
        layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(torch.zeros(4))
        layer.config = None
        return layer

    assert model_fingerprint(model(1.0)) == model_fingerprint(model(1.0)) != model_fingerprint(model(2.0))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--limit", "-3"], "--limit -3"),
        (["--limit", "0"], "--limit 0"),
        (["--batch-size", "0"], "batch_size"),
        (["--num-beams", "0"], "num_beams"),
        (["--max-new-tokens", "-1"], "max_new_tokens"),
    ],
)
def test_options_that_make_no_sense(two_stage_repository, tmp_path, capsys, option, said):
    arguments = [str(two_stage_repository), "embedded:n=4", "--output", str(tmp_path / "p.jsonl")]
    assert main(["predict", *arguments, *option]) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1] and "Traceback" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(two_stage_repository, tmp_path, capsys):
    arguments = [str(two_stage_repository), "embedded:n=4", "--output", str(tmp_path / "p.jsonl")]
    assert main(["predict", *arguments, "--device", "cuda"]) == 2
    assert "no GPU here" in capsys.readouterr().err


def test_sources_that_are_padded_on_the_left_are_read_whole(two_stage_repository, no_generate):
    """As some tokenizers pad; the engine gives what it gives of those padded on the right."""
    pipeline = load_pipeline(two_stage_repository, "cpu")
    inputs = pipeline.processor(list(generate_problems(4, seed=2)))
    left = dict(inputs)
    for start in ("", "answer_"):
        names = (f"{start}input_ids", f"{start}attention_mask")
        missing = (inputs[names[1]] == 0).sum(1).tolist()
        for name in names:
            rolled = [row.roll(by) for row, by in zip(inputs[name], missing, strict=True)]
            left[name] = torch.stack(rolled)
        assert any(missing)
    found, expected = (pipeline.model.generate(**given, max_new_tokens=6) for given in (left, inputs))
    assert torch.equal(found.rationale_ids, expected.rationale_ids)
    torch.testing.assert_close(found.option_log_probs, expected.option_log_probs, atol=1e-4, rtol=0)
