"""Calculates what a run of rho1-wmtp needs of memory, network, disk and time, on any machine and in seconds.

    python tools/scale.py --config launch/configs/scale_1b.yaml --gpus 64 [--micro-batch 4] [--model.horizon 2 …]

Takes the settings of launch/train.py beside its own options; the columns are the files of ds_configs. Models are built
of the real classes without memory; what is printed is Markdown, with a formula for every number. tools/check_scale.py
compares the formulas with small runs, and docs/scale.md says what cannot be known without a GPU.
"""

import argparse
import sys
from collections.abc import Sequence

from scaling.engines import read_engines
from scaling.model_size import FAMILIES, ModelSize, measure_model
from scaling.page import render
from scaling.plan import Plan
from transformers import CONFIG_MAPPING

from wmtp_core import UserError
from wmtp_train.engines.deepspeed.engine import read_deepspeed_config
from wmtp_train.settings.command_line import load_settings
from wmtp_train.settings.schema import Settings


def make_plan(options: argparse.Namespace, others: list[str]) -> Plan:
    """From the command line; `others` are settings of launch/train.py.

    Raises:
        UserError: a setting or an option that is missing, unknown or out of bounds.
    """
    for name in ("gpus", "micro_batch", "accumulation", "gpus_per_node", "tokens", "peak_tflops", "utilisation"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value}: give a number above 0")
    if options.utilisation > 1:
        raise UserError(f"--utilisation {options.utilisation}: give a share of the peak, at most 1")
    settings = load_settings(others)
    batches = read_deepspeed_config(settings.deepspeed_config, options.gpus)
    policy = _size(settings, settings.model.horizon)
    reference = _size(load_settings(["--config", options.reference]) if options.reference else settings, 1)
    if reference.vocab_size != policy.vocab_size:
        raise UserError(
            f"--reference {options.reference}: its vocabulary is {reference.vocab_size}, the policy's "
            f"{policy.vocab_size}; a reference speaks the policy's tokens"
        )
    return Plan(
        policy=policy,
        reference=reference,
        gpus=options.gpus,
        gpus_per_node=options.gpus_per_node,
        micro_batch=options.micro_batch or batches["train_micro_batch_size_per_gpu"],
        accumulation=options.accumulation or batches["gradient_accumulation_steps"],
        sequence_length=settings.data.sequence_length,
        k_percent=settings.selection.k_percent,
        keep_checkpoints=settings.keep_checkpoints,
        tokens=options.tokens,
        peak_flops=options.peak_tflops * 1e12,
        utilisation=options.utilisation,
        engines=read_engines(),
    )


def _size(settings: Settings, horizon: int) -> ModelSize:
    model = settings.model
    if model.config is None:
        raise UserError("model.config is not set; describe the model there, also where model.source has its weights")
    for name, value in (("head_kind", "layer"), ("train", "all")):
        if getattr(model, name) != value:
            raise UserError(f"model.{name} is {getattr(model, name)!r}; only {value!r} is calculated")
    family = model.config.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"model.config: model_type is {family!r}; {', '.join(FAMILIES)} can be calculated")
    if "vocab_size" not in model.config:
        raise UserError("model.config: vocab_size is missing; give the tokenizer's, which is not read here")
    if unknown := [key for key in model.config if not hasattr(CONFIG_MAPPING[family](), key)]:
        raise UserError(f"model.config: {family} has no {', '.join(unknown)}; mend or remove it")
    return measure_model(model.config, horizon)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Calculate what a run needs.", allow_abbrev=False)
    parser.add_argument("--gpus", type=int, required=True, help="processes, one a GPU")
    parser.add_argument("--micro-batch", type=int, help="rows of a GPU's forward; default: deepspeed_config's")
    parser.add_argument("--accumulation", type=int, help="micro-batches a step; default: deepspeed_config's")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--reference", metavar="CONFIG", help="settings of the reference; default: the policy's trunk")
    parser.add_argument("--tokens", type=float, default=1e11, help="of the corpus; default: %(default)s")
    parser.add_argument("--peak-tflops", type=float, default=989, help="of a GPU; default: %(default)s (H100, bf16)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak; default: %(default)s")
    options, others = parser.parse_known_args(arguments)
    try:
        print(render(make_plan(options, others)), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
