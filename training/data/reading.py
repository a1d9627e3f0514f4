"""One pass over a source: rows become records; what went wrong or was left out is kept for one message at the end."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmcot.training.common import UserError
from mmcot.training.data.files import (
    SHARDS,
    DataFile,
    data_files,
    is_original,
    left_out,
    several_configurations,
    split_of_image,
)
from mmcot.training.data.images import Leave, chosen, given_images, image_references
from mmcot.training.data.keys import GUESSES, KeyReport, renamed
from mmcot.training.data.known_layouts import ai2d_rows, implied_image, is_ai2d
from mmcot.training.data.records import Faults, Row, checked, is_absent, shown, with_each_solution
from mmcot.training.data.splits import content_key, split_members, split_name

SAMPLE = 16384  # questions of a stream by which its folders are compared
FEWEST = 16  # shared ones in a sample that are taken for a sign


class Opened(NamedTuple):
    """A source, ready to be read: more than once if need be."""

    rows: Callable[[], Iterator[Row]]
    images: Callable[[Row, dict, str | None], list]  # of a renamed record: all its images
    resolve: Callable[[Row, list], list]  # those that a rule took, as {"path", "bytes"}
    implied: Callable[[Row, str | None], str | None] = lambda row, own: None  # the image of a record that names none
    splits: tuple[str, ...] = ()  # names of lists of its own
    selected: bool = False  # whether the rows are already those of the split
    files: tuple[DataFile, ...] = ()
    notes: tuple[str, ...] = ()


def open_source(
    source: str, config: str | None, split: str | None, image_rule: str, columns: Mapping[str, Any], **leave: bool
) -> Opened:
    """The rows of a source (see `locate`), and how the images of one are found; `leave` as `Leave.below` takes it."""
    if source.startswith("embedded"):
        from mmcot.training.data.embedded.source import embedded_rows

        return Opened(
            rows=lambda: embedded_rows(source, split),
            images=lambda row, raw, own: raw["images"],
            resolve=lambda row, images: images,
            selected=split is not None,
        )
    path = Path(source)
    allowed = Leave.below(path if path.is_dir() else path.parent, **leave)
    if is_original(source):
        from mmcot.training.data.scienceqa import OriginalFolder

        folder = OriginalFolder(path)
        return Opened(
            rows=lambda: folder.rows(split),
            images=lambda row, raw, own: [] if image_rule == "none" else folder.image_files(raw, own, allowed),
            resolve=lambda row, paths: [{"path": str(path), "bytes": None} for path in paths],
            splits=tuple(folder.splits),
            selected=split in folder.splits,
        )
    if is_ai2d(path):
        return Opened(
            rows=lambda: ai2d_rows(path),
            images=lambda row, raw, own: given_images(raw["images"]),
            resolve=lambda row, images: image_references(images, Path(row.file).parent, allowed),
        )
    files = data_files(source, config)
    others = left_out(source, files)
    kinds = ", ".join(sorted({f"*{file.suffix}" for file in others}))
    return Opened(
        rows=lambda: _file_rows(files, split, spare="split" not in columns),
        images=lambda row, raw, own: given_images(raw["images"]),
        resolve=lambda row, images: _references(row, images, allowed),
        implied=lambda row, own: implied_image(row.values, own, Path(row.file).parent),
        files=tuple(files),
        notes=(f"reads *{files[0].path.suffix}; {len(others)} other files are left out ({kinds})",) if others else (),
    )


def _references(row: Row, images: list, allowed: Leave) -> list[dict[str, Any]]:
    """A row's images. Bytes get a path too, for messages: the file's, then the member of a shard, or the row.

    There can be no such file, below another one: `datasets.Image` would take it in place of the bytes.
    """
    found = image_references(images, Path(row.file).parent, allowed)
    for number, (given, image) in enumerate(zip(images, found, strict=True), start=1):
        if image["bytes"] is not None:
            # a member's name; other paths beside bytes are a stranger's
            member = row.file.lower().endswith(SHARDS) and isinstance(given, dict) and given.get("bytes") is not None
            place = row.place if len(images) == 1 else f"{row.place}, image {number}"
            image["path"] = f"{row.file}/{given['path'] if member else place}"
    return found


def _file_rows(files: list[DataFile], split: str | None, spare: bool) -> Iterator[Row]:
    from mmcot.training.data.tables import read_rows

    members = None if split is None else split_members(split)
    for file in files:
        another = members is not None and file.split is not None and file.split not in members
        for row in read_rows(file.path, spare=spare and another):
            yield row._replace(split=row.split or file.split)


def split_parts(source: str, config: str | None, columns: Mapping[str, Any]) -> list[str | None]:
    """The splits that can each be read without the others, in the order of the source's records; [None] where records
    of several splits lie together, or only reading them would tell."""
    if source.startswith("embedded"):
        from mmcot.training.data.embedded.source import SPLITS, embedded_options

        options = embedded_options(source)
        return [name for name in SPLITS if options.get(name, options["n"])]
    files = data_files(source, config)
    names = [name for name, _ in itertools.groupby(file.split for file in files)]
    apart = len(set(names)) == len(names) and None not in names and "split" not in columns
    return names if apart and all(_says_no_split(file.path) for file in files) else [None]


def _says_no_split(path: Path) -> bool:
    """Whether the file's place alone says the split of its records."""
    from pyarrow import ArrowException, parquet

    if path.suffix.lower() != ".parquet":
        return path.suffix.lower() in SHARDS  # whose records may only say the same
    try:
        return "split" not in parquet.read_schema(path).names
    except (ArrowException, OSError):
        return False  # whoever reads it says what is wrong


class Reading:
    """The pass. Its counts hold when `records` has come to its end."""

    def __init__(
        self,
        opened: Opened,
        columns: Mapping[str, Any],
        image_rule: str,
        require_answer: bool,
        each_rationale: bool = False,
        made: Sequence[str] | None = None,  # splits of the rows of a source that names none
        remembers: bool = True,  # ids and contents, to find what occurs twice; of a stream there are too many
    ):
        self.remembers = remembers
        self.each_rationale = each_rationale
        self.opened, self.columns = opened, columns
        self.image_rule, self.require_answer, self.made = image_rule, require_answer, made
        self.faults, self.keys = Faults(), KeyReport(columns)
        self.splits: Counter[str] = Counter()  # that rows name
        self.numbers: Counter[str] = Counter()  # of rows without an id
        self.ids: set[str] = set()
        self.mapped: set[str] = set()  # keys of `columns` that some row has
        # the split of each record, and numbers of those of them that lose images; of a stream those at its beginning
        self.taken: list[str | None] = []
        self.losing: list[int] = []
        self.rows = self.unsplit = 0
        self.sharing = _Sharing(opened.files, None if remembers else SAMPLE)

    def records(self, wanted: tuple[str, ...] | None) -> Iterator[tuple[str | None, list[dict], bytes | None]]:
        """(split, records, content key) of the good rows of the wanted splits, all by default; and, as long as no row
        names a split, of those without one, whose images aren't looked for. One record a row, or one a rationale."""
        for row in self.opened.rows():
            self.rows += 1
            try:
                if row.fault is not None:
                    raise row.fault
                found = self._record(row, wanted)
            except UserError as error:
                self.faults.add(row, error)
                continue
            if found is not None:
                if self.remembers or len(self.taken) < SAMPLE:
                    self.taken.append(found[0])
                yield found

    def _record(self, row: Row, wanted: tuple[str, ...] | None) -> tuple[str | None, list[dict], bytes | None] | None:
        unknown = self.keys.take(row.values)
        raw = renamed(row.values, self.columns, unknown)
        if row.file.endswith(SHARDS) and row.split and (split_name(raw["split"]) or row.split) != row.split:
            # shards of other splits aren't opened, so that nobody would ever find it
            raise UserError(f"says split {shown(raw['split'])}, and its shard's name says {row.split}")
        own = said = split_name(raw["split"]) or row.split or split_of_image(row.values.get("file_name"))
        label = own or os.path.splitext(os.path.basename(row.file))[0]
        if own is not None:
            self.splits[own] += 1
        elif self.made is not None:
            own = self.made[self.rows - 1]
        number = self.numbers[label]
        self.numbers[label] += 1
        if wanted is not None and own not in wanted and (own is not None or self.splits):
            self.unsplit += own is None
            return None
        if is_absent(raw["id"]) or raw["id"] == "":
            raw["id"] = f"{label}-{number:06d}"
        if row.cells:
            from mmcot.training.data.tables import values_of_cells

            raw = values_of_cells(raw)
        if is_absent(raw["images"]) and "images" not in self.columns:
            raw["images"] = self.opened.implied(row, said)
        record = checked(raw, self.require_answer, [key for key in unknown if key not in GUESSES])
        if record["id"] in self.ids:
            raise UserError(f"id {shown(record['id'])} occurs twice")
        if self.remembers:
            self.ids.add(record["id"])
        images = self.opened.images(row, raw, said)
        taken = chosen(images, self.image_rule)
        if self.image_rule == "original" and len(taken) < len(images) and (self.remembers or self.rows < SAMPLE):
            self.losing.append(len(self.taken))
        record |= {"images": taken, "has_image": _has_image(raw), "split": own}
        if wanted is None or own in wanted:
            record["images"] = self.opened.resolve(row, taken)
        key = None
        if own is None or self.sharing.needed:
            key = content_key(raw, "" if self.opened.files else f"{record['id']}/")
            self.sharing.add(key, own, row.file)
        records = with_each_solution(record, raw["solution"]) if self.each_rationale else [record]
        return own, records, key

    def raise_faults(self, source: str) -> None:
        """
        Raises:
            UserError, MissingFileError: bad records; two configurations read as one; a key of `columns` nowhere.
        """
        self.sharing.raise_any(Path(source))
        absent = self.keys.never_seen()
        if absent and self.rows:
            raise UserError(
                f"{source}: no record has the key {absent[0]!r} that columns names; keys: {self.keys.some_keys()}"
            )
        self.faults.raise_any()

    def notes(self, split: str | None, made: Sequence[str] | None = None) -> list[str]:
        """What to say of a split of the source, None being all of it; `made`: splits that its records were given."""
        lines = [*self.opened.notes, *self.keys.lines()]
        names = made or self.taken
        unsplit = self.unsplit + names.count(None) if split is not None and self.splits else 0
        if unsplit:
            lines.append(f"{unsplit:,} records name no split, though others do: they are in none")
        members = set(names) if split is None or self.opened.selected else split_members(split)
        losing = sum(names[number] in members for number in self.losing)
        if losing:
            part = "" if split is None else f" of split {split}"
            share = f"{losing:,} of {sum(name in members for name in names):,} questions{part}"
            lines.append(f"image_rule=original: {share} lose images, for it keeps the first")
        return lines


def _has_image(raw: dict[str, Any]) -> bool:
    value = raw["has_image"]
    if is_absent(value) or value == "":
        return bool(given_images(raw["images"]))
    truth = {"true": True, "false": False, "1": True, "0": False}.get(str(value).strip().lower())
    if truth is None:
        raise UserError(f"'has_image' must be true or false, but is {shown(value)}")
    return truth


class _Sharing:
    """Whether folders of a source hold the same questions of the same split: configurations, and not parts.

    Args:
        most: questions that are remembered; None: all. Of more, those with the smallest keys are kept: a key is a hash
            of its content, so that a question is in the sample for all folders or for none.
    """

    def __init__(self, files: tuple[DataFile, ...], most: int | None = None):
        self.group_of = {str(file.path): file.group for file in files}
        self.needed = len(set(self.group_of.values())) > 1
        self.most = most
        self.bound: bytes | None = None  # keys from it on are left out
        self.groups: dict[tuple[bytes, str | None], tuple[str, ...]] = {}

    def add(self, key: bytes, split: str | None, file: str) -> None:
        if not self.needed or (self.bound is not None and key >= self.bound):
            return
        group, known = self.group_of[file], self.groups.get((key, split), ())
        if group not in known:
            self.groups[key, split] = (*known, group)
        if self.most is not None and len(self.groups) > self.most:
            self.bound = sorted(key for key, _ in self.groups)[self.most // 2]
            self.groups = {place: groups for place, groups in self.groups.items() if place[0] < self.bound}

    def raise_any(self, source: Path) -> None:
        sizes = Counter(group for groups in self.groups.values() for group in groups)
        shared = Counter(tuple(sorted((first, other))) for first, *others in self.groups.values() for other in others)
        sample = "" if self.bound is None else f" of a sample of {len(self.groups):,}"
        for groups, number in shared.items():
            # one or two questions of a small folder say nothing of the rest
            enough = self.bound is None or number >= FEWEST
            if enough and number * 2 >= min(sizes[group] for group in groups):
                names = [group or "." for group in groups]
                raise UserError(f"{several_configurations(source, names)}; they share {number:,} questions{sample}")
