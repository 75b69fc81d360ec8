"""Values from the completions of one prompt: those that begin alike share a value.

Several completions of a prompt form a tree of prefixes. The scores of those that pass through a
node estimate the node's value, at no cost (Tran et al., 2025, "Exploiting Tree Structure for Credit
Assignment in RL Training of LLMs", arXiv 2509.18314, "Prefix-to-Tree").
"""

from __future__ import annotations

import torch
from torch import Tensor

from textgym.checks import check_whole_number
from textgym.errors import InvalidArgumentError

__all__ = ["prefix_tree_values"]


def prefix_tree_values(
    completion_ids: Tensor, completion_mask: Tensor, returns: Tensor, group_size: int
) -> Tensor:
    """Estimate V of each state by the mean return of the *other* completions that came through it.

    The completion itself does not count, unlike in the paper. So the value of a state knows nothing
    of what this completion does next, and return - value is an unbiased advantage: use it with
    λ = 1 (:func:`textgym.agents.ppo.gae`). At the first token it is RLOO's advantage.

    Where no other completion shares the prefix, the value of the longest prefix that one shares is
    carried on. It remains a value that knows nothing of later tokens, so the advantage stays
    unbiased; but it no longer says how the text has gone since. Differences of values, as with
    λ = 0, are then 0 up to the last token and do not estimate an advantage. Most completions of a
    policy with high entropy part after a token or two: this pays for peaked policies, many
    completions per prompt, and short ones.

    Args:
        completion_ids: The generated tokens, int64 (num_episodes, num_steps).
        completion_mask: True at the generated tokens, bool (num_episodes, num_steps); each row has
            them at its start, and at least one.
        returns: What each completion got in all, such as its score, (num_episodes,).
        group_size: The members of a group are one after the other, and have the same prompt and
            the same token budget, as in a rollout of
            :func:`~textgym.agents.collect_episodes` with this ``group_size``. At least 2.

    Returns:
        V of the state in which each token was chosen, float32 (num_episodes, num_steps), 0 outside
        the mask.

    Raises:
        InvalidArgumentError: If the groups do not divide the episodes, or have one member.

    Example:
        Three completions of one prompt, "5 6", "5 7" and "8", score 1, 3 and 8. In state "5" the
        first knows the second, and the other way round.

        >>> ids = torch.tensor([[5, 6], [5, 7], [8, 0]])
        >>> mask = torch.tensor([[True, True], [True, True], [True, False]])
        >>> prefix_tree_values(ids, mask, torch.tensor([1.0, 3.0, 8.0]), group_size=3)
        tensor([[5.5000, 3.0000],
                [4.5000, 1.0000],
                [2.0000, 0.0000]])
    """
    num_episodes, num_steps = completion_ids.shape
    check_whole_number("group_size", group_size, 2)
    if num_episodes % group_size:
        raise InvalidArgumentError(
            "group_size",
            group_size,
            f"must divide the number of episodes, {num_episodes}.",
        )
    ids = completion_ids.view(-1, group_size, num_steps)
    mask = completion_mask.view(-1, group_size, num_steps)
    others = returns.float().view(-1, 1, group_size)
    # Whether episodes i and j of a group have been in the same state so far, (groups, i, j).
    together = ~torch.eye(group_size, dtype=torch.bool, device=ids.device)[None]
    value = ids.new_zeros(ids.shape[:2], dtype=torch.float32)  # (groups, i)
    values = []
    for t in range(num_steps):
        together = together & mask[:, None, :, t]
        count = together.sum(dim=2)
        mean = (others * together).sum(dim=2) / count.clamp(min=1)
        value = torch.where(count > 0, mean, value)
        values.append(value)
        together = together & (ids[:, :, None, t] == ids[:, None, :, t])
    return (
        torch.stack(values, dim=2).view(num_episodes, num_steps).masked_fill(~completion_mask, 0.0)
    )
