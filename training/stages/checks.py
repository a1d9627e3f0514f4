"""Everything that can be found out before the first training step: all of it is said at once.

A run takes hours; what stops it at the end of the first stage, or in the middle of the second, could have been known.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.data.batched import read_column
from mmcot.training.stages.arguments import METRICS, check_training_keys
from mmcot.training.stages.identity import chooses_checkpoint
from mmcot.training.stages.metrics import has_rationale
from mmcot.training.stages.recipe import TRAINING_DEFAULTS, Recipe

logger = logging.get_logger("mmcot")


class Faults:
    """Collects what the user has to mend."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def add(self, text: str) -> None:
        self.errors.append(UserError(text))

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Takes an error that a user can mend; every other one goes on its way."""
        try:
            yield
        except Exception as error:
            if not getattr(error, "user_error", False):
                raise
            self.errors.append(error)

    def tell(self) -> None:
        """Raises what was collected: one error as it is, several as one line."""
        texts = list(dict.fromkeys(str(error) for error in self.errors))
        if len(texts) == 1:
            raise self.errors[0]
        if texts:
            raise UserError(f"{len(texts)} things to mend before this run: " + "; ".join(texts))


def check_recipe(recipe: Recipe, faults: Faults) -> None:
    """What the recipe and the machine tell, without the data."""
    for line in check_training_keys(recipe, ("answer",) if recipe.one_stage else ("rationale", "answer")):
        faults.add(line)
    folder = Path(recipe.output_dir)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        faults.add(f"output_dir: {existing} is a file; give a folder")
    for stage in ("rationale", "answer"):
        with faults.caught():
            _check_model(recipe.for_stage(stage))
    with faults.caught():
        _check_vision(recipe)
    if _is_alone(recipe):
        import torch

        count = torch.cuda.device_count()
        if count > 1:
            faults.add(
                f"{count} GPUs are visible to one process, which would split each batch among them in a way that this "
                "model doesn't take: start `accelerate launch -m mmcot.training.train …` to use all of them, or set "
                "CUDA_VISIBLE_DEVICES=0"
            )


def _is_alone(recipe: Recipe) -> bool:
    """Whether this is a process on GPUs that no launcher started."""
    import torch

    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1 or "LOCAL_RANK" in os.environ
    return not launched and not recipe.training.get("use_cpu") and torch.cuda.is_available()


def _check_model(recipe: Recipe) -> None:
    from mmcot import MMCoTConfig

    if isinstance(recipe.model, dict):
        _check_sizes("model", recipe.model, MMCoTConfig)
        return
    path = Path(recipe.model).expanduser()
    if path.exists() and not (path / "config.json").is_file():
        raise MissingFileError(f"model: {recipe.model}: holds no config.json, so it is no checkpoint")
    if not path.exists() and (recipe.model.count("/") > 1 or recipe.model.startswith((".", "/", "~"))):
        raise MissingFileError(f"model: {recipe.model}: there is no such folder")


def _check_vision(recipe: Recipe) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if not recipe.fresh_vision:
        return
    if recipe.features is not None:
        raise UserError("features: are of a pretrained backbone; name it in vision, which is a fresh one's sizes here")
    for backbone in recipe.backbones:
        kind = backbone.get("model_type", "vit")
        if kind not in CONFIG_MAPPING:
            raise UserError(f"vision: model_type {kind!r} is none that transformers knows")
        sizes = {key: value for key, value in backbone.items() if key != "model_type"}
        _check_sizes("vision", sizes, functools.partial(AutoConfig.for_model, kind))


def _check_sizes(key: str, sizes: dict, make) -> None:
    """Refuses sizes that a configuration doesn't have, which it would take and forget."""
    import difflib

    known = make().to_dict()
    for name in sizes:
        if name not in known:
            close = difflib.get_close_matches(str(name), list(known), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"{key}.{name}: there is no such size{hint}")
    try:
        make(**sizes)
    except Exception as error:  # of several libraries; all say that a value is of no use
        raise UserError(f"{key}: {' '.join(str(error).split())[:300]}") from error


def check_run(run) -> None:
    """What data, tokenizer, features and backbone tell. The first process looks, all raise what it found.

    Raises:
        UserError: everything that is to be mended.
    """
    faults = Faults()
    if run.state.is_main_process:
        _check_all(run, faults)
        if not faults.errors:
            from mmcot.training.stages.data_check import tell_data

            tell_data(run)
    if run.state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        faults.errors = broadcast_object_list([faults.errors])[0]
    faults.tell()


def _check_all(run, faults: Faults) -> None:
    recipe: Recipe = run.recipe
    train = run.problems["train"]
    needs_rationale_stage = not recipe.one_stage and recipe.stages == "answer" and run.splits
    if needs_rationale_stage and not run.has_rationale_stage:
        faults.errors.append(
            MissingFileError(f"there is no {run.folder / 'rationale'}: train the rationale stage first")
        )
    _check_rationales(run, faults)
    if recipe.use_caption and not any(read_column(train, "caption")):
        faults.add(
            f"use_caption: none of the {len(train):,} training problems has a caption; give captions, or "
            "use_caption=false"
        )
    with faults.caught():
        _check_images(run, run.processor, faults)
        _check_samples(run, faults)
    if len(train) < run.state.num_processes:
        faults.add(f"{len(train)} training problems are too few for {run.state.num_processes} processes")


def _check_rationales(run, faults: Faults) -> None:
    """Without a solution there is nothing that a rationale stage could be taught."""
    recipe: Recipe = run.recipe
    names = rationale_fields(recipe)
    if not names:
        return

    def count(split: str) -> int:
        columns = [read_column(run.problems[split], name) for name in names]
        return sum(any(has_rationale(text or "") for text in texts) for texts in zip(*columns, strict=True))

    total, found = len(run.problems["train"]), count("train")
    what = " or ".join(names)
    if found == 0:
        faults.add(no_rationale(recipe, total))
    elif found < total:
        logger.warning(
            f"{total - found:,} of {total:,} training problems have no {what}: they teach an empty rationale"
        )
    if "rationale" in run.stages and chooses_checkpoint(recipe, "rationale") and found:
        training = {**TRAINING_DEFAULTS, **recipe.for_stage("rationale").training}
        by_rouge = str(training.get("metric_for_best_model")).endswith(METRICS["rationale"])
        if by_rouge and count("val") == 0:
            faults.add(
                f"rationale.metric_for_best_model: none of the validation problems has a {what} to measure "
                f"{METRICS['rationale']} by; give rationale.metric_for_best_model=loss"
            )


def rationale_fields(recipe: Recipe) -> list[str]:
    """The fields of a problem that the recipe's written texts are made of; empty where only answers are learnt."""
    from mmcot.processing.prompts_mmcot import OUTPUT_FORMATS, split_format

    format_ = recipe.answer_format if recipe.one_stage else recipe.rationale_format
    template = OUTPUT_FORMATS[split_format(format_)[1]]
    return [name for name in ("lecture", "solution") if f"{{{name}}}" in template]


def no_rationale(recipe: Recipe, total: int) -> str:
    """What is said where no training problem has a rationale."""
    one_stage = "answer_format=QCM-A" if recipe.one_stage else "rationale_format=null answer_format=QCM-A"
    return (
        f"none of the {total:,} training problems has a {' or '.join(rationale_fields(recipe))}, so there is no "
        f"rationale to learn: train one stage that answers at once ({one_stage}), or let a teacher write rationales "
        "(`mmcot distill`) and give them as rationales=FILE"
    )


def no_picture(total: int) -> str:
    """What is said where no training problem has a picture."""
    return (
        f"vision: no picture in any of the {total:,} training problems; give vision=null features=null to train on "
        "text alone, or columns={image: KEY} if another key holds the images"
    )


def _check_images(run, processor, faults: Faults) -> None:
    """Images and features of all splits, and the backbone."""
    from mmcot.processing import image_references
    from mmcot.training.data.image_check import check_images
    from mmcot.training.features.cache import problem_keys
    from mmcot.training.features.match import check_features_cover, check_features_match

    recipe: Recipe = run.recipe
    if recipe.vision is None and recipe.features is None:
        return
    columns = [name for name in ("id", "images", "has_image", "subject") if name in run.problems["train"].column_names]
    problems = {split: some.select_columns(columns) for split, some in run.problems.items()}
    with faults.caught():  # a backbone that can't be had
        if recipe.features is not None and recipe.vision is not None:
            image_processor = processor.image_processor
            check_features_match(run.features, recipe.vision, image_processor, recipe.vision_feature)
        if (
            recipe.vision is not None
            and not recipe.fresh_vision
            and (run.features is None or "weights" not in run.features.info)
        ):
            from mmcot.training.stages.build import vision_of

            vision_of(recipe)
    shown = next((problem for problem in problems["train"] if image_references(problem)), None)
    if run.features is not None:
        count = len(faults.errors)
        for some in problems.values():
            with faults.caught():
                check_features_cover(run.features, some)
        if len(faults.errors) == count and shown is None:
            shown = next((problem for problem in problems["train"] if problem_keys(problem, run.features)), None)
    else:
        for some in problems.values():
            with faults.caught():
                check_images(some)
    if shown is None:
        faults.add(no_picture(len(run.problems["train"])))
    elif recipe.keep_images and run.features is None and not faults.errors:
        encoded = processor.encode_images([processor.load_images(shown)])
        if "pixel_mask" in encoded:
            faults.add(
                "keep_images: is for images that the image processor brings to one size; give keep_images=false"
            )


def _check_samples(run, faults: Faults) -> None:
    """Problems that don't fit into a stage's source, of all splits and both stages."""
    if run.features is not None and faults.errors:
        return  # samples name the features of their images, and these were found wrong
    for stage in ["rationale", "answer"] if run.recipe.share_stages else run.stages:
        for split in run.problems:
            with faults.caught():
                run.own_samples(split, stage)
