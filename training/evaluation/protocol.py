"""What a number has to say of itself, read from the predictions file's header and never guessed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.evaluation.predictions import read_header

DEFAULT_RATIONALE_FORMAT = "QCM-E"  # of files that don't say it: the paper's, for predictions of other programs


NOT_STATED = "not stated"


def protocol_of(path: str | Path, given: str | None = None, required: bool = True) -> str:
    """The protocol of a predictions file: its header's, or `given` where it has none.

    Args:
        required: False gives "not stated" where nobody says it: enough for comparing answers, not for a score.

    Raises:
        UserError: nobody says it, or the two contradict each other.
    """
    found = read_header(path).get("protocol")
    if found is None and given is None and not required:
        return NOT_STATED
    if found is None and given is None:
        raise UserError(
            f"{path} doesn't say how its rationales came about, and that is worth several points: add --protocol "
            "generated (decoded freely) or --protocol teacher_forced (see docs/protocols.md)"
        )
    if found is not None and given is not None and found != given:
        raise UserError(f"{path} says that its rationales are {found}, and --protocol says {given}")
    return found or given


def rationale_format_of(path: str | Path, given: str | None = None) -> str | None:
    """The prompt format of the reference rationales: the header's, else `given`, else the paper's."""
    facts = read_header(path)
    if given is not None:
        return given
    found = facts.get("rationale_format", DEFAULT_RATIONALE_FORMAT)
    if found is not None:
        from mmcot.processing.prompts_mmcot import split_format

        try:
            split_format(found)
        except ValueError as error:
            raise UserError(f"{path}: its header is damaged: 'rationale_format': {error}") from None
    return found


def told(path: str | Path) -> dict[str, Any]:
    """What a result keeps of the header: who answered, how, and which questions."""
    facts: Mapping[str, Any] = read_header(path)
    names = ("method", "model", "revision", "source", "split", "mode", "decoding", "images")
    found = {name: facts[name] for name in names if facts.get(name) is not None}
    if "mode" in found:
        found["answers"] = found.pop("mode")
    return found


def told_line(facts: Mapping[str, Any]) -> str:
    """The same in one line, for the top of a table: model and split; "" where neither is known."""
    names = ("model", "split", "source")
    return ", ".join(f"{name} {facts[name]}" for name in names if facts.get(name) is not None)
