"""A real HTTP server that samples with a model and answers in the form of vLLM's completions API.

It shares no code with the agents: its own softmax, its own masks, one whole forward pass per token.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # The client asks for all rows at once; the usual 5 may be too few.


class CompletionServer:
    """Serves a model on a free port while it is entered.

    Attributes:
        payloads: The completion requests so far.
        paths: The paths of all requests so far.
        keys: Their ``Authorization`` headers.
        most_at_once: Largest number of requests that were under way at the same time.
        temperature: Used instead of that of the requests, unless it is None.
        top_k: Only the k most probable tokens are sampled, unless it is None.
        raw_logprobs: Answer with log-probabilities from before temperature and masks.
        alter: A function of a choice and its request that may change the choice.
        status: Answer with this status and no completion, unless it is 200.
        body: Answer with this instead of JSON, unless it is None.
        gate: Requests wait until it is set.
    """

    def __init__(self, model: Any, folder: Path | None = None) -> None:
        self.model, self.folder = model.eval(), folder
        self.payloads: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.most_at_once = self._at_once = 0
        self.temperature: float | None = None
        self.top_k: int | None = None
        self.raw_logprobs = False
        self.alter: Callable[[dict[str, Any], dict[str, Any]], Any] = lambda choice, payload: None
        self.status = 200
        self.body: bytes | None = None
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.keys.append(self.headers["Authorization"])
                status, answer = server.answer(self.path, payload)
                body = b"" if answer is None else json.dumps(answer).encode()
                body = body if server.body is None else server.body
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except ConnectionError:
                    pass  # The client has given up.

            def log_message(self, *args: Any) -> None:
                pass

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> CompletionServer:
        # Short polls: shutdown waits for one.
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()

    def load(self, model: Any) -> None:
        """Take over the weights of a model of the same kind."""
        self.model.load_state_dict(model.state_dict())

    def answer(self, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        with self._lock:
            self.paths.append(path)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self.gate.wait()
            if self.status != 200:
                return self.status, {"error": {"message": "the engine is out of order"}}
            with self._lock:
                if path == "/v1/completions":
                    self.payloads.append(payload)
                    return 200, {"object": "text_completion", "choices": [self.choice(payload)]}
                if path == "/collective_rpc" and payload == {"method": "reload_weights"}:
                    from transformers import AutoModelForCausalLM

                    self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()
                    return 200, {"results": [None]}
                if path == "/reset_prefix_cache":
                    return 200, None
            return 404, {"detail": "Not Found"}
        finally:
            with self._lock:
                self._at_once -= 1

    @torch.no_grad()
    def choice(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Complete one prompt."""
        generator = torch.Generator().manual_seed(payload["seed"])
        temperature = self.temperature or payload["temperature"]
        token_ids: list[int] = []
        logprobs: list[float] = []
        reason, stop = "length", payload["stop_token_ids"]
        while len(token_ids) < payload["max_tokens"]:
            ids = torch.tensor([payload["prompt"] + token_ids])
            raw = self.model(ids).logits[0, -1].double()
            logits = raw.clone()
            for token, bias in payload.get("logit_bias", {}).items():
                logits[int(token)] += bias
            if len(token_ids) < payload["min_tokens"]:
                logits[stop] = -torch.inf
            logits /= temperature
            if self.top_k is not None:
                logits[logits < logits.topk(self.top_k).values[-1]] = -torch.inf
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            token_ids.append(token)
            logprobs.append((raw if self.raw_logprobs else logits).log_softmax(-1)[token].item())
            if token in stop:
                reason = "stop"
                break
        choice = {
            "index": 0,
            "text": "",
            "finish_reason": reason,
            "stop_reason": token_ids[-1] if reason == "stop" else None,
            "logprobs": {
                "tokens": [f"token_id:{token}" for token in token_ids],
                "token_logprobs": logprobs,
            },
            "prompt_token_ids": payload["prompt"],
            "token_ids": token_ids,
        }
        return self.alter(choice, payload) or choice
