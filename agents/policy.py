"""A causal language model as a policy over tokens, with a value head."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from textgym.errors import InvalidArgumentError

from .distribution import ActionRules, action_logprobs, masked_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from textgym.models.incremental import IncrementalLanguageModel

__all__ = [
    "Evaluation",
    "LanguageModelPolicy",
    "position_ids_from_mask",
]


class Evaluation(NamedTuple):
    """What a policy says about given completions, one number per completion token.

    Each tensor is float32 of shape (batch, num_steps) and zero where no token was generated.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


def position_ids_from_mask(attention_mask: Tensor) -> Tensor:
    """Positions that count each row's own tokens from 0, wherever its padding lies.

    Example:
        >>> position_ids_from_mask(torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])).tolist()
        [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]

    Args:
        attention_mask: True or 1 at tokens, (batch, num_tokens).

    Returns:
        int64 (batch, num_tokens); what stands at padding is never attended to.
    """
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


class LanguageModelPolicy(nn.Module):
    """A causal language model with a scalar value head on its last hidden state.

    The value head starts at zero, so that the first advantages are those of a critic that knows
    nothing, instead of those of a random one. The module stays in evaluation mode: with dropout
    the network that is updated is another one than the network that sampled, and the probability
    ratio of PPO would differ from 1 before the first update. While the policy runs it, a model
    with PyTorch's fused attention uses :func:`textgym.models.kernels.fast_sdpa` in its place.

    Args:
        model: Any Hugging Face causal language model; it is used as it is, not copied.
        rules: Which actions are legal. By default, every token that the model knows.
        temperature: Divides the logits, in sampling and in training.
        autocast_dtype: Runs the language model under autocast in this dtype; None switches it
            off. Logits, values and losses are float32 either way.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rules: ActionRules | None = None,
        temperature: float = 1.0,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        from textgym.models.kernels import fast_attention  # on use: slow to import

        super().__init__()
        vocab_size, hidden_size = model.get_output_embeddings().weight.shape
        self.model = model
        # Without the usual initialisation, which would move torch's global generator.
        self.value_head = nn.utils.skip_init(nn.Linear, hidden_size, 1, device=model.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.rules = rules or ActionRules(num_actions=vocab_size)
        self.temperature = temperature
        self.autocast_dtype = autocast_dtype
        self._attention = fast_attention(model)
        self._reader: IncrementalLanguageModel | None = None
        self._parameters_of_model = set(inspect.signature(model.forward).parameters)
        if self.rules.num_actions > vocab_size:
            raise InvalidArgumentError(
                "policy",
                type(model).__name__,
                f"the model knows {vocab_size} tokens, but the environment has "
                f"{self.rules.num_actions} actions: use the tokenizer of the model in the "
                "environment (tokenizer=...).",
            )
        self.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, num_logits: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits and values of whole sequences, in one forward.

        Args:
            input_ids: int64 (batch, num_tokens), padded on any side.
            attention_mask: True at tokens, (batch, num_tokens).
            num_logits: Read out only the last so many columns; None reads out all.

        Returns:
            Logits (batch, num_logits, vocab) and values (batch, num_logits), both float32. Column
            t speaks about the token after column t, and about the state that ends with it.
        """
        logits, values = self._read_out(input_ids, attention_mask, num_logits or input_ids.shape[1])
        return logits.float(), values

    def evaluate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
    ) -> Evaluation:
        """Log-probabilities, entropies and values of given completions.

        With prompts padded on the left and completions on the right, all completions share the
        last ``num_steps`` columns, and only these are read out. Each token is predicted one
        column before its own, so the last column is not needed as an input::

            input_ids        . a b | c d .      prompt "a b", completion "c d"
                             e f g | h i j      prompt "e f g", completion "h i j"
            fed              . a b   c d        the first five of six columns
            read out             b   c d        they predict  c d .
                                 g   h i                      h i j
            completion_mask                                   1 1 0
                                                              1 1 1

        Args:
            input_ids: int64 (batch, num_tokens), laid out as above.
            attention_mask: True at tokens, (batch, num_tokens).
            completion_mask: True at generated tokens, bool (batch, num_steps).

        Returns:
            Three float32 tensors of shape (batch, num_steps), zero outside the mask.
        """
        num_steps = completion_mask.shape[1]
        logits, values = self._read_out(input_ids[:, :-1], attention_mask[:, :-1], num_steps)
        num_generated = torch.arange(num_steps, device=logits.device)
        logprobs, entropy = action_logprobs(
            logits, input_ids[:, -num_steps:], num_generated, self.rules, self.temperature
        )
        # The fill token may be an illegal one: masked_fill keeps its -inf out of every sum, and,
        # unlike a product with the mask, out of every gradient.
        outside = ~completion_mask
        return Evaluation(
            logprobs.masked_fill(outside, 0.0),
            entropy.masked_fill(outside, 0.0),
            values.masked_fill(outside, 0.0),
        )

    @torch.no_grad()
    def next_token_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of the token that follows.

        Args:
            input_ids: int64 (batch, num_tokens), padded on the left.
            attention_mask: True at tokens, (batch, num_tokens).

        Returns:
            float32 (batch, vocab).
        """
        return self._run(input_ids, attention_mask, num_logits=1).logits[:, -1].float()

    def next_token_logprobs(self, logits: Tensor, num_generated: Tensor) -> Tensor:
        """The distribution that actions are sampled from.

        Args:
            logits: Of the next token, (batch, vocab).
            num_generated: How many tokens each completion has so far, integer, () or (batch,).

        Returns:
            Log-probabilities float32 (batch, vocab).
        """
        return masked_logprobs(logits, num_generated, self.rules, self.temperature)

    @contextmanager
    def reading(self) -> Iterator[IncrementalLanguageModel]:
        """Let texts be read that grow token by token, with the weights as they are now.

        Within the context no gradient is recorded, and under autocast the weights are brought to
        its dtype once, not in every step.

        Raises:
            InvalidArgumentError: If the model cannot be read token by token.
        """
        from textgym.models.incremental import IncrementalLanguageModel  # on use: slow to import

        # Not in inference mode: autocast remembers no weights there.
        with torch.no_grad(), self._autocast(), self._attention:
            if self._reader is None:
                self._reader = IncrementalLanguageModel(self.model)
            try:
                yield self._reader
            finally:
                self._reader.forget()
                # The weights cast here have no gradient. PyTorch 2.9 would train on these copies if
                # the caller has an autocast of its own around both.
                torch.clear_autocast_cache()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.model.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    def _read_out(
        self, input_ids: Tensor, attention_mask: Tensor, num_logits: int
    ) -> tuple[Tensor, Tensor]:
        """Logits, in the dtype that the model computes in, and values, float32."""
        output = self._run(input_ids, attention_mask, num_logits)
        # hidden_states[-1] is what the language-model head reads, after the last norm.
        hidden = output.hidden_states[-1][:, -num_logits:].float()
        return output.logits, self.value_head(hidden).squeeze(-1)

    def _run(self, input_ids: Tensor, attention_mask: Tensor, num_logits: int) -> Any:
        """One forward of the language model; its output, logits cut to the last columns."""
        arguments: dict[str, Any] = {}
        if "position_ids" in self._parameters_of_model:
            arguments["position_ids"] = position_ids_from_mask(attention_mask)
        if "logits_to_keep" in self._parameters_of_model:  # spares the head the other columns
            arguments["logits_to_keep"] = num_logits
        with self._autocast(), self._attention:
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask.long(),
                use_cache=False,
                output_hidden_states=True,
                return_dict=True,
                **arguments,
            )
        output.logits = output.logits[:, -num_logits:]
        return output
