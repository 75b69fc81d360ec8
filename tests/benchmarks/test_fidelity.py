"""What credit_fidelity.py measures, against independent computations."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from fidelity import correlation, gradient
from fidelity.cost import count_passes
from fidelity.task import METHODS, Task, credit_of

from textgym import exact


@pytest.fixture(scope="module")
def task():
    return Task("planted")


@pytest.fixture(scope="module")
def completions(task):
    return task.sample(64)


def test_rank_correlation():
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    assert correlation.rank_correlation(truth**3, truth) == pytest.approx(1.0)
    assert correlation.rank_correlation(-truth, truth) == pytest.approx(-1.0)
    assert correlation.rank_correlation(np.array([0.1, 0.3, 0.2, 0.4]), truth) == pytest.approx(0.8)
    assert correlation.rank_correlation(np.full(4, 0.25), truth) == 0.0


def test_gradient_and_variance_of_an_enumerated_tree():
    texts = list(itertools.product((0, 1, 2), repeat=2))
    tree = exact.Trajectories.of_texts(texts, num_actions=3)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(tree.num_states, 3))
    rewards = rng.normal(size=(len(texts), 2))
    found, variance = gradient.gradient_of(tree, logits, rewards)

    parameters = torch.tensor(logits, requires_grad=True)
    logprobs = parameters.log_softmax(dim=1)
    chosen = logprobs[tree.states, tree.actions]  # (num_texts, 2)
    probability = chosen.detach().sum(1).exp()
    returns = torch.tensor(rewards).flip(1).cumsum(1).flip(1)
    values = torch.zeros(tree.num_states, dtype=torch.float64)
    for state in range(tree.num_states):
        here = torch.tensor(tree.states == state)
        weights = probability[:, None] * here
        values[state] = (weights * returns).sum() / weights.sum()
    advantages = returns - values[tree.states]
    of_episodes = []
    for row in range(len(texts)):
        (of_episode,) = torch.autograd.grad(
            (chosen[row] * advantages[row]).sum(), parameters, retain_graph=True
        )
        of_episodes.append(of_episode.flatten())
    estimates = torch.stack(of_episodes)
    mean = probability @ estimates
    np.testing.assert_allclose(np.ravel(found), mean, atol=1e-12)
    expected = probability @ (estimates - mean).square().sum(1)
    assert variance == pytest.approx(expected.item())


@pytest.mark.parametrize("method", ["uniform", "ABC", "shuffled ABC", "causal shaping", "ABC-D"])
def test_all_of_the_score_is_redistributed(task, completions, method):
    credit, score = credit_of(task, task.assigner(*METHODS[method]), completions, chunk=24)
    np.testing.assert_allclose(credit.sum(1), score, atol=1e-4)
    assert (credit[~completions.completion_mask] == 0).all()


@pytest.mark.parametrize(
    ("method", "forward", "backward"),
    [("ABC", 1, 0), ("causal shaping", 1, 0), ("ABC-D", 2, 0), ("gradient × input", 1, 1)],
)
def test_passes_are_counted(task, completions, method, forward, backward):
    assigner = task.assigner(*METHODS[method])
    passes = count_passes(
        task, lambda: assigner(task.reward_model.read(completions, assigner.readouts))
    )
    assert passes == (forward * len(completions), backward * len(completions))


def test_the_raw_numbers_of_correlation_and_gradient(tmp_path):
    methods = {name: METHODS[name] for name in ("sparse", "uniform", "causal shaping")}
    correlation.measure(tmp_path, methods, num_completions=64)
    rows = pd.read_parquet(tmp_path / "correlation.parquet")
    assert rows["method"].unique().tolist() == list(methods)
    assert rows.query("method == 'uniform'")["signed"].eq(0).all()  # It orders nothing.
    gradient.measure(tmp_path, methods, horizon=2)
    rows = pd.read_csv(tmp_path / "gradient.csv").set_index(["method", "beta"])
    # Causal shaping leaves the gradient as it is, and uniform credit does not.
    assert rows.loc[("causal shaping", 1.0)].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert rows.loc[("uniform", 1.0), "cosine"] < 0.9999
