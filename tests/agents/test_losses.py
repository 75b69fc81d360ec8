from __future__ import annotations

import pytest
import torch

from textgym.agents import LanguageModelPolicy, collect_episodes
from textgym.agents.environment import action_rules
from textgym.agents.losses import (
    Batch,
    clip_gradients,
    clipped_surrogate,
    is_clipped,
    masked_mean,
    whitening,
)
from textgym.errors import NumericalError

MASK = torch.arange(5) < torch.tensor([5, 1, 3])[:, None]


def ragged(seed: int) -> torch.Tensor:
    """Numbers inside the mask, rubbish outside."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.masked_fill(~MASK, 1e6)


def test_masked_mean_ignores_infinities_outside() -> None:
    x = torch.tensor([[1.0, 2.0, -torch.inf], [3.0, torch.nan, torch.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == 2.0


def test_whitening_gives_mean_0_and_variance_1() -> None:
    x = ragged(0)[MASK]
    shift, scale = whitening(x)
    white = (x - shift) * scale
    assert white.mean().item() == pytest.approx(0, abs=1e-9)
    assert white.var(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_whitening_one_entry_gives_zero() -> None:
    shift, scale = whitening(torch.tensor([3.0]))
    assert (3.0 - shift) * scale == 0.0


def parameters_with_gradients(*gradients: list[float]) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters


def test_gradients_above_the_norm_are_scaled_down_together() -> None:
    parameters = parameters_with_gradients([3.0], [0.0, 4.0])
    assert clip_gradients(parameters, max_norm=2.5).item() == 5.0
    torch.testing.assert_close(parameters[0].grad, torch.tensor([1.5]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.0, 2.0]))


def test_gradients_below_the_norm_stay_as_they_are() -> None:
    parameters = [*parameters_with_gradients([3.0], [0.0, 4.0]), torch.nn.Parameter(torch.ones(1))]
    assert clip_gradients(iter(parameters), max_norm=5.1).item() == 5.0
    assert parameters[0].grad.item() == 3.0
    assert parameters[1].grad.tolist() == [0.0, 4.0]
    assert parameters[2].grad is None


def test_gradients_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(NumericalError, match=r"^norm of the gradient=nan"):
        clip_gradients(parameters_with_gradients([torch.nan]), max_norm=1.0)


def test_minibatches_lose_their_common_padding_and_nothing_else(
    make_model, make_vector_env, generator
) -> None:
    env = make_vector_env(4)
    policy = LanguageModelPolicy(make_model(), action_rules(env))
    torch.nn.init.normal_(policy.value_head.weight)
    batch = Batch(*collect_episodes(policy, env, 16, generator).texts)
    shapes = set()
    with torch.no_grad():
        whole = policy.evaluate(*batch.texts)
        for indices in torch.arange(16).split(2):
            minibatch = batch.minibatch(indices)
            num_steps = minibatch.completion_mask.shape[1]
            for name, part in vars(policy.evaluate(*minibatch.texts)).items():
                expected = getattr(whole, name)[indices]
                torch.testing.assert_close(part, expected[:, :num_steps], atol=1e-5, rtol=1e-5)
                assert (expected[:, num_steps:] == 0).all()
            shapes.add(tuple(minibatch.input_ids.shape))
    assert len(shapes) > 1


def test_each_epoch_sees_every_episode_once_in_an_order_of_its_own(generator) -> None:
    ids = torch.arange(10)[:, None].expand(10, 4)
    mask = torch.ones(10, 4, dtype=torch.bool)
    batch = Batch(ids, mask, mask[:, 1:])
    minibatches = list(batch.minibatches(2, 4, generator))
    assert [len(mb.input_ids) for mb in minibatches] == [4, 4, 2, 4, 4, 2]
    epochs = [torch.cat([mb.input_ids[:, 0] for mb in minibatches[i : i + 3]]) for i in (0, 3)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert len(list(batch.minibatches(1, None, generator))) == 1


# --- Clipping


@pytest.mark.parametrize("clip_coef", [0.2, 1.0, 3.0])
def test_the_surrogate_is_that_of_the_paper(clip_coef: float) -> None:
    log_ratio = torch.linspace(-3, 3, 25, dtype=torch.float64).repeat(3, 1).requires_grad_()
    advantages = torch.tensor([[0.7], [-1.3], [0.0]], dtype=torch.float64).expand(3, 25)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_coef, 1.4)
    expected = torch.minimum(advantages * ratio, advantages * clipped)
    surrogate = clipped_surrogate(log_ratio, advantages, clip_coef, 0.4)
    torch.testing.assert_close(surrogate, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.sum(), log_ratio)[0] for x in (surrogate, expected))
    )


def test_a_clipped_ratio_that_is_infinite_has_no_gradient() -> None:
    """Tokens of a long completion that each became e times as likely."""
    log_ratio = torch.tensor([150.0, 150.0, -150.0], requires_grad=True)
    surrogate = clipped_surrogate(log_ratio, torch.tensor([2.0, 0.0, -2.0]), 0.2)
    surrogate.sum().backward()
    torch.testing.assert_close(surrogate, torch.tensor([2.4, 0.0, -1.6]))
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == [0.0, 0.0, 0.0]


def test_the_upper_clip_may_be_wider_than_the_lower_one() -> None:
    # Ratios below, within and above 1 − 0.2 and 1 + 0.28; advantages of both signs.
    log_ratio = torch.tensor([0.7, 0.79, 0.81, 1.25, 1.27, 1.3]).log().repeat(2, 1)
    log_ratio.requires_grad_()
    advantages = torch.tensor([[1.0], [-1.0]]).expand(2, 6)
    surrogate = clipped_surrogate(log_ratio, advantages, 0.2, 0.28)
    surrogate.sum().backward()
    assert (log_ratio.grad != 0).tolist() == [
        [True, True, True, True, True, False],  # a good token is pushed up until 1.28
        [False, False, True, True, True, True],  # a bad one is pushed down until 0.8
    ]
    assert surrogate[0, -1].item() == pytest.approx(1.28)
    assert surrogate[1, 0].item() == pytest.approx(-0.8)
    expected = [True, True, False, False, False, True]
    assert is_clipped(log_ratio, 0.2, 0.28)[0].tolist() == expected
    assert is_clipped(log_ratio, 0.2)[0].tolist() == [True, True, False, True, True, True]
