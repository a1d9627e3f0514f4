"""`handler.py` of a repository on Inference Endpoints.

Put it beside config.json (`hf upload REPO examples/handler.py handler.py`), then

    curl $ENDPOINT -H "Authorization: Bearer $HF_TOKEN" -H "Content-Type: application/json" \\
      -d '{"inputs": {"question": "…", "choices": ["…", "…"], "image": "data:image/png;base64,…"}, "parameters": {}}'

`inputs` is a problem or a list of them; an image is base64 (with or without the `data:` prefix), or a list of such, or
null. `parameters` are the pipeline's: num_beams, max_new_tokens, mode, self_consistency, blank_image. Addresses are
refused: a server that fetches what strangers name reaches what strangers shouldn't.
"""

import base64
import binascii
from typing import Any

import torch
from transformers import pipeline


class EndpointHandler:
    """What Inference Endpoints looks for: made once with the repository's folder, called once a request."""

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.answer = pipeline("multimodal-cot", model=path, trust_remote_code=True, device=device)

    def __call__(self, data: dict[str, Any]) -> Any:
        """The pipeline's results; of a request that can't be answered, `{"error": why}`."""
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        try:
            problems = [with_pictures(problem) for problem in (inputs if isinstance(inputs, list) else [inputs])]
            results = self.answer(problems, **parameters)
        except (ValueError, TypeError, KeyError) as error:  # what the caller can mend
            return {"error": " ".join(str(error).split())}
        return results if isinstance(inputs, list) else results[0]


def with_pictures(problem: Any) -> dict[str, Any]:
    """A problem whose pictures are bytes."""
    if not isinstance(problem, dict) or "question" not in problem:
        raise ValueError("inputs: give a problem, {question, choices, image}, or a list of them")
    images = problem.get("image", problem.get("images"))
    images = images if isinstance(images, list) else [images]
    rest = {name: value for name, value in problem.items() if name not in ("image", "images")}
    return {**rest, "images": [decoded(image) for image in images if image]}


def decoded(image: Any) -> bytes:
    if not isinstance(image, str) or image.startswith(("http://", "https://", "/", "file:")):
        raise ValueError("image: send its bytes as base64")
    try:
        return base64.b64decode(image.split("base64,")[-1], validate=True)
    except binascii.Error as error:
        raise ValueError(f"image: isn't base64 ({error})") from None
