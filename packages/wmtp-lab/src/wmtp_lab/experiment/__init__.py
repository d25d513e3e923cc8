"""An experiment: a plan of arms and seeds, its runs, their results, and what these support."""
