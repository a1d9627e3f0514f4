"""Calls of a language model: what is asked, what came back, and a journal in which nothing is asked twice.

A method is a generator for each problem: it yields `Request`s and is sent their `Completion`s. `Caller` runs many of
them at once, so that a local model answers in batches and an endpoint several calls at a time, and writes every raw
completion to a file before anything is made of it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmcot.training.common import UserError, drop_cut_line, full_disk_told, read_jsonl


@dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        prompt: the text that is continued, or the user's turn for a model with a chat template.
        step: its name within the method, such as "reason" or "extract".
        images: image references of the problem; a text-only model doesn't get any.
        max_new_tokens: limit of the completion.
        temperature: 0 is greedy; above, `seed` decides.
        seed: of sampling.
        letters: options to compare by log-probability right after the prompt, instead of generating.
    """

    prompt: str
    step: str = "ask"
    images: tuple[Any, ...] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    letters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """What came back: the raw text, tokens of prompt and completion, and letter → log-probability where asked for."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    log_probs: Mapping[str, float] = field(default_factory=dict)


class LanguageModel(Protocol):
    """Something that completes: a model in memory, or an endpoint."""

    name: str
    takes_images: bool

    def complete(self, requests: list[Request]) -> Iterator[tuple[int, Completion]]:
        """Yields (position in `requests`, completion) in any order, as they come."""


# A method's work on one problem: yields requests, is sent completions, returns what it found.
Work = Generator[Request, Completion, dict[str, Any]]


class TokenBudgetError(UserError):
    """`--max-tokens-total` is reached; what was asked so far is kept."""


def _content_key(image) -> str:
    from mmcot.training.features.cache import image_key

    return image_key(image)


class Caller:
    """Runs the work of many problems against one model, with a journal.

    Args:
        model: what completes.
        journal: JSON Lines, one raw completion a line: `id`, `key`, `step`, `prompt`, `text`, tokens. Read first: what
            stands there is not asked again.
        max_tokens_total: stop before more tokens than this are used, those of the journal included.
        at_once: problems under way at a time.

    Raises:
        TokenBudgetError: see `max_tokens_total`.
    """

    def __init__(
        self,
        model: LanguageModel,
        journal: str | Path,
        *,
        max_tokens_total: int | None = None,
        at_once: int = 64,
    ):
        self.model, self.journal = model, Path(journal)
        self.max_tokens_total, self.at_once = max_tokens_total, at_once
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        drop_cut_line(self.journal)
        self.known: dict[str, Completion] = {}
        self.tokens, self.seconds = {"prompt": 0, "completion": 0}, 0.0
        try:
            for record in read_jsonl(self.journal) if self.journal.exists() else ():
                self._remember(record)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.journal}: is damaged: remove it to ask anew") from None

    def _remember(self, record: Mapping[str, Any]) -> Completion:
        completion = Completion(
            record["text"], record["prompt_tokens"], record["completion_tokens"], record.get("log_probs") or {}
        )
        if record["key"] not in self.known:
            self.seconds += record.get("seconds", 0.0)
            self.tokens["prompt"] += completion.prompt_tokens
            self.tokens["completion"] += completion.completion_tokens
        self.known[record["key"]] = completion
        return completion

    def _key(self, id_: str, request: Request) -> str:
        """Names a call by all that decides its completion, the pictures' content included."""
        fields = {name: value for name, value in vars(request).items() if name != "images"}
        content = {**fields, "images": [_content_key(image) for image in request.images], "model": self.model.name}
        content["id"] = id_
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

    def run(
        self, works: Iterable[tuple[str, Work]], done: Callable[[str, dict[str, Any]], None] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Runs each work to its end.

        Args:
            works: (id, work); the id names the problem (and sample) in the journal.
            done: called with each result as it comes.

        Returns:
            id → what the work returned.
        """
        waiting, works, results = [], iter(works), {}

        def advance(id_: str, work: Work, completion: Completion | None) -> None:
            """Until the work has an unknown request, or ends."""
            try:
                request = work.send(completion) if completion is not None else next(work)
                while (known := self.known.get(self._key(id_, request))) is not None:
                    request = work.send(known)
            except StopIteration as stop:
                results[id_] = stop.value
                if done is not None:
                    done(id_, stop.value)
            else:
                waiting.append((id_, work, request))

        while True:
            while len(waiting) < self.at_once:
                following = next(works, None)
                if following is None:
                    break
                advance(*following, None)
            if not waiting:
                return results
            affordable = self._affordable([request for _, _, request in waiting])
            asked, waiting = waiting[:affordable], waiting[affordable:]
            before = time.monotonic()
            with full_disk_told(self.journal), open(self.journal, "a", encoding="utf-8") as file:
                for position, completion in self.model.complete([request for _, _, request in asked]):
                    id_, work, request = asked[position]
                    now = time.monotonic()
                    record = {
                        "id": id_,
                        "key": self._key(id_, request),
                        "step": request.step,
                        "prompt": request.prompt,
                        **asdict(completion),
                        "seconds": round(now - before, 6),  # since the completion before: calls may overlap
                    }
                    before = now
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    file.flush()
                    advance(id_, work, self._remember(record))

    def _affordable(self, requests: list[Request]) -> int:
        """How many of the requests, from the first, surely stay within `max_tokens_total`; at least one."""
        if self.max_tokens_total is None:
            return len(requests)
        used = sum(self.tokens.values())
        room = self.max_tokens_total - used
        for number, request in enumerate(requests):
            # no tokenizer makes more tokens than bytes; the completion may be as long as it is allowed to be
            room -= len(request.prompt.encode()) + (0 if request.letters else request.max_new_tokens)
            if room >= 0:
                continue
            if number == 0:
                raise TokenBudgetError(
                    f"{used:,} tokens are used, and the next call could exceed the limit of {self.max_tokens_total:,} "
                    f"(--max-tokens-total). What was asked is kept in {self.journal}; the same command with a higher "
                    "limit goes on"
                )
            return number
        return len(requests)
