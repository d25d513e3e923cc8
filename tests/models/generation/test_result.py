"""The counts behind the figures."""

from wmtp_models import Generation
from wmtp_models.generation.rows import GeneratedSequence


def test_figures_follow_from_the_counts() -> None:
    result = Generation([[1, 2]], drafted=[4, 4, 0], accepted=[3, 1, 0], new_tokens=12, row_forwards=5, tie_forwards=1)
    assert result.tokens_per_forward == 2.0
    assert result.acceptance == [0.75, 0.25, 0.0]


def test_only_drafts_that_had_room_count() -> None:
    result = Generation([], [0, 0, 0], [0, 0, 0])
    result.count_forward(rows=2)
    result.count_tokens(GeneratedSequence(0, [1] * 8, 2, 20, ()), drafts=3, accepted=2, new=3)
    result.count_tokens(GeneratedSequence(1, [1] * 8, 2, 8, ()), drafts=3, accepted=3, new=2)  # the limit came first
    result.count_tokens(GeneratedSequence(2, [1] * 8, 2, 20, (1,)), drafts=3, accepted=3, new=1)
    assert (result.forwards, result.row_forwards, result.new_tokens) == (1, 2, 6)
    assert result.drafted == [3, 3, 2]
    assert result.accepted == [3, 2, 0]
