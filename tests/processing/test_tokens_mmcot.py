"""Ids of parts join to those of the whole; what a vocabulary lacks is marked and told; nothing important is cut."""

import random
import string

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast, T5Tokenizer

from mmcot.processing import MMCoTProcessor, ProblemError, build_prompt
from mmcot.processing.tokens_mmcot import LOST, end_ids, readable_text, token_ids

WORDS = (
    "name Question Context Options Answer Solution The answer is What set line One Another then has so one two than"
)
LACKING = "\\<>{}^~×÷→"  # as in T5's vocabulary


def t5_tokenizer(**options) -> T5Tokenizer:
    """T5's own class with a small vocabulary that lacks what T5's lacks."""
    known = [letter for letter in string.printable if not letter.isspace() and letter not in LACKING]
    pieces = ["▁", *known, *(f"▁{word}" for word in [*WORDS.split(), *known]), *(word for word in WORDS.split())]
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    return T5Tokenizer(
        vocab=special + [(piece, -float(len(pieces)) / len(piece)) for piece in dict.fromkeys(pieces)], **options
    )


@pytest.fixture
def tokenizer():
    return t5_tokenizer()


@pytest.fixture(scope="module")
def real_tokenizer(shared_dir):
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(shared_dir / "data/t5_tokenizer.json"), **names)


# ---- which tokenizers can be used ----


def test_t5_and_mt5_are_taken(tokenizer, tmp_path):
    """mT5's vocabulary comes as a sentencepiece file, and knows other alphabets."""
    sentencepiece = pytest.importorskip("sentencepiece")
    MMCoTProcessor(None, tokenizer)
    (tmp_path / "texts").write_text(
        "\n".join(
            [
                f"Was ist das? Что это? 这是什么? The answer is ({letter}). Question: Options: Solution:"
                for letter in string.ascii_uppercase
            ]
        )
    )
    sentencepiece.SentencePieceTrainer.train(
        input=tmp_path / "texts",
        model_prefix=tmp_path / "spiece",
        vocab_size=110,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text('{"model_type": "mt5"}')
    mt5 = AutoTokenizer.from_pretrained(tmp_path)
    problem = {"question": "Что это? 这是什么?", "choices": ["Was", "ist"], "solution": "Что это?"}
    processor = MMCoTProcessor(None, mt5)
    for stage, prompt_format in (("rationale", "QCM-E"), ("answer", "QCMG-A")):
        source, target = build_prompt(problem, prompt_format)
        encoded = processor.encode(problem, stage, target=True)
        assert encoded["input_ids"] == mt5(source)["input_ids"] and encoded["labels"] == mt5(target)["input_ids"]
    assert (
        processor.post_process({"rationale_ids": [mt5("Solution: Что это?")["input_ids"]]})[0]["rationale"]
        == "Что это?"
    )


def test_bytes_as_tokens_are_refused_with_the_reason():
    with pytest.raises(
        ProblemError, match="ByT5Tokenizer can't be used: the ids of a prompt's parts, joined, are not"
    ):
        MMCoTProcessor(None, ByT5Tokenizer())


def test_tokens_that_depend_on_the_space_before_are_refused():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(["Answer: Answer: Solution: it is"] * 9, trainers.BpeTrainer(show_progress=False))
    with pytest.raises(ProblemError, match="joined, are not"):
        MMCoTProcessor(None, PreTrainedTokenizerFast(tokenizer_object=backend))


def test_tokens_that_span_white_space_are_refused():
    """Though none of them occurs in a prompt's own words."""
    backend = Tokenizer(
        models.Unigram(
            [("<unk>", 0.0), ("▁of▁the", -1.0), ("▁", -9.0), *((c, -9.0) for c in string.printable)], unk_id=0
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    with pytest.raises(ProblemError, match="its token '▁of▁the' spans white space"):
        MMCoTProcessor(None, PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.parametrize(
    "token, said",
    [
        ("of the", "'of the' spans white space"),
        (AddedToken("<", lstrip=True), "'<' spans white space"),
        (AddedToken("<", rstrip=True), "'<' spans white space"),
    ],
)
def test_added_tokens_that_span_white_space_are_refused_whenever_they_are_added(tokenizer, token, said):
    processor = MMCoTProcessor(None, tokenizer)
    processor({"question": "What is 5?", "choices": ["a", "b"]})
    tokenizer.add_tokens([token])
    for use in (
        lambda: MMCoTProcessor(None, tokenizer),
        lambda: processor({"question": "What is 5?", "choices": ["a", "b"]}),
        lambda: processor.encode({"question": "What is 5?", "choices": ["a", "b"]}, "rationale"),
    ):
        with pytest.raises(ProblemError, match=said):
            use()


@pytest.mark.parametrize("which", ["tokenizer", "real_tokenizer"])
def test_added_tokens_keep_ids_joinable(which, request):
    """Prefix, rationale and closing, joined, are the joined text, wherever in it the new tokens stand."""
    tokenizer = request.getfixturevalue(which)
    if which == "real_tokenizer":
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
            eos_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
        )
    assert tokenizer.add_tokens(["<", "×", "÷"]) == 3
    processor = MMCoTProcessor(None, tokenizer, max_source_length=10_000)
    draw = random.Random(0)
    parts = ["<", "×", "5<6", "x <", "a× b", "one", "two", "n", "÷÷", "(", ")"]
    for _ in range(200):
        texts = [" ".join(draw.choices(parts, k=draw.randrange(1, 6))) for _ in range(5)]
        problem = {"question": texts[0], "choices": texts[1:3], "context": texts[3]}
        rationale = f"Solution: {texts[4]}"
        source = build_prompt(problem, "QCMG-A", rationale=rationale)[0]
        prefix = processor(problem)["answer_input_ids"][0].tolist()
        joined = prefix + token_ids(tokenizer, rationale) + processor.answer_token_ids()["answer_suffix_ids"]
        assert joined == processor.encode(problem, "answer", rationale)["input_ids"] == tokenizer(source)["input_ids"]


# ---- what is lost ----


@pytest.mark.parametrize("which", ["tokenizer", "real_tokenizer"])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Solution: 5<6", f"5{LOST}6"),
        ("3 < 5", f"3 {LOST} 5"),
        ("x<n then", f"x{LOST}n then"),
        ("One x<n, so", f"One x{LOST}n, so"),
        ("a <n one", f"a {LOST}n one"),
        ("x<n", f"x{LOST}n"),
        ("{n}", f"{LOST}n{LOST}"),
        ("set {n} has", f"set {LOST}n{LOST} has"),
        ("x{n}.", f"x{LOST}n{LOST}."),
        ("(x<n)", f"(x{LOST}n)"),
        ("x<name", f"x{LOST}name"),
        ("line.\\nAnother line", "line.\nAnother line"),
        ("line\\nAnother", "line\nAnother"),
        ("line:\\none", "line:\none"),
        ("line.\\n\\none", "line.\n\none"),
        ("one\\n2. two", "one\n2. two"),
        ("has so.\\n The answer", "has so.\nThe answer"),
        ("has so\\n The answer", "has so\nThe answer"),
        ("has so. \\nThe answer", "has so.\nThe answer"),
        ("One.\\n", "One."),
        ("x<n. One.\\nTwo < one?\\nThe set {n}.", f"x{LOST}n. One.\nTwo {LOST} one?\nThe set {LOST}n{LOST}."),
    ],
)
def test_readable_text(which, written, read, request):
    tokenizer = request.getfixturevalue(which)
    ids = tokenizer(written)["input_ids"]
    assert tokenizer.unk_token_id in ids
    assert readable_text(tokenizer, ids) == read
    result = MMCoTProcessor(None, tokenizer).post_process({"rationale_ids": [[*ids, 0, 0, -100]]})[0]
    assert result["rationale"] == read and LOST not in result["generated"]["rationale"]


def test_readable_text_where_nothing_is_lost(tiny_tokenizer):
    for text in ("5<6 and x<n then {n}", "one\\nTwo", "One.\\n\\nTwo × two"):
        expected = text.replace("\\n", "\n")
        assert readable_text(tiny_tokenizer, tiny_tokenizer(f"Solution: {text}")["input_ids"]) == expected


def test_line_breaks_of_real_targets(real_tokenizer, shared_dir):
    """All but a few come back, and none is invented."""
    import json

    wanted = found = 0
    for problem in json.loads((shared_dir / "data/scienceqa/problems.json").read_text()).values():
        target = build_prompt(problem, "QCM-LE")[1]
        lines = readable_text(real_tokenizer, real_tokenizer(target)["input_ids"]).count("\n")
        assert lines <= target.count("\\n")
        wanted, found = wanted + target.count("\\n"), found + lines
    assert wanted > 5000 and found > 0.999 * wanted


@pytest.fixture
def told(caplog):
    """What the processing code has warned of."""
    return lambda: [record.getMessage() for record in caplog.records if "processing" in record.name]


def test_equal_options_are_told_once(tokenizer, told):
    processor = MMCoTProcessor(None, tokenizer)
    problem = {"id": "q4", "question": "What is 12?", "choices": ["5", "6 × 2", "6 ÷ 2"]}
    processor({**problem, "choices": ["6 × 2", "5", "6"]})
    processor({**problem, "choices": ["5", "5", " 5"]})  # equal before any tokenizer
    assert not told()
    processor([problem, {**problem, "id": "q5"}])
    processor.encode(problem, "rationale")
    (said,) = told()
    assert said.startswith("problem q4: the options (B) 6 × 2 and (C) 6 ÷ 2 have the same tokens")
    assert "tokenizer.add_tokens" in said and "model.resize_token_embeddings(len(tokenizer))" in said
    MMCoTProcessor(None, t5_tokenizer()).encode(problem, "rationale")
    assert len(told()) == 2  # another tokenizer


def test_a_question_that_is_mostly_unknown_is_told_once(tokenizer, tiny_tokenizer, told):
    processor = MMCoTProcessor(None, tokenizer)
    choices = {"choices": ["a", "b"]}
    processor({"question": "What is 5 × 6 → n?", **choices})
    MMCoTProcessor(None, tiny_tokenizer)({"question": "这是什么?", **choices})  # spelled in bytes
    assert not told()
    for question in ("这是什么?", "What 这是什么颜色的苹果"):
        processor.check_problem({"id": 3, "question": question, **choices})
    (said,) = told()
    assert said.startswith("problem 3: most of its question is unknown") and "add_tokens" in said


def test_added_tokens_cure_it_from_problem_to_answer(told):
    """The documented cure, through the whole two-stage model."""
    from two_stage_models import make_stage

    from mmcot import MMCoTModel

    tokenizer = t5_tokenizer(extra_ids=0)
    processor = MMCoTProcessor(None, tokenizer, max_source_length=200)
    model = MMCoTModel.from_stages(make_stage(processor, 0), make_stage(processor, 1), processor)
    before = model.get_input_embeddings().weight.clone()
    assert tokenizer.add_tokens(["<", "×", "÷"]) == 3
    model.resize_token_embeddings(len(tokenizer))
    problem = {"question": "What is 5<6?", "choices": ["6 × 2", "6 ÷ 2"], "solution": "5 < 6 × 2"}
    inputs = processor(problem)
    assert tokenizer.unk_token_id not in inputs["input_ids"] and not told()
    ids = [token_ids(tokenizer, choice) for choice in problem["choices"]]
    assert ids[0] != ids[1]
    labels = processor.encode(problem, "rationale", target=True)["labels"]
    assert max(labels) >= len(before) and len(model.get_input_embeddings().weight) >= len(tokenizer)
    assert torch.equal(model.get_input_embeddings().weight[: len(before)], before)
    loss = model(
        **{name: inputs[name] for name in ("input_ids", "attention_mask")}, labels=torch.tensor([labels])
    ).loss
    assert torch.isfinite(loss)
    results = processor.post_process(model.generate(**inputs, rationale_ids=torch.tensor([labels])), problem)
    # T5's class keeps no space before an added token
    assert results[0]["rationale"].replace(" ", "") == "5<6×2" and results[0]["answer"] in ("A", "B")
    assert model.generate(**inputs, max_new_tokens=5).rationale_ids.shape[0] == 1


# ---- what is cut ----


WORD = "one two than so "


def long_problem(**fields):
    problem = {"id": 1, "question": "What is 5?", "choices": ["one", "two"], "context": "first " + WORD * 50 + "last"}
    return {**problem, "lecture": "", "solution": "", **fields}


def parts_of(tokenizer, processor, problem, *arguments):
    return tokenizer.decode(processor.encode(problem, *arguments)["input_ids"])


def test_the_context_is_cut_at_its_end_and_keeps_its_label(tokenizer):
    processor = MMCoTProcessor(None, tokenizer, max_source_length=80)
    for stage, closing in (("rationale", "Solution:"), ("answer", "Answer:")):
        text = parts_of(tokenizer, processor, long_problem(), stage, *([""] if stage == "answer" else []))
        assert text.startswith("Question: What is 5? Context: first one two than so one")
        assert "last" not in text and text.endswith(f"Options: (A) one (B) two {closing}</s>")
    ids = processor.encode(long_problem(), "rationale")["input_ids"]
    assert len(ids) == 80  # no more is cut than has to be
    whole = tokenizer(build_prompt(long_problem(), "QCM-E")[0])["input_ids"]
    start = len(token_ids(tokenizer, "Question: What is 5? Context: first one"))
    assert ids[:start] == whole[:start]
    short = MMCoTProcessor(None, tokenizer, max_source_length=len(ids) - 40)
    text = parts_of(tokenizer, short, long_problem(context="first " + WORD), "rationale")
    label_only = len(tokenizer("Question: What is 5? Context: Options: (A) one (B) two Solution:")["input_ids"])
    for limit in range(label_only - 6, label_only + 3):  # where nothing but the label is left, it goes too
        short = MMCoTProcessor(None, tokenizer, max_source_length=limit)
        try:
            text = parts_of(tokenizer, short, long_problem(), "rationale")
        except ProblemError:
            continue
        assert "Context:" not in text if limit <= label_only else "Context: f" in text, limit


def test_a_rationale_is_cut_at_its_right_end(tokenizer):
    processor = MMCoTProcessor(None, tokenizer, max_source_length=64)
    rationale = "Solution: first " + WORD * 40 + "last"
    problem = long_problem(context="")
    ids = processor.encode(problem, "answer", rationale)["input_ids"]
    assert len(ids) == 64
    text = tokenizer.decode(ids)
    assert text.startswith("Question: What is 5? Context: N/A Options: (A) one (B) two Solution: first one two")
    assert "last" not in text and text.endswith(" Answer:</s>")
    prefix = processor(problem)["answer_input_ids"][0].tolist()
    closing = processor.answer_token_ids()["answer_suffix_ids"]
    assert ids == prefix + token_ids(tokenizer, rationale)[: 64 - len(prefix) - len(closing)] + closing
    # a quarter of the limit is the rationale's, however long the context
    crowded = processor.encode(long_problem(), "answer", rationale)["input_ids"]
    assert len(crowded) == 64 and "Solution: first" in tokenizer.decode(crowded)
    assert len(processor(long_problem())["answer_input_ids"][0]) == 64 - 64 // 4 - len(closing)


@pytest.mark.parametrize("segment", ["QCML-A", "QCME-A", "QCMLE-A", "QCLM-A", "QCEM-A", "QCLEM-A"])
def test_given_texts_are_cut_after_the_context_and_keep_their_label(tokenizer, segment):
    problem = long_problem(lecture="begin " + WORD * 20 + "end", solution="begin " + WORD * 20 + "end")
    processor = MMCoTProcessor(None, tokenizer, None, segment, max_source_length=70)
    text = parts_of(tokenizer, processor, problem)
    assert "Context:" not in text and "BECAUSE: begin one" in text and "end" not in text
    assert "Options: (A) one (B) two" in text and text.endswith("Answer:</s>")
    assert len(processor.encode(problem)["input_ids"]) == 70


def test_plain_truncation_cuts_the_end_and_keeps_the_end_token(tokenizer):
    processor = MMCoTProcessor(None, tokenizer, max_source_length=50, source_truncation="end")
    for stage, prompt_format in (("rationale", "QCM-E"), ("answer", "QCMG-A")):
        problem = long_problem(solution=WORD * 30)
        expected = tokenizer(build_prompt(problem, prompt_format)[0], truncation=True, max_length=50)["input_ids"]
        assert processor.encode(problem, stage)["input_ids"] == expected
        assert processor(problem, stage=stage)["input_ids"][0].tolist() == expected
        assert len(expected) == 50 and expected[-1:] == end_ids(tokenizer) == [1]
    assert processor(long_problem())["answer_input_ids"].shape == (1, 50)


def test_labels_are_never_cut_and_end_in_the_end_token(tokenizer):
    processor = MMCoTProcessor(None, tokenizer, max_source_length=60)
    problem = long_problem(context="", solution=WORD * 99, answer=0)
    labels = processor.encode(problem, "rationale", target=True)["labels"]
    assert labels == tokenizer(build_prompt(problem, "QCM-E")[1])["input_ids"] and labels[-1] == 1


def test_options_that_surely_differ_are_told_apart_without_the_tokenizer(tiny_tokenizer):
    from mmcot.processing.tokens_mmcot import _surely_differ

    assert _surely_differ(tiny_tokenizer, ["one", "two", "Three"])
    for choices in (["one", "ONE"], ["one  two", "one two"], ["α", "β"], ["one", "two", "one"]):
        assert not _surely_differ(tiny_tokenizer, choices)
