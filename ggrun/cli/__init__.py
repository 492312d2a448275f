"""The command line. Commands are imported when they are called, so that help is instant."""

import sys


def main() -> None:
    """Run the command line, and exit with its status."""
    # Imported here, so that Ctrl+C has its way to end ggrun from the first line on.
    try:
        from ggrun.cli.terminal import ctrl_c_leaves

        ctrl_c_leaves()
        from ggrun.cli.commands import status_of

        status = status_of(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
