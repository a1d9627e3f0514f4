"""Every image of a data set opened once, so that a broken one is known before the first training step."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.batched import read_column

SHOWN = 20
LONGEST = 160  # letters of an image's path that are shown


def check_images(problems, *, num_workers: int | None = None) -> None:
    """Opens and decodes every image of the problems once, several at a time.

    Takes about 2 ms an image on two cores (20 s for ScienceQA's 10,332). A set that was found whole isn't decoded
    again while none of its files changes.

    Args:
        problems: a `datasets.Dataset` of problem records (see `load_problems`), or any iterable of them.
        num_workers: threads; default: the processor's cores.

    Raises:
        UserError: one line with the ids of all problems whose images can't be read, the first 20 with the reason.
    """
    note = _note_of(problems)
    if note is not None and note.exists():
        return
    broken = broken_images(problems, num_workers=num_workers)
    if broken:
        told = [f"problem {id_}: {reason}" for id_, reason in list(broken.items())[:SHOWN]]
        count = "" if len(broken) == 1 else f"images of {len(broken)} problems can't be read: "
        others = list(broken)[SHOWN:]
        more = f"; and {len(others)} more: {', '.join(others[: 10 * SHOWN])}" if others else ""
        raise UserError(f"{count}{'; '.join(told)}{more}; mend or remove them")
    if note is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


def broken_images(problems, *, num_workers: int | None = None) -> dict[str, str]:
    """Problem id -> why one of its images can't be read, of all problems with such an image."""
    columns = getattr(problems, "column_names", None)
    if columns is None:
        problems = list(problems)
    else:
        problems = problems.select_columns([name for name in ("id", "images") if name in columns])
    with ThreadPoolExecutor(num_workers or cpu_count()) as pool:
        # by number: a pool takes up all its tasks at once, and these may hold bytes
        found = pool.map(lambda number: _fault(problems[number]), range(len(problems)))
        return {str(id_): reason for id_, reason in found if reason is not None}


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fault(problem: Mapping[str, Any]) -> tuple[Any, str | None]:
    from mmcot.processing.image_reading_mmcot import image_references, load_image

    for reference in image_references(problem):
        try:
            load_image(reference)
        except Exception as error:
            return problem.get("id"), fault_of_image(reference, error)
    return problem.get("id"), None


def fault_of_image(reference: Any, error: Exception) -> str:
    """One line: which image, and why it can't be read."""
    return f"image {_name(reference)}: {_reason(error)}"


def _name(reference: Any) -> str:
    path = reference.get("path") if isinstance(reference, Mapping) else reference
    if not isinstance(path, str | os.PathLike):
        return "(bytes)"
    text = os.fspath(path)
    return repr(text if len(text) <= LONGEST else f"…{text[-LONGEST:]}")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return " ".join((getattr(error, "reason", "") or str(error).strip() or type(error).__name__).split())[:120]


def _note_of(problems) -> Path | None:
    """A file that exists when these very images were once found whole; None where that can't be told."""
    if not hasattr(problems, "_fingerprint") or not hasattr(problems, "column_names"):
        return None
    import datasets
    import PIL

    from mmcot.training.data.files import file_stamp

    parts = [problems._fingerprint.encode(), PIL.__version__.encode()]
    for images in read_column(problems, "images"):
        parts += [file_stamp(Path(image["path"])) for image in images if image.get("bytes") is None]
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "mmcot_images_whole" / name
