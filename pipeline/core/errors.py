"""The fault that a user can mend, and addresses as they may be printed; any other exception stays a traceback."""

import re


class PipelineError(Exception):
    """One line that says where, what was found and what to do."""


def without_password(text: str) -> str:
    """A text, its addresses without user and password (RFC 3986, 3.2.1)."""
    return re.sub(r"//[^/?#\s]*@", "//", text)
