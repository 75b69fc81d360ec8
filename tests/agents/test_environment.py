from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BartConfig,
    BartForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.agents.environment import as_vector_env, left_padded
from textgym.errors import InvalidArgumentError
from textgym.models import load_language_model

# --- Form


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_environments_that_reset_by_themselves_are_refused(
    make_vector_env, mode: AutoresetMode
) -> None:
    env = make_vector_env(2)
    env.metadata = {"autoreset_mode": mode}
    with pytest.raises(InvalidArgumentError, match=r"AutoresetMode\.DISABLED"):
        as_vector_env(env)


def test_environments_whose_rows_cannot_wait_are_refused(make_env) -> None:
    env = SyncVectorEnv([make_env] * 2, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(InvalidArgumentError, match="native vector environment"):
        as_vector_env(env)


def test_an_environment_in_a_process_of_its_own_is_refused(make_env) -> None:
    """Its tokenizer cannot be seen from here, and without it no token would end a text."""
    env = AsyncVectorEnv([make_env], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(InvalidArgumentError, match="or a single environment"):
        as_vector_env(env)
    env.close()


def test_environments_without_tokens_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="input_ids and attention_mask"):
        as_vector_env(gym.make("CartPole-v1"))


def test_padding_moves_to_the_left_and_shrinks() -> None:
    observations = {
        "input_ids": np.array([[5, 6, 0, 0], [4, 3, 2, 0]]),
        "attention_mask": np.array([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=np.int8),
    }
    ids, mask = left_padded(observations, pad_token_id=9)
    assert ids.tolist() == [[9, 5, 6], [4, 3, 2]]
    assert mask.tolist() == [[False, True, True], [True, True, True]]


def test_an_empty_prompt_is_refused() -> None:
    observations = {"input_ids": np.zeros((2, 3)), "attention_mask": np.array([[1, 0, 0], [0] * 3])}
    with pytest.raises(InvalidArgumentError, match="at least one"):
        left_padded(observations, pad_token_id=0)


# --- Vocabulary


def make_text_envs(kind: str) -> gym.vector.VectorEnv:
    env_id = {"embedded": "ABC-RLHF-v0", "planted": "ABC-RLHF-Planted-v0"}[kind]
    return gym.make_vec(env_id, num_envs=4, autoreset_mode="Disabled")


def make_tokenizer(words: list[str], added: list[str] = ()) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=words[0])), eos_token=words[2]
    )
    tokenizer.add_tokens(list(added))
    return tokenizer


def save_policy(folder, num_rows: int, tokenizer=None) -> str:
    config = Qwen3Config(
        vocab_size=num_rows, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


WORDS = [f"w{index}" for index in range(20)]  # as many as TokenEnv has actions


@pytest.fixture
def env(make_vector_env):
    env = make_vector_env(4)
    env.tokenizer = make_tokenizer(WORDS)
    return env


@pytest.mark.parametrize(("policy", "kind"), [("embedded", "planted"), ("planted", "embedded")])
def test_a_policy_of_another_vocabulary_is_refused(policy: str, kind: str, tmp_path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^policy=.*tokenizer=\.\.\."):
        PPO(policy, make_text_envs(kind), log_dir=tmp_path)


def test_a_loaded_policy_of_another_vocabulary_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"4096 tokens.*17 actions"):
        PPO(load_language_model("embedded"), make_text_envs("planted"), log_dir=tmp_path)


@pytest.mark.parametrize("kind", ["embedded", "planted"])
def test_policy_and_environment_of_one_vocabulary_fit(kind: str, tmp_path) -> None:
    for policy in (kind, load_language_model(kind)):
        agent = PPO(policy, make_text_envs(kind), log_dir=tmp_path)
        assert agent.policy.rules.eos_token_id == 2


def test_a_vocabulary_of_the_same_size_in_another_order_is_refused(env, tmp_path) -> None:
    tokenizer = make_tokenizer([*WORDS[:10], WORDS[11], WORDS[10], *WORDS[12:]])
    with pytest.raises(InvalidArgumentError, match="is not the environment's"):
        PPO(save_policy(tmp_path, 20, tokenizer), env, log_dir=tmp_path)


def test_other_words_of_the_same_number_are_refused(env, tmp_path) -> None:
    tokenizer = make_tokenizer([*WORDS[:19], "other"])
    with pytest.raises(InvalidArgumentError, match="is not the environment's"):
        PPO(save_policy(tmp_path, 20, tokenizer), env, log_dir=tmp_path)


def test_padded_embeddings_fit_however_many_if_the_tokenizers_agree(env, tmp_path) -> None:
    PPO(save_policy(tmp_path, 500, make_tokenizer(WORDS)), env, log_dir=tmp_path)


def test_an_added_token_of_the_policy_may_be_unknown_to_the_environment(env, tmp_path) -> None:
    tokenizer = make_tokenizer(WORDS, added=["<image>"])
    PPO(save_policy(tmp_path, 64, tokenizer), env, log_dir=tmp_path)


def test_a_folder_without_tokenizer_is_judged_by_its_size(env, tmp_path) -> None:
    PPO(save_policy(tmp_path / "padded", 20 + 127), env, log_dir=tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"148 tokens.*20 actions"):
        PPO(save_policy(tmp_path / "other", 20 + 128), env, log_dir=tmp_path)


def test_an_environment_without_tokenizer_is_judged_by_its_size(make_vector_env, tmp_path) -> None:
    env = make_vector_env(4)
    env.tokenizer = None
    PPO(save_policy(tmp_path / "padded", 64, make_tokenizer(WORDS)), env, log_dir=tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"4096 tokens.*20 actions"):
        PPO("embedded", env, log_dir=tmp_path)


def test_large_vocabularies_may_be_padded_by_three_percent(env, tmp_path) -> None:
    env.single_action_space = gym.spaces.Discrete(9_701)
    PPO(save_policy(tmp_path, 10_000), env, log_dir=tmp_path)
    env.single_action_space = gym.spaces.Discrete(9_700)
    with pytest.raises(InvalidArgumentError, match=r"10000 tokens.*9700 actions"):
        PPO(save_policy(tmp_path, 10_000), env, log_dir=tmp_path)


# --- Context


def with_context(length: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8, max_position_embeddings=length,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def test_texts_longer_than_the_context_are_refused(make_vector_env, tmp_path) -> None:
    env = make_vector_env(4)
    longest = env.single_observation_space["input_ids"].shape[0]
    with pytest.raises(InvalidArgumentError, match=rf"^policy=.*{longest} tokens.*{longest - 1}"):
        PPO(with_context(longest - 1), env, log_dir=tmp_path)
    agent = PPO(with_context(longest), env, log_dir=tmp_path)
    agent.save(tmp_path / "saved")
    env.single_observation_space["input_ids"] = gym.spaces.Box(0, 20, (longest + 1,), np.int64)
    with pytest.raises(InvalidArgumentError, match=rf"^env=.*{longest + 1} tokens.*{longest}"):
        PPO.load(tmp_path / "saved", env)


def test_texts_that_would_turn_all_positions_by_other_angles_are_refused(
    make_vector_env, tmp_path
) -> None:
    """Beyond Phi-3's first context, what is in the cache would have to be computed anew."""
    env = make_vector_env(4)
    longest = env.single_observation_space["input_ids"].shape[0]

    def make(first_context: int) -> Phi3ForCausalLM:
        factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
        config = Phi3Config(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, max_position_embeddings=4 * longest,
            original_max_position_embeddings=first_context,
            rope_parameters={"rope_type": "longrope", "rope_theta": 100.0, **factors},
        )  # fmt: skip
        return Phi3ForCausalLM(config)

    with pytest.raises(InvalidArgumentError, match=rf"^policy=.*{longest} tokens.*{longest - 1}"):
        PPO(make(longest - 1), env, log_dir=tmp_path)
    PPO(make(longest), env, log_dir=tmp_path)


def test_a_policy_that_no_rollout_could_read_is_refused_when_the_agent_is_made(
    make_vector_env, tmp_path
) -> None:
    """Its positions count all columns, so padding at the left would move them."""
    env = make_vector_env(4)
    config = BartConfig(
        vocab_size=20, d_model=8, decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, is_decoder=True,
    )  # fmt: skip
    with pytest.raises(InvalidArgumentError, match=r"^policy=.*depends on the padding before it"):
        PPO(BartForCausalLM(config), env, log_dir=tmp_path)
