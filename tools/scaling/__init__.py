"""What a run needs of memory, network, disk and time, calculated: see tools/scale.py."""

import wmtp_train  # noqa: F401 (before DeepSpeed, which it tells that there is no accelerator)
