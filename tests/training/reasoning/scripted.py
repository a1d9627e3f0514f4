"""A language model that answers by a script, in memory or behind an OpenAI-compatible endpoint on loopback."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mmcot.training.reasoning.calls import Completion


class ScriptedModel:
    """Answers `script(request)`; counts what it was asked. `stop_after` calls it is interrupted."""

    name, takes_images = "scripted", True

    def __init__(self, script, stop_after: int | None = None):
        self.script, self.asked, self.stop_after = script, [], stop_after

    def complete(self, requests):
        for position, request in enumerate(requests):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            said = self.script(request)
            if isinstance(said, dict):
                yield position, Completion("", len(request.prompt.split()), 0, said)
            else:
                yield position, Completion(said, len(request.prompt.split()), len(said.split()))


class ScriptedEndpoint:
    """`answers`: for each call in turn a text, a status code, (status, headers), "stall", or raw bytes; the last one
    goes on for ever. Use it in a `with` block; `url` is the base URL, `requests` holds (headers, body) of the calls,
    `most_at_once` how many were unanswered together. No text is sent before `meet` of them were.
    """

    def __init__(self, answers, meet: int = 1):
        self.meet, self.met = meet, threading.Event()
        self.answers, self.requests, self.lock = list(answers), [], threading.Lock()
        self.under_way = self.most_at_once = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append((dict(self.headers), body))
                    answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                    outer.under_way += 1
                    outer.most_at_once = max(outer.most_at_once, outer.under_way)
                    if outer.most_at_once >= outer.meet:
                        outer.met.set()
                self.answer(answer)

            def leave(self):
                """Before anything is sent: the caller's next call may be there before this thread goes on."""
                with outer.lock:
                    outer.under_way -= 1

            def answer(self, answer):
                status, headers = 200, {}
                if answer == "stall":
                    time.sleep(3)
                    self.leave()
                    return
                if isinstance(answer, tuple):
                    status, headers = answer
                    content = b"{}"
                elif isinstance(answer, int):
                    status, content = answer, b"{}"
                elif isinstance(answer, bytes):
                    content = answer
                else:
                    any(outer.met.wait(0.1) for _ in range(300))  # short waits: a paused process loses one alone
                    outer.met.set()
                    threading.Event().wait(0.02)  # tests replace time.sleep; calls beyond `meet` shall be seen too
                    content = json.dumps(chat_answer(answer)).encode()
                self.leave()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def chat_answer(text) -> dict:
    """What an endpoint sends; a dictionary of letters is sent as log-probabilities."""
    logprobs = None
    if isinstance(text, dict):
        likely = [{"token": letter, "logprob": value} for letter, value in text.items()]
        first = max(likely, key=lambda one: one["logprob"])
        logprobs, text = {"content": [{**first, "top_logprobs": likely}]}, first["token"]
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": logprobs}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
