"""The command `wmtp`; `torchrun -m wmtp_train train …` and `deepspeed --module wmtp_train train …` are the same."""

import sys

from wmtp_train.commands import COMMANDS, run_command


def main() -> None:
    """Run the command that the first argument names, or list all."""
    # DeepSpeed's launcher puts --local_rank before everything; the environment says the same.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: wmtp COMMAND …    (wmtp COMMAND --help lists its options)\n")
        print("\n".join(f"  {command:<10}{text}" for command, text in COMMANDS.items()))
        return
    if name not in COMMANDS:
        print(f"error: wmtp {name}: there is no such command; wmtp --help lists them", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"wmtp {name}", *arguments[1:]]
    run_command(name)


if __name__ == "__main__":
    main()
