"""Critics of PPO, on the small process of the theory tests: real environment, real reward model."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode
from transformers import Qwen3ForSequenceClassification

from tests.theory.process import (
    HORIZON,
    MIN_NEW_TOKENS,
    PROMPTS,
    make_policy,
    make_reward_model,
    tiny_config,
)
from tests.theory.process import make_tokenizer as make_word_tokenizer
from textgym.agents import PPO, ppo
from textgym.agents.critics import Critic, HeadCritic
from textgym.agents.returns import mean_of_others, returns_to_go
from textgym.credit import AttentionCredit, PrefixScoreCredit, SparseCredit
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, RewardModel
from textgym.wrappers.vector import CreditAssignment, PotentialShaping

MANY = 10**9
LAMBDAS = [1.0, 0.95, 0.5, 0.0]


@pytest.fixture(scope="module")
def tokenizer():
    return make_word_tokenizer()


@pytest.fixture(scope="module")
def reward_model(tokenizer) -> RewardModel:
    return make_reward_model(tokenizer)


@pytest.fixture
def make_envs(tokenizer, reward_model):
    def make(num_envs: int = 8, **changes):
        arguments = {
            "tokenizer": tokenizer, "reward_model": reward_model, "prompts": PROMPTS,
            "min_new_tokens": MIN_NEW_TOKENS, "max_new_tokens": HORIZON,
        }  # fmt: skip
        return gym.make_vec(
            "ABC-RLHF-v0",
            num_envs=num_envs,
            autoreset_mode=AutoresetMode.DISABLED,
            **arguments | changes,
        )

    return make


@pytest.fixture
def make_agent(tokenizer, make_envs, tmp_path):
    def make(env=None, **hyperparameters) -> PPO:
        settings = {
            "episodes_per_iteration": 16, "learning_rate": 3e-3, "num_epochs": 2,
            "minibatch_size": 8, "log_dir": tmp_path / "run",
        }  # fmt: skip
        return PPO(make_policy(tokenizer), env or make_envs(), **settings | hyperparameters)

    return make


def train(agent: PPO, num_iterations: int) -> PPO:
    stop = len(agent.history) + num_iterations
    return agent.learn(MANY, callback=lambda row: row["time/iteration"] < stop)


def parameters(agent: PPO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.trained_parameters.values()])


def advantages_of(agent: PPO, recorded) -> torch.Tensor:
    """Advantages of the first iteration, before they are whitened."""
    calls = recorded(ppo, "gae")
    train(agent, 1)
    return calls[0].result[0]


# --- The reward model as a critic


@pytest.mark.parametrize("gae_lambda", LAMBDAS)
def test_a_critic_that_starts_at_the_prefix_score_is_shaping_by_it(
    make_agent, make_envs, recorded, gae_lambda: float
) -> None:
    # Wiewiora 2003, at γ = 1: before the first update, on the same episodes.
    critic = advantages_of(make_agent(critic="reward-model", gae_lambda=gae_lambda), recorded)
    shapings = {
        "as credit": CreditAssignment(make_envs(), PrefixScoreCredit(start="prompt")),
        "by step": PotentialShaping(make_envs(), "prefix-score", start="prompt"),
    }
    for env in shapings.values():
        shaped = advantages_of(make_agent(env, gae_lambda=gae_lambda), recorded)
        torch.testing.assert_close(critic, shaped, atol=1e-5, rtol=0)
    assert critic.abs().max() > 0.5


@pytest.mark.parametrize("gae_lambda", LAMBDAS)
@pytest.mark.parametrize("start", ["zero", "prompt"])
@pytest.mark.parametrize("credit_class", [SparseCredit, AttentionCredit, PrefixScoreCredit])
def test_with_it_the_order_of_payment_and_the_start_do_not_matter(
    make_agent, make_envs, recorded, credit_class, start: str, gae_lambda: float
) -> None:
    settings = {"critic": "reward-model", "gae_lambda": gae_lambda}
    sparse = advantages_of(make_agent(**settings), recorded)
    env = CreditAssignment(make_envs(), credit_class(start=start))
    torch.testing.assert_close(
        advantages_of(make_agent(env, **settings), recorded), sparse, atol=1e-5, rtol=0
    )


def test_it_values_a_state_at_the_score_of_its_text(make_agent, reward_model, recorded) -> None:
    rollouts, calls = recorded(ppo, "collect_episodes"), recorded(ppo, "gae")
    train(make_agent(critic="reward-model"), 1)
    rollout, values = rollouts[0].result, calls[0].args[1]
    num_prompt = rollout.input_ids.shape[1] - rollout.completion_mask.shape[1]
    for row, ids in enumerate(rollout.input_ids):
        for t in range(int(rollout.episode_lengths[row])):
            text = ids[: num_prompt + t][rollout.attention_mask[row, : num_prompt + t]].tolist()
            score = reward_model.read(Completions.from_lists([text], [[]])).score[0]
            assert values[row, t].item() == pytest.approx(score.item(), abs=1e-5)


def test_its_residual_is_learned(make_agent) -> None:
    agent = train(make_agent(critic="reward-model"), 1)
    assert (agent.policy.value_head.weight != 0).any()


# --- A critic of its own


def test_a_separate_critic_starts_as_the_reward_model(make_agent, recorded) -> None:
    separate, frozen = (
        advantages_of(make_agent(critic=name), recorded) for name in ("separate", "reward-model")
    )
    torch.testing.assert_close(separate, frozen, atol=1e-5, rtol=0)


def test_a_separate_critic_has_the_score_of_the_reward_model(
    make_agent, make_envs, tokenizer, tmp_path, recorded
) -> None:
    torch.manual_seed(2)
    model = Qwen3ForSequenceClassification(tiny_config(tokenizer, num_labels=3))
    env = make_envs(reward_model=RewardModel(model, tokenizer, score="logit", label=0))
    agent = make_agent(env, critic="separate")
    agent.save(tmp_path / "agent")
    PPO.load(tmp_path / "agent").save(tmp_path / "agent")
    frozen = advantages_of(make_agent(env, critic="reward-model"), recorded)
    for separate in (agent, PPO.load(tmp_path / "agent", env)):
        torch.testing.assert_close(advantages_of(separate, recorded), frozen, atol=1e-5, rtol=0)


def test_a_separate_critic_is_the_reward_model_with_its_adapters(
    make_agent, make_envs, reward_model, tokenizer, tmp_path
) -> None:
    peft = pytest.importorskip("peft")
    targets = {"task_type": "SEQ_CLS", "target_modules": ["q_proj"]}
    lora = peft.LoraConfig(**targets, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(reward_model.model), lora)
    env = make_envs(reward_model=RewardModel(adapted, tokenizer))
    agent = make_agent(env, critic="separate")
    agent.save(tmp_path / "agent")
    ids = torch.tensor([[0, 1, 2, 0]])
    for one in (agent, PPO.load(tmp_path / "agent", env)):
        scores = one.critic.network(ids, torch.ones_like(ids).bool())
        expected = env.unwrapped.reward_model.read(Completions.from_lists(ids.tolist(), [[]]))
        torch.testing.assert_close(scores[:, -1], expected.score)
    assert not any("lora" in name for name, _ in agent.critic.network.named_parameters())


def test_a_separate_critic_leaves_reward_model_and_trunk_alone(make_agent, reward_model) -> None:
    before = copy.deepcopy(reward_model.model.state_dict())
    # Without advantages, only the value loss can move anything.
    agent = make_agent(critic="separate", clip_coef=1e-9, critic_warmup=2)
    network = copy.deepcopy(agent.critic.network.state_dict())
    policy = copy.deepcopy(agent.policy.state_dict())
    train(agent, 1)
    assert all(torch.equal(x, before[name]) for name, x in reward_model.model.state_dict().items())
    assert all(torch.equal(x, policy[name]) for name, x in agent.policy.state_dict().items())
    moved = agent.critic.network.state_dict()
    assert any(not torch.equal(x, network[name]) for name, x in moved.items())


def test_a_separate_critic_has_its_own_learning_rate(make_agent) -> None:
    agent = make_agent(critic="separate", critic_learning_rate=1e-4, warmup_iterations=2)
    train(agent, 1)
    assert [group["lr"] for group in agent.optimizer.param_groups] == [1.5e-3, 0.5e-4]
    assert agent.history[0]["train/learning_rate"] == 1.5e-3


@pytest.mark.parametrize("critic", ["head", "reward-model", "separate"])
def test_only_the_critic_is_trained_while_it_warms_up(make_agent, critic: str) -> None:
    agent = make_agent(critic=critic, critic_warmup=1, max_grad_norm=1e9)
    model = copy.deepcopy(agent.policy.model.state_dict())
    train(agent, 1)
    now = agent.policy.model.state_dict()
    assert all(torch.equal(now[name], x) for name, x in model.items())
    train(agent, 1)
    now = agent.policy.model.state_dict()
    assert any(not torch.equal(now[name], x) for name, x in model.items())


def test_a_separate_critic_explains_more_after_training(make_agent) -> None:
    agent = make_agent(critic="separate", critic_warmup=8, episodes_per_iteration=64)
    first, *_, last = train(agent, 8).history
    assert last["train/value_loss"] < first["train/value_loss"]


# --- No critic


@pytest.mark.parametrize("group_size", [1, 4])
def test_without_a_critic_advantages_are_returns_minus_those_of_the_others(
    make_agent, make_envs, recorded, group_size: int
) -> None:
    env = CreditAssignment(make_envs(), AttentionCredit())
    agent = make_agent(env, critic="none", group_size=group_size, gamma=0.9)
    rollouts = recorded(ppo, "collect_episodes")
    advantages = advantages_of(agent, recorded)
    rollout = rollouts[0].result
    mask = rollout.completion_mask
    to_go = returns_to_go(rollout.credit, mask, 0.9)  # the KL penalty is still 0
    expected = to_go - mean_of_others(to_go, mask, 16 if group_size == 1 else group_size)
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0)


def test_without_a_critic_nothing_of_it_is_trained(make_agent) -> None:
    agent = train(make_agent(critic="none"), 1)
    assert all((p == 0).all() for p in agent.policy.value_head.parameters())


# --- λ of the critic


def test_the_targets_of_the_critic_may_have_another_lambda(make_agent, recorded) -> None:
    batches = recorded(ppo, "_Batch")
    calls = recorded(ppo, "gae")
    train(make_agent(critic="reward-model", gae_lambda=0.0, critic_lambda=1.0), 1)
    (rewards, values, mask, *_), batch = calls[0].args, batches[0].result
    sampled = returns_to_go(rewards, mask)
    torch.testing.assert_close(batch.returns, sampled, atol=1e-5, rtol=0)
    one_step, _ = ppo.gae(rewards, values, mask, 1.0, 0.0)
    torch.testing.assert_close(calls[0].result[0], one_step)


# --- Truncated episodes


class CutShort(gym.vector.VectorWrapper):
    """Truncates every episode after two steps."""

    def reset(self, **arguments):
        self.num_steps = 0
        return self.env.reset(**arguments)

    def step(self, actions):
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self.num_steps += 1
        return observations, rewards, terminated, truncated | (self.num_steps == 2), infos


@pytest.mark.parametrize("critic", ["reward-model", "separate"])
def test_the_rest_of_a_truncated_episode_is_worth_the_score_of_its_text(
    make_agent, make_envs, reward_model, recorded, critic: str
) -> None:
    rollouts, calls = recorded(ppo, "collect_episodes"), recorded(ppo, "gae")
    env = CutShort(make_envs(16, min_new_tokens=4))
    train(make_agent(env, critic=critic), 1)
    rollout, rewards = rollouts[0].result, calls[0].args[0]
    assert rollout.truncated.all()
    texts = [
        ids[valid].tolist()
        for ids, valid in zip(rollout.input_ids, rollout.attention_mask, strict=True)
    ]
    scores = reward_model.read(Completions.from_lists(texts, [[]] * len(texts))).score
    torch.testing.assert_close(rewards[:, -1], scores, atol=1e-5, rtol=0)
    assert rewards[:, 0].abs().max() < 1e-6  # the KL penalty of the reference policy itself


def test_without_a_critic_a_truncated_episode_is_refused(make_agent, make_envs) -> None:
    with pytest.raises(InvalidArgumentError, match="truncated"):
        train(make_agent(CutShort(make_envs(16, min_new_tokens=4)), critic="none"), 1)


# --- Checkpoints


@pytest.mark.parametrize("critic", ["reward-model", "separate", "none"])
def test_a_stop_in_between_changes_nothing(make_agent, make_envs, tmp_path, critic: str) -> None:
    settings = {"critic": critic, "critic_warmup": int(critic != "none")}
    whole, half = train(make_agent(**settings), 4), train(make_agent(**settings), 2)
    half.save(tmp_path / "half")
    resumed = train(PPO.load(tmp_path / "half", make_envs()), 2)
    assert torch.equal(parameters(whole), parameters(resumed))
    assert list(whole.trained_parameters) == list(resumed.trained_parameters)


@pytest.mark.parametrize("critic", ["reward-model", "separate"])
def test_an_interrupted_iteration_is_undone(make_agent, critic: str) -> None:
    whole, broken = train(make_agent(critic=critic), 3), train(make_agent(critic=critic), 1)
    step = broken.optimizer.step

    def stepping():
        step()
        raise KeyboardInterrupt

    broken.optimizer.step = stepping
    with pytest.raises(KeyboardInterrupt):
        train(broken, 1)
    del broken.optimizer.step
    assert torch.equal(parameters(train(broken, 2)), parameters(whole))


def test_a_separate_critic_is_trained_though_the_reward_model_is_frozen(
    make_agent, make_envs, reward_model, tokenizer
) -> None:
    frozen = copy.deepcopy(reward_model.model).requires_grad_(False)
    env = make_envs(reward_model=RewardModel(frozen, tokenizer))
    agent = make_agent(env, critic="separate")
    before = [p.clone() for p in agent.critic.network.parameters()]
    train(agent, 1)
    changed = zip(before, agent.critic.network.parameters(), strict=True)
    assert any((old != new).any() for old, new in changed)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_separate_critic_may_get_another_learning_rate(make_agent, make_envs, tmp_path) -> None:
    make_agent(critic="separate", critic_learning_rate=1e-3).save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", make_envs(), critic_learning_rate=1e-5)
    assert loaded.optimizer.param_groups[1]["full_lr"] == 1e-5


def test_a_separate_critic_is_kept_without_an_environment(make_agent, make_envs, tmp_path) -> None:
    agent = train(make_agent(critic="separate"), 1)
    agent.save(tmp_path / "first")
    PPO.load(tmp_path / "first").save(tmp_path / "second")
    resumed = PPO.load(tmp_path / "second", make_envs())
    assert torch.equal(parameters(train(resumed, 1)), parameters(train(agent, 1)))


class HalfFrozen(HeadCritic):
    """A critic with a network of the user's own, of which a part is not trained."""

    def __init__(self) -> None:
        self.network = torch.nn.Linear(1, 1)
        self.network.weight.requires_grad_(False)

    def learned(self, texts, evaluation):
        return self.network(evaluation.values[..., None].detach())[..., 0]


def test_a_critic_with_frozen_parameters_warms_up(make_agent) -> None:
    agent = make_agent(critic=HalfFrozen(), critic_warmup=1)
    before = copy.deepcopy(agent.critic.network.state_dict())
    train(agent, 1)
    assert agent.critic.network.bias != before["bias"]
    assert agent.critic.network.weight == before["weight"]


class Constant(Critic):
    """A critic of the user's own, with a state."""

    def __init__(self) -> None:
        self.num_calls = 0

    def known(self, rollout, rewards):
        self.num_calls += 1
        return torch.full_like(rewards, 0.1 * self.num_calls)

    def state_dict(self):
        return {"num_calls": self.num_calls}

    def load_state_dict(self, state):
        self.num_calls = state["num_calls"]


def test_a_critic_of_your_own_is_an_object_that_is_passed_again(
    make_agent, make_envs, tmp_path
) -> None:
    whole, half = train(make_agent(critic=Constant()), 3), train(make_agent(critic=Constant()), 2)
    assert half.config.critic == "custom"
    half.save(tmp_path / "half")
    with pytest.raises(InvalidArgumentError, match=r"^critic=.*pass it again"):
        PPO.load(tmp_path / "half", make_envs())
    resumed = train(PPO.load(tmp_path / "half", make_envs(), critic=Constant()), 1)
    assert resumed.critic.num_calls == 3
    assert torch.equal(parameters(whole), parameters(resumed))


def test_an_interruption_restores_the_state_of_a_critic_of_your_own(make_agent) -> None:
    agent = train(make_agent(critic=Constant()), 1)

    def stepping():
        raise KeyboardInterrupt

    agent.optimizer.step = stepping
    with pytest.raises(KeyboardInterrupt):
        train(agent, 1)
    assert agent.critic.num_calls == 1


# --- Errors


@pytest.mark.parametrize("name", ["load_state_dict", "uses_lambda", "network"])
def test_a_critic_without_what_ppo_uses_is_refused(make_agent, name: str) -> None:
    needs = {need: getattr(HeadCritic(), need) for need in dir(HeadCritic) if need != name}
    with pytest.raises(InvalidArgumentError, match=f"^critic=.*no {name}"):
        make_agent(critic=SimpleNamespace(**needs))


@pytest.mark.parametrize("critic", ["reward-model", "separate"])
def test_an_environment_without_a_reward_model_is_refused(
    make_model, make_vector_env, tmp_path, critic: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^critic=.*no attribute reward_model"):
        PPO(make_model(), make_vector_env(4), critic=critic, log_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"critic": "none", "critic_warmup": 1}, "critic_warmup"),
        ({"critic": "none", "episodes_per_iteration": 1, "minibatch_size": 1}, "episodes_per"),
        ({"critic": "head", "critic_learning_rate": 1e-4}, "critic_learning_rate"),
    ],
)
def test_settings_that_contradict_the_critic_are_refused(
    make_agent, make_envs, arguments, name: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name}"):
        make_agent(make_envs(1), **arguments)
