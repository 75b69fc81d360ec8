"""What the agents need from an environment: waiting rows, token observations, the vocabulary."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from textgym.errors import InvalidArgumentError

from .distribution import ActionRules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "action_rules",
    "as_vector_env",
    "base_attribute",
    "check_context",
    "check_num_episodes",
    "check_vocabulary",
    "left_padded",
    "name_of_policy",
]

_PADDED_ROWS, _PADDED_SHARE = 128, 0.03
"""Many models pad their embedding matrix to a multiple of 64 or 128 rows, some with more: it has
271 rows (0.2%) that belong to no token in Qwen2.5-0.5B, and 905 (1.8%) in phi-2."""


def as_vector_env(env: gym.Env | VectorEnv) -> VectorEnv:
    """Bring an environment into the form that rollouts of whole episodes need.

    A single environment becomes a vector environment with one row. A vector environment must let
    finished rows wait for the others: autoreset mode ``DISABLED``.

    Raises:
        InvalidArgumentError: If the environment resets rows by itself, cannot let them wait, or
            does not have token ids as observations and actions.
    """
    if isinstance(env, gym.Env):
        single_env = env
        env = SyncVectorEnv([lambda: single_env], autoreset_mode=AutoresetMode.DISABLED)
    if not isinstance(env, VectorEnv):
        raise InvalidArgumentError(
            "env", env, "pass a gymnasium.Env or a gymnasium.vector.VectorEnv."
        )
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise InvalidArgumentError(
            "env",
            env,
            f"its autoreset mode is {getattr(mode, 'name', mode)}, but a rollout of whole episodes "
            "needs finished rows to wait: make it with "
            "gym.make_vec(..., autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED).",
        )
    is_sync, is_async = (isinstance(env.unwrapped, c) for c in (SyncVectorEnv, AsyncVectorEnv))
    if is_async or (is_sync and env.num_envs > 1):
        raise InvalidArgumentError(
            "env",
            env,
            f"{type(env.unwrapped).__name__} cannot let finished rows wait for the others: use "
            "the native vector environment (gym.make_vec with vectorization_mode="
            '"vector_entry_point"), or a single environment.',
        )
    space = env.single_observation_space
    keys = set(space.spaces) if isinstance(space, gym.spaces.Dict) else set()
    if not {"input_ids", "attention_mask"} <= keys:
        raise InvalidArgumentError(
            "env", env, "its observations must be a Dict with input_ids and attention_mask."
        )
    if not isinstance(env.single_action_space, gym.spaces.Discrete):
        raise InvalidArgumentError("env", env, "its action space must be Discrete(vocabulary).")
    return env


def action_rules(env: VectorEnv) -> ActionRules:
    """Read from an environment which actions are legal.

    The rules come from the attributes ``tokenizer`` and ``min_new_tokens`` of the unwrapped
    environment. Without them there is no EOS, and all actions are always legal.

    Args:
        env: What :func:`as_vector_env` returned.
    """
    tokenizer = base_attribute(env, "tokenizer")
    pad_token_id = getattr(tokenizer, "pad_token_id", None)
    return ActionRules(
        num_actions=int(env.single_action_space.n),  # type: ignore[attr-defined]
        eos_token_id=getattr(tokenizer, "eos_token_id", None),
        min_new_tokens=base_attribute(env, "min_new_tokens") or 0,
        pad_token_id=0 if pad_token_id is None else pad_token_id,
    )


def check_num_episodes(
    argument: str, num_episodes: int, num_envs: int, num_processes: int = 1
) -> None:
    """Make sure that all rows of the environments of all processes play equally many episodes.

    Raises:
        InvalidArgumentError: If they cannot.
    """
    is_whole = isinstance(num_episodes, Integral) and not isinstance(num_episodes, bool)
    if not is_whole or num_episodes < 1 or num_episodes % (num_envs * num_processes):
        rows = f"num_envs={num_envs}"
        if num_processes > 1:
            rows += f" in each of {num_processes} processes"
        raise InvalidArgumentError(
            argument,
            num_episodes,
            f"must be a positive multiple of the environment's {rows}, because all rows play the "
            "same number of episodes.",
        )


def check_vocabulary(
    policy: str | Path | PreTrainedModel, model: PreTrainedModel, env: VectorEnv
) -> None:
    """Make sure that token ids mean the same to the policy and to the environment.

    If the policy was given by name, its tokenizer is compared with the environment's. They match
    if they agree on every token that both have; a token that only one has must be an added one. If
    one of the tokenizers is not known, only sizes can be compared: the model's embedding matrix may
    have a few more rows than the environment has actions (fewer than 128, or up to 3% of the rows),
    because many models pad it. :class:`LanguageModelPolicy` refuses a model with fewer rows.

    Args:
        policy: What the user passed: a name, a folder or a loaded model.
        model: The loaded model.
        env: What :func:`as_vector_env` returned.

    Raises:
        InvalidArgumentError: If the vocabularies differ.
    """
    num_rows = model.get_output_embeddings().weight.shape[0]
    num_actions = int(env.single_action_space.n)  # type: ignore[attr-defined]
    ours, theirs = _tokenizer_of(policy), base_attribute(env, "tokenizer")
    difference = None
    if ours is not None and hasattr(theirs, "get_vocab"):
        if _share_vocabulary(ours, theirs):
            return
        # Transformers makes up a tokenizer of one token or so for a folder that has none.
        if _is_padded_to(num_rows, len(ours)):
            difference = (
                f"its tokenizer ({len(ours)} tokens) is not the environment's "
                f"({len(theirs)} tokens)"
            )
    if difference is None and not _is_padded_to(num_rows, num_actions):
        difference = (
            f"the model knows {num_rows} tokens, but the environment has {num_actions} actions"
        )
    if difference is not None:
        raise InvalidArgumentError(
            "policy",
            name_of_policy(policy),
            f"{difference}: make the environment with the policy's tokenizer (tokenizer=...), or "
            "pass the policy that belongs to the environment's tokenizer.",
        )


def name_of_policy(policy: Any) -> str:
    """How errors call a policy: by its name or folder, or by the class of a loaded model."""
    return str(policy) if isinstance(policy, str | Path) else type(policy).__name__


def check_context(argument: str, value: Any, model: PreTrainedModel, env: VectorEnv) -> None:
    """Make sure that the longest text of the environment fits into the model's context.

    Args:
        argument: What the user passed last, for the error.
        value: Its value.
        model: The policy. One whose config sets no limit takes any length.
        env: What :func:`as_vector_env` returned.

    Raises:
        InvalidArgumentError: If it does not fit.
    """
    from textgym.models.signature import longest_text  # Imported here: slow.

    limit = longest_text(model)
    length = env.single_observation_space["input_ids"].shape[0]  # type: ignore[index]
    if limit is not None and length > limit:
        raise InvalidArgumentError(
            argument,
            value,
            f"texts of the environment may have {length} tokens, and the policy takes {limit}: use "
            "fewer new tokens, shorter prompts, or a policy with a longer context.",
        )


def _is_padded_to(num_rows: int, num_tokens: int) -> bool:
    """Whether padding can explain why a model has more embedding rows than there are tokens."""
    return num_rows - num_tokens < max(_PADDED_ROWS, _PADDED_SHARE * num_rows)


def _tokenizer_of(policy: str | Path | PreTrainedModel) -> Any:
    """The tokenizer of a policy given by name; None for a loaded model, or if there is none."""
    from textgym.models.loading import load_tokenizer  # Imported here: slow.

    if not isinstance(policy, str | Path):
        return None
    try:
        return load_tokenizer(policy)
    except InvalidArgumentError:
        return None


def _share_vocabulary(ours: Any, theirs: Any) -> bool:
    if ours is theirs:
        return True
    our_ids, their_ids = ours.get_vocab(), theirs.get_vocab()
    added = ours.get_added_vocab().keys() | theirs.get_added_vocab().keys()
    known_to_one = our_ids.keys() ^ their_ids.keys()
    known_to_both = our_ids.keys() & their_ids.keys()
    return known_to_one <= added and all(our_ids[t] == their_ids[t] for t in known_to_both)


def base_attribute(env: gym.Env | VectorEnv, name: str) -> Any:
    """An attribute of the unwrapped environment, or of the single one in a vector; else None."""
    base: Any = env.unwrapped
    if isinstance(base, SyncVectorEnv):
        base = base.envs[0].unwrapped
    return getattr(base, name, None)


def left_padded(
    observations: dict[str, NDArray[Any]], pad_token_id: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Move the padding of batched observations to the left, and drop columns that no row uses.

    Args:
        observations: ``input_ids`` and ``attention_mask``, both (num_envs, max_length).
        pad_token_id: The token id for the padding.

    Returns:
        Ids int64 and mask bool, both (num_envs, length of the longest row).

    Raises:
        InvalidArgumentError: If a row is empty: a causal model needs a token to start from.
    """
    valid = np.asarray(observations["attention_mask"]).astype(bool)
    lengths = valid.sum(axis=1)  # (num_envs,)
    if not lengths.all():
        raise InvalidArgumentError(
            "attention_mask", lengths, "an observation has no token: prompts need at least one."
        )
    width = int(lengths.max())
    mask = np.arange(width) >= width - lengths[:, None]  # (num_envs, width)
    ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    # Boolean indexing runs row by row, and each row has equally many True entries in both masks.
    ids[mask] = np.asarray(observations["input_ids"])[valid]
    return ids, mask
