"""The arithmetic of training: what one step computes, from which counts, and how often the reference runs."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from wmtp_models import MtpForCausalLM, ReferenceModel, weights_fingerprint
from wmtp_train.algorithms import MtpBaselineTrainer, Rho1WmtpTrainer, trainer_class
from wmtp_train.build_models import build_policy_from_settings
from wmtp_train.data.loading import TRAIN, data_spec, load_sources, tokenizer_from_settings
from wmtp_train.data.packed.loader import TrainLoader
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.run import Run
from wmtp_train.settings.schema import Settings

K = 0.5


def reference_losses(reference, batch):
    """Each document by itself through the plain model: −log P of its tokens, 0 at its first."""
    losses = torch.zeros(batch.input_ids.shape)
    for row, documents in enumerate(batch.document_ids):
        for document in documents.unique():
            places = (documents == document).nonzero().squeeze(-1)
            logits = reference(batch.input_ids[row, places][None]).logits[0, :-1]
            tokens = batch.input_ids[row, places[1:]]
            losses[row, places[1:]] = -logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]
    return losses


def load(settings, mesh):
    return load_sources(data_spec(settings, tokenizer_from_settings(settings)), mesh)


def oracle_weights(settings, mesh, micro_batch, accumulation):
    """rho1-wmtp by the definitions: dense logits, loops over targets, a sort, and plain AdamW."""
    policy = build_policy_from_settings(settings, tokenizer_from_settings(settings), value_head=False).train()
    reference = AutoModelForCausalLM.from_pretrained(settings.reference.source).eval()
    groups = [
        {"params": [p for p in policy.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in policy.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    loader = TrainLoader(load(settings, mesh)[TRAIN].prepared, None, micro_batch, 0, 1, settings.seed, 0)
    for step in range(settings.steps):
        kept, counts = [], [0, 0, 0]
        for _ in range(accumulation):
            batch = next(loader)
            logits = policy.head_logits(batch.input_ids, batch.position_ids, batch.document_ids)
            with torch.no_grad():
                expected = reference_losses(reference, batch)
            rows, length = batch.input_ids.shape
            for h in range(3):
                targets = []  # (−excess, place, cross-entropy)
                for b in range(rows):
                    for t in range(length - h - 1):
                        p = t + h + 1
                        if batch.labels[b, p] == -100 or batch.document_ids[b, t] != batch.document_ids[b, p]:
                            continue
                        ce = -logits[b, t, h].log_softmax(-1)[batch.labels[b, p]]
                        targets.append((expected[b, p].item() - ce.item(), b * length + t, ce))
                keep = len(targets) if h == 0 else 1 + math.floor(K * (len(targets) - 1))
                kept.append((h, [ce for _, _, ce in sorted(targets, key=lambda target: target[:2])[:keep]]))
                counts[h] += keep if settings.normalize_by == "selected" else len(targets)
        decay = settings.head_coefficients or 1
        loss = sum(decay**h * torch.stack(losses).sum() / counts[h] for h, losses in kept) / 3
        adamw.zero_grad()
        loss.backward()
        for group in adamw.param_groups:
            group["lr"] = 0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / settings.steps)) / 2)
        adamw.step()
    return dict(policy.named_parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_by": "valid"},
        {"normalize_by": "selected"},
        {"head_coefficients": 0.5},
        {"model": {"head_kind": "sequential"}},
    ],
    ids=str,
)
def test_steps_are_those_of_the_definitions_by_brute_force(processes, make_trainer, write_deepspeed, changes):
    trainer = make_trainer(
        algo="rho1-wmtp",
        steps=2,
        **changes,
        selection={"k_percent": K},
        data={"evaluate": {}},
        deepspeed_config=write_deepspeed(train_batch_size=4, gradient_accumulation_steps=2),
    )
    before = {name: p.detach().clone() for name, p in trainer.loop.engine.policy.named_parameters()}
    trainer.train()
    expected = oracle_weights(trainer.run.settings, processes, micro_batch=2, accumulation=2)
    for name, found in trainer.loop.engine.policy.named_parameters():
        torch.testing.assert_close(
            found, expected[name], atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name} {text}"
        )
        assert (found - before[name]).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("normalize_by", ["valid", "selected"])
@pytest.mark.parametrize("algo", ["rho1-wmtp", "critic-wmtp"])
def test_how_a_step_is_cut_into_micro_batches_does_not_matter(
    make_trainer, write_deepspeed, weights_of, algo, normalize_by
):
    found = []
    for micro, accumulation in ((8, 1), (4, 2), (1, 8)):
        config = write_deepspeed(
            f"{micro}.json", train_micro_batch_size_per_gpu=micro, gradient_accumulation_steps=accumulation
        )
        trainer = make_trainer(
            f"run{micro}",
            algo=algo,
            normalize_by=normalize_by,
            selection={"scope": "sequence"},
            critic={"value_warmup_steps": 1},
            optimizer={"learning_rate": 1e-3},
            data={"evaluate": {}},
            deepspeed_config=config,
        )
        start = weights_of(trainer)
        trainer.train()
        selected = {
            (signals.step, int(row)): weights[place] != 0
            for signals, weights in trainer.loop.run.step.weighting.seen
            for place, row in enumerate(signals.row_ids)
        }
        found.append((weights_of(trainer), selected))
    whole, selected_of_whole = found[0]
    assert len(selected_of_whole) == 3 * 8
    assert max(float((whole[name] - start[name]).abs().max()) for name in start) > 1e-3
    for weights, selected in found[1:]:
        assert selected.keys() == selected_of_whole.keys()
        assert all(torch.equal(selected[key], selected_of_whole[key]) for key in selected)
        for name in whole:
            torch.testing.assert_close(weights[name], whole[name], atol=1e-6, rtol=0)


def test_scores_select_and_teach_what_the_live_reference_does(
    processes, make_trainer, make_settings, weights_of, tmp_path, monkeypatch
):
    settings = make_settings(algo="rho1-wmtp", steps=3)
    reference = ReferenceModel.load(settings.reference.source)
    for name, data in load(settings, processes).items():

        def losses(batch):
            return reference.token_losses(batch.input_ids, batch.position_ids, batch.document_ids)

        fingerprint = weights_fingerprint(settings.reference.source)
        ScoringJob(data.prepared, losses, tmp_path / "scores" / name, fingerprint, processes, 4).run()

    live = make_trainer("live", algo="rho1-wmtp")
    live_figures = live.train()
    monkeypatch.setattr(ReferenceModel, "forward", lambda *_: pytest.fail("a scored run called the reference"))
    scored = make_trainer("scored", algo="rho1-wmtp", reference={"scores": tmp_path / "scores"})
    scored_figures = scored.train()
    assert scored.loop.run.step.reference is None
    assert len(scored.loop.run.step.weighting.seen) == len(live.loop.run.step.weighting.seen) > 3
    for (_, ours), (_, theirs) in zip(
        scored.loop.run.step.weighting.seen, live.loop.run.step.weighting.seen, strict=True
    ):
        assert torch.equal(ours, theirs)
        assert (ours == 0).any()
    assert scored_figures == pytest.approx(live_figures, rel=1e-6)
    ours, theirs = weights_of(scored), weights_of(live)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6, rtol=0) for name in theirs)


def test_the_reference_runs_once_a_micro_batch(make_trainer, write_deepspeed):
    trainer = make_trainer(
        algo="rho1-wmtp",
        steps=2,
        data={"evaluate": {}},
        deepspeed_config=write_deepspeed(train_batch_size=6, gradient_accumulation_steps=3),
    )
    calls = []
    trainer.loop.run.step.reference.causal_lm.base_model.register_forward_hook(
        lambda *_: calls.append(trainer.loop.number)
    )
    trainer.train()
    assert calls == [0, 0, 0, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_learns_the_same(make_trainer, write_deepspeed, stage):
    config = write_deepspeed(f"stage{stage}.json", stage=stage, train_batch_size=4)
    trainer = make_trainer(f"stage{stage}", algo="rho1-wmtp", steps=20, deepspeed_config=config)
    before = trainer.loop.run.evaluate(trainer.loop.number)
    after = trainer.train()
    for h in range(3):
        assert after[f"held_out/ce/head_{h}"] < before[f"held_out/ce/head_{h}"] - 0.5
    plain = make_trainer("plain", algo="rho1-wmtp", steps=20, deepspeed_config=write_deepspeed(stage=1)).train()
    assert after == pytest.approx(plain, rel=1e-4)


def test_a_run_leaves_what_the_docs_promise(make_trainer, tmp_path):
    trainer = make_trainer(algo="rho1-wmtp", steps=4, log_every=2, evaluate_every=2, save_every=2)
    metrics = trainer.train()
    folder = tmp_path / "run"
    assert json.loads((folder / "evaluation.json").read_text()) == metrics
    assert json.loads((folder / "settings.json").read_text())["steps"] == 4
    passage = json.loads((folder / "passages.json").read_text())["held_out"]
    assert len(passage["tokens"]) == len(passage["weights"]) == 32
    assert sorted(path.name for path in (folder / "checkpoints").glob("step*")) == ["step_00000002", "step_00000004"]
    assert MtpForCausalLM.from_pretrained(folder / "model").config.horizon == 3
    assert len(AutoTokenizer.from_pretrained(folder / "model")) == len(trainer.run.tokenizer)

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    heads = [f"{name}/head_{h}" for name in ("ce", "reference_ce", "excess_mean", "threshold") for h in range(3)]
    heads += [f"{name}/head_{h}" for name in ("selected_ratio", "selected_count") for h in range(3)]
    names = ("weighted_loss", "learning_rate", "gradient_norm", "tokens_per_second", "step_seconds")
    expected = {*heads, *(f"train/{name}" for name in names), "noise/precision", "noise/recall", "noise/kept/hex"}
    assert expected <= set(events.Tags()["scalars"])
    for tag in expected:
        assert [point.step for point in events.Scalars(tag)] == [2, 4], tag
    held_out = {f"evaluation/{name}": value for name, value in metrics.items()}
    for tag, value in held_out.items():
        points = events.Scalars(tag)
        assert [point.step for point in points if point.step] == [2, 4], tag
        assert points[-1].value == pytest.approx(value, rel=1e-6)


def test_the_logged_gradient_norm_is_the_one_before_clipping(make_trainer, write_deepspeed, tmp_path):
    norms = []
    for stage in (0, 1, 2):
        config = write_deepspeed(f"{stage}.json", stage=stage, gradient_clipping=0.01)
        make_trainer(
            f"stage{stage}", steps=1, deepspeed_config=config, data={"evaluate": {}}, algo="mtp-baseline"
        ).train()
        events = EventAccumulator(str(tmp_path / f"stage{stage}" / "tensorboard"))
        events.Reload()
        norms.append(events.Scalars("train/gradient_norm")[0].value)
    assert norms[0] > 0.1
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


@pytest.mark.parametrize("algo", ["rho1-wmtp", "critic-wmtp"])
def test_an_evaluation_needs_neither_trainer_nor_optimizer(processes, make_trainer, make_settings, algo):
    run = Run.open(make_settings(algo=algo, steps=1), trainer_class(algo).algorithm, processes)
    alone = run.evaluate(0)
    assert make_trainer(algo=algo, steps=1).loop.run.evaluate(0) == alone


def test_a_run_is_opened_before_anything_is_written(processes, make_settings, tmp_path):
    Run.open(make_settings(algo="rho1-wmtp"), Rho1WmtpTrainer.algorithm, processes)
    assert not (tmp_path / "run").exists()


def test_a_step_is_a_value_that_trains_without_a_loop(processes, make_trainer, make_settings):
    """What a benchmark times is what a trainer does."""
    settings = make_settings(algo="rho1-wmtp", steps=3, data={"evaluate": {}})
    run = Run.open(settings, Rho1WmtpTrainer.algorithm, processes)
    engine = ZeroEngine(run.policy, run.engine_config, settings.optimizer, settings.steps, processes)
    batches = run.train.training_batches(processes, run.micro_batch, settings.seed, {})
    step = replace(run.step, policy=engine)
    for number in range(settings.steps):
        step.train(engine, [next(batches) for _ in range(run.accumulation)], number)
    trainer = make_trainer(algo="rho1-wmtp", steps=3, data={"evaluate": {}})
    trainer.train()
    theirs = dict(trainer.run.policy.named_parameters())
    assert all(torch.equal(weight, theirs[name]) for name, weight in run.policy.named_parameters())


def test_epochs_stand_for_the_steps_that_they_take(processes, make_settings, write_deepspeed, tmp_path):
    """Loop, schedule, checkpoints and what a run leaves all take the derived number."""
    alike = {"algo": "mtp-baseline", "deepspeed_config": write_deepspeed(train_batch_size=5), "data": {"evaluate": {}}}

    def of(epochs, **changes):
        settings = make_settings(**alike, **changes)
        return Settings(**settings.model_dump(exclude={"steps", "epochs"}), epochs=epochs)

    rows = Run.open(of(1.0), MtpBaselineTrainer.algorithm, processes).train.row_count
    assert rows % 5
    expected = {0.001: 1, 5 / rows: 1, 0.5: -(-rows // 10), 1.0: -(-rows // 5), 2.0: -(-2 * rows // 5)}
    for epochs, steps in expected.items():
        assert Run.open(of(epochs), MtpBaselineTrainer.algorithm, processes).settings.steps == steps
    trainer = MtpBaselineTrainer(of(10 / rows, save_every=1), processes)
    trainer.train()
    assert trainer.loop.number == 2
    assert json.loads((tmp_path / "run/settings.json").read_text())["steps"] == 2
    MtpBaselineTrainer(of(10 / rows, resume=True), processes).train()  # which finds nothing left to do
    MtpBaselineTrainer(make_settings("alike", steps=2, **alike), processes).train()
    # The same weights: the schedule ended at the same step.
    one, other = ((tmp_path / folder / "model/model.safetensors").read_bytes() for folder in ("run", "alike"))
    assert one == other
