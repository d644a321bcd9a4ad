"""The console script's entry: everything that can happen ends here in one line and an exit code.

Nothing heavy is imported at the top, so that even Ctrl-C during start-up ends quietly.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from adapters.errors import AdapterctlError
    from server.cli.session import Session

INTERRUPTED = 130
# What only the extras install; the registry works without.
_EXTRAS = {"torch", "transformers", "vllm"}
COMPLETION_VARIABLE = "_ADAPTERCTL_COMPLETE"


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    for stream in (sys.stdout, sys.stderr):
        # What a narrow locale cannot show is escaped, in JSON validly so; it never fails.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = run(sys.argv[1:])
    except ImportError as error:
        code = _shadowed(error, sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED
    # All is done and said: Ctrl-C while the interpreter ends must not make a failure of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not through the interpreter's own exit: flushing a closed pipe there prints a complaint.
    sys.exit(_flush(code))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code, prints at most one line of complaint."""
    import click

    from adapters.errors import AdapterctlError, UsageError
    from server.cli.app import root
    from server.cli.output import OutputFailed, note
    from server.cli.session import Session

    session = Session(json=_asks_for_json(arguments))
    if COMPLETION_VARIABLE in os.environ:
        # Exits by itself.
        root.main(
            list(arguments),
            prog_name="adapterctl",
            complete_var=COMPLETION_VARIABLE,
            obj=session,
        )
    try:
        with root.make_context("adapterctl", list(arguments), obj=session) as context:
            root.invoke(context)
        sys.stdout.flush()
        code = session.exit_code
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        code = _report(session, UsageError(_usage_sentence(error)))
    except AdapterctlError as error:
        code = _report(session, error)
    except (KeyboardInterrupt, click.Abort) as stop:
        code = _interrupted(session, str(stop))
    except BrokenPipeError:
        code = _no_reader()
    except OutputFailed as error:
        _no_reader()
        note(f"adapterctl: {error}")
        code = 1
    except Exception as error:  # noqa: BLE001  the boundary: logged, and said in one line
        code = _report(session, _unexpected(session, error))
    finally:
        session.close()
    return code


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Known before parsing, so that a usage error is answered in JSON too."""
    before_dashes = list(arguments)
    if "--" in before_dashes:
        before_dashes = before_dashes[: before_dashes.index("--")]
    return "--json" in before_dashes


def _report(session: Session, error: AdapterctlError) -> int:
    from server.cli.output import emit_json, note, one_line

    try:
        note(f"adapterctl: {one_line(error.message)}")
        if session.json:
            emit_json(error.body())
    except BrokenPipeError:
        _no_reader()
    return error.exit_code


def _interrupted(session: Session, sentence: str) -> int:
    from server.cli.output import emit_json, note

    if sentence:
        note(f"adapterctl: {sentence}")
    if session.json:
        message = sentence or "interrupted"
        emit_json(
            {
                "error": {
                    "message": message,
                    "type": "cancelled",
                    "param": None,
                    "code": "interrupted",
                }
            }
        )
    return INTERRUPTED


def _usage_sentence(error: object) -> str:
    import click

    assert isinstance(error, click.ClickException)
    sentence = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "adapterctl"
    return f"{sentence}; see '{command} --help'"


def _unexpected(session: Session, error: Exception) -> AdapterctlError:
    from adapters.errors import AdapterctlError
    from server.cli.crash import write_crash_log
    from server.cli.output import one_line

    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        return AdapterctlError(
            f"this needs {error.name}, which is not installed: install adapterctl[cpu] or "
            "adapterctl[gpu]"
        )
    summary = one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    log = write_crash_log(session.local_root(), error)
    where = f"the details are in {log}" if log else "the details could not be written anywhere"
    return AdapterctlError(f"this is a fault in adapterctl ({summary}); {where}")


def _shadowed(error: ImportError, arguments: Sequence[str]) -> int:
    """Our own imports failed, so nothing of ours but the standard library can say so."""
    import json

    from server.cli.crash import what_shadows_us

    sentence = what_shadows_us(error)
    sys.stderr.write(f"adapterctl: {sentence}\n")
    if _asks_for_json(arguments):
        body = {"message": sentence, "type": "server_error", "param": None}
        sys.stdout.write(json.dumps({"error": {**body, "code": "internal_error"}}) + "\n")
    return 1


def _no_reader() -> int:
    """The reader of stdout went away (`| head`): nothing to say and nobody to say it to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _flush(code: int) -> int:
    """Write out what is buffered; a full disk behind stdout is a failure too."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _no_reader()
    except OSError as error:
        _no_reader()
        sys.stderr.write(f"adapterctl: cannot write the output: {error.strerror}\n")
        return code or 1
    return code


if __name__ == "__main__":
    main()
