"""The rooms of the package: imports go one way, and what travels to the Hub needs nothing but its siblings."""

import ast
import io
import keyword
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Rooms of training/ from the bottom up: a file may import from lower lines, and from its own room.
FLOORS = (
    {"common", "pages"},
    {"data"},
    {"features", "evaluation"},
    {"inference"},
    {"stages", "reasoning"},
    {"hub"},
    {"train"},
    {"paper", "benchmark", "report", "side_by_side", "two_stage_trainer"},
    {"demo"},
    {"app"},
    {"commands"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ENTRY = {("train", "cli")}  # `accelerate launch -m mmcot.training.train` starts the command line
LIBRARIES = {"accelerate", "datasets", "evaluate", "transformers", "torch", "timm", "safetensors", "huggingface_hub"}
FLAT = ("modeling_mmcot", "processing")


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it, relative ones with their dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from package import module` names a module too
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "training").parts[0].removesuffix(".py")


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("training"), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_down(path):
    if path == ROOT / "training" / "__init__.py":
        assert not {name for name in imported(path) if name.startswith("mmcot")}, "its names load lazily"
        return
    own = room_of(path)
    if own in ("recipes", "launch"):
        assert not imported(path), "recipes and launch configurations hold no code"
        return
    assert own in FLOOR, f"a new room {own}: give it a floor"
    for name in imported(path):
        assert not name.startswith("."), f"imports inside training/ are absolute: {name}"
        if not name.startswith("mmcot.training."):
            continue
        other = name.split(".")[2]
        if other != own and (own, other) not in ENTRY and other in FLOOR:
            assert FLOOR[other] < FLOOR[own], f"{own} imports {name}: arrows go down only"


@pytest.mark.parametrize("path", [path for folder in FLAT for path in files(folder)], ids=lambda path: path.name)
def test_what_travels_imports_its_siblings_only(path):
    if path.name == "__init__.py":
        return
    assert path.parent.parent == ROOT, "a folder that travels is flat"
    siblings = {f".{sibling.stem}" for sibling in path.parent.glob("*.py")}
    for name in imported(path):
        top = name.split(".")[0]
        assert top not in ("mmcot", "modeling_mmcot", "processing", "training", "evaluate", "datasets", "accelerate")
        if name.startswith("."):
            assert any(name == sibling or name.startswith(f"{sibling}.") for sibling in siblings), name


@pytest.mark.parametrize(
    "path", [path for folder in (*FLAT, "training", "tests") for path in files(folder)], ids=lambda path: path.name
)
def test_files_are_short_and_well_named(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, "longer than 400 lines"
    name, *folders = reversed(path.relative_to(ROOT).with_suffix("").parts)
    assert name not in LIBRARIES and not keyword.iskeyword(name), "named like a library"
    # contracts with others: modeling_mmcot/modeling_mmcot.py, and `evaluate.load`'s <metric>/<metric>.py
    assert name not in folders or folders[0] in FLAT or "metrics" in folders, "says a word twice"


def code_lines(path: Path) -> int:
    """Lines of a file that hold code: blank ones, comments and docstrings are not counted."""
    source, docstrings, code = path.read_text(encoding="utf-8"), set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_what_travels_is_small():
    """Every repository carries this code, and whoever trusts it has to read it."""
    from mmcot.saving_mmcot import code_files

    files = code_files()
    assert {"modeling_mmcot.py", "processing_mmcot.py"} <= {file.name for file in files}
    assert sum(map(code_lines, files)) < 2300


def test_packages_of_setup_cfg_are_all_there():
    """A wheel holds every room: setup.cfg names each folder with an __init__.py, and nothing else."""
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = set(config["options"]["packages"].split())
    folders = {"mmcot": "modeling_mmcot", "mmcot.processing": "processing", "mmcot.model_cards": "model_cards"}
    expected = set(folders)
    for init in (ROOT / "training").rglob("__init__.py"):
        parts = init.parent.relative_to(ROOT / "training").parts
        if "metrics" not in parts[:-1]:  # each metric is a folder that `evaluate.load` reads by its path
            expected.add(".".join(("mmcot", "training", *parts)))
    assert named == expected
