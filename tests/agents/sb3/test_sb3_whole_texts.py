"""Minibatches of whole texts: every sample once, each as it is in SB3's own buffer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback

from textgym.agents.sb3 import LanguageModelPolicy, TextVecEnv, WholeTextDictRolloutBuffer
from textgym.agents.sb3.maskable import (
    MaskableLanguageModelPolicy,
    MaskableWholeTextDictRolloutBuffer,
)
from textgym.agents.sb3.whole_texts import shuffled_by_text
from textgym.wrappers.vector import ActionMask

NUM_ENVS, NUM_STEPS, BATCH_SIZE = 3, 12, 9
KEYS = ("input_ids", "attention_mask")
BUFFERS = {
    PPO: (LanguageModelPolicy, WholeTextDictRolloutBuffer),
    MaskablePPO: (MaskableLanguageModelPolicy, MaskableWholeTextDictRolloutBuffer),
}


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_texts_stay_whole_and_each_sample_comes_once(starts):
    starts = np.array(starts)
    order = shuffled_by_text(starts, np.random.default_rng(0)).tolist()
    assert sorted(order) == list(range(starts.size))
    begins = [(t, n) for n in range(3) for t in range(len(starts)) if starts[t, n] or t == 0]
    for index, sample in enumerate(order):
        row, step = divmod(sample, len(starts))
        if (step, row) not in begins:  # It comes right after the token before it.
            assert order[index - 1] == sample - 1


def test_the_order_of_the_texts_is_random():
    starts = np.ones((4, 1))
    orders = [shuffled_by_text(starts, np.random.default_rng(i)).tolist() for i in range(400)]
    for place in range(4):
        firsts = np.bincount([order[place] for order in orders], minlength=4)
        assert (abs(firsts - 100) < 40).all()  # 4.6 standard deviations


class Keeps(BaseCallback):
    """Keeps what a rollout holds, and the minibatches that it is handed out in."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        self.starts = buffer.episode_starts.copy()
        self.minibatches = list(buffer.get(BATCH_SIZE))
        self.again = list(buffer.get(BATCH_SIZE))
        # The order of all samples in the buffer is known: one row after the other.
        self.advantages = torch.as_tensor(buffer.advantages.flatten())


def make_agent(make_text_envs, model, algorithm, **keywords):
    policy, buffer = BUFFERS[algorithm]
    env = TextVecEnv(ActionMask(make_text_envs(NUM_ENVS)))
    return algorithm(
        policy, env, n_steps=NUM_STEPS, batch_size=BATCH_SIZE, n_epochs=2, gamma=1.0, device="cpu",
        seed=0, policy_kwargs={"model": model}, rollout_buffer_class=buffer, **keywords,
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", BUFFERS)
def test_a_minibatch_has_the_texts_of_a_few_episodes(language_model, make_text_envs, algorithm):
    agent, seen = make_agent(make_text_envs, language_model, algorithm), Keeps()
    agent.learn(NUM_ENVS * NUM_STEPS, callback=seen)
    assert [len(one.advantages) for one in seen.minibatches] == [9, 9, 9, 9]
    got = torch.cat([one.advantages for one in seen.minibatches])
    torch.testing.assert_close(got.sort().values, seen.advantages.sort().values, atol=0, rtol=0)
    assert not torch.equal(got, torch.cat([one.advantages for one in seen.again]))
    before = None
    breaks = 0
    for minibatch in seen.minibatches:
        for ids, mask in zip(*(minibatch.observations[k] for k in KEYS), strict=True):
            text = ids[mask.bool()].tolist()
            breaks += before is None or text[:-1] != before
            before = text
    starts = seen.starts.astype(bool)
    starts[0] = True
    assert breaks == starts.sum()


@pytest.mark.parametrize("algorithm", BUFFERS)
def test_equal_seeds_give_equal_minibatches(language_model, make_text_envs, algorithm):
    weights = []
    for _ in range(2):
        agent = make_agent(make_text_envs, language_model, algorithm)
        agent.learn(2 * NUM_ENVS * NUM_STEPS)
        weights.append(agent.policy.state_dict())
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_a_whole_rollout_is_one_minibatch_for_a2c(language_model, make_text_envs):
    buffer = {"rollout_buffer_class": WholeTextDictRolloutBuffer}
    env = TextVecEnv(make_text_envs(NUM_ENVS))
    agent = A2C(
        LanguageModelPolicy, env, n_steps=4, seed=0, policy_kwargs={"model": language_model},
        device="cpu", **buffer,
    )  # fmt: skip
    agent.learn(4 * NUM_ENVS)
    assert agent._n_updates == 1
