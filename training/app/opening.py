"""What to show: a repository, a run's folder, a demo's, or nothing named, which means the demo's."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import logging

from mmcot.training.common import MissingFileError, UserError

DEMO = "mmcot-demo"
logger = logging.get_logger("mmcot")
OF_THE_DEMO = (
    "A small model, trained within minutes on drawn pictures alone: it can answer questions like the examples below, "
    "and no others."
)


class Shown(NamedTuple):
    """A model, with the data set and predictions that lie beside it.

    Attributes:
        model: folder or Hub id of the repository.
        source, split: of the questions that were predicted, where a run tells.
        predictions: name → file.
        note: what it can be asked.
    """

    model: str
    source: str | None = None
    split: str | None = None
    predictions: dict[str, Path] = {}
    note: str = ""


def find_shown(place: str | None) -> Shown:
    """The model of a folder or Hub id; of a folder of `mmcot train` or `mmcot demo` with its predictions.

    Args:
        place: None: the demo's in the folder mmcot-demo, which is trained first if it isn't there.

    Raises:
        UserError: a folder holds no model.
    """
    if place is None:
        place = DEMO
        if not (Path(DEMO) / "hub" / "config.json").is_file():
            from mmcot.training.demo import demo

            print(f"no model named: the demo's is trained first, in {DEMO}/ (a minute or two)\n", flush=True)
            demo(DEMO, quick=True)
    folder = Path(place)
    if not folder.is_dir() or (folder / "config.json").is_file():
        parent = folder.parent if folder.is_dir() and folder.name == "hub" else None
        return _with_run(str(place), parent)
    if not (folder / "hub" / "config.json").is_file():
        raise UserError(f"{place}: holds no model: name a repository, or a folder of a finished `mmcot train`")
    return _with_run(str(folder / "hub"), folder)


def check_there(place: str) -> None:
    """Looks whether there is such a folder or repository; of one on the Hub a single small file is asked for.

    Raises:
        UserError: there is none.
    """
    from huggingface_hub import hf_hub_download

    model = find_shown(place).model
    if Path(model).exists():
        return
    try:
        hf_hub_download(model, "config.json")
    except Exception as error:  # of the network, the Hub, the account, the name
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise MissingFileError(f"{place}: no such folder, and it can't be had from the Hub: {reason}") from None


def _with_run(model: str, run: Path | None) -> Shown:
    if run is None:
        return Shown(model)
    from mmcot.training.evaluation.predictions import read_header

    for folder in (run, run / "runs" / _demo_run(run)):
        for split in ("test", "val"):
            file = folder / "answer" / f"predictions_{split}.jsonl"
            if file.is_file():
                header = read_header(file)
                blanks = (run / "runs" / "predictions_blank.jsonl", file.with_name("predictions_test_blank.jsonl"))
                blank = next((path for path in blanks if folder != run and path.is_file()), None)
                others = {} if blank is None else {"without pictures": blank}
                note = OF_THE_DEMO if folder != run else ""
                return Shown(model, header.get("source"), header.get("split"), {"this model": file, **others}, note)
    return Shown(model)


def _demo_run(folder: Path) -> str:
    """The run whose repository a demo's folder holds."""
    import json

    results = folder / "results.json"
    quick = results.is_file() and json.loads(results.read_text(encoding="utf-8")).get("quick")
    return "demo-quick" if quick else "demo"


def open_app(
    place: str | None = None,
    *,
    device: str | None = None,
    data: str | os.PathLike | None = None,
    split: str | None = None,
    predictions: dict[str, Path] | None = None,
    source_options: dict[str, Any] | None = None,
):
    """The page of a model (see `find_shown`), with its examples, and the data tab where there are predictions.

    Args:
        data, split, predictions: the second tab's questions and runs; default: those that lie beside the model.
        source_options: how `load_problems` reads `data`.

    Raises:
        UserError: no such model or data, predictions that don't fit; gradio isn't installed.
    """
    from mmcot.training.app.page import _gradio, build_app, read_examples
    from mmcot.training.inference.predict import load_pipeline

    _gradio()  # before anything that takes long
    shown = find_shown(place)
    collection = None
    source = data or shown.source
    files = predictions if predictions is not None else shown.predictions
    asked = data is not None or predictions is not None or split is not None or any((source_options or {}).values())
    if source is not None and (files or data is not None):
        collection = _collection(str(source), split or shown.split, files, source_options or {}, asked)
    elif asked:
        raise UserError(f"{shown.model} has no run's predictions beside it: say with --data which questions are meant")
    pipeline = load_pipeline(shown.model, device)
    local = Path(shown.model).is_dir()
    examples = read_examples(shown.model if local else _downloaded_examples(shown.model))
    name = "/".join(Path(shown.model).absolute().parts[-2:]) if local else shown.model
    link = None if local else f"https://huggingface.co/{shown.model}"
    return build_app(pipeline, name, link, examples, collection, shown.note)


def _collection(source: str, split: str | None, files: dict[str, Path], options: dict[str, Any], asked: bool):
    from mmcot.training.app.browsing import Collection
    from mmcot.training.data.problems import load_problems
    from mmcot.training.evaluation.reading import read_predictions

    try:
        problems = load_problems(source, split, require_answer=False, **options)
        collection = Collection(problems, {name: read_predictions(file) for name, file in files.items()})
        if not collection.rows:
            raise UserError(f"none of the {len(problems):,} questions of {source} has a prediction in every file")
        return collection
    except UserError as error:
        if asked:
            raise
        logger.warning(f"without the run's predictions: {error}")  # its questions moved, or it is still at work
        return None


def _downloaded_examples(name: str) -> str:
    """The folder of a Hub repository's examples in the cache."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=["examples/*"])
    except Exception:  # the model itself is there or said to be missing; examples may be missing
        return ""
