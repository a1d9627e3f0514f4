"""Where the parts of the paper's published models are, and the plan to repeat one."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from mmcot.training.common import UserError
from mmcot.training.hub.downloads import Found, find, human_size
from mmcot.training.paper.published import format_expected
from mmcot.training.paper.released import NOT_RELEASED, Plan, find_model
from mmcot.training.paper.rows import check_tested
from mmcot.training.stages.recipe import load_recipe

# the authors' files: https://github.com/amazon-science/mm-cot, README
_WEIGHTS = "hf://cooelf/mm-cot"
_FEATURES = "hf://cooelf/vision_features"
CAPTIONS = "https://raw.githubusercontent.com/amazon-science/mm-cot/main/data/instruct_captions.json"
# a copy of what the authors have on Google Drive: problems, name map, weights of base-v1
_COPY = "hf://acheong08/mm-cot"
_WITH_PICTURES = "hf://datasets/derek-thomas/ScienceQA"

DATA_FILES = ("problems.json", "pid_splits.json", "captions.json", "*.parquet", "*.jsonl")


@dataclass(frozen=True)
class Places:
    """Where the parts of a published model are; None: nowhere known, or not needed.

    Attributes:
        rationale, answer: the stages' checkpoints, folders or .zip files.
        features: released feature file (.npy, .pth), the folder of a feature cache, or "extract".
        name_map: question id → row of the feature file.
        data: problems, as `load_problems` takes them.
        captions: JSON file of captions by question id, for models that read them; None: the data's own, or `CAPTIONS`.
        tokenizer: if not the checkpoints' own.
    """

    rationale: str | None
    answer: str | None
    features: str
    name_map: str | None = f"{_COPY}/vision_features/name_map.json"
    data: str | None = f"{_COPY}/data/scienceqa"
    captions: str | None = None
    tokenizer: str | None = None


PLACES = {
    "base-v1": Places(f"{_COPY}/models/rationale", f"{_COPY}/models/answer", f"{_FEATURES}/detr.npy"),
    "large-v1": Places(None, None, f"{_FEATURES}/detr.npy"),
    "base-v5": Places(
        f"{_WEIGHTS}/mm-cot-base-rationale.zip",
        f"{_WEIGHTS}/mm-cot-base-ans.zip",
        f"{_FEATURES}/vit.pth",
    ),
    "large-v5": Places(
        f"{_WEIGHTS}/mm-cot-large-rationale.zip",
        f"{_WEIGHTS}/mm-cot-large-answer.zip",
        f"{_FEATURES}/vit.pth",
    ),
}


def choose_places(args: argparse.Namespace) -> Places:
    """The table's places with the options' in their stead."""
    places = PLACES[args.name]
    if args.features == "extract":
        places = replace(places, data=_WITH_PICTURES)
    if args.train:
        places = replace(places, rationale=None, answer=None)
    given = {
        "rationale": args.rationale_weights,
        "answer": args.answer_weights,
        "features": args.features,
        "name_map": args.name_map,
        "data": args.data,
        "captions": args.captions,
        "tokenizer": args.tokenizer,
    }
    return replace(places, **{key: value for key, value in given.items() if value is not None})


# ---- the plan ------------------------------------------------------------------------------------------------------


def make_plan(name: str, places: Places, training: bool = False, overrides: list[str] = ()) -> Plan:
    """What the run reads: part → files that exist, or a text where there is nothing to look up. Downloads nothing.

    Raises:
        MissingFileError: something isn't there, or can't be asked for. One line, within seconds.
        UserError: the options don't go together.
    """
    # first of all what needs no heavy import: without a network this ends at once
    plan: Plan = {"data": _find_data(places.data, None if training else "test")}
    data = plan["data"]
    recipe = load_recipe(name, list(overrides))
    check_tested(recipe)
    if training:
        plan["base model"] = find_model(recipe.model) if isinstance(recipe.model, str) else "fresh"
    else:
        for stage in ("rationale", "answer"):
            place = getattr(places, stage)
            plan[f"{stage} weights"] = find_model(place) if place else NOT_RELEASED
        if places.tokenizer is not None:
            plan["tokenizer"] = find_model(places.tokenizer)
    if isinstance(recipe.vision, str) and (training or places.features == "extract"):
        plan["backbone"] = find_model(_backbone(recipe.vision))
    if places.features == "extract":
        plan["features"] = "computed from the pictures"
    else:
        plan["features"] = features = find(places.features, ("cache.json", "*.safetensors"))
        if "cache.json" not in features.files:
            plan["name map"] = find(places.name_map)
    if recipe.use_caption:
        by_id = isinstance(data, Found) and "problems.json" in {Path(file).name for file in data.files}
        if places.captions is not None and not by_id:
            raise UserError(f"--captions are joined by question id to problems.json, which {places.data} doesn't have")
        captions = places.captions or (None if "captions.json" in getattr(data, "files", ()) else CAPTIONS)
        if by_id and captions is not None:
            plan["captions"] = find(captions)
    return plan


def _backbone(vision: str) -> str:
    from mmcot.training.features.presets import VISION_PRESETS

    return VISION_PRESETS[vision].identifier if vision in VISION_PRESETS else vision


def _find_data(place: str, split: str | None) -> Found | str:
    if place.partition(":")[0] == "embedded":
        return place
    if not Path(place).exists() and "://" not in place:
        place = f"hf://datasets/{place}"
    found = find(place, DATA_FILES)
    return found if split is None or found.path else found.only(f"*{split}*")


def format_plan(name: str, plan: Plan, training: bool = False) -> str:
    """The plan and the numbers to expect, as text."""
    lines = [f"{name}: {'the training of the paper' if training else 'released weights'}, then evaluation; it reads"]
    for part, found in plan.items():
        if isinstance(found, str):
            lines.append(f"  {part:<18}{'':>10}  {found}")
        else:
            lines.append(f"  {part:<18}{human_size(found.size):>10}  {found.place}")
    sources = [found for found in plan.values() if isinstance(found, Found)]
    total, missing = sum(found.size for found in sources), sum(found.missing for found in sources)
    lines.append(f"  {'in all':<18}{human_size(total):>10}  of which {human_size(missing)} are to be downloaded")
    return "\n".join([*lines, "", format_expected(name), ""])
