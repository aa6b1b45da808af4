"""The ledger: every attempt at a request is recorded before it is sent, every answer before it is parsed, and nothing is asked twice.

Requests to a server go through a courier, which outlives a kill of the command. A request that may be paid for counts with its highest possible
cost until the provider's own count is known, and the budget bounds that sum. docs/critic.md has the kinds of failure and what follows from each.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rightreasons.errors import (
    LVLMBusy,
    LVLMError,
    LVLMRateLimited,
    LVLMRefused,
    LVLMTimeout,
    LVLMTooBig,
    LVLMTooMany,
    LVLMUnavailable,
    LVLMUnclear,
    LVLMUnsupported,
)
from rightreasons.lvlm.ledger.attempts import Attempt, begin, keep_answer, keep_failure, open_attempts, recover, storable
from rightreasons.lvlm.ledger.budget import Budget
from rightreasons.lvlm.ledger.courier import Courier, wait_for_courier
from rightreasons.lvlm.ledger.prices import Price, worst_case_tokens
from rightreasons.lvlm.ledger.throttle import Throttle
from rightreasons.lvlm.protocol import LVLM, Answer, Request, get_reply
from rightreasons.lvlm.wire.composite import JOINED, SHAPE_NAMES, SHAPES, SMALLER
from rightreasons.lvlm.wire.model_name import is_same_model
from rightreasons.lvlm.wire.request_key import canonical, describe_request, hash_description, request_key

# After so many failures of one kind a request is given up.
MOST = {"rate": 20, "transient": 5, "ambiguous": 2, "unclear": 2}
# After so many requests in a row that were given up, the server is at fault and the run stops. It stops at once if the very first one was given up.
MOST_IN_A_ROW = 5
# Asking again would give the same failure, so such a request is left to a person until --retry-unknown is given.
_DECIDED = ("unclear", "too big")
# Some servers exceed the cap by a few tokens that they do not count, such as the one that ends the answer.
CAP_SLACK = 1.1


@dataclass(frozen=True)
class Patience:
    """How many seconds a ledger waits: before the second attempt, at most before any later one, and for the courier of an earlier command.

    The wait doubles with every attempt. No request takes as long as a courier is waited for.
    """

    first_wait: float = 1.0
    longest_wait: float = 60.0
    courier_wait: float = 3100.0


class Ledger:
    """The attempts of one run folder. Threads may share a ledger; a second process must not (``RunFolder.locked`` prevents it).

    As a context it is closed at its end, or left at once after Ctrl-C.

    ``price`` is the price of every model, or prices by a model's name. ``max_usd`` bounds what the whole folder may cost, earlier commands included.
    The first error that another attempt cannot mend stops it: requests under way end and are recorded, and nothing new is sent.
    """

    def __init__(
        self,
        path: Path,
        *,
        retry_unknown: bool = False,
        price: Price | Mapping[str, Price] | None = None,
        max_usd: float | None = None,
        patience: Patience = Patience(),
    ) -> None:
        # Guards the connection and everything below; notified whenever a request has ended.
        self._changed = threading.Condition()
        self._budget = Budget(price, max_usd, self._changed)
        self._path, self._patience = path, patience
        wait_for_courier(path, patience.courier_wait)
        # A courier's writes survive a power cut. What is written on this connection can be worked out again from those.
        self._connection = open_attempts(path, durable=False)
        recover(self._connection, retry_unknown=retry_unknown)
        self._jitter = random.Random(os.getpid())  # spreads out waiting times; no result depends on it
        self._couriers: dict[str, Courier] = {}
        self._throttles: dict[str, Throttle] = {}
        # By the name of a model: the index in SHAPES of how it is shown pictures, and how many requests in a row were given up.
        self._shapes: Counter[str] = Counter()
        self._fruitless: Counter[str] = Counter()
        self._answering: set[str] = {model for (model,) in self._query("SELECT DISTINCT model FROM attempts WHERE state = 'answered'")}
        self._keys: set[str] = set()
        self._sent_keys: set[str] = set()
        self._budget.committed_usd = self.cost_usd() or 0.0
        self._stopped_by: LVLMError | None = None
        self._stopping = threading.Event()
        self._left = False
        self.sent = self.cached = 0
        # Which models answered by the server's own word, by the model that was asked.
        self.answered_by: dict[str, set[str]] = {}
        # What a person should know about how a server behaved, each note once.
        self.notes: list[str] = []

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.leave()
        self.close()

    def close(self) -> None:
        """Waits for requests under way, records them and closes the file."""
        if self._left:
            return
        for courier in self._couriers.values():
            courier.close()
        self._connection.close()

    def leave(self) -> None:
        """Used instead of ``close`` to end without waiting: nothing new is sent, and the couriers finish requests under way after this process."""
        self._left = True
        self.stop(LVLMUnavailable("the run is stopping"))
        for courier in self._couriers.values():
            courier.leave()

    def stop(self, error: LVLMError) -> None:
        """Nothing new is sent from now on: every call of ``ask`` raises ``error``."""
        with self._changed:
            self._stopped_by = self._stopped_by or error
            self._stopping.set()
            self._changed.notify_all()
            throttles = list(self._throttles.values())
        for throttle in throttles:
            throttle.end_pause()

    def count(self, state: str) -> int:
        """How many attempts are in a state."""
        return self._query("SELECT count(*) FROM attempts WHERE state = ?", state)[0][0]

    def cost_usd(self) -> float | None:
        """What all attempts have cost in US dollars, uncounted ones at their highest possible cost; None if a price is not known."""
        ((total, unknown),) = self._query(
            "SELECT total(coalesce(cost_usd, reserved_usd)), count(*) - count(coalesce(cost_usd, reserved_usd)) FROM attempts"
        )
        return None if unknown else total

    def key(self, lvlm: LVLM, request: Request) -> str:
        """What identifies a request: the SHA-256 of its body, its pictures' bytes, the model and the server."""
        return request_key(lvlm, request)

    def missing(self, lvlm: LVLM, requests: Sequence[Request]) -> list[Request]:
        """The requests that ``ask`` would send."""
        return [request for request in requests if self._recall(lvlm, self.key(lvlm, request)) is None]

    def holds(self, key: str, raw: str) -> bool:
        """Whether this very answer is stored, with whatever outcome."""
        return bool(self._query("SELECT 1 FROM attempts WHERE key = ? AND raw = ?", key, storable(raw)))

    def shape(self, key: str, request: Request) -> Request:
        """The request as it would be sent next: with twice the cap if its first answer was cut off."""
        cut = self._query("SELECT 1 FROM attempts WHERE key = ? AND outcome = 'truncated'", key)
        return replace(request, max_tokens=2 * request.max_tokens) if cut else request

    def record(self, lvlm: LVLM, request: Request, raw: str) -> Answer:
        """Stores an answer that was obtained outside the ledger. It costs what its usage says, or nothing. An answer already stored is kept.

        Raises LVLMProtocolError if ``raw`` is not an answer of this backend.
        """
        answer, described = lvlm.parse(raw), describe_request(lvlm, request, lvlm.body(request))
        key = hash_description(described)
        with self._flight(key):
            stored = self._recall(lvlm, key)
            if stored is not None and stored.problem is None:
                return stored
            with self._changed:
                row = begin(self._connection, Attempt(key, request.role, lvlm.name, described, 0.0))
                keep_answer(self._connection, row, raw)
            self._settle(lvlm, row, raw)
            return answer

    def ask(self, lvlm: LVLM, request: Request, usable: Callable[[str], bool] | None = None) -> Answer:
        """The answer to ``request``, which is sent only if there is none yet.

        An answer that was refused, cut off, or is unknown has its problem. Only where somebody wants it is another asked for, and paid for, in place
        of an earlier command's whose text is not ``usable``. Raises LVLMError if the run must stop; it can be resumed.
        """
        key = self.key(lvlm, request)
        with self._flight(key):
            stored = self._recall(lvlm, key)
            if usable and stored and stored.problem is None and key not in self._sent_keys and not usable(stored.text):
                self._query("UPDATE attempts SET state = 'failed', outcome = 'malformed' WHERE key = ? AND state = 'answered'", key)
                stored = None
            if stored is not None:
                self.cached += stored.problem is None
                return self._note_model(lvlm, stored)
            self._sent_keys.add(key)
            try:
                return self._note_model(lvlm, self._send(lvlm, request, key))
            except LVLMError as error:
                self.stop(error)
                raise

    @contextmanager
    def _flight(self, key: str) -> Iterator[None]:
        """Only one thread at a time works on a key: another one that asks the same waits, and then finds the answer."""
        with self._changed:
            self._changed.wait_for(lambda: key not in self._keys)
            self._keys.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._keys.discard(key)
                self._changed.notify_all()

    def _recall(self, lvlm: LVLM, key: str) -> Answer | None:
        """The result of earlier attempts; None if another attempt is due. Parses a stored answer again, which is free."""
        rows = self._query("SELECT id, state, outcome, raw, error FROM attempts WHERE key = ? ORDER BY id", key)
        for row, state, outcome, raw, _ in rows:
            if state == "answered" and outcome is not None:
                return replace(lvlm.parse(raw), cached=True)
            if state == "answered":  # a crash came between storing this answer and parsing it
                with suppress(LVLMError):
                    self._settle(lvlm, row, raw)
                return self._recall(lvlm, key)
        if any(state == "unknown" for _, state, *_ in rows):
            paid = "" if rows[-1][2] in _DECIDED else "it may have been paid for, and "
            return Answer("", problem=f"unknown: {rows[-1][4]}; {paid}is asked again only with --retry-unknown", outcome="unknown")
        refused = [row for row in rows if row[2] == "refused"]
        cut = [row for row in rows if row[2] == "truncated"]
        if refused or len(cut) > 1:
            *_, outcome, raw, error = (refused or cut)[-1]
            return lvlm.parse(raw) if raw is not None else Answer("", problem=f"refused: {error}", outcome="refused")
        return None

    def _send(self, lvlm: LVLM, request: Request, key: str) -> Answer:
        """The answer, after as many attempts as each kind of failure allows."""
        # Attempts that may have been paid for still count after a crash; a server that was busy then may no longer be.
        paid = self._query("SELECT outcome FROM attempts WHERE key = ? AND outcome IN ('truncated', 'ambiguous')", key)
        met = Counter(outcome for (outcome,) in paid)
        throttle = self._throttle(lvlm)
        while True:
            shape = self._shapes[lvlm.name]
            shaped = SHAPES[shape](replace(request, max_tokens=2 * request.max_tokens) if met["truncated"] else request)
            with throttle.slot() as started:
                try:
                    answer = self._attempt(lvlm, shaped, key)
                    throttle.speed_up()
                except LVLMError as error:
                    failure = error
                else:
                    if answer.outcome != "truncated" or met["truncated"]:
                        return answer
                    met["truncated"] += 1
                    continue
            if isinstance(failure, LVLMRefused):
                return Answer("", problem=f"refused: {failure}", outcome="refused")
            if isinstance(failure, LVLMTooBig):
                if not self._show_less(lvlm, shaped, shape, failure):
                    return self._give_up(lvlm, key, failure)
            elif not isinstance(failure, LVLMBusy | LVLMUnclear):
                raise failure
            elif not isinstance(failure, LVLMUnsupported):
                met[failure.outcome] += 1
                if met[failure.outcome] >= MOST[failure.outcome]:
                    return self._give_up(lvlm, key, failure)
                wait = getattr(failure, "wait", None)
                if isinstance(failure, LVLMRateLimited):
                    throttle.slow_down(started, wait)
                if wait is None or not isinstance(failure, LVLMRateLimited):
                    self._stopping.wait(wait or self._backoff(met[failure.outcome]))

    def _show_less(self, lvlm: LVLM, sent: Request, shape: int, failure: LVLMTooBig) -> bool:
        """Whether the pictures ``sent`` in a ``shape`` fit a smaller shape. If so, this model is shown all further pictures in the smaller one."""
        smaller = JOINED if isinstance(failure, LVLMTooMany) else SMALLER
        if shape >= smaller or SHAPES[smaller](sent).parts == sent.parts:
            return False
        if self._shapes[lvlm.name] < smaller:
            self._shapes[lvlm.name] = smaller
            self._note(f"{lvlm.name} is shown {SHAPE_NAMES[smaller]} from now on, and no longer {SHAPE_NAMES[shape]}: {failure}")
        return True

    def _give_up(self, lvlm: LVLM, key: str, failure: LVLMError) -> Answer:
        """A request that failed while others are answered waits for a person. If nothing is answered the server is at fault, and the run stops."""
        if isinstance(failure, LVLMTimeout):
            self._leave_open(key)
        with self._changed:
            # While the first requests are still under way nobody knows whether the request is bad or the server, so wait for them.
            self._changed.wait_for(lambda: lvlm.name in self._answering or not self._budget.under_way or self._stopped_by)
            self._fruitless[lvlm.name] += 1
            alone = lvlm.name not in self._answering or self._fruitless[lvlm.name] >= MOST_IN_A_ROW
        if alone:
            raise failure
        if failure.outcome in _DECIDED:
            self._leave_open(key)
            return Answer("", problem=f"{failure.outcome}: {failure}", outcome="unknown")
        return Answer("", problem=f"no answer after {MOST[failure.outcome]} attempts: {failure}", outcome="unknown")

    def _leave_open(self, key: str) -> None:
        """Marks the last attempt as unknown: the request is sent again only with --retry-unknown."""
        self._query("UPDATE attempts SET state = 'unknown' WHERE id = (SELECT max(id) FROM attempts WHERE key = ?)", key)

    def _note_model(self, lvlm: LVLM, answer: Answer) -> Answer:
        """Notes who gave an answer, and once if that is another model than was asked. What a recorded run says was told when it was made."""
        if answer.model is None:
            return answer
        with self._changed:
            self.answered_by.setdefault(lvlm.name, set()).add(answer.model)
        if lvlm.address is not None and not is_same_model(lvlm.name.partition(":")[2], answer.model):
            self._note(f"{lvlm.name} was asked, and {answer.model!r} answers by the server's word: what it says is that model's and not the other's")
        return answer

    def _note(self, text: str) -> None:
        with self._changed:
            if text not in self.notes:
                self.notes.append(text)

    def _attempt(self, lvlm: LVLM, request: Request, key: str) -> Answer:
        """One attempt: reserves the money, records the answer, and then parses it."""
        body = lvlm.body(request)
        price = self._budget.price_of(lvlm.name)
        reserved = None if price is None else price.cost(worst_case_tokens(body, request.max_tokens))
        attempt = Attempt(key, request.role, lvlm.name, describe_request(lvlm, request, body), reserved)
        cost = usd = reserved or 0.0
        self._budget.reserve(usd, lambda: self._stopped_by)
        with self._changed:
            self.sent += 1
        try:
            row, raw = self._deliver(lvlm, attempt, body, request)
            answer = self._settle(lvlm, row, raw)
            if (answer.usage.output_tokens or 0) > CAP_SLACK * request.max_tokens:
                self._note(
                    f"{lvlm.name} does not keep to the cap on its answers ({answer.usage.output_tokens:,} tokens came, {request.max_tokens:,} were "
                    f"allowed): the cost of one request cannot be bounded, so max_usd may be exceeded by that much"
                )
            counted = None if price is None else price.cost(answer.usage)
            cost = usd if counted is None else counted
            return answer
        except LVLMError as error:
            cost = usd if error.may_be_paid else 0.0
            raise
        finally:
            self._budget.release(usd, cost)

    def _deliver(self, lvlm: LVLM, attempt: Attempt, body: dict[str, Any], request: Request) -> tuple[int, str]:
        """Sends one attempt and returns its row in the ledger and the raw answer, which is stored there already."""
        if lvlm.address is not None:
            return self._courier(lvlm.address).send(attempt, body)
        with self._changed:
            row = begin(self._connection, attempt)
        try:
            raw = get_reply(lvlm, request, body)
        except LVLMError as error:
            with self._changed:
                keep_failure(self._connection, row, error)
            raise
        with self._changed:
            keep_answer(self._connection, row, raw)
        return row, raw

    def _settle(self, lvlm: LVLM, row: int, raw: str) -> Answer:
        """Parses a stored answer, and records its outcome and cost. Raises LVLMError for a response that is not a model's answer at all."""
        try:
            answer = lvlm.parse(raw)
        except LVLMError as error:
            with self._changed:
                keep_failure(self._connection, row, error)
            raise
        price, state = self._budget.price_of(lvlm.name), "answered" if answer.outcome == "answered" else "failed"
        cost = None if price is None else price.cost(answer.usage)
        self._query(
            "UPDATE attempts SET state = ?, outcome = ?, error = ?, cost_usd = coalesce(?, reserved_usd), input_tokens = ?, output_tokens = ?"
            " WHERE id = ?",
            state, answer.outcome, answer.problem and storable(answer.problem), cost, answer.usage.input_tokens, answer.usage.output_tokens, row,
        )  # fmt: skip
        with self._changed:
            self._answering.add(lvlm.name)
            self._fruitless[lvlm.name] = 0
            self._changed.notify_all()
        return answer

    def _query(self, sql: str, *values: object) -> list[tuple]:
        with self._changed:
            return self._connection.execute(sql, values).fetchall()

    def _backoff(self, times: int) -> float:
        return min(self._patience.longest_wait, self._patience.first_wait * 2 ** (times - 1)) * self._jitter.uniform(0.5, 1)

    def _throttle(self, lvlm: LVLM) -> Throttle:
        with self._changed:
            return self._throttles.setdefault(canonical([lvlm.name, lvlm.address]), Throttle(*lvlm.concurrency))

    def _courier(self, address: dict[str, Any]) -> Courier:
        with self._changed:
            name = canonical(address)
            if name not in self._couriers:
                self._couriers[name] = Courier(self._path, address)
            return self._couriers[name]
