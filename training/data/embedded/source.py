"""The source "embedded:…": options in its name, problems from the seed."""

from collections.abc import Iterator
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.records import Row
from mmcot.training.data.splits import split_members

DEFAULT_SIZE = 1000
SPLITS = ("train", "val", "test")


def embedded_rows(source: str, split: str | None) -> Iterator[Row]:
    """Problems of "embedded:n=2000,seed=1,skills=a+b,val=200", with their drawn images."""
    from mmcot.training.data.embedded.generate import generate_problems

    options = embedded_options(source)
    for name in SPLITS if split is None else split_members(split):
        if name not in SPLITS:
            raise UserError(f"{source}: has no split {split!r}; its splits: train, val, test, trainval")
        size = options.get(name, options["n"])
        for problem in generate_problems(size, seed=options["seed"], skills=options["skills"], split=name):
            yield Row(source, f"problem {problem['id']}", problem, split=name)


def embedded_options(source: str) -> dict[str, Any]:
    """What the name of the source says: `n`, `seed`, `skills` (None: all), and sizes of splits that it names.

    Raises:
        UserError: it says something else.
    """
    options: dict[str, Any] = {"n": DEFAULT_SIZE, "seed": 0, "skills": None}
    for part in filter(None, source.partition(":")[2].split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or name not in ("n", "seed", "skills", *SPLITS):
            raise UserError(
                f"{source}: {part!r} isn't an option; options are n, seed, skills, train, val, test, as n=2000"
            )
        if name != "skills" and not (value.isascii() and value.isdecimal() and len(value) < 16):
            raise UserError(f"{source}: {name} must be a whole number, but is {value!r:.80}")
        options[name] = value.split("+") if name == "skills" else int(value)
    return options
