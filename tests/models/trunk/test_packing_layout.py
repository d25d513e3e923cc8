import torch

from wmtp_models.trunk.packing_layout import infer_layout


def test_one_document_a_row_needs_neither() -> None:
    assert infer_layout(None, None, None) == (None, None)


def test_positions_restart_with_every_document() -> None:
    document_ids = torch.tensor([[0, 0, 0, 1, 2, 2], [5, 4, 4, 4, 4, 5]])
    position_ids, same = infer_layout(None, document_ids, None)
    assert position_ids is not None
    assert position_ids.tolist() == [[0, 1, 2, 0, 0, 1], [0, 0, 1, 2, 3, 0]]
    assert same is document_ids


def test_padding_is_a_stretch_of_its_own() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    position_ids, document_ids = infer_layout(None, None, mask)
    assert position_ids is not None
    assert position_ids.tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 0, 1]]
    assert document_ids is None
    both, _ = infer_layout(None, torch.tensor([[0, 0, 0, 0, 1, 1]] * 2), mask)
    assert both is not None
    assert both.tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 0, 1]]


def test_documents_are_told_by_restarting_positions() -> None:
    position_ids = torch.tensor([[0, 1, 2, 0, 0, 1], [3, 4, 5, 6, 0, 0]])
    same, document_ids = infer_layout(position_ids, None, None)
    assert same is position_ids
    assert document_ids is not None
    assert document_ids.tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 1, 2]]


def test_what_is_given_is_kept() -> None:
    position_ids, document_ids = torch.tensor([[0, 1, 0]]), torch.tensor([[3, 3, 9]])
    assert infer_layout(position_ids, document_ids, torch.tensor([[1, 1, 0]])) == (position_ids, document_ids)
