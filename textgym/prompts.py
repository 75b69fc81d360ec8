"""Prompt sources: where the first tokens of an episode come from."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from textgym.checks import check_path, check_text, check_whole_number, first_line
from textgym.errors import InvalidArgumentError
from textgym.reviews import load_reviews
from textgym.tables import FILE_TYPES, read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "FixedPrompts",
    "PrefixPrompts",
    "PromptSource",
    "encode_prompts",
    "load_prompts",
    "read_dataset",
]

_EMBEDDED_PROMPTS = Path(__file__).parent / "models" / "embedded" / "prompts.json"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_USUAL_COLUMNS = ("prompt", "text")
_WHAT_PROMPTS_ARE = (
    'pass "embedded", "imdb", strings, conversations, a datasets.Dataset, a file or a hub dataset '
    "id; each prompt is a text (token ids: textgym.prompts.FixedPrompts)"
)


class PromptSource(ABC):
    """Draws prompts as token ids.

    Attributes:
        max_length: Length of the longest possible prompt, in tokens.
        texts: By the tokens of a prompt, what rewards that read text see of it, where that is not
            the decoded tokens: of a chat, what is said, without the words of the chat template.
    """

    max_length: int
    texts: Mapping[tuple[int, ...], str] = MappingProxyType({})

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> list[int]:
        """Draw one prompt.

        Args:
            rng: The generator to draw with; nothing else may be random.

        Returns:
            Token ids, at least one.
        """


class FixedPrompts(PromptSource):
    """Draws one of the given prompts, all with equal probability.

    Args:
        prompt_ids: Token ids of the prompts.
        texts: See :class:`PromptSource`.

    Raises:
        InvalidArgumentError: If there is no prompt, or if one is empty.
    """

    def __init__(
        self,
        prompt_ids: Sequence[Sequence[int]],
        texts: Mapping[tuple[int, ...], str] | None = None,
    ) -> None:
        if not isinstance(texts, Mapping | None):
            raise InvalidArgumentError("texts", texts, "must map the tokens of prompts to texts")
        self.prompt_ids = _checked("prompt_ids", prompt_ids)
        self.max_length = max(map(len, self.prompt_ids))
        self.texts = texts or {}

    def sample(self, rng: np.random.Generator) -> list[int]:
        """Draw one prompt; see :class:`PromptSource`."""
        return self.prompt_ids[int(rng.integers(len(self.prompt_ids)))]


class PrefixPrompts(PromptSource):
    """Draws a document, then uses a random number of its first tokens as the prompt.

    Args:
        document_ids: Token ids of the documents. The first ``num_special`` tokens of a document are
            in every prompt and do not count towards its length.
        min_tokens: Smallest length of a prompt.
        max_tokens: Largest length of a prompt. Shorter documents are left out.
        num_special: Number of special tokens that the tokenizer puts in front of a text.

    Raises:
        InvalidArgumentError: Unless 1 <= min_tokens <= max_tokens, or if no document is long
            enough.
    """

    def __init__(
        self,
        document_ids: Iterable[Sequence[int]],
        min_tokens: int = 2,
        max_tokens: int = 8,
        num_special: int = 0,
    ) -> None:
        self.max_tokens = check_whole_number("max_tokens", max_tokens, 1)
        self.min_tokens = check_whole_number("min_tokens", min_tokens, 1, self.max_tokens)
        self.num_special = check_whole_number("num_special", num_special, 0)
        self.max_length = self.num_special + self.max_tokens
        documents = _checked("document_ids", document_ids)
        enough = [ids[: self.max_length] for ids in documents if len(ids) >= self.max_length]
        if not enough:
            raise InvalidArgumentError(
                "document_ids",
                f"{len(documents)} documents",
                f"none has {self.max_length} tokens; pass longer ones, or a smaller max_tokens",
            )
        self._documents = enough

    def sample(self, rng: np.random.Generator) -> list[int]:
        """Draw one prompt; see :class:`PromptSource`."""
        document = self._documents[int(rng.integers(len(self._documents)))]
        length = int(rng.integers(self.min_tokens, self.max_tokens, endpoint=True))
        return document[: self.num_special + length]


def encode_prompts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Encode prompts with the tokenizer's defaults, including special tokens in front.

    Args:
        texts: The prompts.
        tokenizer: The environment's tokenizer.

    Returns:
        Token ids of each prompt.

    Raises:
        InvalidArgumentError: If the tokenizer adds an end token after a text, or if it has no token
            for a word and no token for unknown words.
    """
    try:
        encoded = tokenizer(list(texts), verbose=False)["input_ids"]
    except Exception as error:  # the tokenizers library has no exception class of its own
        raise InvalidArgumentError(
            "prompts",
            texts,
            f"the tokenizer cannot encode them ({first_line(error)}); write them in its words, or "
            "pass another tokenizer",
        ) from None
    enders = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    bare = tokenizer(texts[0], add_special_tokens=False, verbose=False)["input_ids"]
    if encoded[0] and encoded[0][-1] in enders and encoded[0][-1:] != bare[-1:]:
        raise InvalidArgumentError(
            "tokenizer",
            type(tokenizer).__name__,
            f"it ends every text with {tokenizer.decode(encoded[0][-1:])!r}, so nothing could "
            "follow a prompt; use the tokenizer of a causal language model, without add_eos_token",
        )
    return [list(map(int, ids)) for ids in encoded]


def load_prompts(
    prompts: Any, tokenizer: PreTrainedTokenizerBase, column: str | None = None
) -> PromptSource:
    """Build a prompt source from whatever the user passes.

    Args:
        prompts: One of

            - ``"embedded"``: short review beginnings that ship with textgym;
            - ``"imdb"``: the first 2 to 8 tokens of the IMDb training reviews (extra
              ``textgym[imdb]``);
            - strings, each one a prompt;
            - conversations, each a list of messages with ``role`` and ``content``, the last one of
              the user: they are put into the tokenizer's chat template;
            - a ``datasets.Dataset``, a JSONL, JSON, CSV, Parquet or text file, or a hub dataset id
              (split ``train``), with one prompt per row;
            - a :class:`PromptSource`, which is returned as it is.
        tokenizer: The environment's tokenizer.
        column: Column of the prompts in a dataset or file. None for the column ``prompt``, else
            ``text``, else the only column.

    Raises:
        InvalidArgumentError: If the prompts cannot be read, if there are none, or if one is empty.
        MissingDependencyError: If ``"imdb"`` needs the extra ``textgym[imdb]``.
    """
    if hasattr(prompts, "columns"):  # Iterating over it would give their names.
        remedy = "a data frame is not a list of prompts; pass one of its columns"
        raise InvalidArgumentError("prompts", type(prompts).__name__, remedy)
    if column is not None:
        check_text("prompt_column", column, "must be the name of a column, or None")
        if not hasattr(prompts, "column_names") and not _names_a_dataset(prompts):
            raise InvalidArgumentError(
                "prompt_column", column, "these prompts have no columns; leave it out"
            )
    if isinstance(prompts, PromptSource):
        return prompts
    if isinstance(prompts, str) and prompts == "embedded":
        return _embedded(tokenizer)
    if isinstance(prompts, str) and prompts == "imdb":
        return _review_prefixes(tokenizer)
    if isinstance(prompts, (str, Path)):
        prompts = _column(read_dataset(prompts), column)
    elif hasattr(prompts, "column_names"):
        prompts = _column(prompts, column)
    if isinstance(prompts, bytes | Mapping) or not isinstance(prompts, Iterable):
        raise InvalidArgumentError("prompts", prompts, _WHAT_PROMPTS_ARE)
    texts = list(prompts)
    if not texts:
        raise InvalidArgumentError("prompts", prompts, "there must be at least one prompt")
    if all(_is_conversation(text) for text in texts):
        return _conversations(texts, tokenizer)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidArgumentError(f"prompts[{index}]", text, _WHAT_PROMPTS_ARE)
        if not text.strip():
            raise InvalidArgumentError(
                f"prompts[{index}]",
                text,
                "is blank; leave out empty rows and lines. For texts out of nothing, the prompt is "
                "the tokenizer's start token",
            )
    return FixedPrompts(encode_prompts(texts, tokenizer))


def _embedded(tokenizer: PreTrainedTokenizerBase) -> FixedPrompts:
    texts = json.loads(_EMBEDDED_PROMPTS.read_text(encoding="utf-8"))
    try:
        return FixedPrompts(encode_prompts(texts, tokenizer))
    except InvalidArgumentError as error:
        if error.argument != "prompts":
            raise
        raise InvalidArgumentError(
            "tokenizer",
            getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__,
            "it has no tokens for the embedded prompts, which are film reviews; pass prompts in "
            'its words (the planted task is the environment "ABC-RLHF-Planted-v0")',
        ) from None


def _names_a_dataset(prompts: Any) -> bool:
    return isinstance(prompts, str | Path) and str(prompts) not in ("embedded", "imdb")


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, list | tuple)
        and len(prompt) > 0
        and all(isinstance(one, Mapping) and {"role", "content"} <= set(one) for one in prompt)
    )


def _conversations(
    conversations: Sequence[Any], tokenizer: PreTrainedTokenizerBase
) -> FixedPrompts:
    """Prompts in the chat template, and what the users say in them."""
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidArgumentError(
            "prompts",
            conversations[0],
            "the tokenizer has no chat template; pass strings, or the tokenizer of an instruct "
            "model",
        )
    texts = {}
    prompt_ids = []
    for messages in conversations:
        if messages[-1]["role"] != "user":
            raise InvalidArgumentError(
                "prompts", messages, "the last message must be the user's; the policy answers"
            )
        try:
            ids: Any = tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # templates are programs, and fail in all kinds of ways
            raise InvalidArgumentError(
                "prompts", messages, f"the chat template cannot show it ({first_line(error)})"
            ) from None
        prompt_ids.append([int(token) for token in ids])
        said = [str(one["content"]) for one in messages if one["role"] != "system"]
        texts[tuple(prompt_ids[-1])] = "\n".join(said)
    return FixedPrompts(prompt_ids, texts)


def _review_prefixes(tokenizer: PreTrainedTokenizerBase) -> PrefixPrompts:
    # A hundred characters contain more than eight tokens of any subword tokenizer.
    texts = [review.text[:100] for review in load_reviews("train", "imdb")]
    encoded = encode_prompts(texts, tokenizer)
    bare = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    return PrefixPrompts(encoded, num_special=len(encoded[0]) - len(bare))


def read_dataset(name: str | Path, argument: str = "prompts") -> Any:
    """Read a file or a hub dataset.

    Args:
        name: A JSONL, JSON, CSV, Parquet or text file, or a hub dataset id (split ``train``).
        argument: The argument that errors name.

    Raises:
        InvalidArgumentError: If it cannot be read.
    """
    path = check_path(argument, name)
    if path.is_file():
        return read_table(path, argument)
    if path.is_dir():
        raise InvalidArgumentError(argument, str(name), "is a folder; name a file in it")
    if path.suffix in FILE_TYPES or isinstance(name, Path) or not _HUB_ID.fullmatch(str(name)):
        raise InvalidArgumentError(argument, str(name), f"no such file{_hint(argument, name)}")
    import datasets  # Imported here: slow.

    try:
        return datasets.load_dataset(str(name), split="train")
    except Exception as error:  # the hub client raises many exception classes, some of them private
        raise InvalidArgumentError(
            argument,
            str(name),
            f"neither a file nor a dataset that can be loaded ({first_line(error)})"
            + _hint(argument, name),
        ) from None


def _hint(argument: str, name: str | Path) -> str:
    """The end of a remedy: what to do with a name that may be meant as a prompt."""
    if argument != "prompts" or Path(name).suffix in FILE_TYPES or "/" in str(name):
        return ""
    return "; if it is a prompt itself, put it into a list, or into a text file"


def _column(dataset: Any, column: str | None) -> list[Any]:
    if isinstance(dataset, Mapping):
        splits = ", ".join(map(repr, dataset))
        remedy = f"has its rows in splits; pass one of {splits}, such as prompts=dataset[...]"
        raise InvalidArgumentError("prompts", type(dataset).__name__, remedy)
    if dataset.column_names is None:  # A stream, which does not know its columns.
        check_text("prompt_column", column, "must name a column: a stream does not know its own")
        return list(dataset[column])
    names = list(dataset.column_names)
    if column is None:
        usual = [name for name in _USUAL_COLUMNS if name in names]
        column = usual[0] if usual else names[0] if len(names) == 1 else None
    if column not in names:
        raise InvalidArgumentError(
            "prompt_column", column, f"choose one of the columns {', '.join(map(repr, names))}"
        )
    return list(dataset[column])


def _checked(argument: str, texts: Any) -> list[list[int]]:
    """Token ids of one text or more, none of them empty, as plain lists."""
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise InvalidArgumentError(argument, texts, "must be lists of token ids")
    checked = []
    for index, ids in enumerate(texts):
        listed = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str | bytes) else []
        if not listed:
            raise InvalidArgumentError(
                argument, f"[{index}]", "is empty, or no list; it needs at least one token id"
            )
        if not all(type(token) is int and token >= 0 for token in listed):  # NumPy's, or none
            listed = [check_whole_number(f"{argument}[{index}]", token, 0) for token in listed]
        checked.append(listed)
    if not checked:
        raise InvalidArgumentError(argument, texts, "there must be at least one text")
    return checked
