"""YAML 1.2, read by the library with which DVC reads and writes it: `no` is a word, 010 is ten, and 1:30 is text.

A reader of YAML 1.1 would take these three for false, 8 and 90.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from custom_transformer.errors import shown

MAX_ALIASED = 100  # characters that an alias may stand for
FLOAT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$", re.ASCII)


def load_yaml(text: str) -> Any:
    """The plain values in `text`; raises ValueError, in one line, for what is not YAML.

    Refused as well are a key that stands twice in a mapping, and an alias for more than a word.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Composer, reader.Constructor, reader.Resolver = _Composer, _Constructor, _Resolver
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an anchor that stands twice
            return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except (YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError) as error:
        # The library's own constructors stumble over a tag whose value is of another kind, such as !!int ''.
        raise ValueError(str(error)) from None


class _Composer(Composer):
    """An alias for a list of aliases could make a short file a huge value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            event = self.parser.peek_event()
            node = self.anchors.get(event.anchor)
            if node is not None and not (isinstance(node, ScalarNode) and len(node.value) <= MAX_ALIASED):
                raise ComposerError(
                    problem=f"the alias *{event.anchor} stands for more than a word; write it out",
                    problem_mark=event.start_mark,
                )
        return super().compose_node(parent, index)


class _Constructor(SafeConstructor):
    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if not isinstance(key_node, ScalarNode):
            problem = "an unhashable key; only a word can be one"
        elif key in mapping:
            problem = f"key {shown(key_node.value)} stands twice"
        else:
            return True
        raise ConstructorError(problem=problem, problem_mark=key_node.start_mark)


class _Resolver(VersionedResolver):
    """The library takes 5e1 for a number and .5e1 for text; YAML 1.2 takes both for numbers."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        plain = kind is ScalarNode and implicit[0] and tag == self.DEFAULT_SCALAR_TAG
        return Tag(suffix="tag:yaml.org,2002:float") if plain and FLOAT.match(value) else tag
