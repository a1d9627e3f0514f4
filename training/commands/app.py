"""Ask a model in the browser: picture, question and options in, rationale, answer and scores out.

pip install 'mmcot[demo]' && mmcot app mmcot-demo/hub
"""


def add_arguments(parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="repository: folder or Hub id")
    parser.add_argument("--device", default=None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)


def run(args) -> int:
    from mmcot.training.app import build_app

    build_app(args.model, args.device).launch(server_name=args.host, server_port=args.port)
    return 0
