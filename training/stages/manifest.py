"""Steps of a run that are done or not: a manifest in the folder that a step fills."""

import json
import time
from pathlib import Path
from typing import Any

from mmcot.training.common import write_json

MANIFEST = "manifest.json"


def step_is_done(folder: str | Path, identity: dict[str, Any]) -> bool:
    """Whether the step that writes `folder` was finished with the same settings.

    Raises:
        ValueError: it was finished, or begun, with others.
    """
    manifest = Path(folder) / MANIFEST
    if not manifest.exists():
        return False
    found = json.loads(manifest.read_text(encoding="utf-8"))
    other = [key for key in sorted({*identity, *found["settings"]}) if identity.get(key) != found["settings"].get(key)]
    if other:
        changes = ", ".join(f"{key}: {found['settings'].get(key)!r} → {identity.get(key)!r}" for key in other[:3])
        raise ValueError(f"{folder} holds a run with other settings ({changes}): choose another output_dir")
    return found["finished"]


def mark_step(folder: str | Path, identity: dict[str, Any], finished: bool, **facts: Any) -> None:
    """Writes the manifest of a step that begins or is finished."""
    from mmcot import __version__

    content = {"finished": finished, "settings": identity, "mmcot": __version__, "time": time.time(), **facts}
    write_json(Path(folder) / MANIFEST, content)
