"""The Porter stemmer (Program 14, 1980) with the two rules that its author's own later programs add.

Those are `bli -> ble` in place of `abli -> able`, and `logi -> log`; words of one or two letters stay as they are.
"""

_STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "logi": "log",
}
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEP_4_ENDINGS = """
al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize
"""
_STEP_4 = dict.fromkeys(_STEP_4_ENDINGS.split(), "")


def porter_stem(word: str) -> str:
    """The stem of a word in lower case; letters outside a to z count as consonants."""
    if len(word) <= 2:
        return word
    word = _plural(word)
    word = _past_tense(word)
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replace(word, _STEP_2, least=1)
    word = _replace(word, _STEP_3, least=1)
    word = _replace(word, _STEP_4, least=2)
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_cvc(word[:-1])):
            word = word[:-1]
    if word.endswith("ll") and _measure(word) > 1:
        word = word[:-1]
    return word


def _plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past_tense(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        stem = word.removesuffix(ending)
        if stem != word and _has_vowel(stem):
            break
    else:
        return word
    if stem.endswith(("at", "bl", "iz")):
        return stem + "e"
    if len(stem) > 1 and stem[-1] == stem[-2] and _shape(stem)[-1] == "c":
        return stem if stem[-1] in "lsz" else stem[:-1]
    return stem + "e" if _measure(stem) == 1 and _ends_cvc(stem) else stem


def _replace(word: str, endings: dict[str, str], *, least: int) -> str:
    """Replaces the longest of the endings if what stands before it has a measure of at least `least`."""
    for length in range(min(7, len(word)), 1, -1):
        ending = word[-length:]
        if ending in endings:
            stem = word[:-length]
            if _measure(stem) < least or (ending == "ion" and not stem.endswith(("s", "t"))):
                return word
            return stem + endings[ending]
    return word


def _shape(word: str) -> str:
    """`c` or `v` for each letter: y is a vowel behind a consonant."""
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if vowel else "c"
    return shape


def _measure(stem: str) -> int:
    """Times a consonant follows a vowel."""
    return _shape(stem).count("vc")


def _has_vowel(stem: str) -> bool:
    return "v" in _shape(stem)


def _ends_cvc(stem: str) -> bool:
    """Consonant, vowel, consonant other than w, x, y at the end."""
    return _shape(stem).endswith("cvc") and stem[-1] not in "wxy"
