"""Options that would be ignored, and outputs that can't be written, are refused by name before the work."""

import argparse
from pathlib import Path

# options that name what a command writes
WRITTEN = {"output", "json", "html", "labels", "save_gate", "save_demonstrations"}


def given_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, str]:
    """Option's name in `args` → as it is written, of the options that are set to something else than their default."""
    return {
        action.dest: max(action.option_strings, key=len)
        for action in parser._actions
        if action.option_strings and getattr(args, action.dest, action.default) != action.default
    }


def add_partial(parser: argparse.ArgumentParser) -> None:
    """`--partial`, of the commands that read predictions and their problems."""
    parser.add_argument(
        "--partial", action="store_true", help="take what is predicted; leave out questions without a prediction"
    )


def refuse(args: argparse.Namespace, why: str, *names: str) -> None:
    """Refuses options that the command would not read, as in "--seed has no effect without --labels".

    Args:
        args: as `mmcot.training.cli.run_command` gives them, with `given` from `given_options`.
        why: the end of the sentence.
        names: of the options in `args`.

    Raises:
        UserError: one of them was given.
    """
    from mmcot.training.common import UserError

    given = getattr(args, "given", {})  # none where `run` is called without the command line
    for name in names:
        if name in given:
            raise UserError(f"{given[name]} has no effect {why}")


def check_outputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses a folder where a file shall be written, and a file where a folder is needed.

    Raises:
        UserError: naming the option, and what is in its way.
    """
    from mmcot.training.common import UserError

    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.dest not in WRITTEN or not action.option_strings or not value:
            continue
        said, path = f"{max(action.option_strings, key=len)} {value}", Path(value).absolute()
        if action.metavar != "DIR":
            if path.is_dir():
                raise UserError(f"{said}: is a folder: name a file")
            path = path.parent
        existing = next(place for place in (path, *path.parents) if place.exists())
        if not existing.is_dir():
            raise UserError(f"{said}: {existing} is a file, not a folder: choose another place")
