"""What guessing gives, and whether the options give the answer away."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmcot.training.data.batched import read_column


def check_options(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of options, places of the right answers, repeated options.

    Returns:
        {"counts": {number of options → questions}, "answers": {letter → {"n", "expected"}} of all questions with an
        answer, "p_value" of the answers' places against equal chances (chi-squared; small: the places are uneven),
        "repeated": ids of questions that have an option twice, "unanswered": {split → questions}}.
    """
    counts: Counter[int] = Counter()
    answers: Counter[int] = Counter()
    expected: Counter[int] = Counter()
    repeated: list[str] = []
    unanswered: dict[str, int] = {}
    for split, problems in splits.items():
        columns = (read_column(problems, name) for name in ("id", "choices", "answer"))
        for id_, choices, answer in zip(*columns, strict=True):
            counts[len(choices)] += 1
            if len({choice.strip() for choice in choices}) < len(choices):
                repeated.append(id_)
            if answer is None:
                unanswered[split] = unanswered.get(split, 0) + 1
                continue
            answers[answer] += 1
            for place in range(len(choices)):
                expected[place] += 1 / len(choices)
    return {
        "counts": dict(sorted(counts.items())),
        "answers": {
            chr(65 + place): {"n": answers[place], "expected": round(expected[place], 1)} for place in sorted(expected)
        },
        "p_value": _p_value(answers, expected),
        "repeated": repeated,
        "unanswered": unanswered,
    }


def _p_value(answers: Counter, expected: Counter) -> float | None:
    """Of the places, by chi-squared; those with few expected answers count as one."""
    from scipy.special import chdtrc  # scipy.stats takes a second to import

    seen, wanted, rare = [], [], [0.0, 0.0]
    for place in sorted(expected):
        if expected[place] >= 5:
            seen.append(answers[place])
            wanted.append(expected[place])
        else:
            rare = [rare[0] + answers[place], rare[1] + expected[place]]
    if rare[1] and seen:
        seen[-1] += rare[0]
        wanted[-1] += rare[1]
    if len(seen) < 2:
        return None
    scale = sum(seen) / sum(wanted)
    distance = sum((one - scale * other) ** 2 / (scale * other) for one, other in zip(seen, wanted, strict=True))
    return float(chdtrc(len(seen) - 1, distance))


def guessing_baselines(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies in % of rules that look at no question, on the test problems (else val, else train).

    Returns:
        {"split", "n", "chance": drawing an option, "letter": always the place that is right most often in training
        (the first where a question has fewer), "longest": the longest option, "frequent": the option that is right
        most often in training (where none was: by chance)}; {} without answers.
    """
    found = [name for name in ("test", "val", "train", *splits) if name in splits]
    for split in found:
        rows = _rows(splits[split])
        if rows:
            break
    else:
        return {}
    train = _rows(splits["train"]) if "train" in splits else rows
    places = Counter(answer for _, answer in train)
    texts = Counter(choices[answer].strip() for choices, answer in train)
    best = places.most_common(1)[0][0] if places else 0
    chance = sum(1 / len(choices) for choices, _ in rows)
    letter = sum((best if best < len(choices) else 0) == answer for choices, answer in rows)
    longest = frequent = 0.0
    for choices, answer in rows:
        lengths = [len(choice.strip()) for choice in choices]
        longest += _share(lengths, answer)
        seen = [texts[choice.strip()] for choice in choices]
        frequent += _share(seen, answer)
    shares = {"chance": chance, "letter": letter, "longest": longest, "frequent": frequent}
    return {
        "split": split,
        "n": len(rows),
        "letter_used": chr(65 + best),
        **{name: round(100 * value / len(rows), 2) for name, value in shares.items()},
    }


def _share(values: list[int], answer: int) -> float:
    """1 if the answer alone has the highest value, a part where several have it, else 0."""
    top = max(values)
    return (values[answer] == top) / values.count(top)


def _rows(problems) -> list[tuple[list[str], int]]:
    pairs = zip(read_column(problems, "choices"), read_column(problems, "answer"), strict=True)
    return [(choices, answer) for choices, answer in pairs if answer is not None]
