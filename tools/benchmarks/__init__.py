"""Parts of `bench.py` and `profile_step.py`: what is compared, how it is checked and measured, how it is shown."""
