"""The error that a user can fix, and addresses as they may be printed. Any other exception stays a traceback."""

import re


class PipelineError(Exception):
    """One line that says where the fault is, what was found and what to do."""


def without_password(text: str) -> str:
    """The text, with user and password removed from its addresses (RFC 3986, 3.2.1)."""
    return re.sub(r"//[^/?#\s]*@", "//", text)
