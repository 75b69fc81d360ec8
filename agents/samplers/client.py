"""JSON over HTTP, with errors that say what to do."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from textgym.checks import check_number, check_text
from textgym.errors import InvalidArgumentError, TextgymError

__all__ = ["Client", "ServerError"]


class ServerError(TextgymError, RuntimeError):
    """A server cannot be reached, refuses a request, or answers something else than it should."""


class Client:
    """Posts JSON to a server. Threads may share it: each request opens a connection of its own.

    Args:
        url: The server, such as ``"http://localhost:8000"``.
        api_key: Sent as a bearer token; None sends none.
        timeout: Seconds of silence after which a request fails.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        wanted = 'must be the address of a server, such as "http://localhost:8000".'
        parts = urlsplit(check_text("url", url, wanted))
        try:
            self._address = parts.hostname or "", parts.port
        except ValueError:  # The port is no number, or out of range.
            self._address = "", None
        if parts.scheme not in ("http", "https") or not self._address[0]:
            raise InvalidArgumentError("url", url, wanted)
        self.url = url.rstrip("/")
        self.timeout = check_number(
            "timeout", timeout, above=0, remedy="must be a number of seconds above 0."
        )
        self._is_secure, self._prefix = parts.scheme == "https", parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            key = check_text("api_key", api_key, "must be text, or None to send none.")
            self._headers["Authorization"] = f"Bearer {key}"

    def post(self, path: str, payload: dict[str, Any]) -> Any:
        """Post a JSON object, and return what the answer says.

        Args:
            path: Path below the server's address, with a leading slash.
            payload: The object.

        Returns:
            The JSON value of the answer; None if it is empty.

        Raises:
            ServerError: If there is no answer, or none with status 200 and JSON.
        """
        where = self.url + path
        make = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        connection = make(*self._address, timeout=self.timeout)
        try:
            connection.request(
                "POST", self._prefix + path, json.dumps(payload).encode(), self._headers
            )
            response = connection.getresponse()
            body = response.read()
        except TimeoutError as error:
            raise ServerError(
                f"{where} did not answer within {self.timeout:g} s: raise timeout=, or ask for "
                "less at a time."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(
                f"{where} cannot be reached ({type(error).__name__}: {error}): is the server "
                "running, and is this its address?"
            ) from error
        finally:
            connection.close()
        text = body.decode(errors="replace")
        if response.status != 200:
            raise ServerError(
                f"{where} answered with status {response.status} {response.reason}: {_start(text)}"
            )
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise ServerError(
                f"{where} answered something else than JSON: {_start(text)}"
            ) from error


def _start(text: str) -> str:
    return text if len(text) <= 500 else text[:500] + "…"
