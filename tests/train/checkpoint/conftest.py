"""Engines to save and load, and `jobs` importable here and in the processes that are forked."""

import pytest


@pytest.fixture
def make_engine(processes, tiny_llama):
    """An engine of one process at a ZeRO stage, with the weights of a seed."""
    import jobs

    return lambda seed=0, stage=1: jobs.make_engine(tiny_llama, stage, processes, seed=seed)


@pytest.fixture
def saved(processes, make_engine, tmp_path):
    """A folder with whole checkpoints of the steps 2, 4 and 6."""
    from wmtp_train.checkpoint import save_checkpoint

    engine, folder = make_engine(), tmp_path / "checkpoints"
    for step in (2, 4, 6):
        save_checkpoint(engine, processes, folder, step, {}, keep=3)
    return folder
