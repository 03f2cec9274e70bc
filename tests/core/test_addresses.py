"""No password of an address is printed, stored or logged."""

import pytest

from pipeline.core.errors import without_password


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("http://user:word@host/a", "http://host/a"),
        ("http://us@er:w@rd@host:80/a", "http://host:80/a"),
        ("ftp://user@host", "ftp://host"),
        ("http://host/pkg@1.0?mail=a@b#c@d", "http://host/pkg@1.0?mail=a@b#c@d"),
        ("http://user:word@[host/a", "http://[host/a"),
        ("['ftp://user:word@host', 'ftp://user:word@other']", "['ftp://host', 'ftp://other']"),
        ("http://host said that a@b is there", "http://host said that a@b is there"),
    ],
)
def test_a_password_is_not_printed(text, printed):
    assert without_password(text) == printed
