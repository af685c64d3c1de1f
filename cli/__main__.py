"""``python -m rumfast.cli``."""

from rumfast.cli.entry import main

main()
