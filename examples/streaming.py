"""Show the rationale while it is written, then the answer.

python examples/streaming.py runs/quiz/hub "What colour is the circle?" red blue green --image quiz/images/1.png
"""

import argparse
import threading
from collections.abc import Iterator

from transformers import AutoModel, AutoProcessor, TextIteratorStreamer


def stream(model, processor, problem: dict, **options) -> Iterator[str | dict]:
    """Pieces of the rationale as they are written, and at last the result as the pipeline gives it."""
    streamer = TextIteratorStreamer(processor.tokenizer, skip_special_tokens=True, timeout=60)
    inputs, outputs, errors = processor([problem]).to(model.device), [], []

    def work():
        try:
            outputs.append(model.generate(**inputs, streamer=streamer, **options))
        except BaseException as error:  # told by the thread that listens
            errors.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if errors:
        raise errors[0]
    yield processor.post_process(outputs[0], [problem])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("question")
    parser.add_argument("choices", nargs="+")
    parser.add_argument("--context", default="")
    parser.add_argument("--image")
    args = parser.parse_args()
    model = AutoModel.from_pretrained(args.repository, trust_remote_code=True).eval()
    if not hasattr(model, "rationale"):
        parser.error(f"{args.repository} has one stage, which writes no rationale before it answers")
    processor = AutoProcessor.from_pretrained(args.repository, trust_remote_code=True)
    problem = {name: getattr(args, name) for name in ("question", "choices", "context", "image")}
    for piece in stream(model, processor, problem):
        if isinstance(piece, str):
            print(piece, end="", flush=True)
        else:
            print(f"\n({piece['answer']}) {piece['answer_text']}")


if __name__ == "__main__":
    main()
