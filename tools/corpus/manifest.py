"""What a corpus holds, in numbers."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from corpus.documents import Document


def describe(file: Path, documents: list[Document]) -> dict[str, Any]:
    """Return counts of one split and of the file it was written to; shares are of the split's characters."""
    characters = sum(len(document.text) for document in documents)
    noise: Counter[str] = Counter()
    for document in documents:
        for span in document.noise:
            noise[span.kind] += span.end - span.start
    data = file.read_bytes()
    return {
        "documents": len(documents),
        "characters": characters,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "rewards": dict(sorted(Counter(json.dumps(document.reward) for document in documents).items())),
        "noise_share": round(noise.total() / characters, 4),
        "noise_share_by_kind": {kind: round(count / characters, 4) for kind, count in sorted(noise.items())},
    }
