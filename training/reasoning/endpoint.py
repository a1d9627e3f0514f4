"""Any OpenAI-compatible endpoint as a `LanguageModel`, through `huggingface_hub.InferenceClient`.

Larger models run so: vLLM, TGI or a cloud serves them, and nothing of that is written here.
"""

import base64
import io
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from urllib.parse import urlsplit

from mmcot.training.common import UserError
from mmcot.training.reasoning.calls import Completion, Request

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
LONGEST_WAIT = 60.0  # seconds between two tries, whatever Retry-After says


class Endpoint:
    """A chat model behind a URL.

    Args:
        url: base URL, such as "http://localhost:8000/v1".
        model: its name there.
        key_variable: environment variable that holds the key; the key itself is kept nowhere.
        concurrency: calls under way at a time.
        tries: of each call; 408, 409, 425, 429 and 5xx, timeouts and answers without a text are tried again, after
            Retry-After or with growing pauses.
        timeout: seconds a call may take.
        takes_images: send pictures, as data URLs.

    Raises:
        UserError: the URL is none, or (from `complete`) a call failed for good; what came before is kept.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        tries: int = 6,
        timeout: float = 120.0,
        takes_images: bool = True,
    ):
        from huggingface_hub import InferenceClient

        try:
            parts = urlsplit(url)
        except ValueError:  # brackets that don't close
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--endpoint {url!r}: an address looks like https://host/v1")
        if parts.username or parts.password or parts.query:
            raise UserError("--endpoint: keys don't belong into the address; put them into an environment variable")
        self.name, self.url, self.takes_images = model, url, takes_images
        self.concurrency, self.tries = concurrency, tries
        # a placeholder, for without any the client would send the user's Hub token to the endpoint
        self._client = InferenceClient(
            base_url=url, api_key=os.environ.get(key_variable) or "none", timeout=timeout, headers={}
        )

    def complete(self, requests: list[Request]) -> Iterator[tuple[int, Completion]]:
        with ThreadPoolExecutor(self.concurrency) as threads:
            calls = {threads.submit(self._call, request): position for position, request in enumerate(requests)}
            failure = None
            for call in as_completed(calls):
                if call.cancelled():
                    continue
                if call.exception() is None:
                    yield calls[call], call.result()
                elif failure is None:  # the calls under way are answered, and paid for: keep what they bring
                    failure = call.exception()
                    for other in calls:
                        other.cancel()
            if failure is not None:
                raise failure

    def _call(self, request: Request) -> Completion:
        from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

        for number in range(self.tries):
            pause = min(LONGEST_WAIT, 2.0**number) * random.uniform(0.5, 1)
            try:
                return self._once(request)
            except HfHubHTTPError as error:
                status = error.response.status_code
                reason = f"HTTP {status}"
                if status not in RETRIED:
                    raise UserError(f"{self.url}: {self.name} refuses the call: {_short(error)}") from None
                pause = _retry_after(error.response.headers.get("Retry-After"), pause)
            except OfflineModeIsEnabled:
                raise UserError(f"{self.url}: HF_HUB_OFFLINE=1 forbids every call: unset it for an endpoint") from None
            except InferenceTimeoutError:
                reason = "no answer in time"
            except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                reason = _short(error)  # a connection that broke, or an answer of another form
            if number < self.tries - 1:
                time.sleep(pause)
        raise UserError(
            f"{self.url}: {self.name} gave no answer in {self.tries} tries (last: {reason}); what came before is "
            "kept, the same command goes on"
        )

    def _once(self, request: Request) -> Completion:
        content = [{"type": "text", "text": request.prompt}]
        if self.takes_images:
            content = [
                {"type": "image_url", "image_url": {"url": data_url(image)}} for image in request.images
            ] + content
        options = {"max_tokens": request.max_new_tokens, "temperature": request.temperature}
        if request.seed is not None:
            options["seed"] = request.seed
        if request.letters:
            options |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        message = content if request.images and self.takes_images else request.prompt
        answer = self._client.chat_completion([{"role": "user", "content": message}], model=self.name, **options)
        choice, usage = answer.choices[0], answer.usage
        text = choice.message.content
        if not isinstance(text, str):
            raise ValueError("an answer without a text")
        log_probs = _letter_log_probs(choice, request.letters) if request.letters else {}
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
        return Completion(text.strip(), *(int(count or 0) for count in tokens), log_probs)


def _letter_log_probs(choice, letters: tuple[str, ...]) -> dict[str, float]:
    """Letter → log-probability as the first token; a letter that isn't among the likeliest is left out."""
    if choice.logprobs is None:
        raise UserError("--score-options: this endpoint gives no log-probabilities")
    found: dict[str, float] = {}
    for likely in choice.logprobs.content[0].top_logprobs:
        letter = likely.token.strip(" ().▁Ġ")
        if letter in letters:
            found[letter] = max(found.get(letter, float("-inf")), likely.logprob)
    return found


def data_url(image) -> str:
    """A picture as a PNG data URL, composed and turned as `load_image` does it."""
    from mmcot.processing import load_image

    content = io.BytesIO()
    load_image(image).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _retry_after(header: str | None, default: float) -> float:
    """Seconds to wait by a Retry-After header (seconds or a date), at most `LONGEST_WAIT`."""
    from email.utils import parsedate_to_datetime

    if not header:
        return default
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError):
            return default
    return min(LONGEST_WAIT, max(0.0, seconds))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
