"""What `adapterctl serve` prints for the person who started it."""

from __future__ import annotations

import json

from adapters.frozen import Lane
from adapters.lanes.choosing import deployed_lane
from adapters.registry.snapshot import Snapshot


def ready_banner(
    url: str, base: str, snapshot: Snapshot, seconds: float, *, key_needed: bool = False
) -> str:
    """The URL, and a curl line and an openai snippet that work as printed; where a key is needed,
    with one in ADAPTERCTL_KEY."""
    lanes: dict[str, Lane | None] = {}
    for name, one in snapshot.adapters.items():
        if one.default_tag in one.tags:
            version = one.versions[one.tags[one.default_tag]]
            lane = deployed_lane(one, version)
            if lane is Lane.MERGED or version.base == base:
                lanes[name] = lane
    answered = sorted(name for name, lane in lanes.items() if lane is not None)
    # Those need no engine that may still have to be started.
    hot = [name for name in answered if lanes[name] is Lane.HOT]
    example = (hot or answered or [base])[0]
    more = f" and {len(answered) - 8} more" if len(answered) > 8 else ""
    names = ", ".join([base, *answered[:8]]) + more
    header, imports, key = "", "", '"none"'
    if key_needed:
        header = '-H "Authorization: Bearer $ADAPTERCTL_KEY" '
        imports, key = "import os\n  ", 'os.environ["ADAPTERCTL_KEY"]'
    question = "Where do ships sleep at night?"
    body = {
        "model": example,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 64,
        "temperature": 0,
    }
    return f"""
adapterctl is ready at {url} ({seconds:.0f} s). It answers as: {names}

  curl -s {url}/v1/chat/completions {header}-H 'Content-Type: application/json' \\
    -d '{json.dumps(body)}'

  {imports}from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key={key})
  answer = client.chat.completions.create(
      model="{example}",
      messages=[{{"role": "user", "content": "{question}"}}],
      max_tokens=64,
      temperature=0,
  )
  print(answer.choices[0].message.content)

Documentation: {url}/docs · metrics: {url}/metrics · stop with Ctrl-C
"""
