"""critic-wmtp: predictions of tokens that raised the expected reward weigh more.

Paper: the advantage is Schulman et al., arXiv 1506.02438, equations 9 and 16; the ranking loss Ouyang et al.,
arXiv 2203.02155, equation 1; `transform: exp` Peng et al., arXiv 1910.00177.
Formula: w[b,t,:] = n · softmax over the n valid heads of (V_{t+h+1} − discount·V_{t+h}) / temperature.
Where: wmtp_core.weighting.critic, wmtp_core.advantages; the value head is part of the policy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wmtp_core import CriticWeighting, HeadWeighting, UniformWarmup
from wmtp_core.advantages import lambda_return_losses, ranking_losses
from wmtp_train.algorithm import Algorithm
from wmtp_train.data.batch import Batch
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings
from wmtp_train.trainer import BaseWmtpTrainer


@dataclass(frozen=True)
class RewardObjective:
    """Ranking of chosen over rejected texts, and regression on λ-returns where documents have a reward."""

    return_lambda: float

    def __call__(self, values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        losses, counts = torch.zeros_like(values), torch.zeros_like(values)
        if batch.pairs is not None:
            ranking, ends = ranking_losses(values, batch.pairs, batch.document_ids)
            losses, counts = losses + ranking, counts + ends
        if batch.rewards is not None:
            regression, known = lambda_return_losses(values, batch.rewards, self.return_lambda, batch.document_ids)
            losses, counts = losses + regression, counts + known
        return losses, counts


def _weighting(settings: Settings, mesh: Mesh) -> HeadWeighting:
    critic = settings.critic
    weighting = CriticWeighting(
        discount=critic.discount,
        temperature=critic.temperature,
        advantage=critic.advantage,
        gae_lambda=critic.gae_lambda,
        transform=critic.transform,
        beta=critic.beta,
        clip=critic.clip,
        group=mesh.data_parallel,
    )
    return UniformWarmup(weighting, critic.value_warmup_steps)


class CriticWmtpTrainer(BaseWmtpTrainer):
    """Weights by a value head that learns from rewards; uniform during `critic.value_warmup_steps`."""

    algorithm = Algorithm(
        _weighting,
        value_objective=lambda settings: RewardObjective(settings.critic.return_lambda),
        needs_rewards=True,
    )
