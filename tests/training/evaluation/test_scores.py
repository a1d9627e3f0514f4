"""Scores agree with the packages that the original uses, and have a value where those raise."""

import json
import math
import random
import re

import pytest

from mmcot.training.evaluation.accuracy import (
    accuracy_table,
    column_members,
    grade_number,
    mcnemar_exact,
    paired_difference_interval,
    wilson_interval,
)
from mmcot.training.evaluation.rationales import bleu, rationale_scores, rouge_l, rouge_l_original

# (prediction, reference, F of rouge 1.0.1's get_scores(reference, prediction)): computed with the package itself.
ROUGE_ORIGINAL = [
    ("The cat sat on the mat.", "The cat lay on the mat.", 0.8333333283333335),
    ("b a c a. d b", "a b c. b d a c", 0.749999995),  # 1.0 with the arguments the other way round
    ("a b . . c", "c b a. b", 0.5714285665306124),  # a sentence of white space only is one empty word
    ("Solution: it melts. So it is a liquid. ", "Solution: it is a solid. It melts.", 0.6666666616888889),
    ("x y z w v u", "u v w x y z. z y x", 0.4999999950000001),
    ("A dog. A dog. A dog.", "a dog", 0.4999999950000001),
    ("one two three", "four five", 0.0),
    (" ", "a b", 0.0),
]


def random_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    words = ["cat", "cats", "Dogs", "running", "a", "b", "the.", ".", "x,y", "3.5", "\n", "Solution:"]
    return [tuple(" ".join(rng.choices(words, k=rng.randrange(1, 30))) for _ in range(2)) for _ in range(count)]


@pytest.mark.parametrize("prediction,reference,expected", ROUGE_ORIGINAL)
def test_rouge_l_original_is_that_of_the_package(prediction, reference, expected):
    assert rouge_l_original(prediction, reference) == pytest.approx(expected, abs=1e-9)


def test_rouge_l_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for prediction, reference in random_pairs(300):
        expected = scorer.score(reference, prediction)["rougeL"].fmeasure
        assert rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_bleu_is_that_of_nltk_on_the_original_tokens():
    from nltk.translate.bleu_score import sentence_bleu

    def tokens(text):
        return [token for token in re.split(r"\s|\.", text) if token]

    for prediction, reference in [*random_pairs(300), ("a b c", "a b c d"), ("a b c d e f", "a b c d"), ("", "a")]:
        for order in (1, 4):
            expected = sentence_bleu([tokens(reference)], tokens(prediction), (1 / order,) * order)
            assert bleu(prediction, reference, order) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("score", [rouge_l, rouge_l_original, lambda p, r: bleu(p, r, 1), lambda p, r: bleu(p, r, 4)])
@pytest.mark.parametrize("empty", ["", ".", "...", " "])
def test_a_text_without_words_scores_zero(score, empty):
    assert score(empty, "a b. c d e") == 0
    assert score("a b. c d e", empty) == 0
    assert score(empty, empty) == 0 or empty == " "


def test_long_texts_need_no_recursion():
    rng = random.Random(1)
    prediction, reference = (" ".join(f"w{rng.randrange(300)}" for _ in range(1500)) for _ in range(2))
    assert 0 < rouge_l_original(prediction, reference) < 1
    assert rouge_l_original(prediction, prediction) == pytest.approx(1, abs=1e-6)


def test_which_pairs_a_mean_counts():
    scores = rationale_scores(["a b c d", "", "x"], ["a b c d", "a b", " "])
    assert scores["rougeL_original"] == pytest.approx(1, abs=1e-7)  # the empty prediction isn't counted, as theirs
    assert scores["rougeL"] == scores["bleu1"] == scores["bleu4"] == 0.5  # it counts here; an empty reference nowhere
    assert rationale_scores([""], ["a"]) == {"rougeL": 0, "rougeL_original": 0, "bleu1": 0, "bleu4": 0}
    assert rationale_scores(["a"], [""]) == {}


def test_released_rationales_score_as_with_the_original_packages(shared_dir):
    """Expected: rouge_score 0.1.2, rouge 1.0.1 and NLTK, with the original's calls, on 4,241 real rationales."""
    content = json.loads((shared_dir / "data" / "scienceqa_test" / "mmcot_base_predictions.json").read_text())
    scores = rationale_scores(*zip(*((r["rationale"], r["rationale_label"]) for r in content.values()), strict=True))
    expected = {
        "rougeL": 0.9143015181492942,
        "rougeL_original": 0.9368480837455837,
        "bleu1": 0.9185922395528361,
        "bleu4": 0.7876413609683264,
    }
    assert scores == pytest.approx(expected, abs=1e-9)


def test_columns_by_subject_context_and_grade():
    problems = [
        {"subject": "natural science", "hint": "look", "image": "image.png", "grade": "grade1"},
        {"subject": "social science", "context": "", "hint": "not this one", "image": None, "grade": "grade7"},
        {"subject": "language science", "hint": "", "image": "", "grade": "grade12"},
        {"subject": "natural science", "has_hint": True, "has_image": False, "image": "choice", "grade": 6},
    ]
    members = column_members(problems)
    assert list(members) == ["NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg"]
    assert members["NAT"] == [True, False, False, True]
    assert members["TXT"] == [True, False, False, True]
    assert members["IMG"] == [True, False, False, False]
    assert members["NO"] == [False, True, True, False]
    assert members["G1-6"] == [True, False, False, True]
    assert members["G7-12"] == [False, True, True, False]


def test_columns_without_their_fields_are_left_out():
    assert list(column_members([{"answer": 0}])) == ["Avg"]
    assert list(column_members([{"has_hint": True}, {}])) == ["TXT", "Avg"]  # no images known: NO isn't either
    assert list(column_members([{"subject": "natural science"}, {"subject": None}])) == ["Avg"]
    assert list(column_members([{"grade": "grade3"}, {"grade": "college"}])) == ["Avg"]
    assert list(column_members([{"images": []}, {"images": ["a"]}])) == ["IMG", "Avg"]
    assert [grade_number({"grade": g}) for g in ("grade10", "7", 3, "", None)] == [10, 7, 3, None, None]


def test_accuracy_table_refuses_what_has_no_answer():
    with pytest.raises(ValueError, match="2 problems but 1"):
        accuracy_table([{}, {}], [True])
    with pytest.raises(ValueError, match="no problems"):
        accuracy_table([], [])


def test_wilson_interval_holds_the_proportions_that_a_score_test_keeps():
    for k, n in [(3, 10), (3645, 4241), (1, 3)]:
        for bound in wilson_interval(k, n):
            assert abs(k / n - bound) == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / n))
    assert wilson_interval(0, 5)[0] == 0 and wilson_interval(5, 5)[1] == 1


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs():
    assert mcnemar_exact(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar_exact(5, 1) == mcnemar_exact(1, 5)
    assert mcnemar_exact(0, 0) == mcnemar_exact(3, 3) == 1
    assert 0 < mcnemar_exact(300, 800) < 1e-50


def test_interval_of_a_paired_difference():
    low, high = paired_difference_interval(100, 160, 4241)
    assert low < 60 / 4241 < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(260) / 4241, rel=0.02)
    assert paired_difference_interval(0, 0, 10)[0] == pytest.approx(-paired_difference_interval(0, 0, 10)[1])
