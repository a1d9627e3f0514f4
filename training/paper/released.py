"""A published model's parts, once found: fetched, put together, run, and compared with what was published.

A plan says where each part is (`reproduce.make_plan`); every function here works on it, and on the folder of
the run, OUTPUT, where each step leaves what it made and a repeated run finds it.
"""

import fnmatch
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mmcot.training.common import UserError, write_json
from mmcot.training.data.batched import read_column, read_records
from mmcot.training.hub.downloads import Found, find
from mmcot.training.paper.published import compare_with_published
from mmcot.training.stages.manifest import mark_step, step_is_done
from mmcot.training.stages.recipe import STAGES, load_recipe

Plan = dict[str, Found | str]  # part -> files that exist, or a text where there is nothing to fetch
NOT_RELEASED = "not on the Hub"
TOKENIZER_FILES = ("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "spiece.model")
WEIGHT_FILES = ("generation_config.json", "model*.safetensors*", "pytorch_model*.bin*", *TOKENIZER_FILES)


def find_model(place: str, patterns: tuple[str, ...] = WEIGHT_FILES) -> Found:
    """A model's files, those that `from_pretrained` reads; `owner/name` is one on the Hub, as everywhere else."""
    found = find(place if Path(place).exists() or "://" in place else f"hf://{place}", patterns)
    if any(name.endswith(".safetensors") for name in found.files):
        found = replace(found, files={name: size for name, size in found.files.items() if ".bin" not in name})
    return found


# ---- data and features ---------------------------------------------------------------------------------------------


def fetch_data(plan: Plan, output: Path) -> str:
    """The source for `load_problems`; an original folder is put together with its captions in OUTPUT."""
    data = plan["data"]
    if isinstance(data, str):
        return data
    folder = data.fetch(output)
    folder = folder.parent if folder.name == "problems.json" else folder
    if "captions" not in plan:
        return str(folder)
    together = output / "data"
    together.mkdir(parents=True, exist_ok=True)
    sources = {name: folder / name for name in ("problems.json", "pid_splits.json")}
    for name, source in {**sources, "captions.json": plan["captions"].fetch(output)}.items():
        shutil.copy2(source, together / name)  # with its time, which the cache of problems goes by
    if (folder / "images").is_dir() and not (together / "images").exists():
        (together / "images").symlink_to((folder / "images").resolve(), target_is_directory=True)
    return str(together)


def fetch_features(plan: Plan, problems, output: Path, vision: str, checkpoint: Path | None):
    """The `FeatureCache` of the problems' pictures: given, imported, or computed; None if there are no pictures.

    Args:
        problems: what is needed, with pictures if features are to be computed.
        vision: backbone of the features to compute.
        checkpoint: original checkpoint that the released features must fit.

    Raises:
        UserError: features don't fit the checkpoint, or the problems' ids aren't those of the features.
    """
    from mmcot.training.features.cache import FeatureCache

    if isinstance(plan["features"], str):
        from mmcot.training.features.extract import extract_features

        if not any(read_column(problems, "images")):
            return None
        return extract_features(problems, vision, output / "features")
    file = plan["features"].fetch(output)
    if "name map" not in plan:
        return FeatureCache.open(file)
    from mmcot.training.features.original import import_original

    rows = json.loads(plan["name map"].fetch(output).read_text(encoding="utf-8"))
    without = [id_ for id_, pictured in zip(problems["id"][:], problems["has_image"][:], strict=True) if pictured]
    without = [id_ for id_ in without if id_ not in rows]
    if without:
        raise UserError(
            f"{plan['name map'].place} has no row for {len(without)} questions with a picture, the first: "
            f"{without[0]}; released features go by the original's question ids: take problems that have those, or "
            "--features extract"
        )
    needed = {id_: rows[id_] for id_ in problems["id"][:] if id_ in rows}
    if not needed:
        return None
    write_json(output / "name_map.json", needed)
    return import_original(file, output / "name_map.json", output / "features", checkpoint=checkpoint, dtype="float32")


def _image_rule(plan: Plan, output: Path) -> str:
    """Features by question id need no pictures; by content, those that the original uses."""
    if "name map" in plan:
        return "none"
    if isinstance(plan["features"], str):
        return "original"
    from mmcot.training.features.cache import FeatureCache

    by_id = FeatureCache.open(plan["features"].fetch(output)).info["keys"] == "problem id"
    return "none" if by_id else "original"


# ---- released weights ----------------------------------------------------------------------------------------------


def evaluate_released(name: str, plan: Plan, output: str | Path, *, max_samples=None, batch_size=16) -> dict:
    """Evaluates released weights: features → rationales → answers → columns.

    Args:
        name: of the published model.
        plan: from `make_plan`.
        output: folder of the run; what an earlier, interrupted run left there is used.
        max_samples: only the first so many test questions.
        batch_size: questions at a time.

    Returns:
        what `result.json` holds: `result` (as `evaluate_predictions` gives it), `comparison` (as
        `compare_with_published` does), `notes` (how the run differed from the paper's), `reads` (where from).

    Raises:
        MissingFileError: a download fails. ValueError: a part is missing, or the parts don't fit together.
    """
    from mmcot.training.data.problems import load_problems
    from mmcot.training.evaluation.predictions import read_header
    from mmcot.training.evaluation.reading import read_predictions
    from mmcot.training.evaluation.scoring import evaluate_predictions
    from mmcot.training.stages.predict import predict_stage
    from mmcot.training.stages.samples import stage_dataset

    for part, found in plan.items():
        if found == NOT_RELEASED:
            raise UserError(f"{name}: the {part} aren't on the Hub; give --{part.replace(' ', '-')}, or --train")
    output, recipe = Path(output), load_recipe(name)
    identity = {"name": name, "max_samples": max_samples, **_reads(plan)}
    if step_is_done(output, identity):
        return json.loads((output / "result.json").read_text(encoding="utf-8"))
    mark_step(output, identity, finished=False)

    problems = load_problems(fetch_data(plan, output), recipe.test_split, image_rule=_image_rule(plan, output))
    if max_samples is not None:
        problems = problems.select(range(min(max_samples, len(problems))))
    weights = {stage: fetch_checkpoint(plan[f"{stage} weights"], output, stage) for stage in STAGES}
    features = fetch_features(plan, problems, output, recipe.vision, weights["rationale"])
    model, processor = load_released(plan, weights, output, recipe)

    rationales, predictions = None, {}
    counts = dict(zip(problems["id"][:], map(len, problems["choices"][:]), strict=True))
    written = facts = None
    for stage in STAGES:
        of_stage = recipe.for_stage(stage)
        samples = stage_dataset(
            problems,
            processor,
            stage,
            rationales=rationales,
            max_target_length=of_stage.max_target_length,
            features=features,
        )
        path = predict_stage(
            getattr(model, stage),
            processor,
            samples,
            stage,
            output / stage / f"predictions_{recipe.test_split}.jsonl",
            num_choices=counts,
            batch_size=batch_size,
            features=features,
            rationales=written,
            protocol=recipe.protocol,
            rationale_facts=facts,
            answer_mode="generate",
            source=recipe.data,
            split=recipe.test_split,
            max_new_tokens=recipe.max_new_tokens,
            num_beams=recipe.num_beams,
        )
        predictions, facts = read_predictions(path), read_header(path)
        written = predictions
        rationales = {id_: record["generated"]["rationale"] for id_, record in written.items()}
    records = {problem["id"]: problem for problem in read_records(problems.remove_columns(["images"]))}
    result = evaluate_predictions(
        records, predictions, protocol=recipe.protocol, rationale_format=recipe.rationale_format
    )
    return _finish(name, plan, output, result, identity, _notes(plan, recipe, problems))


def fetch_checkpoint(found: Found, output: Path, stage: str) -> Path:
    """The folder of a checkpoint; of a .zip file, what a checkpoint consists of is unpacked into OUTPUT/weights."""
    path = found.fetch(output)
    if not zipfile.is_zipfile(path):
        return path
    folder = output / "weights" / stage
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{stage}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with zipfile.ZipFile(path) as archive:
        names = [PurePosixPath(name) for name in archive.namelist() if not name.startswith("__MACOSX")]
        roots = sorted((name.parent for name in names if name.name == "config.json"), key=lambda root: len(root.parts))
        if not roots:
            raise UserError(f"{found.place}: holds no config.json, so it is no checkpoint")
        for name in names:
            # only by their bare names: a path in an archive may point anywhere
            if name.parent == roots[0] and any(fnmatch.fnmatch(name.name, pattern) for pattern in WEIGHT_FILES):
                with archive.open(str(name)) as source, open(partial / name.name, "wb") as target:
                    shutil.copyfileobj(source, target)
    partial.rename(folder)
    return folder


def load_released(plan: Plan, weights: dict[str, Path], output: Path, recipe):
    """(model, processor) of the two checkpoints, converted into OUTPUT/hub unless that was done before.

    The repository shortens over-long sources as this package does; the processor returned cuts them as the original.
    """
    from mmcot import MMCoTModel, MMCoTProcessor
    from mmcot.training.hub.convert import convert

    folder = output / "hub"
    if not folder.is_dir():
        partial = output / "hub.partial"
        shutil.rmtree(partial, ignore_errors=True)
        convert(
            weights["rationale"],
            partial,
            answer=weights["answer"],
            tokenizer=_tokenizer(plan, weights["rationale"], output, recipe),
            rationale_format=recipe.rationale_format,
            answer_format=recipe.answer_format,
            use_caption=recipe.use_caption,
        )
        partial.rename(folder)
    processor = MMCoTProcessor.from_pretrained(folder)
    processor.source_truncation = "end"
    return MMCoTModel.from_pretrained(folder), processor


def _tokenizer(plan: Plan, checkpoint: Path, output: Path, recipe) -> str:
    """The one asked for, the checkpoint's own, or the base model's that the checkpoint was trained from."""
    if "tokenizer" in plan:
        return str(plan["tokenizer"].fetch(output))
    if any((checkpoint / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        return str(checkpoint)
    return str(find_model(recipe.model, TOKENIZER_FILES).fetch(output))


# ---- the paper's training ------------------------------------------------------------------------------------------


def train_as_published(name: str, plan: Plan, output: str | Path, overrides: list[str] = ()) -> dict:
    """Trains by the recipe of that name on what the plan found, and evaluates; returns what
    `evaluate_released` does."""
    from datasets import concatenate_datasets

    from mmcot.training.data.problems import load_problems
    from mmcot.training.train import run_recipe

    output, image_rule = Path(output), _image_rule(plan, output)
    source = fetch_data(plan, output)
    recipe = load_recipe(name, list(overrides))
    splits = [split for split in (recipe.train_split, recipe.eval_split, recipe.test_split) if split]
    problems = concatenate_datasets([load_problems(source, split, image_rule=image_rule) for split in splits])
    features = fetch_features(plan, problems, output, recipe.vision, None)
    fixed = {"data": source, "output_dir": str(output), "image_rule": image_rule}
    fixed["features"] = None if features is None else str(features.path)
    recipe = load_recipe(name, [*(f"{key}={json.dumps(value)}" for key, value in fixed.items()), *overrides])
    result = run_recipe(recipe)["test"]
    return _finish(name, plan, output, result, None, _notes(plan, recipe, problems))


# ---- results -------------------------------------------------------------------------------------------------------


def _reads(plan: Plan) -> dict[str, str]:
    """Where each part comes from, with the commit."""
    return {
        part: found if isinstance(found, str) else found.place + (f" ({found.revision})" if found.revision else "")
        for part, found in plan.items()
    }


def _notes(plan: Plan, recipe, problems) -> list[str]:
    """How this run differed from the paper's."""
    notes = []
    if recipe.use_caption and not any(read_column(problems, "caption")):
        notes.append("the paper's runs had captions in the context; this data has none")
    if isinstance(plan["features"], str):
        notes.append("image features were computed here, they aren't the released ones")
    if "base model" in plan and recipe.loss_on_padding is False:
        notes.append("the loss left padding out, the original's counts it")
    return notes


def _finish(name: str, plan, output: Path, result: dict, identity: dict | None, notes: list[str]) -> dict:
    comparison = compare_with_published(name, result)
    content = {"name": name, "comparison": comparison, "notes": notes, "result": result, "reads": _reads(plan)}
    write_json(output / "result.json", content)
    if identity is not None:
        mark_step(output, identity, finished=True)
    return content
