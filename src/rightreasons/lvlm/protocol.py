"""Requests to a vision-language model, its answers, and the protocol of a backend. Free of torch, so that a courier starts small and quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rightreasons.common.text import clean_text
from rightreasons.lvlm.pictures import bound_picture

if TYPE_CHECKING:
    from rightreasons.records import Subject

Role = Literal["critic", "judge", "fused", "control", "close-up", "name"]
# What became of a request. Only "answered" is an answer; the others wait for a person.
Outcome = Literal["answered", "refused", "truncated", "malformed", "unknown"]

# How many letters of a model's name are kept.
LONGEST_NAME = 200
# The largest number of tokens that is believed. No request comes near it, so a larger count is a mistake of the server.
MOST_TOKENS = 10**9


@dataclass(frozen=True)
class Request:
    """One question to an LVLM: text and PNG pictures in order, and the JSON schema of the answer if it must have one.

    A picture above the bound in ``pictures`` is scaled down here.
    ``vote`` and ``permutation`` tell repeated questions apart, and ``prompt`` is the version of the prompt that was filled in; all three are part
    of the ledger's key. ``max_tokens`` caps the answer.
    """

    role: Role
    parts: tuple[str | bytes, ...]
    schema: Mapping[str, object] | None = None
    max_tokens: int = 2048
    vote: int = 0
    permutation: int = 0
    prompt: str = ""
    subject: Subject | None = None

    def __post_init__(self) -> None:
        bounded = tuple(bound_picture(part) if isinstance(part, bytes) else part for part in self.parts)
        object.__setattr__(self, "parts", bounded)  # the dataclass is frozen


@dataclass(frozen=True)
class Usage:
    """Tokens as the provider counted them; None if it did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None


def read_count(said: object) -> int | None:
    """A provider's count of tokens. None for anything that is not a count: the amount reserved for the request then stands for it."""
    return said if isinstance(said, int) and not isinstance(said, bool) and 0 <= said <= MOST_TOKENS else None


@dataclass(frozen=True)
class Answer:
    """The text of an answer. ``problem`` says why there is none; ``cached`` means that the ledger had it already.

    ``model`` is the model that answered, by the server's own word; it need not be the one that was asked. None if the server does not say.
    """

    text: str
    problem: str | None = None
    cached: bool = False
    outcome: Outcome = "answered"
    usage: Usage = Usage()
    model: str | None = None


def read_model(said: object) -> str | None:
    """The name of a model as a provider wrote it; None for what is none."""
    return " ".join(clean_text(said).split())[:LONGEST_NAME] if isinstance(said, str) and said.strip() else None


@runtime_checkable
class LVLM(Protocol):
    """A model that answers requests. It is a ``Sender`` or an ``Answerer``."""

    @property
    def name(self) -> str:
        """The backend's name as a configuration writes it, such as ``openai:MODEL``."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether the answers are computed from ground truth."""
        ...

    @property
    def concurrency(self) -> tuple[int, int]:
        """How many requests may run at the same time: at the start, and at most."""
        ...

    @property
    def address(self) -> dict[str, Any] | None:
        """The arguments of ``open_lvlm`` with which a courier's process opens the same backend; None if nothing leaves this process."""
        ...

    def check(self) -> None:
        """Checks, free of charge and before any long work, that it can be reached. Raises LVLMUnavailable, LVLMRejected or LVLMProtocolError."""
        ...

    def body(self, request: Request) -> dict[str, Any]:
        """The request as it is sent, pictures as data URLs or base64. The ledger identifies a request by it."""
        ...

    def parse(self, raw: str) -> Answer:
        """The text and usage in a raw answer, or what is wrong with it. Free of charge: a stored answer can be parsed again at any time."""
        ...

    def close(self) -> None:
        """Closes any connections; the next call opens them again."""
        ...


@runtime_checkable
class Sender(LVLM, Protocol):
    """A model that needs the body of a request and nothing else, so that a courier can ask it. Only this can cost money."""

    def send(self, body: dict[str, Any]) -> str:
        """Sends a request and returns the raw answer. Raises the LVLMError of the kind of failure."""
        ...


@runtime_checkable
class Answerer(LVLM, Protocol):
    """Something in this process that answers: a person, a recording, a script, a simulation."""

    def answer(self, request: Request) -> str:
        """The raw answer. Raises the LVLMError of the kind of failure."""
        ...


def get_reply(lvlm: LVLM, request: Request, body: dict[str, Any] | None = None) -> str:
    """The raw answer of either kind of model. ``body`` stands in for the request's own."""
    if isinstance(lvlm, Answerer):
        return lvlm.answer(request)
    assert isinstance(lvlm, Sender)  # there are no others
    return lvlm.send(lvlm.body(request) if body is None else body)
