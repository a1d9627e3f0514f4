"""The data check of a recipe: what `mmcot check` shows, and what a run says before its first step."""

import dataclasses
from typing import Any

from transformers.utils import logging

from mmcot.training.common import UserError
from mmcot.training.stages.identity import chooses_checkpoint
from mmcot.training.stages.recipe import Recipe

logger = logging.get_logger("mmcot")


def check_recipe_data(recipe: Recipe, samples: int = 8) -> dict[str, Any]:
    """`check_data` of a recipe's data, with its formats, limits and tokenizer; of a stream its beginning.

    Args:
        samples: questions to show as the model will see them.

    Returns:
        See `check_data`. Where the recipe's tokenizer can't be had, lengths and samples are missing, and a warning
        says why.

    Raises:
        MissingFileError: there is no such source.
    """
    from mmcot.training.data.check.problems import check_data
    from mmcot.training.data.files import locate
    from mmcot.training.data.mixture import is_mixture
    from mmcot.training.stages.streaming import LOOKED_OVER

    locate(recipe.data)  # before a tokenizer is asked for, which may take a while without a network
    options = {key: getattr(recipe, key) for key in ("columns", "image_rule", "allow_urls", "allow_outside")}
    processor, reason = _processor(recipe, options)
    limits = [recipe.for_stage(stage).max_target_length for stage in ("rationale", "answer")]
    named = {"train": recipe.train_split, "val": recipe.eval_split, "test": recipe.test_split}
    named = {ours: own for ours, own in named.items() if own}
    # the splits that the recipe or the mixture renames; else all that the source has
    plain = not is_mixture(recipe.data) and all(ours == own for ours, own in named.items())
    splits = None if plain and not recipe.streaming else named
    limit = min(limits)
    found = check_data(
        recipe.data,
        processor=processor,
        splits=splits,
        max_target_length=limit,
        samples=samples,
        first=LOOKED_OVER if recipe.streaming else None,
        needed=_needed(recipe),
        **options,
    )
    if reason is not None:
        found["warnings"].append(f"lengths and samples are left out: {reason}")
    found["faults"] += [line for line in _faults(recipe, found) if line not in found["faults"]]
    return found


def _needed(recipe: Recipe) -> list[str]:
    """The splits that the recipe has a use for: val to keep the best checkpoint, test to measure the model."""
    stages = (
        ["answer"] if recipe.one_stage else ["rationale", "answer"] if recipe.stages == "both" else [recipe.stages]
    )
    choosing = dataclasses.replace(recipe, eval_split=recipe.eval_split or "val")
    val = ["val"] if any(chooses_checkpoint(choosing, stage) for stage in stages) else []
    return val if recipe.test_split is None else [*val, "test"]


def _processor(recipe: Recipe, options: dict[str, Any]):
    """The recipe's processor, or None and why there is none. No backbone is loaded."""
    from itertools import chain

    from mmcot.processing import build_prompt
    from mmcot.training.data.batched import read_records
    from mmcot.training.data.problems import load_problems
    from mmcot.training.data.stream import stream_problems
    from mmcot.training.stages.build import build_processor
    from mmcot.training.stages.streaming import LOOKED_OVER

    def texts():
        without = {**options, "image_rule": "none"}
        if recipe.streaming:
            problems = stream_problems(recipe.data, recipe.train_split, **without).take(LOOKED_OVER)
        else:
            try:  # the table that is looked over afterwards, unless a picture is at fault
                problems = load_problems(recipe.data, recipe.train_split, **options)
            except UserError:
                problems = load_problems(recipe.data, recipe.train_split, **without)
            problems = problems.remove_columns("images")
        formats = [name for name in (recipe.rationale_format, recipe.answer_format) if name]
        records = read_records(problems)
        return chain.from_iterable(build_prompt(problem, name) for problem in records for name in formats)

    try:
        return build_processor(recipe, texts() if recipe.tokenizer == "train" else ()), None
    except UserError as error:
        return None, str(error)


def _faults(recipe: Recipe, found: dict[str, Any]) -> list[str]:
    """What this recipe asks of the data and they don't have; a run refuses it in the same words."""
    from mmcot.training.stages.checks import no_picture, no_rationale, rationale_fields

    train = found["splits"].get("train")
    if not train:
        return []
    names, shares = rationale_fields(recipe), found["rationales"]["train"]
    lines = []
    if names and recipe.rationales is None and not any(shares[name] for name in names):
        lines.append(no_rationale(recipe, train))
        found["warnings"] = [line for line in found["warnings"] if "no training question has a solution" not in line]
    sees = (recipe.vision is not None or recipe.features is not None) and not found.get("pictures_left_out")
    if sees and not found["images"]["with"]["train"]:
        lines.append(no_picture(train))
    return lines


def tell_data(run) -> None:
    """Before the first step of a run: the warnings of the data check, of the problems and samples that it has."""
    from mmcot.training.data.check.problems import check_problems

    stages = ["rationale", "answer"] if run.recipe.share_stages else run.stages
    known = {(split, stage): run.own_samples(split, stage)["length"][:] for stage in stages for split in run.problems}
    found = check_problems(
        run.problems,
        run.processor,
        max_target_length=min(run.recipe.for_stage(stage).max_target_length for stage in stages),
        samples=0,
        thorough=False,
        needed=_needed(run.recipe),
        known_lengths=known,
    )
    guessing = found["guessing"]
    if guessing:
        logger.info(f"guessing would give {guessing['chance']:.1f} % of the {guessing['split']} questions")
    for line in found["warnings"]:
        logger.warning(f"data: {line}")
    if found["warnings"]:
        logger.info("data: `mmcot check` with the same arguments tells more")
