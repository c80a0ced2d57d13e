"""python -m bench [--quick | --full] [--only REGEX] [--device cpu|cuda] [--threads N] [--out DIR]
python -m bench report RESULT.json | compare A.json B.json | readme [RESULT.json] | list | tune
python -m bench [--quick | --full] [--only REGEX] dense [DENSE.json] | fuse [FUSE.json]
"""

import argparse
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure fastconv against what people would run instead.")
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--quick", dest="tier", action="store_const", const="quick", help="a dozen and a half cases, about a minute on a CPU")
    tier.add_argument("--full", dest="tier", action="store_const", const="full", help="the complete grid, with longer samples")
    parser.set_defaults(tier="default")
    parser.add_argument("--only", metavar="REGEX", help="only cases whose id matches, e.g. 'separable-forward-float32/xception'")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, help="CPU threads of every contestant; default: all usable cores")
    parser.add_argument("--out", type=Path, help="folder for result.json, table.md and plots; default: bench/results/DEVICE, bench/out for a part of the cases")
    commands = parser.add_subparsers(dest="command", title="instead of measuring")
    commands.add_parser("list", help="print the ids of the chosen cases")
    commands.add_parser("tune", help="measure candidate tiles on the GPU that is here, and write fastconv/tuning/DEVICE.json (or --out)")
    dense = commands.add_parser("dense", help="measure whole networks at every position: shifted runs, fragments, dilated, and what to_dense chooses")
    dense.add_argument("result", type=Path, nargs="?", help="a dense.json to print, write and draw again from, instead of measuring; one under bench/results also goes into docs/dense.md")
    fuse = commands.add_parser("fuse", help="measure trained networks as they are, compiled, and fused")
    fuse.add_argument("result", type=Path, nargs="?", help="a fuse.json to print and write again, instead of measuring; one under bench/results also goes into docs/fuse.md")
    fuse.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes minutes for each network")
    again = commands.add_parser("report", help="print, write and draw again from a result")
    again.add_argument("result", type=Path)
    two = commands.add_parser("compare", help="what moved between two results")
    two.add_argument("first", type=Path)
    two.add_argument("second", type=Path)
    readme = commands.add_parser("readme", help="put the newest committed result into README.md")
    readme.add_argument("result", type=Path, nargs="?")
    return parser


def _compare(first: Path, second: Path) -> None:
    from .compare import compared
    from .report import load
    from .run import console, show

    screen = console()
    summary, moved, differences = compared(load(first), load(second))
    show(screen, moved)
    show(screen, summary)
    for line in differences:
        screen.print(f"the runs also differ in {line}")


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.command == "compare":
        return _compare(arguments.first, arguments.second)
    if arguments.command == "readme":
        from .readme import inject

        return inject(arguments.result)
    if arguments.command == "tune":
        from .tune import main as tune

        return tune(arguments.tier, arguments.only, arguments.out)
    from . import machine, report, run

    if arguments.command in ("dense", "fuse") and arguments.result:
        from . import dense_report, fuse_report

        page = {"dense": dense_report, "fuse": fuse_report}[arguments.command]
        result, folder = report.load(arguments.result), arguments.result.resolve().parent
        page.publish(result, folder)
        if folder.parent.name == "results":
            page.inject(result, folder)
        return None
    if arguments.command == "report":
        return run.publish(report.load(arguments.result), arguments.result.parent)
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.command == "list":
        return print("\n".join(case.id for case in run.select(device, arguments.tier, arguments.only)))
    if arguments.command == "dense":
        from . import dense

        return dense.run(device, arguments.tier, arguments.threads or machine.usable_cpus(), arguments.out, arguments.only)
    if arguments.command == "fuse":
        from . import fuse

        return fuse.run(device, arguments.tier, arguments.threads or machine.usable_cpus(), arguments.out, arguments.only, not arguments.no_compile)
    run.run(device, arguments.tier, arguments.only, arguments.threads or machine.usable_cpus(), arguments.out)


if __name__ == "__main__":
    main()
