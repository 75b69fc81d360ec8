"""No text is read more often than needed, though to SB3 every token is a sample of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from transformers import BertConfig, BertLMHeadModel

from textgym.agents.sb3 import KLPenaltyCallback, LanguageModelPolicy, TextVecEnv
from textgym.agents.sb3.maskable import MaskableLanguageModelPolicy
from textgym.agents.sb3.texts import left_padded, longest_texts
from textgym.errors import InvalidArgumentError
from textgym.models.incremental import IncrementalDecoder
from textgym.wrappers.vector import ActionMask

NUM_ENVS, NUM_STEPS = 3, 10


def batch(texts, width=8):
    """Ids and mask, padded on the right with a token that texts may hold."""
    ids = torch.tensor([text + [1] * (width - len(text)) for text in texts])
    return ids, torch.arange(width) < torch.tensor([[len(text)] for text in texts])


def test_padding_moves_to_the_left_wherever_it_is():
    ids = torch.tensor([[5, 6, 0, 0, 0], [0, 7, 8, 9, 0]])
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.int8)
    got_ids, got_mask = left_padded(ids, mask)
    assert got_mask.tolist() == [[False, True, True], [True, True, True]]
    assert got_ids[got_mask].tolist() == [5, 6, 7, 8, 9]


@given(st.lists(st.lists(st.sampled_from([0, 1, 256]), min_size=1, max_size=5), min_size=1))
def test_each_text_begins_the_longest_one_that_it_is_found_in(texts):
    longest, inside = (found.tolist() for found in longest_texts(*batch(texts)))
    for text, number in zip(texts, inside, strict=True):
        assert texts[longest[number]][: len(text)] == text
    for row in longest:  # None of them begins another text, and none is there twice.
        assert all(one == texts[row] or one[: len(texts[row])] != texts[row] for one in texts)
    assert len({tuple(texts[row]) for row in longest}) == len(longest)


def make_agent(env, model, algorithm=PPO, policy=LanguageModelPolicy, **keywords):
    if algorithm is not A2C:
        keywords = {"batch_size": NUM_ENVS * NUM_STEPS, "n_epochs": 1, **keywords}
    return algorithm(
        policy, env, n_steps=NUM_STEPS, learning_rate=1e-3, gamma=1.0, device="cpu", seed=0,
        policy_kwargs={"model": model}, **keywords,
    )  # fmt: skip


@pytest.fixture
def env(make_text_envs):
    return TextVecEnv(ActionMask(make_text_envs(NUM_ENVS)))


def states(policy, texts):
    ids, mask = batch(texts)
    return {"input_ids": ids, "attention_mask": mask.to(torch.int8)}


def test_states_of_an_episode_are_evaluated_like_each_text_alone(language_model, env):
    policy = make_agent(env, language_model).policy
    torch.nn.init.normal_(policy.network.value_head.weight)
    texts = [[5, 6], [5, 6, 7, 8], [9], [5, 6, 7], [5, 6, 7, 8], [9, 4], [5, 4, 4]]
    actions = torch.tensor([7, 9, 4, 8, 3, 9, 9])
    values, logprobs, entropies = policy.evaluate_actions(states(policy, texts), actions)
    (logprobs.sum() + values.square().sum() + entropies.sum()).backward()
    together = {name: one.grad.clone() for name, one in policy.named_parameters()}
    policy.zero_grad()
    for row, (text, action) in enumerate(zip(texts, actions, strict=True)):
        value, logprob, entropy = policy.evaluate_actions(states(policy, [text]), action[None])
        torch.testing.assert_close(value[0], values[row], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logprob[0], logprobs[row], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(entropy[0], entropies[row], atol=1e-4, rtol=1e-4)
        (logprob + value.square() + entropy).sum().backward()
    for name, one in policy.named_parameters():
        torch.testing.assert_close(together[name], one.grad, atol=1e-3, rtol=1e-3, msg=name)


class Counts(BaseCallback):
    """How many texts began in each rollout, and how many were read from their start."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.restarted = [0]  # before the first rollout, and in each
        self.begun, self.updates = [], []
        restart = IncrementalDecoder._restart

        def counted(decoder, texts):
            self.restarted[-1] += len(texts)
            restart(decoder, texts)

        monkeypatch.setattr(IncrementalDecoder, "_restart", counted)

    def _on_training_start(self):
        network = self.model.policy.network
        outputs_at = network.outputs_at

        def counted(ids, mask, rows, columns):
            self.updates.append(len(ids))
            return outputs_at(ids, mask, rows, columns)

        network.outputs_at = counted

    def _on_rollout_start(self):
        self.restarted.append(0)
        self.begun.append(NUM_ENVS)  # New weights: what was read before does not count.

    def _on_step(self):
        self.begun[-1] += int(self.locals["dones"].sum())
        return True


@pytest.mark.parametrize("algorithm", [PPO, A2C, MaskablePPO])
def test_a_text_is_read_from_its_start_once_per_rollout_and_once_per_update(
    language_model, env, algorithm, monkeypatch
):
    policy = MaskableLanguageModelPolicy if algorithm is MaskablePPO else LanguageModelPolicy
    counts = Counts(monkeypatch)
    agent = make_agent(env, language_model, algorithm, policy)
    agent.learn(3 * NUM_ENVS * NUM_STEPS, callback=counts)
    assert counts.restarted[1:] == counts.begun
    # An episode that began with the last step is not in the update yet.
    assert all(read <= begun for read, begun in zip(counts.updates, counts.begun, strict=True))
    assert sum(counts.begun) - sum(counts.updates) <= 3 * NUM_ENVS
    assert sum(counts.begun) < 3 * NUM_ENVS * NUM_STEPS / 2


def test_the_reference_policy_reads_new_tokens_alone(language_model, env, monkeypatch):
    counts = Counts(monkeypatch)
    agent = make_agent(env, language_model)
    agent.learn(2 * NUM_ENVS * NUM_STEPS, callback=[KLPenaltyCallback(0.1), counts])
    # Its weights stay, so it goes on with the texts of the first rollout.
    ours = sum(counts.begun)
    begun_later = counts.begun[1] - NUM_ENVS
    both = sum(counts.restarted[1:])
    assert ours + counts.begun[0] <= both <= ours + counts.begun[0] + begun_later


def test_a_model_that_looks_ahead_is_refused(tokenizer, env):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, initializer_range=0.5, is_decoder=False,
    )  # fmt: skip
    with pytest.raises(InvalidArgumentError, match=r"depends on .* the tokens after it"):
        make_agent(env, BertLMHeadModel(config))
