"""What a report reads: a run's folder or a predictions file, with its problems, curves and repository."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcot.training.common import MissingFileError, UserError


@dataclass
class ReportRun:
    """One run of a report.

    Attributes:
        name: in tables and legends.
        file: its predictions file.
        header: of that file.
        histories: stage → what was logged while it was trained (`step`, `loss`, `eval_loss`, …).
        settings: stage → what it was trained with.
        seconds: stage → seconds of training.
        repository: folder of its model, where there is one.
        blank: its answers to the same questions without their pictures, where the run asked for them.
    """

    name: str
    file: Path
    header: dict[str, Any]
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    repository: Path | None = None
    blank: Path | None = None


def open_run(place: str | Path, split: str | None = None, name: str | None = None) -> ReportRun:
    """A run's folder (`output_dir` of `mmcot train`), or a predictions file.

    Args:
        split: whose predictions to take of a folder; default: test, else val.

    Raises:
        MissingFileError: there is no such file or folder, or nothing was predicted in it.
    """
    from mmcot.training.evaluation.predictions import read_header
    from mmcot.training.stages.manifest import read_manifest

    path = Path(place)
    if path.is_file():
        run = ReportRun(name or path.stem, path, read_header(path))
        return _with_training(run, path.parent.parent) if path.parent.name == "answer" else run
    if not path.is_dir():
        raise MissingFileError(
            f"{path}: there is no such run: give the output_dir of a training, or a predictions file"
        )
    files = [path / "answer" / f"predictions_{one}.jsonl" for one in ([split] if split else ["test", "val"])]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        what = (
            "a repository: give the run's folder above it" if (path / "config.json").is_file() else "no finished run"
        )
        begun = read_manifest(path / "answer") if (path / "answer").is_dir() else None
        what = "not finished: run the same `mmcot train` again" if begun is not None else what
        hub = path / "hub"
        if begun is not None and begun["finished"] and split is None and (hub / "config.json").is_file():
            what = f"a run without questions to answer: `mmcot predict {hub} SOURCE --output FILE`, then report FILE"
        raise MissingFileError(f"{path}: is {what} (there is no {files[0].relative_to(path)})")
    return _with_training(ReportRun(name or path.absolute().name, file, read_header(file)), path)


def _with_training(run: ReportRun, folder: Path) -> ReportRun:
    from mmcot.training.stages.manifest import read_manifest

    for stage in ("rationale", "answer"):
        manifest = read_manifest(folder / stage) if (folder / stage).is_dir() else None
        if manifest is not None:
            run.histories[stage] = manifest.get("history") or []
            run.settings[stage] = manifest["settings"]
            if manifest.get("seconds") is not None:
                run.seconds[stage] = manifest["seconds"]
    if (folder / "hub" / "config.json").is_file():
        run.repository = folder / "hub"
    blank = run.file.with_name("predictions_test_blank.jsonl")
    if run.file.name == "predictions_test.jsonl" and blank.is_file():
        run.blank = blank
    return run


def open_runs(places: list[str], split: str | None = None) -> list[ReportRun]:
    """Runs given as PATH or NAME=PATH, with names that differ.

    Raises:
        UserError: two of the same name.
    """
    runs: list[ReportRun] = []
    for given in places:
        name, equals, path = given.partition("=")
        named = bool(equals) and not Path(given).exists()
        run = open_run(path if named else given, split, name if named else None)
        taken = {other.name for other in runs}
        if run.name in taken and not named:
            run.name = f"{Path(given).absolute().parent.name}/{run.name}"
        if run.name in taken:
            raise UserError(f"{given}: there is a run named {run.name!r} already: name it, as NAME={given}")
        runs.append(run)
    return runs


def differences(one: ReportRun, other: ReportRun) -> list[tuple[str, str, str]]:
    """What two runs differ on, as (setting, the one's, the other's): of their training and of their answering."""
    from mmcot.training.stages.fingerprints import CONTENT

    found = []
    for stage in ("rationale", "answer"):
        own, others = one.settings.get(stage), other.settings.get(stage)
        if own is None and others is None:
            continue
        if own is None or others is None:
            found.append((f"{stage} stage", *("trained" if some else "none" for some in (own, others))))
            continue
        for key in sorted({*own, *others}):
            if own.get(key) != others.get(key):
                values = (own.get(key), others.get(key))
                if all(isinstance(value, str) and value.startswith(CONTENT) for value in values):
                    found.append((f"{stage}: {key}", "one content", "another"))
                    continue
                found.append((f"{stage}: {key}", _shown(own.get(key)), _shown(others.get(key))))
    skipped = {"model", "fingerprint", "mmcot", "source", "stage"}
    for key in sorted({*one.header, *other.header} - skipped):
        if one.header.get(key) != other.header.get(key):
            found.append((f"answering: {key}", _shown(one.header.get(key)), _shown(other.header.get(key))))
    return found


def _shown(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    if "/" in text and Path(text).is_absolute():  # where something lay on this machine is nobody's business
        text = Path(text).name
    return text if len(text) <= 60 else f"{text[:57]}…"
