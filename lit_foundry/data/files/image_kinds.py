"""Which files are images: what the installed PIL decodes."""

from functools import cache
from pathlib import Path

from PIL import Image

# Beginnings of files. PIL tries one format after the other, a third of its time for a small image.
STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n": "PNG", b"RIFF": "WEBP"}
# PIL knows these and decodes none of them itself: it runs Ghostscript, or asks for a plugin.
UNREAD = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}


@cache
def kinds() -> list[str]:
    """Return the formats that the installed PIL decodes, the usual ones first."""
    Image.init()
    known = [kind for kind in Image.ID if kind not in UNREAD]
    return sorted(known, key=lambda kind: kind not in STARTS.values())


@cache
def suffixes() -> set[str]:
    """Return the suffixes of their files, in lower case."""
    return {end for end, kind in Image.registered_extensions().items() if kind in kinds()}


def is_image(path: Path) -> bool:
    """Tell whether a suffix is that of an image."""
    return path.suffix.lower() in suffixes()
