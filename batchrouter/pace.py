"""How fast one limit may be used: a policy that learns from what comes back. The mechanism (throttle) enforces it.

Rules of this file: pure; no clock, `now` is passed in, in monotonic seconds; every request that is `sent` ends in
exactly one of `answered`, `limited`, `failed`, with the `Sent` it left with.

*To begin with* nothing is known: requests leave as fast as `crowd` lets them be in flight, which is ever more.

*A 429* begins an episode: all admission pauses, then single requests probe, and when one of them is refused a longer
pause follows. When one is answered, or not refused for longer than refusals take, the episode is over. What was sent
before a pause and is refused during it belongs to the same episode, however late its 429 comes.

*After it* `suspects` say which limit it was: of requests a second, of tokens a second (each a `ceiling`), or of
requests in flight (`crowd`). That one is placed anew, from what has been accepted until then, and stays there for a
while; the others climb. Or it was bad `luck`, and there is none.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final, NamedTuple

from batchrouter.ceiling import Ceiling, Cost, End
from batchrouter.crowd import Crowd
from batchrouter.hints import Hints
from batchrouter.luck import Luck
from batchrouter.suspects import Load, Suspects

_TICK_S: Final = 0.02
_PAUSES_S: Final = (0.05, 30.0)  # the shortest and longest pause after a 429 that asks for none
_PAUSE_GROWTH: Final = 0.5  # of the time that nothing has been accepted
_PAUSE_EPISODES: Final = 0.04  # of the longest episode
_JITTER: Final = 0.1  # added to a pause that was asked for, of its length
_UNREFUSED: Final = 1.5  # times the time that a refusal takes, and a request may be taken for accepted
_PROBE_S: Final = 0.02  # the shortest time between two probes: the mechanism is no more exact
_FEW: Final = 3  # refusals in an episode may be bad luck …
_FEW_SHARE: Final = 0.1  # … and this share of the requests in flight besides
_ROUNDED_MOST_S: Final = 2.0  # whole seconds below this are rounded up from almost nothing


class Sent(NamedTuple):
    """A request as it left: the `nth`, with `in_flight` on their way (itself included)."""

    at: float
    nth: int
    in_flight: int
    tokens: int
    load: Load = Load(0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run has learned of its limits, for the next start. None: nothing that bounds."""

    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    concurrency: int | None = None


@dataclass(slots=True)
class _Episode:
    """Refusals of one cause: the first request refused, how many were, how many pauses were made, and at the last
    pause how long was asked for, when it was, and how much had been sent.
    """

    first: Sent
    hints: Hints | None
    began_at: float
    refusals: int = 0
    pauses: int = 0
    asked_s: float = 0.0
    paused_at: float = 0.0
    sent: int = 0
    tokens_sent: float = 0.0
    probed_at: float = math.inf

    @property
    def is_isolated(self) -> bool:
        """Whether hardly any request was refused, for all that the server said."""
        is_told = self.hints is not None and (self.hints.requests or self.hints.tokens)
        few = _FEW + _FEW_SHARE * self.first.in_flight
        return self.pauses <= 2 and self.refusals <= few and self.asked_s < _ROUNDED_MOST_S and not is_told

    def end(self, accepted: float, now: float) -> End:
        """How it ended, when a request was accepted again `now`."""
        if self.asked_s >= _ROUNDED_MOST_S or not self.asked_s.is_integer():  # a server that knows its own end
            return End(accepted, self.paused_at + self.asked_s)
        if self.asked_s or self.pauses == 1:  # sometime in the pause: till it began, quota was used up
            at = (self.first.at + self.paused_at) / 2
            return End(accepted, at, (self.paused_at - at), rest_s=now - at, window_s=self.asked_s)
        gap_s = now - self.paused_at  # between the last probe that was refused and the first that was not
        return End(accepted, self.paused_at + gap_s / 2, gap_s / 2)


class Pace:
    """The pace of one limit. A number given is trusted: the pace starts there and never exceeds it (it goes under it
    only while refusals show that it is too high); None is found out, starting from what was learned before, if anything
    was.
    """

    def __init__(
        self,
        *,
        requests_per_s: float | None,
        tokens_per_s: float | None,
        concurrency: int | None,
        max_concurrency: int,
        learned: Learned | None,
        now: float,
        rng: random.Random,
    ) -> None:
        known = learned or Learned()
        is_bounded = requests_per_s is not None or tokens_per_s is not None
        start = max_concurrency if is_bounded else known.concurrency
        self._requests = Ceiling(requests_per_s, known.requests_per_s, now)
        self._tokens = Ceiling(tokens_per_s, known.tokens_per_s, now)
        self._crowd = Crowd(concurrency, max_concurrency, start, now)
        self._suspects, self._luck = Suspects(), Luck()
        self._rng = rng
        self._sent = self._refused = self._flying = 0
        self._tokens_sent = self._tokens_refused = 0.0
        self._tick_at = now
        self._refusal_s = 0.0  # how long a refusal takes to come
        self._episode: _Episode | None = None
        self._paused_at = -math.inf

    # --- what the mechanism enforces ----------------------------------------------------------------------------------

    @property
    def requests_per_s(self) -> float:
        """Requests a second; `math.inf` when nothing bounds them."""
        if self._episode is None:
            return self._requests.rate
        return min(self._requests.rate, 1 / max(_UNREFUSED * self._refusal_s, _PROBE_S))

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second; `math.inf` when nothing bounds them."""
        return self._tokens.rate

    @property
    def concurrency(self) -> int:
        """Requests in flight at once."""
        return self._crowd.limit

    @property
    def learned(self) -> Learned:
        """What the next start may begin with."""
        return Learned(self._requests.top, self._tokens.top, self._crowd.limit)

    # --- what happens -------------------------------------------------------------------------------------------------

    def sent(self, now: float, tokens: int) -> Sent:
        """A request leaves, with about `tokens` tokens."""
        self._sent = nth = self._sent + 1
        self._flying = flying = self._flying + 1
        self._tokens_sent += tokens
        if now >= self._tick_at or self._episode is not None:
            self._follow(now)
        return Sent(now, nth, flying, tokens, self._suspects.sent(now, tokens, flying))

    def answered(self, now: float, sent: Sent, tokens: int, hints: Hints | None) -> None:
        """It was accepted, and took `tokens` tokens in all."""
        flying = self._flying
        self._flying = flying - 1
        self._tokens_sent += tokens - sent.tokens
        if hints is not None:
            self._read(hints, now)
        if self._episode is not None and sent.at >= self._episode.paused_at:
            self._resume(self._episode, now)
        self._crowd.answered(sent.at, sent.in_flight, flying, now)

    def failed(self, now: float, sent: Sent) -> None:
        """It ended in any other way."""
        del now, sent
        self._flying -= 1

    def limited(self, now: float, sent: Sent, hints: Hints | None) -> float:
        """It was refused with a 429. The seconds from now for which all admission owes a pause: never less than was
        asked for, and jitter on top; not capped, as only the caller knows how long it may wait.
        """
        self._flying -= 1
        self._refused += 1
        self._tokens_refused += sent.tokens
        self._refusal_s = max(now - sent.at, 0.9 * self._refusal_s, 1e-3)
        asked_s = 0.0
        if hints is not None:
            self._read(hints, now)
            asked_s = hints.retry_after_s or 0.0
        pause_s = asked_s + self._rng.uniform(0, min(_JITTER * asked_s, _PAUSES_S[0]))
        is_late = sent.at < self._paused_at
        episode = self._episode
        if episode is None:
            if is_late:
                return pause_s
            episode = self._episode = _Episode(sent, hints, now)
            self._crowd.refused(sent.in_flight)
        episode.refusals += 1
        episode.asked_s = max(episode.asked_s, asked_s) if is_late else asked_s
        if sent.nth < episode.first.nth:
            episode.first = sent
        if is_late:
            return pause_s
        episode.pauses += 1
        episode.paused_at = self._paused_at = now
        episode.sent, episode.tokens_sent = self._sent, self._tokens_sent
        episode.probed_at = math.inf
        return pause_s or self._own_pause_s(now - episode.began_at)

    def _own_pause_s(self, lasts_s: float) -> float:
        """A pause that nobody asked for: it grows with the time that nothing is accepted, so that no more than half of
        that is missed of a window's end. Equal jitter (M. Brooker, "Exponential Backoff And Jitter", AWS 2015).
        """
        shortest_s, longest_s = _PAUSES_S
        grown_s = max(_PAUSE_GROWTH * lasts_s, _PAUSE_EPISODES * self._requests.longest_s)
        return self._rng.uniform(0.5, 1) * min(max(shortest_s, grown_s), longest_s)

    def tick(self, now: float) -> None:
        """Time passes: to be called about twice a second, for nothing may end for long."""
        self._follow(now)
        if self._episode is None:
            self._crowd.silent(self._flying, now)

    def _follow(self, now: float) -> None:
        self._tick_at = now + _TICK_S
        episode = self._episode
        if episode is not None:
            if now - episode.probed_at > 0.99 * _UNREFUSED * self._refusal_s:
                self._resume(episode, now)
            elif self._sent > episode.sent:
                episode.probed_at = min(episode.probed_at, now)
            return
        if self._sent <= 1:
            self._requests.start(now)
            self._tokens.start(now)
        self._requests.tick(now, self._sent, self._sent - self._refused, 1.0)
        self._tokens.tick(now, self._tokens_sent, self._tokens_sent - self._tokens_refused, self._mean)
        self._suspects.drain(
            self._requests.lately(now, self._sent - self._refused),
            self._tokens.lately(now, self._tokens_sent - self._tokens_refused),
        )

    @property
    def _mean(self) -> float:
        """Tokens of a request."""
        return self._tokens_sent / max(self._sent, 1)

    def _read(self, hints: Hints, now: float) -> None:
        for meter, ceiling in ((hints.requests, self._requests), (hints.tokens, self._tokens)):
            if meter is not None and meter.limit:
                ceiling.tell(meter.limit, meter.window_s, now)

    # --- the end of an episode ----------------------------------------------------------------------------------------

    def _resume(self, episode: _Episode, now: float) -> None:
        """What was sent after the last pause is accepted: the episode is over. Find out whose it was."""
        self._episode = None
        accepted = self._sent - self._refused
        rate = self._suspects.judge(episode.first.load, episode.first.tokens, episode.hints)
        number = self._suspects.judge_number(episode.first.in_flight, self._crowd.top)
        self._suspects.restart()
        blamed = self._requests if rate == "requests" else self._tokens
        self._luck.judge(
            accepted,
            self._refused,
            is_isolated=episode.is_isolated,
            is_early=blamed.is_early(now),
            says_when=episode.asked_s > 0,
        )
        cost = Cost(episode.refusals, now - episode.began_at)
        for ceiling, sent, refused, unit in (
            (self._requests, episode.sent, self._refused, 1.0),
            (self._tokens, episode.tokens_sent, self._tokens_refused, self._mean),
        ):
            end = episode.end(sent - refused, now)
            if self._luck.is_bad:
                ceiling.free()
            elif ceiling is not blamed or number == "yes":
                ceiling.hurry()
            else:
                ceiling.settle(episode.first.at, end, unit, cost, now)
                if number == "perhaps":
                    ceiling.doubt()
            ceiling.ended(episode.first.at, end)
        if number == "refuted" or (self._luck.is_bad and self._crowd.top is not None):
            self._crowd.free(now)
        elif number != "no" and not self._luck.is_bad:
            self._crowd.cut(episode.first.in_flight, cost, self._requests.lately(now, accepted), now)
