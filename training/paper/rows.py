"""The rows of the paper's tables: which recipe each one is, and which rows a table has."""

from mmcot.training.common import UserError

VERSIONS = ("v1", "v5")

TITLES = {
    "text-one-stage-qcm-a": "one stage, text: QCM→A",
    "text-one-stage-qcm-lea": "one stage, text: QCM→RA",
    "text-one-stage-qcm-ale": "one stage, text: QCM→AR",
    "text-only": "two stages, text alone",
    "captions-only": "two stages, captions",
    "base": "two stages, vision",
    "one-stage-qcm-a": "without two stages",
    "backbone-clip": "CLIP features",
    "backbone-detr": "DETR features",
    "backbone-resnet": "ResNet features",
    "one-stage-qcm-a-clip": "without two stages, CLIP",
    "one-stage-qcm-a-resnet": "without two stages, ResNet",
    "large": "large",
    "large-one-stage-qcm-a": "large without two stages",
    "large-text-only": "large without vision",
    "aokvqa-text-only": "A-OKVQA, text alone",
    "aokvqa": "A-OKVQA, vision",
}

# the first row of each table is what the others are tested against
_ONE_STAGE = ("text-one-stage-qcm-a", "text-one-stage-qcm-lea", "text-one-stage-qcm-ale")
_TWO_STAGES = ("text-only", "captions-only", "base")
TABLES = {
    "table2": {"v1": _ONE_STAGE, "v5": _ONE_STAGE},
    "table3": {"v1": _TWO_STAGES, "v5": _TWO_STAGES},
    "ablations": {
        "v1": (
            "base",
            "one-stage-qcm-a",
            "text-only",
            "backbone-clip",
            "backbone-resnet",
            "one-stage-qcm-a-clip",
            "one-stage-qcm-a-resnet",
            "large",
        ),
        "v5": (
            "base",
            "one-stage-qcm-a",
            "text-only",
            "backbone-clip",
            "backbone-detr",
            "backbone-resnet",
            "large",
            "large-one-stage-qcm-a",
            "large-text-only",
        ),
    },
    "aokvqa": {"v1": (), "v5": ("aokvqa-text-only", "aokvqa")},
}
ALL = ("table2", "table3", "ablations")  # of ScienceQA
TABLE_TITLES = {
    "table2": "Table 2: one stage, text alone. R: rationale, A: answer",
    "table3": "Table 3: two stages. Rationale (ROUGE-L), then answer (accuracy)",
    "ablations": "Ablations: stages, vision, image features, size",
    "aokvqa": "A-OKVQA, multiple choice, val",
}


def recipe_name(row: str, version: str) -> str:
    """The recipe of a row: `base` is `base-v5`; what the recipes don't say is of v5, others end in `-v1`."""
    return f"{row}-{version}" if version == "v1" or row in ("base", "large") else row


def tables_of(name: str) -> tuple[str, ...]:
    """The tables that "all" (those of ScienceQA), or the name of one, means."""
    if name != "all" and name not in TABLES:
        raise UserError(f"there is no table {name!r}: give one of {', '.join(TABLES)}, all")
    return ALL if name == "all" else (name,)


def rows_of(tables: tuple[str, ...], version: str, only: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The rows of some tables, each once, in order; `only` leaves out others.

    Raises:
        UserError: there is no such version, or no such row in these tables.
    """
    if version not in VERSIONS:
        raise UserError(f"there is no version {version!r} of the paper: give one of {', '.join(VERSIONS)}")
    rows = tuple(dict.fromkeys(row for table in tables for row in TABLES[table][version]))
    if not rows:
        raise UserError(f"{version} of the paper has no table {', '.join(tables)}: say --version v5")
    for row in only:
        if row not in rows:
            raise UserError(f"{', '.join(tables)} ({version}) has no row {row!r}; its rows: {', '.join(rows)}")
    return tuple(row for row in rows if not only or row in only)


def check_tested(recipe) -> None:
    """Refuses, before anything is trained, a recipe that would leave nothing to compare with the published figures.

    Raises:
        UserError: it answers no test split.
    """
    if recipe.test_split is None:
        raise UserError("test_split=null: published figures are compared with those of a test split: leave it out")
    if recipe.stages == "rationale":
        raise UserError("stages=rationale: published figures are compared with those of answers: leave it out")
