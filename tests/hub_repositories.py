"""Repositories of the test Hub of `hub_server.py`: commits, branches, tags, files and how the Hub describes them."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hub_http import HubError

LFS_SUFFIXES = {".arrow", ".bin", ".model", ".npy", ".npz", ".parquet", ".pt", ".pth", ".safetensors"}
DATE = "2024-01-01T00:00:00.000Z"


class Blob(NamedTuple):
    size: int
    oid: str  # git's SHA-1 of the content; for a large file, of its LFS pointer
    sha256: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Commit:
    sha: str
    files: dict[str, Blob]
    title: str
    parents: tuple[str, ...] = ()

    def brief(self) -> dict:
        return {"id": self.sha, "title": self.title, "date": DATE}


@dataclass
class Repo:
    kind: str
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob], title: str) -> Commit:
        parents = tuple(filter(None, [self.branches.get(branch)]))
        state = repr((self.kind, self.id, len(self.commits), parents, sorted(files.items()), title))
        commit = Commit(hashlib.sha1(state.encode()).hexdigest(), files, title, parents)
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a hash (seven figures or more of it) names."""
        sha = self.branches.get(revision) or self.tags.get(revision)
        if sha is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            sha = next((sha for sha in self.commits if sha.startswith(revision)), None)
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def blob_of(sha256: str, size: int, oid: str = "", lfs: bool = False) -> Blob:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Blob(size, git_oid(pointer.encode()) if lfs else oid, sha256, lfs)


def wants_lfs(name: str, sample: bytes, size: int | None = None) -> bool:
    size = len(sample) if size is None else size
    return size > 0 and (Path(name).suffix in LFS_SUFFIXES or b"\0" in sample[:512] or size > 10 * 2**20)


def file_entry(name: str, blob: Blob) -> dict:
    entry = {"type": "file", "path": name, "size": blob.size, "oid": blob.oid}
    if not blob.lfs:
        return entry
    # the same figure goes by two names: `oid` in trees, `sha256` in a repository's siblings
    return {**entry, "lfs": {"oid": blob.sha256, "sha256": blob.sha256, "size": blob.size, "pointerSize": 134}}


def entries_of(commit: Commit) -> dict[str, dict]:
    """Files and the folders that they imply, by path."""
    folders = {p.as_posix() for name in commit.files for p in Path(name).parents if p.name}
    entries = {name: {"type": "directory", "path": name, "size": 0, "oid": git_oid(name.encode())} for name in folders}
    return dict(sorted({**entries, **{name: file_entry(name, blob) for name, blob in commit.files.items()}}.items()))


def expanded(entry: dict, commit: Commit, options: dict) -> dict:
    return {**entry, "lastCommit": commit.brief()} if options.get("expand") in (["true"], ["True"]) else entry
