"""The bars of speed, measured in one run on one machine: `python -m loadtests.compare`.

bars.py        what is to be reached, and whether it was
tables.py      results as text, Markdown and JSON
machine.py     what machine and what versions they are of
engines.py     our engine, ours without LoRA, stock vLLM: started with the same flags, in turn
asking.py      a lean client of an engine: time to first token, decode
kernels.py     table A, by the engines asked directly
peft_side.py   PEFT on transformers beside them; peft_runner.py is its process
scheduling.py  table B, through the gateway, loads of loadtests/scenarios.toml
others.py      tables C and D, of benchmarks that have a command of their own
"""
