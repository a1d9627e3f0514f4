"""The demonstration: three models trained from scratch on generated questions, compared, and asked."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmcot.training.common import MissingFileError, UserError, versions

START = "demo-start"
ARMS = {
    "(a) one stage, with pictures": "demo-one-stage",
    "(b) two stages, without pictures": "demo-text-only",
    "(c) two stages, with pictures": "demo",
}
MAIN = "(c) two stages, with pictures"
BLANK = "(c) with its pictures blanked"
QUICK_ARMS = {MAIN: "demo-quick"}  # `--quick`: the method alone, on one skill
REPORT_ROWS = 6
SHOWN_ANSWERS = 3


def demo(output: str | Path = "mmcot-demo", quick: bool = False, seed: int = 0, overrides: Sequence[str] = ()) -> dict:
    """Runs the demonstration, and returns what `results.json` holds.

    Args:
        output: folder; an interrupted demo in it is gone on with.
        quick: one skill and the method alone, for a minute or two.
        seed: of the networks' weights; the questions are always the same.
        overrides: `key=value` for all its recipes, to try it with less.
    """
    from mmcot.training.common import write_json
    from mmcot.training.data.problems import load_problems
    from mmcot.training.evaluation.tables import format_table
    from mmcot.training.side_by_side import only_our_lines, run_side_by_side
    from mmcot.training.stages.recipe import load_recipe
    from mmcot.training.train import run_recipe

    only_our_lines()
    folder = Path(output)
    start = time.perf_counter()
    say = _Narrator(start)
    overrides = [f"seed={seed}", "disable_tqdm=false", *overrides]  # bars, though libraries are silent
    arms = QUICK_ARMS if quick else ARMS
    results, seconds, recipes = {}, {}, {}
    if not quick:
        began = time.perf_counter()
        say("a text network to start from: learns to find the option that a rationale names")
        recipes[START] = load_recipe(START, [*overrides, f"output_dir={folder / 'runs' / START}"])
        run_recipe(recipes[START])
        seconds[START] = round(time.perf_counter() - began, 1)
        started = folder / "runs" / START / "answer"
        overrides += [f"model={started}", f"tokenizer={started}"]
    options = {name: [*overrides, f"output_dir={folder / 'runs' / recipe}"] for name, recipe in arms.items()}
    for name, recipe_name in arms.items():
        recipes[name] = load_recipe(recipe_name, options[name])
    if len(arms) > 1:
        say(f"{', '.join(arms)}: training side by side")
    for name, took in run_side_by_side(arms, options):
        if took is None:  # alone, or it did not get through beside the others: goes on, or says why not
            say(f"{name}: training")
            began = time.perf_counter()
            run_recipe(recipes[name])
            took = time.perf_counter() - began
        results[name], seconds[name] = _scores(recipes[name], "test"), round(took, 1)
        say(f"{name}: {results[name]['accuracy']['IMG']:.1f} % of the questions with a picture")
    results = {name: results[name] for name in arms}

    recipe = recipes[MAIN]
    problems = load_problems(recipe.data, recipe.test_split)
    if recipe.max_test_samples is not None:
        problems = problems.select(range(min(recipe.max_test_samples, len(problems))))
    hub = _copy_repository(Path(recipe.output_dir) / "hub", folder / "hub")
    if quick:  # where all questions have a picture, the run has asked them without
        results[BLANK] = _scores(recipe, "test_blank")
    else:
        say(f"{MAIN}: asked again without its pictures")
        results[BLANK] = _without_pictures(hub, problems, folder)
    say("drawing the report")
    _draw(hub, problems, folder / "report.png")

    chance = _chance(problems)
    summary = {
        "arms": results,
        "chance_on_image_questions": chance,
        "rationales_right_word_for_word": {
            name: _exact(Path(recipes[name].output_dir), problems) for name in arms if not recipes[name].one_stage
        },
        "seconds": {**seconds, "all": round(time.perf_counter() - start, 1)},
        "recipes": {name: recipe.identity() for name, recipe in recipes.items()},
        "versions": versions(),
        "quick": quick,
    }
    write_json(folder / "results.json", summary)
    print()
    print(format_table(results))
    print(_reading(summary))
    print(_answers(Path(recipe.output_dir), problems))
    say("one question to the repository, in a fresh process")
    print(_ask_in_fresh_process(hub, problems, folder))
    print(_next_commands(folder, recipe.data, Path(recipe.output_dir)))
    say("done")
    return summary


class _Narrator:
    """Prints what happens, with the time since the start."""

    def __init__(self, start: float):
        self.start = start

    def __call__(self, text: str) -> None:
        clear = "\r\033[J" if sys.stdout.isatty() else ""  # bars of processes side by side
        print(f"{clear}[{time.perf_counter() - self.start:5.0f} s] {text}", flush=True)


def _scores(recipe, split: str) -> dict:
    return json.loads((Path(recipe.output_dir) / f"results_{split}.json").read_text(encoding="utf-8"))


def _copy_repository(source: Path, target: Path) -> Path:
    import shutil

    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    return target


def _without_pictures(hub: Path, problems, folder: Path) -> dict:
    from mmcot.training.evaluation.reading import read_predictions
    from mmcot.training.evaluation.scoring import evaluate_predictions
    from mmcot.training.inference.predict import predict

    path = folder / "runs" / "predictions_blank.jsonl"
    if not path.exists():
        predict(hub, problems, path, batch_size=128, blank_images=True, device="cpu")
    records = {problem["id"]: problem for problem in problems.remove_columns(["images"])}
    return evaluate_predictions(records, read_predictions(path))


def _chance(problems) -> float:
    """Expected accuracy in % of guessing, on the questions with a picture."""
    shown = [
        len(choices) for choices, has in zip(problems["choices"][:], problems["has_image"][:], strict=True) if has
    ]
    return round(100 * sum(1 / count for count in shown) / len(shown), 2)


def _exact(run_folder: Path, problems) -> dict[str, float]:
    """Share of the rationales in % that equal the target word for word: all, and of questions with a picture."""
    from mmcot.processing import build_prompt
    from mmcot.training.evaluation.reading import read_predictions

    written = read_predictions(run_folder / "rationale" / "predictions_test.jsonl")
    right = [
        build_prompt(problem, "QCM-E")[1] == written[problem["id"]]["generated"]["rationale"] for problem in problems
    ]
    shown = [ok for ok, has in zip(right, problems["has_image"][:], strict=True) if has]
    return {"all": round(100 * sum(right) / len(right), 2), "IMG": round(100 * sum(shown) / len(shown), 2)}


def _draw(hub: Path, problems, path: Path) -> None:
    from mmcot.training.inference.predict import load_pipeline
    from mmcot.training.report.drawing import draw_report

    skills: dict[str, list[int]] = {}
    for i, (skill, has) in enumerate(zip(problems["skill"][:], problems["has_image"][:], strict=True)):
        if has:
            skills.setdefault(skill, []).append(i)
    chosen = [indices[row] for row in range(REPORT_ROWS) for indices in skills.values() if row < len(indices)]
    shown = [dict(problems[i]) for i in chosen[:REPORT_ROWS]]
    results = load_pipeline(hub, device="cpu")(shown, return_attention=True)
    draw_report(shown, results, path, title="Two stages with pictures: question, rationale, answer")


FRESH = """
import json, os, sys
sys.modules["mmcot"] = None  # as where the package is not installed
from transformers import pipeline
problem = json.load(open(sys.argv[2]))
answer = pipeline("multimodal-cot", model=sys.argv[1], trust_remote_code=True, device="cpu")
print(json.dumps(answer(problem)))
"""


def _ask_in_fresh_process(hub: Path, problems, folder: Path) -> str:
    """Question, rationale and answer of a test problem, from a process that knows nothing but the folder."""
    from mmcot.processing import load_images

    problem = dict(problems[problems["has_image"][:].index(True)])
    picture = folder / "question.png"
    load_images(problem)[0].save(picture)
    asked = {"question": problem["question"], "choices": problem["choices"], "context": problem["context"]}
    question_file = folder / "question.json"
    question_file.write_text(json.dumps({**asked, "image": str(picture.resolve())}, indent=2) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(hub.resolve()), str(question_file.resolve())],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"the repository {hub} did not answer in a fresh process:\n{done.stderr}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    options = "  ".join(f"({chr(65 + i)}) {choice}" for i, choice in enumerate(problem["choices"]))
    return (
        f"  picture:   {picture}\n  question:  {problem['question']}\n  options:   {options}\n"
        f"  rationale: {result['rationale']}\n  answer:    ({result['answer']}) {result['answer_text']}"
        f"   [right: ({chr(65 + problem['answer'])})]"
    )


def _reading(summary: dict) -> str:
    """What the table shows, from its own figures."""
    image = {name: result["accuracy"]["IMG"] for name, result in summary["arms"].items()}
    exact = summary["rationales_right_word_for_word"][MAIN]["IMG"]
    lines = [
        "",
        f"On questions with a picture, guessing gives {summary['chance_on_image_questions']:.1f} %.",
        *(f"  {name:<34} {accuracy:5.1f} %" for name, accuracy in image.items()),
        f"Rationales of (c) for them that are right word for word: {exact:.1f} %.",
    ]
    if summary["quick"]:
        lines.append("(--quick: one skill, one model. Leave it out for four skills and the models to compare with.)")
    return "\n".join(lines) + "\n"


def _answers(run_folder: Path, problems) -> str:
    """A few of the test questions with what the model answered: right ones, and a wrong one where there is any."""
    from mmcot.training.evaluation.reading import read_predictions

    found = read_predictions(run_folder / "answer" / "predictions_test.jsonl")
    rows = [(problem, found[problem["id"]]) for problem in problems if problem["images"]]
    right = [row for row in rows if row[1]["answer"] == row[0]["answer"]]
    wrong = [row for row in rows if row[1]["answer"] != row[0]["answer"]]
    lines = [
        f"{len(right):,} of {len(rows):,} questions with a picture are answered rightly. Some of them"
        + (", and a wrong one:" if wrong else ":")
    ]
    for problem, told in [*right[:SHOWN_ANSWERS], *wrong[:1]]:
        options = "  ".join(f"({chr(65 + i)}) {choice}" for i, choice in enumerate(problem["choices"]))
        given = "-" if told["answer"] is None else chr(65 + told["answer"])
        mark = "right" if told["answer"] == problem["answer"] else f"wrong, it is ({chr(65 + problem['answer'])})"
        lines += [f"  {problem['question']}  {options}", f"    {told['rationale']}  → ({given}), {mark}"]
    return "\n".join(lines) + "\n"


def _next_commands(folder: Path, data: str, run_folder: Path) -> str:
    explained = {
        f"mmcot app {folder}": "ask it yourself, in the browser (pip install 'mmcot[demo]')",
        f"mmcot report {run_folder}": "everything about its answers, in one page (pip install 'mmcot[report]')",
        "mmcot train my-questions.jsonl": "your own questions; `mmcot check` looks them over first",
        "mmcot train embedded": "every skill of the generated questions",
        "mmcot train base-v5 data=path/to/scienceqa": "the paper's recipe, on one GPU",
    }
    width = max(map(len, explained))
    return "\n".join(
        [
            f"\nLook at {folder / 'report.png'}, then try:",
            *(f"  {command:<{width}}  # {what}" for command, what in explained.items()),
            f"  mmcot report {folder / 'hub'} {data} --split test --output more.png",
            f"  mmcot predict {folder / 'hub'} {data} --split test --output predictions.jsonl",
            f"  mmcot evaluate --predictions predictions.jsonl --problems {data} --split test --json scores.json\n",
        ]
    )


def write_readme(readme: str | Path, results: str | Path) -> None:
    """Puts the table of a finished demo between the README's `demo` markers.

    Raises:
        FileNotFoundError, ValueError: no results, those of `--quick`, or no markers.
    """
    from mmcot.training.common import write_between_markers
    from mmcot.training.evaluation.tables import format_table

    if not Path(results).is_file():
        raise MissingFileError(f"there is no {results}: run the demo first")
    summary = json.loads(Path(results).read_text(encoding="utf-8"))
    if summary["quick"]:
        raise UserError(f"{results} is of --quick, which measures nothing")
    versions = summary["versions"]
    measured = (
        f"Measured by `mmcot demo` in {summary['seconds']['all']:.0f} s with {versions['threads']} threads on a CPU "
        f"(torch {versions['torch'].split('+')[0]}, transformers {versions['transformers']}):"
    )
    table = f"{measured}\n\n```text\n{format_table(summary['arms'])}\n{_reading(summary).rstrip()}\n```"
    write_between_markers(readme, "demo", table)
