"""Ask a model in the browser: picture, question and options in; rationale, answer and where it looked out.

  mmcot app                          the demo's model, trained first if it isn't there (a minute or two)
  mmcot app runs/base                a run: its model, and its test questions with predictions in a second tab
  mmcot app user/name                a repository of the Hub
  mmcot app runs/base/hub --data my.jsonl --predictions base=a.jsonl --predictions text=b.jsonl

pip install 'mmcot[demo]' brings Gradio. The page is for this machine alone unless --host or --share say otherwise. At
the foot of the page "Use via API" tells how programs ask; with --mcp it is a tool for language models too.
"""

from importlib.util import find_spec
from pathlib import Path

from mmcot.training.commands.source import add_source_arguments, source_options
from mmcot.training.common import UserError


def add_arguments(parser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="repository (folder or Hub id) or output_dir of a training"
    )
    parser.add_argument("--data", metavar="SOURCE", help="questions of the second tab (default: the run's)")
    parser.add_argument("--split", default=None, help="of these questions")
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="predictions of these questions; a second file stands side by side",
    )
    parser.add_argument("--device", default=None, help="default: the first accelerator, else the CPU")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="of the page's address (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="a public address, through Gradio's tunnel")
    parser.add_argument("--mcp", action="store_true", help="serve it as an MCP tool too")
    parser.add_argument("--open", action="store_true", help="open the browser")
    add_source_arguments(parser)


def run(args) -> int:
    from mmcot.training.app.opening import check_there, open_app
    from mmcot.training.app.page import check_serving, serve

    predictions: dict[str, Path] = {}
    for given in args.predictions:
        name, equals, file = given.partition("=")
        name = name if equals else Path(given).stem
        if name in predictions:
            raise UserError(f"--predictions {given}: there is a run named {name!r} already: name it, as NAME=FILE")
        predictions[name] = Path(file if equals else given)
    if len(predictions) > 2:
        raise UserError("--predictions: two runs stand side by side, not more")
    if args.model is not None and find_spec("gradio") is None:
        check_there(args.model)  # what is to be installed helps nobody whose path is wrong
    check_serving(args.host, args.port, mcp=args.mcp)
    page = open_app(
        args.model,
        device=args.device,
        data=args.data,
        split=args.split,
        predictions=predictions or None,
        source_options=source_options(args),
    )
    serve(
        page,
        host=args.host,
        port=args.port,
        share=args.share,
        mcp=args.mcp,
        open_browser=args.open,
        quiet=args.quiet,
    )
    return 0
