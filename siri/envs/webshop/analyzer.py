"""Text to index terms, as Lucene's English analyzer of the official search engine makes them.

Tokens by the word boundaries of Unicode (UAX #29), possessive `'s` cut off, lower case, no stop words, Porter stems.
"""

from functools import lru_cache

import regex

from siri.envs.webshop.porter import porter_stem

# Lucene's English stop words.
_STOP_WORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to
was will with
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
# Lucene cuts longer tokens into pieces of this many characters.
MAX_TOKEN = 255

# A base character carries the marks and joiners behind it (rule WB4).
_MARKS = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*+"
_LETTER = rf"[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{_MARKS}"
_DIGIT = rf"\p{{WB=Numeric}}{_MARKS}"
_KATAKANA = rf"\p{{WB=Katakana}}{_MARKS}"
_JOIN = rf"\p{{WB=ExtendNumLet}}{_MARKS}"
_LETTERS = rf"{_LETTER}(?:(?:[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{_MARKS})?{_LETTER})*+"
_DIGITS = rf"{_DIGIT}(?:(?:[\p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{_MARKS})?{_DIGIT})*+"
_RUN = rf"(?:(?:{_LETTERS}|{_DIGITS})++|(?:{_KATAKANA})++)"
# Emoji, and symbols such as ★: Extended_Pictographic as Unicode 12 had it (later versions took ★ and others out).
_PICTURE = (
    r"[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u2388\u23cf\u23e9-\u23f3"
    r"\u23f8-\u23fa\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705"
    r"\u2708-\u2712\u2714\u2716\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757"
    r"\u2763-\u2767\u2795-\u2797\u27a1\u27b0\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d"
    r"\u3297\u3299\U0001f000-\U0001f0ff\U0001f10d-\U0001f10f\U0001f12f\U0001f16c-\U0001f171\U0001f17e\U0001f17f"
    r"\U0001f18e\U0001f191-\U0001f19a\U0001f1ad-\U0001f1e5\U0001f201-\U0001f20f\U0001f21a\U0001f22f"
    r"\U0001f232-\U0001f23a\U0001f23c-\U0001f23f\U0001f249-\U0001f3fa\U0001f400-\U0001f53d\U0001f546-\U0001f64f"
    r"\U0001f680-\U0001f6ff\U0001f774-\U0001f77f\U0001f7d5-\U0001f7ff\U0001f80c-\U0001f80f\U0001f848-\U0001f84f"
    r"\U0001f85a-\U0001f85f\U0001f888-\U0001f88f\U0001f8ae-\U0001f8ff\U0001f90c-\U0001f93a\U0001f93c-\U0001f945"
    r"\U0001f947-\U0001fffd]"
)
_TOKEN = regex.compile(
    rf"(?:{_JOIN})*+{_RUN}(?:(?:{_JOIN})++{_RUN})*+(?:{_JOIN})*+"
    rf"|[\p{{Script=Han}}\p{{Script=Hiragana}}]{_MARKS}"  # each is a token of its own
    rf"|{_PICTURE}(?:\p{{WB=Extend}}*+\u200d{_PICTURE})*{_MARKS}"
    rf"|\p{{WB=Regional_Indicator}}{_MARKS}(?:\p{{WB=Regional_Indicator}}{_MARKS})?"
)
_APOSTROPHES = "'\u2019\uff07"


def analyze(text: str) -> list[str]:
    """The terms of a text in order, repetitions included."""
    terms = []
    for token in _TOKEN.findall(text):
        for start in range(0, len(token), MAX_TOKEN):
            if term := _term(token[start : start + MAX_TOKEN]):
                terms.append(term)
    return terms


# A million products have some 10 M different tokens; the frequent ones are what must be fast.
@lru_cache(maxsize=1 << 16)
def _term(token: str) -> str:
    """The term of one token, "" for a stop word."""
    if len(token) > 1 and token[-2] in _APOSTROPHES and token[-1] in "sS":
        token = token[:-2]
    token = token.lower()
    if token in STOP_WORDS:
        return ""
    return porter_stem(token)
