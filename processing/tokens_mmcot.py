"""Problems as token ids, and ids as text again: all that depends on the tokenizer.

A source is put together from the ids of its parts: prefix (question, context, options) + rationale + closing
("Answer:" and the end token). This equals tokenising the joined text, since tokens of T5-style vocabularies never span
white space, and a model can do it on its own device.
"""

import functools
import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from transformers.utils import logging

from .prompts_mmcot import (
    ProblemError,
    Segment,
    choices_of,
    option_letter,
    problem_name,
    reads_rationale,
    shown,
    source_segments,
    text_of,
)

LOST = "⁇"  # what sentencepiece writes for an unknown token

logger = logging.get_logger(__name__)

_PARTS = ("Question: Which is it? Context: N/A Options: (A) one (B) two", "Solution: It is one.", "Answer:")
_SPANS_WHITE_SPACE = re.compile(r"[^ \t\n▁][ \t\n▁]")

# "\0" stands for <unk> + n: those that were a line break, see `readable_text`.
_LINE_BREAK = re.compile(
    r"(?<=[.:?!\0])\0"  # directly behind a sentence
    r"|(?<=[.:?!] )\0(?=[A-Z])"  # or before the next one
    rf"|(?<=\S)\0(?=[^\s.,;:?!)\]}}…{LOST}]| [A-Z])"  # or between two words
)


def token_ids(tokenizer, text: str) -> list[int]:
    """A text's ids without special tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []


def end_ids(tokenizer) -> list[int]:
    """The end token, in a list."""
    end = tokenizer.eos_token_id
    return [end] if end is not None else tokenizer("")["input_ids"]


@functools.lru_cache(maxsize=8)
def check_tokenizer(tokenizer, size: int) -> None:
    """Raise a ProblemError unless the parts' ids, joined, are those of the joined text. `size` is len(tokenizer):
    tokens may be added later."""
    reason = None
    spanning = [token for token in tokenizer.get_vocab() if _SPANS_WHITE_SPACE.search(token)]
    for token in tokenizer.added_tokens_decoder.values():
        if (token.lstrip or token.rstrip) and token.content not in tokenizer.all_special_tokens:
            spanning.append(token.content)
    if spanning:
        reason = f"its token {spanning[0]!r} spans white space"
    if sum((token_ids(tokenizer, part) for part in _PARTS), []) != token_ids(tokenizer, " ".join(_PARTS)):
        reason = "the ids of a prompt's parts, joined, are not the ids of the joined text"
    if reason is not None:
        raise ProblemError(
            f"{type(tokenizer).__name__} can't be used: {reason}. Take one that splits at white space, such as those "
            "of T5, FLAN-T5, UnifiedQA and mT5"
        )


# ---- sources ----


def source_parts(
    tokenizer,
    problem: Mapping[str, Any],
    prompt_format: str,
    limit: int,
    *,
    rationale=None,
    use_caption=False,
    cut=True,
) -> tuple[list[int], list[int], list[int]]:
    """Ids of prefix, rationale and closing. With `cut` they fit into `limit` together: the context is shortened at its
    end, and the rationale at its end, which has at least a quarter of `limit`."""
    check_tokenizer(tokenizer, len(tokenizer))
    *segments, last = source_segments(problem, prompt_format, use_caption=use_caption, rationale=rationale)
    closing = token_ids(tokenizer, last.text) + end_ids(tokenizer)
    head = [segment for segment in segments if segment.kind != "G"]
    prefix = token_ids(tokenizer, " ".join(segment.text for segment in head))
    middle = token_ids(tokenizer, " ".join(segment.text for segment in segments if segment.kind == "G"))
    if cut:
        budget = limit - len(closing)
        reserved = limit // 4 if reads_rationale(prompt_format) else 0
        if len(prefix) > budget - reserved:
            prefix = _shorten(tokenizer, problem, head, budget - reserved, limit)
        middle = middle[: budget - len(prefix)]
    return prefix, middle, closing


def join_parts(tokenizer, parts: tuple[list[int], ...], limit: int) -> list[int]:
    """The source; beyond `limit` its end is cut off, but for the end token."""
    ids, end = sum(parts, []), end_ids(tokenizer)
    return ids if len(ids) <= limit else ids[: limit - len(end)] + end


def _shorten(tokenizer, problem, segments: list[Segment], budget: int, limit: int) -> list[int]:
    """The prefix's ids in at most `budget`, by cutting the context at its end, then texts after "BECAUSE:"."""
    pieces = [token_ids(tokenizer, segment.text) for segment in segments]
    for kinds in (("C",), ("L", "E", "LE")):
        for index, (kind, text) in enumerate(segments):
            excess = sum(map(len, pieces)) - budget
            if excess > 0 and kind in kinds:
                keep = len(pieces[index]) - excess
                label = token_ids(tokenizer, text.split(":", 1)[0] + ":")  # alone it would say nothing
                pieces[index] = pieces[index][:keep] if keep > len(label) else []
    ids = sum(pieces, [])
    if len(ids) > budget:
        raise ProblemError(
            f"{problem_name(problem)}: question and options alone take {len(ids)} tokens, and there is room for "
            f"{max(budget, 0)}: raise max_source_length (now {limit})"
        )
    return ids


# ---- what a vocabulary lacks ----


def warn_of_losses(tokenizer, problem: Mapping[str, Any]) -> None:
    """Say, once for each tokenizer, that two options have equal ids, or that most of a question is unknown."""
    told = tokenizer.deprecation_warnings  # where transformers notes what it has warned of
    cure = (
        "Before training, add what it lacks: tokenizer.add_tokens([…]) and "
        "model.resize_token_embeddings(len(tokenizer)). Further cases aren't reported"
    )
    choices = choices_of(problem)
    if "mmcot_equal_options" not in told and len(choices) > 1 and not _surely_differ(tokenizer, choices):
        ids = tokenizer(choices, add_special_tokens=False, verbose=False)["input_ids"]
        for one, other in combinations(range(len(choices)), 2):
            if ids[one] == ids[other] and choices[one].split() != choices[other].split():
                told["mmcot_equal_options"] = True
                logger.warning(
                    f"{problem_name(problem)}: the options ({option_letter(one)}) {shown(choices[one], 80)} and "
                    f"({option_letter(other)}) {shown(choices[other], 80)} have the same tokens in this tokenizer's "
                    f"vocabulary, so that the model can't tell them apart. {cure}"
                )
                break
    question = text_of(problem, "question")
    if "mmcot_unknown_question" not in told and not question.isascii():
        known = tokenizer.decode(token_ids(tokenizer, question), skip_special_tokens=True)
        if 2 * len("".join(known.split())) < len("".join(question.split())):
            told["mmcot_unknown_question"] = True
            logger.warning(
                f"{problem_name(problem)}: most of its question is unknown to this tokenizer's vocabulary. {cure}"
            )


@functools.lru_cache(maxsize=8)
def _known_characters(tokenizer, size: int) -> frozenset[str]:
    """The printable ASCII characters that a vocabulary can write; `size` as in `check_tokenizer`."""
    return frozenset(
        character
        for character in map(chr, range(33, 127))
        if tokenizer.decode(token_ids(tokenizer, character)).strip() == character
    )


def _surely_differ(tokenizer, choices: list[str]) -> bool:
    """Whether options can't have equal ids: all their characters are known and they differ beyond case. Tells most
    apart without tokenising them."""
    words = [choice.split() for choice in choices]
    if len({" ".join(own).casefold() for own in words}) < len(words):
        return False
    return set().union(*(set("".join(own)) for own in words)) <= _known_characters(tokenizer, len(tokenizer))


def readable_text(tokenizer, ids: list[int]) -> str:
    """What a network wrote, for readers: line breaks restored, and a mark where a character was lost.

    Newlines of the targets are the two characters \\n. T5's vocabulary has no backslash, so that they come back as
    <unk> and the piece "n"; but so do "x<n then" and "{n}". A pair was a line break where it stands at the end or the
    start of a sentence or directly between two words ("one\\nTwo"). In ScienceQA 99.9 % of them stand so.
    """
    silent = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    ids = [token for token in ids if token not in silent]
    text, unknown = tokenizer.decode(ids), tokenizer.unk_token
    if unknown is not None and unknown in text:
        pair = token_ids(tokenizer, "\\n")[-2:]
        first, *rest = text.split(unknown)
        places = [place for place, token in enumerate(ids) if token == tokenizer.unk_token_id]
        if len(places) != len(rest):  # a decoder of its own kind
            places = [len(ids)] * len(rest)
        text = first
        for place, part in zip(places, rest, strict=True):
            text += "\0" + part[1:] if ids[place : place + 2] == pair else LOST + part
        text = _LINE_BREAK.sub("\n", text).replace("\0", f"{LOST}n")
    lines = text.replace("\\n", "\n").strip().split("\n")
    return "\n".join(" ".join(line.split()) for line in lines).removeprefix("Solution:").strip()
