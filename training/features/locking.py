"""One writer at a time: a lock of the operating system on a folder, which a killed process can't leave behind."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.utils import logging

from mmcot.training.common import UserError

logger = logging.get_logger("mmcot")


def lock_folder(path: str | Path, doing: str, number: int = 0) -> FileLock:
    """Takes the folder's lock, to be released by `unlock_folder`, or by the end of the process in whatever way.

    Args:
        path: the folder, which exists.
        doing: for the other process's message, as "`mmcot features`".
        number: of this process where several of one launch share the folder; each has a lock of its own.

    Raises:
        UserError: another process holds it; the message says which, or the folder can't be written to.
    """
    file = Path(path) / f".lock-{number:05d}"
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{path}: {_holder(file)} is writing to it; wait until it has finished, or take another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, PermissionError) or not os.access(path, os.W_OK):
            raise UserError(f"{path}: can't be written to ({getattr(error, 'strerror', None) or error})") from None
        logger.warning(f"{path}: its file system knows no locks ({error}); let no other process write to it")
    else:
        # beside the lock's own file, which Windows lets nobody else read
        _told(file).write_text(f"{doing} (process {os.getpid()} on {socket.gethostname()}, since {time.ctime()})")
    return lock


def unlock_folder(lock: FileLock) -> None:
    """Releases a lock and removes its files; those of a killed process stay, and hinder nobody."""
    if lock.is_locked:
        file = Path(lock.lock_file)
        for left in (_told(file), file):
            with suppress(OSError):  # Windows doesn't let go of a file that is open
                left.unlink()
        lock.release()


def _holder(file: Path) -> str:
    try:
        return _told(file).read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


def _told(file: Path) -> Path:
    return file.with_name(f"{file.name}.holder")
