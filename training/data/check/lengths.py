"""Lengths of sources and targets in tokens, and what a limit would cut off."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Any

from mmcot.training.common import progress_bar
from mmcot.training.data.batched import BATCH, read_column, read_records

SHOWN = 5  # ids
LONG = 5000  # problems that take so long that a bar is shown
WORDS = 200_000  # whose numbers of tokens are kept, some 30 MB


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
    progress = progress_bar(total=count, desc=f"{stage} lengths", shown=count >= LONG)
    words = _Words(processor.tokenizer)
    for split, near in rows.items():
        problems = splits[split]
        columns = [name for name in problems.column_names if name != "images"]
        records = read_records(problems.select_columns(columns).select(near))
        while batch := list(islice(records, BATCH)):
            progress.update(len(batch))
            for problem, own in zip(batch, _many(processor, words, batch, stage), strict=True):
                try:
                    length, what, target = own or _one(processor, problem, stage)
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


def _many(processor, words: "_Words", problems: Sequence[Mapping[str, Any]], stage: str) -> list[tuple | None]:
    """What `_one` gives of each; None where only that tells: near the limit, of odd words, of a bad problem."""
    from mmcot.processing import build_prompt
    from mmcot.processing.prompts_mmcot import ProblemError
    from mmcot.processing.tokens_mmcot import end_ids

    prompts = []
    for problem in problems:
        try:
            format_, options = _format(processor, problem, stage)
            prompts.append(build_prompt(problem, format_, **options))
        except ProblemError:
            prompts.append(None)
    words.learn(text for prompt in prompts if prompt is not None for text in prompt)
    end = len(end_ids(processor.tokenizer))
    whole_is_kept = 0.7 if processor.source_truncation == "keep_ends" else 1  # see `_one`
    found: list[tuple | None] = []
    for problem, prompt in zip(problems, prompts, strict=True):
        source, target = map(words.count, prompt or ("", ""))
        if prompt is None or inf in (source, target) or source + end > whole_is_kept * processor.max_source_length:
            found.append(None)
        else:
            wanted = problem.get("answer") is not None or stage == "rationale"
            found.append((source + end, [], target + end if wanted else None))
    return found


class _Words:
    """Tokens of texts, counted word by word: words come again, and tokenising is what takes the time.

    A text's tokens are those of its words, since none spans white space (see `check_tokenizer`). Odd words count as
    infinitely many: those that a normaliser could change or join to the word before, and those with a special token,
    which parts the text around it.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self.known: dict[str, float] = {}

    def learn(self, texts: Iterable[str]) -> None:
        """Tokenises what is new in the texts that are counted next."""
        if len(self.known) > WORDS:
            self.known = {}
        new = list({word for text in texts for word in text.split(" ")} - self.known.keys())
        ids = self.tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"] if new else []
        self.known.update((word, self._tokens(word, own)) for word, own in zip(new, ids, strict=True))

    def count(self, text: str) -> float:
        """Tokens of a text that was learnt; its words are parted by single spaces."""
        return sum(map(self.known.__getitem__, text.split(" "))) if text else 0

    def _tokens(self, word: str, ids: list[int]) -> float:
        if not ids or not word.isprintable() or not unicodedata.is_normalized("NFKC", word):
            return inf
        if unicodedata.category(word[0]).startswith("M"):  # a mark belongs to the character before it, a space too
            return inf
        # unknown characters next to each other may be one token
        return inf if ids[0] == self.tokenizer.unk_token_id or self.special.intersection(ids) else len(ids)


def _format(processor, problem: Mapping[str, Any], stage: str) -> tuple[str, dict[str, Any]]:
    """A stage's prompt format, and what `build_prompt` and `source_parts` take besides."""
    from mmcot.processing import build_prompt

    rationale = None
    if stage == "answer" and processor.rationale_format is not None:
        rationale = build_prompt(problem, processor.rationale_format)[1]
    format_ = processor.rationale_format if stage == "rationale" else processor.answer_format
    return format_, {"rationale": rationale, "use_caption": processor.use_caption}


def _one(processor, problem: Mapping[str, Any], stage: str) -> tuple[int, list[str], int | None]:
    """Tokens of a source as it would be without a limit, what the limit cuts, tokens of the target."""
    from mmcot.processing import build_prompt
    from mmcot.processing.tokens_mmcot import end_ids, source_parts, token_ids

    format_, options = _format(processor, problem, stage)
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
            _add_characters(counts, (text or "" for text in read_column(problems, name)))
        _add_characters(counts, (choice for choices in read_column(problems, "choices") for choice in choices))
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return {}
    known = [character for character in counts if not character.isspace()]
    ids = tokenizer(known, add_special_tokens=False, verbose=False)["input_ids"] if known else []
    lost = [character for character, tokens in zip(known, ids, strict=True) if unknown in tokens]
    return dict(sorted(((character, counts[character]) for character in lost), key=lambda item: -item[1]))


def _add_characters(counts: dict[str, int], texts: Iterator[str]) -> None:
    """`counts.update(text)` of each text, in a third of the time."""
    while batch := list(islice(texts, BATCH)):
        joined = "".join(batch)
        for character in dict.fromkeys(joined):  # in the order in which they come, for equal counts
            counts[character] += joined.count(character)
