"""Credit by a function of your own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection

from torch import Tensor

from textgym.checks import check_takes
from textgym.credit.base import HindsightCredit
from textgym.credit.checks import check_finite_credit
from textgym.credit.start import Start
from textgym.errors import InvalidArgumentError
from textgym.models import Readout, ScoredCompletions
from textgym.models.readouts import checked_readouts

__all__ = ["AttributionFunction", "FunctionCredit"]

AttributionFunction = Callable[[ScoredCompletions], Tensor]
"""A function from scored completions to attributions, shape (batch, num_tokens)."""


class FunctionCredit(HindsightCredit):
    """Credit by any function of the scored completions.

    The function says how much of the score each token earned. Whatever is missing for the score
    goes to the last token, as with every method.

    Cost: that of the function. Guarantee: every trajectory keeps its return, as with all hindsight
    credit.

    Args:
        function: Takes :class:`textgym.models.ScoredCompletions` and returns attributions in units
            of the score, shape (batch, num_tokens).
        beta: Share of the attributions that is paid, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        readouts: The read-outs that the function needs.
        start: See :class:`textgym.credit.HindsightCredit`. With "prompt" the function sees scores
            from which the prompt's own is taken off already.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or ``function`` is not a function
            of one argument.

    Example:
        All of the score goes to the first token, and β = 0.5 pays half of it there:

        >>> from textgym.credit import FunctionCredit
        >>> from textgym.models import Completions
        >>> def first(scored):
        ...     is_first = scored.completion_mask & (scored.completion_mask.cumsum(1) == 1)
        ...     return is_first * scored.score[:, None]
        >>> scored = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]]).with_score([2.0])
        >>> FunctionCredit(first, beta=0.5)(scored)[0, 2:]
        tensor([1., 0., 0., 0., 1.])
    """

    name = "function"
    signed = True
    sums_to = "no fixed sum"
    cost = "the function's own"

    def __init__(
        self,
        function: AttributionFunction,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        readouts: Collection[Readout] = (),
        start: Start = "zero",
    ) -> None:
        if not callable(function) or inspect.isclass(function):
            raise InvalidArgumentError("function", function, "pass a function")
        check_takes("credit", function, "a credit function takes the scored completions", None)
        self.function = function
        self.readouts = checked_readouts(readouts)
        super().__init__(beta, gamma, start=start)

    def attributions(self, scored: ScoredCompletions) -> Tensor:
        """Call the function.

        Raises:
            InvalidArgumentError: If it returns another shape than (batch, num_tokens), or a number
                that is not finite for a token of a completion.
        """
        values = self.function(scored)
        if not isinstance(values, Tensor) or values.shape != scored.input_ids.shape:
            raise InvalidArgumentError(
                "credit",
                getattr(values, "shape", type(values).__name__),
                "the credit function must return a tensor with the shape of the completions' "
                f"input_ids, here {tuple(scored.input_ids.shape)}",
            )
        check_finite_credit(values, scored, getattr(self.function, "__name__", "the function"))
        return values
