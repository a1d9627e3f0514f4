"""Pictures on their way to the backbone: read and decoded once, put into batches of one size."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.utils import logging

from mmcot.processing import image_references, load_image
from mmcot.training.common import UserError
from mmcot.training.data.image_check import fault_of_image
from mmcot.training.features.image_keys import read_picture

MAX_PENDING_BYTES = 512 * 2**20  # pixels that wait for others of their size
SHOWN = 10  # pictures in an error message; all of them are in the log

logger = logging.get_logger("mmcot")


class Picture(NamedTuple):
    key: str
    name: str  # for messages: "problem 7", or a file
    pixels: torch.Tensor  # (3, height, width)


class Unreadable(NamedTuple):
    name: str
    reason: str


class Pictures(torch.utils.data.Dataset):
    """Item i: the pictures of one of the problems (records, or paths of image files), without those that are done."""

    def __init__(self, problems, indices: range, image_processor, done):
        self.problems, self.indices, self.image_processor, self.done = problems, indices, image_processor, done

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> list[Picture | Unreadable]:
        problem = self.problems[self.indices[number]]
        alone = isinstance(problem, Path)
        name = str(problem) if alone else f"problem {problem.get('id')}"
        items = []
        for reference in [problem] if alone else image_references(problem):
            try:
                key, content = read_picture(reference)
                if key not in self.done:
                    pixels = self.image_processor(load_image(content), return_tensors="pt")["pixel_values"][0]
                    items.append(Picture(key, name, pixels))
            except Exception as error:  # as text: a worker's exception would arrive as a long traceback
                items.append(Unreadable(name, fault_of_image(reference, error)))
        return items


class Groups(NamedTuple):
    """What a worker hands over: pictures stacked by their size, which is cheaper to pass than one by one."""

    pictures: list[tuple[list[str], list[str], torch.Tensor]]  # keys, names, pixels (pictures, 3, height, width)
    unreadable: list[Unreadable]


def group_by_size(items: list[list[Picture | Unreadable]]) -> Groups:
    groups: dict[tuple, dict[str, Picture]] = {}
    unreadable = []
    for item in (item for items_ in items for item in items_):
        if isinstance(item, Unreadable):
            unreadable.append(item)
        else:
            groups.setdefault(tuple(item.pixels.shape), {})[item.key] = item  # one that occurs twice counts once
    pictures = []
    for group in groups.values():
        keys, names, pixels = zip(*group.values(), strict=True)
        pictures.append((list(keys), list(names), torch.stack(pixels)))
    return Groups(pictures, unreadable)


def full_batches(
    loader: Iterable[Groups], batch_size: int, unreadable: list[Unreadable], pinned: bool = False
) -> Iterator[tuple[list[str], list[str], torch.Tensor]]:
    """Batches of one size, full but for the last of each; the fullest goes early when too many pixels wait.

    Args:
        unreadable: takes up the pictures that couldn't be read.
        pinned: pixels reach a GPU while it works. A batch that is full as it comes isn't copied.

    Yields:
        keys, names, pixels (pictures, 3, height, width).
    """
    seen = set()
    waiting: dict[tuple, list[Picture]] = {}  # by size

    def batch(size):
        group = waiting[size]
        waiting[size] = group[batch_size:]
        keys, names, pixels = zip(*group[:batch_size], strict=True)
        stacked = torch.empty(len(pixels), *size, dtype=pixels[0].dtype, pin_memory=pinned)
        return list(keys), list(names), torch.stack(pixels, out=stacked)

    pending = 0
    for groups in loader:
        for one in groups.unreadable:
            unreadable.append(one)
            logger.warning(f"{one.name}: its picture can't be read ({one.reason})")
        for keys, names, pixels in groups.pictures:
            size = tuple(pixels.shape[1:])
            group = waiting.setdefault(size, [])
            shorts = [int(key[:16], 16) for key in keys]  # 64 bits tell the pictures of one run apart
            if len(keys) == batch_size and not group and seen.isdisjoint(shorts):
                seen.update(shorts)
                yield keys, names, pixels
                continue
            for short, picture in zip(shorts, map(Picture, keys, names, pixels), strict=True):
                if short not in seen:
                    seen.add(short)
                    group.append(picture)
                    pending += picture.pixels.nbytes
            while len(waiting[size]) >= batch_size:
                ready = batch(size)
                pending -= ready[2].nbytes
                yield ready
        while pending > MAX_PENDING_BYTES:
            ready = batch(max(waiting, key=lambda size: len(waiting[size])))
            pending -= ready[2].nbytes
            yield ready
    for size in waiting:
        while waiting[size]:
            yield batch(size)


def unreadable_error(unreadable: list[Unreadable]) -> UserError | None:
    """One line that names all pictures that couldn't be read, the first with the reason; None where there are none."""
    if not unreadable:
        return None
    first, names = unreadable[0], list(dict.fromkeys(one.name for one in unreadable))
    text = f"{first.name}: its picture can't be read ({first.reason})"
    if len(names) > 1:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        others = {one.name: f"{one.name} ({one.reason})" for one in reversed(unreadable)}
        text += f"; so can't those of {', '.join(others[name] for name in names[1:SHOWN])}{more}"
    return UserError(f"{text}; mend or remove them and run the same command again: all others are done")
