"""Credit assigners by id, including your own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection
from functools import partial
from typing import Any

from textgym.checks import check_text, did_you_mean, first_line, similar_names
from textgym.credit.base import CreditAssigner
from textgym.credit.checks import check_id
from textgym.credit.function import AttributionFunction, FunctionCredit
from textgym.credit.start import Start
from textgym.errors import InvalidArgumentError
from textgym.models import Readout

__all__ = [
    "CREDIT_ASSIGNERS",
    "find_credit_assigner",
    "get_credit_assigner",
    "register_credit_assigner",
]

CREDIT_ASSIGNERS: dict[str, type[CreditAssigner]] = {}
"""The credit assigners by id, in the order of registration."""

_ALIASES = {
    "attention": "abc",
    "shuffled-attention": "shuffled-abc",
    "policy-attention": "abc-d",
    "policy-attention-last": "abc-d2",
}
"""Former ids. They still work, and no list shows them."""


def register_credit_assigner(
    assigner: type[CreditAssigner] | None = None,
    *,
    name: str = "",
    readouts: Collection[Readout] = (),
    paper: str = "none",
) -> Any:
    """Register a credit assigner under its id; a decorator for classes and functions.

    Args:
        assigner: A subclass of :class:`CreditAssigner`, registered under its own ``name``. Leave it
            out to decorate a function from scored completions to attributions (see
            :class:`FunctionCredit`).
        name: Id of the function in :data:`CREDIT_ASSIGNERS`.
        readouts: The read-outs that the function needs.
        paper: The function's source.

    Returns:
        The class or function, unchanged.

    Raises:
        InvalidArgumentError: If the id is taken or missing, or if what is decorated is neither a
            subclass of CreditAssigner nor a function.

    Example:
        >>> from textgym.credit import get_credit_assigner, register_credit_assigner
        >>> @register_credit_assigner(name="second-half")
        ... def second_half(scored):
        ...     position = scored.completion_mask.cumsum(1)
        ...     late = scored.completion_mask & (position > position[:, -1:] / 2)
        ...     return late * scored.score[:, None] / late.sum(1, keepdim=True)
        >>> get_credit_assigner("second-half", beta=1.0)
        second_half(beta=1.0, gamma=1.0, start='zero')
    """
    if assigner is None:

        def register_function(function: AttributionFunction) -> AttributionFunction:
            _register(_class_of(function, name, readouts, paper))
            return function

        return register_function
    if not (inspect.isclass(assigner) and issubclass(assigner, CreditAssigner)):
        raise InvalidArgumentError(
            "assigner",
            assigner,
            "decorate a subclass of CreditAssigner; for a function, write "
            '@register_credit_assigner(name="...")',
        )
    _register(assigner)
    return assigner


def _class_of(
    function: AttributionFunction, name: str, readouts: Collection[Readout], paper: str
) -> type[FunctionCredit]:
    """Wrap a function in a class, because the registry holds classes."""

    def init(
        self: FunctionCredit, beta: float = 0.8, gamma: float = 1.0, *, start: Start = "zero"
    ) -> None:
        FunctionCredit.__init__(self, function, beta, gamma, readouts=readouts, start=start)

    body = {"name": name, "paper": paper, "__doc__": function.__doc__, "__init__": init}
    return type(getattr(function, "__name__", name), (FunctionCredit,), body)


def _register(assigner: type[CreditAssigner]) -> None:
    name = check_id(assigner, CREDIT_ASSIGNERS)
    if name in _ALIASES:
        raise InvalidArgumentError("name", name, f"is an alias of {_ALIASES[name]!r}")
    CREDIT_ASSIGNERS[name] = assigner


def find_credit_assigner(name: str) -> type[CreditAssigner]:
    """Look up the class of a credit assigner.

    Args:
        name: An id in :data:`CREDIT_ASSIGNERS`. ``"module:name"`` imports the module first, which
            must register the name; Gymnasium finds environments the same way. Former ids
            (``"attention"`` for ``"abc"``) still work.

    Raises:
        InvalidArgumentError: If the id is unknown, or the module cannot be imported.
    """
    check_text("credit", name, "must be an id, or module:name")
    module, _, bare = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # it is the user's code, and may fail in any way
            raise InvalidArgumentError(
                "credit",
                name,
                f"the module cannot be imported ({type(error).__name__}: {first_line(error)})",
            ) from error
    bare = _ALIASES.get(bare, bare)
    if bare not in CREDIT_ASSIGNERS:
        close = similar_names(bare.lower(), [*CREDIT_ASSIGNERS, *_ALIASES])
        hint = f"did you mean {_ALIASES.get(close[0], close[0])!r}? " if close else ""
        raise InvalidArgumentError(
            "credit", name, f"{hint}choose one of {', '.join(CREDIT_ASSIGNERS)}"
        )
    return CREDIT_ASSIGNERS[bare]


def get_credit_assigner(
    credit: str | CreditAssigner | AttributionFunction, **arguments: Any
) -> CreditAssigner:
    """Build a credit assigner from whatever the user passes.

    Args:
        credit: An id (see :func:`find_credit_assigner`), a function from scored completions to
            attributions, or a credit assigner, which is returned as it is.
        **arguments: Arguments of the assigner's constructor.

    Raises:
        InvalidArgumentError: If there is no such assigner, or it does not take these arguments.

    Example:
        >>> from textgym.credit import get_credit_assigner
        >>> get_credit_assigner("abc", beta=0.5)
        AttentionCredit(beta=0.5, gamma=1.0, layers=-1, heads='mean', start='zero')
    """
    if isinstance(credit, CreditAssigner):
        for argument, value in arguments.items():
            raise InvalidArgumentError(
                argument, value, f"{credit!r} has its arguments already; leave it out"
            )
        return credit
    if isinstance(credit, str):
        assigner: Any = find_credit_assigner(credit)
    elif callable(credit) and not inspect.isclass(credit):
        assigner = partial(FunctionCredit, credit)
    else:
        raise InvalidArgumentError(
            "credit",
            credit,
            "pass an id, a CreditAssigner (an instance, not the class), or a function of scored "
            "completions",
        )
    signature = inspect.signature(assigner)
    for argument, value in arguments.items():
        if argument not in signature.parameters:
            raise InvalidArgumentError(
                argument,
                value,
                f"{credit!r} has no such argument; {did_you_mean(argument, signature.parameters)}",
            )
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InvalidArgumentError(
            "credit", credit, f"{error}; its arguments: {signature}"
        ) from None
    return assigner(**arguments)
