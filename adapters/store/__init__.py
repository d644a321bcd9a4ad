"""The content-addressed store: blobs on disk, publish, leases of engines, gc, verify.

`layout`, `content`, `locks`, `durable` and `leases` need the standard library only: the vLLM
plugin imports them inside the engine's processes.
"""
