"""One question to a pipeline: cleaned, answered while the reader watches, and told where each word looks."""

import queue
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from mmcot.training.report.drawing import attention_grid, has_patch_grid

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_BEAMS, MAX_SAMPLES = 8, 16  # what one question may cost
_MARK = re.compile(r"\(?([A-Za-z])[).:]\s+(?=\S)")


class AskError(ValueError):
    """What the asker can mend, in a sentence."""

    user_error = True


def options_of(text: str | list[str]) -> list[str]:
    """Options of one to a line (or a list); a letter typed before each, as "(A) red", isn't part of it."""
    lines = text.splitlines() if isinstance(text, str) else [str(line) for line in text]
    options = [line.strip() for line in lines if line.strip()]
    marks = [_MARK.match(option) for option in options]
    if options and all(mark and mark[1].upper() == LETTERS[i] for i, mark in enumerate(marks[:26])):
        options = [option[mark.end() :] if mark else option for option, mark in zip(options, marks, strict=True)]
    return options


def problem_of(image: Any, question: str, options: str | list[str], context: str = "") -> dict[str, Any]:
    """A problem as the pipeline takes it.

    Raises:
        AskError: no question, or not 2 to 26 options, each a text.
    """
    if not isinstance(options or "", str | list) or any(
        isinstance(one, list | dict) or one is None for one in options or ""
    ):
        raise AskError("Options are a list of texts.")
    choices, question = options_of(options or ""), str(question or "").strip()
    if not question:
        raise AskError("Write a question first.")
    if not 2 <= len(choices) <= len(LETTERS):
        many = "Give at least two options" if len(choices) < 2 else f"Give at most {len(LETTERS)} options"
        raise AskError(
            f"{many}, one to a line; there {'is' if len(choices) == 1 else 'are'} {len(choices) or 'none'}."
        )
    return {"question": question, "choices": choices, "context": (context or "").strip(), "image": image}


class _Tokens:
    """A streamer of transformers that puts the ids so far into a queue, each time that one is written."""

    def __init__(self, updates: queue.Queue):
        self.updates, self.ids, self.prompt = updates, [], True

    def put(self, value) -> None:
        if self.prompt:  # what generation starts from
            self.prompt = False
            return
        self.ids += value.flatten().tolist()
        self.updates.put(list(self.ids))

    def end(self) -> None:
        pass


def answer_stream(
    pipeline,
    problem: Mapping[str, Any],
    *,
    num_beams: int = 1,
    max_new_tokens: int | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    decode: bool = False,
    compare: bool = True,
) -> Iterator[dict[str, Any]]:
    """The answer to one question, in steps: the rationale as far as it is written, all of it, then what the model says
    without the picture.

    Args:
        num_beams, max_new_tokens: of the rationale.
        samples: rationales that are sampled (at `temperature`) and vote.
        decode: decode the answer freely, as the paper does, instead of scoring the options.
        compare: ask again without the picture, if there is one.

    Yields:
        {"choices", "rationale", "done": False}, then {"choices", "rationale", "answer": index or None, "scores":
        [share] or None, "votes", "picture": PIL image or None, "question_words", "rationale_words": [(word, grid or
        None)], "done": True, "sees": whether the model looks at pictures at all, "blind": None}, then, of a model that
        does, the same with "blind": {"answer", "scores", "rationale"}.

    Raises:
        AskError: a picture that can't be read, or what else the asker can mend.
    """
    picture = _picture(pipeline, problem)
    problem = {**problem, "image": picture}
    options: dict[str, Any] = {"mode": "generate" if decode else "score", "return_attention": True}
    if max_new_tokens:
        options["max_new_tokens"] = int(max_new_tokens)
    if num_beams > 1:
        options["num_beams"] = int(num_beams)
    if samples > 1:
        options |= {"self_consistency": int(samples), "temperature": float(temperature), "do_sample": True}
    written: list[int] = []
    streams = pipeline.two_stage and num_beams <= 1 and samples <= 1
    if streams:
        for state in _while_writing(pipeline, problem, options):
            if "result" not in state:
                written = state["ids"]
                yield {"choices": problem["choices"], "rationale": state["rationale"], "done": False}
        result = state["result"]
    else:
        yield {"choices": problem["choices"], "rationale": "", "done": False}
        result = _asked(pipeline, problem, options)
    state = _told(result, problem["choices"]) | {
        "choices": problem["choices"],
        "picture": picture,
        "votes": result.get("votes"),
        "done": True,
        "sees": sees_pictures(pipeline),
        "blind": None,
        **_words(pipeline, problem, result, written),
    }
    yield state
    if compare and picture is not None and state["sees"]:  # else the same would be asked again
        blind = _asked(pipeline, {**problem, "image": None}, {**options, "return_attention": False})
        yield state | {"blind": _told(blind, problem["choices"])}


def sees_pictures(pipeline) -> bool:
    """Whether the model looks at a question's picture: not if it was trained on text alone."""
    model = pipeline.model
    return (model.rationale if pipeline.two_stage else model).config.has_fusion


def _picture(pipeline, problem: Mapping[str, Any]):
    """The problem's picture, or None; shown even where the model doesn't look at it."""
    if problem.get("image") is None:
        return None
    try:
        images = pipeline.processor.load_images(problem)
    except ValueError as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "reason", "") or cause).strip().rstrip(".")
        raise AskError(f"This picture can't be read: {reason}. Try another one.") from None
    return images[0] if images else None


def _asked(pipeline, problem: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return pipeline(dict(problem), **options)
    except ValueError as error:
        if not getattr(error, "user_error", False):
            raise
        told = re.sub(r"^problem( number \d+)?:? ", "", str(error))
        told = re.sub(r"raise max_source_length.*", "shorten them", told)  # which an asker can't
        raise AskError(told[:1].upper() + told[1:]) from None


def _while_writing(pipeline, problem, options) -> Iterator[dict[str, Any]]:
    """{"ids", "rationale"} as far as it is written, at last {"result"}."""
    import torch

    updates: queue.Queue = queue.Queue()

    def work() -> None:
        try:
            updates.put({"result": _asked(pipeline, problem, {**options, "streamer": _Tokens(updates)})})
        except BaseException as error:
            updates.put({"error": error})

    threading.Thread(target=work, daemon=True).start()
    while True:
        update = updates.get()
        if isinstance(update, list):
            while not updates.empty() and isinstance(updates.queue[0], list):
                update = updates.get()  # only the newest
            text = pipeline.processor.post_process({"rationale_ids": torch.tensor([update])})[0]["rationale"]
            yield {"ids": update, "rationale": text or ""}
            continue
        if "error" in update:
            raise update["error"]
        yield update
        return


def _told(result: Mapping[str, Any], choices: list[str]) -> dict[str, Any]:
    scores = result.get("scores")
    return {
        "rationale": result.get("rationale") or "",
        "answer": None if result["answer"] is None else LETTERS.index(result["answer"]),
        "scores": None if not scores else [scores.get(LETTERS[i], 0.0) for i in range(len(choices))],
    }


# -- where words look -------------------------------------------------------------------------------------------------


def _words(pipeline, problem, result: Mapping[str, Any], written: list[int]) -> dict[str, list]:
    """The words of the question as the first network read them, and of the rationale as the second one read it, each
    with its attention over the picture as a square grid (None where there is no such thing)."""
    processor, attention = pipeline.processor, result.get("attention") or {}
    shown = problem["image"] is not None and has_patch_grid(pipeline.model)
    encoded = processor([{**problem, "image": None}])  # the texts alone
    first = attention.get("rationale" if pipeline.two_stage else "answer")
    ids = encoded["input_ids"][0][encoded["attention_mask"][0].bool()].tolist()
    question = _with_grids(processor.tokenizer, ids, first, 0, shown)
    if question and question[-1][0] in ("Solution:", "Answer:"):  # what asks it to begin
        question.pop()
    found = {"question_words": question, "rationale_words": []}
    if not pipeline.two_stage:
        return found
    second = attention.get("answer")
    text = (result.get("generated") or {}).get("rationale") or ""
    ends = {processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id}
    ids = [token for token in written if token not in ends]
    ids = ids or processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    start = int(encoded["answer_attention_mask"][0].sum())
    closing = len(processor.answer_token_ids()["answer_suffix_ids"])
    if second is not None and len(second) != start + len(ids) + closing:
        second = None  # shortened, or cut into other tokens: no row can be said to be a word's
    words = _with_grids(processor.tokenizer, ids, second, start, shown)
    found["rationale_words"] = [(word, grid) for word, grid in words if word != "Solution:"]
    return found


def _with_grids(tokenizer, ids: list[int], attention, start: int, shown: bool) -> list[tuple[str, list | None]]:
    """Words of token ids, each with the mean attention of its tokens, whose rows begin at `start`."""
    words: list[list[int]] = []
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        if ids[place] in special:
            continue
        if token.startswith("▁") or not words:
            words.append([])
        words[-1].append(place)
    found = []
    for places in words:
        text = tokenizer.decode([ids[place] for place in places]).strip()
        grid = None
        if shown and attention is not None and text:
            square = attention_grid(attention[[start + place for place in places]])
            grid = None if square is None else square.tolist()
        if text:
            found.append((text, grid))
    return found
