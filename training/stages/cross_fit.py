"""Rationales of the training questions by networks that never saw them (cross-fitting).

In use the answer stage reads rationales with mistakes; gold ones, which it is trained on, have none. The training
problems are split into folds; for each, a rationale stage is trained on the others and writes the fold's rationales.
"""

import dataclasses
import hashlib
import re
from pathlib import Path

from mmcot.training.stages.recipe import Recipe


def folds_of(ids: list[str], count: int) -> list[list[int]]:
    """Rows of each fold; by the ids' hashes, so that the order has no say. A question that comes several times (`x`,
    `x#2`, `x*2`) is in one fold."""
    own = [re.sub(r"([#*]\d+)+$", "", str(id_)) for id_ in ids]
    order = sorted(set(own), key=lambda id_: hashlib.sha256(id_.encode()).hexdigest())
    fold = {id_: number % count for number, id_ in enumerate(order)}
    return [[i for i, id_ in enumerate(own) if fold[id_] == number] for number in range(count)]


def cross_fitted_rationales(run) -> dict[str, str]:
    """id → rationale of every training problem, as the answer stage reads it.

    Each fold is a run of its own in `<output_dir>/cross_fit/fold-<k>`, done once and gone on with as any other.

    Args:
        run: a `Run` whose recipe has `cross_fit`.
    """
    from mmcot.training.stages.run import Run

    recipe: Recipe = run.recipe
    problems, found = run.problems["train"], {}
    for number, rows in enumerate(folds_of(problems["id"][:], recipe.cross_fit)):
        held_out = set(rows)
        parts = {
            "train": problems.select([i for i in range(len(problems)) if i not in held_out]),
            "test": problems.select(rows),
        }
        if "val" in run.problems:
            parts["val"] = run.problems["val"]
        folder = Path(recipe.output_dir) / "cross_fit" / f"fold-{number}"
        fold = Run(
            dataclasses.replace(
                recipe, output_dir=str(folder), stages="rationale", protocol="generated", blank_probe=False
            ),
            problems=parts,
        )
        fold.processor = run.processor  # one vocabulary, also of a tokenizer that was trained on all problems
        with fold.locked():
            fold.train("rationale")
            fold.predict("rationale", "test")
        found |= fold.rationales("test")
        fold.release()
    return found
