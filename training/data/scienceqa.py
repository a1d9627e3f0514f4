"""ScienceQA in the layout of https://github.com/lupantech/ScienceQA.

problems.json, pid_splits.json, captions.json, and images/<split>/<id>/{image,image_2,choice_0,…}.png.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.images import Leave
from mmcot.training.data.records import MissingImageError, Row, is_absent, shown
from mmcot.training.data.splits import split_name
from mmcot.training.data.tables import read_json


class OriginalFolder:
    """The problems of a folder, in the order of the split's list."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.problems = self._object("problems.json")
        self.splits = self._split_lists() if (folder / "pid_splits.json").is_file() else {}
        self.captions = self._captions() if (folder / "captions.json").is_file() else {}
        self.own_split = {pid: name for name in ("train", "val", "test") for pid in self.splits.get(name, ())}

    def _object(self, name: str) -> dict[str, Any]:
        content = read_json(self.folder / name)
        if not isinstance(content, dict):
            raise UserError(f"{self.folder / name}: expected a JSON object, found a {type(content).__name__}")
        return content

    def _split_lists(self) -> dict[str, list[str]]:
        lists = self._object("pid_splits.json")
        for name, pids in lists.items():
            whole = isinstance(pids, list) and all(isinstance(pid, str | int) for pid in pids)
            if not whole:
                raise UserError(
                    f"{self.folder / 'pid_splits.json'}: {shown(name)} must be a list of ids, but is {shown(pids)}"
                )
        try:
            return {split_name(name) or name: [str(pid) for pid in pids] for name, pids in lists.items()}  # M3CoT: dev
        except UserError as error:
            raise UserError(f"{self.folder / 'pid_splits.json'}: {error}") from None

    def _captions(self) -> dict[str, Any]:
        captions = self._object("captions.json")
        # the released file wraps them together with the captioner's name
        captions = captions.get("captions", captions)
        if not isinstance(captions, dict):
            file = self.folder / "captions.json"
            raise UserError(f"{file}: 'captions' must be an object of texts by id, but is {shown(captions)}")
        return captions

    def rows(self, split: str | None) -> Iterator[Row]:
        """Those of a split that pid_splits.json lists; else all, with what it or the record says of their split."""
        file = str(self.folder / "problems.json")
        for pid in self.splits.get(split, self.problems):
            values, place = self.problems.get(pid), f"problem {pid:.80}"
            if pid not in self.problems:
                fault = UserError(f"is in pid_splits.json under {split!r}, but not in problems.json")
                yield Row(file, place, {}, fault)
            elif not isinstance(values, dict):
                fault = UserError(f"expected a JSON object, found a {type(values).__name__}")
                yield Row(file, place, {}, fault)
            else:
                values = {"caption": self.captions.get(pid), **values, "id": pid}
                yield Row(file, place, values, split=self.own_split.get(pid))

    def image_files(self, raw: dict[str, Any], split: str | None, leave: Leave) -> list[Path]:
        """Images of one problem: image.png, image_2.png, …, choice_0.png, choice_1.png, …

        Raises:
            MissingFileError, UserError: the one that it names isn't there, or lies elsewhere.
        """
        folder = self.folder / "images" / (split or "") / raw["id"]
        if not folder.is_dir() and (self.folder / "images" / raw["id"]).is_dir():  # as in M3CoT's export
            folder = self.folder / "images" / raw["id"]
        found = {}
        if folder.is_dir():
            for path in folder.iterdir():
                match = re.fullmatch(r"(image|choice)_(\d+)\.\w+", path.name)
                if match:
                    found[match[1] == "choice", int(match[2])] = path
        name = raw["images"]
        if not is_absent(name) and name != "":
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"'image' must be the name of a file in {folder}, but is {shown(name)}")
            if not (folder / name).is_file():
                raise MissingImageError(folder / name, f"its image {folder / name} is missing")
            found[False, 0] = folder / name
        paths = [found[order] for order in sorted(found)]
        for path in paths:
            if not leave.allows(path):
                raise UserError(
                    f"its image {path} is a link that leads out of {self.folder}: allow it with allow_outside=true"
                )
        return paths
