"""The command line: `python -m gigpo_fast doctor` says what runs here, how fast a path that is, and whether it is right."""

import argparse
import sys

from . import doctor


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 if all is well, 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m gigpo_fast", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("doctor", help="versions, devices, the path each operation takes and why not a faster one")
    command.add_argument("--selftest", action="store_true", help="also compare every operation with the float64 reference")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    command.add_argument("--native", action="store_true", help="only say in one line whether the C++ library is here")
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    return doctor.run(selftest=options.selftest, as_json=options.json, native_only=options.native)


if __name__ == "__main__":
    sys.exit(main())
