"""Every error a user can meet. Each message says what came, what was expected and what to do.

```text
RightReasonsError
├── ConfigError            a configuration, or a run folder made with another one
├── DataError              a folder, an image, a label or a description that cannot be used
│   └── UnreadableImage    one corrupt file: named, skipped and counted, never fatal alone
├── ModelError             a model that cannot be built, loaded, or does not fit the classes
│   └── UnsupportedLayer   a part of a model that the attribution cannot explain
├── MissingExtra           an optional package; names the extra that brings it
└── LVLMError              the vision-language model
    ├── LVLMUnavailable    no server, no leave, no key: nothing was answered; the run can be resumed
    ├── LVLMBusy           for now: an error inside the server, no connection
    │   ├── LVLMRateLimited  too many requests
    │   ├── LVLMUnsupported  a parameter that the server does not take, and that is left out from then on
    │   └── LVLMTimeout    no answer in time, or half of one: it may have been paid for
    ├── LVLMRefused        the provider's filter took the request for something that it will not answer
    ├── LVLMRejected       the server will not take this request as it is: a bad key, model or parameter
    │   ├── LVLMUnclear    a refusal that nobody can place: it concerns one request until several in a row are refused so
    │   └── LVLMTooBig     too large pictures, or more text and pictures than the context takes
    │       └── LVLMTooMany  too many pictures in one request
    ├── LVLMOverBudget     the next request might cost more than is left; the run can be resumed
    └── LVLMProtocolError  what answered does not speak the protocol
```
"""

from __future__ import annotations

from typing import ClassVar


class RightReasonsError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(RightReasonsError):
    """A configuration that cannot be used, or a run folder made with another one."""


class DataError(RightReasonsError):
    """A folder, an image, a label or a description that cannot be used."""


class UnreadableImage(DataError):
    """One corrupt file. The loader names, skips and counts it."""


class ModelError(RightReasonsError):
    """A model that cannot be built, loaded, or does not fit the classes."""


class UnsupportedLayer(ModelError):
    """Something on the way from image to logits that the attribution cannot explain: the rescale rule does not cover it, or a heatmap misses it."""


class MissingExtra(RightReasonsError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package!r}, which is not installed: pip install 'rightreasons[{extra}]'")


class LVLMError(RightReasonsError):
    """Base of what can go wrong with a vision-language model.

    ``outcome`` is the word for it in the ledger, ``may_be_paid`` whether the provider may charge for the attempt all the same.
    """

    outcome: ClassVar[str] = "stop"
    may_be_paid: ClassVar[bool] = True


class LVLMUnavailable(LVLMError):
    """No server, no leave or no key. Nothing was answered; the run can be resumed."""

    may_be_paid = False


class LVLMBusy(LVLMError):
    """For now: too many requests, an error inside the server, no connection. ``wait`` is what the server asked for, in seconds."""

    outcome = "transient"
    may_be_paid = False

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class LVLMRateLimited(LVLMBusy):
    """Too many requests at a time."""

    outcome = "rate"


class LVLMUnsupported(LVLMBusy):
    """The server does not take a parameter. The backend leaves it out from then on: ask again at once."""

    outcome = "parameter"


class LVLMTimeout(LVLMBusy):
    """No answer in time, or half of one. The request may have been answered, and paid for, all the same."""

    outcome = "ambiguous"
    may_be_paid = True


class LVLMRefused(LVLMError):
    """The provider's filter took the request, or what was about to be answered, for something that it will not say. A person decides."""

    outcome = "refused"


class LVLMRejected(LVLMError):
    """The server will not take the request as it is: a bad key, model or parameter."""

    may_be_paid = False


class LVLMUnclear(LVLMRejected):
    """The server will not take the request, and neither its status nor its words tell why. Another request may pass."""

    outcome = "unclear"


class LVLMTooBig(LVLMRejected):
    """Too large pictures, or more than the context takes: one smaller picture of them all may do."""

    outcome = "too big"


class LVLMTooMany(LVLMTooBig):
    """More pictures than the model takes in one request: one composite picture may do."""


class LVLMOverBudget(LVLMError):
    """The next request might cost more than is left of the budget. The run can be resumed."""

    outcome = "budget"
    may_be_paid = False


class LVLMProtocolError(LVLMError):
    """What answered does not speak the protocol."""

    outcome = "malformed"
