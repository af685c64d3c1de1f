"""JSON Schemas of the records that commands print with ``--json``."""
