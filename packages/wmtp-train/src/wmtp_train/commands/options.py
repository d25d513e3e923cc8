"""Options of the commands that take no settings; nothing heavy is imported, so that `--help` is quick."""

from pathlib import Path

from wmtp_train.settings.help import Parser

DTYPES = ("float32", "bfloat16", "float16")
FORMATS_HELP = {
    "hf": "trunk and head 0, a plain model",
    "wmtp": "everything",
    "generic": "sequential heads beside a plain model, for transformers' use_mtp and vLLM from 0.33",
    "exaone": "Qwen3 and one sequential module, for transformers, vLLM and SGLang",
    "mimo-drafter": "one sequential module alone, beside a Llama or Qwen2 that vLLM or SGLang serves",
    "glm": "Llama, Qwen2 or Qwen3 and sequential modules, for vLLM, SGLang and llama.cpp",
    "medusa": "mlp and linear heads for vLLM",
    "consolidated": "params.json and consolidated.pth, a Llama with a layer for each head",
    "native": "what a source that ships modules published, under its own names",
}


def export_parser() -> Parser:
    """Return the options of `wmtp export`."""
    formats_help = "; ".join(f"{name}: {text}" for name, text in FORMATS_HELP.items())
    parser = Parser(description="Write a trained model for others.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder of a WMTP model, or of the consolidated format")
    parser.add_argument("--format", required=True, choices=FORMATS_HELP, help=formats_help)
    parser.add_argument("--output", required=True, type=Path, help="folder to write, which must not exist yet")
    return parser


def generate_parser() -> Parser:
    """Return the options of `wmtp generate`."""
    parser = Parser(description="Go on from prompts with a trained model.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder of a WMTP model and its tokenizer")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the text to go on from; without it or --prompts, each line of stdin is one")
    source.add_argument("--prompts", type=Path, help="a file of prompts, one a line, which are decoded as one batch")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="for each prompt")
    parser.add_argument("--temperature", type=float, help="draw tokens at this temperature; greedy without")
    parser.add_argument("--top-k", type=int, help="draw from the k most probable tokens")
    parser.add_argument("--top-p", type=float, help="draw from the fewest tokens that hold this much probability")
    parser.add_argument("--seed", type=int, help="of the draws")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights")
    parser.add_argument("--no-exact", action="store_true", help="greedy: do not settle near-ties with the plain model")
    parser.add_argument("--compare", action="store_true", help="also time it against plain decoding")
    return parser


def answer_parser() -> Parser:
    """Return the options of `wmtp answer`."""
    parser = Parser(description="Let a model answer prompts, for its heads to learn from.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder, GGUF file or name of a model and its tokenizer")
    parser.add_argument("--data", nargs="+", required=True, help="files, folders or globs as in data.train")
    parser.add_argument("--output", type=Path, required=True, help="the .jsonl file to write")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="for each prompt")
    parser.add_argument("--batch", type=int, default=16, help="prompts that are decoded together")
    parser.add_argument(
        "--text-tokens", type=int, default=32, help="of a row of `text`, the tokens that are its prompt"
    )
    parser.add_argument(
        "--chat-template", type=Path, help="Jinja file that renders conversations; else the tokenizer's"
    )
    parser.add_argument("--temperature", type=float, help="draw tokens at this temperature; greedy without")
    parser.add_argument("--top-k", type=int, help="draw from the k most probable tokens")
    parser.add_argument("--top-p", type=float, help="draw from the fewest tokens that hold this much probability")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights")
    return parser
