"""Repeat the paper's tables on any data: every row trained once, published beside measured.

  mmcot paper table2 data/scienceqa                 one stage, text: QCM→A, QCM→RA, QCM→AR
  mmcot paper table3 data/scienceqa                 two stages: text alone, captions, vision
  mmcot paper ablations data/scienceqa              stages, vision, image features, size
  mmcot paper all embedded:                         all of it with small networks, on a CPU
  mmcot paper aokvqa HuggingFaceM4/A-OKVQA          text alone and vision, on val
  mmcot paper table3 my-questions.jsonl --version v1 --rows text-only base num_train_epochs=5

OUTPUT receives features/ (once a backbone), runs/ROW/ (as `mmcot train` leaves them), results.json and results.md with
the rows that are finished. Run again, it skips what is done and goes on with what was cut off.
"""

import argparse

from mmcot.training.commands.source import SOURCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", choices=("table2", "table3", "ablations", "all", "aokvqa"), help="which rows")
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values before those of every row's recipe")
    parser.add_argument("--version", choices=("v1", "v5"), default="v5", help="of the paper (default: v5)")
    parser.add_argument(
        "--network",
        choices=("paper", "small"),
        help="the paper's, or small fresh ones for a CPU (default: small for embedded data, else paper)",
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these rows")
    parser.add_argument("--output", metavar="DIR", help="default: runs/paper-VERSION")
    parser.add_argument("--dry-run", action="store_true", help="print the rows and their recipes, and stop")


def run(args: argparse.Namespace) -> int:
    from mmcot.training.paper.markdown import format_tables
    from mmcot.training.paper.rows import recipe_name
    from mmcot.training.paper.tables import make_plan, make_tables, start_line, starts

    rows = [row for row in args.rows if "=" not in row]  # --rows takes key=value that stands behind it too
    options = {"version": args.version, "network": args.network, "rows": rows}
    options["overrides"] = [*args.overrides, *(row for row in args.rows if "=" in row)]
    output = args.output or f"runs/paper-{args.version}"
    if args.dry_run:
        plan = make_plan(args.table, args.source, output, **options)
        print(f"{len(plan.recipes)} rows on {plan.source}, networks: {plan.network}")
        for size, folder in starts(plan).items():
            print(f"  {start_line(size, folder)}")
        for row, recipe in plan.recipes.items():
            print(f"  {row:<26} recipe {recipe_name(row, plan.version):<28} {recipe.output_dir}")
        return 0
    content = make_tables(args.table, args.source, output, **options)
    print(format_tables(content))
    print(f"all of it: {output}/results.json")
    return 0
