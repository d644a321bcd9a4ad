"""What an artifact brings besides its weights, read from the files around them and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.errors import ArtifactError, InvalidConfig, SourceUnreadable
from adapters.intake.locate import Listing
from adapters.models import BaseDescriptor
from adapters.registry.interrupts import interrupt_deferred
from adapters.serving.document import (
    MAX_PROMPT_BYTES,
    SamplingDefaults,
    Serving,
    ServingChoice,
    check_text,
)
from adapters.serving.generation_config import own_defaults
from adapters.serving.template_check import check_template
from adapters.serving.tokenizer_files import (
    TokenizerFiles,
    added_token_id,
    read_tokenizer_files,
    same_template,
)
from adapters.serving.training import Training, read_training


@dataclass(frozen=True, slots=True)
class Beside:
    """The document to store (perhaps empty), how the adapter was trained, and what to note."""

    serving: Serving
    training: Training
    notes: tuple[str, ...]


def read_beside(source: Path, *, base: BaseDescriptor | None, choice: ServingChoice) -> Beside:
    """All of it for the artifact at `source`; raises ArtifactError subclasses.

    Without a base (none is registered, or none fits) nothing can be called the artifact's own but
    what the user chose.
    """
    listing = _listing(source)
    training = read_training(listing)
    chosen = Serving(
        chat_template=choice.chat_template or None,
        system_prompt=choice.system_prompt or None,
        defaults=choice.defaults,
    )
    if base is None:
        return Beside(chosen, training, ())
    with _own_can_be_left_out():
        own = _Own(listing, base, training, choice).read()
    own = replace(own, serving=_chosen_first(own.serving, choice))
    _check_bounds(own.serving, base)
    return Beside(_tried(own, _base_files(base), choice), training, own.notes)


@contextmanager
def _own_can_be_left_out() -> Iterator[None]:
    """What is wrong with files around the weights need not keep the weights out."""
    try:
        yield
    except InvalidConfig as fault:
        raise InvalidConfig(f"{fault.message}; --weights-only leaves it out") from None


def _listing(source: Path) -> Listing:
    with interrupt_deferred():
        from adapters.intake.formats import find_artifact
    try:
        return find_artifact(source)[0]
    except ArtifactError:
        # Nothing lies beside it, and what is wrong with the place itself is intake's to say.
        return Listing(source, frozenset(), single=True)


@dataclass(frozen=True, slots=True)
class _Found:
    serving: Serving
    files: TokenizerFiles
    notes: tuple[str, ...]


class _Own:
    """The artifact's own: what its files say otherwise than the base's."""

    def __init__(
        self, listing: Listing, base: BaseDescriptor, training: Training, choice: ServingChoice
    ):
        # A format of one file may lie among others that are not its own.
        alone = listing.single or choice.weights_only
        self._directory = None if alone else listing.path
        self._base = base
        self._training = training
        self._choice = choice

    def read(self) -> _Found:
        if self._directory is None:
            return _Found(Serving(), TokenizerFiles(), ())
        files = read_tokenizer_files(self._directory)
        theirs = _base_files(self._base)
        defaults, notes = own_defaults(self._directory, _directory_of(self._base))
        ends, end_notes = self._ends(files, theirs)
        if ends and defaults.stop_token_ids is None:
            defaults = defaults.over(SamplingDefaults(stop_token_ids=ends))
        template = None
        if files.template and not same_template(files.template, theirs.template):
            template = files.template
            notes += _template_notes(files)
        serving = Serving(
            chat_template=template,
            system_prompt=self._training.system_prompt,
            defaults=defaults,
        )
        return _Found(serving, files, notes + end_notes)

    def _ends(
        self, files: TokenizerFiles, theirs: TokenizerFiles
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """An answer ends where the adapter's tokenizer says, besides where the base's does."""
        wanted, present = files.tokens.get("eos_token"), theirs.tokens.get("eos_token")
        directory = _directory_of(self._base)
        if not wanted or present is None or wanted == present or directory is None:
            return (), ()
        found = added_token_id(directory, wanted)
        if found is not None:
            return (found,), ()
        return (), (
            f"its tokenizer ends an answer with '{wanted[:60]}', which is no added token of the "
            "base: answers end with the base's own",
        )


def _template_notes(files: TokenizerFiles) -> tuple[str, ...]:
    if not files.others:
        return ()
    return (f"of its chat templates the default is taken, not {', '.join(files.others)[:200]}",)


def _chosen_first(own: Serving, choice: ServingChoice) -> Serving:
    """What the user says before what the artifact says; an empty text says: nothing."""
    template, system = own.chat_template, own.system_prompt
    if choice.chat_template is not None:
        template = choice.chat_template or None
    if choice.system_prompt is not None:
        system = choice.system_prompt or None
    return Serving(
        chat_template=template,
        system_prompt=system,
        defaults=choice.defaults.over(own.defaults),
    )


def _check_bounds(serving: Serving, base: BaseDescriptor) -> None:
    """Raises InvalidConfig."""
    beyond = [i for i in serving.defaults.stop_token_ids or () if i >= base.vocab_size]
    if beyond:
        raise InvalidConfig(
            f"stop_token_ids: the base has {base.vocab_size} tokens and no token {beyond[0]}"
        )
    if serving.system_prompt is not None:
        check_text(serving.system_prompt, "the system prompt", MAX_PROMPT_BYTES)


def _tried(own: _Found, theirs: TokenizerFiles, choice: ServingChoice) -> Serving:
    """The document, its template tried; a template of the artifact with its own tokens set.

    Raises InvalidConfig.
    """
    serving = own.serving
    with_system = serving.system_prompt is not None
    template, where = serving.chat_template, "the chat template"
    if template is None:
        if with_system and theirs.template is not None:
            base_template = "the base's chat template"
            check_template(
                theirs.template, where=base_template, tokens=theirs.tokens, with_system=True
            )
        return serving
    if choice.chat_template:
        check_template(template, where=where, tokens=theirs.tokens, with_system=with_system)
        return serving
    with _own_can_be_left_out():
        where = own.files.template_file
        used = check_template(template, where=where, tokens=theirs.tokens, with_system=with_system)
    template = _with_tokens(template, used, own.files.tokens, theirs.tokens)
    return serving.model_copy(update={"chat_template": template})


def _with_tokens(
    template: str, used: frozenset[str], mine: Mapping[str, str], theirs: Mapping[str, str]
) -> str:
    """The template with its own tokenizer's special tokens, where the base's are others.

    The engine fills `eos_token` and its like in from the base's tokenizer.
    """
    changed = {name: mine[name] for name in sorted(used & mine.keys())}
    # transformers renders with trim_blocks: the newline after a block is none of the text.
    lines = [
        f"{{% set {name} = {_literal(text)} %}}\n"
        for name, text in changed.items()
        if text != theirs.get(name)
    ]
    return "".join(lines) + template


def _literal(text: str) -> str:
    """A Jinja text literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _directory_of(base: BaseDescriptor) -> Path | None:
    return Path(base.directory) if base.directory is not None else None


def _base_files(base: BaseDescriptor) -> TokenizerFiles:
    """What the base's tokenizer has; nothing where its directory cannot be read."""
    directory = _directory_of(base)
    if directory is None:
        return TokenizerFiles()
    try:
        return read_tokenizer_files(directory)
    except (InvalidConfig, SourceUnreadable):
        # The base serves as it is; what cannot be compared is taken as the adapter's own.
        return TokenizerFiles()
