"""`reason`: a method, a model and problems in, a predictions file out, as `mmcot predict` writes it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.batched import read_records
from mmcot.training.evaluation.predictions import PredictionsWriter, header
from mmcot.training.inference.predict import model_name
from mmcot.training.reasoning.calls import Caller, LanguageModel
from mmcot.training.reasoning.demonstrations import sample_demonstrations, write_demonstrations
from mmcot.training.reasoning.methods import NEED_DEMONSTRATIONS, Selection, Settings, method_module
from mmcot.training.reasoning.texts import templates, vote

logger = logging.getLogger(__name__)


def reason(
    method: str,
    model: LanguageModel,
    problems: Sequence[Mapping[str, Any]],
    output: str | Path,
    *,
    train: Sequence[Mapping[str, Any]] | None = None,
    settings: Settings | None = None,
    source: str | None = None,
    split: str | None = None,
    max_tokens_total: int | None = None,
    save_demonstrations: str | Path | None = None,
) -> Path:
    """Asks a model by a method and writes its predictions.

    Every raw completion is kept in `<output>.calls.jsonl`. Cut off, the same call goes on and asks nothing twice.

    Args:
        method: one of `mmcot.training.reasoning.METHODS`.
        model: from `load_model`, or an `Endpoint`.
        problems: the questions, problem records.
        output: predictions file; appears when it is whole.
        train: training split, for methods that choose demonstrations. Nothing of `problems` may be in it.
        settings: see `Settings`; `demonstrations` given there are taken as they are.
        source, split: where the questions come from, for the file's header.
        max_tokens_total: stop before more tokens than this are used, demonstrations' included.
        save_demonstrations: file for the demonstrations that were chosen, which a person can read, mend and reuse.

    Returns:
        the path of the predictions. Their header says method, model, prompt, seed, decoding, ids of the demonstrations
        and tokens used.

    Raises:
        UserError: there is such a file; no such method; demonstrations are needed and there are none; the model is
            text-only and pictures are neither shown nor captioned; the token limit is reached.
    """
    output, settings = Path(output), settings or Settings()
    if output.exists():
        raise UserError(f"{output} is there already: choose another name, or remove it")
    module = method_module(method)
    settings = _for_model(settings, model, problems)
    if settings.samples > 1 and not settings.temperature:
        settings = replace(settings, temperature=0.7)  # Wang et al. 2022; equal samples have nothing to vote on
    caller = Caller(model, output.with_name(f"{output.name}.calls.jsonl"), max_tokens_total=max_tokens_total)
    selection = _selection(module, method, settings, train, problems, caller)
    if save_demonstrations is not None:
        write_demonstrations(save_demonstrations, selection.demonstrations)
    facts = header(
        method,
        model=model.name if getattr(model, "url", None) else model_name(model.name),
        parameters=getattr(model, "parameters", None),
        endpoint=getattr(model, "url", None),
        source=source,
        split=split,
        protocol="generated",
        mode="score" if settings.score_options else "generate",
        decoding={
            "temperature": settings.temperature,
            "max_new_tokens": settings.max_new_tokens,
            "samples": settings.samples,
        },
        images="given" if settings.images else "none",
        prompt=templates().get(method, {"prompt_format": settings.prompt_format}),
        demonstrations=[str(shot.get("id", "")) for shot in selection.demonstrations],
        seed=settings.seed,
        rationale_format=None,
    )
    answers = _ask_all(module, problems, settings, selection, caller)
    with PredictionsWriter(output, facts) as writer:
        for problem in problems:
            if problem["id"] not in writer.done:
                writer.add({"id": problem["id"], **answers[problem["id"]]})
        seconds = round(caller.seconds / len(problems), 4)
        writer.finish([problem["id"] for problem in problems], tokens=caller.tokens, seconds_per_question=seconds)
    missing = sum(answer["answer"] is None for answer in answers.values())
    if missing:
        logger.warning("%d of %d questions got no answer that can be read", missing, len(answers))
    return output


def _ask_all(module, problems, settings: Settings, selection: Selection, caller: Caller) -> dict[str, dict[str, Any]]:
    """id → answer; several samples vote."""
    works = [
        (f"{problem['id']}/{sample}", module.work(problem, replace(settings, demonstrations=shots), sample))
        for problem, shots in zip(problems, selection.of(problems), strict=True)
        for sample in range(settings.samples)
    ]
    results = caller.run(works)
    vote_among = getattr(module, "vote_among", vote)
    answers = {}
    for problem in problems:
        samples = [results[f"{problem['id']}/{sample}"] for sample in range(settings.samples)]
        answers[problem["id"]] = vote_among(samples) if settings.samples > 1 else samples[0]
    return answers


def _selection(module, method: str, settings: Settings, train, problems, caller: Caller) -> Selection:
    if settings.demonstrations:
        return Selection(settings.demonstrations)
    if method not in NEED_DEMONSTRATIONS and not (method == "direct" and train is not None and settings.shots):
        return Selection(())
    if train is None or not len(train):
        raise UserError(f"{method} needs demonstrations: a source with a training split, or --demonstrations FILE")
    asked = {str(problem["id"]) for problem in problems}
    if overlap := [problem["id"] for problem in read_records(train) if str(problem["id"]) in asked]:
        raise UserError(
            f"problem {overlap[0]} is both in the training split and asked: demonstrations would give it away"
        )
    if hasattr(module, "prepare"):
        return module.prepare(train, settings, caller)
    return Selection(sample_demonstrations(train, settings.shots, settings.seed))


def _for_model(settings: Settings, model: LanguageModel, problems: Sequence[Mapping[str, Any]]) -> Settings:
    """The settings for a model that may not see pictures: captions instead."""
    if model.takes_images or not settings.images:
        return settings
    shown = [problem for problem in problems if problem.get("images")]
    captioned = sum(bool(problem.get("caption")) for problem in shown)
    if shown and not captioned and not settings.use_caption:
        logger.warning(
            "%s reads text only: %d of %d questions have a picture that it won't see, and none has a caption",
            *(model.name, len(shown), len(problems)),
        )
    return replace(settings, images=False, use_caption=settings.use_caption or captioned > 0)
