"""Recipes that ship with rumfast: ``rumfast run digits.toml --out runs/digits``."""
