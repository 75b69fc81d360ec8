"""Credit assigners by name, the user's own among them."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from textgym.credit.base import CreditAssigner, HindsightCredit
from textgym.errors import InvalidArgumentError
from textgym.models import Readout, ScoredCompletions

__all__ = [
    "CREDIT_ASSIGNERS",
    "FunctionCredit",
    "find_credit_assigner",
    "get_credit_assigner",
    "register_credit_assigner",
]

CREDIT_ASSIGNERS: dict[str, type[CreditAssigner]] = {}
"""The credit assigners by name, in the order of their registration."""

AttributionFunction = Callable[[ScoredCompletions], Tensor]


class FunctionCredit(HindsightCredit):
    """Attributions by any function of the scored completions.

    The function returns what it attributes to every token, in units of the score; what is missing
    for the score goes to the last token, as everywhere.

    Cost: what the function costs. Guarantee: that of hindsight credit, the return of every
    trajectory is kept.

    Args:
        function: Takes :class:`textgym.models.ScoredCompletions`, returns attributions of shape
            (batch, num_tokens).
        beta: Share of the attributions that is paid, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        readouts: What the function needs read out.

    Raises:
        InvalidArgumentError: If an argument is out of its range or ``function`` is none.

    Example:
        All of the score on the first token:

        >>> from textgym.credit._example import five_tokens
        >>> def first(scored):
        ...     is_first = scored.completion_mask & (scored.completion_mask.cumsum(1) == 1)
        ...     return is_first * scored.score[:, None]
        >>> FunctionCredit(first, beta=0.5)(five_tokens())[0, 2:]
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
    ) -> None:
        super().__init__(beta, gamma)
        if not callable(function):
            raise InvalidArgumentError("function", function, "pass a function")
        self.function = function
        self.readouts = frozenset(readouts)

    def attributions(self, scored: ScoredCompletions) -> Tensor:
        """What the function returns.

        Raises:
            InvalidArgumentError: If that has another shape than the completions.
        """
        values = self.function(scored)
        if not isinstance(values, Tensor) or values.shape != scored.input_ids.shape:
            raise InvalidArgumentError(
                "credit",
                getattr(values, "shape", type(values).__name__),
                "a credit function must return a tensor of the shape of the completions' "
                f"input_ids, here {tuple(scored.input_ids.shape)}",
            )
        return values


def register_credit_assigner(
    assigner: type[CreditAssigner] | None = None,
    *,
    name: str = "",
    readouts: Collection[Readout] = (),
    paper: str = "none",
) -> Any:
    """Make an assigner known by its name; a decorator of classes and of functions.

    Args:
        assigner: A subclass of :class:`CreditAssigner`, which carries its own name; or nothing, to
            decorate a function from scored completions to attributions
            (:class:`FunctionCredit`).
        name: The function's name in :data:`CREDIT_ASSIGNERS`.
        readouts: What the function needs read out.
        paper: Where the function comes from.

    Returns:
        What was decorated, unchanged.

    Raises:
        InvalidArgumentError: If the name is taken or missing, or something else is decorated.

    Example:
        >>> @register_credit_assigner(name="second-half")
        ... def second_half(scored):
        ...     position = scored.completion_mask.cumsum(1)
        ...     late = scored.completion_mask & (position > position[:, -1:] / 2)
        ...     return late * scored.score[:, None] / late.sum(1, keepdim=True)
        >>> get_credit_assigner("second-half", beta=1.0)
        second_half(beta=1.0, gamma=1.0)
        >>> del CREDIT_ASSIGNERS["second-half"]
    """
    if assigner is None:

        def register_function(function: AttributionFunction) -> AttributionFunction:
            _register(_named(function, name, readouts, paper))
            return function

        return register_function
    if not (inspect.isclass(assigner) and issubclass(assigner, CreditAssigner)):
        raise InvalidArgumentError(
            "assigner",
            assigner,
            "decorate a subclass of CreditAssigner; a function takes "
            '@register_credit_assigner(name="...")',
        )
    _register(assigner)
    return assigner


def _named(
    function: AttributionFunction, name: str, readouts: Collection[Readout], paper: str
) -> type[FunctionCredit]:
    """A class for a function, as the registry holds classes."""

    def init(self: FunctionCredit, beta: float = 0.8, gamma: float = 1.0) -> None:
        FunctionCredit.__init__(self, function, beta, gamma, readouts=readouts)

    body = {"name": name, "paper": paper, "__doc__": function.__doc__, "__init__": init}
    return type(getattr(function, "__name__", name), (FunctionCredit,), body)


def _register(assigner: type[CreditAssigner]) -> None:
    name = getattr(assigner, "name", "")
    if not name or ":" in name:
        raise InvalidArgumentError("name", name, "give the assigner a name, without a colon")
    known = CREDIT_ASSIGNERS.get(name)
    # The same name of a class is the same module that runs twice, as under `python -m`.
    if known is not None and known.__name__ != assigner.__name__:
        raise InvalidArgumentError("name", name, f"is taken by {known.__name__}")
    CREDIT_ASSIGNERS[name] = assigner


def find_credit_assigner(name: str) -> type[CreditAssigner]:
    """Find the class of an assigner.

    Args:
        name: A name of :data:`CREDIT_ASSIGNERS`; or ``"module:name"``, as Gymnasium has it, where
            importing the module registers the name.

    Raises:
        InvalidArgumentError: If the name is unknown or the module cannot be imported.
    """
    module, _, bare = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InvalidArgumentError(
                "credit", name, f"the module cannot be imported ({error})"
            ) from None
    if bare not in CREDIT_ASSIGNERS:
        close = difflib.get_close_matches(bare, CREDIT_ASSIGNERS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InvalidArgumentError(
            "credit", name, f"{hint}choose one of {', '.join(CREDIT_ASSIGNERS)}"
        )
    return CREDIT_ASSIGNERS[bare]


def get_credit_assigner(
    credit: str | CreditAssigner | AttributionFunction, **arguments: Any
) -> CreditAssigner:
    """Make a credit assigner of what a user passes.

    Args:
        credit: A name, see :func:`find_credit_assigner`; a function from scored completions to
            attributions; or an assigner, which is returned as it is.
        **arguments: Arguments of the assigner's constructor.

    Raises:
        InvalidArgumentError: If there is no such assigner, or it takes other arguments.

    >>> get_credit_assigner("attention", beta=0.5)
    AttentionCredit(beta=0.5, gamma=1.0, layers=-1, heads='mean')
    """
    if isinstance(credit, CreditAssigner):
        return credit
    if isinstance(credit, str):
        assigner = find_credit_assigner(credit)
        try:
            inspect.signature(assigner).bind(**arguments)
        except TypeError as error:
            raise InvalidArgumentError(
                "credit", credit, f"{error}; pass {assigner.__name__}{inspect.signature(assigner)}"
            ) from None
        return assigner(**arguments)
    if callable(credit):
        return FunctionCredit(credit, **arguments)
    raise InvalidArgumentError(
        "credit", credit, "pass a name, a CreditAssigner or a function of scored completions"
    )
