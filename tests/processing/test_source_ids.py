"""Ids of a source equal those of the joined text; long sources keep their ends."""

import random

import pytest
from example_problems import PLAIN
from transformers import PreTrainedTokenizerFast

from mmcot.processing import MMCoTProcessor, build_prompt


def test_ids_equal_those_of_the_joined_text_on_real_problems(real):
    processor, problems = real
    short = 0
    for stage, prompt_format in (("rationale", "QCM-E"), ("answer", "QCMG-A")):
        sources, targets = zip(*(build_prompt(problem, prompt_format) for problem in problems), strict=True)
        wholes = processor.tokenizer(list(sources), verbose=False)["input_ids"]
        labels = processor.tokenizer(list(targets))["input_ids"]
        for problem, whole, label in zip(problems, wholes, labels, strict=True):
            encoded = processor.encode(problem, stage, target=True)
            assert encoded["labels"] == label
            if len(whole) <= 512:
                short += 1
                assert encoded["input_ids"] == whole
    assert len(problems) == 1174 and short > 2200


def test_prefix_rationale_and_closing_make_the_source_on_real_problems(real):
    """Whatever its length: what a model puts together from ids is what `encode` gives for the text."""
    processor, problems = real
    closing = processor.answer_token_ids()["answer_suffix_ids"]
    batch = processor(problems)
    rationales = [build_prompt(problem, "QCM-LE")[1] for problem in problems]
    middles = processor.tokenizer(rationales, add_special_tokens=False)["input_ids"]
    for row, (problem, rationale, middle) in enumerate(zip(problems, rationales, middles, strict=True)):
        prefix = batch["answer_input_ids"][row][batch["answer_attention_mask"][row].bool()].tolist()
        joined = prefix + middle[: 512 - len(prefix) - len(closing)] + closing
        assert processor.encode(problem, "answer", rationale)["input_ids"] == joined


def test_plain_truncation_is_the_originals(real):
    processor, problems = real
    plain = MMCoTProcessor(None, processor.tokenizer, source_truncation="end")
    cut = 0
    for problem in problems:
        source = build_prompt(problem, "QCMG-A")[0]
        expected = plain.tokenizer(source, truncation=True, max_length=512)["input_ids"]
        assert plain.encode(problem, "answer")["input_ids"] == expected
        cut += len(expected) == 512
    assert cut > 30


def test_question_options_and_closing_survive(tokenizer):
    """Any lengths: what must survive does, the limit holds, and nothing is cut that didn't have to be."""
    draw = random.Random(0)
    words = ["red", "sky", "apple", "Look", "colours", "one", "are"]

    def text(most):
        return " ".join(draw.choices(words, k=draw.randrange(most)))

    cut = refused = 0
    for number in range(400):
        problem = {
            "id": number,
            "question": "Which " + text(8),
            "choices": [text(4) for _ in range(draw.randrange(2, 5))],
            "context": text(40),
            "lecture": text(30),
            "solution": text(30),
        }
        limit = draw.randrange(24, 128)
        prompt_format = draw.choice(["QCM-E", "CQM-A", "QCMG-A", "CQMG-A", "QCMLE-A", "QCLEM-A"])
        processor = MMCoTProcessor(None, tokenizer, None, prompt_format, max_source_length=limit)
        source = build_prompt(problem, prompt_format)[0]
        full = tokenizer(source)["input_ids"]
        question = " ".join(f"Question: {problem['question']}".split())
        options = " ".join(build_prompt(problem, "QM-A")[0].partition("Options:")[2].split()[:-1])
        closing = source.split()[-1]
        try:
            got = processor.encode(problem)["input_ids"]
        except ValueError as error:
            assert f"problem {number}: question and options alone" in str(error)
            room = limit - (limit // 4 if "G" in prompt_format else 0)
            assert len(tokenizer(f"{question} Options: {options} {closing}")["input_ids"]) > room
            refused += 1
            continue
        decoded = tokenizer.decode(got)
        assert len(got) <= limit
        assert decoded.endswith(f"{closing}</s>")
        assert question in decoded and f"Options: {options}" in decoded
        if "G" not in prompt_format and len(full) <= limit:
            assert got == full
        cut += got != full
    assert cut > 100 and refused > 5


def test_prefix_does_not_depend_on_the_rationale(tokenizer):
    problem = {**PLAIN, "context": "Look at it. " * 30}
    processor = MMCoTProcessor(None, tokenizer, max_source_length=64)
    prefix = processor(problem)["answer_input_ids"][0].tolist()
    closing = processor.answer_token_ids()["answer_suffix_ids"]
    assert len(prefix) == 64 - len(closing) - 16
    for rationale in ("", "Solution: red", "Solution: " + "Apples are red. " * 30):
        ids = processor.encode(problem, "answer", rationale)["input_ids"]
        assert ids[: len(prefix)] == prefix and ids[-len(closing) :] == closing and len(ids) <= 64


def test_answer_token_ids(tokenizer, processor):
    ids = processor.answer_token_ids()
    for letter, token in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", ids["option_letter_ids"], strict=True):
        answer = tokenizer(f"The answer is ({letter}).")["input_ids"]
        assert answer[: len(ids["option_prefix_ids"]) + 1] == [*ids["option_prefix_ids"], token]
    assert ids["answer_suffix_ids"] == tokenizer("Answer:")["input_ids"]


def test_a_tokenizer_that_joins_letters_cannot_score_options():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"({letter})." for letter in "ABCDEFGHIJKLMNOPQRSTUVWXY"] + ["The", "answer", "is", "[UNK]"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor = MMCoTProcessor(None, PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    assert processor.answer_token_ids()["option_letter_ids"][0] == 0  # "(A)." is one token, and still one each
    backend.add_tokens(["(Z"])
    backend.model = models.WordLevel({word: index for index, word in enumerate(words[1:])}, unk_token="[UNK]")
    with pytest.raises(ValueError, match="can't be scored"):
        MMCoTProcessor(None, PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")).answer_token_ids()
