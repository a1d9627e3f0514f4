"""Options of `generate`: whose wins, what each does, which are refused."""

import copy

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from two_stage_models import make_stage, one_stage

from mmcot import MMCoTModel
from mmcot.answers_mmcot import mask_from_padding, prepare_generation_config
from mmcot.errors_mmcot import ModelError


def test_options_are_merged_as_transformers_merges_them(model):
    """The call's, then the configuration's that is passed, then the model's own."""
    model.generation_config.num_beams, model.generation_config.no_repeat_ngram_size = 3, 2
    config, rest = prepare_generation_config(model, GenerationConfig(num_beams=2, top_k=7), num_beams=4, streamer="s")
    assert (config.num_beams, config.top_k, config.no_repeat_ngram_size) == (4, 7, 2) and rest == {"streamer": "s"}
    passed = GenerationConfig(num_beams=2, max_new_tokens=9)
    assert prepare_generation_config(model, passed)[0].num_beams == 2
    assert prepare_generation_config(model)[0].num_beams == 3
    theirs, _ = GenerationMixin._prepare_generation_config(model, passed, length_penalty=0.5)
    ours, _ = prepare_generation_config(model, passed, length_penalty=0.5)
    ours.update(**theirs._get_default_generation_params(), defaults_only=True)
    ours.max_length = theirs.max_length  # transformers' 20, which max_new_tokens overrides
    assert ours.to_dict() == theirs.to_dict()
    assert model.generation_config.num_beams == 3 and passed.no_repeat_ngram_size is None, "nobody's own is changed"


def test_without_a_limit_there_are_512_tokens_and_a_calls_limit_wins(model):
    def limits(own=None, **call):
        model.generation_config = GenerationConfig(**(own or {}))
        config = prepare_generation_config(model, **call)[0]
        return config.max_new_tokens, config.max_length

    assert limits() == (512, None)
    assert limits({"max_new_tokens": 12}) == (12, None)
    assert limits({"max_length": 30}) == (None, 30)
    assert limits({"max_new_tokens": 12}, max_length=5) == (None, 5)
    assert limits({"max_new_tokens": 12}, generation_config=GenerationConfig(max_length=5)) == (None, 5)
    assert limits({"max_length": 30}, max_new_tokens=4) == (4, None)
    assert limits({"max_new_tokens": 12}, max_new_tokens=4) == (4, None)


def rationales(model, inputs, **options):
    return model.generate(**inputs, **{"max_new_tokens": 10, **options}).rationale_ids


class Only(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return torch.where(torch.arange(scores.shape[1]) == 9, 0.0, float("-inf")).expand_as(scores)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "length_penalty": 2.0},
        {"decoder_start_token_id": 7},
        {"eos_token_id": [1, 416, 243]},
        {"pad_token_id": 5, "eos_token_id": [416, 243, 624]},
        {"no_repeat_ngram_size": 1},
        {"max_length": 4, "max_new_tokens": None},
        {"forced_bos_token_id": 44},
        {"suppress_tokens": [416, 624]},
        {"logits_processor": LogitsProcessorList([Only()])},
        {"prefix_allowed_tokens_fn": lambda row, ids: [9, 10]},
        {"decoder_input_ids": torch.full((8, 2), 9)},
        {"min_new_tokens": 9, "eos_token_id": [416, 243, 624]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_does_what_it_does_in_generate(model, inputs, options):
    """The rationale is what transformers' own `generate` of that stage writes, and differs from the plain one."""
    images = model.get_image_features(inputs["pixel_values"], None, inputs["image_attention_mask"])
    own = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "image_features": images.pooler_output,
        "image_attention_mask": images.image_attention_mask,
    }
    expected = model.rationale.generate(**own, **{"max_new_tokens": 10, **options})
    written = rationales(model, inputs, **options)
    assert torch.equal(written, expected)
    plain = rationales(model, inputs)
    assert written.shape != plain.shape or not torch.equal(written, plain), "the option has no effect here"


def test_what_the_source_holds_can_be_forbidden(model, inputs):
    """`encoder_no_repeat_ngram_size` looks at the source's ids, which `encoder_outputs` alone don't tell."""
    first = inputs["input_ids"][:, 0]
    written = rationales(model, inputs, prefix_allowed_tokens_fn=lambda row, ids: [int(first[row]), 9])
    assert (written == first[:, None]).any()
    written = rationales(
        model,
        inputs,
        prefix_allowed_tokens_fn=lambda row, ids: [int(first[row]), 9],
        encoder_no_repeat_ngram_size=1,
    )
    assert not (written == first[:, None]).any()


def test_start_end_and_padding_of_a_call_are_no_part_of_the_rationale(model, inputs):
    """The answer stage reads the text alone, whatever marks its ends."""
    options = {"decoder_start_token_id": 7, "pad_token_id": 5, "eos_token_id": [416, 243, 624]}
    output = model.generate(**inputs, max_new_tokens=10, **options)
    assert (output.rationale_ids == 5).any(), "the test needs padding"
    texts = []
    for row in output.rationale_ids.tolist():
        ends = [i for i, token in enumerate(row) if token in options["eos_token_id"]]
        texts.append(row[1 : ends[0] if ends else None])
    for i, text in enumerate(texts):
        prefix = inputs["answer_input_ids"][i][inputs["answer_attention_mask"][i].bool()].tolist()
        source = output.answer_source_ids[i][output.answer_source_mask[i].bool()].tolist()
        assert source == prefix + text + model.config.answer_suffix_ids


def test_special_tokens_that_no_configuration_names_are_the_stages(model, inputs):
    expected = model.generate(**inputs, max_new_tokens=10, suppress_tokens=[416], min_new_tokens=2)
    model.generation_config = GenerationConfig(max_new_tokens=10, suppress_tokens=[416], min_new_tokens=2)
    output = model.generate(**inputs)
    assert torch.equal(output.answer_source_ids, expected.answer_source_ids)
    config, _ = prepare_generation_config(model)
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (0, 1, 0)


def test_return_dict_gives_the_whole_of_generate(model, inputs):
    output = model.generate(
        **inputs, max_new_tokens=4, return_dict_in_generate=True, output_scores=True, output_hidden_states=True
    )
    given = output.rationale_generation
    assert torch.equal(given.sequences, output.rationale_ids) and len(given.scores) == 4
    assert given.encoder_hidden_states is not None
    assert model.generate(**inputs, max_new_tokens=4).rationale_generation is None
    assert output.option_log_probs.shape[0] == 8


@pytest.mark.parametrize("option", ["max_new_tokns", "stage", "return_legacy_cache"])
def test_unknown_options_are_refused_by_name(model, processor, inputs, problems, option):
    with pytest.raises(ValueError, match=option):
        model.generate(**inputs, **{option: 5})
    for answer_format in ("QCM-A", "QCM-LEA"):
        single, own = one_stage(processor, answer_format)
        with pytest.raises(ValueError, match=option):
            single.generate(**own(problems), **{option: 5})


def test_what_would_have_no_effect_is_refused(model, processor, inputs):
    ids = torch.full((8, 3), 9)
    with pytest.raises(ModelError, match="rationale_ids.*num_beams"):
        model.generate(**inputs, rationale_ids=ids, num_beams=2)
    with pytest.raises(ModelError, match="rationale_ids.*generation_config"):
        model.generate(**inputs, rationale_ids=ids, generation_config=GenerationConfig(num_beams=2))
    with pytest.raises(ModelError, match="paged"):
        model.generate(**inputs, cache_implementation="paged")
    with pytest.raises(ModelError, match="mode.*guess"):
        model.generate(**inputs, mode="guess")


def test_a_streamer_gets_the_rationale(model, processor, problems):
    class Collect:
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ids.append("end")

    streamer = Collect()
    output = model.generate(**processor(problems[:1]), max_new_tokens=5, streamer=streamer)
    assert streamer.ids == [*output.rationale_ids[0].tolist(), "end"]


def test_a_missing_mask_is_read_from_the_padding(model, inputs):
    expected = model.generate(**inputs, max_new_tokens=8)
    bare = {name: value for name, value in inputs.items() if name not in ("attention_mask", "answer_attention_mask")}
    assert (inputs["attention_mask"] == 0).any() and (inputs["answer_attention_mask"] == 0).any()
    output = model.generate(**bare, max_new_tokens=8)
    assert torch.equal(output.rationale_ids, expected.rationale_ids)
    assert torch.equal(output.option_log_probs, expected.option_log_probs)
    assert mask_from_padding(torch.tensor([[3, 0]]), None).tolist() == [[1, 1]]


@pytest.mark.parametrize("shared", [False, True])
def test_the_models_own_options_hold_for_the_rationale_only(processor, inputs, shared):
    """Those that the rationale stage was joined with, also where it answers too."""
    stages = [make_stage(processor, seed) for seed in (0, 1)]
    stages[0].generation_config.update(max_new_tokens=3, forced_bos_token_id=44)
    model = MMCoTModel.from_stages(stages[0], None if shared else stages[1], processor)
    output = model.generate(**inputs, mode="generate")
    assert output.rationale_ids.shape[1] == 4 and (output.rationale_ids[:, 1] == 44).all()
    assert output.answer_ids.shape[1] == 17 and (output.answer_ids[:, 1] != 44).all()


def test_generation_config_is_not_changed_by_a_call(model, inputs):
    before = copy.deepcopy(model.generation_config.to_dict())
    model.generate(**inputs, num_beams=2, max_new_tokens=3, mode="generate")
    assert model.generation_config.to_dict() == before
