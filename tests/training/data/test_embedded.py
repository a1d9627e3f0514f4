"""The embedded data: the same for everyone, complete, true to what is drawn, and unsolvable without the picture."""

import json
import time
import zlib
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from mmcot.training.data.embedded.generate import generate_problems, write_scienceqa
from mmcot.training.data.embedded.pictures import COLORS
from mmcot.training.data.embedded.skills import SKILLS, Skill

KEYS = {
    "id", "question", "choices", "answer", "context", "caption", "images", "lecture", "solution", "subject", "grade",
    "topic", "category", "skill", "task", "split",
}  # fmt: skip
IMAGE_SKILLS = [name for name, skill in SKILLS.items() if skill.show is not None]


def same(a, b):
    pictures = all(x.tobytes() == y.tobytes() for x, y in zip(a["images"], b["images"], strict=True))
    return pictures and {**a, "images": None} == {**b, "images": None}


def test_a_problem_depends_on_its_seed_and_place_alone():
    few, many = list(generate_problems(20, seed=3)), list(generate_problems(40, seed=3))
    assert all(same(a, b) for a, b in zip(few, many, strict=False))
    # one fixed problem, so that another machine or version can't drift apart unnoticed
    first = few[0]
    assert first["question"] == "Which region is in the west?"
    assert (first["choices"], first["answer"]) == (["purple region", "green region", "yellow region"], 1)


def test_seeds_and_splits_are_separate_streams():
    texts = [
        [(p["question"], tuple(p["choices"]), p["solution"]) for p in generate_problems(60, seed=seed, split=split)]
        for seed, split in ((0, "train"), (1, "train"), (0, "test"))
    ]
    for a, b in ((0, 1), (0, 2)):
        assert sum(x == y for x, y in zip(texts[a], texts[b], strict=True)) < 10
    assert {p["split"] for p in generate_problems(3, split="test")} == {"test"}


def test_records_are_complete_and_every_kind_occurs():
    problems = list(generate_problems(600))
    for problem in problems:
        assert set(problem) == KEYS
        assert 0 <= problem["answer"] < len(problem["choices"]) == len(set(problem["choices"]))
        assert problem["question"] and problem["lecture"] and problem["solution"]
        assert all(image.size == (64, 64) and image.mode == "RGB" for image in problem["images"])
    assert len({p["skill"] for p in problems}) == len(SKILLS) >= 8
    assert {p["subject"] for p in problems} == {"natural science", "social science", "language science"}
    assert {p["grade"] for p in problems} == {f"grade{i}" for i in range(1, 13)}
    assert {len(p["choices"]) for p in problems} == {2, 3, 4, 5}
    contexts = {(bool(p["context"]), bool(p["images"])) for p in problems}
    assert contexts == {(False, False), (False, True), (True, False), (True, True)}
    by_subject = {(p["subject"], bool(p["images"])) for p in problems}
    assert len(by_subject) == 6, "each subject has questions with and without pictures"
    assert len({p["id"] for p in problems}) == len(problems)


def test_skills_can_be_chosen_and_take_turns():
    problems = list(generate_problems(6, skills=["map", "tense", "flower"]))
    titles = [SKILLS[name].title for name in ("map", "tense", "flower")]
    assert [p["skill"] for p in problems] == titles * 2
    with pytest.raises(ValueError, match="no_such_skill"):
        generate_problems(1, skills=["no_such_skill"])


def test_hundreds_of_pictures_a_second():
    start = time.process_time()
    pictures = sum(len(p["images"]) for p in generate_problems(600))
    assert pictures / (time.process_time() - start) > 300


def test_every_letter_is_right_equally_often():
    """A chi-square test for each skill and number of choices, with a bound that chance hardly ever exceeds."""
    counts = {}
    for problem in generate_problems(3000, seed=5):
        counts.setdefault((problem["skill"], len(problem["choices"])), Counter())[problem["answer"]] += 1
    for (skill, size), answers in counts.items():
        expected = answers.total() / size
        chi2 = sum((answers[i] - expected) ** 2 / expected for i in range(size))
        assert chi2 < 30, (skill, size, answers)


# What a reader of the text alone can do


def text_features(problem, choice):
    """What the text says of a choice: its words, place and length, alone and paired with all other words."""
    mine = problem["choices"][choice]
    longest = max(problem["choices"], key=len) == mine
    yield from (f"place {choice} of {len(problem['choices'])}", f"text {mine}", f"longest {longest}")
    yield f"grade {problem['grade']} place {choice}"
    rest = " ".join(c for i, c in enumerate(problem["choices"]) if i != choice)
    for word in f"{problem['question']} {problem['context']} {problem['caption']}".split():
        yield f"{word} with {mine}"
        yield f"{word} at {choice}"
    for word in rest.split():
        yield f"{mine} against {word}"
    for i, other in enumerate(problem["choices"]):
        yield f"{other} at {i} for {choice}"


def hashed(problems, size=2048):
    """(problems, 5 choices, size) features and a mask of the choices that are there."""
    features, there = np.zeros((len(problems), 5, size), np.float32), np.zeros((len(problems), 5), bool)
    for n, problem in enumerate(problems):
        for choice in range(len(problem["choices"])):
            there[n, choice] = True
            for name in text_features(problem, choice):
                features[n, choice, zlib.crc32(name.encode()) % size] = 1
    return features, there


def classifier_gain(train, test):
    """Accuracy on `test` above guessing, in standard errors, of a logistic regression that sees only the text."""
    import torch

    def tensors(problems):
        features, there = (torch.from_numpy(a) for a in hashed(problems))
        return features, there, torch.tensor([p["answer"] for p in problems])

    features, there, answers = tensors(train)
    weights = torch.zeros(features.shape[-1], requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.03)
    for _ in range(40):
        logits = (features @ weights).masked_fill(~there, -torch.inf)
        loss = torch.nn.functional.cross_entropy(logits, answers) + 1e-2 * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features, there, answers = tensors(test)
    right = ((features @ weights).masked_fill(~there, -torch.inf).argmax(-1) == answers).float()
    chance = 1 / there.sum(-1)
    return float((right - chance).sum() / (chance * (1 - chance)).sum().sqrt())


def image_problems(num, split):
    return list(generate_problems(num, seed=11, skills=IMAGE_SKILLS, split=split))


def test_a_text_classifier_stays_at_chance_on_image_questions():
    assert classifier_gain(image_problems(700, "train"), image_problems(500, "test")) < 3.5


def test_that_classifier_finds_what_there_is_to_find():
    """The test above means something: a caption that leaks, or right options that stand early more often, is seen."""

    def leaky_caption(problem, n):
        return {**problem, "caption": f"{problem['caption']} {problem['choices'][problem['answer']]}"}

    def leaky_order(problem, n):
        if n % 3:
            return problem
        choices = list(problem["choices"])
        choices.insert(0, choices.pop(problem["answer"]))
        return {**problem, "choices": choices, "answer": 0}

    for leak in (leaky_caption, leaky_order):
        train, test = (
            [leak(problem, n) for n, problem in enumerate(image_problems(num, split))]
            for num, split in ((600, "train"), (400, "test"))
        )
        gain = classifier_gain(train, test)
        assert gain > 5, (leak.__name__, gain)


# What the pictures show


def where(image, color, tolerance=60):
    """Rows and columns of a colour's pixels."""
    distance = np.abs(np.asarray(image, dtype=int) - COLORS[color]).sum(-1)
    return np.nonzero(distance < tolerance)


def check_map(problem):
    direction = problem["question"].rstrip("?").split()[-1]
    axis, sign = {"north": (0, 1), "south": (0, -1), "west": (1, 1), "east": (1, -1)}[direction]
    colors = {choice: choice.split()[0] for choice in problem["choices"]}
    places = {choice: where(problem["images"][0], color)[axis].mean() * sign for choice, color in colors.items()}
    return min(places, key=places.get)


def check_layers(problem):
    rows = {choice: where(problem["images"][0], choice)[0].mean() for choice in problem["choices"]}
    return (max if "oldest" in problem["question"] else min)(rows, key=rows.get)


def check_flag(problem):
    stripe = ["left", "middle", "right"].index(problem["question"].split()[6])
    pixels = np.asarray(problem["images"][0], dtype=int)
    painted = [
        column for column in range(64) if min(np.abs(pixels[28, column] - c).sum() for c in COLORS.values()) < 60
    ]
    column = painted[int(len(painted) * (2 * stripe + 1) / 6)]
    return min(problem["choices"], key=lambda color: np.abs(pixels[28, column] - COLORS[color]).sum())


def check_magnets(problem):
    row = int(where(problem["images"][0], "red")[0].mean())
    pixels = np.asarray(problem["images"][0], dtype=int)[row]
    ends = [x for x in range(20, 44) if np.abs(pixels[x] - pixels[x - 1]).sum() > 100]
    gap = [x for x in range(20, 44) if pixels[x].min() > 200]
    left, right = pixels[gap[0] - 3], pixels[gap[-1] + 3]
    assert ends
    return "repel" if (left[0] > left[2]) == (right[0] > right[2]) else "attract"


def check_balance(problem):
    colors = {choice: choice.split()[0] for choice in problem["choices"]}
    rows = {choice: where(problem["images"][0], color)[0].mean() for choice, color in colors.items()}
    return (max if "heavier" in problem["question"] else min)(rows, key=rows.get)


def check_flower(problem):
    counts = {choice: len(where(problem["images"][0], choice.split()[0])[0]) for choice in problem["choices"]}
    return max(counts, key=counts.get)


def check_bars(problem):
    legend = dict(reversed(s.split(" bar is ")) for s in problem["context"].removesuffix(".").split(". ")[1:])
    heights = {}
    for choice in problem["choices"]:
        heights[choice] = len(set(where(problem["images"][0], legend[choice].removeprefix("The "))[0]))
    return (max if "most" in problem["question"] else min)(heights, key=heights.get)


def check_concentration(problem):
    color = problem["question"].split()[-2]
    columns = where(problem["images"][0], color, tolerance=30)[1]
    left, right = (columns < 32).sum(), (columns >= 32).sum()
    if abs(left - right) < 23:  # half a particle
        return "neither; their concentrations are the same"
    return "Solution A" if left > right else "Solution B"


def check_preposition(problem):
    words = problem["solution"].split(". ")[0]
    return next(c for c in problem["choices"] if f" is {c} the " in words)


def check_cloth(problem):
    pattern = problem["question"].rstrip("?").split()[-1]
    for choice, image in zip(problem["choices"], problem["images"], strict=True):
        middle = np.asarray(image, dtype=int)[10:54, 10:54]
        across, down = (np.abs(np.diff(middle, axis=axis)).sum(-1).max() for axis in (1, 0))
        seen = "plain" if max(across, down) < 60 else "striped" if across < 60 else "dotted"
        if seen == pattern:
            return choice
    return None


CHECKS = {
    "map": check_map, "layers": check_layers, "magnets": check_magnets, "balance": check_balance,
    "flower": check_flower, "bars": check_bars, "concentration": check_concentration, "cloth": check_cloth,
    "preposition": check_preposition, "flag": check_flag,
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_the_picture_alone_gives_the_right_option(name):
    for problem in generate_problems(60, seed=2, skills=[name]):
        assert CHECKS[name](problem) == problem["choices"][problem["answer"]], problem


@pytest.mark.parametrize("name", SKILLS)
def test_the_solution_names_the_right_option(name):
    """Its last sentence has the right option's text, and no other option's: the answer follows from it."""
    for problem in generate_problems(60, seed=4, skills=[name]):
        last = problem["solution"].split(". ")[-1]
        named = [choice for choice in problem["choices"] if choice in last]
        assert named == [problem["choices"][problem["answer"]]], problem


def test_the_written_folder_is_the_originals_layout(tmp_path):
    folder = write_scienceqa(tmp_path / "data", {"train": 30, "val": 15, "test": 15}, seed=1)
    problems = json.loads((folder / "problems.json").read_text(encoding="utf-8"))
    splits = json.loads((folder / "pid_splits.json").read_text(encoding="utf-8"))
    captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))["captions"]
    assert [len(splits[name]) for name in ("train", "val", "test", "trainval", "minitrain")] == [30, 15, 15, 45, 3]
    expected = {
        **dict(enumerate(generate_problems(30, 1))),
        **dict(enumerate(generate_problems(15, 1, None, "val"), 30)),
    }
    for pid, problem in islice(problems.items(), 45):
        source = expected[int(pid) - 1]
        assert pid in splits[problem["split"]]
        assert (problem["question"], problem["hint"], problem["solution"]) == (
            source["question"],
            source["context"],
            source["solution"],
        )
        files = sorted(path.name for path in (folder / "images" / problem["split"] / pid).glob("*"))
        if problem["image"]:
            assert files == [problem["image"]] and captions[pid] == source["caption"]
            written = Image.open(folder / "images" / problem["split"] / pid / "image.png")
            assert written.tobytes() == source["images"][0].tobytes()
        else:
            assert files == [f"choice_{i}.png" for i in range(len(source["images"]))] and pid not in captions
    assert any(not p["image"] and p["skill"] == SKILLS["cloth"].title for p in problems.values())


def test_the_folder_is_not_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_scienceqa(tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert len(json.loads((write_scienceqa(tmp_path / "new", 10) / "problems.json").read_text())) == 10


def test_skills_are_documented_like_scienceqa():
    assert all(isinstance(skill, Skill) and skill.category and skill.topic for skill in SKILLS.values())
