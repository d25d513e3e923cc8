"""What a run needs of memory, network, disk and time, calculated: see tools/scale.py."""
