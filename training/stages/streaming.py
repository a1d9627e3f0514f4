"""Training on a stream of problems (`streaming: true`): no table of them is kept, on disk or in memory.

The first so many problems of a pass are looked over before the first step, and described on the screen; what is wrong
with a later one stops the run at its batch, and the last checkpoint is gone on with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from mmcot.training.common import UserError
from mmcot.training.stages.recipe import Recipe
from mmcot.training.stages.samples import sample_encoder

if TYPE_CHECKING:
    import datasets

LOOKED_OVER = 1000  # problems
# the recipe's keys that need all samples at once, or memory for all of them: key → (value that is let pass, reason)
NEEDS_A_TABLE: dict[str, tuple[Any, str]] = {
    "share_stages": (False, "the samples of both stages are mixed"),
    "cross_fit": (None, "folds are drawn from all problems"),
    "rationales": (None, "they are joined to all problems"),
    "keep_images": (False, "it would fill the memory"),
    "tokens_per_batch": (None, "batches are made from all lengths"),
}


def check_streaming(recipe: Recipe) -> None:
    """Raises a UserError for keys that don't go with `streaming`."""
    stages = ("answer",) if recipe.one_stage else ("rationale", "answer")
    for of_stage in (recipe, *map(recipe.for_stage, stages)):
        for key, (passed, reason) in NEEDS_A_TABLE.items():
            if getattr(of_stage, key) != passed:
                raise UserError(f"{key}: doesn't go with streaming, for {reason}; leave one of them out")
    for stage in stages:
        steps = recipe.for_stage(stage).training.get("max_steps")
        if (stage in recipe.stages or recipe.stages == "both") and (steps is None or steps < 1):
            raise UserError(f"max_steps: streaming needs it, for nobody knows how long a pass is ({stage} stage)")
        for key in ("eval_strategy", "save_strategy"):
            if recipe.for_stage(stage).training.get(key) == "epoch":
                raise UserError(f"{key}: a stream has no epochs; give steps, or no")
        if (recipe.for_stage(stage).training.get("dataloader_num_workers") or 0) > 1:
            raise UserError("dataloader_num_workers: a stream has one reader; give 1 at most")


def open_stream(recipe: Recipe) -> datasets.IterableDataset:
    """The problems of the recipe's training split, in the order of the source."""
    from mmcot.training.data.stream import stream_problems

    options = {key: getattr(recipe, key) for key in ("image_rule", "columns", "allow_urls", "allow_outside")}
    stream = stream_problems(recipe.data, recipe.train_split, **options)
    return stream if recipe.max_train_samples is None else stream.take(recipe.max_train_samples)


class Passes(IterableDataset):
    """A stream again and again, in another order each time: one endless pass for the Trainer, which can't tell where a
    stream ends, and goes on from a checkpoint by skipping what came before it."""

    def __init__(self, samples: datasets.IterableDataset):
        self.samples = samples

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            self.samples.set_epoch(number)
            empty = True
            for sample in self.samples:
                empty = False
                yield sample
            if empty:  # a loader's worker without a share
                return


def streamed_samples(
    stream: datasets.IterableDataset,
    processor,
    stage: str,
    *,
    rationales: str = "target",
    max_target_length: int | None = None,
    features=None,
    buffer_size: int = 1000,
    seed: int = 0,
) -> datasets.IterableDataset:
    """Samples as `stage_dataset` gives them, made while they are read.

    Args:
        buffer_size: problems that are held, of which the next one is drawn; 1 keeps the source's order.
        seed: of that order, which `set_epoch` renews.

    Raises:
        UserError: while it is read, a problem that doesn't fit into `max_source_length`.
    """
    encode = sample_encoder(processor, stage, rationales, max_target_length, features)

    def sample(problem: dict[str, Any]) -> dict[str, Any]:
        row = encode(problem)
        fault = row.pop("fault")
        if fault:
            raise UserError(f"{stage} stage: {fault}")
        return row

    unused = [name for name in stream.features if name not in ("id", "images")]
    return stream.shuffle(seed=seed, buffer_size=buffer_size).map(sample, remove_columns=unused)
