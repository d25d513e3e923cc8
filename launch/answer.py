"""Let a model answer prompts, for its heads to learn from: `python launch/answer.py --model M --data … --output F`.

Writes rows of tokens that `data.train` takes as they are, of which the answer is learned. Greedy; goes on where a kill
left it; several processes share the prompts, and write the same file.
"""

from pathlib import Path

from wmtp_train.settings.help import Parser, answer_help


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
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
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    return parser


if __name__ == "__main__":
    answer_help(make_parser())

import sys
from dataclasses import replace

from tqdm import tqdm

from wmtp_train.answering import AnswerJob, open_answers
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks
from wmtp_train.ranks.lifecycle import run, start_processes


def main() -> None:
    """Read the prompts, load the model and write its answers."""
    mesh = start_processes()  # first, so that what is wrong is said once

    def open_job() -> AnswerJob:
        # DeepSpeed's launcher adds --local_rank to every script; the environment says the same.
        given = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
        return open_answers(mesh, **vars(make_parser().parse_args(given)))

    job = run_on_all_ranks(mesh, open_job, "the answers cannot begin", START_AGAIN)
    with tqdm(desc="answering", total=len(job.prompts), unit="prompt", disable=not mesh.is_first) as bar:
        decoding = replace(job, progress=lambda prompts: bar.update(prompts * mesh.world)).run()
    if mesh.is_first:
        print(decoding)


if __name__ == "__main__":
    run(main, "the same command goes on where this one ended")
