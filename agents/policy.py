"""A causal language model as a policy over tokens, with a value head.

One distribution serves everywhere. The logits are divided by the temperature, the illegal
actions are masked out, and what remains is normalised; sampling, the policy's log-probabilities,
the reference policy's log-probabilities and the entropy all come from :func:`masked_logprobs`.
Taking the log-probabilities from the full softmax instead, while sampling from the masked one,
would pay the policy for moving probability onto the token that it is never allowed to choose.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from textgym.models.incremental import IncrementalLanguageModel

__all__ = [
    "ActionRules",
    "Evaluation",
    "LanguageModelPolicy",
    "masked_entropy",
    "masked_logprobs",
    "position_ids_from_mask",
    "sample",
]


@dataclass(frozen=True)
class ActionRules:
    """What an environment lets an agent do.

    Args:
        num_actions: Size of the action space. Token ids from here on are illegal: the embedding
            matrices of many models are padded beyond the tokenizer's vocabulary.
        eos_token_id: The token that ends an episode, or None if there is none.
        min_new_tokens: EOS is illegal while fewer tokens than this have been generated.
        pad_token_id: Any id inside the vocabulary; it fills the columns that the mask hides.
    """

    num_actions: int
    eos_token_id: int | None = None
    min_new_tokens: int = 0
    pad_token_id: int = 0


class Evaluation(NamedTuple):
    """What a policy says about given completions, one number per completion token.

    Each tensor is float32 of shape (batch, num_steps) and zero where no token was generated.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


def masked_logprobs(
    logits: Tensor, num_generated: Tensor, rules: ActionRules, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities of all tokens, normalised over the legal ones.

    Args:
        logits: The language model's output, (..., vocab).
        num_generated: How many tokens the completion has so far, integer, broadcastable to (...).
        rules: Which actions are legal.
        temperature: Divides the logits.

    Returns:
        float32 (..., vocab); minus infinity at illegal tokens.
    """
    # A row of the mask per number of generated tokens, not per logit: it is broadcast.
    illegal = torch.zeros(
        (*num_generated.shape, logits.shape[-1]), dtype=torch.bool, device=logits.device
    )
    illegal[..., rules.num_actions :] = True
    if rules.eos_token_id is not None:
        illegal[..., rules.eos_token_id] |= num_generated < rules.min_new_tokens
    logits = logits.float()
    tempered = logits if temperature == 1 else logits / temperature
    return tempered.masked_fill(illegal, -torch.inf).log_softmax(dim=-1)


def sample(logprobs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from categorical distributions, by one uniform number and the cumulative sum each.

    Args:
        logprobs: Normalised log-probabilities, minus infinity allowed, (batch, vocab), on the
            device of the generator.
        generator: Draws the numbers.

    Returns:
        int64 (batch,).
    """
    # In double precision: no number below 1 times the sum rounds up to the sum, and the sum grows
    # at every possible token, so an impossible one is never met.
    cumulative = logprobs.double().exp().cumsum(dim=1)
    uniform = torch.rand(
        (len(logprobs), 1), dtype=torch.float64, generator=generator, device=logprobs.device
    )
    threshold = uniform * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def masked_entropy(logprobs: Tensor) -> Tensor:
    """Entropy in nats of distributions in which some tokens are impossible.

    An impossible token contributes lim p log p = 0; multiplied out, 0 · (−∞) would be NaN, in the
    value and in the gradient.

    Args:
        logprobs: Normalised log-probabilities, minus infinity allowed, (..., vocab).

    Returns:
        (...)
    """
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(dim=-1)


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
    ratio of PPO would differ from 1 before the first update.

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
        output = self._run(input_ids, attention_mask, num_logits or input_ids.shape[1])
        # hidden_states[-1] is what the language-model head reads, after the last norm.
        hidden = output.hidden_states[-1][:, -output.logits.shape[1] :].float()
        return output.logits.float(), self.value_head(hidden).squeeze(-1)

    def evaluate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        entropy_gradient: bool = True,
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
            entropy_gradient: Whether a gradient may flow through the entropy. Where it is only
                looked at, its share of the backward pass is spared.

        Returns:
            Three float32 tensors of shape (batch, num_steps), zero outside the mask.
        """
        num_steps = completion_mask.shape[1]
        logits, values = self(input_ids[:, :-1], attention_mask[:, :-1], num_logits=num_steps)
        num_generated = torch.arange(num_steps, device=logits.device)
        all_logprobs = masked_logprobs(logits, num_generated, self.rules, self.temperature)
        actions = input_ids[:, -num_steps:, None]  # (batch, num_steps, 1)
        logprobs = all_logprobs.gather(-1, actions).squeeze(-1)
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy = masked_entropy(all_logprobs)
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
        with torch.no_grad(), self._autocast():
            if self._reader is None:
                self._reader = IncrementalLanguageModel(self.model)
            try:
                yield self._reader
            finally:
                self._reader.forget()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.model.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    def _run(self, input_ids: Tensor, attention_mask: Tensor, num_logits: int) -> Any:
        """One forward of the language model; its output, logits cut to the last columns."""
        arguments: dict[str, Any] = {}
        if "position_ids" in self._parameters_of_model:
            arguments["position_ids"] = position_ids_from_mask(attention_mask)
        if "logits_to_keep" in self._parameters_of_model:  # spares the head the other columns
            arguments["logits_to_keep"] = num_logits
        with self._autocast():
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
