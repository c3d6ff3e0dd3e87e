"""Digests of 4 KiB blocks: how one side knows what the other holds, without reading it.

`digests` computes them, `table` keeps one per block of a disk in a sparse mapped file.
"""

from secondsite.blocks.digests import UNKNOWN, ZERO_DIGEST, block_digests, zero_blocks
from secondsite.blocks.table import DigestTable

__all__ = ["UNKNOWN", "ZERO_DIGEST", "DigestTable", "block_digests", "zero_blocks"]
