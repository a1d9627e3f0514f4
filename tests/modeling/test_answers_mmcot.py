"""One stage's answers and their scores: what holds for every model here."""

import pytest
import torch
from transformers import GenerationConfig
from two_stage_models import one_stage

from mmcot import MMCoTForConditionalGeneration
from mmcot.answers_mmcot import join_ragged, letter_log_probs, own_tokens, score_options
from mmcot.errors_mmcot import ModelError
from mmcot.processing import build_prompt


def test_ragged_rows_are_joined_without_gaps():
    ids = torch.tensor([[5, 6, 0], [7, 0, 0]])
    joined, mask = join_ragged([(ids, ids != 0), (torch.tensor([[0, 8], [9, 0]]), torch.tensor([[0, 1], [1, 0]]))], 0)
    assert joined.tolist() == [[5, 6, 8], [7, 9, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_own_tokens_stand_before_the_end_and_are_not_special():
    ids = torch.tensor([[0, 7, 8, 1, 0, -100], [9, 7, 0, 6, 5, 7]])
    config = GenerationConfig(pad_token_id=0, eos_token_id=1, decoder_start_token_id=9)
    expected = [[False, True, True, False, False, False], [False, True, False, True, True, True]]
    assert own_tokens(ids, config).tolist() == expected
    config.eos_token_id = [1, 5]  # what follows the end is padding, whatever it is
    assert own_tokens(ids, config).tolist() == [expected[0], [False, True, False, True, False, False]]
    config.eos_token_id = config.pad_token_id = None
    assert own_tokens(ids, config).tolist()[0] == [True] * 5 + [False]


@pytest.mark.parametrize("answer_format", ["QCM-A", "QCM-ALE", "QCM-LEA", "QCM-EA"])
@pytest.mark.parametrize("mode", ["score", "generate"])
def test_one_stage_takes_the_call_of_two(processor, problems, answer_format, mode):
    """`generate(**processor(problems))` and `post_process`, several beams and sequences too."""
    model, own = one_stage(processor, answer_format)
    for options in ({}, {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 3}):
        output = model.generate(**own(problems), mode=mode, max_new_tokens=12, **options)
        repeats = options.get("num_return_sequences", 1)
        repeated = [problem for problem in problems for _ in range(repeats)]
        results = own.post_process(output, repeated)
        for problem, result in zip(repeated, results, strict=True):
            assert len(result["scores"]) == len(problem["choices"])
            if mode == "score":
                assert result["answer"] == max(result["scores"], key=result["scores"].get)
        assert (output.answer_ids is None) is (mode == "score")
        assert (output.rationale_ids is None) is (answer_format == "QCM-A")


def test_without_num_choices_one_stage_is_any_t5(processor, problems):
    model, own = one_stage(processor, "QCM-A")
    inputs = own(problems)
    del inputs["num_choices"]
    ids = model.generate(**inputs, max_new_tokens=6)
    assert isinstance(ids, torch.Tensor) and ids.shape[0] == len(problems)
    with pytest.raises(ValueError, match="mode"):
        model.generate(**inputs, mode="score")


def scores_by_the_whole_pass(model, own, problems, texts):
    """The letters' log-probabilities from an ordinary forward pass over "…The answer is (", one problem at a time."""
    rows = []
    ids = own.answer_token_ids()
    for problem, text in zip(problems, texts, strict=True):
        written = [0, *text, *ids["option_prefix_ids"]]
        inputs = own(problem)
        count = inputs.pop("num_choices")
        with torch.no_grad():
            logits = model(**inputs, decoder_input_ids=torch.tensor([written])).logits[0, -1]
        rows.append(logits.log_softmax(-1)[ids["option_letter_ids"]][:count])
    return rows


@pytest.mark.parametrize("tied", [True, False])
def test_options_are_scored_behind_the_explanation(processor, problems, tied):
    """…-LEA: as a forward pass over what was written gives them; …-A: at the start."""
    settings = {} if tied else {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    for answer_format in ("QCM-LEA", "QCM-A", "QCM-ALE"):
        model, own = one_stage(processor, answer_format, **settings)
        # explanations of different lengths: row i has i tokens and the end
        output = model.generate(
            **own(problems),
            mode="generate",
            max_new_tokens=9,
            prefix_allowed_tokens_fn=lambda row, ids: [40 + row] if len(ids) <= row else [1],
        )
        texts = [[] for _ in problems]
        if answer_format == "QCM-LEA":
            texts = [[token for token in row if token > 1] for row in output.rationale_ids.tolist()]
            assert texts == [[40 + row] * row for row in range(len(problems))]
        expected = scores_by_the_whole_pass(model, own, problems, texts)
        for row, wanted in zip(output.option_log_probs, expected, strict=True):
            assert torch.allclose(row[: len(wanted)], wanted, atol=1e-4)
            assert torch.isinf(row[len(wanted) :]).all()


def test_the_answer_is_scored_where_it_was_written(processor, problems):
    """An explanation that goes on to "The answer is (" ends there: the scores are those of the letter that follows."""
    model, own = one_stage(processor, "QCM-LEA")
    ids = own.answer_token_ids()
    text = own.tokenizer("Solution: it floats. The answer is (B).")["input_ids"]
    forced = torch.tensor([0, *text])
    start = own.tokenizer("Solution: it floats.", add_special_tokens=False)["input_ids"]

    def allowed(row, written):
        return [int(forced[min(len(written), len(forced) - 1)])]

    inputs = own(problems)
    output = model.generate(**inputs, max_new_tokens=len(text), mode="generate", prefix_allowed_tokens_fn=allowed)
    assert output.answer_ids[0].tolist() == forced.tolist()
    assert [token for token in output.rationale_ids[0].tolist() if token] == start
    expected = scores_by_the_whole_pass(model, own, problems, [start] * len(problems))
    for row, wanted in zip(output.option_log_probs, expected, strict=True):
        assert torch.allclose(row[: len(wanted)], wanted, atol=1e-4)
    assert ids["option_prefix_ids"] == text[len(start) : len(start) + len(ids["option_prefix_ids"])]


def test_saved_one_stage_knows_its_letters(processor, problems, tmp_path):
    """The processor that a model is saved with tells them; without one, the error says so."""
    model, own = one_stage(processor, "QCM-A")
    expected = model.generate(**own(problems)).option_log_probs
    model.save_pretrained(tmp_path / "model")
    loaded = MMCoTForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert loaded.processor is None
    assert torch.allclose(loaded.generate(**own(problems)).option_log_probs, expected, atol=1e-5)
    loaded.config.option_letter_ids = None
    with pytest.raises(ModelError, match="option_letter_ids"):
        loaded.generate(**own(problems))


def test_one_stage_of_two_says_whose_inputs_it_wants(model, processor, inputs):
    with pytest.raises(ModelError, match="one stage of two"):
        model.stage_alone("answer").generate(**inputs)


def test_images_reach_one_stage(processor, problems):
    model, own = one_stage(processor, "QCM-A")
    shown = [problem for problem in problems if problem["images"]]
    blind = [{**problem, "images": []} for problem in shown]
    seen, unseen = (model.generate(**own(rows)).option_log_probs for rows in (shown, blind))
    assert all((seen - unseen).nan_to_num(0, 0, 0).abs().amax(1) > 1e-5)


def test_scores_without_counts_cover_all_letters(model, processor, problems):
    source = torch.tensor([[5, 6, 1]])
    hidden = model.answer.get_encoder()(source).last_hidden_state
    ids = processor.answer_token_ids()
    scores = score_options(
        model.answer, hidden, torch.ones_like(source), ids["option_prefix_ids"], ids["option_letter_ids"]
    )
    assert scores.shape == (1, 26) and scores.dtype == torch.float32 and torch.isfinite(scores).all()
    assert scores.exp().sum() < 1, "over the whole vocabulary"


def test_text_path_equals_ids_for_padded_rationales(model, processor, inputs, problems):
    """-100 and padding on either side of given rationales count for nothing."""
    ids = processor.tokenizer([build_prompt(p, "QCM-E")[1] for p in problems], padding=True, return_tensors="pt")
    right = ids["input_ids"]
    expected = model.generate(**inputs, rationale_ids=right)
    variants = [right.masked_fill(right == 0, -100), torch.nn.functional.pad(right, (3, 2), value=-100)]
    for given in [*variants, torch.nn.functional.pad(right, (1, 0))]:
        output = model.generate(**inputs, rationale_ids=given)
        assert torch.equal(output.answer_source_ids, expected.answer_source_ids)
        assert torch.equal(output.option_log_probs, expected.option_log_probs)


def test_scores_of_half_precision_logits_are_not_rounded_again():
    """Options that differ by less than bfloat16 tells at their log-probability stay apart."""
    logits = torch.zeros(1, 512, dtype=torch.bfloat16)
    logits[0, :2] = torch.tensor([0.25, 0.2520])
    scores = letter_log_probs(logits, [0, 1])
    assert scores.dtype == torch.float32 and scores[0, 1] > scores[0, 0]
    torch.testing.assert_close(scores, logits.float().log_softmax(-1)[:, :2])
