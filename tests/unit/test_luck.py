"""Is there a limit at all? What refusals that keep coming early, and shares of refused requests, are taken for."""

from __future__ import annotations

from batchrouter.luck import Luck


def tell(
    luck: Luck,
    episodes: int,
    *,
    gap: int,
    is_early: bool = True,
    is_isolated: bool = True,
    says_when: bool = False,
    start: int = 0,
) -> int:
    """So many episodes, each after `gap` accepted requests, of one refusal each; the requests accepted in all."""
    for nth in range(1, episodes + 1):
        luck.judge(
            start + nth * gap,
            start // gap + nth,
            is_isolated=is_isolated,
            is_early=is_early,
            says_when=says_when,
        )
    return start + episodes * gap


def test_refusals_that_keep_coming_early_are_bad_luck() -> None:
    """Three in a row, at 1 in 100; two are not enough."""
    luck = Luck()
    tell(luck, 2, gap=100)
    assert not luck.is_bad
    tell(luck, 1, gap=100, start=200)
    assert luck.is_bad


def test_who_says_when_to_come_back_is_believed_for_longer() -> None:
    """With Retry-After it takes six in a row, as whoever sends that keeps count of something."""
    luck = Luck()
    tell(luck, 5, gap=100, says_when=True)
    assert not luck.is_bad
    tell(luck, 1, gap=100, says_when=True, start=500)
    assert luck.is_bad


def test_refusals_that_come_when_it_is_time_are_a_limit() -> None:
    """However many: each was bought by a time of peace."""
    luck = Luck()
    tell(luck, 100, gap=500, is_early=False)
    assert not luck.is_bad


def test_many_refusals_at_once_are_a_limit() -> None:
    """An episode in which more than a few were refused, or that the server has explained, is no chance."""
    luck = Luck()
    tell(luck, 20, gap=100, is_isolated=False)
    assert not luck.is_bad


def test_a_large_share_is_no_luck() -> None:
    """1 in 8 is refused: going at full speed would be hammering."""
    luck = Luck()
    tell(luck, 20, gap=8)
    assert not luck.is_bad


def test_what_gets_denser_at_full_speed_was_a_limit() -> None:
    """At full speed three times as many are refused: it was not luck, and is not taken for it soon again."""
    luck = Luck()
    accepted = tell(luck, 3, gap=100)
    for nth in range(1, 8):
        luck.judge(accepted + 30 * nth, 3 + nth, is_isolated=True, is_early=True, says_when=False)
    assert not luck.is_bad
    luck.judge(accepted + 300, 11, is_isolated=True, is_early=True, says_when=False)
    assert not luck.is_bad


def test_a_crowd_of_refusals_at_full_speed_ends_it_at_once() -> None:
    """No six episodes are waited for."""
    luck = Luck()
    accepted = tell(luck, 3, gap=100)
    luck.judge(accepted + 10, 40, is_isolated=False, is_early=True, says_when=False)
    assert not luck.is_bad
