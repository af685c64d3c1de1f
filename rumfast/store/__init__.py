"""A run on disk: every path, files that are complete or absent, and readers that notice damage."""

from rumfast.store.commits import (
    TEMPORARY,
    commit_folder,
    remove_partial,
    require_writable,
    write_bytes,
    write_json,
    write_npz,
    write_text,
)
from rumfast.store.paths import RunDir, require_same
from rumfast.store.reads import content_digest, read_array, read_json, read_npz

__all__ = [
    "TEMPORARY",
    "RunDir",
    "commit_folder",
    "content_digest",
    "read_array",
    "read_json",
    "read_npz",
    "remove_partial",
    "require_same",
    "require_writable",
    "write_bytes",
    "write_json",
    "write_npz",
    "write_text",
]
