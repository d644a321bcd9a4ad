"""lora.c as Python calls it: one call a layer, with pointers; nothing is allocated in a call.

The structures are the C source's, field by field.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch

from server.vllm_plugin.native.builder import NotBuiltError, library_path

logger = logging.getLogger("vllm.adapterctl.native")

SWITCH = "ADAPTERCTL_NATIVE_KERNELS"
_CAN_HALF, _CAN_AMX, _CAN_THREADS, _CAN_PAIRS = 1, 2, 4, 8
# FLOAT, BFLOAT and HALF in work.h.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Work(ctypes.Structure):
    """What `lora_apply` reads: the plan of a step, and one layer's weights, x and y."""

    _fields_: ClassVar = [
        ("module", ctypes.c_void_p), ("slots", ctypes.c_void_p),
        ("chunks", ctypes.c_void_p), ("rows", ctypes.c_void_p), ("runs", ctypes.c_void_p),
        ("chunk_count", ctypes.c_int64), ("run_count", ctypes.c_int64),
        ("row_count", ctypes.c_int64),
        ("x", ctypes.c_void_p), ("y", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64), ("y_stride", ctypes.c_int64),
        ("y_columns", ctypes.c_int64), ("x_type", ctypes.c_int64), ("y_type", ctypes.c_int64),
        ("scratch", ctypes.c_void_p), ("scale", ctypes.c_float),
        ("inner_given", ctypes.c_int), ("parts", ctypes.c_int),
        ("columns", ctypes.c_int64), ("private_size", ctypes.c_int64),
    ]  # fmt: skip


class Library:
    """The loaded functions, and what they can do on this machine."""

    def __init__(self, path: Path):
        """Raises OSError for a file that is no library of this machine."""
        # RTLD_NOW: what is missing is to be known here. The OpenMP functions are weak, and are
        # those that torch has loaded for everybody.
        # PyDLL keeps the interpreter's lock: calls are too short to hand it to another thread,
        # which would give it back after milliseconds.
        loaded = ctypes.PyDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.apply = loaded.lora_apply
        self.apply.argtypes, self.apply.restype = [pointer], None
        self.rank = loaded.lora_rank
        self.rank.argtypes, self.rank.restype = [pointer, number, number, number], number
        self.size = loaded.lora_size
        self.size.argtypes, self.size.restype = [pointer, pointer, ctypes.c_int], number
        self.pack = loaded.lora_pack
        self.pack.argtypes, self.pack.restype = [pointer] * 6 + [ctypes.c_int], None
        self.silu_and_mul = loaded.silu_and_mul
        self.silu_and_mul.argtypes = [pointer] * 2 + [number] * 4
        self.silu_and_mul.restype = None
        loaded.lora_start.argtypes, loaded.lora_start.restype = [], ctypes.c_int
        can = loaded.lora_start()
        half = bool(can & _CAN_HALF)
        # What multiplies blocks of rows, in bfloat16; empty where nothing does.
        self.blocks = "AMX" if can & _CAN_AMX else "AVX-512 BF16" if can & _CAN_PAIRS else ""
        self.threads = bool(can & _CAN_THREADS)
        # The numbers it can compute with, and what they are called in C.
        self.types = {d: code for d, code in TYPES.items() if half or d is not torch.float16}

    def parts(self) -> int:
        """Into how many threads a call may part its work."""
        return torch.get_num_threads() if self.threads else 1


@cache
def load() -> Library | None:
    """The library, compiled if need be; None, with one line in the log, where torch is to do."""
    if os.environ.get(SWITCH, "1").strip().lower() in {"0", "false", "no", "off"}:
        logger.info("no compiled kernels, torch does it: %s switches them off", SWITCH)
        return None
    try:
        path = library_path()
        library = Library(path)
    except (NotBuiltError, OSError, AttributeError) as error:
        logger.warning("no compiled kernels, torch does it, slower: %s", error)
        return None
    blocks = library.blocks or "none"
    logger.info(
        "compiled kernels: %s (LoRA's blocks: %s, threads: %s)", path, blocks, library.threads
    )
    return library
