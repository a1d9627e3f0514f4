"""Embedded data: small science questions in ScienceQA's schema, with pictures drawn from a seed.

It is what the README's first command trains on and what the tests use: endless, free of licences, and honest about
pictures. For every question with a picture the text (question, context, options and their order) is drawn first, the
right option uniformly after it, and the picture last to fit. Whatever a reader knows of the text, the answer stays
uniform over the options: without the picture there is nothing to do but guess.

`generate_problems` yields problem records with PIL images; `write_scienceqa` writes the original project's folder.
The skills are listed in `skills.py`, the drawing is in `pictures.py`.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from mmcot.training.common import UserError
from mmcot.training.data.embedded.skills import SKILLS, Skill

DEFAULT_SIZES = {"train": 600, "val": 200, "test": 200}


class FolderInUseError(UserError, FileExistsError):
    """A folder that should be new has files in it."""

    def __str__(self) -> str:  # OSError's would show its arguments as a tuple
        return str(self.args[0])


def generate_problems(
    num: int, seed: int = 0, skills: Sequence[str] | None = None, split: str = "train"
) -> Iterator[dict]:
    """Yield `num` problem records, the same ones for the same arguments on every machine.

    Problem `i` depends on `seed`, `split`, the skills and `i` alone, so a longer run starts with a shorter one's
    problems. Splits and seeds are separate streams. The skills take turns, so any number of problems is balanced.

    Args:
        num: how many problems.
        seed: any integer.
        skills: names out of `SKILLS`, in the order in which they take turns; all of them by default.
        split: goes into the record and into the random stream.

    Yields:
        dicts with the keys `id, question, choices, answer, context, caption, images (list of 64×64 RGB PIL images, may
        be empty), lecture, solution, subject, grade, topic, category, skill, task, split`.

    Raises:
        UserError: for a skill that doesn't exist.
    """
    names = list(SKILLS) if skills is None else list(skills)
    unknown = [name for name in names if name not in SKILLS]
    if unknown or not names:
        raise UserError(f"unknown embedded skills {unknown}: choose from {', '.join(SKILLS)}")
    # not a generator function itself, so that a wrong skill is reported by the call, not at the first record
    return (_problem(SKILLS[names[i % len(names)]], seed, split, i) for i in range(num))


def _problem(skill: Skill, seed: int, split: str, index: int) -> dict:
    rng = Random(f"mmcot {seed} {split} {index}")  # a string is hashed, so neighbouring seeds aren't alike
    asked = skill.ask(rng)
    if skill.show is None:
        right, choices, images, solution = asked.choices[0], list(asked.choices), [], asked.solution
        rng.shuffle(choices)
        answer = choices.index(right)
    else:
        choices = list(asked.choices)
        rng.shuffle(choices)
        answer = rng.randrange(len(choices))  # after all text, before the picture: the text can't tell
        images, solution = skill.show(rng, asked, choices, answer)
    return {
        "id": f"{split}-{seed}-{index}",
        "question": asked.question,
        "choices": choices,
        "answer": answer,
        "context": asked.context,
        "caption": asked.caption if images else None,
        "images": images,
        "lecture": skill.lecture,
        "solution": solution,
        "subject": skill.subject,
        "grade": f"grade{rng.choice(skill.grades)}",
        "topic": skill.topic,
        "category": skill.category,
        "skill": skill.title,
        "task": "closed choice",
        "split": split,
    }


def write_scienceqa(
    folder: str | Path,
    num: int | dict[str, int] | None = None,
    seed: int = 0,
    skills: Sequence[str] | None = None,
) -> Path:
    """Write embedded problems as the original project's data folder and return it.

    The folder holds `problems.json` (keys as ScienceQA's, `hint` for the context, `image` is "image.png" or null),
    `pid_splits.json` (with the original's `trainval` and `mini…` lists), `captions.json`, and
    `images/<split>/<id>/image.png`. A problem whose pictures belong to its choices has `image: null` and
    `choice_0.png`, `choice_1.png`, … instead, as in ScienceQA.

    Args:
        folder: made if needed; must be new or empty.
        num: problems in all, of which a fifth each go to val and test; or {split: number}.
        seed: as in `generate_problems`.
        skills: as in `generate_problems`.

    Raises:
        FolderInUseError: (a FileExistsError) when `folder` already has files in it.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FolderInUseError(f"{folder} is not empty: choose a new folder for the embedded data")
    if num is None:
        sizes = DEFAULT_SIZES
    elif isinstance(num, int):
        sizes = {"train": num - 2 * (num // 5), "val": num // 5, "test": num // 5}
    else:
        sizes = dict(num)
    # written beside its final name and renamed, so that a folder under the final name is whole
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    problems, captions, splits = {}, {}, {"train": [], "val": [], "test": []}
    for split, size in sizes.items():
        splits.setdefault(split, [])
        for problem in generate_problems(size, seed, skills, split):
            pid = str(len(problems) + 1)
            names = _image_names(problem)
            for name, image in zip(names, problem["images"], strict=True):
                target = partial / "images" / split / pid / name
                target.parent.mkdir(parents=True, exist_ok=True)
                image.save(target)
            problems[pid] = _original_record(problem, names)
            splits[split].append(pid)
            if names == ["image.png"]:
                captions[pid] = problem["caption"]
    splits["trainval"] = splits["train"] + splits["val"]
    for split in ("train", "val", "test"):
        splits[f"mini{split}"] = splits[split][: (len(splits[split]) + 9) // 10]
    _write_json(partial / "problems.json", problems)
    _write_json(partial / "pid_splits.json", splits)
    _write_json(partial / "captions.json", {"model": "mmcot embedded data", "captions": captions})
    if folder.exists():
        folder.rmdir()
    return partial.rename(folder)


def _image_names(problem: dict) -> list[str]:
    if len(problem["images"]) > 1:
        return [f"choice_{i}.png" for i in range(len(problem["images"]))]
    return ["image.png"] * len(problem["images"])


def _original_record(problem: dict, image_names: list[str]) -> dict:
    """The record under ScienceQA's own keys, in its order."""
    keys = ("question", "choices", "answer", "hint", "image", "task", "grade", "subject", "topic", "category", "skill")
    record = {**problem, "hint": problem["context"], "image": "image.png" if image_names == ["image.png"] else None}
    return {key: record[key] for key in (*keys, "lecture", "solution", "split")}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
