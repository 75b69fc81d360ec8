"""A tiny language model and a tiny environment with the interface of the real one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

PAD, EOS, TARGET, VOCAB = 0, 2, 7, 20


class TokenEnv(gym.Env):
    """Prompts of 1 to 4 tokens; the score is the share of the token TARGET in the completion."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    EOS, TARGET, VOCAB = EOS, TARGET, VOCAB  # for tests, which get the class

    def __init__(self, min_new_tokens: int = 3, max_new_tokens: int = 6) -> None:
        self.tokenizer = SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD)
        self.min_new_tokens, self.max_new_tokens = min_new_tokens, max_new_tokens
        self.max_length = 4 + max_new_tokens
        self.action_space = gym.spaces.Discrete(VOCAB)
        self.observation_space = gym.spaces.Dict(
            {
                "input_ids": gym.spaces.Box(0, VOCAB - 1, (self.max_length,), np.int64),
                "attention_mask": gym.spaces.Box(0, 1, (self.max_length,), np.int8),
            }
        )
        self.ended = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.prompt = self.np_random.integers(3, VOCAB, self.np_random.integers(1, 5)).tolist()
        self.budget = int(
            self.np_random.integers(self.min_new_tokens, self.max_new_tokens, endpoint=True)
        )
        self.completion: list[int] = []
        self.ended = False
        return self.observe(), {"token_budget": self.budget}

    def step(self, action: int) -> Any:
        assert not self.ended
        self.completion.append(int(action))
        self.ended = action == EOS or len(self.completion) == self.budget
        info: dict[str, Any] = {}
        if self.ended:
            info = {
                "score": self.completion.count(TARGET) / len(self.completion),
                "prompt": " ".join(map(str, self.prompt)),
                "completion": " ".join(map(str, self.completion)),
            }
        return self.observe(), info.get("score", 0.0), self.ended, False, info

    def observe(self) -> dict[str, np.ndarray]:
        ids = np.full(self.max_length, PAD, dtype=np.int64)
        text = self.prompt + self.completion
        ids[: len(text)] = text
        return {
            "input_ids": ids,
            "attention_mask": (np.arange(self.max_length) < len(text)).astype(np.int8),
        }


class TokenVectorEnv(VectorEnv):
    """Rows of TokenEnv; the ones that have finished wait."""

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        self.envs = [TokenEnv(**kwargs) for _ in range(num_envs)]
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.tokenizer = self.envs[0].tokenizer
        self.min_new_tokens = self.envs[0].min_new_tokens

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        infos: dict[str, Any] = {}
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_))
        for row in np.flatnonzero(mask):
            infos = self._add_info(infos, self.envs[row].reset(seed=seed[row])[1], row)
        return self.observe(), infos

    def step(self, actions: Any) -> Any:
        rewards, infos = np.zeros(self.num_envs), {}
        for row, env in enumerate(self.envs):
            if not env.ended:
                _, rewards[row], _, _, info = env.step(actions[row])
                infos = self._add_info(infos, info, row)
        terminated = np.array([env.ended for env in self.envs])
        return self.observe(), rewards, terminated, np.zeros_like(terminated), infos

    def observe(self) -> dict[str, np.ndarray]:
        rows = [env.observe() for env in self.envs]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def make_tiny_model(architecture: str = "qwen3", seed: int = 0) -> Any:
    """A causal language model with random weights, large enough to have preferences."""
    torch.manual_seed(seed)
    if architecture == "gpt2":  # learned positions, tied embeddings, dropout
        config = GPT2Config(
            vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=2, n_head=2,
            initializer_range=0.5,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=32,
        initializer_range=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)
