"""Problem sources: whatever form the questions come in, out comes one Arrow table of problem records.

`load_problems` reads ScienceQA in its original folder layout (problems.json, pid_splits.json, captions.json, images/),
ScienceQA as the Hub has it (parquet), a user's own JSON Lines, and the embedded data set. Every record is checked on
the way, so that a bad one is named here and not hours later by a stack trace. Pictures stay paths or encoded bytes;
the table lies memory-mapped in the cache of `datasets` and is built anew when a file of the source changes.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

IMAGE_RULES = ("all", "original", "none")
TEXT_COLUMNS = ("context", "lecture", "solution")  # empty when the source doesn't have them
LABEL_COLUMNS = ("caption", "subject", "grade", "topic", "category", "skill")  # None when the source doesn't have them
MAX_CHOICES = 26  # options are lettered A to Z
EMBEDDED_DEFAULT_SIZE = 1000

_SPLIT_NAMES = {"validation": "val", "valid": "val", "dev": "val"}
_SPLIT_IN_FILE_NAME = re.compile(r"(?:^|[-_.])(train|val|validation|valid|dev|test)(?:[-_.]|$)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_HUB_PATTERNS = [f"*.{end}" for end in ("parquet", "jsonl", "json", "png", "jpg", "jpeg", "gif", "bmp", "webp")]


def load_problems(
    source: str | Path, split: str | None = None, *, image_rule: str = "all", require_answer: bool = True
):
    """Problem records of `source` as a `datasets.Dataset`.

    Columns: id, question, choices (list of str), answer (index from 0), context, caption, images (list of
    {"path", "bytes"}: undecoded `datasets.Image`s), has_image (whether the question itself has a picture: what the IMG
    column of ScienceQA's table means, where pictures of the choices don't count), lecture, solution, subject, grade,
    topic, category, skill, split.

    Args:
        source: one of
            - an original ScienceQA folder, with images at `images/<split>/<id>/{image,image_2,choice_0,…}.png`;
            - a JSON Lines file, or a folder of them: `question`, `choices`, `answer` and any other column; `hint` may
              stand for `context`; image paths (`image` or `images`) are relative to the file;
            - a parquet file, or a folder of them, with the columns of derek-thomas/ScienceQA or those above;
            - a Hub data set of parquet or JSON Lines files, as `user/name` or `user/name@revision`;
            - "embedded", or "embedded:n=2000,seed=1,skills=a+b,val=200": n problems of each split but for the splits
              named with a size of their own.
        split: train, val, test, trainval, or another one in pid_splits.json; None for every problem. Where records
            don't say their split, the file's name does (`val.jsonl`, `test-00000-of-00001.parquet`).
        image_rule: "all" pictures of a question in order (image, image_2, …, choices), or the one that the "original"
            project uses (image.png, or choice_0.png where only the choices are pictures); "none" leaves them out and
            doesn't look for the files, for features that are cached by question id.
        require_answer: False admits questions without an answer; their `answer` is None.

    Raises:
        FileNotFoundError: no such source, or a picture that a problem names isn't there.
        ValueError: a bad record or option; the message names file and record.
    """
    from datasets import Dataset, NamedSplit
    from datasets.exceptions import DatasetGenerationError

    if image_rule not in IMAGE_RULES:
        raise ValueError(f"image_rule is {image_rule!r}; it must be one of {', '.join(IMAGE_RULES)}")
    split = _SPLIT_NAMES.get(split, split)
    source = _locate(source)
    arguments = {"source": source, "split": split, "image_rule": image_rule, "require_answer": require_answer}
    try:
        return Dataset.from_generator(
            _generate,
            features=_features(),
            gen_kwargs={**arguments, "stamp": _stamp(source)},
            split=NamedSplit(split or "problems"),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, (ValueError, FileNotFoundError)):
            raise error.__cause__ from None
        raise


def _features():
    from datasets import Features, Image, List, Value

    text = Value("string")
    return Features(
        {
            "id": text,
            "question": text,
            "choices": List(text),
            "answer": Value("int64"),
            "context": text,
            "caption": text,
        }
        | {"images": List(Image(decode=False)), "has_image": Value("bool"), "lecture": text, "solution": text}
        | {name: text for name in (*LABEL_COLUMNS[1:], "split")}
    )


# -- finding the source -----------------------------------------------------------------------------------------------


def _locate(source: str | Path) -> str:
    """An absolute local path, or the "embedded…" source as it is; a Hub data set is downloaded first."""
    if str(source).partition(":")[0] == "embedded":
        return str(source)
    path = Path(source).expanduser().absolute()  # not resolved: in the Hub's cache that would lose the file names
    if path.exists():
        return str(path.parent if path.name == "problems.json" else path)
    if not _HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(f"{source}: no such file or folder")
    from huggingface_hub import snapshot_download

    name, _, revision = str(source).partition("@")
    try:
        return snapshot_download(name, repo_type="dataset", revision=revision or None, allow_patterns=_HUB_PATTERNS)
    except Exception as error:  # no network, no such repository, no such revision, no access: one line for all
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"{source}: no such file or folder, and not to be had from the Hub: {reason}"
        ) from error


def _stamp(source: str) -> str:
    """Changes whenever what `source` yields may have: the cached table is then built anew."""
    here = Path(__file__).parent
    parts = [Path(__file__).read_bytes()]
    if source.startswith("embedded"):
        parts += [path.read_bytes() for path in sorted((here / "embedded").glob("*.py"))]
    elif (Path(source) / "problems.json").is_file():
        images = Path(source) / "images"
        files = [Path(source) / name for name in ("problems.json", "pid_splits.json", "captions.json")]
        # a folder's time changes when a picture is added to it or taken away
        parts += [_file_stamp(path) for path in [*files, *sorted(images.glob("*/*"))]]
    else:
        parts += [_file_stamp(path) for path in _data_files(source)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _file_stamp(path: Path) -> bytes:
    if not path.exists():
        return str(path).encode()
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()


def _data_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        if path.suffix not in (".parquet", ".jsonl", ".json", ".ndjson"):
            raise ValueError(f"{path}: expected a .jsonl or .parquet file, or a folder")
        return [path]
    files = sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.jsonl"))
    if not files:
        raise ValueError(f"{path}: holds no problems.json, *.parquet or *.jsonl")
    return files


# -- records ----------------------------------------------------------------------------------------------------------


def _generate(source: str, split: str | None, image_rule: str, require_answer: bool, stamp: str) -> Iterator[dict]:
    """Checked records; `stamp` is there to be part of the cached table's name."""
    if source.startswith("embedded"):
        raw_records = _read_embedded(source, split, image_rule)
    elif (Path(source) / "problems.json").is_file():
        raw_records = _read_original(Path(source), split, image_rule)
    else:
        raw_records = _read_files(source, split, image_rule)
    seen = set()
    for where, raw in raw_records:
        record = _checked(raw, where, require_answer)
        if record["id"] in seen:
            raise ValueError(f"{where}: id {record['id']!r} occurs twice")
        seen.add(record["id"])
        yield record
    if not seen:
        raise ValueError(f"{source}: has no problems" + (f" of split {split!r}" if split else ""))


def _checked(raw: dict, where: str, require_answer: bool) -> dict:
    """The record with exactly our columns, or a ValueError that begins with `where`."""
    question, choices, answer = raw.get("question"), raw.get("choices"), raw.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: 'question' must be a text that isn't empty, but is {question!r:.80}")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where}: 'choices' must be a list of at least one text, but is {choices!r:.80}")
    if len(choices) > MAX_CHOICES:
        raise ValueError(f"{where}: 'choices' has {len(choices)} entries; {MAX_CHOICES} at most can be lettered")
    if answer is not None or require_answer:
        if not isinstance(answer, int) or isinstance(answer, bool):
            raise ValueError(f"{where}: 'answer' must be a choice's index, counted from 0, but is {answer!r:.80}")
        if not 0 <= answer < len(choices):
            raise ValueError(f"{where}: 'answer' is {answer}, but there are {len(choices)} choices, counted from 0")
    record = {"id": str(raw["id"]), "question": question, "choices": choices, "answer": answer}
    context = raw.get("context")
    texts = {**raw, "context": raw.get("hint") if context is None else context}
    for name in (*TEXT_COLUMNS, *LABEL_COLUMNS):
        value = texts.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}: {name!r} must be a text, but is {value!r:.80}")
        record[name] = value if value is not None or name in LABEL_COLUMNS else ""
    has_image = raw.get("has_image")
    record["images"] = raw["images"]
    record["has_image"] = bool(raw["images"]) if has_image is None else bool(has_image)
    record["split"] = raw.get("split")
    return record


def _read_json(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(data).__name__}")
    return data


def _read_original(folder: Path, split: str | None, image_rule: str) -> Iterator[tuple[str, dict]]:
    """(where, raw record) from the layout of https://github.com/lupantech/ScienceQA, in the split file's order."""
    problems = _read_json(folder / "problems.json")
    splits = _read_json(folder / "pid_splits.json") if (folder / "pid_splits.json").is_file() else {}
    captions = _read_json(folder / "captions.json") if (folder / "captions.json").is_file() else {}
    captions = captions.get("captions", captions)  # the released file wraps them together with the captioner's name
    own_split = {str(pid): name for name in ("train", "val", "test") for pid in splits.get(name, ())}
    own_split |= {pid: raw["split"] for pid, raw in problems.items() if isinstance(raw, dict) and raw.get("split")}
    if split is None:
        pids = list(problems)
    elif split in splits:
        pids = [str(pid) for pid in splits[split]]
    else:
        pids = [pid for pid in problems if own_split.get(pid) in _wanted(split)]
        if not pids:
            names = ", ".join(splits or sorted(set(own_split.values()))) or "none"
            raise ValueError(f"{folder}: has no split {split!r}; its splits: {names}")
    for pid in pids:
        where = f"{folder / 'problems.json'}: problem {pid}"
        if pid not in problems:
            raise ValueError(f"{where} is in pid_splits.json under {split!r}, but not in problems.json")
        if not isinstance(problems[pid], dict):
            raise ValueError(f"{where}: expected a JSON object, found a {type(problems[pid]).__name__}")
        raw = {"caption": captions.get(pid), **problems[pid], "id": pid, "split": own_split.get(pid)}
        raw["has_image"] = bool(raw.get("image"))
        raw["images"] = _original_images(folder / "images" / (raw["split"] or "") / pid, raw, image_rule, where)
        yield where, raw


def _original_images(folder: Path, raw: dict, image_rule: str, where: str) -> list[dict]:
    """Pictures of one question of the original layout: image.png, image_2.png, …, choice_0.png, choice_1.png, …"""
    if image_rule == "none":
        return []
    found = {}
    if folder.is_dir():
        for path in folder.iterdir():
            match = re.fullmatch(r"(image|choice)_(\d+)\.\w+", path.name)
            if match:
                found[match[1] == "choice", int(match[2])] = path
    if raw.get("image"):
        path = folder / raw["image"]
        if not path.is_file():
            raise FileNotFoundError(f"{where}: its image {path} is missing")
        found[False, 0] = path
    paths = [found[order] for order in sorted(found)]
    return [{"path": str(path), "bytes": None} for path in _chosen(paths, image_rule)]


def _chosen(images: list, image_rule: str) -> list:
    """Those of a question's pictures that a rule takes."""
    return images[: {"all": None, "original": 1, "none": 0}[image_rule]]


def _wanted(split: str) -> tuple[str, ...]:
    return ("train", "val") if split == "trainval" else (split,)


def _read_files(source: str, split: str | None, image_rule: str) -> Iterator[tuple[str, dict]]:
    """(where, raw record) from JSON Lines or parquet files; a record without id gets `<split or file>-<number>`."""
    numbers, found = Counter(), Counter()
    for path in _data_files(source):
        match = _SPLIT_IN_FILE_NAME.search(path.stem)
        file_split = _SPLIT_NAMES.get(match[1], match[1]) if match else None
        reader = _parquet_rows if path.suffix == ".parquet" else _json_lines
        for where, raw in reader(path, None if split is None else _wanted(split), file_split):
            own_split = raw.get("split") or file_split
            own_split = _SPLIT_NAMES.get(own_split, own_split)
            label = own_split or path.stem
            number = numbers[label]
            numbers[label] += 1
            if split is not None and own_split not in _wanted(split):
                continue
            if raw.get("id") is None:
                raw["id"] = f"{label}-{number:06d}"
            raw["split"] = own_split
            images = _image_references(raw, path.parent, where)
            raw["has_image"] = bool(images) if raw.get("has_image") is None else raw["has_image"]
            raw["images"] = _chosen(images, image_rule)
            found[own_split] += 1
            yield where, raw
    if split is not None and not found:
        splits = ", ".join(sorted(label for label in numbers)) or "none"
        raise ValueError(
            f"{source}: no record says, by its 'split' or its file's name, that it is {split!r}; found: {splits}"
        )


def _json_lines(path: Path, wanted: tuple | None, file_split: str | None) -> Iterator[tuple[str, dict]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            try:
                raw = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                raise ValueError(f"{where}: not valid JSON ({error})") from None
            if not isinstance(raw, dict):
                raise ValueError(f"{where}: expected a JSON object, found a {type(raw).__name__}")
            yield where, raw


def _parquet_rows(path: Path, wanted: tuple | None, file_split: str | None) -> Iterator[tuple[str, dict]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file ({error})") from None
    with file:
        # the file's name alone can spare reading the pictures of the other splits
        if wanted is not None and file_split not in (None, *wanted) and "split" not in file.schema_arrow.names:
            return
        number = 0
        for batch in file.iter_batches(batch_size=64):
            for raw in batch.to_pylist():
                yield f"{path}: row {number}", raw
                number += 1


def _image_references(raw: dict, folder: Path, where: str) -> list[dict]:
    """`image` or `images` of a record as {"path", "bytes"}; relative paths are seen from `folder`, URLs stay."""
    images = raw.get("images")
    if images is None:
        images = [] if raw.get("image") is None else [raw["image"]]
    if not isinstance(images, list):
        raise ValueError(f"{where}: 'images' must be a list, but is {images!r:.80}")
    references = []
    for image in images:
        path, data = (image.get("path"), image.get("bytes")) if isinstance(image, dict) else (image, None)
        if isinstance(data, bytes):
            references.append({"path": None, "bytes": data})
            continue
        if not isinstance(path, str) or not path:
            raise ValueError(f"{where}: an image must be a path or a URL, but is {image!r:.80}")
        if not path.startswith(("http://", "https://")):
            path = str(folder / Path(path).expanduser())
            if not Path(path).is_file():
                raise FileNotFoundError(f"{where}: its image {path} is missing")
        references.append({"path": path, "bytes": None})
    return references


# -- embedded data ----------------------------------------------------------------------------------------------------


def _read_embedded(source: str, split: str | None, image_rule: str) -> Iterator[tuple[str, dict]]:
    from mmcot.training.data.embedded.generate import generate_problems

    options = {"n": EMBEDDED_DEFAULT_SIZE, "seed": 0, "skills": None}
    for part in filter(None, source.partition(":")[2].split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or name not in ("n", "seed", "skills", "train", "val", "test"):
            raise ValueError(
                f"{source}: {part!r} isn't an option; options are n, seed, skills, train, val, test, as n=2000"
            )
        if name != "skills" and not value.isdecimal():
            raise ValueError(f"{source}: {name} must be a whole number, but is {value!r}")
        options[name] = value.split("+") if name == "skills" else int(value)
    names = ("train", "val", "test") if split is None else _wanted(split)
    for name in names:
        if name not in ("train", "val", "test"):
            raise ValueError(f"{source}: has no split {split!r}; its splits: train, val, test, trainval")
        problems = generate_problems(
            options.get(name, options["n"]), seed=options["seed"], skills=options["skills"], split=name
        )
        for raw in problems:
            images = _chosen(raw["images"], image_rule)
            yield f"{source}: problem {raw['id']}", {**raw, "images": images, "has_image": bool(raw["images"])}
