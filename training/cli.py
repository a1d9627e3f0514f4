"""The `mmcot` command: each sub-command is a thin shell over a function that a notebook can call."""

import importlib
import os
import sys

# name: (module with add_arguments(parser) and run(args), one line of help); imported only when the command is called
COMMANDS = {
    "demo": ("demo", "see Multimodal-CoT work: make data, train three models, compare, ask (minutes on a laptop)"),
    "train": ("train", "train a recipe: the rationale stage, the answer stage, or both"),
    "features": ("features", "extract image features into a cache, or import the original project's"),
    "predict": ("predict", "write rationales and answers of a trained model for a set of problems"),
    "evaluate": ("evaluate_predictions", "score predictions in the paper's columns, or compare two sets of them"),
    "convert": ("convert", "turn the original project's checkpoints into a repository"),
    "reproduce": ("reproduce", "repeat a published result and compare"),
    "benchmark": ("benchmark", "time training and inference against the original's way"),
    "report": ("report", "draw predictions with their pictures, rationales and attention"),
    "app": ("app", "ask a model in the browser (needs the [demo] extra)"),
    "push": ("push", "publish a repository on the Hub"),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: mmcot COMMAND …\n\nMultimodal Chain-of-Thought: question and picture in, rationale and answer out."
        f"\n\ncommands:\n{lines}\n\n`mmcot COMMAND --help` tells more."
    )


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, or 2 for an error that the user can mend (one line on stderr)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        from mmcot import __version__

        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"mmcot: error: there is no command {argv[0]!r} (mmcot --help lists them)", file=sys.stderr)
        return 2
    return run_command(argv[0], argv[1:])


def run_command(name: str, argv: list[str]) -> int:
    """Parses the arguments of one command and runs it; see `main` for the exit status."""
    import argparse

    module_name, help_text = COMMANDS[name]
    module = importlib.import_module(f"mmcot.training.commands.{module_name}")
    parser = argparse.ArgumentParser(
        prog=f"mmcot {name}",
        description=(module.__doc__ or help_text).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args = parser.parse_intermixed_args(argv)  # key=value may stand before and after options
    try:
        return module.run(args) or 0
    except (ValueError, OSError) as error:
        if os.environ.get("MMCOT_TRACEBACK"):
            raise
        print(f"mmcot {name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mmcot {name}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
