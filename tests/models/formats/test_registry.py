from pathlib import Path

import wmtp_models.formats
from wmtp_models.formats.registry import FORMATS


def test_every_format_is_offered() -> None:
    helpers = {"__init__", "comparing", "exporting", "llama_2"}
    files = {path.stem for path in Path(wmtp_models.formats.__file__).parent.glob("*.py")}
    assert FORMATS.keys() == files - helpers
    assert all(form.__name__ == f"wmtp_models.formats.{name}" for name, form in FORMATS.items())
