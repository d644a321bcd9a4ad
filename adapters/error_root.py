"""What every error of the tree in errors.py is."""

from __future__ import annotations

from typing import Any, ClassVar


class AdapterctlError(Exception):
    """Something that has one clear sentence to say; never shown as a traceback."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    openai_type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        # What an HTTP answer with this error says besides.
        self.headers: dict[str, str] = {}

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape, as every HTTP route and SSE frame sends it."""
        said = {"message": self.message, "type": self.openai_type}
        return {"error": {**said, "param": self.param, "code": self.code}}
