"""LoRA and an activation in C, compiled on the machine that runs it; else torch does them.

    lora.c      entry points; work.h types and numbers, rows.h few rows by vectors, blocks.h
                blocks of 16 rows, tiles.h their products by AMX or AVX-512; gated.h the activation
    builder.py  compiles them once into the user's cache directory
    library.py  loads and calls them through ctypes

docs/kernels.md tells how to switch it off, docs/adr/0020 why it is made like this.
"""
