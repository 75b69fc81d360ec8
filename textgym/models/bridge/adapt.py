"""Whether a reward model can read the policy's tokens as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from textgym.errors import InvalidArgumentError
from textgym.models.bridge.reward_function import RewardFunction
from textgym.models.bridge.text_reward_model import TextRewardModel
from textgym.models.reward_model import RewardModel

__all__ = ["reading_tokens_of"]


def reading_tokens_of(
    tokenizer: PreTrainedTokenizerBase,
    reward_model: Any,
    prompt_texts: Mapping[tuple[int, ...], str] | None = None,
) -> Any:
    """A reward model in the form in which it reads a policy's tokens.

    Args:
        tokenizer: The policy's.
        reward_model: A :class:`RewardModel`, or any object with its method ``read``.
        prompt_texts: By the tokens of a prompt, what rewards that read text see of it.

    Returns:
        The reward model as it is if it has the same vocabulary and no template, or is of a class of
        the user's; otherwise a :class:`TextRewardModel`.

    Raises:
        InvalidArgumentError: If a :class:`RewardModel` has no tokenizer.
    """
    if isinstance(reward_model, RewardFunction):
        return RewardFunction(reward_model.function, tokenizer, prompt_texts)
    if not isinstance(reward_model, RewardModel):
        return reward_model
    if reward_model.tokenizer is None:
        raise InvalidArgumentError(
            "reward_model",
            reward_model,
            "it has no tokenizer, so nothing tells whether it can read the policy's tokens; pass "
            "RewardModel(model, tokenizer) with the tokenizer that the model was trained with",
        )
    same = reward_model.tokenizer.get_vocab() == tokenizer.get_vocab()
    if same and reward_model.template is None:
        return reward_model
    return TextRewardModel(reward_model, tokenizer, prompt_texts=prompt_texts)
