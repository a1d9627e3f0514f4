"""The tokenizer of the embedded data: T5's manners, whole words, nothing lost."""

import string

import pytest
from transformers import AutoTokenizer

from mmcot.processing import build_prompt
from mmcot.training.data.embedded.generate import generate_problems
from mmcot.training.stages.tokenizer import train_tokenizer


def prompts(seed):
    return [text for p in generate_problems(150, seed) for f in ("QCM-LE", "QCMG-A") for text in build_prompt(p, f)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(prompts(0))


def decode(tokenizer, text):
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)


def test_special_tokens_are_those_of_t5(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    batch = tokenizer(["one", "one two three"], padding=True)
    assert [ids[-1] for ids in batch.input_ids] == [0, 1] and batch.input_ids[0].count(1) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_lost_on_prompts(tokenizer, seed):
    for text in prompts(seed):
        assert decode(tokenizer, text) == text


@pytest.mark.parametrize(
    "text", ["", "a", "Hélène's 中文 naïve 🙂!", "10.5°C → (Z) a/b ___ don't", "\\n\\n x_y", "e\u0301 ½ ﬁ İ"]
)
def test_nothing_is_lost_on_text_never_seen(tokenizer, text):
    assert decode(tokenizer, text) == text
    assert 2 not in tokenizer(text).input_ids


def test_words_of_the_texts_are_one_token_each(tokenizer):
    assert len(tokenizer("Which region is in the north").input_ids) == 6 + 1
    assert len(tokenizer) < 1500


def test_tokens_never_span_white_space(tokenizer):
    words = [word for text in prompts(1)[:100] for word in text.split()]
    for start in range(0, len(words), 10):
        text = words[start : start + 10]
        joined = tokenizer(" ".join(text), add_special_tokens=False).input_ids
        assert joined == [i for word in text for i in tokenizer(word, add_special_tokens=False).input_ids]


@pytest.mark.parametrize("texts", [["nothing of the kind"], None])
def test_answer_letters_are_one_token_after_one_prefix(texts):
    tokenizer = train_tokenizer(texts or prompts(0))
    answers = [tokenizer(f"The answer is ({letter}).").input_ids for letter in string.ascii_uppercase]
    (place,) = {i for ids in answers for i, (a, b) in enumerate(zip(ids, answers[0], strict=True)) if a != b}
    assert len({ids[place] for ids in answers}) == 26


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*prompts(2)[:50], "unseen zebra 🙂"]:
        assert loaded(text).input_ids == tokenizer(text).input_ids
        assert decode(loaded, text) == text


def test_vocabulary_is_bounded_and_small_bounds_are_refused():
    assert len(train_tokenizer(prompts(0), vocab_size=500)) == 500
    with pytest.raises(ValueError, match="too small"):
        train_tokenizer(["a"], vocab_size=100)
