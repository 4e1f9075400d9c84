"""Admission to one limit: requests, tokens, requests in flight, the shared pause, and an endpoint that is down.

Rules of this file: first come, first served, one at a time, so that a large request is never overtaken for ever; every
attempt passes here, retries too; the shared pause is looked at last, after the buckets, so that nobody slips into it.
How fast is `pace`'s to decide; this is the mechanism. A waiter leaves by being cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final, Literal

from batchrouter.circuit import Circuit
from batchrouter.credit import Credits
from batchrouter.gates import Meter, Slots
from batchrouter.health import Bound, limits_in_words
from batchrouter.hints import Hints
from batchrouter.pace import Pace, Sent
from batchrouter.records import ENDPOINT_DOWN, Halt
from batchrouter.remedies import remedy_for

_NO_TIME_S: Final = 1e-4
_LOOK_S: Final = 0.1  # how soon it is noticed that an outage has ended
_PATIENCE_S: Final = 0.2  # who has another way waits no longer than this for nobody to be let through
_LATENCY_SHARE: Final = 0.1  # of the newest, in the latency of late
_SCALE_SHARE: Final = 0.05  # of the newest, in how far off the estimates of tokens are
_MOST_OFF: Final = 20.0  # times; beyond it one request says nothing of the others

Pause = Literal["cooldown", "credits"]
Rate = Literal["requests", "tokens"]
Note = Callable[..., None]
MayLeave = Callable[[float, float], bool]  # (now, seconds that nobody is let through): is there another way?


class Throttle:
    """One limit's door: `admit` before each attempt, `left` after it, and one of `answered`, `limited`, `failed`."""

    def __init__(
        self,
        pace: Pace,
        *,
        max_wait_s: float,
        note: Note,
        slots: Slots | None = None,
        endpoint: Circuit | None = None,
    ) -> None:
        """`endpoint` is the circuit of all limits at this endpoint together, where there may be several."""
        self.pace = pace
        self._slots = slots
        self.circuit = Circuit()
        self._endpoint = endpoint or self.circuit
        self.in_flight = 0
        self.stuck = 0  # of those in flight, who left in a silence that is over
        self.waiting = 0  # who stand at the door
        self._latency_s = 0.0
        self._scale = 1.0  # tokens that requests take, of those they were estimated at
        self._each_s = 0.0  # what the last one who paid had to pay
        self.lost_s: dict[str, float] = {}
        self._max_wait_s = max_wait_s
        self.note = note
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._slot_free = asyncio.Event()
        self._requests, self._tokens = Meter(), Meter()
        self._waits_for: Rate = "requests"  # of the two the one that was, or is, waited for
        self._paused_until_s = 0.0
        self._pause_reason: Pause = "cooldown"
        self._limited_since_s: float | None = None
        self._credits = Credits()
        self._told_until_s = 0.0
        self._probing_since_s = 0.0
        self._probing = ""  # why only one request at a time may leave, if so: limit, credits, doubt

    # --- admission -------------------------------------------------------------------------------------------------

    async def admit(self, tokens: int) -> Sent:
        """Wait until a request of about `tokens` tokens may leave; from then on it counts as in flight."""
        if self._turn.locked() or not self._is_open():
            await self._stand_in_line(tokens, None)
        return self._let_go(tokens)

    async def admit_unless(self, may_leave: MayLeave, tokens: int) -> Sent | None:
        """As `admit`, but None where nobody is let through for a while and `may_leave` says there is another way."""
        if (self._turn.locked() or not self._is_open()) and not await self._stand_in_line(tokens, may_leave):
            return None
        return self._let_go(tokens)

    def _let_go(self, tokens: int) -> Sent:
        self.in_flight += 1
        if self._slots is not None:
            self._slots.taken += 1
        return self.pace.sent(self._loop.time(), self._likely(tokens))

    def _likely(self, tokens: int) -> int:
        """An estimate of tokens, corrected by what requests turned out to take."""
        return max(1, round(tokens * self._scale))

    async def _stand_in_line(self, tokens: int, may_leave: MayLeave | None) -> bool:
        self.waiting += 1
        try:
            async with self._turn:
                return await self._wait_for_turn(tokens, may_leave)
        finally:
            self.waiting -= 1

    def left(self) -> None:
        """A request that was in flight is so no more."""
        self.in_flight -= 1
        self._slot_free.set()
        if self._slots is not None:
            self._slots.taken -= 1
            self._slots.wake_one()

    def tick(self) -> None:
        """Time passes: to be called about twice a second, for the pace may rise while nothing ends."""
        self.pace.tick(self._loop.time())
        if self.in_flight < self.pace.concurrency:
            self._slot_free.set()

    def _is_open(self) -> bool:
        """Whether nothing at all holds the next request up: the common case, decided without waiting."""
        pace = self.pace
        return (
            self.in_flight < pace.concurrency
            and pace.requests_per_s == math.inf
            and pace.tokens_per_s == math.inf
            and not self._paused_until_s
            and not self._probing
            and self.circuit.open_since is None
            and self._endpoint.open_since is None
            and (self._slots is None or self._slots.is_free)
        )

    async def _wait_for_turn(self, tokens: int, may_leave: MayLeave | None) -> bool:
        if may_leave is not None and self._is_left(self._loop.time(), may_leave):
            return False
        await self._paid(tokens)
        has_place = self._slots is None
        while True:  # whatever was waited for, the rest may have changed meanwhile
            now = self._loop.time()
            if may_leave is not None and self._is_left(now, may_leave):
                self._pass_on()
                return False
            if self.in_flight >= self._places():
                await self._slot_ready()
            elif (probe_in_s := self.probe_in_s(now)) > 0:
                await self._lose("outage", min(probe_in_s, _LOOK_S))
            elif self._paused_until_s > now:
                await self._lose(self._pause_reason, self._paused_until_s - now)
            elif self._slots is not None and not has_place:
                await self._slots.wait()
                has_place = True
                continue
            else:
                break
            has_place = self._slots is None  # it was passed on
        self._paused_until_s = 0.0
        for circuit in {self.circuit, self._endpoint}:
            if circuit.is_open:
                circuit.probed(now)
        return True

    def _places(self) -> float:
        """How many may be in flight; a probe of an endpoint that keeps all of them waiting is one more."""
        if self._probing:
            return 1
        return math.inf if self.circuit.is_silent else self.pace.concurrency + self.stuck

    def is_heard_again(self) -> None:
        """Something came back: those who are still out may never be answered, and take nobody's place."""
        self.stuck = self.in_flight
        self._slot_free.set()

    def unstick(self, sent: Sent) -> None:
        """One that is out no more was perhaps one of those."""
        if self.circuit.excuses(sent.at):
            self.stuck -= 1

    def fall_silent(self, now: float) -> None:
        """Nothing comes back any more: only probes leave from now on."""
        self.circuit.fall_silent(now)
        self._slot_free.set()

    def probe_in_s(self, now: float) -> float:
        """Seconds until a probe may leave (0: now, or none is needed)."""
        return max(self.circuit.probe_in_s(now), self._endpoint.probe_in_s(now))

    def _is_left(self, now: float, may_leave: MayLeave) -> bool:
        shut_s = self._shut_for_s(now)
        return shut_s > _PATIENCE_S and may_leave(now, shut_s)

    def _shut_for_s(self, now: float) -> float:
        return max(self.probe_in_s(now), self._paused_until_s - now)

    def wait_s(self, now: float, ahead: int) -> float:
        """Seconds that a request would wait to leave, with `ahead` others before it that are not at the door yet: an
        estimate, from the pauses, the rates and the latency of late.
        """
        ahead += self.waiting
        concurrency = self.pace.concurrency
        too_many = max(0, self.in_flight + ahead + 1 - concurrency)
        by_crowd_s = too_many * self._latency_s / concurrency
        return max(self._shut_for_s(now), 0.0) + max(ahead * self._each_s, by_crowd_s)

    async def _paid(self, tokens: int) -> None:
        """Until both buckets have room; each drains while the other is waited for."""
        pace, tokens = self.pace, self._likely(tokens)
        self._each_s = max(tokens / pace.tokens_per_s, 1 / pace.requests_per_s)
        await self._pay("tokens", self._tokens, tokens / pace.tokens_per_s)
        await self._pay("requests", self._requests, 1 / pace.requests_per_s)

    async def _pay(self, reason: Rate, meter: Meter, seconds: float) -> None:
        began, before = self._loop.time(), self._waits_for
        self._waits_for = reason
        await meter.pay(seconds)
        took_s = self._loop.time() - began
        if took_s < _NO_TIME_S:
            self._waits_for = before
        self._count_lost(reason, took_s)

    async def _slot_ready(self) -> None:
        self._pass_on()
        began = self._loop.time()
        self._slot_free.clear()
        await self._slot_free.wait()
        self._count_lost("concurrency", self._loop.time() - began)

    def _pass_on(self) -> None:
        """This lane cannot use a shared place now: let another look."""
        if self._slots is not None:
            self._slots.wake_one()

    async def _lose(self, reason: str, seconds: float) -> None:
        self._pass_on()
        await asyncio.sleep(seconds)
        self._count_lost(reason, seconds)

    def _count_lost(self, reason: str, seconds: float) -> None:
        if seconds > 0:
            self.lost_s[reason] = self.lost_s.get(reason, 0.0) + seconds

    # --- what came back --------------------------------------------------------------------------------------------

    def answered(self, now: float, sent: Sent, tokens: int, hints: Hints | None, *, estimated: int = 0) -> None:
        """A request was answered: whatever was wrong with this limit is over. It took `tokens`, where it had been
        `estimated` at so many (0: by nobody).
        """
        self._limited_since_s = None
        self._credits.answered()
        self._latency_s += _LATENCY_SHARE * (now - sent.at - self._latency_s)
        if estimated > 0 and tokens > 0:
            told = min(_MOST_OFF, max(1 / _MOST_OFF, tokens / estimated))
            self._scale += _SCALE_SHARE * (told - self._scale)
        if self._probing:
            self._probing = ""
            self._slot_free.set()
        self.pace.answered(now, sent, tokens, hints)

    def failed(self, now: float, sent: Sent) -> None:
        """A request failed, but not by this limit."""
        self._limited_since_s = None
        self.pace.failed(now, sent)

    def limited(self, now: float, sent: Sent, hints: Hints | None) -> Halt | None:
        """A 429: everybody pauses, the pace learns. A halt when nothing but 429 came for as long as is waited."""
        refused_probe = self._probing == "limit" and sent.at > self._probing_since_s
        if refused_probe or (self._limited_since_s is not None and now - self._limited_since_s >= self._max_wait_s):
            self.pace.failed(now, sent)
            return Halt(ENDPOINT_DOWN, "the endpoint answers nothing but 429 (rate limited)", remedy_for("429"))
        if self._limited_since_s is None:
            self._limited_since_s = now
        asked_s = 0.0 if hints is None or hints.retry_after_s is None else hints.retry_after_s
        if hints is not None and asked_s > self._max_wait_s:  # nor is it believed: no rate is learned from it
            hints = hints._replace(retry_after_s=self._max_wait_s)
        pause_s = max(asked_s, self.pace.limited(now, sent, hints))
        if pause_s > self._max_wait_s:  # waited only so long; then one request shows whether it was meant
            self._probing, self._probing_since_s = "limit", now
            pause_s = self._max_wait_s
        self.pause(now + pause_s, "cooldown")
        return None

    def credit_waits(self, sent: Sent) -> int:
        """How many 402 with a short wait have come in a row before the answer to this request."""
        return self._credits.waits_before(sent.at)

    def wait_for_credits(self, now: float, sent: Sent, wait_s: float) -> None:
        """A 402 that says when to come back: everybody waits for that."""
        self._credits.asked_to_wait(sent.at, now)
        self.pause(now + wait_s, "credits")

    def probe(self) -> None:
        """Let one request at a time leave until one is answered."""
        self._probing = "doubt"

    def out_of_credits(self, now: float, sent: Sent, most_s: float) -> bool:
        """Credits are spent: one request at a time is to probe, ever slower, the last one after `most_s`. False when
        that is over.
        """
        probe_in_s = self._credits.spent(sent.at, now, most_s)
        if probe_in_s is not None:
            self._probing = "credits"
            self.pause(now + probe_in_s, "credits")
        return not self._credits.is_over

    def pause(self, until_s: float, reason: Pause) -> None:
        """Hold everybody up until then; a longer pause that is under way stands."""
        if until_s <= self._paused_until_s:
            return
        now = self._loop.time()
        if until_s - max(now, self._told_until_s) >= 1:
            self._told_until_s = until_s
            self.note(reason, seconds=round(until_s - now, 3))
        self._paused_until_s, self._pause_reason = until_s, reason

    # --- how it is -------------------------------------------------------------------------------------------------

    def bound(self) -> Bound:
        """What holds requests up at this moment: an outage, a pause, as many in flight as seem to be allowed
        (concurrency) or as may ever be (workers), or the rate that those at the door wait for.
        """
        if self.circuit.is_open or self._endpoint.is_open:
            return "outage"
        if self._paused_until_s > self._loop.time():
            return self._pause_reason
        if self._probing and self.in_flight:
            return "credits" if self._probing == "credits" else "cooldown"
        most = self.pace.concurrency
        if self._slots is not None and self._slots.taken >= self._slots.most:
            return "workers"
        if self.in_flight >= most:
            return "concurrency"
        if not self.waiting or self.pace.requests_per_s == self.pace.tokens_per_s == math.inf:
            return ""
        return self._waits_for

    def look(self, for_s: float) -> None:
        """Called every `for_s`: nobody stands at the door while all who may leave are out, so that is counted here."""
        if not self.waiting and (reason := self.bound()) in {"workers", "concurrency"}:
            self._count_lost(reason, for_s)

    def limits(self) -> dict[str, float]:
        """The limits that hold now, told or learned, by name; what is not bounded is left out."""
        pace, found = self.pace, {}
        requests = pace.learned.requests_per_s or pace.requests_per_s
        tokens = pace.learned.tokens_per_s or pace.tokens_per_s
        if requests != math.inf:
            found["requests_per_min"] = round(60 * requests, 1)
        if tokens != math.inf:
            found["tokens_per_min"] = round(60 * tokens, 1)
        return {**found, "at_once": pace.concurrency}

    def state(self) -> str:
        """What holds the run up now, in a few words; empty when nothing does."""
        now, reason, limits = self._loop.time(), self.bound(), self.limits()
        if reason == "outage":
            since = min(each.open_since for each in (self.circuit, self._endpoint) if each.open_since is not None)
            return f"endpoint down for {now - since:.0f} s"
        if self._paused_until_s > now:
            return f"{reason}, {self._paused_until_s - now:.0f} s to go"
        if reason in {"workers", "concurrency"}:
            return f"bound by {reason}, {self.in_flight} at once"
        if reason in {"requests", "tokens"}:
            return f"bound by {reason}, at most {limits.get(f'{reason}_per_min', 0):,.0f}/min"
        del limits["at_once"]
        return limits_in_words(limits)
