"""The content-addressed cache of sentence scores on disk, and the joining of equal requests in flight.

Retries are idempotent with it, and rejection sampling and evaluation re-use what training has scored.
"""

import asyncio
import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fgce.schema import SentenceScore

logger = logging.getLogger(__name__)


class CacheError(ValueError):
    """The cache file is unusable; the message names it and the mend."""


def cache_key(*parts: object) -> str:
    """Hash of everything that a score depends on. Parts are hashed as JSON, so that none runs into the next."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


class ScoreCache:
    """Scored sentences by key, in one sqlite file that several processes of a host may share.

    Missing sentences are not kept: the next request asks the judge again. Writes are not awaited by the disk, so a
    power cut can lose the last ones, and nothing else. What cannot be read or written later on, as on a full disk, is
    logged and not in the cache: the judge answers then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score TEXT) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise CacheError(f"{path}: not usable as a cache: {error}; move the file or give another path") from error

    def get(self, key: str) -> SentenceScore | None:
        """The score under `key`, marked as cached; None where there is none."""
        try:
            row = self._db.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            score = SentenceScore.model_validate_json(row[0])
        except (sqlite3.Error, ValidationError) as error:
            logger.warning("%s: a score cannot be read and is asked for again: %s", self._path, error)
            return None
        score.trace.cached = True
        return score

    def put(self, key: str, score: SentenceScore) -> None:
        """Keeps a score that is not missing."""
        if score.status == "ok":
            row = (key, score.model_dump_json(exclude_none=True))
            try:
                self._db.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", row)
            except sqlite3.Error as error:
                logger.warning("%s: a score cannot be kept: %s", self._path, error)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()


@dataclass(slots=True)
class _Shared:
    task: asyncio.Task[SentenceScore]
    waiters: int = 0


class InFlight:
    """Joins equal work: whoever asks for what is being done waits for that instead of doing it again.

    The work is cancelled when the last of those who wait is, so that a client which has gone costs nothing more.
    """

    def __init__(self) -> None:
        self._shared: dict[str, _Shared] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[None, None, SentenceScore]]) -> SentenceScore:
        """The result of `work`, or of equal work that has begun before."""
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(asyncio.create_task(work()))
            shared.task.add_done_callback(lambda task: self._forget(key, task))
        shared.waiters += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiters -= 1
            if not shared.waiters and not shared.task.done():
                self._forget(key, shared.task)
                shared.task.cancel()

    def _forget(self, key: str, task: asyncio.Task[SentenceScore]) -> None:
        if key in self._shared and self._shared[key].task is task:
            del self._shared[key]
