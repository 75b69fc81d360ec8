"""A sampler behind HTTP: servers with vLLM's form of OpenAI's completions API.

The fields are those of vLLM's ``CompletionRequest`` and ``CompletionResponse``
(https://docs.vllm.ai/en/v0.26.0/api/vllm/entrypoints/openai/completion/protocol/).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from textgym.agents.distribution import ActionRules
from textgym.agents.sampling import SampledCompletion, SamplingRequest
from textgym.errors import InvalidArgumentError

from .client import Client, ServerError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CompletionServer"]

_PATH = "/v1/completions"
_IMPOSSIBLE = -9999.0
"""vLLM sends this for minus infinity, which JSON does not have."""


class CompletionServer:
    """A client of a vLLM server, or of another one with the same API; a ``Sampler``.

    Each completion is a request of its own, many at a time, so that the server can batch them. The
    prompt is sent as token ids and the completion is read as token ids: no text is tokenised again.

    The server must return log-probabilities of the distribution that it samples from. vLLM does so
    with ``--logprobs-mode processed_logprobs``; by default it returns those from before temperature
    and masks. And start it with ``--generation-config vllm``: otherwise the model's own
    generation_config.json adds end tokens that the environment does not know.

    What the server is told: the temperature; ``top_p``, ``top_k``, ``min_p`` and penalties at the
    values that switch them off; a seed; the token budget; to stop at the environment's EOS and at
    nothing else (``stop_token_ids`` and ``ignore_eos``), and not before ``min_new_tokens``
    (``min_tokens``); and a bias of −100, the lowest that the API has, for rows of the model's
    vocabulary that are no actions.

    Args:
        url: The server, such as ``"http://localhost:8000"``.
        model: The model's name there (``--served-model-name``, or what ``vllm serve`` was given).
        sync: Gives the policy's weights to the server, called with the model before each rollout;
            :class:`~textgym.agents.samplers.ReloadFromFolder` or a function of your own.
        num_threads: Requests under way at the same time.
        api_key: Sent as a bearer token; None sends none.
        timeout: Seconds of silence after which a request fails. A completion is sent when it is
            finished, so this is longer than one takes.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        model: str,
        sync: Callable[[PreTrainedModel], object],
        *,
        num_threads: int = 64,
        api_key: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise InvalidArgumentError("model", model, "must be the model's name on the server.")
        if not callable(sync):
            raise InvalidArgumentError(
                "sync",
                sync,
                "must be a function of the model that gives its weights to the server, such as "
                "ReloadFromFolder(url, folder).",
            )
        if not isinstance(num_threads, int) or num_threads < 1:
            raise InvalidArgumentError(
                "num_threads", num_threads, "must be a whole number of at least 1."
            )
        self.model = model
        self.sync = sync
        self.num_threads = int(num_threads)
        self._client = Client(url, api_key, timeout)
        self._num_rows: int | None = None  # of the model's vocabulary

    def update(self, model: PreTrainedModel) -> None:
        """Give the policy's weights to the server."""
        self._num_rows = model.get_output_embeddings().weight.shape[0]
        self.sync(model)

    def sample(
        self, requests: Sequence[SamplingRequest], rules: ActionRules, temperature: float
    ) -> list[SampledCompletion]:
        """Ask the server for all completions.

        Raises:
            ServerError: If a request fails, or an answer lacks something. The other requests are
                dropped.
        """
        with ThreadPoolExecutor(min(self.num_threads, max(len(requests), 1))) as pool:
            futures = [
                pool.submit(self._complete, request, rules, temperature) for request in requests
            ]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def _complete(
        self, request: SamplingRequest, rules: ActionRules, temperature: float
    ) -> SampledCompletion:
        payload = self._payload(request, rules, temperature)
        return _read_answer(self._client.post(_PATH, payload), request)

    def _payload(
        self, request: SamplingRequest, rules: ActionRules, temperature: float
    ) -> dict[str, Any]:
        payload = {
            "model": self.model,
            "prompt": request.prompt_ids,
            "n": 1,
            "seed": request.seed,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": request.token_budget,
            "min_tokens": min(rules.min_new_tokens, request.token_budget),
            "ignore_eos": True,  # The model's own; the environment's is the next line.
            "stop_token_ids": [] if rules.eos_token_id is None else [rules.eos_token_id],
            "logprobs": 1,  # The chosen token's is sent in any case.
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # For servers that do not know the former.
        }
        padded_rows = range(rules.num_actions, self._num_rows or rules.num_actions)
        if padded_rows:
            payload["logit_bias"] = {str(row): -100.0 for row in padded_rows}
        return payload


def _read_answer(answer: Any, request: SamplingRequest) -> SampledCompletion:
    """The completion in an answer.

    Raises:
        ServerError: If the answer is not one choice with token ids and log-probabilities.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _unusable("has not one choice, but n was 1", answer)
    choice = choices[0]
    if choice.get("finish_reason") not in ("stop", "length"):
        raise _unusable('has a finish_reason that is neither "stop" nor "length"', answer)
    read_prompt = choice.get("prompt_token_ids")
    if read_prompt is not None and read_prompt != request.prompt_ids:
        raise _unusable(
            f"is about another prompt than {request.prompt_ids}: the server must not add tokens or "
            "cut any off",
            answer,
        )
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        logprobs = {}
    values = logprobs.get("token_logprobs")
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise _unusable("lacks logprobs.token_logprobs, one number per token", answer)
    token_ids = choice.get("token_ids")
    if token_ids is None:
        token_ids = [_token_id(token) for token in logprobs.get("tokens") or []]
    if not isinstance(token_ids, list) or not all(
        isinstance(token, int) and not isinstance(token, bool) for token in token_ids
    ):
        raise _unusable(
            "lacks token ids, as token_ids or as logprobs.tokens of the form token_id:7: this "
            "needs a server that knows return_token_ids or return_tokens_as_token_ids",
            answer,
        )
    return SampledCompletion(
        token_ids, [-float("inf") if value <= _IMPOSSIBLE else value for value in values]
    )


def _token_id(token: Any) -> int | None:
    """7 for "token_id:7", None for anything else."""
    prefix, _, number = str(token).partition(":")
    return int(number) if prefix == "token_id" and number.isdecimal() else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unusable(fault: str, answer: Any) -> ServerError:
    shown = repr(answer)
    return ServerError(f"the server's answer {fault}: {shown[:500]}{'…' * (len(shown) > 500)}")
