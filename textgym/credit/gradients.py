"""Credit by gradients: how the score responds to the embeddings of the completion's tokens."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from textgym.checks import check_whole_number
from textgym.credit.base import HindsightCredit
from textgym.credit.perturbation import reward_model_of
from textgym.credit.registry import register_credit_assigner
from textgym.credit.start import Start
from textgym.errors import InvalidArgumentError, MissingDependencyError
from textgym.models import GradientScorer, GradientTimesInput, LeftAligned, ScoredCompletions

__all__ = ["GradientTimesInputCredit", "IntegratedGradientsCredit", "mean_embedding"]


@register_credit_assigner
class GradientTimesInputCredit(HindsightCredit):
    """The gradient of the score by a token's embedding, times that embedding.

    attribution_t = Σ_d e_td ∂R/∂e_td (Shrikumar et al., 2016, arXiv 1605.01713), also known as
    input × gradient. To first order, it is what the score would lose if the embedding were 0. The
    method looks along the embedding only. A model that begins with a normalisation (RMSNorm) hardly
    reacts to an embedding's length, so there it sees little: compare it with
    :class:`IntegratedGradientsCredit` before you trust it.

    Cost: one backward pass. The forward pass is the one that scores.

    Guarantee: at γ = 1 every completion keeps its return. The attributions have no fixed sum;
    whatever is missing for the score goes to the last token.

    Args:
        beta: Share of the attributions that is paid, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        The score is 2 and the products of the completion sum to 1.5. The missing 0.5 goes to the
        last token.

        >>> from textgym.credit import GradientTimesInputCredit
        >>> from textgym.models import Completions, GradientTimesInput
        >>> products = [0.25, 0.5, 0.5, 1.0, -1.0, 0.5, 0.5]
        >>> completions = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
        >>> scored = completions.with_score([2.0], {GradientTimesInput(): [products]})
        >>> GradientTimesInputCredit(beta=1.0)(scored)[0, 2:]
        tensor([ 0.5000,  1.0000, -1.0000,  0.5000,  1.0000])
    """

    name = "gradient-times-input"
    label = "gradient × input"
    paper = "arXiv 1605.01713"
    signed = True
    sums_to = "no fixed sum"
    cost = "1 backward pass"
    readouts = frozenset({GradientTimesInput()})

    def backward_passes(self, num_tokens: int) -> int:
        """One backward pass, for the gradient."""
        return 1

    def attributions(self, scored: ScoredCompletions) -> Tensor:
        """Gradient times input, shape (batch, num_tokens)."""
        return scored[GradientTimesInput()]


def _differentiable(scored: ScoredCompletions) -> GradientScorer:
    reward_model: Any = reward_model_of(scored)
    if not hasattr(reward_model, "score_embeddings"):
        raise InvalidArgumentError(
            "reward_model",
            type(reward_model).__name__,
            "integrated gradients follow its embeddings, and it has none; use occlusion",
        )
    return reward_model


@torch.no_grad()
def mean_embedding(reward_model: GradientScorer) -> Tensor:
    """Mean embedding over the vocabulary, shape (hidden_size,)."""
    vocabulary = torch.arange(reward_model.num_embeddings, device=reward_model.device)
    # Some models scale the embeddings they look up, so this embeds every token instead of averaging
    # the table. It goes in parts because the table may be large.
    parts = [reward_model.embed(ids[None])[0].float().sum(0) for ids in vocabulary.split(4096)]
    return torch.stack(parts).sum(0) / len(vocabulary)


@register_credit_assigner
class IntegratedGradientsCredit(HindsightCredit):
    """Gradients along the straight line from a baseline to the completion's embeddings.

    attribution_t = Σ_d (e_td - b_d) ∫_0^1 ∂R/∂e_td at b + α(e - b) dα (Sundararajan et al., 2017,
    arXiv 1703.01365), computed by captum with Gauss-Legendre quadrature. Only the embeddings of the
    completion move; those of the prompt stay as they are.

    Use the baseline "zero" only for models that do not begin with a normalisation (RMSNorm). Such a
    model sees only an embedding's direction. The direction is the same all the way to zero, where
    the gradient has a pole, so the sum does not come near the score.
    ``benchmarks/credit_fidelity.py`` measures the error of both baselines on the embedded reward
    model.

    Cost: ``num_steps`` forward passes and as many backward passes per completion.

    Guarantee: at γ = 1 every completion keeps its return. Up to the error of the quadrature, the
    attributions sum to the reward model's score minus its score of the baseline (the prompt,
    followed by the baseline instead of the completion's embeddings).

    Args:
        beta: Share of the attributions that is paid, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        num_steps: Number of points on the line, at least 1.
        baseline: Where the line begins: "mean" is the mean embedding over the vocabulary, "zero" is
            the zero vector.
        internal_batch_size: Largest number of texts in one forward pass.
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        MissingDependencyError: If captum is not installed (``pip install "textgym[attribution]"``).

    Example:
        The planted reward model scores "not very bad" with 2 and the baseline with 0.

        >>> from textgym.credit import IntegratedGradientsCredit
        >>> from textgym.models import Completions, load_reward_model
        >>> from textgym.planted import encode
        >>> reward_model = load_reward_model("planted")
        >>> prompt_ids = encode("the film was")
        >>> completion_ids = encode("not very bad")[1:]  # without the start token
        >>> scored = reward_model.read(Completions.from_lists([prompt_ids], [completion_ids]))
        >>> IntegratedGradientsCredit(beta=1.0)(scored)[0, 4:].round(decimals=1)
        tensor([0.2000, 0.8000, 0.9000])
    """

    name = "integrated-gradients"
    label = "integrated gradients"
    paper = "arXiv 1703.01365"
    signed = True
    sums_to = "score - baseline score"
    cost = "32 forward and 32 backward passes"

    def __init__(
        self,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        num_steps: int = 32,
        baseline: Literal["mean", "zero"] = "mean",
        internal_batch_size: int = 256,
        start: Start = "zero",
    ) -> None:
        super().__init__(beta, gamma, start=start)
        self.num_steps = check_whole_number("num_steps", num_steps, 1)
        if baseline not in ("mean", "zero"):
            raise InvalidArgumentError("baseline", baseline, 'pass "mean" or "zero"')
        self.baseline = baseline
        self.internal_batch_size = check_whole_number("internal_batch_size", internal_batch_size, 1)
        if find_spec("captum") is None:
            raise MissingDependencyError("captum", "attribution", "the credit integrated-gradients")

    def forward_passes(self, num_tokens: int) -> int:
        """One pass for each point on the line."""
        return self.num_steps

    def backward_passes(self, num_tokens: int) -> int:
        """One pass for each point on the line."""
        return self.num_steps

    @torch.no_grad()
    def _line(self, scored: ScoredCompletions) -> tuple[LeftAligned, Tensor, Tensor]:
        """The texts, and both ends of the line, each (batch, longest text, hidden_size)."""
        reward_model = _differentiable(scored)
        text = LeftAligned.of(scored)
        end = reward_model.embed(text.input_ids)
        baseline = torch.zeros_like(end)
        if self.baseline == "mean":
            baseline = baseline + mean_embedding(reward_model).to(end)
        moves = scored.completion_mask.gather(1, text.order)[:, :, None]
        return text, torch.where(moves, baseline, end), end

    def attributions(self, scored: ScoredCompletions) -> Tensor:
        """Integrated gradients, summed over the components, shape (batch, num_tokens)."""
        return scored.by_reward_model_token(self._integrate)

    def _integrate(self, scored: ScoredCompletions) -> Tensor:
        from captum.attr import IntegratedGradients

        text, start, end = self._line(scored)
        method = IntegratedGradients(_differentiable(scored).score_embeddings)
        parts = []
        # captum splits the steps into smaller batches, but not the rows.
        for rows in torch.arange(len(scored), device=end.device).split(self.internal_batch_size):
            part = method.attribute(
                end[rows],
                start[rows],
                additional_forward_args=(text.attention_mask[rows],),
                n_steps=self.num_steps,
                method="gausslegendre",
                internal_batch_size=self.internal_batch_size,
            )
            parts.append(part.detach().float().sum(-1))
        return text.restore(torch.cat(parts))
