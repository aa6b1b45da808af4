"""What passes between the method and a vision-language model, and what a backend is. Free of torch, so that a courier starts small and quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rightreasons.common.text import clean_text
from rightreasons.lvlm.pictures import bound_picture

if TYPE_CHECKING:
    from rightreasons.records import Subject

Role = Literal["critic", "judge", "fused", "control"]
# What became of a request. Only "answered" is an answer; a person decides the rest.
Outcome = Literal["answered", "refused", "truncated", "malformed", "unknown"]

# Of a model's name, in letters.
LONGEST_NAME = 200
# No request comes near it; a larger count is a slip of the server's.
MOST_TOKENS = 10**9


@dataclass(frozen=True)
class Request:
    """One question to an LVLM: text and PNG pictures in order, and the JSON schema of the answer where one is wanted.

    A picture past the bound in ``pictures`` is made smaller, whoever asks.
    ``vote`` and ``permutation`` tell repeated questions apart, and ``prompt`` is the version of the prompt that was filled; all three are part of
    the ledger's key. ``max_tokens`` caps the answer.
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
    """Tokens that a provider counted; None where it did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None


def read_count(said: object) -> int | None:
    """A count of tokens as a provider wrote it; None for what is none, so that what was set aside for the request counts in its place."""
    return said if isinstance(said, int) and not isinstance(said, bool) and 0 <= said <= MOST_TOKENS else None


@dataclass(frozen=True)
class Answer:
    """What came back, as text. ``problem`` says why there is none; ``cached`` that it had been answered before.

    ``model`` is who answered by the server's own word, which need not be who was asked; None where it does not say.
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
    """A model that answers requests. ``send`` is the only call that costs anything."""

    @property
    def name(self) -> str:
        """As a configuration names it."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether its answers are made of the truth."""
        ...

    @property
    def concurrency(self) -> tuple[int, int]:
        """How many requests may be under way: at the start, and at most."""
        ...

    @property
    def address(self) -> dict[str, Any] | None:
        """How a courier in a process of its own opens the same backend: arguments of ``open_lvlm``. None where nothing leaves this process."""
        ...

    def check(self) -> None:
        """Is it there? Free, and asked before any long work. Raises LVLMUnavailable, LVLMRejected or LVLMProtocolError."""
        ...

    def body(self, request: Request) -> dict[str, Any]:
        """The request as it is sent, pictures as data URLs or base64. Also what identifies it in the ledger."""
        ...

    def send(self, body: dict[str, Any], request: Request | None) -> str:
        """The raw answer; a courier has the body alone. Raises an LVLMError that says what kind of failure it was."""
        ...

    def parse(self, raw: str) -> Answer:
        """The text and usage in a raw answer, or what is wrong with it. Free: an answer that was paid for can be read again at any time."""
        ...

    def close(self) -> None:
        """Ends the connections, where there are any; the next call opens them again."""
        ...
