"""The names of members of an archive that does not state their encoding: UTF-8, or a code page, which is guessed for a zip."""

import re
import struct
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence

from pipeline.core.errors import PipelineError
from pipeline.sources.members import shown

_UTF_8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # an extra field: version, CRC-32 of the name in the header, the name in UTF-8

# In the order in which they win if names look alike in two of them. Archivers write the system's code page: that of DOS, or of Windows.
_CODE_PAGES = ("cp932", "cp437", "cp850", "cp1252", "cp1251", "cp866", "cp949", "gb2312", "big5", "gbk", "cp1253", "cp1250")
_JUDGED_NAMES = 1000
_FREQUENT_HANGUL = frozenset(
    "이다는을가에의하고지은로기도를사어리한나자인대시정아있그해수서들보장부원일전만비주제스상과면조공구마성동소무안여신화유라물생미"
    "식세연경선토산모개양강치새차바파카타배말게호트버터드"
)
_VOWELS = re.compile("[аеёиоуыэюяіїє]", re.IGNORECASE)
_CYRILLIC_WORD = re.compile("[\u0400-\u04ff]+")


def expect_encoding(encoding: str) -> None:
    """Raise PipelineError if a param names no encoding of file names."""
    try:
        is_one = b"a/1".decode(encoding) == "a/1"
    except (LookupError, ValueError, TypeError):
        is_one = False
    if not is_one:
        raise PipelineError(f"params.yaml: download.encoding: {encoding!r} is not an encoding of names; write one, as cp932, or null")


def zip_names(infos: Sequence[zipfile.ZipInfo], encoding: str | None, title: str) -> list[str]:
    """The members' names, with slashes. `encoding`: of the names that do not state theirs; None: guessed, and the guess printed.

    Raises PipelineError if a name is not in that encoding.
    """
    told = [_told_name(info) for info in infos]
    raw = [info.orig_filename.encode("cp437") for info, name in zip(infos, told, strict=True) if name is None]
    if encoding is None and not all(map(bytes.isascii, raw)):
        encoding = guess_encoding(raw)
        if encoding != "utf-8":
            print(f"{title}: its names are read as {encoding}; if they look wrong, set download.encoding in params.yaml", file=sys.stderr)
    untold = iter([_decoded(name, encoding or "ascii", title) for name in raw])
    names = [next(untold) if name is None else name for name in told]
    if any("/" in name for name in names):
        return names
    return [name.replace("\\", "/") for name in names]  # from an archiver of Windows


def tar_name(name: str, encoding: str | None, title: str) -> str:
    """A member's name in that encoding, if it was not valid as UTF-8. Its bytes are escaped in it. Raises PipelineError."""
    raw = name.encode("utf-8", "surrogateescape")
    is_utf_8 = raw.decode("utf-8", "replace") == name
    return name if encoding is None or is_utf_8 else _decoded(raw, encoding, title)


def guess_encoding(names: Sequence[bytes]) -> str:
    """The encoding of names that are not all ASCII: UTF-8 if they are valid, else the code page in which they look most natural.

    A backslash in a name looks unnatural, unless the names have no other separator.
    """
    judged = sorted({name for name in names if not name.isascii()})
    separator = "/" if any(b"/" in name for name in names) else "\\"
    best, least = "cp437", float("inf")  # every name is valid in it
    for encoding in ("utf-8", *_CODE_PAGES):
        try:
            texts = [name.decode(encoding) for name in judged]
        except UnicodeDecodeError:
            continue
        if encoding == "utf-8":
            return encoding
        strangeness = _strangeness("/".join(texts[:_JUDGED_NAMES]).replace(separator, "/"), encoding)
        if strangeness < least:
            best, least = encoding, strangeness
    return best


def _told_name(info: zipfile.ZipInfo) -> str | None:
    """The name if its encoding is stated, by the flag or by a field that archivers add for this purpose."""
    if info.flag_bits & _UTF_8_FLAG:
        return info.orig_filename
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and field[1:5] == struct.pack("<L", zlib.crc32(info.orig_filename.encode("cp437"))):
            return field[5:].decode()
    return None


def _decoded(name: bytes, encoding: str, title: str) -> str:
    try:
        return name.decode(encoding)
    except UnicodeDecodeError:
        raise PipelineError(f"{title}: member {shown(name)} has a name that is not {encoding}; correct download.encoding") from None


def _strangeness(text: str, encoding: str) -> float:
    """How far names are from natural ones, per character beyond ASCII, about 0 to 1. Wrong code pages mix scripts, cases and symbols."""
    foreign = [index for index, char in enumerate(text) if not char.isascii()]
    total = text.count("\\") + sum(_strangeness_at(text, index) for index in foreign)
    total += sum(len(word) / 2 for word in _CYRILLIC_WORD.findall(text) if not _VOWELS.search(word))
    if encoding == "cp949":  # Chinese names are valid in it, and rare syllables
        hangul = [text[index] for index in foreign]
        frequent = sum(char in _FREQUENT_HANGUL for char in hangul)
        total += sum(_script(char) != "HANGUL" for char in hangul) + (len(hangul) / 2 if frequent < len(hangul) / 4 else 0)
    return total / len(foreign)


def _strangeness_at(text: str, index: int) -> float:
    char = text[index]
    before, after = text[index - 1 : index], text[index + 1 : index + 2]
    script, kind = _script(char), unicodedata.category(char)[0]
    if script == "HALFWIDTH" or kind not in ("LMP" if char >= "\u3000" else "LM"):
        return 1
    if any(near.isalpha() and _script(near) != script for near in (before, after)) or (char.isupper() and before.islower()):
        return 1
    return 0.5 if script == "LATIN" and any(near and not near.isascii() for near in (before, after)) else 0


def _script(char: str) -> str:
    """The script of a character; Chinese and Japanese are one."""
    first = re.split("[ -]", unicodedata.name(char, ""), maxsplit=1)[0]
    return "CJK" if first in ("HIRAGANA", "KATAKANA", "FULLWIDTH", "IDEOGRAPHIC") else first
