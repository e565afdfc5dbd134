"""The page's script: its modules one after another, in one file that needs no other."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).parent

_IMPORT = re.compile(r'^import (\{[^}]*\}|\* as \w+) from "\./([\w/]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)


def script(main: str = "main.js") -> str:
    """All modules that `main` imports, and `main` at the end.

    A page from file:// may not import modules, so each becomes a function that returns what it exports. Only the
    forms of import and export that these modules use are known.
    """
    done: dict[str, str] = {}
    _add(main, done)
    return "'use strict';\nconst modules = {};\n" + "".join(done.values())


def _add(name: str, done: dict[str, str]) -> None:
    source = (FOLDER / name).read_text("utf-8")
    for _, other in _IMPORT.findall(source):
        if other not in done:
            _add(other, done)
    body = _IMPORT.sub(lambda found: _constant(found[1], found[2]), source)
    exported = [found[1] for found in _EXPORT.finditer(body)]
    body = _EXPORT.sub("", body)
    if left := re.search(r"^(?:import|export) .*", body, re.MULTILINE):
        raise ValueError(f"{name}: {left[0]!r} is a form of import or export that {__name__} does not know")
    done[name] = f'modules["{name}"] = (() => {{\n{body}return {{ {", ".join(exported)} }};\n}})();\n'


def _constant(names: str, module: str) -> str:
    left = names.removeprefix("* as ") if names.startswith("*") else names.replace(" as ", ": ")
    return f'const {left} = modules["{module}"];\n'


def digest(text: str) -> str:
    """As a Content-Security-Policy names a script or style that may stand in the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
