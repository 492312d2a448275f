"""So that python -m ggrun is ggrun."""

from ggrun.cli import main

main()
