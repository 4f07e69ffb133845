"""The sessions of the page: what it keeps of each user between two events."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from sam4mllm.app.answers import Column
from sam4mllm.app.correction import Correction
from sam4mllm.data.images import Rgb
from sam4mllm.segmenters.base import Embeddings


@dataclass(slots=True)
class Session:
    """What the page keeps of one user.

    image, file: the uploaded image (H, W, 3) uint8 RGB, and its file.
    columns: the answers about it, those of the first pipeline first.
    embeddings: the segmenter's, once there was a correction.
    correction: the answer that is being corrected.
    """

    image: Rgb | None = None
    file: Path | None = None
    columns: list[Column] = field(default_factory=list)
    embeddings: Embeddings | None = None
    correction: Correction | None = None

    def ask(self, file: Path, image: Rgb, columns: list[Column]) -> None:
        """Replace everything by the answers about an image."""
        self.file, self.image, self.columns = file, image, columns
        self.embeddings = self.correction = None


class Sessions:
    """The sessions of the last users by a key; the longest unused is forgotten when there are more than `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, key: str) -> Session:
        """Return the session of a key, a new one for a new key."""
        with self._lock:
            session = self._sessions.setdefault(key, Session())
            self._sessions.move_to_end(key)
            while len(self._sessions) > self._most:
                self._sessions.popitem(last=False)
            return session

    def __len__(self) -> int:
        return len(self._sessions)
