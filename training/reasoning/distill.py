"""Fine-tune-CoT (Ho et al. 2022, arXiv 2212.10071): a teacher's rationales, those that led to the right answer, for
small models to learn from; and T-SciQ's mixture of two kinds of them."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.rationales import read_rationales, write_rationales
from mmcot.training.evaluation.predictions import header
from mmcot.training.reasoning import few_shot_cot, plan_cot, zero_shot_cot
from mmcot.training.reasoning.calls import Caller, LanguageModel
from mmcot.training.reasoning.demonstrations import sample_demonstrations
from mmcot.training.reasoning.methods import Settings
from mmcot.training.reasoning.texts import templates

logger = logging.getLogger(__name__)

TEACHING = {"zero-shot-cot": zero_shot_cot, "few-shot-cot": few_shot_cot, "plan": plan_cot}


def distill(
    teacher: LanguageModel,
    problems: Mapping[str, Sequence[Mapping[str, Any]]],
    output: str | Path,
    *,
    method: str = "zero-shot-cot",
    settings: Settings | None = None,
    source: str | None = None,
    max_tokens_total: int | None = None,
) -> dict[str, dict[str, int]]:
    """Asks a teacher for rationales and keeps those whose answer is right.

    Args:
        teacher: from `load_model`, an `Endpoint`, or a `MultimodalTeacher`.
        problems: split → problems with answers, usually "train" (and "val"); never the test split.
        output: file of rationales, for `mmcot train RECIPE rationales=FILE`. Raw completions are kept in
            `<output>.calls.jsonl`; cut off, the same call goes on and asks nothing twice.
        method: how the teacher is asked: "zero-shot-cot", "few-shot-cot" or "plan" (T-SciQ).
        settings: `samples` rationales a question; several are sampled at temperature 0.7.
        source: where the problems come from, for the file's header.
        max_tokens_total: stop before more tokens than this are used.

    Returns:
        split → {"asked": questions, "answered": questions with a kept rationale, "kept": rationales}.

    Raises:
        UserError: the file is there already, the method is none, the test split is asked for, or nothing was right.
    """
    output, settings = Path(output), settings or Settings()
    if output.exists():
        raise UserError(f"{output} is there already: choose another name, or remove it")
    if method not in TEACHING:
        raise UserError(f"a teacher is asked by {', '.join(TEACHING)}, not by {method!r}")
    if "test" in problems:
        raise UserError("rationales of the test split would be learnt and then tested on: distill train and val")
    if settings.samples > 1 and not settings.temperature:
        settings = replace(settings, temperature=0.7)
    if not teacher.takes_images:
        settings = replace(settings, images=False)
    if method == "few-shot-cot" and not settings.demonstrations:
        shots = sample_demonstrations(problems["train"], settings.shots, settings.seed)
        settings = replace(settings, demonstrations=tuple(shots))
    work = getattr(teacher, "work", TEACHING[method].work)  # a Multimodal-CoT model has its own prompts
    shown = {str(shot.get("id")) for shot in settings.demonstrations}
    caller = Caller(teacher, output.with_name(f"{output.name}.calls.jsonl"), max_tokens_total=max_tokens_total)
    kept, counts = [], {}
    for split, asked in problems.items():
        asked = [
            problem for problem in asked if str(problem["id"]) not in shown
        ]  # they have their answer in the prompt
        works = [
            (f"{split}/{problem['id']}/{sample}", work(problem, settings, sample))
            for problem in asked
            for sample in range(settings.samples)
        ]
        results = caller.run(works)
        right = list(_right(split, asked, results, settings.samples))
        kept += right
        answered = len({record["id"] for record in right})
        counts[split] = {"asked": len(asked), "answered": answered, "kept": len(right)}
        logger.info("%s: %d rationales of %d of %d questions kept", split, len(right), answered, len(asked))
    if not kept:
        raise UserError(f"{teacher.name} answered none of the questions right: there is nothing to learn from")
    facts = header(
        "distill",
        teacher=teacher.name,
        endpoint=getattr(teacher, "url", None),
        prompting=method,
        prompt=templates().get(method, {"prompt_format": settings.prompt_format}),
        demonstrations=sorted(shown),
        source=source,
        seed=settings.seed,
        samples=settings.samples,
        temperature=settings.temperature,
        counts=counts,
        tokens=caller.tokens,
    )
    write_rationales(output, facts, kept)
    return counts


def _right(split: str, problems, results: Mapping[str, Mapping], samples: int):
    """The rationales whose answer is right, each text once a question."""
    for problem in problems:
        texts = set()
        for sample in range(samples):
            result = results[f"{split}/{problem['id']}/{sample}"]
            text = " ".join(result["rationale"].split())
            if text and text not in texts and result["answer"] == problem["answer"]:
                texts.add(text)
                yield {"id": str(problem["id"]), "split": split, "sample": sample, "rationale": text}


def mix_by_skill(
    plain: str | Path,
    plans: str | Path,
    problems: Sequence[Mapping[str, Any]],
    plain_errors: Mapping[str, bool],
    plan_errors: Mapping[str, bool],
    validation: Sequence[Mapping[str, Any]],
    output: str | Path,
    key: str = "skill",
) -> dict[str, str]:
    """T-SciQ's mixture: for each skill the kind of rationale whose student errs less, on *validation* questions.

    (T-SciQ itself chose by the test questions' errors.)

    Args:
        plain, plans: files of rationales of the same training problems.
        problems: the training problems, with their skill.
        plain_errors, plan_errors: validation id → whether the student of that file was wrong.
        validation: the validation problems.
        key: field that groups the problems.

    Returns:
        skill → "plain" or "plan"; a tie, and a skill without validation questions, is plain.
    """
    wrong: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for problem in validation:
        id_ = str(problem["id"])
        if id_ not in plain_errors or id_ not in plan_errors:
            raise UserError(f"problem {id_}: both students have to be asked all validation questions")
        wrong[str(problem.get(key))][0] += plain_errors[id_]
        wrong[str(problem.get(key))][1] += plan_errors[id_]
    skills = {str(problem.get(key)) for problem in problems}
    choice = {skill: "plan" if wrong[skill][1] < wrong[skill][0] else "plain" for skill in sorted(skills)}
    files = {"plain": read_rationales(plain), "plan": read_rationales(plans)}
    records = [
        {"id": str(problem["id"]), "split": "train", "rationale": text}
        for problem in problems
        for text in files[choice[str(problem.get(key))]].get(str(problem["id"]), ())
    ]
    write_rationales(output, header("mixture", plain=str(plain), plan=str(plans), choice=choice), records)
    return choice
