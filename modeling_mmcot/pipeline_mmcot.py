"""`pipeline("multimodal-cot", model=REPO, trust_remote_code=True)`: a question in, reasons and an answer out."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import Pipeline

from .answers_mmcot import check_mode, check_vocabulary
from .errors_mmcot import ModelError

OWN_OPTIONS = ("mode", "return_attention", "self_consistency", "choose", "blank_image")
CHOICES = ("votes", "scores", "confidence")
LIMITS = {"max_length": None, "max_new_tokens": None}  # two names of one thing: a call's replaces the pipeline's


class _Problems(torch.utils.data.Dataset):
    """Sized, indexable view that `Pipeline` reads in batches."""

    def __init__(self, problems):
        self.problems = problems

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, i: int) -> dict:
        return _numbered(i, self.problems[i])


def _numbered(i: int, problem) -> dict:
    """The problem with an id, so that an error about it tells which one it is."""
    if not isinstance(problem, Mapping):
        raise ModelError(
            f"problem {i + 1} is a {type(problem).__name__}; it must be a dict with `question` and `choices`"
        )
    return {**problem, "id": f"number {i + 1}"} if problem.get("id") is None else dict(problem)


class MMCoTPipeline(Pipeline):
    """Answers science questions with their rationale.

    Call it with one problem (gives a dict), a list or a `datasets.Dataset` (gives a list), or a generator or a stream
    such as a `datasets.IterableDataset` (gives an iterator). A problem is a dict with `question` and `choices` (2 to
    26), and optionally `context`, `caption` and `image` (PIL image, path, bytes, URL, a list of them, or None).

    Call-time options:
        mode: "score" (default) answers with the most probable choice, "generate" decodes the answer freely as the
            paper does; an answer that can't be read is then None.
        return_attention: give `attention` with the attention of both stages over the patches, averaged over heads
            (`rationale`: source tokens × patches, `answer`: likewise).
        self_consistency: sample this many rationales, of which `choose` makes one answer (with `temperature`, `top_p`,
            …). `num_beams` and `num_return_sequences` give it the best beams instead.
        choose: "votes" (default): the most frequent answer; "scores": the highest sum of the choices' probabilities;
            "confidence": the answer of the rationale that the answer stage is most sure about.
        blank_image: answer a second time without the picture and give that as `without_image`.
        batch_size, and every generation option (`num_beams`, `max_new_tokens`, …), which hold for the rationale.

    Gives a dict for each problem: `rationale`, `answer` (letter), `answer_text`, `scores` (letter → probability among
    the problem's own choices; of the winning rationale, where several voted) and `generated` (what the networks wrote,
    uncleaned).
    """

    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _pipeline_calls_generate = False
    processor: Any
    model: Any

    def __init__(self, *args, processor=None, **kwargs):
        kwargs.pop("local_files_only", None)  # `pipeline()` has used it and hands it on
        super().__init__(*args, processor=processor, **kwargs)
        self.processor = self.processor or self.model.processor
        if self.processor is None:
            raise ModelError('the "multimodal-cot" pipeline needs a processor: pass `processor=`')
        if self.model.processor is None:
            self.model.processor = self.processor
        self.tokenizer = self.processor.tokenizer  # batching asks for one
        self.two_stage = hasattr(self.model, "rationale")
        check_vocabulary(self.processor, self.model.config.get_text_config())

    def _sanitize_parameters(self, **options):
        # All that the caller gave, and no defaults: a call's options win over the pipeline's, whatever they are.
        check_mode(options.get("mode", "score"))
        rationales = options.get("self_consistency", 1)
        if not isinstance(rationales, int) or rationales < 1:
            raise ModelError(f"`self_consistency` is a number of rationales, at least 1, not {rationales!r}")
        if options.get("choose", "votes") not in CHOICES:
            raise ModelError(f"`choose` is one of {', '.join(map(repr, CHOICES))}, not {options['choose']!r}")
        return {}, options, {}

    def __call__(self, problems: Any, **options: Any) -> dict | list[dict] | Iterator[dict]:
        """Answers one problem (a dict), many, or a stream of them; see the class for options and results."""
        if options.get("generation_config") is not None:  # it replaces the pipeline's generation options
            options = {name: None for name in self._forward_params if name not in OWN_OPTIONS} | options
        elif LIMITS.keys() & options.keys():
            options = LIMITS | options
        if isinstance(problems, Mapping):
            splits = [str(name) for name, value in problems.items() if hasattr(value, "column_names")]
            if splits:
                raise ModelError(f"this is a {type(problems).__name__}: choose a split, one of {', '.join(splits)}")
            return super().__call__(problems, **options)
        sized = hasattr(problems, "__len__") and hasattr(problems, "__getitem__")
        text_or_table = isinstance(problems, (str, bytes)) or hasattr(problems, "iloc")
        if text_or_table or not (sized or isinstance(problems, Iterable)):
            raise ModelError(
                f"problems are a dict, or a list, data set or stream of dicts, not a {type(problems).__name__} (of a "
                'pandas table: table.to_dict("records"))'
            )
        if sized:
            return list(super().__call__(_Problems(problems), **options)) if len(problems) else []
        return super().__call__((_numbered(i, problem) for i, problem in enumerate(problems)), **options)

    def preprocess(self, problem: Mapping) -> dict:
        images = self.processor.check_problem(problem)
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
        choose: str = "votes",
        blank_image: bool = False,
        **generate_kwargs,
    ) -> dict:
        problems = inputs["problem"] if isinstance(inputs["problem"], list) else [inputs["problem"]]
        if self_consistency > 1:
            if generate_kwargs.get("num_return_sequences", self_consistency) != self_consistency:
                raise ModelError("give either `self_consistency` or `num_return_sequences`: both count the rationales")
            generate_kwargs = {"do_sample": True, **generate_kwargs, "num_return_sequences": self_consistency}
        results = self._answer(problems, mode, return_attention, choose, generate_kwargs)
        if blank_image:
            blind = [{**problem, "images": []} for problem in problems]
            for result, other in zip(results, self._answer(blind, mode, False, choose, generate_kwargs), strict=True):
                result["without_image"] = other
        return {"result": results}

    def _answer(self, problems: list[dict], mode: str, return_attention: bool, choose: str, generate_kwargs) -> list:
        encoded = self.processor(problems, return_tensors="pt").to(self.device)
        outputs = self.model.generate(**encoded, mode=mode, output_image_attention=return_attention, **generate_kwargs)
        repeats = len(outputs.option_log_probs) // len(problems)
        repeated = [problem for problem in problems for _ in range(repeats)]
        results = self.processor.post_process(outputs, repeated)
        if return_attention:
            for i, result in enumerate(results):
                result["attention"] = _attention(outputs, encoded["attention_mask"], i, repeats)
        return [choose_result(results[i : i + repeats], choose) for i in range(0, len(results), repeats)]

    def postprocess(self, outputs: dict) -> dict:
        result = outputs["result"]
        return result[0] if isinstance(result, list) else result


def _attention(outputs: Any, source_mask: torch.Tensor, row: int, repeats: int) -> dict:
    """Attention of one result, averaged over heads, padding left out: stage → array (source tokens, patches)."""
    problem = row // repeats
    found = {}
    if outputs.rationale_image_attentions is not None:
        found["rationale"] = (outputs.rationale_image_attentions[problem], source_mask[problem])
    if outputs.answer_image_attentions is not None:
        attentions, tokens = outputs.answer_image_attentions, outputs.answer_source_mask
        own = problem if len(attentions) == len(source_mask) else row  # one stage reads once
        found["answer"] = (attentions[own], tokens[own])
    patches = None if outputs.image_attention_mask is None else outputs.image_attention_mask[problem]
    arrays = {}
    for stage, (attention, tokens) in found.items():
        attention = attention.float().mean(0)[tokens.bool()]
        # without any picture all the attention lies on the one zero patch
        if patches is not None and patches.any():
            attention = attention[:, patches]
        arrays[stage] = attention.cpu().numpy()
    return arrays


def choose_result(results: list[dict], choose: str = "votes") -> dict:
    """One result of those that several rationales gave, with `votes` (answer → rationales that led to it).

    Args:
        results: each with `answer` (None where it can't be read) and `scores`, by answer; None where there are none.
        choose: what decides: "votes", a tie by the summed scores; "scores", their sum over all; "confidence", the
            highest score of a single rationale. Of the rationales that led to the answer the most confident is given.
    """
    if len(results) == 1:
        return results[0]

    def score(result: Any, answer: Any) -> float:
        scores = result.get("scores") or {}
        return scores.get(answer, 0.0) if isinstance(scores, dict) else scores[answer]

    agreeing: dict[Any, list[dict]] = {}
    for result in results:
        if result["answer"] is not None:
            agreeing.setdefault(result["answer"], []).append(result)
    votes = {answer: len(group) for answer, group in agreeing.items()}
    if not votes:
        return {**results[0], "votes": votes}

    def rank(answer: Any) -> tuple:
        # a sum over those that agree breaks a tie of votes; as the judge it is over all
        own = [score(result, answer) for result in agreeing[answer]]
        everyone = sum(score(result, answer) for result in results)
        return {"votes": (len(own), sum(own)), "scores": (everyone,), "confidence": ()}[choose] + (max(own),)

    winner = max(agreeing, key=rank)
    return {**max(agreeing[winner], key=lambda result: score(result, winner)), "votes": votes}
