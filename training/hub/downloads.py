"""Files that may lie here, on the Hub or behind a URL: found with their sizes first, fetched afterwards.

A place is a path, `https://…`, or huggingface_hub's notation `hf://[datasets/]owner/name[@revision][/path]`.
"""

import fnmatch
import re
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mmcot.training.common import MissingFileError

TIMEOUT = 10  # seconds that a server may take to answer
_HUB = re.compile(r"hf://(datasets/)?([\w.-]+/[\w.-]+?)(?:@([^/]+))?(?:/(.+?))?/?")


@dataclass(frozen=True)
class Found:
    """Files that exist.

    Attributes:
        place: as asked for.
        files: name → bytes.
        here: names of those that needn't be downloaded any more.
        path: the file or folder, if it lies on this machine.
        repo_id, repo_type, asked, revision, inside: of a Hub repository: the revision that was asked for, the commit
            that this is, and the part of the repository.
    """

    place: str
    files: dict[str, int]
    here: frozenset[str] = frozenset()
    path: Path | None = None
    repo_id: str = ""
    repo_type: str = "model"
    asked: str | None = None
    revision: str | None = None
    inside: str = ""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(self.files.values())

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return sum(size for name, size in self.files.items() if name not in self.here)

    def only(self, pattern: str) -> "Found":
        """Without the files whose names don't match; everything if none does."""
        files = {name: size for name, size in self.files.items() if fnmatch.fnmatch(PurePosixPath(name).name, pattern)}
        return replace(self, files=files or self.files)

    def fetch(self, folder: str | Path) -> Path:
        """The file or folder on this machine, downloaded if need be; what comes by a URL is put into `folder`.

        Raises:
            MissingFileError: the download fails; begun again, it goes on where it stopped.
        """
        if self.path is not None:
            return self.path
        if self.repo_id:
            return _download(self) / self.inside
        from mmcot.training.common import written_whole

        target = Path(folder) / PurePosixPath(self.place).name
        if not target.exists():
            try:
                with (
                    urllib.request.urlopen(self.place, timeout=TIMEOUT) as answer,
                    written_whole(target, "wb") as file,
                ):
                    while block := answer.read(2**20):
                        file.write(block)
            except OSError as error:
                raise MissingFileError(f"{self.place}: can't be downloaded ({error})") from None
        return target


def find(place: str | Path, patterns: tuple[str, ...] = ("*",)) -> Found:
    """Looks a place up, without downloading anything.

    Args:
        place: see the module's text.
        patterns: the names of the files that matter, where the place is a folder.

    Raises:
        MissingFileError: there is no such thing, or no way to ask. One line, within seconds.
    """
    place = str(place)
    if place.startswith(("http://", "https://")):
        return _find_url(place)
    if not place.startswith("hf://"):
        return _find_here(place, patterns)
    match = _HUB.fullmatch(place)
    if match is None:
        raise MissingFileError(f"{place}: expected hf://[datasets/]owner/name[@revision][/path]")
    repo_type, repo_id, revision, inside = "dataset" if match[1] else "model", match[2], match[3], match[4] or ""
    try:
        from huggingface_hub import HfApi

        info = HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=TIMEOUT, files_metadata=True)
    except Exception as error:  # of the network, the Hub, the account: what a user can do about them is the same
        here = _find_in_cache(repo_id, repo_type, revision, inside, place, patterns)
        if here is not None:
            return here
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise MissingFileError(f"{place}: can't be had from the Hub: {reason}") from None
    files = {file.rfilename: file.size or 0 for file in info.siblings if _wanted(file.rfilename, inside, patterns)}
    if not files:
        raise MissingFileError(f"{place}: the repository has no such file (looked for {', '.join(patterns)})")
    here = frozenset(name for name in files if _is_cached(repo_id, repo_type, info.sha, name))
    return Found(place, files, here, None, repo_id, repo_type, revision, info.sha, inside)


def _wanted(name: str, inside: str, patterns: tuple[str, ...]) -> bool:
    if name == inside:
        return True
    below = PurePosixPath(inside)
    if inside and not PurePosixPath(name).is_relative_to(below):
        return False
    return any(fnmatch.fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)


def _find_here(place: str, patterns: tuple[str, ...]) -> Found:
    path = Path(place).expanduser()
    if path.is_file():
        return _local(place, path, [path])
    if not path.is_dir():
        raise MissingFileError(f"{place}: no such file or folder")
    return _local(place, path, [file for pattern in patterns for file in path.glob(pattern) if file.is_file()])


def _local(place: str, path: Path, files: list[Path]) -> Found:
    sizes = {file.name: file.stat().st_size for file in files}
    return Found(place, sizes, frozenset(sizes), path)


def _find_url(place: str) -> Found:
    try:
        request = urllib.request.Request(place, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
    except OSError as error:
        raise MissingFileError(f"{place}: can't be reached ({error})") from None
    return Found(place, {PurePosixPath(place).name: size})


def _is_cached(repo_id: str, repo_type: str, revision: str, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo_id, name, repo_type=repo_type, revision=revision), str)


def _find_in_cache(repo_id: str, repo_type: str, revision: str | None, inside: str, place, patterns) -> Found | None:
    """What an earlier run has left, for work without a network."""
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(repo_id, repo_type=repo_type, revision=revision, local_files_only=True)
        found = _find_here(str(Path(snapshot) / inside), patterns)
    except Exception:  # nothing there; the reason why the Hub couldn't be asked is the one to tell
        return None
    return replace(found, place=place, asked=revision, revision=Path(snapshot).name) if found.files else None


def _download(found: Found) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                found.repo_id, repo_type=found.repo_type, revision=found.asked, allow_patterns=list(found.files)
            )
        )
    except Exception as error:  # as in `find`
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise MissingFileError(f"{found.place}: the download broke off: {reason}") from None


def human_size(size: float) -> str:
    """Bytes as people write them: 12.3 MB (decimal, as the Hub does)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
