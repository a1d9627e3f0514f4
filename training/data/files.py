"""Where a source's records lie: its files, the split that a file's place tells, its configurations.

A folder from the Hub may hold several configurations of the same questions (`lmms-lab/ScienceQA` has a full one, and
one of the questions with images): one is chosen by name.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.data.known_layouts import ai2d_files, is_ai2d
from mmcot.training.data.records import shown
from mmcot.training.data.splits import split_name

SHARDS = (".tar",)  # WebDataset's; the last, for an archive may also hold the pictures alone
KINDS = ((".parquet",), (".jsonl", ".ndjson"), (".csv", ".tsv"), (".json",), SHARDS)
SUFFIXES = tuple(suffix for kind in KINDS for suffix in kind)
NOT_RECORDS = {"captions.json", "pid_splits.json", "dataset_info.json", "dataset_infos.json", "state.json"}
NOT_RECORDS |= {"sizes.json", "_info.json"}  # of WebDataset

_SPLIT_IN_FILE_NAME = re.compile(r"(?:^|[-_.])(train|val|validation|valid|dev|test)(?:[-_.]|$)")
_SPLIT_FOLDERS = {"train", "val", "validation", "valid", "dev", "test"}
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?(?::([^:]+))?")
_HUB_ENDINGS = ("parquet", "jsonl", "ndjson", "json", "csv", "tsv", "png", "jpg", "jpeg", "gif", "bmp", "webp")
_HUB_PATTERNS = [*(f"*.{end}" for end in _HUB_ENDINGS), "README.md"]


class DataFile(NamedTuple):
    path: Path
    split: str | None = None  # what its name or folder says
    group: str = ""  # the folder below the source, without those named after splits


def locate(source: str | os.PathLike) -> tuple[str, str | None]:
    """A source as (absolute local path, or "embedded…" as it is; configuration). A Hub data set is downloaded first.

    Raises:
        MissingFileError: there is no such file, folder or Hub data set.
    """
    if not isinstance(source, str | os.PathLike) or not str(source).strip():
        raise UserError(f"a data source is a path, a Hub data set or 'embedded', not {shown(source)}")
    text = str(source)
    if text.partition(":")[0] == "embedded":
        return text, None
    path = _existing(text)
    if path is not None:
        original = path.name == "problems.json" and is_original(path.parent)
        return str(path.parent if original else path), None
    base, _, config = text.rpartition(":")
    path = _existing(base) if base and config else None
    if path is not None and path.is_dir():
        return str(path), config
    match = _HUB_ID.fullmatch(text)
    if not match or Path(text).suffix.lower() in SUFFIXES:  # a file's name is none of the Hub's
        told = text if text.isprintable() and len(text) <= 400 else shown(text).strip(chr(39))  # a path in full
        raise MissingFileError(f"{told}: no such file or folder{_meant(text)}")
    name, revision, config = match.groups()
    return download(name, revision), config


def _meant(text: str) -> str:
    """The file beside the missing one whose name is nearly the same, as a question."""
    folder = _existing(str(Path(text).parent))
    names = [path.name for path in folder.iterdir()] if folder is not None and folder.is_dir() else []
    close = difflib.get_close_matches(Path(text).name, names, n=1, cutoff=0.8)
    return f": did you mean {Path(text).with_name(close[0])}?" if close else ""


def _existing(text: str) -> Path | None:
    try:
        path = Path(text).expanduser().absolute()  # not resolved: in the Hub's cache that would lose the file names
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such user
        return None


def hub_name(source: str | os.PathLike) -> str | None:
    """`user/name` where a source is a Hub data set and no local path."""
    match = _HUB_ID.fullmatch(str(source))
    return match[1] if match and _existing(str(source)) is None else None


def download(name: str, revision: str | None, **kwargs: Any) -> str:
    """The folder of a Hub data set in the cache."""
    from huggingface_hub import snapshot_download

    kwargs |= {"repo_type": "dataset", "revision": revision}
    try:
        folder = snapshot_download(name, allow_patterns=_HUB_PATTERNS, **kwargs)
        if not any(True for kind in KINDS if kind != SHARDS for suffix in kind for _ in _found(Path(folder), suffix)):
            folder = snapshot_download(name, allow_patterns=["*.tar", "README.md"], **kwargs)
        return folder
    except Exception as error:  # no network, no such repository, no such revision, no access: one line for all
        reason = str(error).strip().partition("\n")[0]
        raise MissingFileError(f"{name}: no such file or folder, and not to be had from the Hub: {reason}") from error


def is_original(path: str | Path) -> bool:
    """Whether it is a folder of ScienceQA's original layout: problems by id, and not a list of them."""
    file = Path(path) / "problems.json"
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return not content.read(100).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


# -- files of records -------------------------------------------------------------------------------------------------


def data_files(path: str | Path, config: str | None = None) -> list[DataFile]:
    """The files of a source's records, in order.

    Raises:
        UserError: there are none; or several configurations, none of them named.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: expected a .jsonl, .json, .csv, .tsv, .parquet or .tar file, or a folder")
        return [DataFile(path, _split_of(path, path.parent))]
    configs = dict(_configurations(path))
    if config is None and len(configs) > 1:
        config = next((name for name, (_, default) in configs.items() if default or name == "default"), None)
        if config is None:
            raise UserError(several_configurations(path, list(configs)))
    if config is not None and config not in configs:
        if not (path / config).is_dir() or ".." in PurePosixPath(config).parts or config.startswith("/"):
            names = ", ".join(configs) or ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())) or "none"
            raise UserError(f"{path}: there is no configuration {shown(config)}; there are: {names}")
        return _scan(path / config)
    if configs:
        patterns, _ = configs[config or next(iter(configs))]
        files = list(dict.fromkeys(_matching(path, patterns)))
        if files or config is not None:
            return files or _nothing(path)
    return _scan(path)


def several_configurations(path: Path, names: list[str]) -> str:
    return f"{path}: has {len(names)} configurations, {', '.join(names)}: name one, as in SOURCE:{names[0]}"


def left_out(path: str | Path, files: list[DataFile]) -> list[Path]:
    """Files of other kinds that may hold records too, and aren't read."""
    folder, kind = Path(path), {file.path.suffix for file in files}
    if not folder.is_dir():
        return []
    others = [other for suffix in SUFFIXES if suffix not in kind for other in _found(folder, suffix)]
    read = {(file.path.parent, file.path.stem) for file in files}  # the same by another ending: an export of it
    return [other for other in others if (other.parent, other.stem) not in read]


def _scan(folder: Path) -> list[DataFile]:
    for kind in KINDS:
        files = sorted(path for suffix in kind for path in _found(folder, suffix))
        if files:
            return [DataFile(path, _split_of(path, folder), _group_of(path, folder)) for path in files]
    return _nothing(folder)


def _nothing(folder: Path) -> list[DataFile]:
    raise UserError(f"{folder}: holds no problems.json, *.parquet, *.jsonl, *.csv, *.json or *.tar")


def _found(folder: Path, suffix: str) -> Iterator[Path]:
    for path in folder.rglob(f"*{suffix}"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.name not in NOT_RECORDS and path.is_file():
            yield path


def _split_of(path: Path, folder: Path) -> str | None:
    for part in reversed(path.parent.relative_to(folder).parts):
        if part.lower() in _SPLIT_FOLDERS:
            return split_name(part)
    match = _SPLIT_IN_FILE_NAME.search(path.stem.lower())
    return split_name(match[1]) if match else None


def split_of_image(name: Any) -> str | None:
    """The split of a record of the Hub's ImageFolder: the folder that its `file_name` begins with."""
    first = name.partition("/")[0] if isinstance(name, str) else ""
    return split_name(first) if first.lower() in _SPLIT_FOLDERS else None


def _group_of(path: Path, folder: Path) -> str:
    return "/".join(part for part in path.parent.relative_to(folder).parts if part.lower() not in _SPLIT_FOLDERS)


def _configurations(folder: Path) -> Iterator[tuple[str, tuple[list[tuple[str, str | None]], bool]]]:
    """Name -> ((pattern, split) of its files, whether it is the default), as the README of a Hub data set says."""
    for config in read_metadata(folder).get("configs") or ():
        if not isinstance(config, dict) or not isinstance(config.get("config_name"), str):
            continue
        base = f"{config['data_dir'].strip('/')}/" if isinstance(config.get("data_dir"), str) else ""
        data_files = config.get("data_files", "**/*" if base else [])
        patterns = []
        for entry in data_files if isinstance(data_files, list) else [data_files]:
            split, found = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (None, entry)
            for pattern in found if isinstance(found, list) else [found]:
                if isinstance(pattern, str):
                    patterns.append((base + pattern, split if isinstance(split, str) else None))
        yield config["config_name"], (patterns, config.get("default") is True)


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """What the head of a data set's README.md says; empty where there is none."""
    path = Path(folder) / "README.md"
    if not path.is_file():
        return {}
    import yaml

    match = re.match(r"\s*---\s*\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        content = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _matching(folder: Path, patterns: list[tuple[str, str | None]]) -> Iterator[DataFile]:
    for pattern, split in patterns:
        if pattern.startswith("/") or ".." in PurePosixPath(pattern).parts:
            raise UserError(f"{folder / 'README.md'}: data_files {shown(pattern)} leads out of the folder")
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and path.suffix.lower() in SUFFIXES:
                yield DataFile(path, split_name(split) or _split_of(path, folder))


# -- changes ----------------------------------------------------------------------------------------------------------


def source_files(path: str, config: str | None) -> list[DataFile]:
    """The files that a source's records are read from, with the split that each one's name tells."""
    if is_original(path):
        names = ("problems.json", "pid_splits.json", "captions.json")
        return [DataFile(Path(path) / name) for name in names if (Path(path) / name).is_file()]
    if is_ai2d(Path(path)):
        return [DataFile(file) for file in ai2d_files(Path(path))]
    return data_files(path, config)


def source_stamp(path: str, config: str | None) -> str:
    """Changes whenever what a source yields may have: its table is then built anew."""
    here = Path(__file__).parent
    parts = [code.read_bytes() for code in sorted(here.glob("*.py"))]
    if path.startswith("embedded"):
        parts += [code.read_bytes() for code in sorted((here / "embedded").glob("*.py"))]
    elif is_original(path):
        folder = Path(path)
        files = [folder / name for name in ("problems.json", "pid_splits.json", "captions.json")]
        # a folder's time changes when an image is added to it or taken away
        parts += [file_stamp(file) for file in [*files, *sorted((folder / "images").glob("*/*"))]]
    elif is_ai2d(Path(path)):
        parts += [file_stamp(file) for file in ai2d_files(Path(path))]
    else:
        parts += [file_stamp(file.path) for file in data_files(path, config)]
        parts += [file_stamp(Path(path) / "README.md")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def file_stamp(path: Path) -> bytes:
    """Another one after every write: the time of a file's last change of any kind can't be set back."""
    try:
        stat = path.stat()
    except OSError:
        return str(path).encode("utf-8", "backslashreplace")
    return f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}".encode(
        "utf-8", "backslashreplace"
    )
