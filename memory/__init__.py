"""Memories: one contract (`engram.memory.base`), one file each, one registry (`engram.memory.registry`)."""

from engram.memory.base import Memory, State, where_reset
from engram.memory.registry import MEMORIES, find_memory, make_memory, memory_options, options_of
from engram.memory.stack import Stack

__all__ = [
    "MEMORIES",
    "Memory",
    "Stack",
    "State",
    "find_memory",
    "make_memory",
    "memory_options",
    "options_of",
    "where_reset",
]
