"""Fills the site's pages with what the code says of itself (every command's help, every key of a recipe), and draws
equations as MathML, which browsers show without a script."""

import argparse
import atexit
import html
import re
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKERS = {
    "<!-- commands -->": "commands",
    "<!-- recipes -->": "recipes",
    "<!-- recipe keys -->": "recipe_keys",
}
EQUATION = re.compile(r'<(?:div|span) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:div|span)>', re.S)
SAID_ONCE = "what is shown"  # the options that every command has


def on_startup(command, dirty) -> None:
    """Lays the three folders out as the one package that they are when installed: mkdocstrings reads sources, and
    doesn't follow an editable installation."""
    place = Path(tempfile.mkdtemp(prefix="mmcot-docs-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
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


def on_page_content(content: str, page, config, files) -> str:
    return EQUATION.sub(lambda found: equation(html.unescape(found[2]), block=found[1] == "["), content)


def equation(latex: str, block: bool) -> str:
    r"""LaTeX as MathML. What `\qquad` parts may stand on lines of their own; a number (`\tag`) stands at the end."""
    from latex2mathml.converter import convert

    number = re.search(r"\\tag\{(.+?)\}", latex)
    parts = re.sub(r"\\tag\{.+?\}|\\!", "", latex).split(r"\qquad")
    drawn = "".join(convert(" ".join(part.split()), display="block" if block else "inline") for part in parts)
    if not block:
        return drawn
    return f'<div class="equation"><div>{drawn}</div><span>{f"({number[1]})" if number else ""}</span></div>'


def commands() -> str:
    """A section a command: what its `--help` says, as text that fits any screen."""
    from mmcot.training.cli import COMMANDS, command_parser

    sections = [_section(name, command_parser(name)[0]) for name in COMMANDS]
    [shared] = [group for group in command_parser("demo")[0]._action_groups if group.title == SAID_ONCE]
    return "\n\n".join(["Every command also takes", *_entries(shared._group_actions), *sections])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog)
    arguments = [formatter._format_args(one, one.metavar or one.dest) for one in parser._get_positional_actions()]
    needed = [formatter._format_action_invocation(one) for one in parser._get_optional_actions() if one.required]
    usage = " ".join(["mmcot", name, *arguments, *needed, "[options]"])
    parts = [f"## mmcot {name}", f"```text\n{usage}\n```"]
    for paragraph in (parser.description or "").split("\n\n"):
        as_it_stands = re.search(r"^ |\S {2,}\S", paragraph, re.M)
        text = textwrap.dedent(paragraph).strip("\n")
        parts.append(f"```text\n{text}\n```" if as_it_stands else _prose(text))
    for group in parser._action_groups:
        actions = [one for one in group._group_actions if one.help != argparse.SUPPRESS and one.dest != "help"]
        if actions and group.title != SAID_ONCE:
            parts += [] if group.title in ("options", "positional arguments") else [f"**{group.title}**"]
            parts += _entries(actions)
    return "\n\n".join(parts)


def _entries(actions: list[argparse.Action]) -> list[str]:
    formatter = argparse.HelpFormatter("mmcot")
    return [
        f"`{formatter._format_action_invocation(one)}`\n:   {_prose(formatter._expand_help(one) if one.help else '–')}"
        for one in actions
    ]


def recipes() -> str:
    from mmcot.training.stages.recipe_file import recipe_summaries

    parts = []
    for kind, found in recipe_summaries().items():
        parts.append(f"**{kind}**")
        parts += [f"`{name}`\n:   {_prose(summary)}" for name, summary in found.items()]
    return "\n\n".join(parts)


def recipe_keys() -> str:
    from mmcot.training.stages.recipe_help import recipe_entries

    parts = []
    for heading, entries in recipe_entries():
        parts.append(_prose(heading[0].upper() + heading[1:]))
        parts += [f"`{key}` ({_prose(default)})\n:   {_prose(meaning) or '–'}" for key, default, meaning in entries]
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    """Plain text as Markdown: what isn't between backticks is shown as it is written; names of pages lead there."""
    text = re.sub(r"`[^`]*`|[<*_\[\]]", lambda one: one[0] if one[0][0] == "`" else f"&#{ord(one[0])};", text)
    return re.sub(r"\bdocs/(\w+)\.md", r"[docs/\1.md](\1.md)", text)
