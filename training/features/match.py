"""Whether a cache holds what a run needs: features of its backbone, and of all its problems' pictures."""

from mmcot.processing import image_references
from mmcot.training.common import UserError
from mmcot.training.data.batched import read_records
from mmcot.training.features.backbone import load_backbone
from mmcot.training.features.cache import FeatureCache, is_original, problem_keys
from mmcot.training.features.presets import VISION_PRESETS

SHOWN = 5  # ids in a message


def check_features_match(cache: FeatureCache, vision, image_processor=None, vision_feature: str | None = None) -> None:
    """Refuses cached features of another backbone than the one that a model is trained and published with.

    Compared are the output that is used, the preprocessing and the weights. Imported features, and those of an earlier
    version of the package, are known by their backbone's name and their width only, so that only these are compared.

    Args:
        vision: the backbone, as `load_backbone` takes it: a preset, folder, Hub id, a list of them, or a model.
        image_processor: the one that the model is published with; by default the backbone's own.
        vision_feature: the output that is used; by default the preset's, or `last_hidden_state`.

    Raises:
        UserError: names each difference with both sides.
        MissingFileError: the backbone can't be loaded.
    """
    found = differences(cache, vision, image_processor, vision_feature)
    if found:
        raise UserError(
            f"{cache.path}: holds features of another backbone than vision={_name(vision)}: {'; '.join(found)} (cache "
            "against vision); name the backbone of the cache, or extract features with this one"
        )


def differences(cache: FeatureCache, vision, image_processor=None, vision_feature: str | None = None) -> list[str]:
    """What differs, each as "name: cache's against the backbone's"; empty where all that is known agrees."""
    info = cache.info
    if isinstance(vision, dict) or (isinstance(vision, list) and any(isinstance(one, dict) for one in vision)):
        return [f"weights: {info['backbone']}'s against fresh ones (vision is a configuration, without weights)"]
    if "weights" not in info:
        return _known_differences(info, vision, image_processor, vision_feature)
    other = load_backbone(vision, image_processor, vision_feature).info
    found = []
    for name in ("vision_feature", "weights"):
        if info[name] != other[name]:
            sides = (f"{side[name][:16]} of {side['backbone']}" for side in (info, other))
            found.append(f"{name}: {' against '.join(sides)}")
    ours, theirs = info["preprocessing"], other["preprocessing"]
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            found.append(f"preprocessing {name}: {ours.get(name)!r:.80} against {theirs.get(name)!r:.80}")
    return found


def _known_differences(info: dict, vision, image_processor, vision_feature: str | None) -> list[str]:
    """Name and width, without loading the weights where the paper's presets say them."""
    preset, own = VISION_PRESETS.get(vision) if isinstance(vision, str) else None, VISION_PRESETS.get(info["backbone"])
    found = []
    if preset is not None and own is not None and preset is not own:
        found.append(f"backbone: {info['backbone']} against {vision}")
    feature = info.get("vision_feature") or (own.vision_feature if own else None)
    wanted = vision_feature or (preset.vision_feature if preset else None)
    if feature and wanted and feature != wanted:
        found.append(f"vision_feature: {feature} against {wanted}")
    width = preset.image_feature_size if preset else _width(vision, image_processor, vision_feature)
    if width != info["width"]:
        found.append(f"width: {info['width']} against {width}")
    return found


def _width(vision, image_processor, vision_feature: str | None) -> int:
    from mmcot.vision_mmcot import vision_feature_size

    if isinstance(vision, str | list):
        vision = load_backbone(vision, image_processor, vision_feature).vision
    return vision_feature_size(vision, vision_feature or "last_hidden_state")


def _name(vision) -> str:
    if isinstance(vision, list):
        return f"[{', '.join(vision)}]"
    return vision if isinstance(vision, str) else type(vision).__name__


def check_features_cover(cache: FeatureCache, problems) -> None:
    """Refuses a cache that lacks the features of some problems' pictures, or has them of other problems.

    Reads and hashes each picture, unless the features go by problem id.

    Raises:
        UserError: says how many problems, and which.
    """
    missing, foreign, blind = [], [], []
    by_id = cache.info["keys"] == "problem id"
    looked = by_id and any(map(image_references, read_records(problems)))  # else pictures were left out
    for problem in read_records(problems):
        if by_id and f"id:{problem['id']}" in cache:
            if not is_original(problem):
                foreign.append(problem["id"])
            elif looked and not image_references(problem) and not problem.get("has_image"):
                blind.append(problem["id"])
            continue
        try:
            problem_keys(problem, cache)
        except UserError:
            (foreign if by_id and not is_original(problem) else missing).append(problem["id"])
    if foreign:
        raise UserError(
            f"{cache.path}: holds features of ScienceQA's pictures by its question ids, but {_some(foreign)} aren't "
            "ScienceQA's; extract features of these problems' own pictures with `mmcot features`"
        )
    if blind:
        raise UserError(
            f"{cache.path}: has features of a picture for {_some(blind)}, which have none here: these ids are another "
            "source's than those of the imported features"
        )
    if missing:
        raise UserError(
            f"{cache.path}: lacks the features of pictures of {_some(missing)}; run `mmcot features` on these, with "
            "the same image rule"
        )


def _some(ids: list) -> str:
    shown = ", ".join(str(id_) for id_ in ids[:SHOWN])
    return f"{len(ids):,} problems ({shown}{', …' if len(ids) > SHOWN else ''})"
