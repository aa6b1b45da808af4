"""The ledger: every attempt at a request is written down before it is sent, every answer before it is read, and none is asked for twice.

Requests to a server go through a courier, which outlives a kill of the command. What may be paid for counts with the most that it may cost until a
provider's own count is there, and a budget holds for that sum. The kinds of failure, and what follows from each, are in docs/critic.md.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rightreasons.errors import (
    ConfigError,
    LVLMBusy,
    LVLMError,
    LVLMOverBudget,
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
from rightreasons.lvlm.ledger.courier import Courier, wait_for_courier
from rightreasons.lvlm.ledger.prices import Price, worst_case_tokens
from rightreasons.lvlm.ledger.throttle import Throttle
from rightreasons.lvlm.protocol import LVLM, Answer, Request
from rightreasons.lvlm.wire.composite import JOINED, SHAPE_NAMES, SHAPES, SMALLER
from rightreasons.lvlm.wire.model_name import is_same_model
from rightreasons.lvlm.wire.request_key import canonical, describe_request, hash_description, request_key

# How often one request may meet each kind of failure.
MOST = {"rate": 20, "transient": 5, "ambiguous": 2, "unclear": 2}
# So many requests in a row without an answer are the server's fault, and stop the run; and the very first one that ends so.
MOST_IN_A_ROW = 5
# What the server says of such a request holds for it the next time as well: it is a person's until somebody wants it asked again.
_DECIDED = ("unclear", "too big")
LONGEST_BACKOFF = 60.0
# An answer may be longer than its cap by what some servers do not count, such as the token that ends it.
CAP_SLACK = 1.1
# Seconds to wait for the courier of an earlier command: longer than any request may take.
LONGEST_WAIT = 3100.0


class Ledger:
    """The attempts of one run folder. Threads may share it; a second process must not (``runs`` holds a lock).

    ``price`` is what tokens cost: of every model, or by its name. ``max_usd`` bounds what the whole folder may cost, earlier commands included.
    The first error that no other attempt can mend stops it: what is under way ends and is written down, and nothing new is sent.
    """

    def __init__(
        self,
        path: Path,
        *,
        retry_unknown: bool = False,
        price: Price | Mapping[str, Price] | None = None,
        max_usd: float | None = None,
        first_wait: float = 1.0,
    ) -> None:
        if max_usd is not None and price is None:
            raise ConfigError(f"a budget of {max_usd:g} US dollars needs a price: declare one, as `rightreasons lvlm estimate` shows")
        self._path, self._price, self._max_usd, self._first_wait = path, price, max_usd, first_wait
        wait_for_courier(path, LONGEST_WAIT)
        # A courier's writes survive a power cut; what is written here can be worked out again from those.
        self._connection = open_attempts(path, durable=False)
        recover(self._connection, retry_unknown=retry_unknown)
        # Guards the connection and everything below; told of whenever a request has ended.
        self._changed = threading.Condition()
        self._jitter = random.Random(os.getpid())  # spreads out waiting; no result depends on it
        self._couriers: dict[str, Courier] = {}
        self._throttles: dict[str, Throttle] = {}
        # By the name of a model: in which of composite's shapes it is shown pictures, and how many requests in a row came to nothing.
        self._shapes: Counter[str] = Counter()
        self._fruitless: Counter[str] = Counter()
        self._answering: set[str] = {model for (model,) in self._query("SELECT DISTINCT model FROM attempts WHERE state = 'answered'")}
        self._keys: set[str] = set()
        self._under_way = 0
        self._committed_usd = self.cost_usd() or 0.0
        self._stopped_by: LVLMError | None = None
        self._stopping = threading.Event()
        self._left = False
        self.sent = self.cached = 0
        # Who answered by a server's word, by who was asked.
        self.answered_by: dict[str, set[str]] = {}
        # What a person should know of how a server behaved, each once.
        self.notes: list[str] = []

    def close(self) -> None:
        """Wait for what is under way, write everything out and let go of the file."""
        if self._left:
            return
        for courier in self._couriers.values():
            courier.close()
        self._connection.close()

    def leave(self) -> None:
        """Instead of ``close``, without waiting: nothing new is sent, and the couriers end what is under way after this process."""
        self._left = True
        self.stop(LVLMUnavailable("the run is stopping"))
        for courier in self._couriers.values():
            courier.leave()

    def stop(self, error: LVLMError) -> None:
        """Nothing new is sent from now on: whoever asks gets ``error``."""
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
        """What all attempts have cost, in US dollars, with the most possible where nobody counted; None where a price is not known."""
        ((total, unknown),) = self._query(
            "SELECT total(coalesce(cost_usd, reserved_usd)), count(*) - count(coalesce(cost_usd, reserved_usd)) FROM attempts"
        )
        return None if unknown else total

    def key(self, lvlm: LVLM, request: Request) -> str:
        """What identifies a request: the SHA-256 of all that is sent and of whom is asked, with pictures by their bytes."""
        return request_key(lvlm, request)

    def missing(self, lvlm: LVLM, requests: Sequence[Request]) -> list[Request]:
        """Those that ``ask`` would send."""
        return [request for request in requests if self._recall(lvlm, self.key(lvlm, request)) is None]

    def holds(self, key: str, raw: str) -> bool:
        """Whether this very answer is stored, whatever it came to."""
        return bool(self._query("SELECT 1 FROM attempts WHERE key = ? AND raw = ?", key, storable(raw)))

    def shape(self, key: str, request: Request) -> Request:
        """The request as it is due: with twice the cap where its first answer was cut off."""
        cut = self._query("SELECT 1 FROM attempts WHERE key = ? AND outcome = 'truncated'", key)
        return replace(request, max_tokens=2 * request.max_tokens) if cut else request

    def record(self, lvlm: LVLM, request: Request, raw: str) -> Answer:
        """Stores an answer that came another way, which cost what its usage says, or nothing. One that is there already stays.

        Raises LVLMProtocolError where ``raw`` is not an answer of this backend.
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

    def ask(self, lvlm: LVLM, request: Request) -> Answer:
        """The answer to ``request``, sent only where there is none yet.

        What was refused, cut off, or is unknown comes back with its problem. Raises LVLMError where the run must stop; it can be resumed.
        """
        key = self.key(lvlm, request)
        with self._flight(key):
            stored = self._recall(lvlm, key)
            if stored is not None:
                self.cached += stored.problem is None
                return self._note_model(lvlm, stored)
            try:
                return self._note_model(lvlm, self._send(lvlm, request, key))
            except LVLMError as error:
                self.stop(error)
                raise

    @contextmanager
    def _flight(self, key: str) -> Iterator[None]:
        """One flight per key: whoever asks the same meanwhile waits, and finds the answer."""
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
        """What earlier attempts came to; None where another one is due. Reads a stored answer again, which is free."""
        rows = self._query("SELECT id, state, outcome, raw, error FROM attempts WHERE key = ? ORDER BY id", key)
        for row, state, outcome, raw, _ in rows:
            if state == "answered" and outcome is not None:
                return replace(lvlm.parse(raw), cached=True)
            if state == "answered":  # a crash came between keeping this answer and reading it
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
        # What may have been paid for is remembered over a crash; a server that was busy then may not be now.
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
        """Whether pictures that were ``sent`` in a ``shape`` can be shown in a smaller one, in which this model is then shown all."""
        smaller = JOINED if isinstance(failure, LVLMTooMany) else SMALLER
        if shape >= smaller or SHAPES[smaller](sent).parts == sent.parts:
            return False
        if self._shapes[lvlm.name] < smaller:
            self._shapes[lvlm.name] = smaller
            self._note(f"{lvlm.name} is shown {SHAPE_NAMES[smaller]} from now on, and no longer {SHAPE_NAMES[shape]}: {failure}")
        return True

    def _give_up(self, lvlm: LVLM, key: str, failure: LVLMError) -> Answer:
        """A request that failed while others are answered is a person's to decide. Where nothing is answered the server is at fault."""
        if isinstance(failure, LVLMTimeout):
            self._leave_open(key)
        with self._changed:
            # One bad request must not be taken for a bad server while the first good one is still being answered.
            self._changed.wait_for(lambda: lvlm.name in self._answering or not self._under_way or self._stopped_by)
            self._fruitless[lvlm.name] += 1
            alone = lvlm.name not in self._answering or self._fruitless[lvlm.name] >= MOST_IN_A_ROW
        if alone:
            raise failure
        if failure.outcome in _DECIDED:
            self._leave_open(key)
            return Answer("", problem=f"{failure.outcome}: {failure}", outcome="unknown")
        return Answer("", problem=f"no answer after {MOST[failure.outcome]} attempts: {failure}", outcome="unknown")

    def _leave_open(self, key: str) -> None:
        """The last attempt becomes unknown: the request is asked again only where somebody says so."""
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
        """One attempt: money set aside, the answer written down, and then read."""
        body = lvlm.body(request)
        price = self._price_of(lvlm)
        reserved = None if price is None else price.cost(worst_case_tokens(body, request.max_tokens))
        attempt = Attempt(key, request.role, lvlm.name, describe_request(lvlm, request, body), reserved)
        cost = usd = reserved or 0.0
        self._reserve(usd)
        try:
            row, raw = self._deliver(lvlm, attempt, body, request)
            answer = self._settle(lvlm, row, raw)
            if (answer.usage.output_tokens or 0) > CAP_SLACK * request.max_tokens:
                self._note(
                    f"{lvlm.name} does not keep to the cap on its answers ({answer.usage.output_tokens:,} tokens came, {request.max_tokens:,} were "
                    f"allowed): what one request costs cannot be bounded, so that max_usd may be passed by that much"
                )
            counted = None if price is None else price.cost(answer.usage)
            cost = usd if counted is None else counted
            return answer
        except LVLMError as error:
            cost = usd if error.may_be_paid else 0.0
            raise
        finally:
            with self._changed:
                self._committed_usd += cost - usd
                self._under_way -= 1
                self._changed.notify_all()

    def _reserve(self, usd: float) -> None:
        """Sets the most aside that a request may cost. Where it does not fit, waits for what is under way, which mostly costs less than that."""
        limit = float("inf") if self._max_usd is None else self._max_usd + 1e-9
        with self._changed:
            self._changed.wait_for(lambda: self._stopped_by or self._committed_usd + usd <= limit or not self._under_way)
            if self._stopped_by is not None:
                raise self._stopped_by
            if self._committed_usd + usd > limit:
                raise LVLMOverBudget(
                    f"the next request may cost up to {usd:.4f} US dollars, and of {self._max_usd:g} allowed {self._committed_usd:.4f} are "
                    f"spent: raise --max-usd and run the same command again, which goes on where it stopped"
                )
            self._committed_usd += usd
            self._under_way += 1
            self.sent += 1

    def _deliver(self, lvlm: LVLM, attempt: Attempt, body: dict[str, Any], request: Request) -> tuple[int, str]:
        """The row and the raw answer, which is in it already."""
        if lvlm.address is not None:
            return self._courier(lvlm.address).send(attempt, body)
        with self._changed:
            row = begin(self._connection, attempt)
        try:
            raw = lvlm.send(body, request)
        except LVLMError as error:
            with self._changed:
                keep_failure(self._connection, row, error)
            raise
        with self._changed:
            keep_answer(self._connection, row, raw)
        return row, raw

    def _settle(self, lvlm: LVLM, row: int, raw: str) -> Answer:
        """Reads an answer that is kept, and writes down what it is and what it cost. Raises LVLMError for what is no answer of a model at all."""
        try:
            answer = lvlm.parse(raw)
        except LVLMError as error:
            with self._changed:
                keep_failure(self._connection, row, error)
            raise
        price, state = self._price_of(lvlm), "answered" if answer.outcome == "answered" else "failed"
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
        return min(LONGEST_BACKOFF, self._first_wait * 2 ** (times - 1)) * self._jitter.uniform(0.5, 1)

    def _price_of(self, lvlm: LVLM) -> Price | None:
        price = self._price.get(lvlm.name) if isinstance(self._price, Mapping) else self._price
        if price is None and self._max_usd is not None:
            raise LVLMOverBudget(f"no price is known for {lvlm.name!r}, so that a budget cannot hold: declare one in [critic] prices")
        return price

    def _throttle(self, lvlm: LVLM) -> Throttle:
        with self._changed:
            return self._throttles.setdefault(canonical([lvlm.name, lvlm.address]), Throttle(*lvlm.concurrency))

    def _courier(self, address: dict[str, Any]) -> Courier:
        with self._changed:
            name = canonical(address)
            if name not in self._couriers:
                self._couriers[name] = Courier(self._path, address)
            return self._couriers[name]
