"""The vocabulary of the emulator's answers, and how a text falls into tokens."""

from __future__ import annotations

import re
from typing import Final

_VOCABULARY: Final = """
    able about above actual agree ahead almost along already analysis animal answer argue around arrive
    article aspect assume autumn average because become before begin below benefit between beyond board
    bottom branch bridge bright broad burden call candle canvas capital careful carry central certain
    change citizen city claim clear climate close coast color compare concept condition confirm connect
    consider constant contain context copper corner correct cotton count country create current daily
    danger data decide deep define demand depend describe desert design detail develop differ doubt dry
    early earth east easy edge effect effort eight element engine estimate even event example expect
    explain express factor fair family few field final flow follow force forest form forward four free
    fresh garden gather gentle glass gold grain great green group grow harbor history horizon idea
    impact improve inner instead join journey judge keep known language later layer learn least level
    limit line local logic long main major many map market matter measure metal method middle minor
    moment motion mountain near neutral never north note object ocean often open origin other paper
    part pattern people place plain planet point possible product public question quiet range rapid
    reason record region relate rule scale science season series service several shape signal silver
    similar simple single slow small smooth solid south space specific stable standard steel step
    strong study summer supply support table talk task term theory time tool topic total toward travel
    tree turn under unit until useful variety various vary version very village voice weight while
    whole within wonder wood word world
"""
# Exactly 256 words, so that a byte of a digest chooses one.
WORDS: Final = tuple(_VOCABULARY.split())

_PIECES: Final = re.compile(r"\s*\S{1,12}|\s+")


def pieces(text: str) -> list[str]:
    """The text cut into tokens, which is also how a stream sends it; joined they are the text again."""
    return _PIECES.findall(text)


def spoken(digest: bytes, words: int) -> str:
    """Sentences of that many words in all, chosen by the digest's bytes (over and over when it is short)."""
    chosen = list(map(WORDS.__getitem__, (digest * (words // len(digest) + 1))[:words]))
    sentences = [" ".join(chosen[i : i + 9]).capitalize() for i in range(0, words, 9)]
    return ". ".join(sentences) + "."
