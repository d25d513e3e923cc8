"""Before anything is written, every rank shows that it is about to train the same run as rank 0."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from wmtp_models import MtpForCausalLM, ReferenceModel
from wmtp_train.checkpoint.saving import versions
from wmtp_train.engines.deepspeed.config import read_deepspeed_config
from wmtp_train.ranks.collective import fail_on_all_ranks, run_on_all_ranks
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.diff import differences, leaves
from wmtp_train.settings.schema import Settings

# Where a rank finds and keeps things, and how many processes help it. What these lead to is compared.
_MAY_DIFFER: dict[str, Any] = {
    "config": True,
    "deepspeed_config": True,
    "data": {"cache_dir": True, "workers": True, "tokenise_processes": True},
}


def check_ranks_match(mine: dict[str, Any], mesh: Mesh) -> None:
    """Refuse the run unless every rank holds the same facts. Every rank must call it.

    Args:
        mine: a tree of dicts; what is no dict is compared by its value.
        mesh: the processes.

    Raises:
        UserError: as `fail_on_all_ranks` does; names the first rank that differs from rank 0, the fact, and both
            values.
    """
    first, *others = mesh.all_gather_object(leaves(mine))
    for rank, theirs in enumerate(others, start=1):
        for name, ours, other in differences(first, theirs):
            fail_on_all_ranks(
                mesh,
                f"{name} is {other!r} on rank {rank} and {ours!r} on rank 0; start every process with the same "
                "command, files and packages",
            )


def check_settings_match(settings: Settings, mesh: Mesh) -> None:
    """Check that every rank has the settings, the DeepSpeed configuration and the package versions of rank 0.

    Raises:
        UserError: they differ, or a rank cannot read its DeepSpeed configuration.
    """
    path = settings.deepspeed_config
    config = run_on_all_ranks(mesh, lambda: read_deepspeed_config(path, mesh.world), "deepspeed_config")
    facts = {
        "settings": settings.model_dump(mode="json", exclude=_MAY_DIFFER),
        "deepspeed_config": config,
        "version": versions(),
    }
    check_ranks_match(facts, mesh)


def check_inputs_match(
    fingerprints: dict[str, dict[str, str]],
    settings: Settings,
    policy: MtpForCausalLM,
    reference: ReferenceModel | None,
    mesh: Mesh,
    from_rank0: bool = False,
) -> None:
    """Check that every rank has the data, the scores, the model configuration and the loaded weights of rank 0.

    Weights that a seed made are not compared: processors differ in their last bits, and the engine starts every rank
    from rank 0's. It does so with a sharded reference, too, and with a policy that was built `from_rank0` alone.

    Raises:
        UserError: they differ.
    """
    weights = {}
    if settings.model.source is not None and not from_rank0:
        weights["policy"] = _weights(policy)
    if reference is not None and not settings.reference.sharded:
        weights["reference"] = _weights(reference)
    data = {name: {"fingerprint": fingerprint} for name, fingerprint in fingerprints.items()}
    check_ranks_match({"data": data, "model": policy.config.to_dict(), "weights": weights}, mesh)


def _weights(model: nn.Module) -> dict[str, str]:
    """Return each parameter's shape, dtype and SHA-256."""
    return {
        name: f"{tuple(weight.shape)} {weight.dtype} {_digest(weight)}" for name, weight in model.named_parameters()
    }


def _digest(weight: Tensor) -> str:
    content = weight.detach().cpu().contiguous().flatten().view(torch.uint8)  # numpy knows no bfloat16
    return hashlib.sha256(content.numpy().data).hexdigest()
