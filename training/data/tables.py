"""Rows of the files that people keep questions in: JSON Lines, JSON, CSV, parquet, WebDataset's shards.

A row that can't be read is given with its fault, so that all of them can be named at once; a file that can't be read
at all is an error.
"""

import ast
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.keys import ALIASES
from mmcot.training.data.records import Row, is_absent, shown
from mmcot.training.data.splits import split_name


def read_rows(path: Path, *, spare: bool = False) -> Iterator[Row]:
    """The rows of a file, by its ending.

    Args:
        spare: whether a parquet file without a column `split`, or a shard, needn't be read at all.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path, spare)
    elif suffix in (".csv", ".tsv"):
        yield from _csv_rows(path)
    elif suffix == ".json":
        yield from _json_rows(path)
    elif suffix == ".tar":
        yield from () if spare else _shard_rows(path)
    else:
        yield from _json_lines(path)


def _not_utf8(error: UnicodeDecodeError) -> str:
    found = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else f"not UTF-8 text ({error.reason})"
    return f"{found}: save it as UTF-8"


# -- JSON -------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it isn't JSON, nests too deep, or says a key twice.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {_not_utf8(error)}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (brackets nest too deep)") from None


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise UserError(f"{path}: key {shown(twice)} occurs twice in one object")
    return content


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            values, fault = {}, None
            try:
                values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):  # no line of it can be read
                    raise UserError(f"{path}: {_not_utf8(error)}") from None
                cut = number > 1 and error.reason == "unexpected end of data"  # a write that was interrupted
                fault = UserError(f"not valid JSON ({error})" if cut else _not_utf8(error))
            except ValueError as error:
                fault = UserError(f"not valid JSON ({error})")
            except RecursionError:
                fault = UserError("not valid JSON (brackets nest too deep)")
            if not isinstance(values, dict):
                values, fault = {}, UserError(f"expected a JSON object, found a {type(values).__name__}")
            yield Row(str(path), f"line {number}", values, fault)


def _json_rows(path: Path) -> Iterator[Row]:
    """A list of records, records by id, lists of records by split, one list under some key; or JSON Lines."""
    try:
        content = read_json(path)
    except UserError as error:
        if isinstance(error.__cause__, json.JSONDecodeError) and error.__cause__.msg == "Extra data":
            yield from _json_lines(path)  # one value after the other: JSON Lines by another name
            return
        raise
    if isinstance(content, dict) and isinstance(content.get("question"), str):
        content = [content]
    if isinstance(content, dict):
        lists = {key: value for key, value in content.items() if isinstance(value, list)}
        if (
            content
            and len(lists) == len(content)
            and all(split_name(key) in ("train", "val", "test") for key in lists)
        ):
            for key, records in lists.items():
                for row in _listed(path, records, f"{key}: "):
                    yield row._replace(split=split_name(key))
            return
        if len(lists) == 1 and not any(isinstance(value, dict) and "question" in value for value in content.values()):
            content = next(iter(lists.values()))
    if isinstance(content, list):
        yield from _listed(path, content)
    elif isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        for id_, values in content.items():
            own = any(not is_absent(values.get(key)) for key in ("id", *ALIASES["id"]))
            yield Row(str(path), f"problem {id_:.80}", values if own else {**values, "id": id_})
    else:
        raise UserError(f"{path}: expected a list of records, or an object of records by id")


def _listed(path: Path, records: list[Any], before: str = "") -> Iterator[Row]:
    for number, values in enumerate(records):
        place = f"{before}record {number}"
        if isinstance(values, dict):
            yield Row(str(path), place, values)
        else:
            yield Row(str(path), place, {}, UserError(f"expected a JSON object, found a {type(values).__name__}"))


# -- CSV --------------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            header = file.readline()
            delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            names = [name.strip() for name in next(rows, [])]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise UserError(f"{path}: two columns are called {shown(twice)}")
            for cells in rows:
                if not any(cells):
                    continue
                place = f"line {rows.line_num}"
                if len(cells) > len(names):
                    fault = UserError(
                        f"has {len(cells)} cells, but the head has {len(names)}: quote cells with commas"
                    )
                    yield Row(str(path), place, {}, fault)
                    continue
                values = {
                    name: cell if cell.strip() else None for name, cell in zip(names, cells, strict=False) if name
                }
                yield Row(str(path), place, values, cells=True)
        except csv.Error as error:
            raise UserError(f"{path}: line {rows.line_num}: not valid CSV ({error})") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: {_not_utf8(error)}") from None


def values_of_cells(raw: dict[str, Any]) -> dict[str, Any]:
    """A renamed record of a CSV file, whose cells are all text: choices, rationales and images may be lists in one.

    Raises:
        UserError: choices in a cell that can't be told apart.
    """
    raw = dict(raw)
    for field in ("choices", "solution", "images"):
        cell = raw[field]
        if not isinstance(cell, str):
            continue
        text = cell.strip()
        if text.startswith("[") and text.endswith("]"):
            raw[field] = _list_in(text, field, cell)
        elif field == "choices" and "|" in text:
            raw[field] = [choice.strip() for choice in text.split("|")]
        elif field == "choices":
            raise UserError(
                f'\'choices\' is {shown(cell)}: write a JSON list, as ["red", "blue"], options with | between them, '
                "or columns choice_a, choice_b, …"
            )
    return raw


def _list_in(text: str, field: str, cell: str) -> Any:
    for parse in (json.loads, ast.literal_eval):  # pandas writes lists as Python does
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    if field == "choices":
        raise UserError(f'\'choices\' is {shown(cell)}, which is no JSON list, as ["red", "blue"]')
    return cell


# -- parquet ----------------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path, spare: bool) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            # the file's name alone can spare reading the images of the other splits
            if spare and "split" not in file.schema_arrow.names:
                return
            for batch in file.iter_batches(batch_size=64):
                for values in batch.to_pylist():
                    yield Row(str(path), f"row {number}", values)
                    number += 1
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        where = "not a parquet file" if number == 0 else f"damaged after row {number - 1}"
        raise UserError(f"{path}: {where} ({reason:.200})") from None


# -- WebDataset -------------------------------------------------------------------------------------------------------


def _shard_rows(path: Path) -> Iterator[Row]:
    """A shard of WebDataset, read from front to back: members that lie together and differ in what follows the first
    dot of their names are one record, `000.json` its keys and `000.png`, or `000.1.png`, `000.2.png`, its pictures."""
    import tarfile

    key, members = None, {}
    try:
        with tarfile.open(path, mode="r|") as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if member.islnk() or member.issym():
                    raise UserError(f"{path}: {member.name} is a link: pack the file itself (tar --hard-dereference)")
                if not member.isfile() or not stem or stem == "README":
                    continue
                if (folder, stem) != key and members:
                    yield _sample(path, key, members)
                    members = {}
                key, ending = (folder, stem), ending.lower()
                if ending in members:
                    raise UserError(f"{path}: {member.name} occurs twice")
                members[ending] = member.name, shard.extractfile(member).read()
                if len(members[ending][1]) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
        with path.open("rb") as file:  # tarfile takes an archive that ends within a header for a whole one
            file.seek(-min(512, path.stat().st_size), 2)
            if file.read().strip(b"\0"):
                raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, EOFError) as error:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise UserError(f"{path}: is compressed: unpack it with gunzip") from None
        where = f"damaged behind {'/'.join(filter(None, key))}" if key else "not a tar archive"
        raise UserError(f"{path}: {where} ({error})") from None
    if members:
        yield _sample(path, key, members)


def _sample(path: Path, key: tuple[str, str], members: dict[str, tuple[str, bytes]]) -> Row:
    place = f"sample {shown('/'.join(filter(None, key)))}"
    values, fault, pictures = {}, None, []
    for ending, (name, content) in sorted(members.items(), key=lambda member: _numbers_in(member[0])):
        if re.fullmatch(r"(\d+\.)?(png|jpe?g|webp|gif|bmp)", ending):
            pictures.append({"path": name.replace("..", ""), "bytes": content})  # leads nowhere, on no system
        elif ending != "json":
            values[ending] = content
    try:
        record = json.loads(members["json"][1].decode("utf-8-sig"))
        if not isinstance(record, dict):
            fault = UserError(f"expected a JSON object, found a {type(record).__name__}")
    except KeyError:
        fault = UserError("has no .json member with the question")
    except ValueError as error:
        fault = UserError(f"not valid JSON ({error})")
    except RecursionError:
        fault = UserError("not valid JSON (brackets nest too deep)")
    if fault is not None:
        return Row(str(path), place, {}, fault)
    if pictures:  # the archive's own; names of files that the record was made from lead nowhere
        record = {name: value for name, value in record.items() if name not in ("images", *ALIASES["images"])}
        record["images"] = pictures
    return Row(str(path), place, values | record)


def _numbers_in(ending: str) -> tuple:
    """In the order of numbers: 2.png before 10.png."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", ending))
