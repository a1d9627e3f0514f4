"""Turn the original project's checkpoints into a repository.

  mmcot convert original/rationale --answer original/answer --vision vit --output repositories/base-v5
  mmcot convert original/answer --stage answer --output repositories/base-v5-answer

ORIGINAL_DIR holds config.json of a plain T5 and pytorch_model.bin or model.safetensors, in either of the original's
key layouts. With --answer both stages become one two-stage repository. Where there is no tokenizer, the networks are
converted alone.
"""

from mmcot.training.common import UserError


def add_arguments(parser) -> None:
    parser.add_argument("original", metavar="ORIGINAL_DIR", help="checkpoint of the original (a stage)")
    parser.add_argument("output", nargs="?", metavar="OUT", help="folder of the repository")
    parser.add_argument("--output", dest="output_option", metavar="OUT", help="the same")
    parser.add_argument(
        "--stage", choices=("rationale", "answer", "one-stage"), help="what a single checkpoint is for"
    )
    parser.add_argument(
        "--answer", metavar="DIR", help="the answer stage's checkpoint; ORIGINAL_DIR is the rationale's"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer; default: ORIGINAL_DIR's")
    parser.add_argument(
        "--vision", help="backbone to add: detr, vit, clip, resnet or a checkpoint (needs its weights)"
    )
    parser.add_argument(
        "--rationale-format", default="QCM-E", help="prompt format of the rationale stage (v1: QCM-LE)"
    )
    parser.add_argument("--answer-format", default=None, help="of the answer stage (QCMG-A), or of one stage (QCM-A)")
    parser.add_argument("--use-caption", action="store_true", help="the weights were trained with captions")


def run(args) -> int:
    output = args.output or args.output_option
    if args.output and args.output_option:
        raise UserError(f"two folders are named: {args.output} and --output {args.output_option}; give one")
    if not output:
        raise UserError("where to? give OUT, a folder for the repository")
    if args.answer and args.stage:
        raise UserError("--stage is for a single checkpoint, and --answer makes two of them")
    from mmcot.training.hub.convert import convert

    model = convert(
        args.original,
        output,
        answer=args.answer,
        stage=args.stage,
        tokenizer=args.tokenizer,
        vision=args.vision,
        rationale_format=args.rationale_format,
        answer_format=args.answer_format,
        use_caption=args.use_caption,
    )
    print(f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters, in {output}")
    if model.processor is None:
        print(
            f"{args.original} holds no tokenizer, so there is no processor: convert again with --tokenizer to get one"
        )
    return 0
