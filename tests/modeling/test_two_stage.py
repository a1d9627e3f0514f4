"""Both stages as one model: what a user of `AutoModel` and `AutoProcessor` relies on."""

import copy
import json

import pytest
import torch
from two_stage_models import SIZES, make_stage

from mmcot import MMCoTConfig, MMCoTForConditionalGeneration, MMCoTModel, MMCoTProcessor
from mmcot.errors_mmcot import ModelError
from mmcot.processing import build_prompt
from mmcot.training.data.embedded.generate import generate_problems


@pytest.fixture(scope="module")
def problems():
    return list(generate_problems(12, seed=5))


@pytest.fixture(scope="module")
def model(processor):
    return MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)


def answers(model, processor, problems, **kwargs):
    output = model.generate(**processor(problems), **{"max_new_tokens": 12, **kwargs})
    return processor.post_process(output, problems)


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a["generated"] == b["generated"] and a["answer"] == b["answer"]
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-4)


def test_answer_source_on_tensors_equals_the_text_path(model, processor, problems):
    """Stage 2's ids, put together on the device, are the tokens of the prompt with that rationale.

    Not where a network segments a text in another way than the tokenizer: such rationales keep their own ids.
    """
    gold = [build_prompt(problem, "QCM-E")[1] for problem in problems]
    ids = processor.tokenizer(gold, return_tensors="pt", padding=True)["input_ids"]
    output = model.generate(**processor(problems), rationale_ids=ids)
    for i, (problem, rationale) in enumerate(zip(problems, gold, strict=True)):
        source, _ = build_prompt(problem, "QCMG-A", rationale=rationale)
        joined = output.answer_source_ids[i][output.answer_source_mask[i].bool()]
        assert joined.tolist() == processor.tokenizer(source)["input_ids"]


def test_answer_source_equals_the_text_path_on_real_problems(shared_dir, tiny_tokenizer):
    """With T5's vocabulary and gold rationales, over all problems that fit."""
    from mmcot.training.stages.build import tokenizer_from_file

    tokenizer = tokenizer_from_file(shared_dir / "data" / "t5_tokenizer.json")
    processor = MMCoTProcessor(None, tokenizer)
    raw = json.loads((shared_dir / "data" / "scienceqa" / "problems.json").read_text())
    problems = [{**problem, "id": id_} for id_, problem in raw.items()][:300]
    config = MMCoTConfig(vocab_size=32128, **SIZES)
    model = MMCoTModel.from_stages(MMCoTForConditionalGeneration(config), None, processor)
    compared = 0
    for problem in problems:
        text = build_prompt(problem, "QCM-E")[1]
        expected = processor(problem, stage="answer", rationales=[text])["input_ids"]
        inputs = processor(problem)
        rationale = torch.tensor([[0, *tokenizer(text)["input_ids"], 0]])
        ids, _ = model._answer_source(inputs["answer_input_ids"], inputs["answer_attention_mask"], rationale)
        assert torch.equal(ids, expected), problem["id"]
        compared += 1
    assert compared == 300


def test_overlong_rationale_is_cut_and_the_closing_stays(model, processor, problems):
    inputs = processor(problems[0])
    rationale = torch.full((1, 400), 50)
    ids, mask = model._answer_source(inputs["answer_input_ids"], inputs["answer_attention_mask"], rationale)
    assert mask.sum() == 200 and ids[0, -len(model.config.answer_suffix_ids) :].tolist() == (
        model.config.answer_suffix_ids
    )


def test_there_is_one_limit_for_processor_and_model(processor, problems):
    """The model joins up to its own limit: another one of a call would hold for a part of the inputs only."""
    with pytest.raises(ValueError, match="max_length=80 .*max_source_length=80"):
        processor(problems, max_length=80)
    assert processor(problems, max_length=200)["input_ids"].shape[0] == len(problems)
    assert processor(problems, stage="rationale", max_length=80)["input_ids"].shape[1] <= 80


def test_plain_truncation_equals_the_text_path(processor, problems):
    """`source_truncation="end"`, the original's: also where question or rationale don't fit."""
    gold = [build_prompt(problem, "QCM-LE")[1] for problem in problems]
    ids = processor.tokenizer(gold, return_tensors="pt", padding=True)["input_ids"]
    for limit in (24, 60, 110):
        settings = {"max_source_length": limit, "source_truncation": "end"}
        cutting = MMCoTProcessor(None, processor.tokenizer, rationale_format="QCM-LE", **settings)
        model = MMCoTModel.from_stages(make_stage(processor, 0, vision_config=None, **settings), None, cutting)
        inputs = cutting(problems)
        joined, mask = model._answer_source(inputs["answer_input_ids"], inputs["answer_attention_mask"], ids)
        expected = cutting(problems, stage="answer", rationales=gold)
        assert torch.equal(joined, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"])


def test_batched_equals_one_by_one(model, processor, problems):
    together = answers(model, processor, problems)
    assert_same(together, [answers(model, processor, [problem])[0] for problem in problems])
    assert len({result["generated"]["rationale"] for result in together}) > 4, "the test needs rationales that differ"


def test_images_matter(model, processor, problems):
    """A model whose generate() ignores its pictures passes most other tests."""
    shown = [problem for problem in problems if problem["images"]]
    blind = [{**problem, "images": []} for problem in shown]
    with_pictures, without = answers(model, processor, shown), answers(model, processor, blind)
    differ = [a["scores"] != pytest.approx(b["scores"], abs=1e-6) for a, b in zip(with_pictures, without, strict=True)]
    assert all(differ)


def test_features_computed_before_give_the_same_answers(model, processor, problems):
    inputs = processor(problems)
    images = model.get_image_features(inputs.pop("pixel_values"), None, inputs.pop("image_attention_mask"))
    output = model.generate(
        **inputs,
        image_features=images.pooler_output,
        image_attention_mask=images.image_attention_mask,
        max_new_tokens=12,
    )
    assert_same(processor.post_process(output, problems), answers(model, processor, problems))


@pytest.mark.parametrize("kwargs", [{"num_beams": 3}, {"mode": "generate"}, {"output_image_attention": True}])
def test_every_way_of_decoding_gives_each_problem_its_own_scores(model, processor, problems, kwargs):
    results = answers(model, processor, problems, **kwargs)
    for problem, result in zip(problems, results, strict=True):
        assert len(result["scores"]) == len(problem["choices"])
        assert sum(result["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_several_rationales_a_problem(model, processor, problems):
    """Each is answered with its own problem's question, picture and choices."""
    torch.manual_seed(0)
    own = sorted(problems, key=lambda problem: (len(problem["images"]), len(problem["choices"])))[-5:]
    assert len({len(problem["choices"]) for problem in own}) > 1
    inputs = processor(own)
    output = model.generate(**inputs, do_sample=True, num_return_sequences=4, max_new_tokens=6)
    assert output.option_log_probs.shape[0] == output.rationale_ids.shape[0] == 20
    assert len({tuple(row) for row in output.rationale_ids[:4].tolist()}) > 1
    for row, ids in enumerate(output.rationale_ids):
        problem = own[row // 4]
        alone = model.generate(**processor(problem), rationale_ids=ids[None])
        count = len(problem["choices"])
        assert torch.allclose(output.option_log_probs[row, :count], alone.option_log_probs[0, :count], atol=1e-4)
        assert torch.isinf(output.option_log_probs[row, count:]).all()


def test_scores_are_the_answer_stages(model, processor, problems):
    """By an ordinary forward pass of that stage over the text path's inputs, with the pictures."""
    gold = [build_prompt(problem, "QCM-E")[1] for problem in problems]
    ids = processor.tokenizer(gold, return_tensors="pt", padding=True)["input_ids"]
    output = model.generate(**processor(problems), rationale_ids=ids)
    forced = torch.tensor([[0, *model.config.option_prefix_ids]]).expand(len(problems), -1)
    inputs = processor(problems, stage="answer", rationales=gold)
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=forced, stage="answer").logits[:, -1]
    expected = logits.log_softmax(-1)[:, model.config.option_letter_ids]
    for problem, found, wanted in zip(problems, output.option_log_probs, expected, strict=True):
        count = len(problem["choices"])
        assert torch.allclose(found[:count], wanted[:count], atol=1e-4)


def test_given_rationales_are_used(model, processor, problems):
    gold = [build_prompt(problem, "QCM-E")[1] for problem in problems]
    ids = processor.tokenizer(gold, return_tensors="pt", padding=True)["input_ids"]
    output = model.generate(**processor(problems), rationale_ids=ids)
    expected = processor(problems, stage="answer", rationales=gold)["input_ids"]
    assert torch.equal(output.answer_source_ids, expected)


def test_attention_and_gate_are_given_on_request(model, processor, problems):
    output = model.generate(**processor(problems), max_new_tokens=5, output_image_attention=True)
    rows = output.rationale_image_attentions.sum(-1)
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5)
    assert output.answer_image_gate.shape[:2] == output.answer_source_ids.shape
    assert model.generate(**processor(problems), max_new_tokens=5).rationale_image_attentions is None


def test_inputs_that_do_not_fit_are_refused_by_name(model, processor, problems):
    with pytest.raises(ModelError, match="answer_input_ids"):
        model.generate(input_ids=torch.tensor([[4, 1]]))
    with pytest.raises(ModelError, match="3 rationales for 2 problems"):
        model.generate(**processor(problems[:2]), rationale_ids=torch.full((3, 4), 9))
    with pytest.raises(ModelError, match="no stage 'reason'"):
        model(**processor(problems, stage="rationale"), stage="reason")


def test_text_only_model(processor, problems):
    stages = [make_stage(processor, seed, vision_config=None) for seed in (0, 1)]
    text_only = MMCoTProcessor(None, processor.tokenizer, max_source_length=200)
    model = MMCoTModel.from_stages(*stages, text_only)
    assert model.vision is None and "fusion" not in " ".join(model.state_dict())
    assert len(answers(model, text_only, problems)) == len(problems)


def test_pictures_are_never_dropped(processor, problems):
    """Stages that fuse features from outside can't look at pixels; where a batch has no picture, none is lost."""
    settings = {"vision_config": None, "image_feature_size": 24}
    model = MMCoTModel.from_stages(*(make_stage(processor, seed, **settings) for seed in (0, 1)), processor)
    blind = [{**problem, "images": []} for problem in problems]
    assert len(answers(model, processor, blind)) == len(problems)
    for inputs in (processor(problems), {**processor(blind), "image_attention_mask": None}):
        with pytest.raises(ModelError, match="image_features"):
            model.generate(**inputs)
        inputs = {name: value for name, value in inputs.items() if "answer" not in name and name != "num_choices"}
        with pytest.raises(ModelError, match="image_features"):
            model(**inputs, labels=inputs["input_ids"])
    text_only = MMCoTModel.from_stages(make_stage(processor, 0, vision_config=None), None, processor)
    with pytest.raises(ModelError, match="pixel_values"):
        text_only.generate(**processor(problems))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_serve_both_stages_and_are_saved(tmp_path, processor, problems, shared, tied):
    """The cure for characters that the vocabulary lacks: `tokenizer.add_tokens`, then this."""
    settings = {} if tied else {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    stages = [make_stage(processor, seed, **settings) for seed in (0, 1)]
    tokenizer = copy.deepcopy(processor.tokenizer)
    model = MMCoTModel.from_stages(stages[0], None if shared else stages[1], processor)
    before = answers(model, processor, problems)
    assert tokenizer.add_tokens(["×", "÷", "√"]) == 3
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():  # never the most probable ones, so that nothing else changes
        for stage in (model.rationale, model.answer):
            stage.lm_head.weight[-3:] = 0
    larger = MMCoTProcessor(processor.image_processor, tokenizer, max_source_length=200)
    model.save_pretrained(tmp_path / "model", processor=larger)
    loaded = MMCoTModel.from_pretrained(tmp_path / "model")
    for each in (model, loaded):
        for stage in (each.rationale, each.answer):
            sizes = {stage.config.vocab_size, stage.shared.num_embeddings, stage.lm_head.out_features}
            sizes |= {stack.embed_tokens.num_embeddings for stack in (stage.encoder, stage.decoder)}
            assert sizes == {len(tokenizer)}
            assert (stage.lm_head.weight is stage.shared.weight) is tied
        assert each.config.rationale_config.vocab_size == each.config.answer_config.vocab_size == len(tokenizer)
        assert each.get_input_embeddings().num_embeddings == len(tokenizer)
        asked = {"question": "What is 6 × 2?", "choices": ["6 ÷ 2", "√12"], "image": None}
        assert len(answers(each, larger, [asked])[0]["scores"]) == 2
        assert_same(answers(each, processor, problems), before)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_gives_equal_outputs(tmp_path, processor, problems, shared, tied):
    """Also with shared stages (their weights once on disk), and with heads of their own as FLAN-T5 has them."""
    settings = {} if tied else {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    stages = [make_stage(processor, seed, **settings) for seed in (0, 1)]
    if not tied:
        for stage in stages:
            stage.lm_head.weight.data.normal_(std=0.5)
            assert stage.lm_head.weight is not stage.shared.weight
    model = MMCoTModel.from_stages(stages[0], None if shared else stages[1], processor)
    model.save_pretrained(tmp_path / "one")
    loaded = MMCoTModel.from_pretrained(tmp_path / "one")
    assert (loaded.answer is loaded.rationale) is shared
    loaded.save_pretrained(tmp_path / "two")
    again = MMCoTModel.from_pretrained(tmp_path / "two")
    for other in (loaded, again):
        assert_same(answers(other, processor, problems), answers(model, processor, problems))
        assert [stage.lm_head.weight is stage.shared.weight for stage in (other.rationale, other.answer)] == [tied] * 2
    if shared:
        from safetensors import safe_open

        with safe_open(tmp_path / "one" / "model.safetensors", "pt") as file:
            assert not any(key.startswith("answer.") for key in file.keys())  # noqa: SIM118


def test_fresh_weights_have_t5s_initialisation(model):
    fresh = MMCoTModel(copy.deepcopy(model.config))
    loaded = MMCoTModel.from_pretrained(None, config=copy.deepcopy(model.config), state_dict={})
    for made in (fresh, loaded):
        query = made.answer.decoder.block[0].layer[0].SelfAttention.q.weight
        assert query.std().item() == pytest.approx((32 * 8) ** -0.5, rel=0.2)


def test_frozen_backbone_stays_as_it_is_in_training(model):
    for each in (model, MMCoTModel(copy.deepcopy(model.config))):
        each.train()
        assert not each.vision.training and not any(weight.requires_grad for weight in each.vision.parameters())
        assert each.rationale.training
    model.eval()


def test_training_reaches_every_weight_of_a_stage(processor, problems):
    model = MMCoTModel.from_stages(
        make_stage(processor, 0, freeze_vision=False), make_stage(processor, 1, freeze_vision=False), processor
    )
    model.train()
    inputs = processor(problems, stage="rationale")
    labels = processor.tokenizer([build_prompt(p, "QCM-E")[1] for p in problems], return_tensors="pt", padding=True)
    model(**inputs, labels=labels["input_ids"], stage="rationale").loss.backward()
    for part in (model.rationale, model.vision):
        missing = [name for name, weight in part.named_parameters() if weight.grad is None or not weight.grad.any()]
        # ViT's pooler isn't used, and its keys' biases change nothing under a softmax
        assert all("pooler" in name or name.endswith(("key.bias", "k_proj.bias")) for name in missing), missing
