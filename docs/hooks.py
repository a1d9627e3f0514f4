"""Fills the site's pages with what the code says of itself: the help of every command, every key of a recipe."""

import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKERS = {"<!-- commands -->": "commands", "<!-- recipe keys -->": "recipe_keys"}


def on_startup(command, dirty) -> None:
    """Lays the three folders out as the one package that they are when installed: mkdocstrings reads sources, and
    doesn't follow an editable installation."""
    place = Path(tempfile.mkdtemp(prefix="mmcot-docs-"))
    package = place / "mmcot"
    package.mkdir()
    for file in (ROOT / "modeling_mmcot").glob("*.py"):
        (package / file.name).symlink_to(file)
    for name in ("processing", "training", "model_cards"):
        (package / name).symlink_to(ROOT / name)
    sys.path.append(str(place))


def on_page_markdown(markdown: str, page, config, files) -> str:
    for marker, name in MARKERS.items():
        if marker in markdown:
            markdown = markdown.replace(marker, globals()[name]())
    # links out of docs/ lead to files of the repository, which a site doesn't hold
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)


def commands() -> str:
    """A section a command: its `--help`."""
    from mmcot.training.cli import COMMANDS, command_parser

    os.environ["COLUMNS"] = "110"
    sections = []
    for name, (_, line) in COMMANDS.items():
        text = command_parser(name)[0].format_help() if name != "train" else _train_help()
        sections.append(f"## mmcot {name}\n\n{line[0].upper()}{line[1:]}.\n\n```text\n{text.strip()}\n```\n")
    return "\n".join(sections)


def _train_help() -> str:
    """Without the recipe's keys, which have a section of their own."""
    from mmcot.training.cli import command_parser
    from mmcot.training.stages.recipe_help import recipe_help

    return command_parser("train")[0].format_help().replace(recipe_help(), "")


def recipe_keys() -> str:
    from mmcot.training.stages.recipe_help import recipe_help

    return f"```text\n{recipe_help().strip()}\n```"
