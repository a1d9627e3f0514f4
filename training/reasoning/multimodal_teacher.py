"""A Multimodal-CoT repository as a teacher: it writes a rationale and an answer in one call."""

from collections.abc import Iterator
from pathlib import Path

from mmcot.training.reasoning.calls import Completion, Request, Work
from mmcot.training.reasoning.methods import Settings


class MultimodalTeacher:
    """See `LanguageModel`; a request's prompt is not read, its problem is. Use it with `work` of this module.

    Args:
        model: folder or Hub id of a two-stage repository.
        device: where to compute; default: an accelerator if there is one.
        batch_size: questions at a time.
    """

    takes_images = True

    def __init__(self, model: str | Path, *, device: str | None = None, batch_size: int = 64):
        from mmcot.training.inference.predict import load_pipeline

        self.name, self.batch_size = str(model), batch_size
        self.pipeline = load_pipeline(model, device)
        self.problems: dict[str, dict] = {}

    def complete(self, requests: list[Request]) -> Iterator[tuple[int, Completion]]:
        import torch

        groups: dict[tuple, list[int]] = {}
        for position, request in enumerate(requests):
            groups.setdefault((request.temperature, request.seed, request.max_new_tokens), []).append(position)
        for (temperature, seed, max_new_tokens), positions in groups.items():
            options = {"max_new_tokens": max_new_tokens}
            if temperature:
                options |= {"do_sample": True, "temperature": temperature}
            for start in range(0, len(positions), self.batch_size):
                batch = positions[start : start + self.batch_size]
                torch.manual_seed((seed or 0) + start)
                problems = [self.problems[requests[position].prompt] for position in batch]
                for position, result in zip(
                    batch, self.pipeline(problems, batch_size=self.batch_size, **options), strict=True
                ):
                    text = f"{result['rationale']} The answer is ({result['answer']})."
                    yield position, Completion(text, 0, len(text.split()))

    def work(self, problem, settings: Settings, sample: int = 0) -> Work:
        """The work on one problem: its id is the prompt."""
        from mmcot.training.reasoning.methods import without_answer
        from mmcot.training.reasoning.texts import read_answer

        self.problems[str(problem["id"])] = problem
        completion = yield settings.request(problem, str(problem["id"]), sample)
        text = completion.text
        return settings.answered(problem, completion, without_answer(text), read_answer(text, problem))
