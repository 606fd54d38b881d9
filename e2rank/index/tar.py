"""The one way this project writes a tar file: plain files, all in the same few bytes of header."""

import tarfile
from collections.abc import Iterable

BLOCK = 512
END = bytes(2 * BLOCK)

_DIGITS = 11
"""Of a size, in octal; a longer one is written as GNU tar does, in binary."""


def header(name: str, size: int) -> bytes:
    """The block in front of a file: readable by all, owned by nobody, of no date.

    Args:
        name: at most 100 ASCII characters.
        size: in bytes.
    Returns:
        512 bytes.
    """
    octal = f"{size:0{_DIGITS}o}\0".encode()
    front = (
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0" + 2 * b"0000000\0",
        octal if len(octal) == 12 else b"\x80" + size.to_bytes(11, "big"),
        f"{0:0{_DIGITS}o}\0".encode(),
    )
    back = b"0".ljust(101, b"\0") + b"ustar\x0000".ljust(255, b"\0")
    # The checksum is taken with eight spaces in its own place.
    checksum = sum(map(sum, front)) + sum(b" " * 8) + sum(back)
    return b"".join(front) + f"{checksum:06o}\0 ".encode() + back


def size_of(block: bytes) -> int:
    """The size in a header, where that is written in digits; 0 elsewhere."""
    digits = block[124 : 124 + _DIGITS]
    return int(digits, 8) if all(digit in b"01234567" for digit in digits) else 0


def padding(size: int) -> bytes:
    """The zeros that fill the last block of a file."""
    return bytes(-size % BLOCK)


def length(sizes: Iterable[int]) -> int:
    """Bytes of a tar file of files with these sizes."""
    return sum(BLOCK + size + len(padding(size)) for size in sizes) + len(END)


def described(block: bytes) -> str:
    """What a header says, for an error."""
    if not any(block):
        return "the end"
    try:
        entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return "something else"
    kind = "a link" if entry.issym() or entry.islnk() else "" if entry.isreg() else "no plain file"
    return f"{entry.name!r} ({kind or f'{entry.size:,} bytes'})"
