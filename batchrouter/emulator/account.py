"""One key's account: is it good, is it paid, how much may it ask? Pure: the time is passed in."""

from __future__ import annotations

from batchrouter.emulator.limits import Gate, Limits, Refused, retry_headers
from batchrouter.emulator.plays import JSON, Whole, problem, type_of_headers

_BUSY_S = 1.0  # what a full house asks to wait: it cannot know when a place is free


class Account:
    """The key, the credits and the limits, each of which may be changed at any time.

    `credits` is null (no end) or what is left, of which each request that is answered takes `price`.
    """

    def __init__(self, *, key: str, limits: Limits, balance: float | None, price: float) -> None:
        self.key = key
        self.revoked = False
        self.balance = balance
        self.price = price
        self.places = 0  # requests that were let in and are not over
        self._limits = limits
        self._gates: dict[str, Gate] = {}

    @property
    def limits(self) -> Limits:
        """The limits in force; new ones start with all of their room."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._gates.clear()

    def unauthorised(self, authorization: str, headers: type_of_headers) -> Whole | None:
        """A 401 unless the header carries the key and the key is good."""
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "bearer" and given.strip() == self.key and not self.revoked:
            return None
        hint = f": {given[:3]}***{given[-4:]}" if len(given) > 12 else ""
        message = f"Incorrect API key provided{hint}. Check that it is set and has not been revoked."
        body = problem(message, kind="authentication_error", code="invalid_api_key")
        return Whole(401, (*JSON, *headers), body)

    def limited(self, model: str, tokens: int, headers: type_of_headers, *, now: float, wall: float) -> Whole | None:
        """A 402 or 429 when no credit, place, request or token is left; else it takes its share of each."""
        if self.balance is not None and self.balance < self.price:
            message = "Insufficient credits. Top up on the Credits page, then retry."
            body = problem(message, kind="insufficient_credits", code="insufficient_credits")
            return Whole(402, (*JSON, *headers), body)
        full = self._limits.max_concurrency is not None and self.places >= self._limits.max_concurrency
        if full and not self._limits.queue:
            message = f"Too many requests at once: {self._limits.max_concurrency} are allowed."
            return self._slow_down(message, "concurrency", headers + self._retry(_BUSY_S, wall))
        gate = self._gate(model)
        if refused := gate.admit(tokens, now):
            more = gate.headers(now) + self._retry(refused.wait_s, wall)
            return self._slow_down(_told(refused, self._limits, model), refused.what, headers + more)
        self.places += 1
        return None

    def headers(self, model: str, now: float) -> type_of_headers:
        """The `x-ratelimit-*` headers for an answer to this model."""
        return self._gate(model).headers(now)

    def charge(self) -> None:
        """Takes the price of one answer."""
        if self.balance is not None:
            self.balance -= self.price

    def _gate(self, model: str) -> Gate:
        name = model if self._limits.scope == "model" else ""
        if name not in self._gates:
            self._gates[name] = Gate(self._limits)
        return self._gates[name]

    def _retry(self, wait_s: float, wall: float) -> type_of_headers:
        return retry_headers(self._limits, wait_s, wall)

    def _slow_down(self, message: str, kind: str, headers: type_of_headers) -> Whole:
        return Whole(429, (*JSON, *headers), problem(message, kind=kind, code="rate_limit_exceeded"))


def _told(refused: Refused, limits: Limits, model: str) -> str:
    allowed = limits.requests_per_minute if refused.what == "requests" else limits.tokens_per_minute
    return (
        f"Rate limit reached for {model} on {refused.what} per min: limit {allowed:.0f}. "
        f"Please try again in {refused.wait_s:.3f}s."
    )
