"""The code of the page about these tools, which the documentation's own tests cannot run without them."""

from typing import Any

from tests.documentation import blocks

PAGE = "docs/how-to/tracing.md"


def run_block(about: str) -> dict[str, Any]:
    """Run the block of the page that imports a tool; return its names, which keep its receivers alive."""
    (code,) = [block.code for block in blocks(PAGE, "python") if f"import {about}" in block.code]
    names: dict[str, Any] = {}
    exec(compile(code, PAGE, "exec"), names)
    return names
