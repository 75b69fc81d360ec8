"""The arguments of the environments, each declared once: its type, default and meaning.

A frozen dataclass declares them, and :func:`init_takes` gives a constructor the signature of the
dataclass. So a new argument is one field with one sentence. Every constructor then takes it, and
``help()``, editors and type checkers know it. An environment of your own can change defaults and
add arguments::

    @dataclass(frozen=True)
    class HaikuArguments(TextGenerationArguments):
        _: KW_ONLY
        max_new_tokens: int = 32  # another default
        num_lines: Annotated[int, "Lines of a haiku."] = 3

    @document_arguments
    class HaikuEnv(TextGenerationEnv):
        @init_takes(HaikuArguments)
        def __init__(self, arguments: HaikuArguments) -> None:
            super().__init__(**keywords_for(TextGenerationArguments, arguments))

In the docstring, the line ``arguments: The fields of …`` is replaced by the list of arguments.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Concatenate,
    ParamSpec,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from gymnasium.vector import AutoresetMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.checks import did_you_mean
from textgym.errors import InvalidArgumentError
from textgym.models import RewardModel
from textgym.prompts import PromptSource

__all__ = [
    "TextGenerationArguments",
    "VectorArguments",
    "document_arguments",
    "init_takes",
    "keywords_for",
    "takes",
]

P = ParamSpec("P")
Arguments = TypeVar("Arguments")
Result = TypeVar("Result")
Self = TypeVar("Self")
Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class TextGenerationArguments:
    """The arguments of :class:`textgym.envs.TextGenerationEnv`, which documents them."""

    tokenizer: Annotated[
        str | Path | PreTrainedTokenizerBase,
        'Tokenizer of the policy: `"embedded"`, a local folder, a hub id, or a loaded one.',
    ] = "embedded"
    reward_model: Annotated[
        str | Path | PreTrainedModel | RewardModel | Callable[..., Sequence[float]],
        '`"embedded"`, a local folder, a hub id, a loaded sequence classifier, a '
        ":class:`textgym.models.RewardModel`, or a function of prompts and completions (see "
        ":class:`textgym.models.RewardFunction`), by itself or as `module:name`. It may have a "
        "tokenizer of its own.",
    ] = "embedded"
    prompts: Annotated[
        str | Path | Sequence[str] | PromptSource | Any,
        "Where episodes start; see :func:`textgym.prompts.load_prompts`.",
    ] = "embedded"
    _: KW_ONLY
    prompt_column: Annotated[str | None, "Column of the prompts in a dataset or file."] = None
    min_new_tokens: Annotated[
        int, "Smallest token budget; EOS before that many tokens is illegal."
    ] = 8
    max_new_tokens: Annotated[int, "Largest token budget."] = 16
    normalize_score: Annotated[
        bool,
        "Whether to centre and scale the reward model's score. A loaded "
        ":class:`textgym.models.RewardModel` has its own setting.",
    ] = True
    device: Annotated[
        str | torch.device, "Where the reward model runs, if it is loaded by name."
    ] = "cpu"
    dtype: Annotated[
        str | torch.dtype | None,
        "Dtype of the reward model, if it is loaded by name; None for float32.",
    ] = None
    action_mask_in_info: Annotated[bool, "Whether `info` holds the action mask."] = False
    render_mode: Annotated[
        str | None,
        '`"ansi"`, `"html"`, `"rgb_array"` or, in a single environment, `"human"`; see `render`. '
        "None for no rendering.",
    ] = None


@dataclass(frozen=True)
class _NumEnvs:
    """The argument that comes first in every batched environment."""

    num_envs: Annotated[int, "Number of rows, which step together."] = 1


@dataclass(frozen=True)
class VectorArguments(TextGenerationArguments, _NumEnvs):
    """The arguments of :class:`textgym.envs.TextGenerationVectorEnv`, which documents them."""

    _: KW_ONLY
    autoreset_mode: Annotated[AutoresetMode | str, "What follows the end of an episode."] = (
        AutoresetMode.NEXT_STEP
    )


def init_takes(
    arguments: Callable[P, Arguments],
) -> Callable[[Callable[[Self, Arguments], None]], Callable[Concatenate[Self, P], None]]:
    """Give a constructor that takes an arguments dataclass the signature of the dataclass.

    Args:
        arguments: The dataclass. Calling the constructor with an argument that it does not have
            raises an InvalidArgumentError.
    """

    def decorate(
        init: Callable[[Self, Arguments], None],
    ) -> Callable[Concatenate[Self, P], None]:
        @functools.wraps(init)
        def init_with_keywords(self: Self, *args: P.args, **kwargs: P.kwargs) -> None:
            _check_names(arguments, kwargs, type(self).__name__)
            init(self, arguments(*args, **kwargs))

        first = next(iter(inspect.signature(init).parameters.values()))
        init_with_keywords.__signature__ = _signature(arguments, [first])  # type: ignore[attr-defined]
        init_with_keywords.arguments = arguments  # type: ignore[attr-defined]
        return init_with_keywords

    return decorate


def takes(
    arguments: Callable[P, Arguments],
) -> Callable[[Callable[[Arguments], Result]], Callable[P, Result]]:
    """The form of :func:`init_takes` for a function; its docstring is completed as well."""

    def decorate(function: Callable[[Arguments], Result]) -> Callable[P, Result]:
        @functools.wraps(function)
        def function_with_keywords(*args: P.args, **kwargs: P.kwargs) -> Result:
            _check_names(arguments, kwargs, function.__name__)
            return function(arguments(*args, **kwargs))

        function_with_keywords.__signature__ = _signature(arguments, [])  # type: ignore[attr-defined]
        function_with_keywords.__doc__ = _documented(function.__doc__, arguments)
        return function_with_keywords

    return decorate


def document_arguments(cls: Class) -> Class:
    """List the arguments of a class in its docstring, where it says ``arguments: The fields of …``.

    Args:
        cls: A class whose constructor is decorated with :func:`init_takes`.
    """
    cls.__doc__ = _documented(cls.__doc__, cls.__init__.arguments)  # type: ignore[misc]
    return cls


def keywords_for(dataclass_: type, arguments: Any) -> dict[str, Any]:
    """Those of some arguments that another dataclass has too, as keyword arguments.

    >>> keywords_for(TextGenerationArguments, VectorArguments(num_envs=3, dtype="float32"))["dtype"]
    'float32'
    """
    return {one.name: getattr(arguments, one.name) for one in fields(dataclass_)}


def _check_names(arguments: Any, keywords: dict[str, Any], owner: str) -> None:
    known = [one.name for one in fields(arguments)]
    for name, value in keywords.items():
        if name not in known:
            raise InvalidArgumentError(
                name, value, f"{owner} has no such argument; {did_you_mean(name, known)}"
            )


def _signature(arguments: Any, first: list[inspect.Parameter]) -> inspect.Signature:
    """The signature of a dataclass, with types instead of their source text."""
    types = get_type_hints(arguments)
    parameters = inspect.signature(arguments).parameters.values()
    return inspect.Signature(
        [*first, *(one.replace(annotation=types[one.name]) for one in parameters)]
    )


def _documented(doc: str | None, arguments: Any) -> str | None:
    """Replace the line ``arguments: The fields of …`` of a docstring by the list of arguments."""
    if doc is None:  # python -OO
        return None
    line = re.search(r"^( *)arguments: The fields of .*\n", doc, re.MULTILINE)
    assert line is not None, "the docstring has no line: arguments: The fields of …"
    entries = "".join(
        textwrap.fill(
            f"{one.name}: {_meaning(arguments, one.name)} Default: {_shown(one.default)}.",
            width=100,
            initial_indent=line[1],
            subsequent_indent=line[1] + "    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        + "\n"
        for one in fields(arguments)
    )
    return doc[: line.start()] + entries + doc[line.end() :]


def _meaning(arguments: type, name: str) -> str:
    """The sentence of a field; where a subclass changes only the default, its parent's."""
    for one in arguments.__mro__:
        if name in inspect.get_annotations(one):
            hint = get_type_hints(one, include_extras=True)[name]
            if get_origin(hint) is Annotated:
                return get_args(hint)[1]
    raise AssertionError(f"the argument {name!r} has no sentence of documentation")


def _shown(default: Any) -> str:
    return f"`{default}`" if isinstance(default, enum.Enum) else f"`{default!r}`"
