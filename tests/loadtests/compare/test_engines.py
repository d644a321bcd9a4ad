"""The sides differ by what they are compared for, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.adapters import make_store
from loadtests.compare.engines import COMPILED, OURS, PLAIN, STOCK, Engines, without
from server.engine.launch import LAUNCH_MODULE, STEP_VARIABLE


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Engines:
    root = tmp_path_factory.mktemp("engines")
    make_store(root / "store", count=2, rank=4, base_dir=tiny_base)
    return Engines(root / "store", root / "engines", slots=4, max_rank=16)


def _arguments(engines: Engines, side: str) -> list[str]:
    argv = list(engines.command(side, ["a0000", "a0001"] if side == STOCK else []).argv)
    return argv[argv.index(LAUNCH_MODULE) + 2 :]


def test_stock_has_our_flags_and_nothing_of_ours(engines: Engines) -> None:
    ours, stock = _arguments(engines, OURS), _arguments(engines, STOCK)
    cut = stock.index("--lora-modules")
    own = ["--uds", "--worker-extension-cls", "--max-num-scheduled-tokens"]
    assert sorted(without(ours, own)) == sorted(without(stock[:cut], own))
    assert not any("server.vllm_plugin" in argument for argument in stock)
    bound = engines.command(OURS).environment[STEP_VARIABLE]
    assert stock[stock.index("--max-num-scheduled-tokens") + 1] == bound
    names = [module.partition("=")[0] for module in stock[cut + 1 :]]
    paths = [Path(module.partition("=")[2]) for module in stock[cut + 1 :]]
    assert names == ["a0000", "a0001"]
    assert all((path / "adapter_model.safetensors").is_file() for path in paths)


def test_plugin_is_off_in_stock_and_on_in_ours(engines: Engines) -> None:
    for side, on in ((OURS, True), (PLAIN, True), (STOCK, False), (COMPILED, False)):
        environment = engines.command(side).environment
        assert ("ADAPTERCTL_ENGINE_STORE" in environment) is on
        # Empty names no plugin; not set, every one that is installed would be loaded.
        assert (environment.get("VLLM_PLUGINS") == "") is not on
    ours, stock = (engines.command(side).environment for side in (OURS, STOCK))
    kept = {name: value for name, value in ours.items() if not name.startswith("ADAPTERCTL_")}
    assert {name: stock[name] for name in kept if name != "VLLM_PLUGINS"} == {
        name: value for name, value in kept.items() if name != "VLLM_PLUGINS"
    }


def test_sides_without_lora_have_no_flag_of_it(engines: Engines) -> None:
    for side, eager in ((PLAIN, True), (COMPILED, False)):
        arguments = _arguments(engines, side)
        assert not [argument for argument in arguments if "lora" in argument]
        assert ("--enforce-eager" in arguments) is eager


def test_every_side_has_a_socket_of_its_own(engines: Engines) -> None:
    commands = [engines.command(side) for side in (OURS, PLAIN, STOCK, COMPILED)]
    assert len({command.socket for command in commands}) == 4
    for command in commands:
        assert str(command.socket) in command.argv
        assert len(str(command.socket)) < 108


def test_adapters_have_their_engine_names_with_us(engines: Engines) -> None:
    assert engines.name(OURS, "a0000").startswith("sha256-")
    assert engines.name(STOCK, "a0000") == "a0000"
    assert engines.name(OURS, "smollm2") == engines.name(STOCK, "smollm2") == "smollm2"


def test_flags_go_with_their_values() -> None:
    assert without(["--a", "1", "--b", "--c", "--a"], ["--a", "--c"]) == ["--b"]
