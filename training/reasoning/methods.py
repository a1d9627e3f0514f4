"""The methods by name, and what they share: settings, requests, results.

A method is a module with `work(problem, settings, sample)`, a generator of calls for one problem (see `calls.py`). One
that chooses demonstrations has `prepare(train, settings, caller)` too, which is shown the training split and nothing
else, and returns a `Selection`. One that votes in its own way has `vote_among(samples)`.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.reasoning import METHODS
from mmcot.training.reasoning.calls import Completion, Request, Work
from mmcot.training.reasoning.texts import letters_of

# methods that can't do without demonstrations
NEED_DEMONSTRATIONS = ("few-shot-cot", "auto-cot", "complexity", "promptpg")


@dataclass(frozen=True)
class Selection:
    """Demonstrations that a method has chosen.

    Attributes:
        demonstrations: all that may be shown.
        choose: problems -> the demonstrations of each, where they differ by question.
    """

    demonstrations: Sequence[Mapping[str, Any]]
    choose: Callable[[Sequence[Mapping[str, Any]]], list[tuple]] | None = None

    def of(self, problems: Sequence[Mapping[str, Any]]) -> list[tuple]:
        """The demonstrations that each problem is asked with."""
        return [tuple(self.demonstrations)] * len(problems) if self.choose is None else self.choose(problems)


@dataclass(frozen=True)
class Settings:
    """How a method asks.

    Attributes:
        demonstrations: solved problems.
        shots: how many a method chooses.
        prompt_format: of few-shot prompts; see `build_few_shot_prompt`.
        use_caption: captions join the context, for models that don't see pictures.
        images: pictures go to the model.
        max_new_tokens: limit of a rationale.
        temperature: of sampled rationales; the first sample is sampled too when there are several.
        samples: rationales a question, whose answers vote (self-consistency).
        seed: of sampling and of choosing demonstrations.
        score_options: compare the letters' log-probabilities instead of reading the answer from the text.
        embedding_model: sentence-transformers model of methods that compare questions.
    """

    demonstrations: tuple[Mapping[str, Any], ...] = ()
    shots: int = 2
    prompt_format: str = "QCM-LEA"
    use_caption: bool = False
    images: bool = True
    max_new_tokens: int = 256
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    score_options: bool = False
    embedding_model: str | None = None

    def request(
        self,
        problem: Mapping[str, Any],
        prompt: str,
        sample: int,
        *,
        step: str = "ask",
        max_new_tokens: int | None = None,
        letters: tuple[str, ...] = (),
        greedy: bool = False,
    ) -> Request:
        """A call about a problem; samples differ by their seed."""
        temperature = 0.0 if greedy or letters else self.temperature
        return Request(
            prompt,
            step,
            images=tuple(problem.get("images") or ()) if self.images else (),
            max_new_tokens=max_new_tokens or self.max_new_tokens,
            temperature=temperature,
            seed=self.seed + sample if temperature else None,
            letters=letters,
        )

    def scored(self, problem: Mapping[str, Any], prompt: str, rationale: str, sample: int) -> Work:
        """One more call that compares the options' letters after `prompt`."""
        request = self.request(problem, prompt, sample, step="score", letters=letters_of(problem))
        return self.answered(problem, (yield request), rationale, None)

    def answered(
        self, problem: Mapping[str, Any], completion: Completion, rationale: str, answer: int | None
    ) -> dict[str, Any]:
        """A result. Where letters were compared they decide, and become probabilities among the options."""
        result = {
            "answer": answer,
            "rationale": without_answer(rationale),
            "generated": {"rationale": rationale, "answer": completion.text},
        }
        if completion.log_probs:
            import math

            letters = letters_of(problem)
            weights = [math.exp(completion.log_probs.get(letter, float("-inf"))) for letter in letters]
            result["scores"] = [round(weight / (sum(weights) or 1.0), 6) for weight in weights]
            result["answer"] = weights.index(max(weights))
            result["generated"]["answer"] = None
        return result


def method_module(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        UserError: there is no such method.
    """
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return importlib.import_module(f"mmcot.training.reasoning.{METHODS[name]}")


def own_words(text: str) -> str:
    """What a model wrote about this question: many go on with a next question of their own."""
    return text.split("\n\nQuestion:")[0].strip()


def without_answer(text: str) -> str:
    """A rationale without the sentence that gives the answer."""
    return re.sub(
        r"\s*(?:Therefore,? |So,? |Answer: )?[Tt]he answer is:?\s*\(?[A-Z]\)?\.?\s*(?:BECAUSE:)?\s*", " ", text
    ).strip()
