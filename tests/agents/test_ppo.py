from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorWrapper

from textgym import checks
from textgym.agents import PPO, GRPOConfig, PPOConfig, Processes, ppo
from textgym.envs.arguments import TextGenerationArguments
from textgym.errors import InvalidArgumentError

MANY = 10**9


@pytest.fixture
def make_agent(make_model, make_vector_env, tmp_path):
    def make(env=None, model=None, **hyperparameters) -> PPO:
        settings = {
            "episodes_per_iteration": 8,
            "learning_rate": 3e-3,
            "num_epochs": 2,
            "log_dir": tmp_path / "run",
        }
        return PPO(model or make_model(), env or make_vector_env(4), **settings | hyperparameters)

    return make


def train(agent: PPO, num_iterations: int) -> PPO:
    stop = len(agent.history) + num_iterations
    return agent.learn(MANY, callback=lambda row: row["time/iteration"] < stop)


def parameters(agent: PPO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "time/seconds"} for row in history]


# --- Training


def test_kl_to_the_reference_starts_at_zero_and_leaves_it(make_agent) -> None:
    agent = train(make_agent(), 3)
    assert agent.history[0]["rollout/kl"] == 0.0
    assert agent.history[2]["rollout/kl"] > 0.01


def test_the_reference_stays_where_it_was(make_agent) -> None:
    agent = make_agent()
    before = {k: v.clone() for k, v in agent.ref_policy.state_dict().items()}
    train(agent, 2)
    after = agent.ref_policy.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_callers_model_is_untouched(make_agent, make_model) -> None:
    model = make_model().bfloat16().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    agent = train(make_agent(model=model), 1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert parameters(agent).dtype == torch.float32


def test_equal_seeds_give_equal_runs_and_others_do_not(make_agent) -> None:
    first, second, other = (train(make_agent(seed=seed), 2) for seed in (1, 1, 2))
    assert torch.equal(parameters(first), parameters(second))
    assert without_time(first.history) == without_time(second.history)
    assert not torch.equal(parameters(first), parameters(other))


def test_the_global_generators_neither_matter_nor_move(make_agent) -> None:
    runs = []
    for seed in (0, 1):
        agent = make_agent()
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = torch.get_rng_state()
        runs.append(parameters(train(agent, 1)))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*runs)


def test_learn_counts_tokens_and_goes_on(make_agent) -> None:
    agent = make_agent().learn(1)
    assert len(agent.history) == 1
    first = agent.num_timesteps
    assert 8 * 3 <= first <= 8 * 6
    agent.learn(first + 1)
    assert len(agent.history) >= 2
    assert agent.num_timesteps == agent.history[-1]["time/total_timesteps"] >= 2 * first + 1


def test_the_first_ratios_are_one(make_agent) -> None:
    agent = make_agent(num_epochs=1, minibatch_size=8)  # a single gradient step
    row = train(agent, 1).history[0]
    assert row["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert row["train/clip_fraction"] == 0


def test_each_token_is_paid_credit_minus_kl(make_agent, recorded) -> None:
    agent = make_agent(kl_coef=0.7)
    with torch.no_grad():  # a reference that differs
        agent.ref_policy.model.lm_head.weight.mul_(0.5)
    rollouts, labels = recorded(ppo, "collect_episodes"), recorded(ppo, "gae")
    row = train(agent, 1).history[0]
    rollout, rewards = rollouts[0].result, labels[0].args[0]
    with torch.no_grad():
        ref = agent.ref_policy.evaluate(*rollout.texts)
    kl = rollout.logprobs - ref.logprobs  # zero outside the mask
    torch.testing.assert_close(rewards, rollout.credit - 0.7 * kl, atol=1e-5, rtol=1e-5)
    assert row["rollout/kl"] == pytest.approx(kl.sum(1).mean().item(), rel=1e-4)


def test_a_truncated_episode_is_bootstrapped(make_agent, make_env, recorded) -> None:
    env = gym.wrappers.TimeLimit(make_env(min_new_tokens=5, max_new_tokens=6), 2)
    agent = make_agent(env=env, gamma=0.9)
    torch.nn.init.normal_(agent.policy.value_head.weight)
    old = copy.deepcopy(agent.policy)
    rollouts, labels = recorded(ppo, "collect_episodes"), recorded(ppo, "gae")
    train(agent, 1)
    rollout, rewards = rollouts[0].result, labels[0].args[0]
    assert rollout.truncated.all()
    with torch.no_grad():
        _, values = old(rollout.input_ids, rollout.attention_mask)
    # In the first iteration the KL is zero, and without an end there is no score.
    expected = torch.zeros_like(rewards)
    expected[:, -1] = 0.9 * values[:, -1]
    torch.testing.assert_close(rewards, expected)


def test_a_truncated_episode_of_another_process_is_valued_together(make_agent, monkeypatch) -> None:
    """All processes must make the same passes over sharded weights, or they wait for each other."""

    class WithOneThatCutsOff(Processes):
        def any(self, flag: bool) -> bool:
            return True

    agent = make_agent()
    agent.processes, valued = WithOneThatCutsOff(), []
    after_truncation = agent.critic.after_truncation

    def record(rollout):
        valued.append(after_truncation(rollout))
        return valued[-1]

    monkeypatch.setattr(agent.critic, "after_truncation", record)
    train(agent, 1)
    (values,) = valued
    assert not values.any()


def test_rows_of_wrapped_environments_play(make_agent, make_vector_env) -> None:
    agent = train(make_agent(env=VectorWrapper(make_vector_env(4))), 1)
    assert agent.policy.rules.eos_token_id == agent.env.unwrapped.tokenizer.eos_token_id == 2
    assert agent.policy.rules.min_new_tokens == 3


def test_autocast_trains(make_agent) -> None:
    agent = train(make_agent(dtype="bfloat16"), 2)
    assert agent.history[0]["rollout/kl"] == 0.0
    assert parameters(agent).isfinite().all()


# --- Logs


def test_every_iteration_writes_one_row(make_agent, tmp_path) -> None:
    agent = train(make_agent(), 3)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == agent.history
    assert [row["time/iteration"] for row in agent.history] == [1, 2, 3]
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert PPOConfig(**settings) == agent.config


def test_every_scalar_is_documented(make_agent) -> None:
    for name in train(make_agent(), 1).history[0]:
        assert f"\n{name} " in inspect.getdoc(PPO)


def test_tensorboard_shows_the_scalars(make_agent, tmp_path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    agent = train(make_agent(), 2)
    events = event_accumulator.EventAccumulator(str(tmp_path / "run")).Reload()
    assert set(events.Tags()["scalars"]) == set(agent.history[0])
    shown = [event.value for event in events.Scalars("rollout/score_mean")]
    assert shown == pytest.approx([row["rollout/score_mean"] for row in agent.history])


def test_building_an_agent_writes_nothing(make_agent, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    agent = make_agent(log_dir=None)
    assert agent.log_dir.parent == Path("runs")
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_shows_score_and_kl(make_agent, capsys) -> None:
    make_agent().learn(1, progress_bar=True)
    shown = capsys.readouterr().out
    assert "score" in shown
    assert "KL" in shown
    make_agent().learn(1)
    assert capsys.readouterr().out == ""


# --- Prediction


def test_predict_takes_single_and_batched_observations(make_agent, make_vector_env) -> None:
    agent = make_agent()
    observations, _ = make_vector_env(4).reset(seed=[0, 1, 2, 3])
    actions, state = agent.predict(observations, deterministic=True)
    assert state is None
    assert actions.shape == (4,)
    assert actions.dtype == np.int64
    for row in range(4):
        single = {name: values[row] for name, values in observations.items()}
        action, _ = agent.predict(single, deterministic=True)
        assert action.shape == ()
        assert action == actions[row]


def test_predict_refuses_a_text_longer_than_the_context(make_agent) -> None:
    ids = np.full(33, 5)
    with pytest.raises(InvalidArgumentError, match=r"(?s)^observation.*33 tokens.*takes 32"):
        make_agent().predict({"input_ids": ids, "attention_mask": np.ones_like(ids)})


def test_predict_obeys_action_masks(make_agent, make_vector_env) -> None:
    agent = make_agent()
    observations, _ = make_vector_env(4).reset(seed=[0, 1, 2, 3])
    only = np.zeros((4, agent.policy.rules.num_actions), dtype=np.int8)
    only[np.arange(4), [5, 6, 7, 8]] = 1
    for deterministic in (True, False):
        actions, _ = agent.predict(observations, deterministic=deterministic, action_masks=only)
        assert actions.tolist() == [5, 6, 7, 8]


def test_predict_samples_from_the_policy(make_agent, make_vector_env) -> None:
    agent = make_agent(temperature=2.0)
    observations, _ = make_vector_env(1).reset(seed=[0])
    many = {name: np.repeat(values, 20_000, axis=0) for name, values in observations.items()}
    actions, _ = agent.predict(many)
    text = torch.tensor(observations["input_ids"][:, observations["attention_mask"][0] == 1])
    with torch.no_grad():
        expected = (agent.policy.model(text).logits[0, -1] / 2.0).softmax(-1)
    shares = np.bincount(actions, minlength=agent.policy.rules.num_actions) / len(actions)
    np.testing.assert_allclose(shares, expected, atol=0.02)


def test_predict_does_not_disturb_training(make_agent, make_vector_env) -> None:
    quiet, busy = make_agent(), make_agent()
    busy.predict(make_vector_env(1).reset(seed=[0])[0])
    assert torch.equal(parameters(train(quiet, 1)), parameters(train(busy, 1)))


# --- Checkpoints


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_a_stop_in_between_changes_nothing(
    make_agent, make_model, make_vector_env, tmp_path, architecture: str
) -> None:
    model = make_model(architecture)
    whole = train(make_agent(model=model), 4)
    half = train(make_agent(model=model), 2)
    half.predict(make_vector_env(1).reset(seed=[0])[0])
    half.save(tmp_path / "half")
    resumed = train(PPO.load(tmp_path / "half", make_vector_env(4)), 2)
    assert torch.equal(parameters(whole), parameters(resumed))
    assert without_time(whole.history) == without_time(resumed.history)
    assert whole.kl_controller.coef == resumed.kl_controller.coef
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.history


def test_a_loaded_agent_without_environment_predicts_only(
    make_agent, make_vector_env, tmp_path
) -> None:
    agent = train(make_agent(), 1)
    agent.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", device="cpu", log_dir=tmp_path / "other")
    observations, _ = make_vector_env(4).reset(seed=[0, 1, 2, 3])
    np.testing.assert_array_equal(agent.predict(observations)[0], loaded.predict(observations)[0])
    assert loaded.log_dir == tmp_path / "other"
    with pytest.raises(InvalidArgumentError, match=r"PPO\.load\(path, env=\.\.\.\)"):
        loaded.learn(1)


def test_loading_leaves_the_global_generator_alone(make_agent, tmp_path) -> None:
    make_agent().save(tmp_path / "agent")
    before = torch.get_rng_state()
    PPO.load(tmp_path / "agent")
    assert torch.equal(before, torch.get_rng_state())


def test_an_environment_with_other_actions_is_refused(
    make_agent, make_vector_env, tmp_path
) -> None:
    make_agent().save(tmp_path / "agent")
    env = make_vector_env(4)
    env.tokenizer = None
    with pytest.raises(InvalidArgumentError, match="trained on"):
        PPO.load(tmp_path / "agent", env)


# --- Errors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("episodes_per_iteration", 0), ("episodes_per_iteration", 2.5), ("learning_rate", 0),
        ("learning_rate", "fast"), ("learning_rate", float("nan")), ("num_epochs", True),
        ("minibatch_size", 17), ("gamma", 1.1), ("gae_lambda", -0.1), ("clip_coef", 0.0),
        ("vf_coef", -1.0), ("vf_clip_coef", 0.0), ("ent_coef", float("inf")), ("kl_coef", -0.1),
        ("kl_target", 0), ("kl_horizon", 0), ("max_grad_norm", 0), ("temperature", 0),
        ("whiten_advantages", 1), ("seed", -1), ("device", "abacus"), ("dtype", "float16"),
    ],
)  # fmt: skip
def test_a_hyperparameter_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name}="):
        PPOConfig(**{name: value})


def test_an_unknown_hyperparameter_is_answered_with_its_neighbours(make_agent) -> None:
    with pytest.raises(InvalidArgumentError, match=r"did you mean.*learning_rate"):
        make_agent(learning_rat=1e-3)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("lr", "learning_rate"), ("target_kl", "max_approx_kl"), ("num_train_epochs", "num_epochs")],
)
def test_what_other_libraries_call_a_hyperparameter_is_understood(name: str, meant: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"did you mean {meant}\?"):
        PPOConfig.from_keywords(**{name: 0.1})


def test_names_of_other_libraries_lead_to_arguments_that_exist() -> None:
    takers = (PPOConfig, GRPOConfig, TextGenerationArguments)
    ours = {field.name for taker in takers for field in dataclasses.fields(taker)}
    assert set(checks._NAMES_ELSEWHERE.values()) <= ours | {"policy"}
    assert not set(checks._NAMES_ELSEWHERE) & ours


def test_the_folder_of_a_run_without_checkpoints_is_refused(make_agent) -> None:
    agent = train(make_agent(), 1)
    with pytest.raises(InvalidArgumentError, match="save_every"):
        PPO.load(agent.log_dir)


def test_episodes_that_do_not_fill_the_rows_are_refused_at_once(make_agent) -> None:
    with pytest.raises(InvalidArgumentError, match=r"episodes_per_iteration=10.*num_envs=4"):
        make_agent(episodes_per_iteration=10)
