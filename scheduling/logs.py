"""Log lines: one event for each transition, `time service LEVEL event key=value ...`."""

import logging
from datetime import UTC, datetime
from typing import Any


def event(
    logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: object
) -> None:
    """Log the event `name` (fixed, snake_case) with its ids."""
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields}, stacklevel=2)


class LineFormatter(logging.Formatter):
    """Formats any record as one line that says which service spoke."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = getattr(record, "fields", {})
        words = [
            moment.replace("+00:00", "Z"),
            self.service,
            record.levelname,
            record.getMessage(),
            *(f"{key}={_value(value)}" for key, value in fields.items() if value not in (None, "")),
        ]
        line = " ".join(words)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line.encode("utf-8", "backslashreplace").decode()  # a lone surrogate stops a handler


def _value(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(c.isspace() or c == '"' for c in text) else text
