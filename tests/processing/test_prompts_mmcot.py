"""Prompts equal the original's byte for byte; answers are parsed as the paper does."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from mmcot.processing import PROMPT_FORMATS, ProblemError, build_prompt, option_letter, parse_answer
from mmcot.processing.prompts_mmcot import check_text, choices_of, is_absent, problem_name, shown, text_of

PROBLEM = {
    "id": "7",
    "question": "Which  is\nred?",
    "choices": ["apple", "sky"],
    "answer": 0,
    "hint": "Look.",
    "caption": "a bowl",
    "lecture": "First.\nSecond.",
    "solution": "Apples are red.",
}
HEAD = "Question: Which is red? Context: Look. Options: (A) apple (B) sky"


def test_all_texts_are_the_original_s(golden_dir):
    content = json.loads(gzip.decompress((golden_dir / "prompts_free.json.gz").read_bytes()))
    for id_, prompt_format, use_caption, rationale, source, target in content["records"]:
        problem = {"id": id_, **content["problems"][id_]}
        got = build_prompt(problem, prompt_format, use_caption=use_caption, rationale=rationale)
        assert got == (source, target), (id_, prompt_format)
    assert len(content["records"]) == 9504


def test_expected_texts_of_real_problems(shared_dir):
    problems = json.loads((shared_dir / "data/scienceqa/problems.json").read_text())
    captions = json.loads((shared_dir / "data/scienceqa/captions.json").read_text())["captions"]
    expected = json.loads((shared_dir / "golden/prompts_sample.json").read_text())
    for item in expected:
        problem = {**problems[item["id"]], "caption": captions.get(item["id"], "")}
        got = build_prompt(problem, item["format"], use_caption=item["use_caption"], rationale=item["rationale"])
        assert got == (item["source"], item["target"])
    assert len(expected) == 420


@pytest.mark.parametrize(
    ("prompt_format", "source", "target"),
    [
        ("QCM-A", f"{HEAD} Answer:", "The answer is (A)."),
        ("QCM-E", f"{HEAD} Solution:", "Solution: Apples are red."),
        ("QCM-LE", f"{HEAD} Solution:", "Solution: First.\\nSecond. Apples are red.."),
        ("QCM-LEA", f"{HEAD} Solution:", "First.\\nSecond. Apples are red. The answer is (A)."),
        ("QCM-ELA", f"{HEAD} Solution:", "Apples are red. First.\\nSecond. The answer is (A)."),
        ("QCM-EA", f"{HEAD} Solution:", "Apples are red. The answer is (A)."),
        ("QCM-LA", f"{HEAD} Solution:", "First.\\nSecond. The answer is (A)."),
        ("QCM-ALE", f"{HEAD} Solution:", "The answer is (A). BECAUSE: First.\\nSecond. Apples are red."),
        ("QCM-AEL", f"{HEAD} Solution:", "The answer is (A). BECAUSE: Apples are red. First.\\nSecond."),
        ("QCM-AL", f"{HEAD} Solution:", "The answer is (A). BECAUSE: Apples are red."),
        ("QCM-AE", f"{HEAD} Solution:", "The answer is (A). BECAUSE: First.\\nSecond."),
        ("QM-A", "Question: Which is red? Options: (A) apple (B) sky Answer:", "The answer is (A)."),
        ("QC-A", "Question: Which is red? Context: Look. Answer:", "The answer is (A)."),
        (
            "CQM-A",
            "Context: Look. Question: Which is red? Options: (A) apple (B) sky Answer:",
            "The answer is (A).",
        ),
        ("QCML-A", f"{HEAD} BECAUSE: First.\\nSecond. Answer:", "The answer is (A)."),
        ("QCME-A", f"{HEAD} BECAUSE: Apples are red. Answer:", "The answer is (A)."),
        ("QCMLE-A", f"{HEAD} BECAUSE: First.\\nSecond. Apples are red. Answer:", "The answer is (A)."),
        ("QCMG-A", f"{HEAD} Solution: First.\\nSecond. Apples are red. Answer:", "The answer is (A)."),
        ("QCMA-E", f"{HEAD} Answer: The answer is (A). Solution:", "Solution: Apples are red."),
        (
            "QCEM-A",
            "Question: Which is red? Context: Look. BECAUSE: Apples are red. Options: (A) apple (B) sky Answer:",
            "The answer is (A).",
        ),
        (
            "QCA-E",  # the original glues the closing to BECAUSE:
            "Question: Which is red? Context: Look. Answer: The answer is (A). BECAUSE:Solution:",
            "Solution: Apples are red.",
        ),
    ],
)
def test_formats(prompt_format, source, target):
    assert build_prompt(PROBLEM, prompt_format) == (source, target)


def test_generated_rationale_is_taken_as_it_is():
    for given, text in (("Solution: Red\n it is. ", " Solution: Red it is."), ("odd", " odd"), ("", "")):
        assert build_prompt(PROBLEM, "QCMG-A", rationale=given)[0] == f"{HEAD}{text} Answer:"
    assert build_prompt(PROBLEM, "QCM-A", rationale="unused")[0] == f"{HEAD} Answer:"


def test_context_caption_and_their_absence():
    def context(**fields):
        return build_prompt({**PROBLEM, **fields}, "QC-A", use_caption=True)[0].split("Context: ")[1]

    assert context() == "Look. a bowl Answer:"
    assert context(context="Mine.") == "Mine. a bowl Answer:"
    assert context(hint="") == "a bowl Answer:"
    assert context(hint=None, caption=None) == "N/A Answer:"


def test_empty_texts_and_texts_that_look_like_the_template():
    assert build_prompt({**PROBLEM, "lecture": "", "solution": ""}, "QCM-LE")[1] == "Solution: ."
    assert build_prompt({**PROBLEM, "lecture": "", "solution": ""}, "QCM-ALE")[1] == "The answer is (A). BECAUSE:"
    assert build_prompt({**PROBLEM, "solution": "x BECAUSE:"}, "QCM-AL")[1] == "The answer is (A). x"
    assert build_prompt({**PROBLEM, "solution": "An Answer: {x}"}, "QCM-E")[1] == "Solution: An {x}"


NOTHING = [None, float("nan"), np.float32("nan"), np.float64("nan")]


def nothing() -> list:
    """What stands for an absent value, in tables of all kinds."""
    try:
        import pandas
    except ImportError:
        return NOTHING
    return [*NOTHING, pandas.NA, pandas.NaT]


@pytest.mark.parametrize(
    "name", ["hint", "context", "caption", "lecture", "solution", "question", "answer", "choices"]
)
def test_nan_is_absent_in_every_field(name):
    problem = {key: value for key, value in PROBLEM.items() if key not in (name, name == "choices" and "answer")}
    for prompt_format in ("QCM-LE", "QCMG-A", "QCM-A"):
        expected = build_prompt(problem, prompt_format, use_caption=True)
        for value in nothing():
            assert build_prompt({**problem, name: value}, prompt_format, use_caption=True) == expected, value
    for value in nothing():  # and doesn't hide the field that stands in
        assert "Context: Look." in build_prompt({**PROBLEM, "context": value}, "QCM-A")[0]


def test_absent_or_not():
    assert all(is_absent(value) for value in nothing())
    for value in ("", "nan", 0, False, [], {}, np.array([np.nan, 1]), np.array([]), 1.5, np.int64(3), "None"):
        assert not is_absent(value), value


@pytest.mark.parametrize("name", ["question", "hint", "context", "caption", "lecture", "solution"])
@pytest.mark.parametrize(
    "value", [5, 1.5, ["a"], {"a": "b"}, b"bytes", True, np.array(["a"])], ids=lambda v: type(v).__name__
)
def test_a_field_that_is_no_text_is_named(name, value):
    for ask in (check_text, lambda problem: build_prompt(problem, "QCM-LE", use_caption=True)):
        with pytest.raises(
            ProblemError, match=f"^problem 7: '{name}' must be a text, and is of type {type(value).__name__}$"
        ):
            ask({**PROBLEM, name: value})


@pytest.mark.parametrize(
    "value", ["['a', 'b']", {"A": "a", "B": "b"}, {"a", "b"}, 5, b"ab"], ids=lambda v: type(v).__name__
)
def test_choices_that_are_no_list_are_named(value):
    for ask in (check_text, choices_of, lambda problem: build_prompt(problem, "QCM-A")):
        with pytest.raises(
            ProblemError,
            match=f"^problem 7: 'choices' must be a list of texts, and is of type {type(value).__name__}$",
        ):
            ask({**PROBLEM, "choices": value})


@pytest.mark.parametrize("value", [*NOTHING, 2, ["b"], b"b"], ids=repr)
def test_a_choice_that_is_no_text_is_named(value):
    for choices in (["a", value], ("a", value)):
        with pytest.raises(
            ProblemError, match=f"^problem 7: number 2 of 'choices' must be a text, .* {type(value).__name__}$"
        ):
            build_prompt({**PROBLEM, "choices": choices}, "QCM-A")


def test_columns_of_numpy_and_pyarrow_are_lists():
    expected = build_prompt(PROBLEM, "QCM-A")
    lists = [("apple", "sky"), np.array(["apple", "sky"]), np.array(["apple", "sky"], dtype=object)]
    pyarrow = pytest.importorskip("pyarrow")
    lists += [pyarrow.array(["apple", "sky"]), pyarrow.array([["apple", "sky"]])[0]]
    for choices in lists:
        assert build_prompt({**PROBLEM, "choices": choices}, "QCM-A") == expected
    assert choices_of({"choices": np.array([], dtype=str)}) == choices_of({}) == []


def test_answers_of_every_integer_type():
    for answer in (1, np.int64(1), np.uint8(1), np.int8(1), 1.0, np.float32(1)):
        assert build_prompt({**PROBLEM, "answer": answer}, "QCM-A")[1] == "The answer is (B)."
    for answer in ("1", "B", 0.5, [1], float("inf"), np.int64(2), -1, "x" * 5000):
        with pytest.raises(
            ProblemError, match="^problem 7: answer .* is not the index of one of its 2 choices$"
        ) as error:
            build_prompt({**PROBLEM, "answer": answer}, "QCM-A")
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("half", ["\ud800", "\udfff", "\udc80"])
def test_half_a_character_is_refused_by_name(half):
    for fields, name in (
        ({"question": f"Wh{half}t?"}, "'question'"),
        ({"choices": ["a", half]}, "number 2 of 'choices'"),
    ):
        with pytest.raises(ProblemError, match=f"^problem 7: {name} holds half of a character") as error:
            build_prompt({**PROBLEM, **fields}, "QCM-A")
        assert str(error.value).isascii() and ascii(half)[1:-1] in str(error.value)
    with pytest.raises(ProblemError, match="its rationale holds half of a character"):
        build_prompt(PROBLEM, "QCMG-A", rationale=half)
    with pytest.raises(ProblemError, match="its rationale must be a text, and is of type float"):
        build_prompt(PROBLEM, "QCMG-A", rationale=float("nan"))
    assert text_of({"question": "\U0001f600 é 这"}, "question") == "\U0001f600 é 这"


def test_a_problem_that_cannot_be_asked():
    check_text(PROBLEM)
    for change, said in [
        ({"question": " \n"}, "problem 7: the question is empty"),
        ({"question": None}, "problem 7: the question is empty"),
        ({"choices": []}, "problem 7 has 0 choices; there must be 2 to 26"),
        ({"choices": None}, "problem 7 has 0 choices"),
        ({"choices": ["one"]}, "problem 7 has 1 choice; there"),
        ({"choices": ["x"] * 27}, "problem 7 has 27 choices"),
    ]:
        with pytest.raises(ProblemError, match=said):
            check_text({**PROBLEM, **change})
    check_text({**PROBLEM, "choices": ["x"] * 26, "answer": "unread", "hint": "word " * 10**6})


def test_messages_are_short_lines():
    assert problem_name({"id": "a\nb\ud800"}) == "problem a b\\ud800"
    assert problem_name({"id": None}) == problem_name({}) == problem_name({"id": float("nan")}) == "problem"
    assert problem_name({"id": 0}) == "problem 0"
    for name in (problem_name({"id": "x" * 5000}), shown("begin" + "x" * 5000 + "end")):
        assert len(name) <= 210
    assert shown("begin" + "x" * 5000 + "end").startswith("begin") and shown("x" * 5000 + "end").endswith("end")
    assert shown("x" * 200) == "x" * 200


def test_problem_without_answer_has_a_source_and_no_target():
    problem = {key: value for key, value in PROBLEM.items() if key != "answer"}
    assert build_prompt(problem, "QCM-A") == (f"{HEAD} Answer:", "")
    with pytest.raises(ValueError, match="problem 7.*needs an answer"):
        build_prompt(problem, "QCMA-E")


def test_errors_say_which():
    with pytest.raises(ValueError, match="'QCX-A' does not exist"):
        build_prompt(PROBLEM, "QCX-A")
    with pytest.raises(ValueError, match="problem 7: answer 2 is not the index of one of its 2 choices"):
        build_prompt({**PROBLEM, "answer": 2}, "QCM-A")
    assert build_prompt({**PROBLEM, "answer": -1}, "QCM-E")[0] == f"{HEAD} Solution:"  # which doesn't tell the answer
    with pytest.raises(ValueError, match="at most 26"):
        option_letter(26)


def test_parse_answer():
    assert parse_answer("The answer is (B).", 2) == 1
    assert parse_answer("So red. The answer is (A). BECAUSE: …", 2) == 0
    for text in ("The answer is (C).", "The answer is B.", "", None, "The answer is (A). The answer is (A)."):
        assert parse_answer(text, 2) is None
    for prompt_format in PROMPT_FORMATS:
        if "A" in prompt_format.split("-")[1]:
            assert parse_answer(build_prompt(PROBLEM, prompt_format)[1], 2) == 0


def test_import_needs_no_torch():
    code = "import sys, mmcot.processing as p; p.parse_answer('', 2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
