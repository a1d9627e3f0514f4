"""The `mmcot` command: each sub-command is a module of `commands/`, a thin shell over a function for notebooks too."""

import argparse
import atexit
import difflib
import errno
import gc
import importlib
import os
import sys

from mmcot.training.commands.options import WRITTEN, check_outputs, given_options
from mmcot.training.common import full_disk, is_disk_full, printable

# name: (module of commands/ with add_arguments(parser) and run(args), one line of help); imported only when called
COMMANDS = {
    "demo": ("demo", "see Multimodal-CoT work: make data, train three models, compare, ask (minutes on a laptop)"),
    "check": ("check", "look a data set over before training: columns, splits, pictures, lengths, duplicates"),
    "train": ("train", "train a recipe: the rationale stage, the answer stage, or both"),
    "features": ("features", "extract image features into a cache, or import the original project's"),
    "predict": ("predict", "write rationales and answers of a trained model for a set of problems"),
    "evaluate": ("evaluate_predictions", "score predictions in the paper's columns, or compare two sets of them"),
    "reason": ("reason", "make any other model reason: direct, few-shot, zero-shot, auto-cot, …"),
    "compare": ("compare", "several runs in one table, with paired tests"),
    "probe": ("probe", "ask again with another picture, order or rationale: do answers follow from them?"),
    "errors": ("errors", "draw wrong answers, label them, count hallucinations and what another run corrected"),
    "caption": ("caption", "write captions of a data set's pictures"),
    "distill": ("distill", "let a teacher write rationales to train on"),
    "convert": ("convert", "turn the original project's checkpoints into a repository"),
    "reproduce": ("reproduce", "repeat a published result and compare"),
    "paper": ("paper", "repeat the paper's tables on any data"),
    "benchmark": ("benchmark", "time training and inference against the original's way"),
    "report": (
        "report",
        "write a page about runs: tables, curves, calibration, right and wrong answers with attention",
    ),
    "app": ("app", "ask a model in the browser, and leaf through its answers (needs the [demo] extra)"),
    "push": ("push", "publish a repository on the Hub"),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: mmcot COMMAND …\n\nMultimodal Chain-of-Thought: question and picture in, rationale and answer out."
        f"\n\ncommands:\n{lines}\n\n`mmcot COMMAND --help` tells more. To begin: `mmcot demo`."
    )


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, or 2 for an error that the user can mend (one line on stderr)."""
    if argv is None:
        lighten_process()
        argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        from mmcot import __version__

        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean `mmcot {close[0]}`?" if close else "`mmcot --help` lists them"
        print(f"mmcot: error: there is no command {argv[0]!r}: {hint}", file=sys.stderr)
        return 2
    return run_command(argv[0], argv[1:])


def lighten_process() -> None:
    """For a process that runs one command and ends: Python looks less often for garbage among the hundreds of
    thousands of objects that libraries make while they are imported and keep for good, and not at all when it ends."""
    gc.set_threshold(10_000, 20, 10)
    atexit.register(gc.freeze)


class CommandParser(argparse.ArgumentParser):
    """Help that begins with what the command does and with commands to copy; then usage, the rest and the options."""

    def format_help(self) -> str:
        paragraphs = (self.description or "").split("\n\n")
        first = [text for i, text in enumerate(paragraphs) if i == 0 or text.startswith("  ")]
        rest, whole = [text for text in paragraphs if text not in first], self.description
        self.description = "\n\n".join(rest) or None
        try:
            return "\n\n".join([*first, super().format_help()])
        finally:
            self.description = whole

    def error(self, message: str):
        """As argparse; an option that doesn't exist comes with the one that was probably meant."""
        what, _, unknown = message.partition("unrecognized arguments: ")
        option = unknown.split(" ")[0].partition("=")[0]
        close = (
            difflib.get_close_matches(option, self._option_string_actions, 1, 0.7) if option.startswith("-") else []
        )
        if close and not what:
            message += f": did you mean {close[0]}?"
        elif option.startswith("--") and not what and any(action.metavar == "key=value" for action in self._actions):
            key, equals, value = unknown.removeprefix("--").partition("=" if "=" in unknown.split(" ")[0] else " ")
            message += f": keys of a recipe are written {key}={value.split(' ')[0] or '…'}"
        super().error(message)


def command_parser(name: str) -> tuple[argparse.ArgumentParser, object]:
    """The parser of a command, and its module."""
    module_name, help_text = COMMANDS[name]
    module = importlib.import_module(f"mmcot.training.commands.{module_name}")
    parser = CommandParser(
        prog=f"mmcot {name}",
        description=(module.__doc__ or help_text).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    output = parser.add_argument_group("what is shown")
    loudness = output.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="only warnings, errors and the result")
    loudness.add_argument("--verbose", action="store_true", help="also what transformers and the Hub report")
    output.add_argument(
        "--traceback", action="store_true", help="where an error came from, in full (or set MMCOT_TRACEBACK=1)"
    )
    return parser, module


def run_command(name: str, argv: list[str]) -> int:
    """Parses the arguments of one command and runs it; see `main` for the exit status."""
    parser, module = command_parser(name)
    args = parser.parse_intermixed_args(argv)  # key=value may stand before and after options
    args.given = given_options(parser, args)
    set_verbosity(quiet=args.quiet, verbose=args.verbose)
    try:
        check_outputs(parser, args)
        return module.run(args) or 0
    except KeyboardInterrupt:
        print(f"mmcot {name}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        expected = getattr(error, "user_error", False) or _of_the_system(error)
        if not expected or args.traceback or os.environ.get("MMCOT_TRACEBACK"):
            raise
        bare = is_disk_full(error) and not getattr(error, "user_error", False)
        told = _full_disk(args, error) if bare else str(error)
        print(f"mmcot {name}: error: {printable(' '.join(told.split()))}", file=sys.stderr)
        return 2


def _of_the_system(error: Exception) -> bool:
    """Whether the machine refuses: no room, no right to read or write there."""
    refusals = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
    return (isinstance(error, OSError) and error.errno in refusals) or is_disk_full(error)


def _full_disk(args: argparse.Namespace, error: Exception) -> str:
    """The line for a full disk that nobody named: with the error's file, else the fullest of the places written to."""
    import shutil
    import tempfile
    from pathlib import Path

    if getattr(error, "filename", None):
        return full_disk(error.filename)
    caches = os.environ.get("HF_DATASETS_CACHE") or os.environ.get("HF_HOME") or Path.home() / ".cache"
    written = [value for key, value in vars(args).items() if key in WRITTEN and value]
    free = {}
    for place in [*written, caches, tempfile.gettempdir()]:
        path = Path(place).absolute()
        free[str(place)] = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
    return full_disk(min(free, key=free.__getitem__))


def set_verbosity(quiet: bool = False, verbose: bool = False) -> None:
    """What the command line shows of the package's and its libraries' log, on stderr.

    Our own lines are shown, the libraries' warnings too; `quiet` leaves warnings, without progress bars; `verbose`
    shows all. Set through the variables that transformers, datasets and huggingface_hub read when they are imported.
    """
    import logging

    from mmcot.training.common import log_to_screen

    if int(os.environ.get("RANK", "0")) > 0:  # of several processes the first one speaks
        quiet, verbose = True, False
    logger = logging.getLogger("mmcot")
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    log_to_screen()
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # notes between torch and its add-ons
    if verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
    if not sys.stderr.isatty():  # in a log, bars are a line each half minute
        os.environ.setdefault("TQDM_MININTERVAL", "30")
        os.environ.setdefault("TQDM_MAXINTERVAL", "30")
    if quiet:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")


if __name__ == "__main__":
    sys.exit(main())
