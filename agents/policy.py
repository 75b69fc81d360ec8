"""A causal language model as a policy over tokens, with a value head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from textgym.checks import check_number
from textgym.errors import InvalidArgumentError

from .distribution import ActionRules, action_logprobs, masked_logprobs, state_kl
from .recomputation import Recomputation
from .sharding import gathered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from textgym.models.incremental import IncrementalLanguageModel

__all__ = [
    "Comparison",
    "Evaluation",
    "LanguageModelPolicy",
    "in_float32",
    "parse_autocast",
    "position_ids_from_mask",
]


@dataclass(frozen=True)
class Evaluation:
    """A policy's numbers for given completions, one per completion token.

    Each tensor is float32 of shape (batch, num_steps), and zero where no token was generated.
    """

    logprobs: Tensor  # of the chosen tokens
    entropy: Tensor  # of the distributions that they were chosen from, in nats
    values: Tensor  # of the states in which they were chosen, according to the value head


@dataclass(frozen=True)
class Comparison(Evaluation):
    """The same, and how far the policy is from its reference policy."""

    ref_logprobs: Tensor  # of the chosen tokens, under the reference policy
    kl: Tensor  # the KL divergence from the reference policy in each state, exact, in nats


def position_ids_from_mask(attention_mask: Tensor) -> Tensor:
    """Positions that count each row's own tokens from 0, wherever its padding is.

    Example:
        >>> position_ids_from_mask(torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])).tolist()
        [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]

    Args:
        attention_mask: True or 1 at tokens, (batch, num_tokens).

    Returns:
        int64 (batch, num_tokens); the positions of padding are not used.
    """
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def parse_autocast(dtype: str | torch.dtype | None, argument: str = "dtype") -> torch.dtype | None:
    """The dtype for autocast that an argument names; None switches it off.

    Args:
        dtype: Its value.
        argument: Its name, for the error.

    Raises:
        InvalidArgumentError: If it is neither bfloat16 nor None.
    """
    if dtype not in (None, "bfloat16", torch.bfloat16):
        # float16 would need loss scaling, and float32 is what None means.
        raise InvalidArgumentError(argument, dtype, 'must be "bfloat16" or None.')
    return torch.bfloat16 if dtype else None


class LanguageModelPolicy(nn.Module):
    """A causal language model with a scalar value head on its last hidden state.

    The value head starts at zero: all first values are 0, not random. The module stays in
    evaluation mode. With dropout, the network that is updated would differ from the one that
    sampled, and PPO's probability ratio would not be 1 before the first update. While the policy
    runs the model, :func:`textgym.models.kernels.fast_sdpa` replaces PyTorch's fused attention.

    Args:
        model: Any Hugging Face causal language model; it is not copied.
        rules: Which actions are legal; by default all tokens of the model.
        temperature: Divides the logits, in sampling and in training.
        autocast_dtype: Runs the language model under autocast in this dtype, "bfloat16"; None
            switches it off. Logits, values and losses are float32 in any case.
        gradient_checkpointing: Whether a forward pass with gradients keeps nothing but the inputs
            of the layers, which are computed again in the backward pass.

    Raises:
        InvalidArgumentError: If the model has fewer tokens than ``rules`` has actions, or no layers
            that can be computed again, or if the temperature or the dtype cannot be used.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rules: ActionRules | None = None,
        temperature: float = 1.0,
        autocast_dtype: str | torch.dtype | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        from textgym.models.kernels import fast_attention  # Imported here: slow.
        from textgym.models.signature import first_position, forward_parameters

        super().__init__()
        remedy = "must be a finite number above 0"
        self.temperature = check_number("temperature", temperature, above=0, remedy=remedy)
        self.autocast_dtype = parse_autocast(autocast_dtype, "autocast_dtype")
        vocab_size, hidden_size = model.get_output_embeddings().weight.shape
        self.model = model
        # Skip the usual initialisation, which would advance torch's global generator.
        self.value_head = nn.utils.skip_init(nn.Linear, hidden_size, 1, device=model.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.rules = rules or ActionRules(num_actions=vocab_size)
        self._attention = fast_attention(model)
        self.is_sharded = False  # see :mod:`textgym.agents.sharding`
        self._recomputation = (
            Recomputation(model, self._attention) if gradient_checkpointing else None
        )
        self._reader: IncrementalLanguageModel | None = None
        self._read_with: Any = None  # the weights that its texts were read with
        self._parameters_of_model = forward_parameters(model)
        self._first_position = first_position(model)
        if self.rules.num_actions > vocab_size:
            raise InvalidArgumentError(
                "policy",
                type(model).__name__,
                f"the model knows {vocab_size} tokens, but the environment has "
                f"{self.rules.num_actions} actions: use the tokenizer of the model in the "
                "environment (tokenizer=...).",
            )
        self.eval()

    def place(self, device: str) -> Self:
        """Move the policy to a device; quantised weights must be there already.

        Returns:
            The policy.

        Raises:
            InvalidArgumentError: If quantised weights are elsewhere.
        """
        from textgym.models.placement import is_quantized  # Imported here: slow.

        if not is_quantized(self.model):
            return self.to(device)
        self.value_head.to(device)
        if self.value_head.weight.device != self.model.device:
            raise InvalidArgumentError(
                "device",
                device,
                f"the policy is quantised, so it stays on {self.model.device}: pass "
                f'device="{self.model.device}", or load it on the other device with device_map.',
            )
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, num_logits: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits and values of whole sequences, in one forward.

        Args:
            input_ids: int64 (batch, num_tokens), padded on any side.
            attention_mask: True at tokens, (batch, num_tokens).
            num_logits: Number of columns at the end to compute outputs for; None for all.

        Returns:
            Logits (batch, num_logits, vocab) and values (batch, num_logits), both float32. Column
            t has the logits of the token after column t, and the value of the state up to column t.
        """
        logits, values = self._read_out(input_ids, attention_mask, num_logits or input_ids.shape[1])
        return logits.float(), values

    def outputs_at(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and values of some states, in one forward pass over the texts that they are in.

        The language-model head, a large part of a small model's work, reads these states alone.

        Args:
            input_ids: int64 (batch, num_tokens), padded on any side.
            attention_mask: True at tokens, (batch, num_tokens).
            rows: The text of each state, int64 (num_states,).
            columns: Its last token, int64 (num_states,).

        Returns:
            Logits (num_states, vocab) and values (num_states,), both float32; see :meth:`forward`.
        """
        picked: list[Tensor] = []

        def pick(head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            picked.append(arguments[0][rows, columns][None])
            return (picked[0],)

        head: Any = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(pick)
        try:
            output = self._run(input_ids, attention_mask, num_logits=None)
        finally:
            hook.remove()
        # A model may call its head in a way of its own, past the hook.
        logits = output.logits[0] if picked else output.logits[rows, columns]
        hidden = output.hidden_states[-1][rows, columns].float()
        return logits.float(), self.value_head(hidden).squeeze(-1)

    def evaluate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
    ) -> Evaluation:
        """Log-probabilities, entropies and values of given completions.

        Prompts are padded on the left and completions on the right, so all completions are in the
        last ``num_steps`` columns, and only these need outputs. Each token is predicted one column
        before its own, so the last column is not needed as an input::

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
            See :class:`Evaluation`.
        """
        evaluation, _ = self._evaluate(input_ids, attention_mask, completion_mask)
        return evaluation

    def compare(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        ref_logits: Tensor,
    ) -> Comparison:
        """Evaluate completions, and compare the policy with its reference policy in every state.

        It costs no forward pass beyond that of :meth:`evaluate`.

        Args:
            input_ids: int64 (batch, num_tokens), laid out as in :meth:`evaluate`.
            attention_mask: True at tokens, (batch, num_tokens).
            completion_mask: True at generated tokens, bool (batch, num_steps).
            ref_logits: What :meth:`completion_logits` of the reference policy returned for these
                completions, (batch, num_steps, vocab).
        """
        evaluation, logits = self._evaluate(input_ids, attention_mask, completion_mask)
        num_generated = torch.arange(completion_mask.shape[1], device=logits.device)
        actions = input_ids[:, -completion_mask.shape[1] :]
        about_states = num_generated, self.rules, self.temperature
        ref_logprobs, _ = action_logprobs(ref_logits, actions, *about_states)
        kl = state_kl(logits, ref_logits, *about_states)
        outside = ~completion_mask
        return Comparison(
            evaluation.logprobs,
            evaluation.entropy,
            evaluation.values,
            ref_logprobs.masked_fill(outside, 0.0),
            kl.masked_fill(outside, 0.0),
        )

    def completion_logits(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> Tensor:
        """The logits that the tokens of given completions are chosen from.

        Args:
            input_ids: int64 (batch, num_tokens), laid out as in :meth:`evaluate`.
            attention_mask: True at tokens, (batch, num_tokens).
            completion_mask: True at generated tokens, bool (batch, num_steps).

        Returns:
            (batch, num_steps, vocab), in the dtype that the model computes in.
        """
        num_steps = completion_mask.shape[1]
        return self._run(input_ids[:, :-1], attention_mask[:, :-1], num_steps).logits

    @torch.no_grad()
    def next_token_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of the next token.

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
            logits: Logits of the next token, (batch, vocab).
            num_generated: Number of tokens of each completion so far, integer, () or (batch,).

        Returns:
            Log-probabilities float32 (batch, vocab).
        """
        return masked_logprobs(logits, num_generated, self.rules, self.temperature)

    @contextmanager
    def reading(self) -> Iterator[IncrementalLanguageModel]:
        """A context in which texts are read token by token, with the current weights.

        In it no gradients are recorded. With autocast, the weights are cast once in this context
        instead of in every step.

        Raises:
            InvalidArgumentError: If the model cannot be read token by token, or says something else
                of whole texts: then an update would see other probabilities than a rollout.
        """
        with self._with_reader() as reader:
            try:
                yield reader
            finally:
                reader.forget()

    @torch.no_grad()
    def read_on(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Logits and values at the end of each text, without gradients.

        Texts are kept until the weights change. So a text that grew by a token since the last call
        costs this token, as in :meth:`reading`, for learners that step from call to call.

        Args:
            texts: Token ids per row. If the number of rows changes, all are read from the start.

        Returns:
            Logits (batch, vocab) and values (batch,), both float32.

        Raises:
            InvalidArgumentError: See :meth:`reading`.
        """
        from textgym.models.incremental import weights_version  # Imported here: slow.

        with self._with_reader() as reader:
            version = weights_version(self.model)
            if version != self._read_with:
                reader.forget()
                self._read_with = version
            said = reader.read(texts)
        return said.logits, self.value_head(said.hidden).squeeze(-1)

    @contextmanager
    def _with_reader(self) -> Iterator[IncrementalLanguageModel]:
        """A context in which the reader can be used; it is made and checked if there is none."""
        from textgym.models.incremental import IncrementalLanguageModel  # Imported here: slow.

        # Not in inference mode: there, autocast does not keep the weights that it has cast.
        whole = gathered(self.model) if self.is_sharded else nullcontext()
        with torch.no_grad(), whole, self._autocast(), self._attention:
            if self._reader is None:
                reader = IncrementalLanguageModel(self.model)
                self._check_whole_texts(reader)
                self._reader = reader
            try:
                yield self._reader
            finally:
                # The weights cast here have no gradient. PyTorch 2.9 would train on these copies if
                # the caller has an autocast of its own around both.
                torch.clear_autocast_cache()

    def _check_whole_texts(self, reader: IncrementalLanguageModel) -> None:
        """Compare what is said of two padded texts, after each of two tokens, with a reader."""
        from textgym.models.incremental import example_texts, largest_rounding  # Slow, so here.

        if self.is_sharded:  # Its weights are gathered now, and the model would scatter them.
            return
        rounding = largest_rounding(self.model, self.autocast_dtype or self.model.dtype)
        texts = example_texts(self.model)
        width = len(texts[0])
        ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
        mask = torch.arange(width, 0, -1) <= torch.tensor([[len(text)] for text in texts])
        device = self.model.device
        output = self._run(ids.to(device), mask.to(device), num_logits=2)
        culprits = {-2: "the padding before it or the tokens after it", -1: "the padding before it"}
        for column, culprit in culprits.items():
            said = reader.read([text[: len(text) + 1 + column] for text in texts])
            if said.hidden.shape[1] != self.value_head.in_features:
                raise InvalidArgumentError(
                    "policy",
                    type(self.model).__name__,
                    f"its last hidden state has {said.hidden.shape[1]} numbers, and its head reads "
                    f"{self.value_head.in_features}; pass a decoder whose head reads that state",
                )
            pairs = (said.logits, output.logits), (said.hidden, output.hidden_states[-1])
            for read, whole in pairs:
                off = float((read - whole[:, column].float()).abs().max())
                largest = float(read.abs().max())
                if not off <= rounding * largest:
                    raise InvalidArgumentError(
                        "policy",
                        type(self.model).__name__,
                        f"what it says of a text depends on {culprit} (by {off:.2g}, "
                        f"where the largest value is {largest:.2g}), so an update would see other "
                        "probabilities than the rollout; pass a decoder that heeds attention_mask "
                        "and position_ids",
                    )

    def _evaluate(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> tuple[Evaluation, Tensor]:
        """The evaluation, and the logits that it was computed from."""
        num_steps = completion_mask.shape[1]
        logits, values = self._read_out(input_ids[:, :-1], attention_mask[:, :-1], num_steps)
        num_generated = torch.arange(num_steps, device=logits.device)
        logprobs, entropy = action_logprobs(
            logits, input_ids[:, -num_steps:], num_generated, self.rules, self.temperature
        )
        # The padding token may be illegal, with log-probability -inf. masked_fill keeps it out of
        # sums and gradients; a product with the mask would not.
        outside = ~completion_mask
        evaluation = Evaluation(
            logprobs.masked_fill(outside, 0.0),
            entropy.masked_fill(outside, 0.0),
            values.masked_fill(outside, 0.0),
        )
        return evaluation, logits

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.model.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    def _keeping(self) -> AbstractContextManager[None]:
        """What the layers keep for a backward pass: everything, or their inputs alone."""
        if self._recomputation is None or not torch.is_grad_enabled():
            return nullcontext()
        return self._recomputation

    def _read_out(
        self, input_ids: Tensor, attention_mask: Tensor, num_logits: int
    ) -> tuple[Tensor, Tensor]:
        """Logits in the model's compute dtype, and values in float32."""
        output = self._run(input_ids, attention_mask, num_logits)
        # hidden_states[-1] is the input of the language-model head, after the last norm.
        hidden = output.hidden_states[-1][:, -num_logits:].float()
        return output.logits, self.value_head(hidden).squeeze(-1)

    def _run(self, input_ids: Tensor, attention_mask: Tensor, num_logits: int | None) -> Any:
        """The language model's output, with logits of the last columns only, or as they come."""
        arguments: dict[str, Any] = {}
        if "position_ids" in self._parameters_of_model:
            positions = position_ids_from_mask(attention_mask)
            arguments["position_ids"] = positions + self._first_position
        if num_logits is not None and "logits_to_keep" in self._parameters_of_model:
            # Saves computing the others. As indices: a slice of the hidden states is not
            # contiguous, and for each text PyTorch would copy the whole matrix of a frozen head.
            num_tokens = input_ids.shape[1]
            arguments["logits_to_keep"] = torch.arange(
                num_tokens - num_logits, num_tokens, device=input_ids.device
            )
        with self._autocast(), self._attention, self._keeping():
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask.long(),
                use_cache=False,
                output_hidden_states=True,
                return_dict=True,
                **arguments,
            )
        if num_logits is not None:
            output.logits = output.logits[:, -num_logits:]
        return output


def in_float32(model: PreTrainedModel, argument: str, if_quantized: str) -> PreTrainedModel:
    """Cast weights to float32 where needed: in bfloat16, small steps would be lost in rounding.

    Args:
        model: The model, which is to be trained.
        argument: The argument that errors name.
        if_quantized: What to do instead with quantised weights.

    Raises:
        InvalidArgumentError: If they cannot be cast.
    """
    from textgym.models.placement import is_quantized  # Imported here: slow.

    if is_quantized(model):
        raise InvalidArgumentError(
            argument,
            type(model).__name__,
            f"its weights are quantised, and cannot be trained: {if_quantized}.",
        )
    tensors = [*model.parameters(), *model.buffers()]
    if all(t.dtype == torch.float32 for t in tensors if t.is_floating_point()):
        return model  # Even such a cast is forbidden for models loaded from a GGUF file.
    try:
        return model.float()
    except ValueError as error:
        raise InvalidArgumentError(
            argument,
            type(model).__name__,
            f"its weights cannot be cast to float32: load it with dtype=torch.float32 ({error}).",
        ) from None
