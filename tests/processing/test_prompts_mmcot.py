"""Prompts equal the original's byte for byte; answers are parsed as the paper does."""

import gzip
import json
import subprocess
import sys

import pytest

from mmcot.processing import PROMPT_FORMATS, build_prompt, option_letter, parse_answer

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
