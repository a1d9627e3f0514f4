"""Rationales whose truth is known by construction: solutions of generated questions, and solutions of pictures that
the questions don't have.

A network that can't see writes what could be in a picture. Of a generated question all that could be there is known:
each option has its pictures, and each picture its solution.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from mmcot.training.data.embedded.skills import SKILLS

DRAWS = 24  # pictures an option; several details may be drawn


def other_solutions(index: int, seed: int = 0, skills: Sequence[str] | None = None, split: str = "train") -> set[str]:
    """The solutions that other pictures of a question would have; empty for a question without a picture.

    Args: as those of `generate_problems`, and the problem's place among them.
    """
    names = list(SKILLS) if skills is None else list(skills)
    skill = SKILLS[names[index % len(names)]]
    if skill.show is None:
        return set()
    rng = Random(f"mmcot {seed} {split} {index}")  # as `generate_problems` draws
    asked = skill.ask(rng)
    choices = list(asked.choices)
    rng.shuffle(choices)
    answer = rng.randrange(len(choices))
    _, own = skill.show(rng, asked, choices, answer)
    found = set()
    for other in range(len(choices)):
        for draw in range(DRAWS):
            found.add(skill.show(Random(f"{seed} {split} {index} {other} {draw}"), asked, choices, other)[1])
    return found - {own}


def rationale_cases(
    num: int, seed: int = 0, skills: Sequence[str] | None = None, split: str = "test"
) -> Iterator[dict]:
    """Rationales of generated questions with their truth: `rationale`, `gold`, `hallucinated`, `kind`, `id`.

    Of a question with a picture half are true (the solution itself, or in other words), half describe another picture.
    """
    from mmcot.training.data.embedded.generate import generate_problems

    for index, problem in enumerate(generate_problems(num, seed, skills, split)):
        rng = Random(f"cases {seed} {split} {index}")
        gold, common = f"{problem['lecture']} {problem['solution']}", {"id": problem["id"]}
        kind = rng.choice(list(_REWORDED))
        yield {**common, "rationale": _REWORDED[kind](problem), "gold": gold, "hallucinated": False, "kind": kind}
        others = sorted(other_solutions(index, seed, skills, split))
        if others:
            text = {**problem, "solution": rng.choice(others)}
            kind = rng.choice(list(_REWORDED))
            if kind == "first sentence" and _sentences(text)[0] in _sentences(problem):
                kind = "as it is"  # that sentence is true of both pictures
            rationale = {"rationale": _REWORDED[kind](text), "gold": gold, "hallucinated": True}
            yield {**common, **rationale, "kind": f"another picture, {kind}"}


def truth_of_rationale(rationale: str, problem: dict[str, Any], others: set[str]) -> bool | None:
    """Whether a rationale describes another picture: False where it is the solution, True where it is another one's,
    None where it is neither and nobody knows."""
    text = " ".join(rationale.strip().removeprefix("Solution:").split()).removesuffix("..").rstrip(".")
    lecture = " ".join(problem["lecture"].split())
    text = text.removeprefix(lecture).strip()
    if text == problem["solution"].rstrip("."):
        return False
    return True if any(text == other.rstrip(".") for other in others) else None


_OTHER_WORDS = (("In the picture, ", "The picture shows that "), ("So, ", "Therefore, "), (" is at ", " lies at "))
# other words for what is seen itself: the hard case, for words alone don't tell a synonym from another thing
_SYNONYMS = (
    ("at the bottom", "lowest"),
    ("at the top", "uppermost"),
    ("tallest", "highest"),
    ("shortest", "smallest"),
    ("faces", "points to"),
    ("petals are", "petals look"),
    ("stripe is", "band is"),
    ("lower", "further down"),
    ("has a higher concentration", "is more concentrated"),
    ("plain", "without a pattern"),
    ("a thing", "an object"),
    ("rhymes", "is the rhyme"),
    ("is warmer than", "is hotter than"),
    ("gives up", "misses"),
    ("exaggerates", "overstates"),
)


def _replaced(*words: tuple[str, str]):
    def reword(problem: dict[str, Any]) -> str:
        text = problem["solution"]
        for old, new in words:
            text = text.replace(old, new)
        return text

    return reword


def _sentences(problem: dict[str, Any]) -> list[str]:
    return [f"{part.rstrip('.')}." for part in problem["solution"].split(". ")]


_REWORDED = {
    "as it is": lambda problem: problem["solution"],
    "with the lecture": lambda problem: f"Solution: {problem['lecture']} {problem['solution']}.",
    "first sentence": lambda problem: _sentences(problem)[0],
    "another order": lambda problem: " ".join(reversed(_sentences(problem))),
    "in other words": _replaced(*_OTHER_WORDS),
    "synonyms": _replaced(*_OTHER_WORDS[:2], *_SYNONYMS),
    "lower case": lambda problem: problem["solution"].lower(),
}
