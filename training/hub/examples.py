"""A few questions in a repository, for people to click on: `examples/examples.json` and their pictures."""

import shutil
from pathlib import Path

from mmcot.training.common import write_json

FOLDER = "examples"
COUNT = 6
PIXELS = 512


def write_examples(problems, folder: str | Path, count: int = COUNT) -> list[str]:
    """Writes questions of different skills (else subjects), those with a picture first, into a repository's folder.

    Args:
        problems: `datasets.Dataset` of records, of the test split.

    Returns:
        the files, by their names in the repository.
    """
    from mmcot.processing import load_images

    target = Path(folder) / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    groups: dict[tuple, list[int]] = {}
    skills = zip(*(problems[name][:] for name in ("has_image", "skill", "subject")), strict=True)
    for row, (has_image, skill, subject) in enumerate(skills):
        groups.setdefault((not has_image, skill or subject or ""), []).append(row)
    ordered = [rows for _, rows in sorted(groups.items())]
    turns = [rows[turn] for turn in range(count) for rows in ordered if turn < len(rows)]
    written, files = [], []
    for number, row in enumerate(turns[:count], start=1):
        problem = problems[row]
        example = {name: problem[name] for name in ("question", "choices", "context")} | {"image": None}
        images = load_images(problem) if problem["images"] else []
        if images:
            picture = images[0].convert("RGB")
            picture.thumbnail((PIXELS, PIXELS))
            target.mkdir(parents=True, exist_ok=True)
            example["image"] = f"{number}.png"
            picture.save(target / example["image"])
            files.append(f"{FOLDER}/{example['image']}")
        written.append(example)
    if written:
        write_json(target / "examples.json", written)
        files.append(f"{FOLDER}/examples.json")
    return files


def example_files(folder: str | Path) -> list[str]:
    """The files of a repository's examples, by their names in it."""
    target = Path(folder) / FOLDER
    kinds = {".png", ".jpg", ".jpeg", ".webp"}
    return sorted(
        f"{FOLDER}/{path.name}"
        for path in (target.iterdir() if target.is_dir() else ())
        if path.name == "examples.json" or path.suffix.lower() in kinds
    )
