"""A key-value cache whose rows keep prefixes of different lengths."""

import torch
from torch import Tensor
from transformers import DynamicCache


class RaggedCache:
    """The cache of a batch in which every row ends in the last slot, whatever its length.

    A round feeds as many tokens to every row, and then each row keeps a prefix of its own. The rows are moved so that
    they end together again, which leaves holes on the left only: to the decoder that is a batch padded on the left, so
    its own masks, sliding windows among them, are right. No layer of the cache drops what a window has passed, since
    what was fed may have to be taken back. The width is the longest row's, so holes never pile up.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.layers = DynamicCache()
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # [B]

    def extend(self, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Count in the tokens that the next forward feeds.

        Args:
            lengths: int64 `[B]`, how many each row gets: the last ones of `width`.
            width: Q, how many tokens are fed, padding included.

        Returns:
            attention_mask, bool `[B, cached + Q]`, and position_ids, int64 `[B, Q]`, 0 at padding.
        """
        total = self.layers.get_seq_length() + width
        self.lengths = self.lengths + lengths
        positions = torch.arange(total, device=lengths.device) - (total - self.lengths).unsqueeze(-1)  # [B, total]
        return positions >= 0, positions[:, -width:].clamp(min=0)

    def keep(self, rows: Tensor, dropped: Tensor) -> None:
        """Keep some rows, less the last tokens of each.

        Args:
            rows: int64 `[R]`, of the B rows, ascending.
            dropped: int64 `[R]`, how many tokens each of them loses.
        """
        all_stay = len(rows) == len(self.lengths)
        self.lengths = self.lengths[rows] - dropped
        width = int(self.lengths.max())
        starts = self.layers.get_seq_length() - dropped - width  # [R], negative where only holes stand before
        slots = starts.unsqueeze(-1) + torch.arange(width, device=rows.device)  # [R, width]
        together = bool((starts == starts[0]).all())
        for layer in self.layers.layers:
            for name in ("keys", "values"):
                states = getattr(layer, name)
                if not all_stay:
                    states = states[rows]  # [R, heads, slots, D]
                if together:  # a view, which the next forward copies anyway
                    states = states.narrow(2, int(starts[0]), width)
                else:
                    index = slots.clamp(min=0)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
                    states = states.gather(2, index)
                setattr(layer, name, states)
