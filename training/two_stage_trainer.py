"""`TwoStageTrainer`: a run from Python, on `datasets.Dataset`s. What it does is `run_recipe`, on the same files."""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcot.training.common import MissingFileError, UserError, log_to_screen
from mmcot.training.stages.recipe import STAGES, Recipe

if TYPE_CHECKING:
    import datasets

SPLITS = {"train": "train_split", "val": "eval_split", "test": "test_split"}


class TwoStageTrainer:
    """Trains both stages (or one), predicts and scores the test questions, and leaves a repository.

    The data sets are written to `data/` in the run's folder, as parquet with the pictures inside; from there on it is
    the run of `mmcot train`, with the same files, the same resuming and the same errors.

    Args:
        model: checkpoint to start from (T5, FLAN-T5, UnifiedQA, one of ours), or the sizes of a fresh network; by
            default the recipe's.
        train_dataset: questions, with the columns that `load_problems` reads: `question`, `choices`, `answer`, and
            what there is of `image`, `solution`, `context`, …
        eval_dataset: questions to validate on while training.
        test_dataset: questions to predict and score at the end.
        output_dir: folder of the run.
        recipe: name or file of the recipe that gives all other settings.
        settings: keys of a recipe, so also of `Seq2SeqTrainingArguments` (`mmcot train --help` lists them);
            `rationale={…}` and `answer={…}` for one stage alone.

    Attributes:
        recipe: the `Recipe`.
        hub: folder of the repository that `train` leaves.
        results: split → scores, after `train`.

    Raises:
        UserError: a key or a value that a recipe doesn't have; from `train`, what is wrong with the data.
    """

    def __init__(
        self,
        model: str | dict[str, Any] | None = None,
        train_dataset: "datasets.Dataset | None" = None,
        eval_dataset: "datasets.Dataset | None" = None,
        test_dataset: "datasets.Dataset | None" = None,
        *,
        output_dir: str | Path = "runs/mmcot",
        recipe: str | Path = "own-data",
        **settings: Any,
    ):
        from mmcot.training.stages.recipe_file import load_recipe

        self.datasets = {"train": train_dataset, "val": eval_dataset, "test": test_dataset}
        if train_dataset is None:
            raise UserError("train_dataset: is needed; `mmcot train` reads files")
        for name, dataset in zip(("train", "eval", "test"), self.datasets.values(), strict=True):
            _check(f"{name}_dataset", dataset)
        for name in ("data", *SPLITS.values()):
            if name in settings:
                raise UserError(f"{name}: the data sets say it")
        self.folder = Path(output_dir)
        values = {"output_dir": str(output_dir), "data": str(self.folder / "data"), **settings}
        values |= {key: split if self.datasets[split] is not None else None for split, key in SPLITS.items()}
        values.setdefault("data_name", _name_of(train_dataset) or self.folder.absolute().name)
        if model is not None:
            values["model"] = model
        overrides = []
        for key, value in values.items():
            if key in STAGES and isinstance(value, dict):
                overrides += [f"{key}.{name}={json.dumps(own, default=os.fspath)}" for name, own in value.items()]
            else:
                overrides.append(f"{key}={json.dumps(value, default=os.fspath)}")
        self.recipe: Recipe = load_recipe(recipe, overrides, said_by="TwoStageTrainer")
        self.results: dict[str, dict[str, Any]] = {}

    @property
    def hub(self) -> Path:
        return self.folder / "hub"

    def train(self) -> dict[str, dict[str, Any]]:
        """Runs the recipe; what was done before is skipped, what was cut off is gone on with.

        Returns:
            split → scores, as `run_recipe` gives them.
        """
        from mmcot.training.stages.shared_folder import start_processes
        from mmcot.training.train import run_recipe

        logger = logging.getLogger("mmcot")
        if not logger.handlers and logger.level == logging.NOTSET:  # unless the caller has said what is shown
            logger.setLevel(logging.INFO)
            log_to_screen()
        state = start_processes(self.recipe)
        replaced: list[Path] = []
        if state.is_main_process:
            for split, dataset in self.datasets.items():
                if dataset is not None and _write(dataset, path := self.folder / "data" / f"{split}.parquet"):
                    replaced.append(path)
        state.wait_for_everyone()
        try:
            self.results = run_recipe(self.recipe)
        except UserError:
            for path in replaced:  # refused: the data of the run that lies there stay with it
                _before(path).replace(path)
            raise
        for path in replaced:
            _before(path).unlink()
        return self.results

    def pipeline(self, **options: Any):
        """The pipeline of the trained model, as `load_pipeline` gives it."""
        from mmcot.training.inference.predict import load_pipeline

        return load_pipeline(self._trained(), **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publishes the repository, as `push` does, and returns the commit's URL."""
        from mmcot.training.hub.push import push

        return push(self._trained(), repo_id, **options)

    def _trained(self) -> Path:
        if not (self.hub / "config.json").is_file():
            raise UserError(f"{self.hub}: there is no model yet: call train() first")
        return self.hub


def _check(name: str, dataset: Any) -> None:
    """Whether it is one `datasets.Dataset`, or nothing."""
    import datasets

    if dataset is None or isinstance(dataset, datasets.Dataset):
        return
    kind = type(dataset).__name__
    if isinstance(dataset, datasets.DatasetDict):
        told = f"give one of its splits ({', '.join(map(repr, dataset))})"
    elif isinstance(dataset, datasets.IterableDataset):
        told = "only files are streamed, by `mmcot train` with streaming=true"
    else:
        told = "give a datasets.Dataset, as Dataset.from_list or Dataset.from_pandas makes one"
    raise UserError(f"{name}: is of type {kind}: {told}")


def _name_of(dataset: "datasets.Dataset") -> str | None:
    """A data set's own name, for the model card; None where it has only that of the files' kind."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    name = dataset.info.dataset_name
    return None if name in _PACKAGED_DATASETS_MODULES else name


def _write(dataset: "datasets.Dataset", path: Path) -> bool:
    """A data set as one parquet file, with its pictures' bytes inside; left alone where it holds the same.

    Returns:
        whether another one lay there, which is kept as `_before`.
    """
    import hashlib

    from datasets import Image, Value
    from datasets.table import embed_table_storage

    # a column `split` would go before the file's name, and who passes a data set has said which split it is
    kept = dataset.remove_columns([name for name in ("split",) if name in dataset.column_names])
    if kept.features.get("image") == Value("string"):  # paths, as a program opens them
        kept = kept.cast_column("image", Image(decode=False))
    try:
        embedded = kept.with_format("arrow").map(embed_table_storage, batched=True, desc=f"{path.name}")
    except FileNotFoundError as error:
        raise MissingFileError(f"{path.stem} questions: there is no picture {error.filename}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    embedded.with_format(None).to_parquet(str(partial))
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in (partial, path) if file.exists()]
    if len(digests) == 2 and digests[0] == digests[1]:
        partial.unlink()
        return False
    if len(digests) == 2:
        path.replace(_before(path))
    partial.replace(path)
    return len(digests) == 2


def _before(path: Path) -> Path:
    return path.parents[1] / f"{path.name}.before"  # beside data/, of which every file is read
