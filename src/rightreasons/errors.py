"""Every error a user can meet. Each message says what came, what was expected and what to do.

```text
RightReasonsError
├── ConfigError            a configuration, or a run folder made with another one
├── DataError              a folder, an image, a label or a description that cannot be used
│   └── UnreadableImage    one corrupt file: named, skipped and counted, never fatal alone
├── ModelError             a model that cannot be built, loaded, or does not fit the classes
│   └── UnsupportedLayer   a part of a model that the attribution cannot explain
├── MissingExtra           an optional package; names the extra that brings it
├── ProcessLost            another process of torchrun that has ended; the run can be resumed
├── StudyUnfinished        rows of a study that failed; the others are finished and kept
└── LVLMError              the vision-language model
    ├── LVLMUnavailable    no server, no permission, no key: nothing was answered; the run can be resumed
    ├── LVLMBusy           a failure that may pass: an error inside the server, no connection
    │   ├── LVLMRateLimited  too many requests
    │   ├── LVLMUnsupported  the server does not take a parameter; it is left out from then on
    │   └── LVLMTimeout    no answer in time, or only half of one: the request may have been paid for
    ├── LVLMRefused        the provider's content filter refused the request
    ├── LVLMRejected       the server will not take this request as it is: a bad key, model or parameter
    │   ├── LVLMUnclear    a rejection without a clear reason: it concerns one request, unless several in a row are rejected so
    │   └── LVLMTooBig     pictures that are too large, or more text and pictures than the context takes
    │       └── LVLMTooMany  too many pictures in one request
    ├── LVLMOverBudget     the next request could cost more than is left; the run can be resumed
    └── LVLMProtocolError  the server does not speak the protocol
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
    """A part of the network that the attribution cannot explain: the rescale rule does not cover it, or a heatmap misses its effect."""


class MissingExtra(RightReasonsError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package!r}, which is not installed: pip install 'rightreasons[{extra}]'")


class ProcessLost(RightReasonsError):
    """Another process of torchrun has ended. The run can be resumed."""


class StudyUnfinished(RightReasonsError):
    """Rows of a study that failed, each with its reason. The others are finished and kept."""


class LVLMError(RightReasonsError):
    """Base of what can go wrong with a vision-language model.

    ``outcome`` is the ledger's word for the failure; ``may_be_paid`` says whether the provider may still charge for the attempt.
    """

    outcome: ClassVar[str] = "stop"
    may_be_paid: ClassVar[bool] = True


class LVLMUnavailable(LVLMError):
    """No server, no permission or no key. Nothing was answered; the run can be resumed."""

    may_be_paid = False


class LVLMBusy(LVLMError):
    """A failure that may pass: too many requests, an error inside the server, no connection.

    ``wait`` is how long the server asked to wait, in seconds.
    """

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
    """No answer in time, or only half of one. The request may still have been answered, and paid for."""

    outcome = "ambiguous"
    may_be_paid = True


class LVLMRefused(LVLMError):
    """The provider's content filter refused the request or withheld the answer. A person decides."""

    outcome = "refused"


class LVLMRejected(LVLMError):
    """The server will not take the request as it is: a bad key, model or parameter."""

    may_be_paid = False


class LVLMUnclear(LVLMRejected):
    """The server will not take the request, and neither its status nor its message says why. Another request may pass."""

    outcome = "unclear"


class LVLMTooBig(LVLMRejected):
    """Pictures that are too large, or more than the context takes: one smaller picture that combines them may work."""

    outcome = "too big"


class LVLMTooMany(LVLMTooBig):
    """More pictures than the model takes in one request: one composite picture may work."""


class LVLMOverBudget(LVLMError):
    """The next request could cost more than is left of the budget. The run can be resumed."""

    outcome = "budget"
    may_be_paid = False


class LVLMProtocolError(LVLMError):
    """The server does not speak the protocol."""

    outcome = "malformed"


# The ``problem`` of what a person has still to answer starts with these words.
WAITING = "waiting for a person"
