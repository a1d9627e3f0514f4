"""Every block of the documentation is run by a test, or says why not."""

import importlib
import inspect
import os
import re
from pathlib import Path

import pytest
from doc_blocks import ENDLESS, NOT_RUN, ROOT, blocks_of, run_block

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
# page → the test that runs its blocks
RUN_BY = {"docs/own-data.md": "tests/docs/test_own_data_page.py", "docs/method.md": "tests/docs/test_pages.py"}


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_or_say_why_not(page):
    for block in blocks_of(page):
        if block.language not in ("bash", "python"):
            continue
        if block.note.startswith(NOT_RUN):
            assert len(block.note) > len(NOT_RUN) + 5, f"{page}: a reason, please: {block.text[:60]}"
        else:
            assert page in RUN_BY, f"{page}: no test runs this block, and it doesn't say why:\n{block.text}"
        if block.language == "python":
            compile(block.text, page, "exec")
    assert page not in RUN_BY or (ROOT / RUN_BY[page]).is_file()
    assert all(block.note in ("", ENDLESS) or block.note.startswith(NOT_RUN) for block in blocks_of(page))


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_commands_and_options_exist(page):
    from mmcot.training.cli import COMMANDS, command_parser

    for block in blocks_of(page):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language == "bash" else ():
            words = re.sub(r"#.*", "", line).split()
            if words[:1] != ["mmcot"]:
                continue
            assert words[1] in COMMANDS, line
            known = command_parser(words[1])[0]._option_string_actions
            assert {word.split("=")[0] for word in words if word.startswith("--")} <= set(known), line


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http|#|mailto)([^)\s]+?)(?:#[^)]*)?\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_every_page_is_in_the_navigation():
    shown = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {Path(page).relative_to("docs").as_posix() for page in PAGES} == shown


def test_names_of_the_python_page_are_imported_as_it_says():
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for section in page.split("\n## ")[1:]:
        found: dict[str, object] = {}
        for line in re.findall(r"`(from [^`]+)`", section):
            exec(line, found)
        shown = {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)$", section, re.M)}
        assert shown and shown == set(found) - {"__builtins__"}, section.splitlines()[0]


def test_functions_of_the_python_page_say_what_their_arguments_are():
    missing = []
    for path in re.findall(r"^::: (mmcot\.training\S+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.M):
        module, _, name = path.rpartition(".")
        shown = getattr(importlib.import_module(module), name)
        doc = inspect.getdoc(shown) or ""
        described = set(re.findall(r"\w+", " ".join(re.findall(r"^    ([\w, ]+): ", doc, re.M))))
        if inspect.isfunction(shown):
            missing += [f"{name}({one})" for one in inspect.signature(shown).parameters if one not in described]
    assert not missing


def test_equations_hold(tmp_path):
    blocks = blocks_of("docs/method.md")
    assert len(blocks) == 3 and all(block.language == "python" for block in blocks)
    code = "\n".join(block.text for block in blocks)
    run_block(blocks[0]._replace(text=code), tmp_path, dict(os.environ))


def test_published_figures_are_the_published_ones():
    published = (ROOT / "training/paper/published.py").read_text(encoding="utf-8")
    figures = re.findall(r"\b\d\d\.\d\d\b", (ROOT / "docs/faq.md").read_text(encoding="utf-8"))
    assert len(figures) > 4 and all(figure in published for figure in figures)
