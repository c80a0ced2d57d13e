"""`python -m fastconv COMMAND`: see `python -m fastconv --help`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

# Every command, one line each: a module of fastconv.cli with `configure(parser)` and `run(arguments) -> exit status`.
COMMANDS = {
    "env": "versions, instruction set, devices, libraries: what a bug report needs",
    "explain": "which kernel a layer gets, what it costs, and why not another one",
    "fuse": "what fastconv.fuse does to a network: chains replaced and left, times before and after",
    "erf": "what an output of a network sees: its effective receptive field, measured and drawn",
    "demo": "a trained network on real photographs, as plain PyTorch and with fastconv",
}


def parser() -> argparse.ArgumentParser:
    description = "fastconv: fused convolutions and shift-and-stitch pooling for PyTorch"
    root = argparse.ArgumentParser(prog="python -m fastconv", description=description)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = import_module(f"fastconv.cli.{name}")
        command = commands.add_parser(name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        module.configure(command)
        command.set_defaults(run=module.run)
    return root


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
