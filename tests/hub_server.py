"""A small Hugging Face Hub on loopback, for tests: standard library only, one per test, gone with it.

It answers what huggingface_hub really asks when it lists, downloads, creates, commits (large files over LFS), tags and
deletes, and when transformers and datasets load over `hf://`. Large files are served by a second origin, as the Hub
does with its CDN: the client is redirected there, and must not send its token along. Xet is not spoken, so the client
has to run with `HF_HUB_DISABLE_XET=1`; `HubServer.environment` says so.

Files lie in a folder by their SHA-256; commits, branches and tags are kept in memory.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hub_answers import API_VERBS, RepositoryAnswers
from hub_http import HubError, Reply, Request, handler_of
from hub_repositories import LFS_SUFFIXES, Blob, Repo, blob_of, git_oid, wants_lfs


class HubServer(RepositoryAnswers):
    """Serves repositories until `close()`.

    Attributes:
        url, cdn_url: the two origins, `http://127.0.0.1:PORT`.
        token, user: the one account; it may write to `user/…` only, and reads private and gated repositories.
        requests: what was asked so far, one `Request` each.
        cut_next_download: a number of bytes after which the next large download breaks off, once.
    """

    user = "tester"
    token = "hf_local_test_token"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.cut_next_download: int | None = None
        self.connections: set[socket.socket] = set()
        self.lock = threading.RLock()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self, origin)) for origin in ("hub", "cdn")]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for connection in list(self.connections):  # else clients that keep one open go on being served
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point huggingface_hub, transformers and datasets at this server and at an empty cache."""
        home = self.folder / "client"
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    @property
    def env(self) -> dict[str, str]:
        """This process's environment with `environment` in it, for `subprocess.run(..., env=hub.env)`."""
        return {**os.environ, **self.environment}

    def add_repo(
        self,
        repo_id: str,
        files: str | Path | Mapping[str, bytes | str | Path] = (),
        repo_type: str = "model",
        *,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Create a repository, or add a commit to its main branch, from a folder or {path: content}; gives the commit.

        `str` content is text; a `Path` is read. A private repository is unknown to whoever has no token, a gated one
        is refused to them.
        """
        if isinstance(files, str | Path):
            root = Path(files)
            files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
        with self.lock:
            repo = self.repos.get((repo_type, repo_id)) or self._create(repo_type, repo_id, private, gated)
            tree = dict(repo.at("main").files)
            for name, content in dict(files).items():
                if isinstance(content, Path):
                    content = content.read_bytes()
                content = content.encode() if isinstance(content, str) else content
                tree[name] = self._store(content, lfs=wants_lfs(name, content))
            return repo.commit("main", tree, "Add files").sha

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Content of every file of a revision."""
        tree = self.repos[repo_type, repo_id].at(revision).files
        return {name: self._blob_path(blob.sha256).read_bytes() for name, blob in tree.items()}

    # --- storage

    def _create(self, kind: str, repo_id: str, private: bool = False, gated: bool = False) -> Repo:
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private, gated)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))
        repo.commit("main", {".gitattributes": self._store(attributes.encode(), lfs=False)}, "initial commit")
        return repo

    def _blob_path(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def _store(self, content: bytes, lfs: bool) -> Blob:
        sha256 = hashlib.sha256(content).hexdigest()
        self._blob_path(sha256).write_bytes(content)
        return blob_of(sha256, len(content), git_oid(content), lfs)

    # --- answers: large files (the CDN)

    def answer_cdn(self, method: str, path: str, body: Path) -> Reply:
        sha256 = path.rsplit("/", 1)[-1]
        if method == "PUT":
            if hashlib.sha256(body.read_bytes()).hexdigest() != sha256:
                raise HubError(400, "The content does not have the announced SHA-256")
            # whole at once: the same content may be uploaded twice at a time, under two names
            arrived = self._blob_path(f"{sha256}.{threading.get_ident()}")
            shutil.copyfile(body, arrived)
            os.replace(arrived, self._blob_path(sha256))
            return Reply()
        if not self._blob_path(sha256).is_file():
            raise HubError(403, "No such object")
        return Reply(self._blob_path(sha256), {"ETag": f'"{sha256}"'})

    # --- answers: the Hub

    def answer_hub(self, method: str, target: str, headers: dict, body: Path) -> Reply:
        url = urlsplit(target)
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if token not in ("", self.token):
            raise HubError(401, "Invalid credentials in Authorization header")
        path, signed_in = url.path, bool(token)
        if match := re.fullmatch(r"/api/(whoami-v2|validate-yaml|repos/create|repos/delete)", path):
            if not signed_in and match[1] != "validate-yaml":
                raise HubError(401, "Invalid username or password.")
            data = json.loads(body.read_bytes() or b"{}")
            return getattr(self, "_" + re.sub(r"\W", "_", match[1]))(data)
        if match := re.fullmatch(r"/api/(model|dataset|space)s/(.+)", path):
            parts = match[2].split("/")
            cut = 1 if len(parts) == 1 or parts[1] in API_VERBS else 2  # "t5-small" is a repository as "user/name" is
            repo = self._repo(match[1], "/".join(parts[:cut]), signed_in)
            verb, name, *path = [*map(unquote, parts[cut:] or ["revision", "main"]), ""]
            answer = getattr(self, f"_{method.lower()}_{verb.replace('-', '_')}", None) if verb in API_VERBS else None
            if answer is None:
                raise HubError(404, "Sorry, we can't find the page you are looking for.")
            if method != "GET" and verb != "paths-info":
                self._check_write(repo, signed_in)
            content = body.read_bytes()
            form = headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
            data = parse_qs(content.decode()) if form else content
            with self.lock:
                return answer(repo, name, "/".join(filter(None, path)), query=parse_qs(url.query), data=data)
        if match := re.fullmatch(r"/(?:(dataset|space)s/)?(.+)\.git/info/lfs/objects/(batch|verify)", path):
            repo = self._repo(match[1] or "model", match[2], signed_in)
            self._check_write(repo, signed_in)
            return self._lfs(repo, path, match[3], json.loads(body.read_bytes()))
        if match := re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path):
            repo = self._repo(match[1] or "model", match[2], signed_in)
            if repo.gated and not signed_in:
                raise HubError(401, f"Access to model {repo.id} is restricted.", "GatedRepo")
            return self._resolve(repo, unquote(match[3]), unquote(match[4]))
        raise HubError(404, "Sorry, we can't find the page you are looking for.")

    def _repo(self, kind: str, repo_id: str, signed_in: bool) -> Repo:
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and not signed_in):
            # as the Hub does: without a token, what is private looks like what is missing
            raise HubError(404 if signed_in else 401, "Repository not found", "RepoNotFound")
        return repo

    def _check_write(self, repo: Repo, signed_in: bool) -> None:
        if not signed_in:
            raise HubError(401, "Invalid username or password.")
        if not repo.id.startswith(f"{self.user}/"):
            raise HubError(403, f"You don't have the rights to write to {repo.id}")

    def _whoami_v2(self, data: dict) -> Reply:
        token = {"displayName": "tests", "role": "write"}
        auth = {"type": "access_token", "accessToken": token}
        return Reply({"type": "user", "id": "0", "name": self.user, "fullname": self.user, "orgs": [], "auth": auth})

    def _validate_yaml(self, data: dict) -> Reply:
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return Reply({"errors": [], "warnings": [] if data["content"].startswith("---") else [warning]})

    def _repos_create(self, data: dict) -> Reply:
        owner, kind = data.get("organization") or self.user, data.get("type") or "model"
        if owner != self.user:
            raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        repo_id = f"{owner}/{data['name']}"
        url = {"url": f"{self.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"}
        with self.lock:
            if (kind, repo_id) in self.repos:
                return Reply({"error": f"You already created this {kind} repo", **url}, status=409)
            self._create(kind, repo_id, private=data.get("visibility") == "private" or bool(data.get("private")))
        return Reply({**url, "name": repo_id, "id": repo_id})

    def _repos_delete(self, data: dict) -> Reply:
        kind, repo_id = data.get("type") or "model", f"{data.get('organization') or self.user}/{data['name']}"
        self._check_write(self._repo(kind, repo_id, True), True)
        del self.repos[kind, repo_id]
        return Reply()

    def _lfs(self, repo: Repo, path: str, step: str, data: dict) -> Reply:
        if step == "verify":
            stored = self._blob_path(data["oid"])
            if not stored.is_file() or stored.stat().st_size != data["size"]:
                raise HubError(404, "Object was not uploaded")
            return Reply({})
        verify = {"href": self.url + path.removesuffix("batch") + "verify"}
        objects = []
        for item in data["objects"]:
            actions = {"upload": {"href": f"{self.cdn_url}/{item['oid']}"}, "verify": verify}
            known = self._blob_path(item["oid"]).is_file()  # an object that is there need not be sent again
            objects.append({**item} if known else {**item, "actions": actions})
        return Reply({"transfer": "basic", "objects": objects})

    def _resolve(self, repo: Repo, revision: str, name: str) -> Reply:
        commit = repo.at(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if name not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        blob = commit.files[name]
        if not blob.lfs:
            return Reply(self._blob_path(blob.sha256), {**headers, "ETag": f'"{blob.oid}"'})
        linked = {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        return Reply(b"", {**headers, **linked, "Location": f"{self.cdn_url}/{blob.sha256}"}, 302)


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A `HubServer` that this process's huggingface_hub, and every process it starts, talk to during the test.

    huggingface_hub reads its settings when it is imported, so they are replaced here, also in the ready-made `HfApi`
    behind its module functions. transformers and datasets keep their own copies: use them in a subprocess.
    """
    import huggingface_hub

    server = HubServer(tmp_path_factory.mktemp("hub"))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", server.environment["HF_HUB_CACHE"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    yield server
    server.close()
