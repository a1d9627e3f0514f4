"""`check_data`: everything that a look at the data tells before anything is trained on it."""

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.batched import read_column
from mmcot.training.data.check.guessing import check_options, guessing_baselines
from mmcot.training.data.check.notes import find_faults, find_warnings
from mmcot.training.data.splits import MADE

SAMPLES = 8


def check_data(
    source: str | os.PathLike,
    *,
    processor=None,
    splits: Sequence[str] | Mapping[str, str] | None = None,
    max_target_length: int = 512,
    columns: Mapping[str, Any] | None = None,
    image_rule: str = "all",
    allow_urls: bool = False,
    allow_outside: bool = False,
    samples: int = SAMPLES,
    first: int | None = None,
    needed: Collection[str] = ("val", "test"),
) -> dict[str, Any]:
    """Looks a data set over: what it holds, what can't work, what is worth a thought.

    Args:
        source: as for `load_problems`.
        columns, image_rule, allow_urls, allow_outside: as for `load_problems`.
        processor: the `MMCoTProcessor` of the model to train, for lengths, unknown characters and samples; without one
            these are left out.
        splits: those to look at, or a dict of ours → the source's name; default: all that the source names, or the
            train, val and test that training makes.
        max_target_length: longer targets are cut.
        samples: questions to show as the model will see them.
        needed: splits, apart from train, whose absence is worth a thought.
        first: look at so many questions of each split alone, as a stream gives them; no table is made.

    Returns:
        A dict with `faults` (one line each: nothing can be trained before they are mended) and `warnings` (worth a
        thought), and what they rest on: `source`, `columns` (see `find_columns`), `made_splits`, `splits` {name →
        questions}, `images` (see `check_pictures`), `rationales` {split → {"solution", "lecture", "words"}}, `options`
        (see `check_options`), `guessing` (`guessing_baselines`), `duplicates` (`find_duplicates`), `lengths`
        (`check_lengths`), `unknown_characters`, `samples`. Where images can't be read, `pictures_left_out` is there;
        where the source can't be read at all, only what was found.

    Raises:
        MissingFileError: there is no such source.
        UserError: an option makes no sense.
    """
    from mmcot.training.data.files import locate
    from mmcot.training.data.keys import check_columns
    from mmcot.training.data.mixture import is_mixture
    from mmcot.training.data.reading import open_source

    path, config = locate(source)
    mapped = check_columns(columns)
    load = _load if first is None else partial(_stream, first=first)
    options: dict[str, Any] = {"columns": columns, "allow_urls": allow_urls, "allow_outside": allow_outside}
    result: dict[str, Any] = {"source": str(source), "columns": [], "made_splits": False, "splits": {}, "faults": []}
    try:
        if not is_mixture(source):  # whose sources have columns of their own
            opened = open_source(path, config, None, "none", mapped, urls=False, outside=True)
            result["columns"] = _columns(opened, mapped, first)
        problems, result["made_splits"] = load(source, splits, image_rule=image_rule, **options)
    except UserError as error:
        result["faults"].append(str(error))
        try:  # the rest can be told all the same where only an image is missing
            problems, result["made_splits"] = load(source, splits, image_rule="none", **options)
        except UserError:
            return result | {"warnings": []}
        result["pictures_left_out"] = True
    found = check_problems(problems, processor, max_target_length=max_target_length, samples=samples, needed=needed)
    if first is not None:
        found["warnings"].insert(0, f"streamed: the first {first:,} questions of each split at most were looked at")
    return {**result, **found, "faults": result["faults"] + found["faults"]}


def _columns(opened, mapped: Mapping[str, Any], first: int | None) -> list[dict[str, Any]]:
    from mmcot.training.data.check.columns import find_columns

    return find_columns((row for row in itertools.islice(opened.rows(), first) if row.fault is None), mapped)


def _stream(source, wanted: Sequence[str] | Mapping[str, str] | None, *, first: int, **options):
    """As `_load`, the first problems of each split."""
    from mmcot.training.data.stream import NoSplitError, first_problems, stream_problems

    pairs = wanted if isinstance(wanted, Mapping) else {name: name for name in wanted or MADE}
    found = {}
    for name, own in pairs.items():
        try:
            stream = stream_problems(source, own, require_answer=False, **options)
            found[name] = first_problems(stream, first)
        except NoSplitError:
            if not found:  # the training split
                raise
    return found, False


def _load(source, wanted: Sequence[str] | Mapping[str, str] | None, **options) -> tuple[dict[str, Any], bool]:
    """Split → problems, and whether the splits were made."""
    from mmcot.training.data.problems import load_problems

    options["require_answer"] = False
    if wanted is None:
        problems = load_problems(source, None, **options)
        named = problems["split"][:]
        found = sorted({name for name in named if name is not None}, key=lambda name: (*MADE, name).index(name))
        if found:
            rows = {name: [i for i, own in enumerate(named) if own == name] for name in found}
            return {name: problems.select(chosen) for name, chosen in rows.items()}, False
        wanted, made = MADE, True
    else:
        made = False
    pairs = wanted if isinstance(wanted, Mapping) else {name: name for name in wanted}
    return {name: load_problems(source, own, **options) for name, own in pairs.items()}, made


def check_problems(
    splits: Mapping[str, Any],
    processor=None,
    *,
    max_target_length: int = 512,
    samples: int = SAMPLES,
    thorough: bool = True,
    needed: Collection[str] = ("val", "test"),
    known_lengths: Mapping[tuple[str, str], Sequence[int]] | None = None,
) -> dict[str, Any]:
    """As `check_data`, of problems that are loaded already.

    Args:
        splits: split → `datasets.Dataset` of problem records.
        thorough: False leaves out what takes long, or is done elsewhere: opening all pictures, nearly equal questions.
        needed: as for `check_data`.
        known_lengths: see `check_lengths`.
    """
    from mmcot.training.data.check.duplicates import find_duplicates
    from mmcot.training.data.check.lengths import check_lengths, unknown_characters
    from mmcot.training.data.check.pictures import check_pictures

    found: dict[str, Any] = {
        "splits": {name: len(problems) for name, problems in splits.items()},
        "images": check_pictures(splits, decode=thorough),
        "rationales": {name: _rationales(problems) for name, problems in splits.items()},
        "options": check_options(splits),
        "guessing": guessing_baselines(splits),
        "duplicates": find_duplicates(splits, near=thorough),
        "samples": [],
    }
    if processor is not None:
        found["lengths"] = check_lengths(splits, processor, max_target_length=max_target_length, known=known_lengths)
        found["unknown_characters"] = unknown_characters(splits, processor.tokenizer)
        found["image_size"] = _image_size(processor)
        found["samples"] = _samples(splits, processor, samples)
    return found | {"faults": find_faults(found), "warnings": find_warnings(found, needed)}


def _rationales(problems) -> dict[str, Any]:
    """Share in % of questions with a solution and with a lecture, and the solutions' mean number of words."""
    solutions = [len((text or "").split()) for text in read_column(problems, "solution")]
    lectures = sum(bool((text or "").strip()) for text in read_column(problems, "lecture"))
    written = [words for words in solutions if words]
    total = max(1, len(solutions))
    return {
        "solution": round(100 * len(written) / total, 1),
        "lecture": round(100 * lectures / total, 1),
        "words": round(sum(written) / len(written), 1) if written else 0,
    }


def _image_size(processor) -> str | None:
    """What every picture is brought to, in words."""
    if processor.image_processor is None:
        return None
    size = dict(processor.image_processor.size)
    if {"height", "width"} <= size.keys():
        return f"{size['width']} × {size['height']} pixels"
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in size.items() if value) + " pixels"


def _samples(splits: Mapping[str, Any], processor, count: int) -> list[dict[str, Any]]:
    """Questions as the model will read them, from all over the splits: texts after shortening, and the images."""
    from mmcot.processing import build_prompt
    from mmcot.processing.prompts_mmcot import ProblemError

    chosen = []
    for split, problems in splits.items():
        share = max(1, count // len(splits))
        step = max(1, len(problems) // share)
        chosen += [(split, problems[i]) for i in range(0, len(problems), step)[:share]]
    shown = []
    for split, problem in chosen[:count]:
        sample = {"id": problem["id"], "split": split, "images": problem["images"], "stages": {}}
        rationale = None
        for stage in ["answer"] if processor.rationale_format is None else ["rationale", "answer"]:
            answered = problem["answer"] is not None or stage == "rationale"
            try:
                encoded = processor.encode(problem, stage, rationale=rationale, target=answered)
            except ProblemError as error:
                sample["stages"][stage] = {"error": str(error)}
                continue
            texts = {name: processor.tokenizer.decode(encoded[name]) for name in encoded}
            sample["stages"][stage] = {
                "source": texts["input_ids"],
                "target": texts.get("labels"),
                "tokens": len(encoded["input_ids"]),
            }
            if stage == "rationale":
                rationale = build_prompt(problem, processor.rationale_format)[1]
        shown.append(sample)
    return shown
