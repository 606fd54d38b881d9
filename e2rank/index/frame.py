"""Reading a file that is one zstd frame, whatever somebody put into it."""

from typing import BinaryIO

import zstandard

from e2rank.errors import IndexFormatError

WINDOW = 128 << 20
"""Bytes that a frame may make its reader keep: what the zstd command accepts by default."""

_RLE = 1


class OneFrame:
    """The content of a file that is one zstd frame and nothing else.

    The file goes to zstd a block at a time. A block decompresses to 128 KiB at most, so memory is
    bounded whatever the file says, and every byte of the file is accounted for.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Read from `file`, which stands at its beginning; errors call it `name`.

        Raises:
            IndexFormatError: if it is no zstd file.
        """
        self._file, self._name = file, name
        # Magic number and descriptor, which say how long the header is.
        head = file.read(5)
        if len(head) < 5 or not head.startswith(zstandard.FRAME_HEADER):
            raise IndexFormatError(f"{name} is no packed index: it does not begin as a zstd file")
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
        try:
            head += self._take(zstandard.frame_header_size(head) - len(head))
            self._checksum = 4 if zstandard.get_frame_parameters(head).has_checksum else 0
        except zstandard.ZstdError as error:
            raise self._damaged(error) from error
        self._ready = self._decompressed(head)

    def read(self, size: int) -> bytes:
        """The next bytes of the content, `size` at most; none at its end.

        Raises:
            IndexFormatError: if the file is damaged, cut short, or goes on after the frame.
        """
        while not self._ready and not self._decompressor.eof:
            self._ready = self._decompressed(self._block())
        part, self._ready = self._ready[:size], self._ready[size:]
        return bytes(part)

    def _block(self) -> bytes:
        """The next block of the file, with the checksum if it is the last."""
        head = self._take(3)
        fields = int.from_bytes(head, "little")
        last, kind, size = fields & 1, fields >> 1 & 3, fields >> 3
        block = head + self._take(1 if kind == _RLE else size)
        if not last:
            return block
        block += self._take(self._checksum)
        if self._file.read(1):
            raise IndexFormatError(f"{self._name} is damaged: something follows its zstd frame")
        return block

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise IndexFormatError(f"{self._name} is cut short: get it again")
        return data

    def _decompressed(self, data: bytes) -> memoryview:
        try:
            return memoryview(self._decompressor.decompress(data))
        except zstandard.ZstdError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> IndexFormatError:
        return IndexFormatError(f"{self._name} is damaged: {error}")
