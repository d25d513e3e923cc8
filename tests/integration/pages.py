"""The examples that pages print."""

import re
from pathlib import Path


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, in their order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
