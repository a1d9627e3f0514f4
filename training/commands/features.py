"""Compute the image features of a frozen backbone once, for all runs that read them.

  mmcot features data/scienceqa --backbone detr --output features/detr
  torchrun --nproc_per_node 2 -m mmcot.training.cli features data/scienceqa --backbone vit --output features/vit
  mmcot features data/scienceqa --backbone vit --backbone facebook/dinov2-base --output features/two
  mmcot features --import-original vit.pth --name-map name_map.json --output features/vit

A backbone goes over the pictures of any problem source, or of a folder, into a cache; --import-original puts the
original project's released feature files into the same kind of cache.
"""

import argparse

from mmcot.training.commands.options import refuse
from mmcot.training.commands.source import SOURCE, add_source_arguments, source_options
from mmcot.training.common import UserError
from mmcot.training.features.extract import DTYPES, extract_features


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", nargs="?", help=f"{SOURCE}; or a folder of pictures")
    parser.add_argument(
        "--backbone",
        action="append",
        help="detr, vit, clip, resnet, or an image model: its folder or Hub id; several join their features",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the cache's folder; filled up if it exists")
    parser.add_argument("--split", help="only this split of the source")
    parser.add_argument(
        "--image-rule", choices=("all", "original"), default="all", help="which pictures of a question"
    )
    parser.add_argument("--vision-feature", choices=("last_hidden_state", "pooler_output"), help="output to keep")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures a step (default: 32)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="to store in (default: float16)")
    parser.add_argument("--device", help="cpu, cuda, …; a GPU if there is one")
    parser.add_argument("--num-workers", type=int, help="processes that decode pictures")
    parser.add_argument("--import-original", metavar="FILE", help="detr.npy, clip.npy, resnet.npy or vit.pth")
    parser.add_argument("--name-map", metavar="FILE", help="name_map.json, which comes with the released features")
    parser.add_argument("--checkpoint", metavar="DIR", help="refuse features that this checkpoint can't take")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.import_original:
        if not args.name_map:
            raise UserError("--import-original needs --name-map, the name_map.json that comes with the features")
        if len(args.backbone or ()) > 1:
            raise UserError("--import-original takes one --backbone: each of the released files is of one")
        if args.source:
            raise UserError("--import-original takes no SOURCE: the released features come without their pictures")
        names = ("split", "image_rule", "vision_feature", "batch_size", "device", "num_workers")
        refuse(args, "with --import-original", *names, "columns", "allow_urls", "allow_outside")
        from mmcot.training.features.original import import_original

        cache = import_original(
            args.import_original,
            args.name_map,
            args.output,
            backbone=args.backbone[0] if args.backbone else None,
            checkpoint=args.checkpoint,
            dtype=args.dtype,
        )
    else:
        if not args.source or not args.backbone:
            raise UserError("name a SOURCE and a --backbone, or --import-original FILE --name-map FILE")
        refuse(args, "without --import-original", "checkpoint", "name_map")
        cache = extract_features(
            args.source,
            args.backbone if len(args.backbone) > 1 else args.backbone[0],
            args.output,
            split=args.split,
            image_rule=args.image_rule,
            **source_options(args),
            vision_feature=args.vision_feature,
            batch_size=args.batch_size,
            dtype=args.dtype,
            device=args.device,
            num_workers=args.num_workers,
        )
    print(f"{cache.path}: {cache.describe()}")
    return 0
