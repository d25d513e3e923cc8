"""Every setting of a run, and where its value comes from."""
