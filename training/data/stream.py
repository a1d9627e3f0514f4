"""Problem records read anew in every pass, of which nothing is kept: for sources larger than a disk's cache."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.files import locate, source_files
from mmcot.training.data.images import IMAGE_RULES
from mmcot.training.data.keys import check_columns
from mmcot.training.data.mixture import is_mixture
from mmcot.training.data.reading import Reading, open_source
from mmcot.training.data.records import shown
from mmcot.training.data.splits import split_members, split_name

READ = 65536  # bytes at either end of a file that tell it from another of the same size
NOTED = 500  # records after which it is said which of their keys aren't read


class NoSplitError(UserError):
    """A source was read to its end without a problem of the split."""


def stream_problems(
    source: str | os.PathLike,
    split: str,
    *,
    image_rule: str = "all",
    require_answer: bool = True,
    columns: Mapping[str, str | list[str]] | None = None,
    allow_urls: bool = False,
    allow_outside: bool = False,
):
    """The records of a split as a `datasets.IterableDataset`, with the columns and arguments of `load_problems`.

    A bad record stops the pass that comes to it. Ids aren't compared: that would take memory for all of them.

    Args:
        source: as for `load_problems`, but a single one.
        split: which one; a pass reads it from the beginning.
        image_rule, require_answer, columns, allow_urls, allow_outside: as for `load_problems`.

    Raises:
        MissingFileError: no such source.
        UserError: several sources at once. While it is read: a bad record, named by file and line; a record that says
            no split, for splits can be made only of a source that is read whole.
        NoSplitError: no record of the split.
    """
    from datasets import IterableDataset

    from mmcot.training.data.problems import problem_features

    if is_mixture(source):
        raise UserError(f"{source}: several sources aren't streamed: stream one, or leave streaming out")
    if image_rule not in IMAGE_RULES:
        raise UserError(f"image_rule is {shown(image_rule)}; it must be one of {', '.join(IMAGE_RULES)}")
    path, config = locate(source)
    arguments = {
        "source": path,
        "config": config,
        "split": split_name(split),
        "image_rule": image_rule,
        "require_answer": require_answer,
        "columns": check_columns(columns),
        "leave": {"urls": bool(allow_urls), "outside": bool(allow_outside)},
    }
    return IterableDataset.from_generator(_records, features=problem_features(), gen_kwargs={"arguments": [arguments]})


def first_problems(stream, count: int):
    """The first problems of a stream, as `load_problems` gives them."""
    from datasets import Dataset

    return Dataset.from_list(list(stream.take(count)), features=stream.features)


def stream_stamp(source: str | os.PathLike, split: str) -> str:
    """What a stream can be known by without reading it: name, size, beginning and end of each of its files, wherever
    they lie. Pictures beside them are not looked at."""
    path, config = locate(source)
    if path.startswith("embedded"):
        return hashlib.sha256(path.encode()).hexdigest()
    members = split_members(split_name(split))
    found = hashlib.sha256()
    for file in source_files(path, config):
        if file.split is not None and file.split not in members:
            continue
        name = os.path.relpath(file.path, path) if os.path.isdir(path) else file.path.name
        size = file.path.stat().st_size
        with file.path.open("rb") as content:
            begin = content.read(READ)
            content.seek(max(0, size - READ))
            found.update(repr((name, size, begin, content.read(READ))).encode())
    return found.hexdigest()


def _records(arguments: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The good records; a list of one, since `datasets` shares the lists among its workers."""
    for given in arguments:
        source, split, leave = given["source"], given["split"], given["leave"]
        opened = open_source(source, given["config"], split, given["image_rule"], given["columns"], **leave)
        reading = Reading(opened, given["columns"], given["image_rule"], given["require_answer"], remembers=False)
        wanted, found = None if opened.selected else split_members(split), False
        for own, records, _ in _until_fault(reading, wanted, source):
            if wanted is None or own in wanted:
                found = True
                yield from records
            elif own is None:
                raise UserError(
                    f"{source}: its records don't say their split, which streaming needs: make a file a split"
                )
        if not found:
            raise NoSplitError(f"{source}: has no problems of split {split!r}")


def _until_fault(reading: Reading, wanted: tuple[str, ...] | None, source: str) -> Iterator[tuple]:
    """The pass, which the first bad record ends: `Reading` keeps them for a message at the end, which is far off. So
    with what is to be said of the source."""
    from mmcot.training.data.problems import say_once

    for count, found in enumerate(reading.records(wanted)):
        reading.faults.raise_any()
        if count == NOTED:
            for line in reading.notes(None):
                say_once(source, f"{os.path.basename(source)}: {line}")
        yield found
    reading.raise_faults(source)
