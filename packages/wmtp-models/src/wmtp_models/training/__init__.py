"""Which parameters of a policy learn."""
