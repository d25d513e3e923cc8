"""How well a selection tells the tokens that a corpus's own notes label from those that they do not."""


def label_metrics(targets: list[float], selected: list[float], label_names: tuple[str, ...]) -> dict[str, float]:
    """Return precision and recall of "selected" against "clean" (unlabeled), and what share of each label is kept.

    Args:
        targets: how many targets there were, the clean ones first, then those of each label.
        selected: how many of them were selected.
        label_names: of the labels 1, 2, …

    Returns:
        `noise/precision`, `noise/recall`, `noise/kept/clean`, and for each label that occurs `noise/kept/{label}` and
        `noise/precision/{label}`, the precision against this label alone. Nothing where no target is labeled, or where
        every target is selected.
    """
    if not sum(targets[1:]) or selected == targets:
        return {}
    metrics = {
        "noise/precision": selected[0] / max(sum(selected), 1),
        "noise/recall": selected[0] / max(targets[0], 1),
        "noise/kept/clean": selected[0] / max(targets[0], 1),
    }
    for name, chosen, n in zip(label_names, selected[1:], targets[1:], strict=True):
        if n:
            metrics[f"noise/kept/{name}"] = chosen / n
            metrics[f"noise/precision/{name}"] = selected[0] / max(selected[0] + chosen, 1)
    return metrics
