"""What the test Hub of `hub_server.py` answers about one repository: trees, references, commits."""

import base64
import json

from hub_http import HubError, Reply
from hub_repositories import DATE, Repo, blob_of, entries_of, expanded, file_entry, wants_lfs

API_VERBS = {"branch", "commit", "commits", "paths-info", "preupload", "refs", "revision", "tag", "tree"}


class RepositoryAnswers:
    """A method for each verb of `/api/models/USER/NAME/VERB/…`; `HubServer`, whose base it is, keeps the files."""

    def _get_revision(self, repo: Repo, revision: str, path: str, query: dict, data: bytes) -> Reply:
        commit = repo.at(revision)
        siblings = [{"rfilename": name} for name in commit.files]
        if "blobs" in query:
            siblings = [
                {"rfilename": name, "blobId": b.oid, **file_entry(name, b)} for name, b in commit.files.items()
            ]
        about = {"id": repo.id, "author": repo.id.split("/")[0], "sha": commit.sha, "private": repo.private}
        state = {"gated": "auto" if repo.gated else False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return Reply({**about, **state, "createdAt": DATE, "lastModified": DATE, "siblings": siblings})

    def _get_tree(self, repo: Repo, revision: str, folder: str, query: dict, data: bytes) -> Reply:
        commit = repo.at(revision)
        entries = entries_of(commit)
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        prefix = f"{folder}/" if folder else ""
        below = {name: entry for name, entry in entries.items() if name.startswith(prefix) and name != folder}
        if query.get("recursive") != ["true"]:
            below = {name: entry for name, entry in below.items() if "/" not in name[len(prefix) :]}
        return Reply([expanded(entry, commit, query) for entry in below.values()])

    def _post_paths_info(self, repo: Repo, revision: str, path: str, query: dict, data: dict) -> Reply:
        commit = repo.at(revision)
        entries = entries_of(commit)
        return Reply([expanded(entries[name], commit, data) for name in data["paths"] if name in entries])

    def _get_commits(self, repo: Repo, revision: str, path: str, query: dict, data: bytes) -> Reply:
        commit, history = repo.at(revision), []
        while commit is not None:
            history.append({**commit.brief(), "message": "", "authors": [{"user": self.user}]})
            commit = repo.commits[commit.parents[0]] if commit.parents else None
        return Reply(history)

    def _get_refs(self, repo: Repo, name: str, path: str, query: dict, data: bytes) -> Reply:
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repo.branches.items()]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repo.tags.items()]
        return Reply({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def _post_branch(self, repo: Repo, name: str, path: str, query: dict, data: bytes) -> Reply:
        if name in repo.branches:
            raise HubError(409, f"Reference refs/heads/{name} already exists")
        repo.branches[name] = repo.at(json.loads(data or b"{}").get("startingPoint") or "main").sha
        return Reply()

    def _post_tag(self, repo: Repo, revision: str, path: str, query: dict, data: bytes) -> Reply:
        name = json.loads(data)["tag"]
        if name in repo.tags:
            raise HubError(409, f"Tag {name} already exists")
        repo.tags[name] = repo.at(revision).sha
        return Reply()

    def _delete_branch(self, repo: Repo, name: str, path: str, query: dict, data: bytes) -> Reply:
        return self._delete_reference(repo.branches if name != "main" else {}, name)

    def _delete_tag(self, repo: Repo, name: str, path: str, query: dict, data: bytes) -> Reply:
        return self._delete_reference(repo.tags, name)

    def _delete_reference(self, references: dict, name: str) -> Reply:
        if references.pop(name, None) is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return Reply()

    def _post_preupload(self, repo: Repo, revision: str, path: str, query: dict, data: bytes) -> Reply:
        tree, answers = repo.at(revision).files, []
        for file in json.loads(data)["files"]:
            mode = "lfs" if wants_lfs(file["path"], base64.b64decode(file["sample"]), file["size"]) else "regular"
            known = tree.get(file["path"])
            oid = {"oid": known.etag} if known else {}
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return Reply({"files": answers})

    def _post_commit(self, repo: Repo, branch: str, path: str, query: dict, data: bytes) -> Reply:
        if "create_pr" in query:
            raise HubError(501, "Pull requests are not served here")
        head, title = repo.at(branch), ""
        tree = dict(head.files)
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", head.sha) != head.sha:
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                tree[value["path"]] = self._store(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                stored = self._blob_path(value["oid"])
                if not stored.is_file():
                    raise HubError(400, f"LFS object {value['oid']} of {value['path']} was never uploaded")
                tree[value["path"]] = blob_of(value["oid"], stored.stat().st_size, lfs=True)
            elif line["key"] in ("deletedFile", "deletedFolder"):
                folder = value["path"].rstrip("/") + "/"
                gone = [
                    n for n in tree if n == value["path"] or (line["key"] != "deletedFile" and n.startswith(folder))
                ]
                if not gone:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for name in gone:
                    del tree[name]
        commit = repo.commit(branch, tree, title)
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        return Reply({"commitUrl": f"{self.url}/{prefix}{repo.id}/commit/{commit.sha}", "commitOid": commit.sha})
