import torch

from wmtp_models.trunk.row_slices import FoldedRows, HintOfSlices, SharedRows

B, S, HEADS, WIDTH = 2, 12, 6, 5


def test_slices_of_rows_are_put_together_again():
    whole = torch.arange(B * S * 3).view(B, S, 3)
    for count in (2, 3, 4):
        slices = FoldedRows(count)
        parts = slices.part(whole)
        assert parts.shape == (count * B, S // count, 3)
        assert torch.equal(parts[B], whole[0, S // count : 2 * S // count])
        assert torch.equal(slices.join(parts), whole)


def test_an_exchange_gives_whole_rows_in_a_part_of_the_heads_and_undoes_itself():
    """Against indexing: process r has heads r·n … of all tokens."""
    slices = FoldedRows(3)
    whole = torch.rand(B, HEADS, S, WIDTH)
    parts = torch.cat(whole.chunk(3, dim=2))  # of the processes, [3·B, HEADS, S/3, WIDTH]
    exchanged = slices.exchange(parts, split=1, joined=2)
    for rank in range(3):
        assert torch.equal(exchanged[rank * B : (rank + 1) * B], whole[:, 2 * rank : 2 * rank + 2])
    assert torch.equal(slices.exchange(exchanged, split=2, joined=1), parts)


def test_a_hint_is_asked_about_the_same_tokens():
    """Slice 1 of 3 of rows of 12 tokens holds tokens 4 … 7 of each."""
    slices = object.__new__(SharedRows)  # without a group
    slices.count, slices.index = 3, 1
    asked = []

    def hint(positions, ce):
        asked.append(positions.tolist())
        return ce

    hint.share, hint.wrong = 0.6, 0.1
    wrapped = HintOfSlices(hint, slices, S)
    assert (wrapped.share, wrapped.wrong) == (0.6, 0.1)
    wrapped(torch.arange(B * S // 3), torch.rand(B * S // 3, 2))
    assert asked == [[4, 5, 6, 7, 16, 17, 18, 19]]
