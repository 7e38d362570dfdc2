"""Fingerprints of create requests: the same for JSON documents that mean the same.

White space, the order of fields, escapes in strings and the spelling of numbers make no
difference. 1.0 is 1, because JSON has one type of number, and a client or proxy may rewrite it.
"""

from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, DecimalException
from hashlib import sha256

import msgspec

MAX_DIGITS = 40
"""Digits of a number with an exponent that is written out: a short text must not grow large."""

_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


def of_meaning(document: bytes) -> str:
    """Return the fingerprint of a JSON document: `v2:` and the SHA-256 of its meaning."""
    try:
        canonical = _ENCODER.encode(_DECODER.decode(document))
    except (msgspec.DecodeError, DecimalException, RecursionError):
        canonical = document  # too deep or too long a number for Python: the text decides
    return f"v2:{sha256(canonical).hexdigest()}"


def of_text(document: bytes) -> str:
    """Return the fingerprint that versions up to 0.2 stored: the SHA-256 of the text."""
    return sha256(document).hexdigest()


def _number(text: str) -> int | Decimal:
    value = Decimal(text).normalize(_EXACT)
    is_whole = value.adjusted() < MAX_DIGITS and value == int(value)
    return int(value) if is_whole else value


_DECODER = msgspec.json.Decoder(float_hook=_number)
_ENCODER = msgspec.json.Encoder(order="deterministic", decimal_format="number")
