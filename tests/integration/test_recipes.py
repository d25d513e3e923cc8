"""Every recipe as docs/recipes.md tells it, on a small model of its architecture: answers, training, exports."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_costs import PUBLISHED, RECIPES, ROOT, config_of, flop_per_token, head_dim, line
from safetensors.torch import load_file
from shipping_sources import SHIPPING, write_source
from transformers import AutoModelForCausalLM, AutoTokenizer

import wmtp_models
from wmtp_models import MtpForCausalLM, load_policy, load_wmtp
from wmtp_models.formats.registry import FORMATS
from wmtp_train.algorithms import TRAINERS
from wmtp_train.answering import open_answers
from wmtp_train.data.loading import data_spec, load_sources, tokenizer_from_settings
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.command_line import load_settings
from wmtp_train.settings.schema import Settings

PAGE = ROOT / "docs" / "recipes.md"
NAMES = sorted(PUBLISHED)
SIZES = {"steps": 2, "log_every": 1, "save_every": 2, "evaluate_every": 2, "optimizer.warmup_steps": 1}
SIZES |= {"data.sequence_length": 48, "data.evaluation_rows": 8, "data.workers": 0}
# As Llama 3.2's does, it tells the day.
TEMPLATE = (
    "{{ '<system>' + (date_string if date_string is defined else 'today') + eos_token }}"
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@dataclass(frozen=True)
class Trained:
    """What became of a recipe.

    Attributes:
        settings: of the run.
        metrics: at its end.
        before: the policy as training found it, in the dtype that it trains in.
        after: what it saved.
    """

    settings: Settings
    metrics: dict[str, float]
    before: MtpForCausalLM
    after: MtpForCausalLM


def shrunken(name: str) -> dict[str, Any]:
    """The architecture of a recipe with its proportions: queries for each key, how wide a head is, what is tied."""
    published: Any = config_of(PUBLISHED[name])
    heads, queries = 4, published.num_attention_heads // published.num_key_value_heads
    widening = head_dim(published) * published.num_attention_heads // published.hidden_size
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": heads}
    small |= {"num_key_value_heads": heads // queries, "head_dim": 8 * widening, "initializer_range": 0.2}
    return {**PUBLISHED[name], **small}


def write_model(name: str, folder: Path, home: Path) -> None:
    """Write a source of a recipe's architecture, with a tokenizer that renders conversations."""
    tokenizer = AutoTokenizer.from_pretrained(home / "tokenizer")
    tokenizer.chat_template = TEMPLATE
    small = {**shrunken(name), "vocab_size": len(tokenizer) + 8, "eos_token_id": tokenizer.eos_token_id}
    if name.startswith("native"):
        del small["head_dim"]
        write_source(SHIPPING["qwen2"], small.pop("model_type"), folder, **small)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "mimo", "auto_map": {}}))
    else:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config_of(small), dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, in which all places of the recipes lie."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "ds_configs").symlink_to(ROOT / "ds_configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def trained(workplace: Path, tiny_home: Path, processes: Mesh) -> Callable[[str], Trained]:
    """Runs a recipe, once: the file as it is, with sizes and the name on the hub changed."""

    @cache
    def run(name: str) -> Trained:
        arguments = ["--config", str(RECIPES / f"{name}.yaml")]
        arguments += [argument for key, value in SIZES.items() for argument in (f"--{key}", str(value))]
        if name.startswith("modules"):
            arguments += ["--model.source", f"runs/source_of_{name}"]
        settings = load_settings(arguments)
        model, (train,), (held_out,) = settings.model, settings.data.train, settings.data.evaluate["held_out"]
        source = str(model.source)
        if name.startswith("sft"):
            run(name.replace("sft", "modules"))
            write_conversations(Path(train), 40)
            write_conversations(Path(held_out), 8)
        else:
            write_model(name, Path(source), tiny_home)
            if name.startswith("native"):
                exec(re.findall(r"<<'END'\n(.*?)\nEND", PAGE.read_text(), re.DOTALL)[0], {})
            write_answers(processes, source, Path(train), 40)
            write_answers(processes, source, Path(held_out), 8)
        before = load_policy(source, model.horizon, False, torch.bfloat16, model.head_kind, model.shared_module)
        metrics = TRAINERS[settings.algo](settings, processes).train()
        return Trained(settings, metrics, before.eval(), load_wmtp(settings.output_dir / "model").eval())

    return run


def write_conversations(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = ["user", "assistant"] * 2
    rows = [[{"role": role, "content": f"def {role}: return {n}"} for role in said] for n in range(count)]
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))


def write_answers(mesh: Mesh, model: str, output: Path, count: int) -> None:
    prompts = output.with_name(f"prompts_of_{output.name}")
    prompts.parent.mkdir(parents=True, exist_ok=True)
    asked = [{"messages": [{"role": "user", "content": f"{output.stem} {n}"}]} for n in range(count)]
    prompts.write_text("\n".join(map(json.dumps, asked)))
    job = open_answers(
        mesh, model=model, data=[str(prompts)], output=output, max_new_tokens=12, batch=64, text_tokens=4,
        chat_template=None, temperature=0.6, top_k=None, top_p=0.9, seed=0, dtype="bfloat16",
    )  # fmt: skip
    job.run()


def moved(trained: Trained, part: str, dimensions: int = 2) -> list[bool]:
    """Whether each weight of at least so many dimensions is another one now; norms of 1 stay so in bf16 for a while."""
    before, after = trained.before.state_dict(), trained.after.state_dict()
    names = [name for name in before if name.startswith(part) and before[name].ndim >= dimensions]
    assert names
    return [not torch.equal(before[name], after[name]) for name in names]


def test_the_page_lists_every_recipe() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*")) == NAMES
    text = PAGE.read_text()
    assert {name for name in re.findall(r"(\w+_[\w.]+b)\.yaml", text) if "$" not in name} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_formulas_give(name: str) -> None:
    assert f"{line(name)}\n" in PAGE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_operations_are_counted_as_training_counts_them(name: str, trained: Callable[[str], Trained]) -> None:
    policy, settings = trained(name).before, trained(name).settings
    if settings.model.train == "heads":
        wmtp_models.train_later_heads(policy)
    expected = wmtp_models.flop_per_token(policy, 48)
    depths, learns_all = settings.model.horizon - 1, settings.model.train == "all"
    assert flop_per_token(policy.config.trunk, depths, 48, learns_all) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_what_it_says(name: str, trained: Callable[[str], Trained]) -> None:
    run = trained(name)
    assert all(map(math.isfinite, run.metrics.values()))
    assert 1 <= run.metrics["held_out/tokens_per_forward"] <= 4
    assert all(moved(run, "heads."))
    learns_all = run.settings.model.train == "all"
    assert all(moved(run, "causal_lm.")) if learns_all else not any(moved(run, "causal_lm.", 1))
    shapes = config_of(shrunken(name))
    for key in ("model_type", "rope_parameters", "tie_word_embeddings", "num_key_value_heads"):
        assert getattr(run.after.config.trunk, key) == getattr(shapes, key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form)
        for name, forms in re.findall(r"^\|.* \| `(\S+)\.yaml` \| .* \| (`.*`) \|$", PAGE.read_text(), re.MULTILINE)
        for form in re.findall(r"`(\S+?)`", forms)
    ],
)
def test_it_is_served_by_the_formats_of_the_page(
    name: str, form: str, trained: Callable[[str], Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    policy, folder = trained(name).after, tmp_path / "exported"
    folder.mkdir()
    FORMATS[form].save(policy, folder)
    FORMATS[form].check(policy, folder)  # or it raises


@pytest.mark.slow
def test_servers_are_started_as_the_exports_say(trained: Callable[[str], Trained]) -> None:
    page = re.sub(r" \\\n +", " ", PAGE.read_text())
    beside = FORMATS["mimo-drafter"].commands(trained("modules_llama3.2_1b").after)
    vllm = next(command for server, command in beside.items() if server.startswith("vLLM"))
    places = {"TRUNK": "meta-llama/Llama-3.2-1B-Instruct", "FOLDER": "runs/llama3.2_1b/exported"}
    assert vllm.replace("TRUNK", places["TRUNK"]).replace("FOLDER", places["FOLDER"]) in page
    native = FORMATS["native"].commands(trained("native_mimo_7b").after)
    sglang = next(command for server, command in native.items() if server.startswith("SGLang"))
    options = sglang.partition("--speculative")[2]
    assert f"--trust-remote-code --speculative{options}" in page


@pytest.mark.slow
def test_fine_tuning_learns_replies_under_a_date_that_stays(trained: Callable[[str], Trained], processes: Mesh) -> None:
    settings = trained("sft_llama3.2_1b").settings
    tokenizer = tokenizer_from_settings(settings)
    held_out = load_sources(data_spec(settings, tokenizer), processes)["held_out"]
    (batch,) = held_out.held_out_batches(processes, 100, None)
    assert "<system>26 Jul 2024<eos>" in tokenizer.decode(batch.input_ids.flatten())
    learned = tokenizer.decode(batch.labels[batch.labels != -100])
    assert re.fullmatch(r"(def assistant: return \d<eos>)+", learned)


@pytest.mark.slow
def test_the_module_of_a_recurrent_model_is_tuned_unpacked(workplace: Path, tiny_home: Path, processes: Mesh) -> None:
    """Qwen3.5 by the file for MiMo, and the changes that the page names."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_home / "tokenizer")
    tokenizer.chat_template = TEMPLATE
    source, conversations = Path("runs/qwen3.5"), Path("runs/qwen3.5_answers.jsonl")
    tensors = write_source(
        SHIPPING["qwen3_5_text recurrent"], "qwen3_5_text", source, vocab_size=len(tokenizer) + 8,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    tokenizer.save_pretrained(source)
    write_conversations(conversations, 8)
    changes = {**SIZES, "model.source": source, "output_dir": "runs/qwen3.5_module"}
    changes |= {"data.train": f'["{conversations}"]', "data.evaluate": f'{{"held_out": ["{conversations}"]}}'}
    arguments = [argument for key, value in changes.items() for argument in (f"--{key}", str(value))]
    settings = load_settings(["--config", str(RECIPES / "native_mimo_7b.yaml"), "--no-data.packing", *arguments])
    TRAINERS[settings.algo](settings, processes).train()
    policy = load_wmtp("runs/qwen3.5_module/model").eval()
    exported = workplace / "exported"
    exported.mkdir()
    FORMATS["native"].save(policy, exported)
    FORMATS["native"].check(policy, exported)
    after = load_file(exported / "model.safetensors")
    assert after.keys() == tensors.keys()
    changed = {name for name, tensor in tensors.items() if not torch.equal(tensor.bfloat16(), after[name])}
    assert {name for name in tensors if name.startswith("mtp.") and tensors[name].ndim > 1} <= changed
    assert all(name.startswith("mtp.") for name in changed)
