"""A Space for a repository: the browser app's own files, which run where this package is not installed."""

from pathlib import Path

from mmcot.training.common import UserError

ROOM = "mmcot_app"  # what the copied files are imported under
TRAINING = Path(__file__).parents[1]
FILES = ("app/page.py", "app/answering.py", "app/rendering.py", "app/look.py", "report/drawing.py")
RENAMED = {"mmcot.training.app.": f"{ROOM}.", "mmcot.training.report.": f"{ROOM}."}

MAIN = '''"""Asks {model} in the browser. Written by mmcot; the page itself is in {room}/."""

from huggingface_hub import snapshot_download
from transformers import pipeline

from {room}.page import build_app, read_examples, serve

MODEL, REVISION = {model!r}, {revision!r}

examples = snapshot_download(MODEL, revision=REVISION, allow_patterns=["examples/*"])
answer = pipeline("multimodal-cot", model=MODEL, revision=REVISION, trust_remote_code=True)
page = build_app(answer, MODEL, f"https://huggingface.co/{{MODEL}}", read_examples(examples))

if __name__ == "__main__":
    serve(page, host="0.0.0.0")
'''

CARD = """---
title: {title}
emoji: 🔎
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: apache-2.0
models:
- {model}
---

Question and picture in, reasons and an answer out: [{model}](https://huggingface.co/{model}).
"""


def space_files(model: str, folder: str | Path, revision: str | None = None) -> dict[str, str]:
    """The files of a Space that asks a repository: name → text.

    Args:
        model: its name on the Hub.
        folder: of the repository, for its requirements.
        revision: commit to load, so that the code that runs is the code that was pushed.
    """
    files = {"app.py": MAIN.format(model=model, room=ROOM, revision=revision), f"{ROOM}/__init__.py": ""}
    for name in FILES:
        text = (TRAINING / name).read_text(encoding="utf-8")
        for ours, theirs in RENAMED.items():
            text = text.replace(ours, theirs)
        files[f"{ROOM}/{Path(name).name}"] = text
    own = Path(folder) / "requirements.txt"
    requirements = own.read_text(encoding="utf-8") if own.is_file() else "torch\ntransformers>=5.15\ntimm\npillow\n"
    files["requirements.txt"] = requirements
    files["README.md"] = CARD.format(model=model, title=model.split("/")[-1][:40], gradio=_gradio_version())
    return files


def push_space(
    model: str,
    space_id: str,
    folder: str | Path,
    *,
    revision: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Makes or renews a Space that asks a repository of the Hub.

    Args:
        model, folder, revision: see `space_files`.
        space_id: `user/name` of the Space.

    Returns:
        its URL.

    Raises:
        UserError: the Hub refuses or can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    from mmcot.training.hub.push import refusals_told

    if "/" not in model:
        raise UserError(f"{model}: a Space needs the whole name of the model, user/name")
    api = HfApi(token=token)
    with refusals_told(space_id, api.endpoint):
        space = api.create_repo(
            space_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True
        )
        files = space_files(model, folder, revision)
        operations = [CommitOperationAdd(name, text.encode("utf-8")) for name, text in files.items()]
        message = f"Ask {model}, with mmcot"
        api.create_commit(space.repo_id, operations, commit_message=message, repo_type="space")
    return str(space)


def _gradio_version() -> str:
    """Of the Gradio that this page was tried with here; else the oldest that it takes."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gradio")
    except PackageNotFoundError:
        return "6.0.0"


def write_space(model: str, folder: str | Path, target: str | Path, revision: str | None = None) -> Path:
    """Writes a Space's files into a folder, to look at or to run."""
    for name, text in space_files(model, folder, revision).items():
        path = Path(target) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Path(target)
