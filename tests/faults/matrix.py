"""The fault matrix: for each fault what a client sees, what is lost, and the tests behind it.

docs/reliability.md has this table; test_matrix.py compares the two, and looks whether each test is
there. `python -m tests.faults.matrix` prints it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- matrix: python -m tests.faults.matrix -->", "<!-- end of the matrix -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One fault. `tests`: file::function, from the repository's root."""

    fault: str
    sees: str
    lost: str
    tests: tuple[str, ...]


_GATEWAY = "tests/server/gateway"
_FAIR = f"{_GATEWAY}/test_fair_shares.py"
_ENGINE = "tests/server/engine"
_LIVE = "tests/engine/test_faults.py"
_REGISTRY = "tests/adapters/registry"
_QUANTIZE = "tests/quantize"
_CLIENTS = "tests/faults/test_clients.py"
_STORE = "tests/faults/test_store.py"

MATRIX = (
    Row(
        "engine killed while idle",
        "the next request waits until the engine is back; beyond `merged_wait` 503 "
        "`engine_unavailable` with Retry-After",
        "nothing",
        (
            f"{_ENGINE}/test_supervisor.py::"
            "test_a_killed_engine_is_started_again_and_leaves_no_child",
            f"{_GATEWAY}/test_coming_back.py::"
            "test_a_request_waits_for_the_base_engine_to_come_back",
            f"{_GATEWAY}/test_lane_faults.py::"
            "test_an_engine_that_died_unnoticed_took_nothing_and_the_hot_lane_answers",
        ),
    ),
    Row(
        "engine killed in prefill",
        "502 `engine_died`, or the other lane's answer where the version is in both",
        "nothing but that answer",
        (
            f"{_GATEWAY}/test_relay_faults.py::test_an_engine_that_dies_before_it_answers_is_a_502",
            f"{_GATEWAY}/test_lane_faults.py::"
            "test_who_dies_before_a_byte_of_the_answer_is_stood_in_for_once",
        ),
    ),
    Row(
        "engine killed in a stream",
        "an error event `engine_died` as the last one",
        "the rest of that answer",
        (
            f"{_LIVE}::test_an_engine_killed_in_a_stream_comes_back_by_itself",
            f"{_GATEWAY}/test_relay_faults.py::"
            "test_an_engine_that_dies_in_a_stream_ends_it_with_an_error_frame",
            f"{_GATEWAY}/test_lane_faults.py::"
            "test_a_stream_that_has_begun_is_not_continued_elsewhere",
        ),
    ),
    Row(
        "engine hangs: its API server or the core behind it stands still",
        "`engine_died` once the watchdog has killed it: `hang_timeout` without a sign of life "
        "(while it computes on a CPU up to 300 s)",
        "the answers that it owed",
        (
            f"{_LIVE}::test_a_core_that_hangs_or_is_killed_behind_its_server_is_replaced",
            f"{_ENGINE}/test_watchdog.py::"
            "test_an_engine_that_hangs_is_killed_and_replaced_and_who_waits_is_told",
            f"{_ENGINE}/test_watchdog.py::"
            "test_a_core_that_stands_still_behind_a_healthy_server_hangs",
            f"{_ENGINE}/test_watchdog.py::test_one_that_computes_is_slow_where_steps_may_be_long",
            f"{_ENGINE}/test_transport.py::test_closing_wakes_who_reads",
        ),
    ),
    Row(
        "engine out of memory: the kernel kills its core",
        "`engine_died`, or 503 `engine_unavailable` for who comes before it is replaced",
        "the answers that it owed",
        (
            f"{_LIVE}::test_a_core_that_hangs_or_is_killed_behind_its_server_is_replaced",
            f"{_ENGINE}/test_watchdog.py::"
            "test_a_core_that_has_died_behind_a_healthy_server_is_found",
            f"{_GATEWAY}/test_relay_faults.py::"
            "test_a_core_that_dies_in_a_stream_is_said_in_our_words",
            f"{_GATEWAY}/test_relay_faults.py::"
            "test_an_engine_whose_core_is_dead_is_a_503_that_says_when_to_come_back",
        ),
    ),
    Row(
        "gateway killed",
        "connections end; after its start the same registry is served",
        "the answers under way; no process is left behind",
        (f"{_LIVE}::test_a_killed_server_leaves_no_orphan_and_serves_the_same_registry_again",),
    ),
    Row(
        "gateway restarted in order",
        "nothing, where the new one takes the port while the old one ends",
        "nothing",
        (
            f"{_GATEWAY}/test_rolling.py::test_a_rolling_restart_loses_no_request",
            f"{_GATEWAY}/test_http_server.py::"
            "test_a_port_goes_from_server_to_server_and_no_request_is_lost",
            f"{_LIVE}::test_an_orderly_stop_leaves_nothing",
        ),
    ),
    Row(
        "disk full while registering",
        "`disk_full`, in one sentence",
        "nothing; nothing half done is left",
        (
            f"{_REGISTRY}/test_disk_faults.py::test_disk",
            f"{_GATEWAY}/test_uploads.py::test_a_disk_that_is_full_in_the_middle",
        ),
    ),
    Row(
        "disk full in a merge",
        "the job fails with `disk_full`",
        "nothing; it can be resumed",
        (
            f"{_QUANTIZE}/pipeline/test_merge_job.py::test_a_disk_that_is_full_in_the_middle",
            f"{_QUANTIZE}/merging/test_resuming.py::test_a_full_disk_is_said_before_and_during",
        ),
    ),
    Row(
        "the database cannot grow, or be written",
        "answers go on; a change is refused with `disk_full` or another error of the store",
        "nothing",
        (
            f"{_STORE}::test_a_registry_that_cannot_be_written_answers_and_says_so",
            f"{_REGISTRY}/test_disk_faults.py::test_disk",
        ),
    ),
    Row(
        "store is read-only",
        "reading goes on; a change, and a server's start, are refused with `store_read_only`",
        "nothing",
        (
            f"{_REGISTRY}/test_disk_faults.py::test_disk",
            f"{_STORE}::test_a_server_on_a_store_that_is_read_only_says_so_in_one_sentence",
        ),
    ),
    Row(
        "database locked by another process",
        "answers go on; a change waits, after 15 s it is refused with `store_busy`",
        "nothing",
        (
            f"{_STORE}::test_a_change_waits_for_who_holds_the_registry_and_answers_do_not",
            f"{_REGISTRY}/test_opening.py::test_a_locked_database",
            f"{_REGISTRY}/test_snapshot.py::"
            "test_the_watcher_survives_an_exclusively_locked_database",
        ),
    ),
    Row(
        "the clock jumps",
        "nothing: times are measured on a clock that nobody sets, and histories are in the order "
        "of what happened",
        "nothing",
        (
            "tests/faults/test_clock.py::test_nothing_in_the_server_is_decided_by_the_wall_clock",
            "tests/faults/test_clock.py::test_a_history_stays_in_the_order_in_which_it_happened",
        ),
    ),
    Row(
        "a stored adapter is damaged before it is loaded, or while it is evicted",
        "409 `adapter_not_loadable`, then 404 `quarantined` with the reason; all others go on",
        "nothing: registering the same source again repairs it",
        (
            "tests/server/vllm_plugin/test_resolver.py::"
            "test_a_bit_that_turned_over_is_found_before_the_adapter_is_served",
            "tests/server/vllm_plugin/test_reading.py::"
            "test_what_changed_on_the_disk_since_it_was_last_read_is_refused",
            f"{_GATEWAY}/test_guard.py::"
            "test_damaged_files_are_quarantined_with_what_is_wrong_with_them",
            "tests/adapters/store/test_publish.py::test_a_damaged_blob_is_replaced",
        ),
    ),
    Row(
        "a client sends slowly, or half a request",
        "its answer, if it gets to the end within `header_timeout` and `body_timeout`",
        "nothing; others do not wait for it",
        (
            f"{_CLIENTS}::test_a_body_that_comes_byte_by_byte_keeps_nobody_waiting",
            f"{_CLIENTS}::test_a_request_that_breaks_off_leaves_nothing",
            f"{_GATEWAY}/test_client_connection.py::test_headers_that_do_not_arrive",
            f"{_GATEWAY}/test_client_connection.py::test_a_body_that_does_not_arrive",
        ),
    ),
    Row(
        "a client reads slowly",
        "everything, at its own speed",
        "nothing",
        (f"{_CLIENTS}::test_a_client_that_reads_slowly_gets_everything",),
    ),
    Row(
        "a client never reads",
        "its connection is cut after `write_timeout`",
        "its answer; its place is free, and the server's memory bounded",
        (f"{_CLIENTS}::test_a_client_that_never_reads_is_cut_off_and_costs_little_memory",),
    ),
    Row(
        "a client hangs up",
        "-",
        "its answer; the engine stops making it",
        (
            f"{_LIVE}::test_a_client_that_hangs_up_aborts_the_generation_in_the_engine",
            f"{_GATEWAY}/test_queue.py::test_a_client_that_hangs_up_leaves_the_queue",
        ),
    ),
    Row(
        "10,000 idle connections",
        "others are answered",
        "nothing",
        (f"{_CLIENTS}::test_ten_thousand_idle_connections_keep_nobody_from_an_answer",),
    ),
    Row(
        "1,000 requests at once",
        "an answer, or 429 with Retry-After where the queue is full",
        "nothing",
        (
            f"{_CLIENTS}::test_a_burst_is_answered_or_told_to_come_back",
            f"{_CLIENTS}::test_a_burst_that_the_queue_may_hold_loses_nothing",
        ),
    ),
    Row(
        "one tenant floods: with many keys or adapters, in others' names, with priorities, answers "
        "by the dozen, long prompts",
        "who floods waits, or gets 429 with Retry-After; others take turns with it, by weight",
        "nothing",
        (
            f"{_FAIR}::test_a_flood_is_passed_by_whoever_else_asks",
            f"{_FAIR}::test_weights_hold_whatever_the_number_of_keys",
            f"{_FAIR}::test_a_flood_in_every_slot_leaves_one_at_once",
            f"{_FAIR}::test_answers_by_the_dozen_take_no_more_places_than_the_share",
            f"{_FAIR}::test_prompts_of_all_keys_are_read_one_after_the_other",
            f"{_FAIR}::test_keys_of_one_tenant_share_its_part_of_the_queue",
            "tests/engine/test_fair_shares.py::test_who_asks_in_anothers_flood_is_not_behind_it",
        ),
    ),
    Row(
        "a job's process is killed at any stage",
        "the job is `interrupted`, and goes on where it was when it is resumed",
        "the stage or shard it was in",
        (
            f"{_QUANTIZE}/jobs/test_job.py::test_killed_at_ten_random_moments",
            f"{_QUANTIZE}/pipeline/test_resuming.py::test_killed_at_ten_random_moments",
            f"{_QUANTIZE}/merging/test_resuming.py::test_killed_and_run_again",
            f"{_QUANTIZE}/pipeline/test_end_to_end.py::test_gptq_killed_while_it_quantizes",
            f"{_QUANTIZE}/pipeline/test_resuming.py::"
            "test_killed_between_registering_and_the_rename",
        ),
    ),
    Row(
        "registering is killed at any step",
        "-",
        "nothing: a name that dangles is never seen, `gc` removes what is left",
        (f"{_REGISTRY}/test_crash.py::test_a_kill_at_any_step_loses_nothing",),
    ),
    Row(
        "two servers and many command lines on one store",
        "all of them the same registry, within a second",
        "nothing",
        (
            f"{_STORE}::test_two_servers_and_many_command_lines_share_one_registry",
            f"{_REGISTRY}/test_concurrency.py::test_two_processes_register_under_the_same_name",
        ),
    ),
    Row(
        "requests that no client should send",
        "4xx in OpenAI's shape, never a 500, never silence",
        "nothing",
        (
            f"{_GATEWAY}/test_fuzz.py::test_documents",
            f"{_GATEWAY}/test_fuzz.py::test_bodies_that_are_no_json",
            f"{_GATEWAY}/test_fuzz.py::test_headers",
            f"{_GATEWAY}/test_fuzz.py::test_raw_bytes",
            "tests/faults/test_schema.py::test_every_operation_keeps_its_word",
        ),
    ),
)


def table() -> str:
    """The matrix in Markdown; a test is named by its function, and linked to its file."""
    lines = ["| fault | a client sees | lost | tests |", "|---|---|---|---|"]
    for row in MATRIX:
        tests = "<br>".join(_link(test) for test in row.tests)
        lines.append(f"| {row.fault} | {row.sees} | {row.lost} | {tests} |")
    return "\n".join(lines)


def _link(test: str) -> str:
    file, _, function = test.partition("::")
    return f"[`{function.removeprefix('test_')}`](../{file})"


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
