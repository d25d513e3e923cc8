"""Parts of `gpu_check.py`. Importing it finds the packages' sources in a checkout where none of them is installed."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [str(folder) for folder in (*sorted(ROOT.glob("packages/*/src")), ROOT / "tools")]
sys.path[:0] = [folder for folder in SOURCES if folder not in sys.path]
