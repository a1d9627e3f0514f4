"""The pictures of a data set: how many, how large, which can't be read."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmcot.training.data.batched import read_column
from mmcot.training.data.check.lengths import spread
from mmcot.training.data.image_check import cpu_count, fault_of_image

NARROW = 8  # sides whose ratio is larger are hardly a picture


def check_pictures(splits: Mapping[str, Any], *, decode: bool = True) -> dict[str, Any]:
    """Counts, sizes and faults of all pictures.

    Args:
        splits: split → problems.
        decode: open and decode every picture (2 ms each on two cores); False only counts.

    Returns:
        {"with": {split → questions with a picture}, "several": questions with more than one, "pictures": all of them,
        "files": different ones, "broken": {id → reason}, "widths", "heights": see `spread`, "formats": {name → n},
        "tiny": pictures of less than 16 pixels a side, "narrow": those of a ratio above 8, "decoded": bool}.
    """
    found: dict[str, Any] = {"with": {}, "several": 0, "pictures": 0, "files": 0, "broken": {}, "decoded": decode}
    todo: dict[Any, tuple[Any, int, int]] = {}  # what names a picture → where it is: each is opened once
    for split, problems in splits.items():
        found["with"][split] = 0
        column = problems.select_columns(["id", "images"])
        for row, images in enumerate(read_column(problems, "images")):
            found["with"][split] += bool(images)
            found["several"] += len(images) > 1
            found["pictures"] += len(images)
            for number, image in enumerate(images):
                name = image["path"] if image["bytes"] is None else hashlib.sha256(image["bytes"]).digest()
                todo.setdefault(name, (column, row, number))  # not its bytes: all of them wouldn't fit into memory
    found["files"] = len(todo)
    if not decode:
        return found
    widths, heights, formats = [], [], Counter()
    tiny = narrow = 0
    with ThreadPoolExecutor(cpu_count()) as pool:
        for id_, fault, size, format_ in pool.map(_look, todo.values()):
            if fault is not None:
                found["broken"][str(id_)] = fault
                continue
            widths.append(size[0])
            heights.append(size[1])
            formats[format_] += 1
            tiny += min(size) < 16
            narrow += max(size) > NARROW * min(size)
    found |= {"widths": spread(widths), "heights": spread(heights), "formats": dict(formats.most_common())}
    return found | {"tiny": tiny, "narrow": narrow}


def _look(place: tuple[Any, int, int]) -> tuple[str, str | None, tuple[int, int], str]:
    import io

    from PIL import Image

    from mmcot.processing.image_reading_mmcot import load_image

    column, row, number = place
    problem = column[row]
    id_, reference = problem["id"], problem["images"][number]
    data = reference["bytes"]
    try:
        image = load_image(reference)
        with Image.open(reference["path"] if data is None else io.BytesIO(data)) as file:
            format_ = file.format or "?"
    except Exception as error:
        return id_, fault_of_image(reference, error), (0, 0), ""
    return id_, None, image.size, format_
