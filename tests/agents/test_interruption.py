"""An iteration that is interrupted is undone, wherever it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gymnasium.vector import VectorWrapper

from textgym.agents import GRPO, PPO, RLOO
from textgym.agents.snapshot import Snapshot
from textgym.errors import InvalidArgumentError

MANY = 10**9


class Interrupting(VectorWrapper):
    """Raises in a certain step."""

    def __init__(self, env) -> None:
        super().__init__(env)
        self.num_steps_left = MANY
        self.error: type[BaseException] = KeyboardInterrupt

    def step(self, actions):
        self.num_steps_left -= 1
        if self.num_steps_left == 0:
            raise self.error
        return self.env.step(actions)


@pytest.fixture(params=[PPO, RLOO, GRPO], ids=["ppo", "rloo", "grpo"])
def make_agent(request, make_model, make_vector_env, tmp_path):
    def make(**hyperparameters):
        env = Interrupting(make_vector_env(4))
        return request.param(
            make_model(),
            env,
            episodes_per_iteration=8,
            learning_rate=3e-3,
            num_epochs=2,
            minibatch_size=3,  # three gradient steps in each of two epochs
            log_dir=tmp_path / "run",
            **hyperparameters,
        )

    return make


def train(agent, num_iterations: int):
    return agent.learn(MANY, callback=lambda row: row["time/iteration"] < num_iterations)


@pytest.fixture(scope="module")
def whole_runs() -> dict:
    return {}


@pytest.fixture
def whole(make_agent, whole_runs):
    """An agent after three iterations without a break."""
    agent = make_agent()
    if agent.name not in whole_runs:
        whole_runs[agent.name] = train(agent, 3)
    return whole_runs[agent.name]


def in_step(number: int) -> Callable:
    """In a step of the environment."""

    def arm(agent) -> None:
        agent.env.num_steps_left = number

    return arm


def in_reference(agent) -> None:
    """Between the rollout and the update."""

    def completion_logits(*texts):
        raise KeyboardInterrupt

    agent.ref_policy.completion_logits = completion_logits


def in_gradient_step(number: int, after: bool) -> Callable:
    """Before or after the optimizer's work in a gradient step."""

    def arm(agent) -> None:
        step, num_left = agent.optimizer.step, number

        def stepping():
            nonlocal num_left
            num_left -= 1
            if num_left == 0 and not after:
                raise KeyboardInterrupt
            step()
            if num_left == 0:
                raise KeyboardInterrupt

        agent.optimizer.step = stepping

    return arm


def in_controller(agent) -> None:
    """After the last gradient step."""

    def update(kl, num_episodes):
        agent.kl_controller.coef *= 2
        raise KeyboardInterrupt

    agent.kl_controller.update = update


def disarm(agent) -> None:
    agent.env.num_steps_left = MANY
    for owner, name in (
        (agent.ref_policy, "completion_logits"),
        (agent.optimizer, "step"),
        (agent.kl_controller, "update"),
    ):
        owner.__dict__.pop(name, None)


POINTS = {
    "first step": in_step(1),
    "later step": in_step(7),
    "reference": in_reference,
    "before the first gradient step": in_gradient_step(1, after=False),
    "after the first gradient step": in_gradient_step(1, after=True),
    "after the fifth gradient step": in_gradient_step(5, after=True),
    "controller": in_controller,
}


def state_of(agent) -> dict:
    return {
        "policy": [p.detach().clone() for p in agent.policy.parameters()],
        "optimizer": [
            value.clone()
            for state in agent.optimizer.state_dict()["state"].values()
            for value in state.values()
        ],
        "generators": [g.get_state() for g in agent._generators.values()],
        "rest": (
            agent.kl_controller.coef,
            agent.num_timesteps,
            [{k: v for k, v in row.items() if k != "time/seconds"} for row in agent.history],
        ),
    }


def assert_equal_states(first, second) -> None:
    first, second = state_of(first), state_of(second)
    assert first["rest"] == second["rest"]
    for name in ("policy", "optimizer", "generators"):
        assert len(first[name]) == len(second[name])
        assert all(torch.equal(a, b) for a, b in zip(first[name], second[name], strict=True))


@pytest.mark.parametrize("num_finished", [0, 1])
@pytest.mark.parametrize("arm", POINTS.values(), ids=POINTS)
def test_an_interrupted_run_continues_as_if_it_was_not(
    make_agent, whole, make_vector_env, tmp_path, arm: Callable, num_finished: int
) -> None:
    broken = make_agent()
    if num_finished:
        train(broken, num_finished)
    arm(broken)
    with pytest.raises(KeyboardInterrupt):
        train(broken, 3)
    disarm(broken)
    broken.save(tmp_path / "broken")
    assert len(broken.history) == num_finished
    # Both the agent itself and the one from the file.
    assert_equal_states(train(broken, 3), whole)
    loaded = type(broken).load(tmp_path / "broken", make_vector_env(4))
    assert_equal_states(train(loaded, 3), whole)


def test_a_second_interruption_of_the_undoing_does_no_harm(
    make_agent, whole, make_vector_env, tmp_path, monkeypatch
) -> None:
    broken = train(make_agent(), 2)
    in_gradient_step(2, after=True)(broken)
    with monkeypatch.context() as patch:

        def restore(self):
            with torch.no_grad():
                next(iter(self._parameters.values())).zero_()
            raise KeyboardInterrupt

        patch.setattr(Snapshot, "restore", restore)
        with pytest.raises(KeyboardInterrupt):
            train(broken, 3)
    disarm(broken)
    broken.save(tmp_path / "broken")
    assert_equal_states(train(broken, 3), whole)
    loaded = type(broken).load(tmp_path / "broken", make_vector_env(4))
    assert_equal_states(train(loaded, 3), whole)


def test_an_iteration_that_fails_is_undone(make_agent) -> None:
    agent, unbroken = train(make_agent(), 2), train(make_agent(), 2)
    agent.env.num_steps_left, agent.env.error = 3, ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        train(agent, 3)
    assert_equal_states(agent, unbroken)


def test_without_undo_an_interrupted_agent_goes_on_from_its_checkpoint(
    make_agent, whole, make_vector_env, tmp_path
) -> None:
    broken = train(make_agent(undo=False), 1)
    assert not broken._snapshot._tensors
    assert broken.can_be_saved
    broken.save(tmp_path / "first")
    in_gradient_step(2, after=True)(broken)
    with pytest.raises(KeyboardInterrupt):
        train(broken, 3)
    disarm(broken)
    assert not broken.can_be_saved
    for call in (
        lambda: train(broken, 3),
        lambda: broken.save(tmp_path / "second"),
        lambda: broken.save_numbered(),
        lambda: broken.save_pretrained(tmp_path / "third"),
    ):
        with pytest.raises(InvalidArgumentError, match=rf"^undo=False.*{broken.name}\.load"):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "run"]
    loaded = type(broken).load(tmp_path / "first", make_vector_env(4))
    assert_equal_states(train(loaded, 3), whole)


def test_a_callback_that_raises_leaves_a_finished_iteration(make_agent) -> None:
    agent, unbroken = make_agent(), train(make_agent(), 1)

    def callback(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        agent.learn(MANY, callback=callback)
    assert_equal_states(agent, unbroken)
    train(agent, 3)
    assert_equal_states(agent, train(unbroken, 3))
