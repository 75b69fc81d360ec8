"""How the weights of the policy get into a vLLM server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textgym.agents.inputs import check_folder
from textgym.agents.lora import merged
from textgym.checks import check_path

from .client import Client

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ReloadFromFolder"]


class ReloadFromFolder:
    """Writes the weights to the folder that the server was started with; the server reads it again.

    Trainer and server share the folder, on one disk or a network drive. Adapters are added to the
    weights first. The server drops its prefix cache, which belongs to the old weights. It must be
    started with ``VLLM_SERVER_DEV_MODE=1``, which opens the two endpoints that this needs
    (``/collective_rpc`` with ``reload_weights``, and ``/reset_prefix_cache``; see
    https://docs.vllm.ai/en/latest/features/sleep_mode/). They can do anything: let no one else
    reach the server.

    This is simple, and slow for large models: each rollout writes and reads all weights once.
    vLLM can also take them from GPU to GPU (https://docs.vllm.ai/en/latest/examples/rl/): write a
    function of the model that does so, and pass it as ``sync``.

    Args:
        url: The server, such as ``"http://localhost:8000"``.
        folder: What ``vllm serve`` was given: a Hugging Face folder, with the tokenizer.
        api_key: Sent as a bearer token; None sends none.
        timeout: Seconds that reloading may take.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self, url: str, folder: str | Path, api_key: str | None = None, timeout: float = 600.0
    ) -> None:
        check_folder("folder", folder)
        self.folder = check_path("folder", folder)
        self._client = Client(url, api_key, timeout)

    def __call__(self, model: PreTrainedModel) -> None:
        """Write the weights of a model, and let the server read them.

        Raises:
            ServerError: If the server does not.
        """
        merged(model).save_pretrained(self.folder)
        self._client.post("/collective_rpc", {"method": "reload_weights"})
        self._client.post("/reset_prefix_cache", {})
