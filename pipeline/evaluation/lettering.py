"""Letters in pictures: the font, and texts cut to a width."""

from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont


def font(letters: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib carries, in pixels: it has the letters of most alphabets, and is the same on every machine."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", letters)


def fitting(text: str, width: int, font: ImageFont.FreeTypeFont, keep_end: bool = False) -> str:
    """The text, or as much of its beginning or end as fits into so many pixels."""
    return next(each for each in _shorter(text, width, keep_end) if font.getlength(each) <= width)


def _shorter(text: str, width: int, keep_end: bool) -> Iterator[str]:
    yield text
    text = text[-width:] if keep_end else text[:width]  # more would not fit
    for length in range(len(text) - 1, 0, -1):
        yield f"…{text[-length:]}" if keep_end else f"{text[:length]}…"
    yield ""
