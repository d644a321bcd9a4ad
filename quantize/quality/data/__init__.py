"""The texts that come with adapterctl (README.md beside this file says what each is for)."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

# What a quantizer sees when no --calibration is given.
CALIBRATION = _HERE / "calibration.jsonl"
# Held-out texts on which general quality, hence forgetting, is measured.
GENERAL = _HERE / "general.jsonl"
# Answered greedily, side by side; without --eval the reference's answers are the task set.
QUESTIONS = _HERE / "questions.jsonl"
# General abilities, item by item; the folder holds task files of lm-evaluation-harness as well.
REGRESSION = _HERE / "regression"
