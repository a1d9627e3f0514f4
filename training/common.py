"""What every room needs: errors that a user can mend, files that are whole or not there, JSON Lines, YAML."""

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Something that the user can mend: the message is one line with the file or record, what is wrong, what to do.

    A command prints the message and exits with 2; every other exception is a fault of ours and shows its traceback.
    `processing` and `modeling_mmcot`, which can't import this, mark their own errors with the same attribute.
    """

    user_error = True


class MissingFileError(UserError, FileNotFoundError):
    """A file, folder or repository that the user named isn't there."""

    def __str__(self) -> str:  # OSError's would show its arguments as a tuple
        return str(self.args[0]) if self.args else ""


class ExistingFileError(UserError, FileExistsError):
    """An output is there already, and isn't overwritten."""

    __str__ = MissingFileError.__str__


class FullDiskError(UserError):
    """There is no room for what was being written."""


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk, a quota or a limit of file sizes is exhausted; libraries say so in ways of their own."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return full or any(words in str(error) for words in (os.strerror(errno.ENOSPC), "Not enough disk space"))


def full_disk(path: str | Path) -> str:
    """The line for it, with the file or folder that was being written."""
    return (
        f"{path}: its disk is full (or a quota or a limit of file sizes is reached): make room, or give another "
        "output or cache folder; then run it again"
    )


@contextmanager
def full_disk_told(path: str | Path) -> Iterator[None]:
    """Names what is written inside, where the disk is full: the system's own error says no file.

    Raises:
        FullDiskError: one line with `path`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise FullDiskError(full_disk(path)) from error


class _BesideBars(logging.StreamHandler):
    """Writes lines to the stderr of now, above progress bars, which would be torn otherwise."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" not in sys.modules:
            return super().emit(record)
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)
        return None


def log_to_screen() -> None:
    """Shows the package's log (logger `mmcot`) on stderr, a line each; a second call replaces the first one's."""
    handler = _BesideBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("mmcot").handlers = [handler]


def progress_bar(*args: Any, shown: bool = True, **options: Any):
    """tqdm's. `disable=False` would outweigh what the environment says (`TQDM_DISABLE`), so only True is passed on."""
    from tqdm import tqdm

    return tqdm(*args, **options) if shown else tqdm(*args, **options, disable=True)


_CONTROLS = (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {number: ascii(chr(number))[1:-1] for number in _CONTROLS}


def printable(text: str) -> str:
    """A text for the screen: characters of others' data that would steer a terminal are shown as escapes."""
    return text.translate(_ESCAPES)


@contextmanager
def written_whole(path: str | Path, mode: str = "w"):
    """Opens a file beside `path` that is renamed to it when the block ends well.

    Raises:
        FullDiskError: there is no room; what was written is gone, and a file that was there before stays.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with full_disk_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except FullDiskError:
        partial.unlink(missing_ok=True)  # gives back its room
        raise


def write_json(path: str | Path, content: Any) -> None:
    with written_whole(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Records of a JSON Lines file; a line cut off at the end (an interrupted write) is left out."""
    with open(path, "rb") as file:  # as bytes: a write may have been cut inside a character
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)


def drop_cut_line(path: Path) -> None:
    """Removes a last line that an interruption cut off, so that the next record starts a line of its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)


def read_yaml(text: str) -> Any:
    """The content of a YAML document; a key that occurs twice in a mapping is an error, as YAML's rules say.

    Raises:
        yaml.YAMLError: it is none.
    """
    import yaml

    class UniqueKeys(yaml.SafeLoader):  # safe_load keeps the last of equal keys without a word
        def compose_mapping_node(self, anchor):
            node, seen = super().compose_mapping_node(anchor), set()
            for key, _ in node.value:
                known = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)  # 1 is not "1"
                if known in seen:
                    raise yaml.YAMLError(f"key {key.value!r} occurs twice (line {key.start_mark.line + 1})")
                seen.add(known)
            return node

    return yaml.load(text, Loader=UniqueKeys)  # noqa: S506 - a SafeLoader


def write_between_markers(path: str | Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name:begin -->` and `<!-- name:end -->` in a file.

    Raises:
        ValueError: the file has no such markers.
    """
    path = Path(path)
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    content = path.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        raise UserError(f"{path} has no markers {begin} … {end}")
    head, tail = content.split(begin)[0], content.split(end)[1]
    with written_whole(path) as file:
        file.write(f"{head}{begin}\n{text}\n{end}{tail}")


def versions() -> dict[str, str]:
    """Packages, Python, threads and device that figures were made with."""
    import platform

    import torch
    import transformers

    from mmcot import __version__

    return {
        "mmcot": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
