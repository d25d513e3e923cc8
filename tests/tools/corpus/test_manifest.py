import hashlib
from pathlib import Path

from corpus.documents import Document
from corpus.manifest import describe
from corpus.noise import Span


def test_counts_documents_characters_rewards_and_noise(tmp_path: Path) -> None:
    file = tmp_path / "split.jsonl"
    file.write_bytes(b"0123456789")
    documents = [
        Document("a.py", "x" * 60, [Span(0, 5, "log"), Span(5, 10, "broken")], 0.0),
        Document("b.py", "x" * 20, [Span(0, 10, "log")], 1.0),
        Document("c.po", "x" * 20, [Span(0, 20, "natural")], None),
    ]
    assert describe(file, documents) == {
        "documents": 3,
        "characters": 100,
        "bytes": 10,
        "sha256": hashlib.sha256(b"0123456789").hexdigest(),
        "rewards": {"0.0": 1, "1.0": 1, "null": 1},
        "noise_share": 0.4,
        "noise_share_by_kind": {"broken": 0.05, "log": 0.15, "natural": 0.2},
    }
