"""`pipeline("multimodal-cot", model=REPO, trust_remote_code=True)`: a question in, reasons and an answer out."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import Pipeline

from .answers_mmcot import answer_in_one_stage


class _Problems(torch.utils.data.Dataset):
    """Sized, indexable view that `Pipeline` reads in batches."""

    def __init__(self, problems):
        self.problems = problems

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, i: int):
        return self.problems[i]


class MMCoTPipeline(Pipeline):
    """Answers science questions with their rationale.

    Call it with one problem or many (a list, a `datasets.Dataset`: gives a list; a generator: gives an iterator). A
    problem is a dict with `question` and `choices` (2 to 26), and optionally `context`, `caption` and `image` (PIL
    image, path, bytes, URL, a list of them, or None).

    Call-time options:
        mode: "score" (default) answers with the most probable choice, "generate" decodes the answer freely as the
            paper does; an answer that can't be read is then None.
        return_attention: give `attention` with the attention of both stages over the patches, averaged over heads
            (`rationale`: source tokens × patches, `answer`: likewise).
        self_consistency: sample this many rationales and let their answers vote (with `temperature`, `top_p`, …).
        blank_image: answer a second time without the picture and give that as `without_image`.
        batch_size, and every generation option (`num_beams`, `max_new_tokens`, …), which hold for the rationale.

    Gives a dict for each problem: `rationale`, `answer` (letter), `answer_text`, `scores` (letter → probability among
    the problem's own choices; of the winning rationale, where several voted) and `generated` (what the networks wrote,
    uncleaned).
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = False

    def __init__(self, *args, processor=None, **kwargs):
        super().__init__(*args, processor=processor, **kwargs)
        if self.processor is None:
            self.processor = getattr(self.model, "processor", None)
        if self.processor is None:
            raise ValueError('The "multimodal-cot" pipeline needs a processor: pass `processor=`')
        self.tokenizer = self.processor.tokenizer  # batching asks for one
        self.two_stage = hasattr(self.model, "rationale")

    def _sanitize_parameters(
        self,
        mode: str = "score",
        return_attention: bool = False,
        self_consistency: int = 1,
        blank_image: bool = False,
        **generate_kwargs,
    ):
        if self_consistency < 1:
            raise ValueError(f"`self_consistency` is a number of rationales, at least 1, not {self_consistency}")
        forward = {
            "mode": mode,
            "return_attention": return_attention,
            "self_consistency": self_consistency,
            "blank_image": blank_image,
            **generate_kwargs,
        }
        # only what the caller gave may override what was given when the pipeline was made
        defaults = {"mode": "score", "return_attention": False, "self_consistency": 1, "blank_image": False}
        return {}, {k: v for k, v in forward.items() if k not in defaults or v != defaults[k]}, {}

    def __call__(self, problems: dict | Iterable[dict], **kwargs: Any) -> dict | list[dict] | Iterable[dict]:
        if not isinstance(problems, (dict, list, tuple)) and hasattr(problems, "__getitem__"):
            return list(super().__call__(_Problems(problems), **kwargs))  # a datasets.Dataset or alike
        if isinstance(problems, tuple):
            problems = list(problems)
        if isinstance(problems, list) and not problems:
            return []
        return super().__call__(problems, **kwargs)

    def preprocess(self, problem: dict) -> dict:
        if not isinstance(problem, dict):
            raise ValueError(f"A problem is a dict with `question` and `choices`, not {type(problem).__name__}")
        self.processor.check_problem(problem)
        images = self.processor.load_images(problem)
        return {"problem": {**{k: v for k, v in problem.items() if k not in ("image", "images")}, "images": images}}

    def _ensure_tensor_on_device(self, inputs, device):
        # problems are dicts with pictures, and only become tensors in `_forward`
        return inputs

    def _forward(
        self,
        inputs: dict,
        mode: str = "score",
        return_attention: bool = False,
        self_consistency: int = 1,
        blank_image: bool = False,
        **generate_kwargs,
    ) -> dict:
        problems = inputs["problem"] if isinstance(inputs["problem"], list) else [inputs["problem"]]
        if self_consistency > 1:
            generate_kwargs = {"do_sample": True, "num_return_sequences": self_consistency, **generate_kwargs}
        results = self._answer(problems, mode, return_attention, generate_kwargs)
        if blank_image:
            blind = [{**problem, "images": []} for problem in problems]
            for result, other in zip(results, self._answer(blind, mode, False, generate_kwargs), strict=True):
                result["without_image"] = other
        return {"result": results}

    def _answer(self, problems: list[dict], mode: str, return_attention: bool, generate_kwargs: dict) -> list[dict]:
        encoded = self.processor(problems, return_tensors="pt").to(self.device)
        if self.two_stage:
            outputs = self.model.generate(
                **encoded, mode=mode, output_image_attention=return_attention, **generate_kwargs
            )
        else:
            outputs = answer_in_one_stage(
                self.model,
                **encoded,
                **self.processor.answer_token_ids(),
                output_image_attention=return_attention,
                **generate_kwargs,
            )
        rows = outputs.answer_ids if outputs.option_log_probs is None else outputs.option_log_probs
        repeats = len(rows) // len(problems)
        repeated = [problem for problem in problems for _ in range(repeats)]
        results = self.processor.post_process(outputs, repeated)
        if return_attention:
            for i, result in enumerate(results):
                result["attention"] = _attention(outputs, encoded["attention_mask"], i, repeats)
        return [_vote(results[i : i + repeats]) for i in range(0, len(results), repeats)]

    def postprocess(self, outputs: dict) -> dict:
        result = outputs["result"]
        return result[0] if isinstance(result, list) else result


def _attention(outputs, source_mask, row: int, repeats: int) -> dict:
    """Attention of one result, averaged over heads, padding left out: stage → array (source tokens, patches)."""
    found = {}
    if outputs.rationale_image_attentions is not None:
        found["rationale"] = (outputs.rationale_image_attentions[row // repeats], source_mask[row // repeats])
    if outputs.answer_image_attentions is not None:
        found["answer"] = (outputs.answer_image_attentions[row], outputs.answer_source_mask[row])
    patches = None if outputs.image_attention_mask is None else outputs.image_attention_mask[row // repeats]
    arrays = {}
    for stage, (attention, tokens) in found.items():
        attention = attention.float().mean(0)[tokens.bool()]
        # without any picture all the attention lies on the one zero patch
        if patches is not None and patches.any():
            attention = attention[:, patches]
        arrays[stage] = attention.cpu().numpy()
    return arrays


def _vote(results: list[dict]) -> dict:
    """The most frequent answer (ties: the higher summed score), told by its most confident rationale."""
    if len(results) == 1:
        return results[0]
    votes: dict[str, int] = {}
    weight: dict[str, float] = {}
    for result in results:
        letter = result["answer"]
        if letter is not None:
            votes[letter] = votes.get(letter, 0) + 1
            weight[letter] = weight.get(letter, 0.0) + result["scores"][letter]
    if not votes:
        return {**results[0], "votes": votes}
    winner = max(votes, key=lambda letter: (votes[letter], weight[letter]))
    agreeing = [result for result in results if result["answer"] == winner]
    return {**max(agreeing, key=lambda result: result["scores"][winner]), "votes": votes}
