"""The registered environment ids, as data; importing this loads no model and no torch."""

from __future__ import annotations

from typing import Any

from gymnasium.envs.registration import register, registry

__all__ = ["ENVIRONMENTS", "register_environments"]

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "ABC-RLHF-v0": {
        "entry_point": "textgym.envs:TextGenerationEnv",
        "vector_entry_point": "textgym.envs:TextGenerationVectorEnv",
    },
    # Completions of 128 tokens, all of them: a score that comes late.
    "ABC-RLHF-Long-v0": {
        "entry_point": "textgym.envs:TextGenerationEnv",
        "vector_entry_point": "textgym.envs:TextGenerationVectorEnv",
        "kwargs": {"min_new_tokens": 128, "max_new_tokens": 128},
    },
    # Features of a language model to look at and its 4 likeliest tokens to choose from.
    "ABC-RLHF-Features-v0": {
        "entry_point": "textgym.wrappers.presets:make_features_env",
        "vector_entry_point": "textgym.wrappers.presets:make_features_vector_env",
    },
    # The same, with the score paid in small change.
    "ABC-RLHF-Features-Dense-v0": {
        "entry_point": "textgym.wrappers.presets:make_features_env",
        "vector_entry_point": "textgym.wrappers.presets:make_features_vector_env",
        "kwargs": {"dense": True},
    },
    "ABC-RLHF-Planted-v0": {
        "entry_point": "textgym.envs:PlantedEnv",
        "vector_entry_point": "textgym.envs:PlantedVectorEnv",
    },
}
"""Keyword arguments of :func:`gymnasium.register` by id."""


def register_environments() -> None:
    """Register every id with Gymnasium; ids that are registered already are left alone."""
    for env_id, arguments in ENVIRONMENTS.items():
        if env_id not in registry:
            register(id=env_id, **arguments)
