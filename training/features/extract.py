"""Image features of a frozen backbone, computed once over the pictures of any problem source into a `FeatureCache`."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mmcot.training.common import MissingFileError, UserError, progress_bar

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
DTYPES = ("float16", "bfloat16", "float32")


def extract_features(
    problems,
    backbone,
    out: str | Path,
    *,
    image_processor=None,
    vision_feature: str | None = None,
    batch_size: int = 32,
    dtype: str = "float16",
    device: str | None = None,
    num_workers: int | None = None,
    process_index: int | None = None,
    num_processes: int | None = None,
    shard_bytes: int | None = None,
    show_progress: bool = True,
    **source_options,
):
    """Run a backbone over every picture, once each, and return the `FeatureCache`.

    Pictures that the cache has already are left out, so that an interrupted run is taken up by running it again; what
    is damaged in the cache is found and made anew. Under `torchrun` or `accelerate launch` each process takes a
    share of the problems and writes shards of its own. Pictures are never padded: those of one size make up a batch,
    so that each one's features are those that it gets alone. A picture that can't be read doesn't stop the others: all
    such are named at the end.

    Args:
        problems: problem records, a source of them as `load_problems` takes it, or a folder that is searched for image
            files.
        backbone: "detr", "vit", "clip" or "resnet", the paper's; another image model in a folder or on the Hub, with
            its image processor's configuration; a list of such names; or a model. See `load_backbone`.
        out: the cache's folder.
        image_processor: needed with a model, else in place of the backbone's own.
        vision_feature: output of the backbone to keep, `last_hidden_state` or `pooler_output`; the preset's, or the
            former.
        batch_size: pictures a step of the backbone.
        dtype: features are stored as this; the backbone computes in its own.
        device: where to compute; a GPU if there is one.
        num_workers: processes that read and decode while the backbone computes.
        process_index, num_processes: this process's share, where accelerate isn't to say.
        shard_bytes: size of a shard; what an interruption can lose.
        show_progress: draw a progress bar.
        source_options: `split`, `image_rule`, `columns`, `allow_urls`, … of `load_problems`, where `problems` is a
            source.

    Raises:
        UserError: an option is wrong; pictures can't be read (the message names them), or there are none; the features
            aren't finite; the folder holds other features, or another process writes to it.
        MissingFileError: no such problems, or the backbone can't be got.
    """
    import torch
    from accelerate import PartialState
    from torch.utils.data import DataLoader

    from mmcot.training.data.files import locate
    from mmcot.training.features.backbone import load_backbone
    from mmcot.training.features.cache import FeatureCache
    from mmcot.training.features.pictures import Pictures, full_batches, group_by_size, unreadable_error
    from mmcot.training.features.repair import tell_what_is_lost
    from mmcot.training.features.shards import SHARD_BYTES, FeatureWriter, check_finite, shard_paths, write_index

    _check_options(batch_size, num_workers, dtype, vision_feature)
    device, state = _device(device), None
    if process_index is None:
        state = PartialState(cpu=device.type == "cpu")
        process_index, num_processes = state.process_index, state.num_processes
        device = state.device if state.device.type == device.type and device.index is None else device
    _try(device)
    if isinstance(problems, str | Path):
        locate(problems)  # a wrong path is told at once
    backbone = load_backbone(backbone, image_processor, vision_feature)  # first: it may have to be downloaded
    if isinstance(problems, str | Path):
        problems = _read_source(problems, source_options)
    vision, out = backbone.vision.to(device).eval(), Path(out)
    info = {**backbone.info, "keys": "image content"}
    make_writer = partial(FeatureWriter, out, info, getattr(torch, dtype), process_index, shard_bytes or SHARD_BYTES)
    unreadable, error = [], None
    with ExitStack() as stack:
        writer, lost = _start_writing(stack, state, make_writer)
        try:
            done = FeatureCache.open(out) if shard_paths(out) else ()
            loader = DataLoader(
                Pictures(problems, range(process_index, len(problems), num_processes), backbone.image_processor, done),
                batch_size=batch_size,
                num_workers=_default_workers(device) if num_workers is None else num_workers,
                collate_fn=group_by_size,
                pin_memory=device.type == "cuda",
            )
            loader = progress_bar(loader, "features", shown=show_progress and process_index == 0, unit="batch")
            batches = full_batches(loader, batch_size, unreadable, pinned=device.type == "cuda")
            for keys, names, features in _computed(batches, vision, device, backbone.info["vision_feature"], dtype):
                check_finite(features, names)  # here, where their names are known
                writer.add(keys, features)
            writer.close()
        except UserError as found:
            error = found
        _raise_together(state, error)
    if shard_paths(out) and (state is None or state.is_main_process):
        write_index(out)
    error = unreadable_error(_from_all(state, unreadable))
    if error is None and not shard_paths(out):
        error = UserError("there are no pictures to extract features from")
    _raise_together(state, error)
    cache = FeatureCache.open(out)
    tell_what_is_lost(lost, cache)
    return cache


def _check_options(batch_size: int, num_workers: int | None, dtype: str, vision_feature: str | None) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size (--batch-size) is {batch_size}; it must be 1 or more")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"num_workers (--num-workers) is {num_workers}; it must be 0 or more")
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if vision_feature not in (None, "last_hidden_state", "pooler_output"):
        raise UserError(f"vision_feature is {vision_feature!r}; it must be last_hidden_state or pooler_output")


def _device(name):
    """The device to compute on; a GPU if there is one."""
    import torch

    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"device (--device) is {name!r}; it must be cpu, cuda, cuda:1 or the like") from None


def _try(device) -> None:
    """Raises UserError where the device can't be used."""
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # of several kinds, by what is missing: the driver, the build, that many devices
        reason = str(error).partition("\n")[0]
        raise UserError(f"device (--device) {device} can't be used here ({reason:.150}); leave it out") from None


def _read_source(source: str | Path, options: dict):
    """Problem records, or the image files of a folder that holds no records."""
    from mmcot.training.data.files import NOT_RECORDS, SUFFIXES
    from mmcot.training.data.problems import load_problems

    if Path(source).is_dir():
        files = (path for path in Path(source).rglob("*") if path.name not in NOT_RECORDS)
        if not any(path.suffix.lower() in SUFFIXES for path in files):
            return image_files(source)
    return load_problems(source, require_answer=False, **options)


def image_files(folder: str | Path) -> list[Path]:
    """Image files in `folder` and below, sorted.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not Path(folder).is_dir():
        raise MissingFileError(f"{folder}: no such folder")
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _default_workers(device) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16) if device.type == "cuda" else 1  # on a CPU the backbone needs the cores itself


def _start_writing(stack: ExitStack, state, make_writer):
    """This process's writer, and the keys of pictures in damaged shards.

    The first process looks after the folder before others write to it.
    """
    from mmcot.training.features.repair import put_damage_aside

    writer, lost, error = None, [], None
    for first in (True, False):
        if first == (state is None or state.is_main_process):
            try:
                writer = stack.enter_context(make_writer())
                lost = put_damage_aside(writer.path) if first else []
            except UserError as found:
                error = found
        _raise_together(state, error)
    return writer, lost


def _from_all(state, items: list) -> list:
    """The items of all processes, in each of them."""
    if state is None or state.num_processes == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)


def _raise_together(state, error: UserError | None) -> None:
    """Raises one process's error in all of them, so that none waits for one that has stopped."""
    for found in _from_all(state, [error]):
        if found is not None:
            raise found


def _computed(batches: Iterable[tuple], vision, device, feature: str, dtype: str) -> Iterator[tuple]:
    """(keys, names, features in `dtype` on the CPU); on a GPU one batch is copied back while the next is computed."""
    import torch

    from mmcot.vision_mmcot import get_image_features

    before = None
    for keys, names, pixels in batches:
        with torch.inference_mode():
            pixels = pixels.to(device, non_blocking=True)
            features = get_image_features(vision, pixels, vision_feature=feature).pooler_output
            features = features.to(getattr(torch, dtype)).to("cpu", non_blocking=True)
            arrived = torch.cuda.Event() if device.type == "cuda" else None
            if arrived is not None:
                arrived.record(torch.cuda.current_stream(device))
        if before is not None:
            yield _arrived(*before)
        before = keys, names, features, arrived
    if before is not None:
        yield _arrived(*before)


def _arrived(keys: list[str], names: list[str], features, event) -> tuple:
    if event is not None:
        event.synchronize()
    return keys, names, features
