"""``python -m rumfast.cli``."""

from rumfast.cli.main import main

main()
