"""Logging of the command line: lines for people, or a JSON object a line for machines."""

import json
import logging
from datetime import UTC, datetime

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_NOISY = ("httpx", "uvicorn.error")  # they log every request and the stages of starting
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """One JSON object a record, with whatever `extra` it was logged with."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        } | {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def setup_logging(level: str = "INFO", *, json_lines: bool = False) -> None:
    """Logs to stderr. At DEBUG the server logs each scoring request with its counts."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if json_lines else logging.Formatter(_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    for library in _NOISY:
        logging.getLogger(library).setLevel(logging.WARNING)
