"""Numbers that would end a training later, far from where they came from: NaN and infinities.

They are looked for where they enter, in what an environment pays and in what a policy says, and
once more in the gradient. The error undoes the iteration, so the weights never see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from textgym.errors import NumericalError

if TYPE_CHECKING:
    from .rollout import Rollout

__all__ = ["check_gradient_norm", "check_probabilities", "check_rollout"]


def check_rollout(rollout: Rollout) -> None:
    """Make sure that all that an environment paid is finite.

    Raises:
        NumericalError: If not; it names the quantity, the prompt and the completion.
    """
    mask = rollout.completion_mask
    for name, values in {
        "score": rollout.scores,
        "reward": rollout.rewards.masked_fill(~mask, 0.0),
        "credit": rollout.credit.masked_fill(~mask, 0.0),
    }.items():
        wrong = ~values.isfinite()
        if wrong.any():
            episode = int(wrong.view(len(values), -1).any(dim=1).nonzero()[0])
            value = values[episode][wrong[episode]].flatten()[0].item()
            prompt, completion = _texts(rollout, episode)
            raise NumericalError(
                name,
                value,
                f"of the completion {completion!r} of the prompt {prompt!r}",
                "find out why the environment or its reward model gives it, and score it otherwise",
            )


def check_probabilities(total: Tensor) -> None:
    """Make sure that the probabilities of each row sum to a number.

    Args:
        total: The sums, (batch,).

    Raises:
        NumericalError: If not; it names the row.
    """
    if not total.isfinite().all():
        row = int((~total.isfinite()).nonzero()[0])
        raise NumericalError(
            "probability of the next token",
            total[row].item(),
            f"in row {row}",
            "the policy's logits are NaN or infinite, so its weights have diverged: go on from an "
            "earlier checkpoint, with a lower learning_rate or a higher kl_coef",
        )


def check_gradient_norm(norm: Tensor, terms: Mapping[str, Tensor]) -> None:
    """Make sure that a gradient is finite.

    Args:
        norm: Of the gradient.
        terms: Parts of the loss that it is the gradient of, by name.

    Raises:
        NumericalError: If not; it names the terms that are not finite either.
    """
    if norm.isfinite():
        return
    wrong = [f"{name} is {x.item():g}" for name, x in terms.items() if not x.isfinite().all()]
    raise NumericalError(
        "norm of the gradient",
        norm.item(),
        f"where {' and '.join(wrong)}" if wrong else "though the loss is finite",
        "scores, credit or probability ratios are too large for float32: scale the score, or take "
        "a lower learning_rate, fewer epochs or max_approx_kl",
    )


def _texts(rollout: Rollout, episode: int) -> tuple[str, str]:
    """Prompt and completion, as text if the environment gives it, or else as token ids."""
    if rollout.completions[episode] or rollout.prompts[episode]:
        return rollout.prompts[episode], rollout.completions[episode]
    num_steps = rollout.completion_mask.shape[1]
    ids, mask = rollout.input_ids[episode], rollout.attention_mask[episode]
    prompt = ids[:-num_steps][mask[:-num_steps]]
    completion = ids[-num_steps:][mask[-num_steps:]]
    return str(prompt.tolist()), str(completion.tolist())
