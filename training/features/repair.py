"""Damage in a cache that is to be filled up: found, put aside, and made anew by the same command."""

from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging

from mmcot.training.features.layout import (
    INFO,
    DamagedError,
    damaged_content,
    keys_by_shard,
    read_info,
    read_rows,
    read_shard,
    shard_paths,
)

logger = logging.get_logger("mmcot")


def put_damage_aside(path: str | Path) -> list[str]:
    """Renames each damaged shard to `damaged-…`, so that its pictures count as not done; reads the whole cache.

    Call it while the cache's lock is held. Nothing is deleted, and each shard is told of in the log.

    Returns:
        Keys of the pictures in those shards, as far as they are known. Those that the command doesn't make anew are
        lost: it says so.
    """
    path = Path(path)
    if not (path / INFO).is_file():
        return []
    info, by_index, lost = read_info(path), None, []
    for file in shard_paths(path):
        try:
            read_shard(file, info)
            damaged = damaged_content(file)
            if not damaged:
                continue
            reason = f"{file}: the features of {len(damaged)} pictures aren't those that were written"
        except (DamagedError, SafetensorError) as error:
            reason = str(error)
        if by_index is None:
            by_index = keys_by_shard(path)
        keys = by_index.get(file.name) or _own_keys(file)
        lost += keys
        aside = file.with_name(f"damaged-{file.name}")
        file.replace(aside)
        count = f"its {len(keys)} pictures are" if keys else "its pictures, whose number isn't known, are"
        logger.warning(f"{reason}; {count} made anew, and it is kept as {aside.name}")
    return lost


def _own_keys(file: Path) -> list[str]:
    """Keys that a damaged shard itself still tells."""
    try:
        return [key.decode() for key in read_rows(file)["keys"]]
    except (DamagedError, SafetensorError, OSError, KeyError, ValueError):
        return []


def tell_what_is_lost(lost: list[str], cache) -> None:
    """A warning about the pictures of damaged shards that weren't among those of the command."""
    missing = sum(key not in cache for key in set(lost))
    if missing:
        logger.warning(
            f"{cache.path}: {missing} pictures of damaged shards weren't among these problems' pictures; run the "
            "command for the problems that have them, too"
        )
