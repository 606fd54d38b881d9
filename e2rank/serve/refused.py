"""What a request is answered with instead of what it asked for."""

from collections.abc import Mapping


class Refused(Exception):
    """A request that gets no answer; the status says whose fault it is.

    Args:
        status: of HTTP: 400 for what the caller can mend, 401 without the key, 404 for a model
            that is not served, 413 for too much, 429 and 503 for what may be tried again.
        message: what happened, what was expected, what to do.
        headers: further ones, such as Retry-After.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


class ClientGone(Exception):
    """The caller closed the connection before its answer was there."""
