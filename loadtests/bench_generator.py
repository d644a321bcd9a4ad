"""How much one load generator takes: `python -m loadtests.bench_generator`.

Against loadtests.scripted, a server without a model in a process of its own: streams that get a
token every so often, and one that writes as fast as it is read. Printed for each: output tokens/s,
the generator's share of a core, how late its greenlets wake (p99), and by how much the median time
between tokens differs from what the server was told to wait. A run whose share of a core is above
70 % says so itself (`warnings` of its summary): use the figures of such a run for nothing.
"""

from __future__ import annotations

import argparse

from loadtests import running
from loadtests.scenarios import parse
from loadtests.scripted import scripted

# Streams, and seconds between a stream's tokens.
_LOADS = ((16, 0.02), (64, 0.02), (64, 0.01), (256, 0.05), (64, 0.0))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=8.0)
    options = parser.parse_args()
    print("streams  told ms  tokens/s  of a core  lag p99 ms  between p50 ms")
    for streams, interval in _LOADS:
        scenario = parse(
            "generator",
            {
                "load": {"kind": "closed", "users": streams},
                "prompt_tokens": 16,
                # Answers of two seconds, so that many end within.
                "output_tokens": int(min(200, 2 / interval)) if interval else 200,
                "warmup": 1.0,
                "duration": options.duration,
            },
        )
        with scripted("--interval", str(interval)) as url:
            summary = running.run(scenario, url)
        between = summary.all.itl_ms.p50 or float("nan")
        print(
            f"{streams:7} {interval * 1e3:8.0f} {summary.all.output_tokens_per_second:9.0f} "
            f"{summary.generator.cpu_share:10.2f} {summary.generator.lag_p99_ms:11.2f} "
            f"{between:15.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
