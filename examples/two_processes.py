"""Answer a data set with several processes, each a share of it: two on a CPU, or one a GPU.

    torchrun --nproc_per_node 2 examples/two_processes.py runs/quiz/hub quiz/questions.csv --output predictions.jsonl

`predict` shares the questions among the processes that a launcher started, and goes on where it was cut off.
`mmcot predict` is the same: `torchrun --nproc_per_node 2 -m mmcot.training.cli predict …`. Training needs no more
either: `torchrun --nproc_per_node 2 -m mmcot.training.train RECIPE`.
"""

import argparse

from accelerate import PartialState

from mmcot.training import evaluate_predictions, load_problems, predict
from mmcot.training.evaluation.reading import read_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("questions", help="what `load_problems` reads")
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", default="predictions.jsonl")
    args = parser.parse_args()
    problems = load_problems(args.questions, args.split)
    predict(args.repository, problems, args.output)
    state = PartialState()  # of the processes that `predict` has joined
    if state.is_main_process:
        records = {problem["id"]: problem for problem in problems.remove_columns(["images"])}
        scores = evaluate_predictions(records, read_predictions(args.output), protocol="generated")
        print(f"{state.num_processes} processes: {scores['accuracy']['Avg']:.2f} % of {scores['n']['Avg']} questions")


if __name__ == "__main__":
    main()
