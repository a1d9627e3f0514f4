"""Write captions of a data set's pictures, in the original project's layout.

  mmcot caption data/scienceqa --model Salesforce/blip-image-captioning-base --output data/scienceqa/captions.json
  mmcot caption data/scienceqa --model HuggingFaceTB/SmolVLM2-500M-Video-Instruct --output captions.json

captions.json is read with the folder that it lies in: train with use_caption=true. Cut off, the same command goes on
where it stopped.
"""

from mmcot.training.commands.source import SOURCE, add_source_arguments, problems_of


def add_arguments(parser) -> None:
    parser.add_argument("problems", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--model", required=True, help="captioning or image-text-to-text model: folder or Hub id")
    parser.add_argument("--output", required=True, metavar="FILE", help="captions, JSON")
    parser.add_argument("--split", default=None, help="split of the source (default: all)")
    parser.add_argument("--prompt", help="what the model is told (default: to describe the image, if it takes orders)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="limit of a caption (default: 64)")
    parser.add_argument("--num-beams", type=int, default=1, metavar="N", help="beams of the search (default: 1)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures at a time (default: 8)")
    parser.add_argument("--device", default=None, help="default: the first accelerator, else the CPU")
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        default="auto",
        help="auto: bfloat16 on a GPU that has it, else float32 (default)",
    )
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="only the first N problems")
    add_source_arguments(parser)


def run(args) -> int:
    from mmcot.training.reasoning.captions import write_captions

    names = ("prompt", "max_new_tokens", "num_beams", "batch_size", "device", "dtype")
    options = {name: getattr(args, name) for name in names}
    content = write_captions(problems_of(args, args.split), args.model, args.output, **options)
    print(f"{len(content['captions']):,} captions in {args.output}")
    return 0
