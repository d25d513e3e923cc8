import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scaling.engines import FOLDER, NAMES, read_engines

from wmtp_core import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "ds_configs"))


def _change(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_the_files_of_ds_configs() -> None:
    read = [(e.name, e.zero.stage, e.element, e.exchanged, e.offloads) for e in read_engines()]
    assert read == [
        ("zero0", 0, 4, 4, False),
        ("zero1", 1, 2, 4, False),
        ("zero2", 2, 2, 4, False),
        ("zero3", 3, 2, 4, False),
        ("zero2_offload", 2, 2, 4, True),
        ("zero3_offload", 3, 2, 4, True),
    ]
    assert {file.stem for file in FOLDER.glob("zero*.json")} == set(NAMES)


def test_types_and_sizes_are_the_file_s(folder: Path) -> None:
    _change(folder / "zero2.json", communication_data_type="bf16")
    _change(folder / "zero3.json", zero_optimization={"stage": 3, "reduce_bucket_size": 7})
    _change(folder / "zero0.json", communication_data_type="bf16")
    engines = {engine.name: engine for engine in read_engines(folder)}
    assert (engines["zero2"].element, engines["zero2"].exchanged, engines["zero0"].exchanged) == (2, 2, 2)
    assert (engines["zero3"].zero.reduce_bucket_size, engines["zero2"].zero.reduce_bucket_size) == (7, 500_000_000)


def test_gradients_that_a_file_says_nothing_of_are_exchanged_as_they_are(folder: Path) -> None:
    config = json.loads((folder / "zero1.json").read_text())
    del config["communication_data_type"]
    (folder / "zero1.json").write_text(json.dumps(config))
    assert [engine.exchanged for engine in read_engines(folder)] == [4, 2, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data_types": {}}, "this is bf16, bf16 and fp32"),
        ({"bf16": {"enabled": False}}, "this is fp32, fp32 and fp32"),
        ({"communication_data_type": "fp16"}, "this is bf16, fp32 and fp16"),
    ],
)
def test_other_types_are_refused_in_one_line(folder: Path, changed: dict[str, Any], said: str) -> None:
    _change(folder / "zero2.json", **changed)
    with pytest.raises(UserError, match=said) as refused:
        read_engines(folder)
    assert str(refused.value).startswith(str(folder / "zero2.json"))
    assert "\n" not in str(refused.value)
