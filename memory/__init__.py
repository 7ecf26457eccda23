"""Memories: one contract (`engram.memory.base`), one file each, one registry (`engram.memory.registry`)."""

from engram.memory.base import Memory, State, where_reset
from engram.memory.registry import MEMORIES, UnknownMemory, make_memory, memory_options
from engram.memory.stack import Stack

__all__ = ["MEMORIES", "Memory", "Stack", "State", "UnknownMemory", "make_memory", "memory_options", "where_reset"]
