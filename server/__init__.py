"""The server: the gateway process, the engines it supervises, the CLI, and vLLM's plugin.

Only `server.vllm_plugin` imports vLLM, and only inside the engine's processes.
"""
