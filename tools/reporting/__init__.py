"""Parts of `report.py`: what a run left behind, its charts, its marked passage, the page and the picture."""
