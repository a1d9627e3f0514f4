"""Right and wrong answers for the reader's own eyes, with their pictures and, of a model at hand, its attention."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EACH = 6  # right ones, and as many wrong ones


def choose_examples(
    problems: Mapping[str, Mapping], predictions: Mapping[str, Any], each: int = EACH, seed: int = 0
) -> list[str]:
    """Ids of right and of wrong answers, half and half where there are enough, drawn evenly from the skills (else the
    subjects); questions with a picture first."""
    from mmcot.training.evaluation.accuracy import has_image
    from mmcot.training.evaluation.analysis import judged

    chosen: list[str] = []
    answers = judged(problems, predictions)
    for right in (True, False):
        groups: dict[Any, list[str]] = {}
        for id_, answer in answers.items():
            if (answer == problems[id_]["answer"]) == right:
                problem = problems[id_]
                groups.setdefault((not has_image(problem), problem.get("skill") or problem.get("subject")), []).append(
                    id_
                )
        draw = random.Random(seed)
        lists = [draw.sample(ids, len(ids)) for _, ids in sorted(groups.items(), key=lambda item: str(item[0]))]
        turns = [ids[turn] for turn in range(each) for ids in lists if turn < len(ids)]
        chosen += turns[:each]
    return chosen


def gallery_entries(
    ids: list[str],
    problems: Mapping[str, Mapping],
    predictions: Mapping[str, Any],
    *,
    source: str | Path,
    split: str | None = None,
    model: str | Path | None = None,
    device: str | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What the gallery shows of some questions.

    Args:
        source: to read the pictures from.
        model: a repository, whose attention is drawn over the pictures; None: no attention.

    Returns:
        for each id {"id", "question", "context", "choices", "gold": index, "answer": index or None, "scores",
        "rationale", "reference": the gold solution, "picture": PIL image or None, "attention": picture under the
        attention or None, "same": whether the model at hand gives the same answer (None without one)}.
    """
    from mmcot.processing import load_images
    from mmcot.training.data.problems import load_problems
    from mmcot.training.evaluation.answers import judged_answer

    loaded = load_problems(source, split, require_answer=False, **(source_options or {}))
    rows = {id_: row for row, id_ in enumerate(loaded["id"][:])}
    records = {id_: dict(loaded[rows[id_]]) for id_ in ids if id_ in rows}
    seen = {} if model is None else _attention(model, records, device)
    entries = []
    for id_ in ids:
        problem, prediction = problems[id_], predictions[id_]
        given = prediction if isinstance(prediction, Mapping) else {}
        images = load_images(records[id_]) if records.get(id_) and records[id_]["images"] else []
        result, overlay = seen.get(id_, (None, None))
        answer = judged_answer(id_, problem, prediction)
        entries.append(
            {
                "id": id_,
                "question": problem["question"],
                "context": problem.get("context") or problem.get("hint") or "",
                "choices": list(problem["choices"]),
                "gold": problem["answer"],
                "answer": answer,
                "scores": given.get("scores"),
                "rationale": given.get("rationale"),
                "reference": problem.get("solution") or "",
                "picture": images[0] if images else None,
                "attention": overlay,
                "same": None if result is None else result["answer"] == (None if answer is None else chr(65 + answer)),
            }
        )
    return entries


def _attention(model, records: Mapping[str, dict], device) -> dict[str, tuple[dict, Any]]:
    """Id → (the pipeline's result, the first picture under its attention)."""
    from mmcot.processing import load_images
    from mmcot.training.inference.predict import load_pipeline
    from mmcot.training.report.drawing import attention_grid, has_patch_grid, overlay

    pictured = {id_: record for id_, record in records.items() if record["images"]}
    pipeline = load_pipeline(model, device)
    if not pictured or not has_patch_grid(pipeline.model):
        return {}
    found = {}
    for id_, result in zip(pictured, pipeline(list(pictured.values()), return_attention=True), strict=True):
        attention = result.get("attention") or {}
        weights = attention.get("rationale", attention.get("answer"))
        # of several pictures the first one's patches
        weights = None if weights is None else weights[:, : weights.shape[1] // len(pictured[id_]["images"])]
        grid = None if weights is None else attention_grid(weights)
        found[id_] = (result, None if grid is None else overlay(load_images(pictured[id_])[0], grid))
    return found
