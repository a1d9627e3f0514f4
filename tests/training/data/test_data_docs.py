"""What docs/data.md shows is read as it stands."""

import re
from pathlib import Path

from record_files import picture

from mmcot.training.data.problems import load_problems

DOCS = Path(__file__).parents[3] / "docs" / "data.md"


def test_both_files_give_the_same_questions(tmp_path):
    blocks = dict(re.findall(r"```(json|csv)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL))
    picture(tmp_path / "images" / "map.png")
    (tmp_path / "my.jsonl").write_text(blocks["json"], encoding="utf-8")
    (tmp_path / "my.csv").write_text(blocks["csv"], encoding="utf-8")
    lines, table = load_problems(tmp_path / "my.jsonl"), load_problems(tmp_path / "my.csv")
    assert lines["answer"][:] == table["answer"][:] == [1, 0] and lines["has_image"][:] == [True, False]
    for name in ("question", "choices", "solution", "images"):
        assert lines[name][:] == table[name][:]


def test_every_name_of_its_table_is_read(tmp_path):
    from mmcot.training.data.keys import KNOWN

    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    names = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split(" | ")[0])}
    assert {"question", "options", "file_name", "rationale", "hint", "split"} <= names <= KNOWN
