"""What lies in a repository beside model, code and card: requirements, predictions, results, an example's picture."""

import importlib.metadata
import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import read_jsonl, write_json, written_whole
from mmcot.training.data.batched import read_column

NEEDED = ("torch", "transformers", "numpy", "pillow")
EXAMPLE_PICTURE = "example.png"
EXAMPLE_PIXELS = 512
PREDICTIONS = "predictions_test.jsonl"
RESULTS = "results.json"
EVAL_RESULTS = ".eval_results"
LOOKED_THROUGH = 200  # questions among which an example is chosen


def requirements_of(config: Mapping[str, Any]) -> list[str]:
    """What a repository's code needs, with this package's own lower bounds; timm only for a timm backbone."""
    backbone = config.get("vision_config") or {}
    kinds = {one.get("model_type") for one in (backbone, *(backbone.get("backbones") or ()))}
    names = (*NEEDED, "timm") if "timm_wrapper" in kinds else NEEDED
    bounds = {re.match(r"[\w-]+", line)[0]: line for line in importlib.metadata.requires("mmcot") or ()}  # type: ignore
    return [bounds.get(name, name) for name in names]


def guessing(problems) -> dict[str, float]:
    """Expected accuracy of guessing in %: of all questions, and of those with a picture if there are any."""
    shares = [1 / len(choices) for choices in read_column(problems, "choices")]
    shown = [share for share, has in zip(shares, problems["has_image"][:], strict=True) if has]
    found = {"Avg": shares, "IMG": shown}
    return {column: 100 * sum(some) / len(some) for column, some in found.items() if some}


def choose_example(problems, predictions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """A test question for the card: with a picture and answered rightly, if there is one.

    Returns:
        what `example_section` takes, with the `problem` itself instead of `image`; None without predictions.
    """
    few = problems.select(range(min(LOOKED_THROUGH, len(problems))))
    found = [(problem, predictions[problem["id"]]) for problem in few if problem["id"] in predictions]
    if not found:
        return None
    problem, record = max(found, key=lambda pair: (bool(pair[0]["images"]), pair[1]["answer"] == pair[0]["answer"]))
    kept = {name: problem[name] for name in ("question", "choices", "context", "answer")}
    return {**kept, "problem": problem, "rationale": record.get("rationale"), "said": record["answer"]}


def write_picture(problem: Mapping[str, Any], folder: Path) -> str | None:
    """The first picture of a problem as a small file of the repository; None where it has none."""
    from mmcot.processing import load_images

    images = load_images(problem)
    if not images:
        return None
    picture = images[0].convert("RGB")
    picture.thumbnail((EXAMPLE_PIXELS, EXAMPLE_PIXELS))
    picture.save(folder / EXAMPLE_PICTURE)
    return EXAMPLE_PICTURE


def write_extras(
    folder: Path,
    requirements: list[str],
    results: Mapping[str, Mapping[str, Any]],
    predictions: Path | None,
    dataset: Mapping[str, Any],
    test_split: str | None = "test",
) -> None:
    """Writes `requirements.txt`, `results.json`, the test split's predictions and `.eval_results/`.

    Args:
        results: split → scores.
        predictions: the run's file of the test split, to be published; None: not.
        test_split: what the data call it.
        dataset: of `dataset_of`; only figures of a data set of the Hub go to `.eval_results/`, which names it by id.
    """
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    if results:
        write_json(folder / RESULTS, {split: _without_paths(scores) for split, scores in results.items()})
    if predictions is not None and predictions.is_file():
        with written_whole(folder / PREDICTIONS) as file:
            for record in read_jsonl(predictions):
                if "header" in record:
                    record = {"header": _without_paths(record["header"])}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    shutil.rmtree(folder / EVAL_RESULTS, ignore_errors=True)
    if dataset.get("id") and "test" in results:
        _write_eval_results(folder / EVAL_RESULTS, dataset["id"], results["test"], test_split)


def _without_paths(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as others may see them: a source by its name, not by where it lies on this machine."""
    source = str(facts.get("source") or "")
    local = source and (source.startswith(("/", ".", "~")) or Path(source).exists())
    return {**facts, "source": Path(source).name} if local else dict(facts)


def _write_eval_results(folder: Path, dataset_id: str, scores: Mapping[str, Any], split: str | None) -> None:
    """The test split's accuracy in the form that the Hub's leaderboards read."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entry = EvalResultEntry(
        dataset_id=dataset_id,
        task_id="default",
        value=round(float(scores["accuracy"]["Avg"]), 2),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        notes=f"split {split}, n = {int(scores['n']['Avg'])}, protocol: {scores['protocol']}",
    )
    folder.mkdir()
    name = re.sub(r"\W+", "-", dataset_id.split("/")[-1]).lower()
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
