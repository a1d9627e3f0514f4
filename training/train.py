"""A run: a recipe becomes two trained stages (or one), their predictions, scores and a repository.

`accelerate launch -m mmcot.training.train RECIPE` is the same as `mmcot train RECIPE`. `run_recipe` reads top to
bottom; each of its steps is skipped when it was done before from the same data and settings.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

from mmcot.training.common import FullDiskError, UserError, full_disk, is_disk_full
from mmcot.training.stages.recipe import Recipe
from mmcot.training.stages.run import Run

__all__ = ["Run", "run_recipe"]
logger = logging.get_logger("mmcot")


def run_recipe(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Runs a recipe.

    It leaves in `output_dir`: `rationale/` and `answer/` (the trained stages), their `predictions_<split>.jsonl`,
    `results_<split>.json`, and `hub/`, the repository to use and to publish.

    Args:
        recipe: from `load_recipe`.

    Returns:
        split → scores of the split, as `evaluate_predictions` gives them; empty where no answers were made.

    Raises:
        UserError: what the user has to mend; everything that can be known is said before the first training step.
    """
    from mmcot.training.stages.checks import Faults, check_recipe, check_run
    from mmcot.training.stages.progress import describe_run

    faults = Faults()
    check_recipe(recipe, faults)
    with faults.caught():
        run = Run(recipe)
    faults.tell()
    with run.locked(), _full_disk_told(run.folder):
        if not run.is_finished():
            check_run(run)
            if run.state.is_main_process:
                logger.info(f"\n{describe_run(run)}")
        for stage in run.stages:
            run.train(stage)
            for predicting in ["rationale", "answer"] if recipe.share_stages else [stage]:
                for split in run.splits:
                    run.predict(predicting, split)
            run.release()
        if recipe.stages == "rationale":
            return {}
        results = {split: score(run, split) for split in run.splits}
        if recipe.one_stage or run.has_rationale_stage:
            publish(run, results)
        return results


def score(run: Run, split: str) -> dict[str, Any]:
    """Scores of a split's answers, as `mmcot evaluate` gives them, also written to `results_<split>.json`."""
    from mmcot.training.common import write_json
    from mmcot.training.data.batched import read_records
    from mmcot.training.data.mixture import is_mixture
    from mmcot.training.evaluation.protocol import protocol_of, rationale_format_of, told
    from mmcot.training.evaluation.reading import read_predictions
    from mmcot.training.evaluation.scoring import evaluate_predictions, evaluate_sources

    answers = run.predictions_file("answer", split)
    problems = {problem["id"]: problem for problem in read_records(run.questions(split).remove_columns(["images"]))}
    options = {"protocol": protocol_of(answers), "rationale_format": rationale_format_of(answers)}
    predictions = read_predictions(answers)
    result = evaluate_predictions(problems, predictions, **options)
    result.update(told(answers))
    if is_mixture(run.recipe.data):
        result["sources"] = evaluate_sources(problems, predictions, **options)
    if run.state.is_main_process:
        write_json(run.folder / f"results_{split}.json", result)
    return result


def publish(run: Run, results: dict[str, dict[str, Any]]) -> None:
    """Writes `hub/`, and pushes it where the recipe says `push_to_hub`; not again what is there already."""
    from mmcot.training.hub.repository import write_repository
    from mmcot.training.stages.fingerprints import digest
    from mmcot.training.stages.identity import trained_digest
    from mmcot.training.stages.manifest import mark_step, read_manifest
    from mmcot.training.stages.progress import quiet_libraries

    if run.state.is_main_process:
        folder, partial = run.folder / "hub", run.folder / "hub.partial"
        step = run.folder / "hub.json"  # its manifest stays out of the repository
        settings = {"recipe": digest(run.recipe.identity()), "results": digest(results)}
        settings |= {stage: trained_digest(run, stage) for stage in ("rationale", "answer")}
        found = read_manifest(step)
        if found is None or found["settings"] != settings or not (folder / "config.json").is_file():
            shutil.rmtree(partial, ignore_errors=True)
            rationale = None if run.recipe.one_stage else run.network("rationale")
            with quiet_libraries():
                write_repository(run, rationale, run.network("answer"), results, partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            found = {}
            mark_step(step, settings, finished=True)
        if run.recipe.training.get("push_to_hub") and "pushed" not in found:
            mark_step(step, settings, finished=True, pushed=_push(run))
    run.state.wait_for_everyone()


def _push(run: Run) -> str:
    """Pushes `hub/`, as the recipe's `hub_…` keys say, and returns the commit's URL."""
    from mmcot.training.hub.push import push

    training = run.recipe.training
    url = push(
        run.folder / "hub",
        training.get("hub_model_id") or run.folder.absolute().name,
        private=bool(training.get("hub_private_repo")),
        revision=training.get("hub_revision"),
        token=training.get("hub_token"),
    )
    logger.info(f"{run.folder / 'hub'}: pushed to {url}")
    return url


def next_commands(recipe: Recipe) -> str:
    """What to do with a finished run: where its repository lies, and the commands that take it further."""
    folder, hub = Path(recipe.output_dir), Path(recipe.output_dir) / "hub"
    if not (hub / "config.json").is_file():
        return f"\n{folder} holds the {recipe.stages} stage alone: hub/ needs the other one too (stages=both)"
    split = "" if recipe.test_split is None else f" --split {recipe.test_split}"
    some = recipe.max_test_samples if recipe.test_split is not None else recipe.max_eval_samples
    partial = "" if some is None else " --partial"
    commands = [
        (f"mmcot app {folder}", "ask it in the browser"),
        (f"mmcot report {folder}{partial}", "one page with all figures"),
        (f"mmcot predict {hub} {recipe.data}{split} --output predictions.jsonl", "answer more questions"),
        (f"mmcot push {hub} YOUR-NAME/{folder.absolute().name} --dry-run", "what would be published"),
    ]
    if recipe.test_split is None and recipe.eval_split is None:  # no answers to report
        del commands[1]
    width = max(len(command) for command, _ in commands)
    lines = [f"  {command:<{width}}  # {what}" for command, what in commands]
    return "\n".join([f"\n{hub} holds the model, with its card. Next:", *lines])


@contextlib.contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """One line where the disk is full, in whatever words a library says so: with its file, or the run's folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error) and shutil.disk_usage(folder).free > 1 << 20:
            raise
        raise FullDiskError(full_disk(getattr(error, "filename", None) or folder)) from error


def main() -> int:
    """`python -m mmcot.training.train`, what `accelerate launch -m` starts."""
    from mmcot.training.cli import lighten_process, run_command

    lighten_process()
    return run_command("train", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
