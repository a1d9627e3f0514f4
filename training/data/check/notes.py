"""What is said of a data set: faults that stop a training, and things worth a thought."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

SHOWN = 5
HIGH = 10  # points above chance at which a rule that looks at no question is worth a word


def find_faults(found: Mapping[str, Any]) -> list[str]:
    """One line for each thing that can't work, of what `check_problems` found."""
    faults = []
    sizes = found["splits"]
    if not sizes.get("train"):
        named = ", ".join(sizes) or "none"
        faults.append(f"there is no question to train on: the splits are {named}; call one train, or say train_split=")
    unanswered = found["options"]["unanswered"].get("train", 0)
    if unanswered:
        faults.append(f"{unanswered:,} training questions have no answer: training needs one for each")
    broken = found["images"]["broken"]
    if broken:
        told = [f"question {id_}: {reason}" for id_, reason in list(broken.items())[:SHOWN]]
        more = f"; and {len(broken) - SHOWN:,} more" if len(broken) > SHOWN else ""
        faults.append(f"{_pictures(len(broken))} can't be read: {'; '.join(told)}{more}; mend or remove them")
    for stage, lengths in found.get("lengths", {}).items():
        if lengths["too_long"]:
            first = next(iter(lengths["too_long"].values()))
            count = len(lengths["too_long"])
            more = f" (so are {count - 1:,} more)" if count > 1 else ""
            faults.append(f"{stage} stage: {first}{more}")
    return faults


def find_warnings(found: Mapping[str, Any], needed: Collection[str] = ("val", "test")) -> list[str]:
    """One line for each thing worth a thought; of `needed` splits, that one isn't there."""
    lines = []
    total = sum(found["splits"].values())
    for split in ("val", "test"):
        if split in needed and "train" in found["splits"] and not found["splits"].get(split):
            use = "choose the best checkpoint by" if split == "val" else "measure the model by"
            lines.append(f"there is no {split} split to {use}")
    lines += _of_rationales(found)
    images = found["images"]
    if images.get("tiny"):
        lines.append(f"{_pictures(images['tiny'])} have a side of less than 16 pixels")
    if images.get("narrow"):
        lines.append(f"{_pictures(images['narrow'])} are more than 8 times as long as wide: resizing squeezes them")
    lines += _of_lengths(found)
    unknown = found.get("unknown_characters")
    if unknown:
        most = " ".join(list(unknown)[:20])
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        times = sum(unknown.values())
        lines.append(f"the tokenizer doesn't know {len(unknown)} characters, {times:,} times in all: {most}{more}")
    options = found["options"]
    if options["repeated"]:
        lines.append(f"{_questions(len(options['repeated']))} have an option twice: {_some(options['repeated'])}")
    if options["p_value"] is not None and options["p_value"] < 0.001:
        answers = options["answers"]
        worst = max(answers, key=lambda letter: answers[letter]["n"] - answers[letter]["expected"])
        lines.append(
            f"right answers stand at ({worst}) in {answers[worst]['n']:,} questions, where "
            f"{answers[worst]['expected']:,.0f} would be even: a model may learn the place; shuffle the options"
        )
    lines += _of_guessing(found["guessing"])
    lines += _of_duplicates(found["duplicates"], found["splits"])
    if 0 < total < 200:
        lines.append(f"{total} questions are few: expect wide intervals, and start from a trained model")
    return lines


def _of_rationales(found: Mapping[str, Any]) -> list[str]:
    train = found["rationales"].get("train")
    if train is None or train["solution"] == 100:
        return []
    if train["solution"] == 0:
        other = " (there are lectures)" if train["lecture"] else ""
        return [
            f"no training question has a solution to learn the rationale from{other}: train one stage "
            "(rationale_format=null answer_format=QCM-A), or let a teacher write them (`mmcot distill`)"
        ]
    return [
        f"{100 - train['solution']:.1f} % of the training questions have no solution: they teach an empty rationale"
    ]


def _of_lengths(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for stage, lengths in found.get("lengths", {}).items():
        for what, count in lengths["cut"].items():
            lines.append(
                f"{stage} stage: the end of the {what.removeprefix('end of the ')} is cut in {_questions(count)} by "
                f"max_source_length={lengths['limit']}: {_some(lengths['cut_ids'])}"
            )
        if lengths["target_cut"]:
            lines.append(
                f"{stage} stage: {lengths['target_cut']:,} targets are longer than "
                f"max_target_length={lengths['target_limit']} and lose their end"
            )
    return lines


def _of_guessing(guessing: Mapping[str, Any]) -> list[str]:
    rules = {
        "letter": f"always ({guessing.get('letter_used')})",
        "longest": "always the longest option",
        "frequent": "always the option that is right most often in training",
    }
    return [
        f"{rule} is right in {guessing[name]:.1f} % of the {guessing['split']} questions (guessing: "
        f"{guessing['chance']:.1f} %): a model can learn that without the question"
        for name, rule in rules.items()
        if guessing and guessing["n"] >= 50 and guessing[name] > guessing["chance"] + HIGH
    ]


def _of_duplicates(duplicates: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    lines = []
    for kind, word in (("equal", "occur in train too"), ("near", "are nearly equal to questions in train")):
        for split, pairs in duplicates[kind].items():
            share = 100 * len(pairs) / sizes[split]
            pair = " like ".join(pairs[0])
            count = f"{len(pairs):,} of the {sizes[split]:,} {split} questions"
            lines.append(f"{count} ({share:.1f} %) {word}: {pair}")
    if duplicates["contradicting"]:
        one, other = duplicates["contradicting"][0]
        count = len(duplicates["contradicting"])
        lines.append(f"{_questions(count)} that occur twice have different right answers: {one} and {other}")
    return lines


def _questions(count: int) -> str:
    return "1 question" if count == 1 else f"{count:,} questions"


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count:,} pictures"


def _some(ids: Sequence[str]) -> str:
    more = f", … ({len(ids):,})" if len(ids) > SHOWN else ""
    return ", ".join(map(str, ids[:SHOWN])) + more
