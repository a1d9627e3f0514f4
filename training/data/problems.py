"""Problem sources: whatever form the questions come in, out comes one Arrow table of problem records.

`load_problems` documents the sources. Every record is checked on the way, so that bad ones are named here, all at
once, and not hours later by a stack trace. Images stay paths or encoded bytes; the table lies memory-mapped in the
cache of `datasets` and is built anew when a file of the source changes.

A picture lies in that cache once, whichever splits are asked for: they are rows of the same tables.

`files.py` finds a source's files, `scienceqa.py`, `tables.py` and `embedded/source.py` read rows, `reading.py` goes
over them (`stream.py` without a table), `records.py` turns a row into a record, `images.py` finds its images,
`splits.py` knows the splits.
"""

import difflib
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import FullDiskError, UserError, full_disk_told, write_json
from mmcot.training.data.files import hub_name, is_original, locate, source_stamp
from mmcot.training.data.grouped import Shelf
from mmcot.training.data.images import IMAGE_RULES
from mmcot.training.data.keys import check_columns
from mmcot.training.data.known_layouts import is_ai2d
from mmcot.training.data.mixture import is_mixture, load_mixture
from mmcot.training.data.reading import Reading, open_source, split_parts
from mmcot.training.data.records import LABEL_COLUMNS, SHOWN, shown
from mmcot.training.data.splits import MADE, made_splits, split_members, split_name, told

logger = logging.getLogger("mmcot")


def load_problems(
    source: str | os.PathLike,
    split: str | None = None,
    *,
    image_rule: str = "all",
    require_answer: bool = True,
    columns: Mapping[str, str | list[str]] | None = None,
    allow_urls: bool = False,
    allow_outside: bool = False,
    rationales: str = "first",
):
    """Problem records of `source` as a `datasets.Dataset`.

    Columns: id, question, choices (list of str), answer (index from 0), context, caption, images (list of
    {"path", "bytes"}: undecoded `datasets.Image`s; the path of bytes tells the shard and member, or file and row, that
    they are of), has_image (whether the question itself has an image: what the IMG column of ScienceQA's table means,
    where images of the choices don't count), lecture, solution, subject, grade, topic, category, skill, split.

    **A record's keys.** `question`, `choices` and `answer` are needed, all others of the columns above may be there.
    Other names are read too: `options`; `hint` for context; `question_id`; `correct_choice_idx`, `correct_choice`,
    `answer_index`, `answer_idx`; `rationale` for solution, and `rationales`, of which the first counts; `domain` for
    subject; `image`, `images`, `file_name` (the Hub's ImageFolder), `image_path`, `image_file`. Keys that are none of
    these are named in a warning, once a source, with the nearest one that is; `columns` reads them. None, NaN and an
    empty cell mean: absent.

    **Choices** are a list of 2 to 26 texts, or columns of their own (`choice_a`, `choice_b`, …; `option1`, …; `A`, …).
    **Answers** are an index from 0, a letter ("B", "(B)") or an option's text; one that could be two options is
    refused. None and -1 mean that the answer is withheld. **Images** are paths relative to the file (or bytes, as
    parquet holds them): one, or a list. Paths that lead out of the source's folder, `~` and addresses are refused.

    Args:
        source: one of

            - an original ScienceQA folder, with images at `images/<split>/<id>/{image,image_2,choice_0,…}.png`;
            - a JSON Lines file: a record a line;
            - a JSON file: a list of records, an object of records by id, or lists of records by split;
            - a CSV or TSV file with a head. Choices in one cell are a JSON list or `red | blue`;
            - a parquet file with the columns of derek-thomas/ScienceQA or those above;
            - a WebDataset shard: `000.json` with a record's keys and `000.png` with its picture, and so on;
            - a folder of such files (of one kind), so also the Hub's ImageFolder: `train/metadata.jsonl` beside its
              images; A-OKVQA's `aokvqa_v1p0_*.json` beside COCO's `train2017/`, …; M3CoT's `train.jsonl`, … beside
              `images/`; or AI2D's folder;
            - a Hub data set of such files, as `user/name` or `user/name@revision`. Of several configurations one is
              named: `lmms-lab/ScienceQA:ScienceQA-FULL`; so too for a folder;
            - a YAML file that names several sources with weights (`mixture.py`);
            - "embedded", or "embedded:n=2000,seed=1,skills=a+b,val=200": n generated problems of each split but for
              the splits named with a size of their own.
        split: train, val, test, trainval, or another one in pid_splits.json; None for every problem, in the source's
            order. Of trainval, those of train come first where one file holds both. Where records don't say their
            split, the file's name (`val.jsonl`, `test-00000-of-00001.parquet`) or folder (`train/`) does. Where
            nothing says it, train, val and test are made: 80, 10 and 10 % by a hash of the content, so that equal
            questions are in one split and order doesn't matter; a warning says so.
        image_rule: "all" images of a question in order (image, image_2, …, choices), or the one that the "original"
            project uses (image.png, or choice_0.png where only the choices have images; how many questions lose images
            by it is said); "none" leaves them out and doesn't look for the files, for features that are cached by
            question id.
        require_answer: False admits questions without an answer; their `answer` is None.
        columns: our field -> the source's key for it, as {"image": "img"}; choices may be a list of keys.
        allow_urls: reads images from http(s) addresses, each once, into the table.
        allow_outside: reads images from outside of the source's folder.
        rationales: which count of a question that has several (A-OKVQA): the "first", or "all", each as a record of
            its own, for training; the second record of question "x" is "x#2".

    Raises:
        MissingFileError: no such source, or an image that a problem names isn't there.
        UserError: bad records or options; one line that names file, line or id, and field, of the first 20.
    """
    if is_mixture(source):
        options = {"image_rule": image_rule, "require_answer": require_answer, "columns": columns}
        options |= {"allow_urls": allow_urls, "allow_outside": allow_outside, "rationales": rationales}
        return load_mixture(source, split, **options)
    if image_rule not in IMAGE_RULES:
        raise UserError(f"image_rule is {shown(image_rule)}; it must be one of {', '.join(IMAGE_RULES)}")
    if rationales not in ("first", "all"):
        raise UserError(f"rationales is {shown(rationales)}; it must be first or all")
    split = split_name(split)
    path, config = locate(source)
    arguments = {
        "source": path,
        "name": path if path.startswith("embedded") else hub_name(source) or Path(path).name,
        "config": config,
        "image_rule": image_rule,
        "columns": check_columns(columns),
        "allow_urls": bool(allow_urls),
        "allow_outside": bool(allow_outside),
        "rationales": rationales,
        "stamp": source_stamp(path, config),
    }
    found = _of_shared_tables(arguments, split, require_answer)
    if found is None:
        problems, facts = _table(
            {**arguments, "split": split, "require_answer": bool(require_answer), "grouped": False}
        )
        found = problems, facts["lines"].get(split or "", ())
    problems, lines = found
    for line in lines:
        say_once(path, line)
    return problems


def problem_features():
    """The columns of `load_problems`, as `datasets.Features`."""
    from datasets import Features, Image, List, Value

    names = ("id", "question", "choices", "answer", "context", "caption", "images", "has_image", "lecture", "solution")
    others = {"answer": Value("int64"), "images": List(Image(decode=False)), "has_image": Value("bool")}
    others["choices"] = List(Value("string"))
    # an object each: `datasets` hashes their pickle, which tells a shared one from equal ones, as they are once read
    return Features({name: others.get(name) or Value("string") for name in (*names, *LABEL_COLUMNS[1:], "split")})


def _split_label(split: str | None) -> str:
    """A name that `datasets` takes, which allows few characters."""
    label = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in split or "problems")
    return label[:100].strip("_") or "problems"


# -- what is said of a source -----------------------------------------------------------------------------------------

_said: set[tuple[str, str]] = set()
_unread: set[Path] = set()  # notes of shared tables that can't be made: each is tried once a process


def say_once(source: str, line: str) -> None:
    """One warning a source and process, though a run loads its splits one by one."""
    if (source, line) not in _said:
        _said.add((source, line))
        logger.warning(line)


def _notes_file(arguments: dict[str, Any]) -> Path:
    """Where the generator leaves a table's facts, for it runs only when the table isn't there yet. Its ending is no
    record's: the cache may lie in the source's folder."""
    import datasets

    name = hashlib.sha256(json.dumps(arguments, sort_keys=True, default=repr).encode()).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "mmcot_notes" / f"{name}.notes"


# -- the tables -------------------------------------------------------------------------------------------------------


def _of_shared_tables(arguments: dict[str, Any], split: str | None, require_answer: bool):
    """The problems, as rows of tables that hold each of the source's records once, whichever splits are asked for; and
    what is told of them. So no picture lies in the cache twice.

    None where that doesn't do: a record of another split can't be read, a needed answer is withheld, there is no such
    split. The split is then read by itself, with its own table or error. So are folders that hold pictures as files,
    and sources whose pictures may have to be fetched: no more of them than are asked for.
    """
    from datasets import NamedSplit, Value, concatenate_datasets

    source, config = arguments["source"], arguments["config"]
    if arguments["allow_urls"]:
        return None
    if not source.startswith("embedded") and (is_original(source) or is_ai2d(Path(source))):
        return None
    members = None if split is None else split_members(split)
    tables: list[Any] = []
    lines: list[str] = []
    made: list[str] = []
    order: list[int] = []
    for part in split_parts(source, config, arguments["columns"]):
        if part is not None and members is not None and part not in members:
            continue
        given = {**arguments, "split": part, "require_answer": False, "grouped": part is None}
        if _notes_file(given) in _unread:
            return None
        try:
            table, facts = _table(given)
        except FullDiskError:
            raise
        except UserError:
            _unread.add(_notes_file(given))
            return None
        tables.append(table)
        made, order = facts["made"], facts["order"]  # of a table of several splits, which is the only one
        told_of = part or split or ""
        lines += facts["lines"].get(told_of, ())
    if not tables:
        return None
    problems = tables[0] if len(tables) == 1 else concatenate_datasets(tables, split=NamedSplit(_split_label(split)))
    if len(tables) > 1 and len(set(problems["id"][:])) < len(problems):
        return None
    if members is not None:
        splits = problems["split"][:]
        if made and set(members) <= set(MADE):
            splits = made
            problems = problems.remove_columns("split").add_column("split", splits, feature=Value("string"))
        problems = problems.select([row for row, own in enumerate(splits) if own in members])
    elif order != sorted(order):
        problems = problems.select(order)
    if not len(problems) or (require_answer and None in problems["answer"][:]):
        return None
    return problems, lines


def _table(arguments: dict[str, Any]):
    """The table of what `_generate` yields, built where it isn't there yet; and its facts: split → "lines" to say of
    it, the splits "made" for its rows, and the "order" of them in the source."""
    from datasets import Dataset, NamedSplit
    from datasets.exceptions import DatasetGenerationError

    notes = _notes_file(arguments)
    given = {**arguments, "notes": str(notes)}
    with full_disk_told(notes.parents[1]):
        try:
            problems = Dataset.from_generator(
                _generate,
                features=problem_features(),
                gen_kwargs=given,
                split=NamedSplit(_split_label(arguments["split"])),
            )
        except DatasetGenerationError as error:
            raise (error.__cause__ or error) from None
    if not notes.exists():  # someone removed them, and the table is there
        deque(_generate(**given), maxlen=0)
    return problems, json.loads(notes.read_text(encoding="utf-8"))


def _generate(
    source: str,
    name: str,
    config: str | None,
    split: str | None,
    image_rule: str,
    require_answer: bool,
    columns: dict[str, Any],
    allow_urls: bool,
    allow_outside: bool,
    rationales: str,
    grouped: bool,
    notes: str,
    stamp: str,
) -> Iterator[dict]:
    """Checked records; `stamp` is there to be part of the cached table's name.

    With `grouped` those of a split come together, so that each split is a slice of the table. Rows from here and there
    would be copied, pictures and all, as soon as `datasets` puts columns beside them.
    """
    opened = open_source(source, config, split, image_rule, columns, urls=allow_urls, outside=allow_outside)
    wanted = None if split is None or opened.selected else split_members(split)
    made: list[str] = []
    shelf = Shelf(Path(notes).parent) if grouped else None

    found, keys = 0, []
    reading = Reading(opened, columns, image_rule, require_answer, rationales == "all")
    for own, records, key in reading.records(wanted):
        if own is None:  # no record before it names a split: perhaps none does
            keys.append(key)
        if wanted is not None and own not in wanted:
            continue
        found += 1
        if shelf is None:
            yield from records
        else:
            shelf.put(records)
    reading.raise_faults(source)
    if keys and not reading.splits and (wanted is None or (not found and set(wanted) <= set(MADE))):
        try:
            made = made_splits(keys)
        except UserError as error:
            if wanted is not None:  # who asks for all needs no splits
                raise UserError(f"{source}: no record says its split, and there are {error}") from None
    if made and wanted is not None:
        reading = Reading(opened, columns, image_rule, require_answer, rationales == "all", made)
        for _, records, _ in reading.records(wanted):
            found += 1
            yield from records
        reading.raise_faults(source)
    if not found:
        raise UserError(_nothing_found(source, split, opened.splits, reading))
    facts: dict[str, Any] = {"lines": {}, "made": [], "order": []}
    if shelf is not None:
        names = made or reading.taken
        places = shelf.places(names)
        for number, part in places:
            yield shelf.take(number)[part]
        facts["made"] = [made[number] for number, _ in places] if made else []
        facts["order"] = sorted(range(len(places)), key=places.__getitem__)
    for own in (None, "trainval", *MADE, *reading.splits) if split is None else (split,):
        own_lines = [f"no splits in it: {told(made)}"] if made and own is not None else []
        facts["lines"][own or ""] = [f"{name}: {line}" for line in own_lines + reading.notes(own, made)]
    write_json(notes, facts)


def _nothing_found(source: str, split: str | None, lists: tuple[str, ...], reading: Reading) -> str:
    if split is None or (not reading.rows and not lists):
        return f"{source}: has no problems"
    if split in lists:
        return f"{source}: has no problems of split {split!r}"
    found = lists or sorted(reading.splits)
    close = difflib.get_close_matches(split[:100], found or MADE, n=1, cutoff=0.7)
    hint = f" (did you mean {close[0]}?)" if close else ""
    if not found:
        return (
            f"{source}: has no split {shown(split)}: no record says its split, so train, val and test are made of "
            f"them; give one of these{hint}"
        )
    names = ", ".join(shown(name).strip("'\"") for name in found[:SHOWN])
    return f"{source}: has no split {shown(split)}; its splits: {names}{hint}"
