"""An update of PPO alone, on episodes of random tokens.

textgym's PPO samples and updates in one method. This is the second half of it, made of the same
functions: a forward pass, the losses, the backward pass, clipping, the optimizer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from textgym.agents import ActionRules, LanguageModelPolicy, PPOConfig
from textgym.agents.losses import Batch, clip_gradients, masked_mean
from textgym.agents.ppo import policy_loss, value_loss

__all__ = ["Episodes", "Updater", "random_episodes"]


@dataclass(frozen=True)
class Episodes(Batch):
    """What an update of PPO needs of its episodes."""

    logprobs: Tensor  # (num_episodes, num_steps) of the chosen tokens, before the update
    values: Tensor  # (num_episodes, num_steps) before the update
    advantages: Tensor  # (num_episodes, num_steps)
    returns: Tensor  # (num_episodes, num_steps)


class Updater:
    """A policy and its optimizer, at the hyperparameters of a :class:`PPOConfig`.

    Args:
        model: The language model; a copy in float32 is trained.
        dtype: "float32", or "bfloat16" for autocast.
        config: Of the losses.
    """

    def __init__(
        self, model: PreTrainedModel, dtype: str = "float32", config: PPOConfig | None = None
    ) -> None:
        self.config = config or PPOConfig(learning_rate=1e-6)
        vocab_size, eos_token_id = model.config.vocab_size, model.config.eos_token_id
        self.policy = LanguageModelPolicy(
            copy.deepcopy(model).float(),
            ActionRules(vocab_size, eos_token_id),
            autocast_dtype=torch.bfloat16 if dtype == "bfloat16" else None,
        )
        self.model: PreTrainedModel = self.policy.model
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=self.config.learning_rate, weight_decay=0.0, fused=True
        )

    def update(self, episodes: Episodes, minibatch_size: int | None = None) -> None:
        """One epoch over all episodes, in their order; None takes them all in one minibatch."""
        rows = torch.arange(len(episodes.input_ids))
        for indices in rows.split(minibatch_size or len(rows)):
            self._step(episodes.minibatch(indices))

    def _step(self, batch: Episodes) -> None:
        mask = batch.completion_mask
        new = self.policy.evaluate(*batch.texts)
        loss = policy_loss(
            new.logprobs, batch.logprobs, batch.advantages, mask, self.config.clip_coef
        ) + self.config.vf_coef * value_loss(
            new.values, batch.values, batch.returns, mask, self.config.vf_clip_coef
        )
        masked_mean(new.entropy, mask)  # for the log
        self.optimizer.zero_grad()
        loss.backward()
        clip_gradients(self.policy.parameters(), self.config.max_grad_norm)
        self.optimizer.step()


def random_episodes(num_episodes: int, num_tokens: int, num_steps: int) -> Episodes:
    """Random tokens and advantages, without padding.

    Args:
        num_episodes: Number of rows.
        num_tokens: Length of each, prompt and completion.
        num_steps: Length of each completion.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (num_episodes, num_steps)
    advantages, returns = torch.randn(2, *shape, generator=generator)
    return Episodes(
        input_ids=torch.randint(3, 4096, (num_episodes, num_tokens), generator=generator),
        attention_mask=torch.ones(num_episodes, num_tokens, dtype=torch.bool),
        completion_mask=torch.ones(shape, dtype=torch.bool),
        logprobs=torch.full(shape, -8.0),
        values=torch.zeros(shape),
        advantages=advantages,
        returns=returns,
    )
