"""Documents: texts and conversations that are joined to one long sequence of tokens, with a token between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from llmrank.errors import CalibrationError

__all__ = ["Conversation", "Document", "Documents", "document_of", "joined_ids", "plain_ids"]

# A list of messages, each with a role and a content.
Conversation: TypeAlias = list[dict[str, Any]]
Document: TypeAlias = str | Conversation
# Names of the columns of a dataset, or of the keys of a line of JSON, that may hold a document. The first that a row has is used.
COLUMNS = ("messages", "text", "content", "document")
# Tokens are shorter than this many characters on average. So n tokens of a long text are found in its first n times this many
# characters, and the rest is not tokenised.
CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True)
class Documents:
    """Documents that are read one by one, as many as are needed.

    Parameters
    ----------
    read : callable
        Returns an iterator over the documents, from the beginning.
    """

    read: Callable[[], Iterator[Document]]

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents that are not blank."""
        return (entry for entry in self.read() if not isinstance(entry, str) or entry.strip())

    def texts(self) -> list[str]:
        """Return all documents as texts, for code that reads text without a model.

        Raises
        ------
        CalibrationError
            A document is a conversation, which becomes text only by the chat template of a model.
        """
        texts = []
        for entry in self:
            if not isinstance(entry, str):
                raise CalibrationError(
                    "conversations (messages) become text by the chat template of a model, and this needs plain text; give "
                    "documents with a text"
                )
            texts.append(entry)
        return texts


def document_of(row: Any, origin: str) -> Document:
    """Return the document in a row of a dataset or a line of JSON: its messages, or else its text.

    Raises
    ------
    CalibrationError
        The row has neither of them, or they have another form. The message says with `origin` where the row is from.
    """
    if not isinstance(row, Mapping):
        raise CalibrationError(f"{origin} is no JSON object; expected one with messages or text")
    column = next((name for name in COLUMNS if name in row), None)
    if column is None:
        raise CalibrationError(
            f"{origin} has no {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}, but {sorted(row)}; save the text you want to a file "
            "and pass that"
        )
    entry = row[column]
    if column == "messages":
        if isinstance(entry, list) and entry and all(isinstance(turn, Mapping) and "role" in turn for turn in entry):
            return [dict(turn) for turn in entry]
        raise CalibrationError(
            f"messages of {origin}: expected a list of objects with role and content, got {entry!r:.80}"
        )
    if not isinstance(entry, str):
        raise CalibrationError(
            f"{column} of {origin} does not hold text, but {entry!r:.80}; save the text you want to a file and pass that"
        )
    return entry


def joined_ids(documents: Documents, tokenizer: Any, count: int) -> list[int]:
    """Return the tokens of documents, one after the other, until there are `count` of them or the documents end.

    Two documents are separated by the tokenizer's EOS token. If it has none, its BOS or SEP token is used, or else a blank line.
    A conversation may itself end with this token (as its last or last but one token); then the token is not repeated.
    """
    separator = _separator(tokenizer)
    ids: list[int] = []
    is_separated = True
    for document in documents:
        if not is_separated:
            ids += separator
        text = document if isinstance(document, str) else _conversation_text(document, tokenizer)
        found = plain_ids(tokenizer, text[: (count - len(ids) + 1) * CHARACTERS_PER_TOKEN])
        ids += found
        if len(ids) >= count:
            break
        is_separated = not isinstance(document, str) and not {*separator}.isdisjoint(found[-2:])
    return ids[:count]


def _separator(tokenizer: Any) -> list[int]:
    for name in ("eos_token_id", "bos_token_id", "sep_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return [token]
    return plain_ids(tokenizer, "\n\n")


def _conversation_text(conversation: Conversation, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise CalibrationError(
            "the text has conversations (messages), and this model's tokenizer has no chat template; give documents with a text "
            "instead, or set tokenizer.chat_template (the file chat_template.jinja beside the tokenizer)"
        )
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except Exception as error:  # a template may raise any error
        raise CalibrationError(
            f"the chat template of this model's tokenizer refuses a conversation ({type(error).__name__}: {error}); its first "
            f"message is {conversation[0]!r:.80}"
        ) from error


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text, without the special tokens that the tokenizer adds.

    A half of a surrogate pair, which JSON may hold, counts as a question mark: it is no character, and tokenizers refuse it.
    """
    text = text.encode(errors="replace").decode()
    try:
        # verbose=False: the text is cut into sequences later, so no warning about its length is needed.
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    except Exception as error:  # a tokenizer from damaged files may raise any error
        raise CalibrationError(
            f"the model's tokenizer fails on the text ({type(error).__name__}: {error}); its files are damaged or belong to "
            "another model: fetch them again"
        ) from error
