import json
from pathlib import Path

import pytest

import bench
from benchmarks import selection_benchmark


@pytest.mark.slow
def test_both_forms_are_measured_and_what_they_receive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--output", str(tmp_path), "--quick", "--only", "selection"]) == 0
    alone, two = json.loads((tmp_path / "bench.json").read_text())["selection"]
    assert (alone["world"], alone["scores"], two["world"], two["scores"]) == (1, 300, 2, 300)
    assert set(alone["received_bytes"].values()) == {0}
    heads, scores = selection_benchmark.HEADS, 300
    # Counters of four digits, the number of valid scores, and the ties; a score and whether it is valid.
    assert two["received_bytes"] == {
        "gather and sort": 2 * 4 * heads * scores,
        "count digits": 8 * heads * (4 * 256 + 2),
    }
    assert {len(seconds) for times in (alone, two) for seconds in times["seconds"].values()} == {2}
    assert "| 2 × 300 |" in capsys.readouterr().out
