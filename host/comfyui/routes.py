"""The page's side of the pack: a route that tells what a model file is, and the graph that is about to run.

Registered once, with the server that runs us; in a process without one there is nothing to do.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from .. import before_run

FACTS = "/sana-nodes/facts"


def register(facts: Callable[[str, str, str], dict]) -> None:
    """Add the route; ``facts``: node class, name of a file and weight_dtype to what is answered."""
    module = sys.modules.get("server")
    instance = getattr(getattr(module, "PromptServer", None), "instance", None)
    if module is None or instance is None or any(handler is remember for handler in instance.on_prompt_handlers):
        return

    async def answer(request):
        query = [request.query.get(name, "") for name in ("node", "name", "weight_dtype")]
        return module.web.json_response(await asyncio.to_thread(facts, *query))

    instance.routes.get(FACTS)(answer)
    instance.add_on_prompt_handler(remember)


def remember(request: dict) -> dict:
    """Note the graph of a request to run; the request itself is not changed."""
    before_run.remember(request.get("prompt"))
    return request
