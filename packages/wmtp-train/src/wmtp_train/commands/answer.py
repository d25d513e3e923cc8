"""Let a model answer prompts, for its heads to learn from: `wmtp answer --model M --data … --output F`.

Writes rows of tokens that `data.train` takes as they are, of which the answer is learned. Greedy; goes on where a kill
left it; several processes share the prompts, and write the same file.
"""

import sys
from dataclasses import replace

from tqdm import tqdm

from wmtp_train.answering import AnswerJob, open_answers
from wmtp_train.commands.options import answer_parser
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks
from wmtp_train.ranks.lifecycle import run, start_processes


def start() -> None:
    """Run the command and end the process."""
    run(main, "the same command goes on where this one ended")


def main() -> None:
    """Read the prompts, load the model and write its answers."""
    mesh = start_processes()  # first, so that what is wrong is said once

    def open_job() -> AnswerJob:
        # DeepSpeed's launcher adds --local_rank to every script; the environment says the same.
        given = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
        return open_answers(mesh, **vars(answer_parser().parse_args(given)))

    job = run_on_all_ranks(mesh, open_job, "the answers cannot begin", START_AGAIN)
    with tqdm(desc="answering", total=len(job.prompts), unit="prompt", disable=not mesh.is_first) as bar:
        decoding = replace(job, progress=lambda prompts: bar.update(prompts * mesh.world)).run()
    if mesh.is_first:
        print(decoding)
