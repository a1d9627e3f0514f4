"""Layouts of other data sets: where A-OKVQA and M3CoT keep a record's image, and AI2D's folder of questions."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.records import Row, is_absent, shown
from mmcot.training.data.tables import read_json

_COCO_FOLDERS = ("", "coco", "images", "coco/images")


def implied_image(values: Mapping[str, Any], split: str | None, folder: Path) -> str | None:
    """The image of a record that names none, as a path seen from its file's folder; None where there is none.

    - A-OKVQA (https://github.com/allenai/aokvqa): `image_id` is a number of COCO 2017, `train2017/000000299207.jpg`,
      with its folder beside the file, or in `coco/`.
    - M3CoT (https://github.com/LightChen233/M3CoT): `images/<id>.png`.
    """
    number = values.get("image_id")
    if is_absent(number):
        return None
    if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
        name = f"{split or 'train'}2017/{number:012d}.jpg"
        places = [f"{base}/{name}".lstrip("/") for base in _COCO_FOLDERS]
        if any((folder / place).is_file() for place in places) or "correct_choice_idx" in values:
            return next((place for place in places if (folder / place).is_file()), f"coco/{name}")
        return None
    own = values.get("id")
    name = f"images/{own}.png"
    return name if isinstance(own, str) and Path(own).name == own and (folder / name).is_file() else None


def is_ai2d(folder: Path) -> bool:
    """Whether it is AI2D as the Allen Institute has it (https://prior.allenai.org/projects/diagram-understanding)."""
    return (folder / "questions").is_dir() and (folder / "images").is_dir() and (folder / "categories.json").is_file()


def ai2d_files(folder: Path) -> list[Path]:
    files = sorted((folder / "questions").glob("*.json"), key=lambda path: (len(path.name), path.name))
    return [*files, folder / "categories.json", folder / "ai2d_test_ids.csv"]


def ai2d_rows(folder: Path) -> Iterator[Row]:
    """The questions of `questions/<image>.json`. Those of an image of `ai2d_test_ids.csv`, where that lies there, are
    the test split, the others train; questions about letters take the image of `abc_images/`, where that is there."""
    *files, categories, test_list = ai2d_files(folder)
    category_of = read_json(categories)
    test_ids = None
    if test_list.is_file():
        with test_list.open(encoding="utf-8-sig", newline="") as lines:
            test_ids = {cell.strip() for cells in csv.reader(lines) for cell in cells}
    for path in files:
        content = read_json(path)
        image, questions = (
            (content.get("imageName"), content.get("questions")) if isinstance(content, dict) else (0, 0)
        )
        if not isinstance(image, str) or Path(image).name != image or not isinstance(questions, dict):
            raise UserError(f"{path}: expected an object with 'imageName' and 'questions', but found {shown(content)}")
        split = None if test_ids is None else "test" if {image, Path(image).stem} & test_ids else "train"
        for number, (text, asked) in enumerate(questions.items()):
            place = f"question {number}"
            if not isinstance(asked, dict):
                yield Row(str(path), place, {}, UserError(f"expected a JSON object, found a {type(asked).__name__}"))
                continue
            lettered = asked.get("abcLabel") is True and (folder / "abc_images" / image).is_file()
            values = {
                "id": asked.get("questionId"),
                "question": text,
                "choices": asked.get("answerTexts"),
                "answer": asked.get("correctAnswer"),
                "image": f"../{'abc_images' if lettered else 'images'}/{image}",
                "category": category_of.get(image) if isinstance(category_of, dict) else None,
            }
            yield Row(str(path), place, values, split=split)
