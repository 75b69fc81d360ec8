"""What becomes of a bad input: a clear error, an error by chance, or silence.

Every case of this folder goes through :func:`refusals` or :func:`refused`, which count it. A clear
error is one of textgym's own, or of Gymnasium's where Gymnasium does the checking; it names the
argument as the caller wrote it, shows the value, and says what to do instead.
"""

from __future__ import annotations

from collections import Counter

import gymnasium as gym

from textgym.errors import InvalidArgumentError, TextgymError

CLEAR = "clear error"
UNCLEAR = "error of ours that names something else"
RAW = "raw error"
SILENT = "accepted in silence"
ACCEPTED = "accepted for a reason"

TALLY: Counter[tuple[str, str]] = Counter()
"""Number of cases by area and outcome, over the tests that this process ran."""


def outcome_of(call, arguments=()):
    """What a call with a bad input ends in, and the error.

    Args:
        call: The call, without arguments.
        arguments: Names of which the error must give one; empty for any.
    """
    try:
        call()
    except InvalidArgumentError as error:
        names_it = not arguments or any(name in error.argument for name in arguments)
        shows_it = str(error).startswith(f"{error.argument}=")
        return (CLEAR if names_it and shows_it and len(error.remedy) > 10 else UNCLEAR), error
    except (TextgymError, gym.error.Error) as error:
        return (CLEAR if len(str(error)) > 10 else UNCLEAR), error
    except Exception as error:
        return RAW, error
    return SILENT, None


def refusals(area, cases, arguments=(), accepted=None):
    """Try bad inputs, and fail unless each one ends in a clear error.

    Args:
        area: What the cases are counted under.
        cases: Calls without arguments, by label.
        arguments: Names of which the error must give one.
        accepted: Labels of inputs that are right to accept, with the reason.
    """
    accepted = accepted or {}
    faults = []
    for label, call in cases.items():
        outcome, error = outcome_of(call, arguments)
        if label in accepted and outcome == SILENT:
            assert len(accepted[label]) > 10, "say why"
            outcome = ACCEPTED
        TALLY[area, outcome] += 1
        if outcome not in (CLEAR, ACCEPTED):
            faults.append(f"{label}: {outcome}: {type(error).__name__}: {str(error)[:300]}")
    assert not faults, "\n".join(["", *faults])


def refused(area, call, *arguments, match=""):
    """Try one bad input; returns the message of the error, which contains ``match``."""
    refusals(area, {"this": call}, arguments)
    _, error = outcome_of(call, arguments)
    assert match in str(error), str(error)
    return str(error)
