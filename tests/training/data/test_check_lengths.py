"""Lengths of many questions at once are those of each alone."""

import copy
from collections import Counter

import pytest
from datasets import Dataset

from mmcot.processing import MMCoTProcessor
from mmcot.training import tokenizer_from_file
from mmcot.training.data.check import lengths
from mmcot.training.data.check.lengths import check_lengths, unknown_characters

LONG = "The river carries sand and stones down to the sea. "
ODD = (
    "a </s> b",
    "it</s> is",
    "<unk> and <unk>",
    "½ of it…",
    "soft\u00adly",
    "zero\u200bwidth",
    "a \u0308b",
    "¨ ¨",
    "\ufeff a",
)
ODD += (
    "\u200d\u0301 \u200b x",
    "日本 語",
    "日 本",
    "ﬁne ﬂy",
    "１２ kg",
    "x\x00 y",
    "नमस्ते जी",
    "\U0001f600 \U0001f600",
    "e\u0301t\u00e9",
    "line\nbreak",
    "\u200b\u2060\xad \u200d\u0308\xad \U0001f600",
)


def mixed() -> Dataset:
    plain = [
        {"id": f"q{i}", "question": f"Which of {i}?", "choices": ["yes", "no, not at all"], "answer": i % 2}
        | {"context": LONG * (i % 9), "lecture": "", "solution": "So it is. " * (i % 7), "caption": None}
        for i in range(40)
    ]
    plain[3] |= {"answer": None}
    plain[4] |= {"answer": 7}  # no option has this place
    plain[5] |= {"question": LONG * 30}  # doesn't fit at all
    plain[6] |= {"solution": None}
    plain[7] |= {"solution": LONG * 12}
    plain[8] |= {"solution": LONG * 12, "context": LONG * 12}
    odd = [plain[1] | {"id": f"o{i}", "question": text} for i, text in enumerate(ODD)]
    odd += [plain[1] | {"id": f"s{i}", "solution": f"{text} {text}"} for i, text in enumerate(ODD)]
    return Dataset.from_list([*plain, *odd])


@pytest.fixture(params=["tiny", "T5"])
def tokenizer(request, tiny_tokenizer):
    if request.param == "tiny":
        return tiny_tokenizer
    folder = request.getfixturevalue("shared_dir")
    return tokenizer_from_file(folder / "data" / "t5_tokenizer.json")


@pytest.mark.parametrize("truncation", ["keep_ends", "end"])
@pytest.mark.parametrize("formats", [("QCM-LE", "QCMG-A"), ("QCM-LE", "QCMG-ALE"), (None, "QCM-A"), (None, "QCMA-E")])
def test_many_are_one_by_one(tokenizer, truncation, formats, monkeypatch):
    options = {"rationale_format": formats[0], "answer_format": formats[1], "source_truncation": truncation}
    processor = MMCoTProcessor(tokenizer=tokenizer, max_source_length=100, **options)
    splits = {"train": mixed(), "test": mixed().select(range(20))}
    many = check_lengths(splits, processor, max_target_length=60)
    monkeypatch.setattr(lengths, "BATCH", 7)
    monkeypatch.setattr(lengths, "WORDS", 20)  # forgotten again and again
    assert check_lengths(splits, processor, max_target_length=60) == many
    monkeypatch.setattr(lengths, "_many", lambda processor, words, problems, stage: [None] * len(problems))
    assert check_lengths(splits, processor, max_target_length=60) == many
    stage = many["answer"]
    assert stage["too_long"] and stage["cut"] and stage["source"]["max"] > 100


def test_each_question_has_the_lengths_that_it_has_alone(tokenizer):
    """Sums could hide what single ones differ in."""
    processor = MMCoTProcessor(tokenizer=tokenizer, rationale_format="QCM-LE", max_source_length=300)
    problems, words = list(mixed()), lengths._Words(tokenizer)
    for stage in ("rationale", "answer"):
        found = lengths._many(processor, words, problems, stage)
        for problem, own in zip(problems, found, strict=True):
            assert own is None or own == lengths._one(processor, problem, stage), problem
        assert sum(own is not None for own in found[:40]) > 30, "most take the short way"


def test_tokens_added_to_a_vocabulary_are_counted_as_before(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["river", "stones", "½"])
    processor = MMCoTProcessor(tokenizer=tokenizer, rationale_format="QCM-LE", max_source_length=300)
    problems = list(mixed())
    found = lengths._many(processor, lengths._Words(tokenizer), problems, "rationale")
    for problem, own in zip(problems, found, strict=True):
        assert own is None or own == lengths._one(processor, problem, "rationale"), problem


def test_unknown_characters_come_most_frequent_first_and_the_earlier_of_equals(monkeypatch):
    class Ascii:
        unk_token_id = 2

        def __call__(self, texts, **options):
            return {"input_ids": [[2 - text.isascii()] for text in texts]}

    problems = mixed()
    counts = Counter()
    for name in ("question", "context", "lecture", "solution", "caption"):
        for text in problems[name][:]:
            counts.update(text or "")
    wanted = [character for character in counts if not character.isascii() and not character.isspace()]
    wanted.sort(key=lambda character: -counts[character])
    for size in (1000, 3):  # 40 lectures are empty
        monkeypatch.setattr(lengths, "BATCH", size)
        assert list(unknown_characters({"train": problems}, Ascii()).items()) == [(c, counts[c]) for c in wanted]
