"""The processes of a run: how they start, agree, act together and end."""
