"""Word errors on equal terms: case, punctuation and the spelling of numbers do not count."""

import re

from .texts import in_words


def plain(text: str) -> str:
    """Lower case words; digits up to 9999 become words, longer ones are read digit by digit."""

    def spoken(match: re.Match) -> str:
        digits = match.group()
        if len(digits) <= 4 and digits[0] != "0":
            return f" {in_words(int(digits))} "
        return " " + " ".join(in_words(int(d)) for d in digits) + " "

    text = re.sub(r"\d+", spoken, text.lower().replace(",000", "000")).replace("-", " ")
    text = re.sub(r"[^a-z' ]+", " ", text)
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text)
    return " ".join(text.split())
