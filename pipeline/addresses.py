"""Addresses as they may be printed, stored and logged."""

import re


def without_password(text: str) -> str:
    """A text, its addresses without user and password (RFC 3986, 3.2.1)."""
    return re.sub(r"//[^/?#\s]*@", "//", text)
