"""What a part found, written at once: a part that is cut off leaves what it had."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DONE, FAILED, NOT_RUN, CUT_OFF = "done", "failed", "not run", "cut off"


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


@dataclass
class Record:
    """One part's results, and the file that always has all of them.

    Attributes:
        path: the file, JSON.
        status: DONE, FAILED or NOT_RUN; CUT_OFF as long as the part has not ended.
        reason: why it is not DONE, in one line.
        sections: Markdown, in order.
        data: every measurement, as JSON.
        missing: what of this part was not run or measured, and why.
        seconds: that it took; its runner's to say.
        output: the end of what a failed one printed; likewise.
    """

    path: Path
    status: str = CUT_OFF
    reason: str = ""
    sections: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    output: str = ""

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read what a part left; a part that left nothing was cut off at its start."""
        return cls(path, **json.loads(path.read_text())) if path.is_file() else cls(path)

    def put(self, name: str, value: Any, section: str = "") -> None:
        """Add a measurement, with its Markdown if it has one, and write the file."""
        self.data[name] = value
        if section:
            self.sections.append(section)
        self.write()

    def miss(self, what: str, reason: str) -> None:
        """Note what cannot be had here, and write the file."""
        self.missing[what] = reason
        self.write()

    def end(self, status: str, reason: str = "") -> None:
        """Note how the part ended, and write the file."""
        self.status, self.reason = status, reason
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_whole(self.path, json.dumps({k: v for k, v in vars(self).items() if k != "path"}, indent=1) + "\n")
