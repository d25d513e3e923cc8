"""`data.packing: false`: one document a row, with a trunk that would mix the documents of a packed one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from wmtp_core import UserError
from wmtp_models import ReferenceModel, generate, load_policy, load_wmtp, weights_fingerprint
from wmtp_train.algorithms import trainer_class
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.run import Run

pytestmark = pytest.mark.slow
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
BLOOM = {"model_type": "bloom", "hidden_size": 16, "n_layer": 2, "n_head": 2}
UNPACKED = {"model": {"config": BLOOM}, "data": {"packing": False}}


def weights(tmp_path, run):
    return load_file(tmp_path / run / "model" / "model.safetensors")


def test_a_trunk_that_mixes_documents_is_refused_until_they_are_not_packed(make_trainer, tmp_path, capfd):
    with pytest.raises(UserError, match=r"see each other.*set data\.packing to false") as error:
        make_trainer("packed", model={"config": BLOOM})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "packed").exists()
    capfd.readouterr()
    metrics = make_trainer("unpacked", **UNPACKED).train()
    assert "documents are longer than a row, and lose their end" in capfd.readouterr().err
    assert metrics["held_out/ce/head_0"] > 0
    folder = tmp_path / "unpacked" / "model"
    with pytest.raises(UserError, match=r"see each other: set data\.packing to false"):
        load_policy(folder, 3)
    with pytest.raises(UserError, match=r"decode with unwrap\(\)\.generate\(\)"):
        generate(load_wmtp(folder).eval(), prompts=[[1, 2]], max_new_tokens=2)


@pytest.mark.parametrize("head_kind", ["layer", "sequential"])
def test_a_batch_has_the_losses_of_its_documents_alone(make_settings, processes, head_kind):
    settings = make_settings(data={"packing": False}, model={"config": BLOOM, "head_kind": head_kind})
    run = Run.open(settings, trainer_class(settings.algo).algorithm, processes)
    batch = next(run.train.training_batches(processes, 4, 0, {}))
    assert (batch.attention_mask == 0).any(), "some document is shorter than a row"
    policy = run.policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    output = policy.eval()(
        batch.input_ids,
        labels=batch.labels,
        position_ids=batch.position_ids,
        document_ids=batch.document_ids,
        attention_mask=batch.attention_mask,
    )
    for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        tokens, labels = (tensor[row : row + 1, :length] for tensor in (batch.input_ids, batch.labels))
        alone = policy(tokens, labels=labels)
        assert torch.equal(output.valid[row, :length], alone.valid[0])
        assert not output.valid[row, length:].any()
        torch.testing.assert_close(output.ce[row, :length], alone.ce[0], rtol=1e-5, atol=1e-5)


def test_padding_does_not_count_in_the_loss_of_routers(make_settings, processes):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    moe = {**LLAMA, **experts, "model_type": "qwen3_moe", "initializer_range": 0.5}
    settings = make_settings(data={"packing": False}, model={"config": moe})
    run = Run.open(settings, trainer_class(settings.algo).algorithm, processes)
    batch = next(run.train.training_batches(processes, 4, 0, {}))
    tokens = {"input_ids": batch.input_ids, "labels": batch.labels, "document_ids": batch.document_ids}
    with torch.no_grad():
        found = run.step.evaluate(batch, 1)[0].auxiliary_loss
        expected = run.policy(**tokens, attention_mask=batch.attention_mask).auxiliary_loss
        with_padding = run.policy(**tokens).auxiliary_loss
    assert torch.equal(found, expected)
    assert not torch.isclose(found, with_padding)


@pytest.mark.parametrize("algo", ["rho1-wmtp", "critic-wmtp"])
def test_half_a_run_and_its_resumption_are_a_whole_run_bit_for_bit(make_trainer, tmp_path, algo):
    changes = {"algo": algo, "steps": 4, "save_every": 2, **UNPACKED}
    make_trainer("whole", **changes).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves" / "model")
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "step_00000004")
    make_trainer("halves", resume=True, **changes).train()
    whole, halves = weights(tmp_path, "whole"), weights(tmp_path, "halves")
    assert whole.keys() == halves.keys()
    assert [name for name in whole if not torch.equal(whole[name], halves[name])] == []
    metrics = json.loads((tmp_path / "whole" / "evaluation.json").read_text())
    assert ("held_out/value_auc" in metrics) == (algo == "critic-wmtp"), "rewards are read"


def test_scores_are_those_of_the_rows_and_of_no_packed_ones(make_trainer, make_settings, processes, tmp_path):
    settings = make_settings(algo="rho1-wmtp", **UNPACKED)
    reference = ReferenceModel.load(settings.reference.source)
    run = Run.open(settings, trainer_class(settings.algo).algorithm, processes)

    def losses(batch):
        return reference.token_losses(batch.input_ids, batch.position_ids, batch.document_ids)

    for name, source in {"train": run.train, **run.held_out}.items():
        fingerprint = weights_fingerprint(settings.reference.source)
        ScoringJob(source.prepared, losses, tmp_path / "scores" / name, fingerprint, processes, 4).run()
    scored = {"algo": "rho1-wmtp", "reference": {"scores": tmp_path / "scores"}}
    live, ahead = make_trainer("live", algo="rho1-wmtp", **UNPACKED), make_trainer("scored", **scored, **UNPACKED)
    live.train(), ahead.train()
    seen = [trainer.loop.run.step.weighting.seen for trainer in (live, ahead)]
    assert len(seen[0]) == len(seen[1]) > 3
    assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in zip(*seen, strict=True))
    with pytest.raises(UserError, match="packing"):
        make_trainer("packed", **scored)
