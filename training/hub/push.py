"""A finished repository folder goes to the Hub, after a look whether it is complete.

A repository with a shard, a code file or a licence missing looks well on the Hub and fails, or can't be used, in the
hands of others. So the folder is checked first, and of it only what belongs to a repository is uploaded: no optimiser
states, no checkpoints, no logs.
"""

import ast
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.hub.cards import REPOSITORY, loading_arguments
from mmcot.training.hub.examples import example_files
from mmcot.training.hub.extras import EVAL_RESULTS, EXAMPLE_PICTURE, PREDICTIONS, RESULTS

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
# Uploaded where they are there; none of them alone makes a folder incomplete.
OPTIONAL_FILES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "requirements.txt",
    PREDICTIONS,
    RESULTS,
    "LICENSE",
    "NOTICE",
)
TASK = "multimodal-cot"


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Uploads a folder that `save_pretrained` left, and fills the repository's name and commit into its card.

    Args:
        folder: see `check_repository`.
        repo_id: `user/name`; made if there is no such repository.
        private: make it a private one; else it is as its owner's settings have it. One that exists stays as it is.
        revision: branch to commit to, made if it is missing; default: the main one.
        token: default: that of `hf auth login` or `HF_TOKEN`.
        commit_message: default: one that names this package.

    Returns:
        The URL of the commit that holds everything, `https://huggingface.co/user/name/tree/COMMIT`.

    Raises:
        UserError: the folder is not a complete repository, or the Hub refuses or can't be reached. Nothing was
            uploaded in the first case.
        MissingFileError: there is no such folder.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    check_name(repo_id)
    files = check_repository(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    api = HfApi(token=token)
    message = commit_message or "Upload with mmcot"
    with refusals_told(repo_id, api.endpoint):
        repository = api.create_repo(repo_id, private=private or None, exist_ok=True)
        repo_id = repository.repo_id
        if revision is not None and revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        where = {"repo_id": repo_id, "revision": revision, "commit_message": message}
        pinned = REPOSITORY in card
        # the commit that a card pins has to be there before the card is
        commit = api.upload_folder(
            folder_path=folder,
            allow_patterns=[_literally(name) for name in files if not (pinned and name == "README.md")],
            **where,
        )
        if pinned:
            card = card.replace(REPOSITORY, loading_arguments(repo_id, commit.oid))
            shown = f'"image": "{EXAMPLE_PICTURE}"'  # the card's code runs where nothing was downloaded
            card = card.replace(shown, shown.replace('": "', f'": "{repository}/resolve/{commit.oid}/'))
            commit = api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", **where)
    return f"{repository}/tree/{commit.oid}"


def check_name(repo_id: str) -> None:
    """Raises a UserError for what no repository of the Hub can be called."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} can't be a repository's name, give user/name: {_cause(error)}") from None


@contextlib.contextmanager
def refusals_told(repo_id: str, endpoint: str) -> Iterator[None]:
    """One line where the Hub refuses or can't be reached."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    # RuntimeError: huggingface_hub's word for a large file that did not get through. And the HTTP library's own base
    # class of errors, which isn't the same in all versions of huggingface_hub.
    refusals = (HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, RuntimeError)
    refusals += HfHubHTTPError.__bases__[:1]
    try:
        yield
    except refusals as error:
        raise UserError(f"{repo_id}: not uploaded to {endpoint}: {_cause(error)}") from error


def _literally(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _cause(error: Exception) -> str:
    """The remedy where there is a usual one, else the first line of what the Hub said."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
    if status == 403:
        return "the token has no right to write there"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def check_repository(folder: str | Path) -> list[str]:
    """The files of a folder that make up a repository, by their names in it.

    Args:
        folder: what `save_pretrained` left, such as a run's `hub/`.

    Raises:
        MissingFileError: there is no such folder.
        UserError: it is not complete, with the first thing that is missing: `config.json` with `auto_map` and
            `custom_pipelines`, the code that these (and the code itself) name, safetensors weights with all shards,
            processor and tokenizer, a card with a licence and results (or the statement that there are none).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder")
    try:
        configuration = _json(folder, "config.json")
        for key in ("auto_map", "custom_pipelines"):
            if not configuration.get(key):
                raise UserError(f"config.json has no {key}: save the model with this package's save_pretrained")
        files = ["config.json", *_weights(folder), *_processor(folder), *_card(folder)]
        files += _code(folder, [name for name in files if name.endswith("config.json")])
    except ValueError as error:
        inside = (folder / "hub" / "config.json").is_file()
        hint = f" (the folder of a run: its repository is {folder / 'hub'})" if inside else ""
        raise UserError(f"{folder} is not a complete repository: {error}{hint}") from error
    files += [name for name in OPTIONAL_FILES if (folder / name).is_file()]
    files += example_files(folder)
    files += [path.relative_to(folder).as_posix() for path in folder.glob(f"{EVAL_RESULTS}/*.yaml")]
    return sorted(dict.fromkeys(files))


def listing(folder: str | Path, repo_id: str) -> str:
    """What `push` would upload, with sizes, as text; the folder is checked as `push` does, nothing is sent.

    Raises:
        as `check_repository` and `check_name`.
    """
    from mmcot.training.hub.downloads import human_size

    folder = Path(folder)
    check_name(repo_id)
    sizes = {name: (folder / name).stat().st_size for name in check_repository(folder)}
    width = max(map(len, sizes))
    lines = [f"  {name:<{width}}  {human_size(size):>9}" for name, size in sizes.items()]
    others = sum(path.is_file() for path in folder.rglob("*")) - len(sizes)
    left = f"\n{others} other files of {folder} would stay here." if others else ""
    total = human_size(sum(sizes.values()))
    return "\n".join([f"{folder} is complete. To {repo_id} would go {len(sizes)} files, {total}:", *lines]) + left


def _json(folder: Path, name: str) -> dict:
    if not (folder / name).is_file():
        raise UserError(f"{name} is missing")
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{name} holds no object")
    return content


def _weights(folder: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    index, single = "model.safetensors.index.json", "model.safetensors"
    shards: dict[str, set[str]] = {}
    if (folder / index).is_file():
        for tensor, shard in _json(folder, index).get("weight_map", {}).items():
            shards.setdefault(shard, set()).add(tensor)
        if not shards:
            raise UserError(f"{index} names no shards")
    elif (folder / single).is_file():
        shards[single] = set()
    else:
        other = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        raise UserError(f"{single} is missing" + (f" ({other} is a pickle: save as safetensors)" if other else ""))
    for shard, tensors in shards.items():
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UserError(f"{shard} of {index} is missing")
        try:
            with safe_open(folder / shard, framework="numpy") as file:
                lost = tensors - set(file.keys())
        except SafetensorError as error:
            raise UserError(f"{shard} is damaged ({error})") from None
        if lost:
            raise UserError(f"{shard} lacks {len(lost)} tensors that {index} puts there, such as {min(lost)}")
    return [*shards, *([index] if (folder / index).is_file() else [])]


def _processor(folder: Path) -> list[str]:
    found = []
    for what, names in (("processor", PROCESSOR_FILES), ("tokenizer", TOKENIZER_FILES)):
        present = [name for name in names if (folder / name).is_file()]
        if not present:
            raise UserError(f"the {what}'s {' or '.join(names)} is missing: save with `processor=`")
        found += present
    return found


def _card(folder: Path) -> list[str]:
    """The card, and the pictures that it shows."""
    from huggingface_hub import ModelCard

    if not (folder / "README.md").is_file():
        raise UserError("README.md, the model card, is missing")
    hint = "write the card with mmcot.training.hub.cards.model_card"
    try:
        card = ModelCard.load(folder / "README.md")
    except Exception as error:  # YAML's and huggingface_hub's own errors
        raise UserError(f"README.md has no valid metadata ({str(error).splitlines()[0]})") from None
    if not card.data.license:
        raise UserError(f"README.md names no license in its metadata: {hint}")
    if not card.data.eval_results and not re.search(r"^#+ .*(results|evaluation)", card.text, re.I | re.M):
        raise UserError(f"README.md gives no results, and does not say that there are none: {hint}")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s:]+)\)", card.text)
    for name in pictures:
        if not (folder / name).resolve().is_relative_to(folder.resolve()) or not (folder / name).is_file():
            raise UserError(f"README.md shows {name}, which is missing")
    return ["README.md", *(Path(name).as_posix() for name in pictures)]


def _code(folder: Path, configurations: list[str]) -> list[str]:
    """Code files that the configurations name, and those that they import from beside them, and so on."""
    wanted: dict[str, str] = {}  # file → who asks for it
    for name in configurations:
        content = _json(folder, name)
        references = list((content.get("auto_map") or {}).values())
        references += [pipeline.get("impl") for pipeline in (content.get("custom_pipelines") or {}).values()]
        # a tokenizer's entry is a pair of classes, either of which may be None
        flat = [x for entry in references for x in (entry if isinstance(entry, list) else [entry]) if x]
        for reference in flat:
            if "--" in reference:
                raise UserError(f"{name} refers to code of another repository ({reference})")
            wanted.setdefault(reference.split(".")[0] + ".py", name)
    checked: list[str] = []
    while wanted:
        file, asker = wanted.popitem()
        if not (folder / file).is_file():
            raise UserError(f"{file}, named in {asker}, is missing")
        checked.append(file)
        for module in _siblings((folder / file).read_text(encoding="utf-8"), file):
            if module not in checked:
                wanted.setdefault(module, file)
    return checked


def _siblings(source: str, file: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: {error.msg}") from None
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.py" for node in imports if node.level == 1 and node.module}


def usage(url: str, task: str = TASK) -> str:
    """Code that loads what `push` uploaded, pinned to that commit."""
    repository, revision = url.rsplit("/tree/", 1)
    repo_id = "/".join(repository.split("/")[-2:])
    return (
        "from transformers import pipeline\n\n"
        f'answer = pipeline("{task}", model="{repo_id}",\n'
        f'                  revision="{revision}", trust_remote_code=True)\n'
        'print(answer({"question": "…", "choices": ["…", "…"], "image": "picture.png"}))'
    )
