"""Steps of a run that are done or not: each leaves a manifest, which says what it was made from."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError, write_json
from mmcot.training.stages.fingerprints import CONTENT, UNKNOWN

MANIFEST = "manifest.json"


def manifest_of(place: str | Path) -> Path:
    """The manifest of a step: inside of the folder that it fills, beside a file that it writes."""
    path = Path(place)
    return path.with_name(f"{path.stem}.{MANIFEST}") if path.suffix in (".jsonl", ".json") else path / MANIFEST


def read_manifest(place: str | Path) -> dict[str, Any] | None:
    """A step's manifest: `finished`, `settings` and what else it tells; None where the step wasn't begun.

    Raises:
        UserError: the file is damaged.
    """
    file = manifest_of(place)
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found["settings"], dict) or not isinstance(found["finished"], bool):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{file}: is damaged, so nothing tells whether this step is done; remove it, and the step is made again "
            "(a training goes on from its last checkpoint)"
        ) from None
    return found


def changes(settings: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """How two sets of settings differ, a text each. What isn't known any more differs from nothing; a key that an
    earlier version didn't have was at its default."""
    from mmcot.training.stages.recipe import TRAINING_DEFAULTS, Recipe

    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)} | TRAINING_DEFAULTS
    found = []
    for key in sorted({*identity, *settings}):
        old, new = settings.get(key), identity.get(key)
        if old == new or UNKNOWN in (old, new) or (key not in settings and key in defaults and new == defaults[key]):
            continue
        if all(isinstance(value, str) and value.startswith(CONTENT) for value in (old, new)):
            found.append(f"{key}: the content is another one")
        else:
            found.append(f"{key}: {_shown(old)} → {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    return value.strip() if isinstance(value, str) and value.startswith(CONTENT) else f"{value!r:.80}"


def step_is_done(place: str | Path, identity: dict[str, Any]) -> bool:
    """Whether the step that fills `place` was finished with the same settings.

    Raises:
        UserError: it was finished, or begun, with others; or its manifest is damaged.
    """
    found = read_manifest(place)
    if found is None:
        return False
    other = changes(found["settings"], identity)
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise UserError(
            f"{place} holds a run with other settings ({', '.join(other[:3])}{more}): choose another output_dir"
        )
    return found["finished"]


def mark_step(place: str | Path, identity: dict[str, Any], finished: bool, **facts: Any) -> None:
    """Writes the manifest of a step that begins or is finished."""
    from mmcot import __version__

    content = {"finished": finished, "settings": identity, "mmcot": __version__, "time": time.time(), **facts}
    write_json(manifest_of(place), content)
