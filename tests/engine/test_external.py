"""A second gateway on the same store, pointed at the engine that already runs."""

from __future__ import annotations

import json

from demo.expectations import EXPECTATIONS, MAX_TOKENS
from loadtests.live import LiveServer, run_cli


def test_a_server_can_be_pointed_at_a_running_engine(live: LiveServer) -> None:
    engine = str(live.engine()["address"])
    second = LiveServer(live.store, "--base", "smollm2", "--port", "0", "--engine-url", engine)
    second.start()
    assert second.url != live.url
    for name, expected in EXPECTATIONS.items():
        answer = second.client().chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=MAX_TOKENS,
            temperature=0,
        )
        assert expected(answer.choices[0].message.content or "")
    assert second.engine()["kind"] == "external"
    both = json.loads(run_cli(live.store, "--json", "engines").stdout)
    assert sorted(engine["kind"] for engine in both) == ["external", "supervised"]
    assert second.stop() == 0
    # The engine is somebody else's: it goes on.
    assert live.status("/readyz") == 200


def test_a_server_refuses_an_engine_of_another_base(live: LiveServer) -> None:
    engine = str(live.engine()["address"])
    base = json.loads(run_cli(live.store, "--json", "base", "show", "smollm2").stdout)
    added = run_cli(live.store, "base", "add", "other-name", base["path"])
    assert added.returncode == 0, added.stderr
    refused = run_cli(
        live.store, "serve", "--base", "other-name", "--port", "0", "--engine-url", engine
    )
    assert refused.returncode == 1
    assert "serves smollm2" in refused.stderr
    assert "--served-model-name other-name" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run_cli(live.store, "base", "rm", "other-name").returncode == 0
