"""Lengths of sources and targets in tokens, and what a limit would cut off."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmcot.training.data.batched import read_column, read_records

SHOWN = 5  # ids
LONG = 5000  # problems that take so long that a bar is shown


def check_lengths(
    splits: Mapping[str, Any],
    processor,
    *,
    max_target_length: int = 512,
    known: Mapping[tuple[str, str], Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Tokens of each stage's sources and targets against the limits.

    Args:
        splits: split → problems.
        processor: an `MMCoTProcessor`: its formats, `max_source_length` and way of shortening count.
        max_target_length: longer targets are cut.
        known: (split, stage) → lengths of the samples as they are after shortening, where they were computed before:
            only those near the limit are then looked at, and only the stages that it names.

    Returns:
        stage → {"limit", "source": {"mean", "p95", "max"} of tokens before any cut (only of what was looked at where
        `known` is given), "cut": {what → number of questions}, "cut_ids", "too_long": {id → message} of questions that
        don't fit at all, "target": {…}, "target_limit", "target_cut"}.
    """
    stages = ["answer"] if processor.rationale_format is None else ["rationale", "answer"]
    if known is not None:
        named = {stage for _, stage in known}
        stages = [stage for stage in stages if stage in named]
    return {stage: _stage_lengths(splits, processor, stage, max_target_length, known or {}) for stage in stages}


def _stage_lengths(splits, processor, stage: str, max_target_length: int, known) -> dict[str, Any]:
    from tqdm import tqdm

    from mmcot.processing.prompts_mmcot import ProblemError

    limit = processor.max_source_length
    sources: list[int] = []
    targets: list[int] = []
    cut: dict[str, int] = {}
    cut_ids: list[str] = []
    too_long: dict[str, str] = {}
    rows = {}
    for split, problems in splits.items():
        lengths = known.get((split, stage))
        rows[split] = (
            range(len(problems)) if lengths is None else [i for i, n in enumerate(lengths) if n > 0.7 * limit]
        )
    count = sum(map(len, rows.values()))
    progress = tqdm(total=count, desc=f"{stage} lengths", disable=count < LONG)
    for split, near in rows.items():
        problems = splits[split]
        columns = [name for name in problems.column_names if name != "images"]
        for problem in read_records(problems.select_columns(columns).select(near)):
            progress.update()
            try:
                length, what, target = _one(processor, problem, stage)
            except ProblemError as error:
                too_long[str(problem["id"])] = getattr(error, "reason", None) or str(error)
                continue
            sources.append(length)
            if target is not None:
                targets.append(target)
            for name in what:
                cut[name] = cut.get(name, 0) + 1
            if what:
                cut_ids.append(str(problem["id"]))
    progress.close()
    return {
        "limit": limit,
        "source": spread(sources),
        "cut": cut,
        "cut_ids": cut_ids,
        "too_long": too_long,
        "target": spread(targets),
        "target_limit": max_target_length,
        "target_cut": sum(length > max_target_length for length in targets),
    }


def _one(processor, problem: Mapping[str, Any], stage: str) -> tuple[int, list[str], int | None]:
    """Tokens of a source as it would be without a limit, what the limit cuts, tokens of the target."""
    from mmcot.processing import build_prompt
    from mmcot.processing.tokens_mmcot import end_ids, source_parts, token_ids

    format_ = processor.rationale_format if stage == "rationale" else processor.answer_format
    rationale = None
    if stage == "answer" and processor.rationale_format is not None:
        rationale = build_prompt(problem, processor.rationale_format)[1]
    options = {"rationale": rationale, "use_caption": processor.use_caption}
    limit, keeps = processor.max_source_length, processor.source_truncation == "keep_ends"
    whole = source_parts(processor.tokenizer, problem, format_, limit, cut=False, **options)
    length = sum(map(len, whole))
    what = []
    if not keeps and length > limit:
        what.append("end of the source")
    elif keeps and length > 0.7 * limit:  # the rationale has its quarter, so less than the limit may be cut too
        kept = source_parts(processor.tokenizer, problem, format_, limit, **options)
        what += ["context"] if len(kept[0]) < len(whole[0]) else []
        what += ["rationale"] if len(kept[1]) < len(whole[1]) else []
    if problem.get("answer") is None and stage == "answer":
        return length, what, None
    target = build_prompt(problem, format_, use_caption=processor.use_caption)[1]
    return length, what, len(token_ids(processor.tokenizer, target)) + len(end_ids(processor.tokenizer))


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, median, 95th percentile, smallest and largest; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "mean": round(sum(ordered) / len(ordered), 1),
        "median": ordered[len(ordered) // 2],
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "min": ordered[0],
        "max": ordered[-1],
    }


def unknown_characters(splits: Mapping[str, Any], tokenizer) -> dict[str, int]:
    """Characters of the problems' texts that the tokenizer doesn't know → how often they occur, most frequent first.

    Line breaks and other white space don't count: prompts collapse them.
    """
    from collections import Counter

    counts: Counter[str] = Counter()
    for problems in splits.values():
        for name in ("question", "context", "lecture", "solution", "caption"):
            for text in read_column(problems, name):
                counts.update(text or "")
        for choices in read_column(problems, "choices"):
            for choice in choices:
                counts.update(choice)
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return {}
    known = [character for character in counts if not character.isspace()]
    ids = tokenizer(known, add_special_tokens=False, verbose=False)["input_ids"] if known else []
    lost = [character for character, tokens in zip(known, ids, strict=True) if unknown in tokens]
    return dict(sorted(((character, counts[character]) for character in lost), key=lambda item: -item[1]))
