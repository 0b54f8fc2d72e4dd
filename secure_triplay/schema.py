"""Files that people write: YAML in, frozen and validated models out, and errors that name key, reason and mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from secure_triplay.errors import ConfigError


class Frozen(BaseModel):
    """Base of parts of studies, ledgers and reports: immutable, strict, closed to unknown keys, all numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


MOST_ALIASED = 1_000_000
"""Letters and values that a file's aliases may add to what it says itself."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a key given twice is an error instead of a silent override.

    A value that cannot be one (30 February, a number of 5,000 digits) is an error with its line, too. So are aliases
    that stand inside what they repeat, or repeat so much that no memory would hold it ("billion laughs"), and numbers
    that YAML 1.1 reads otherwise than people do: 010 is 8 there, and 1:30 is 90.
    """

    def get_single_node(self) -> yaml.Node | None:
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            whole: dict[yaml.Node, int | None] = {}
            in_full = _size(root, whole)
            if in_full - sum(_own_size(node) for node in whole) > MOST_ALIASED:
                raise yaml.composer.ComposerError(
                    None, None, "its aliases repeat more than memory would hold", root.start_mark
                )
        return root

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int | float) and _OTHER_BASE.match(str(node.value)):
                raise ValueError(
                    f"YAML reads {node.value} as {value:g}; write a number without leading zeros or colons, and text "
                    "in quotes"
                )
            if isinstance(value, int):
                str(value)  # a long hexadecimal one is a number that could not be shown
            return value
        except (ValueError, TypeError, OverflowError, LookupError) as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


_OTHER_BASE = re.compile(r"[-+]?(0[0-9_]*[0-9]$|[0-9_]+:)")
"""Octal, and base 60; hexadecimal and binary numbers say what they are."""


def _size(node: yaml.Node, whole: dict[yaml.Node, int | None]) -> int:
    """Letters and values of a node with its aliases written out; `whole` keeps those known, None while one is open."""
    known = whole.get(node, 0)
    if known is None:
        raise yaml.composer.ComposerError(
            None, None, "an alias stands inside what it repeats", node.start_mark
        )
    if not known:
        whole[node] = None
        known = whole[node] = _own_size(node) + sum(_size(inner, whole) for inner in _inside(node))
    return known


def _own_size(node: yaml.Node) -> int:
    return 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)


def _inside(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            raise yaml.constructor.ConstructorError(
                None, None, "merge keys (<<) are not read here; write the keys out", key_node.start_mark
            )
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(
                None, None, "a list or a mapping stands where a key is due", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} given twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_mapping(path: Path, kind: str, fix: str) -> dict[str, Any]:
    """The keys of a YAML file that is to be `kind` ("a study"); `fix` says where there is a good one.

    Raises ConfigError where the file is missing, unreadable, empty, not YAML, or anything else than keys.
    """
    return mapping_of(read_bytes(path, fix), path, kind, fix)


def mapping_of(raw: bytes, path: Path, kind: str, fix: str) -> dict[str, Any]:
    """The keys of `read_mapping` in the bytes of its file. Raises ConfigError as that does."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the file cannot be read: {error}", where=str(path), fix="it must be UTF-8 text"
        ) from error
    content = parse_yaml(text, str(path), fix)
    if content is None:
        raise ConfigError("the file is empty", where=str(path), fix=fix)
    if not isinstance(content, dict):
        raise ConfigError(f"{kind} is a mapping of keys", where=str(path), fix=fix)
    return content


def read_bytes(path: Path, fix: str) -> bytes:
    """The content of a file. Raises ConfigError where it is missing, no file, unreadable, or can be none."""
    try:
        if path.is_fifo() or path.is_char_device():
            raise ConfigError(
                "this can be read only once, and its hash is to be noted, too",
                where=str(path),
                fix="save it as a file, and name that",
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=str(path), fix=f"check the path; {fix}") from error
    except OSError as error:
        raise ConfigError(
            f"the file cannot be read: {error.strerror}", where=str(path), fix=f"name a file; {fix}"
        ) from error
    except ValueError as error:  # NUL, and half of a surrogate pair
        raise ConfigError(
            "its path has a letter that no file's name can have",
            where=ascii(str(path)),
            fix=f"check the path; {fix}",
        ) from error


def parse_yaml(text: str, where: str, fix: str = "start from one of configs/") -> Any:
    """The plain content of YAML: the one way from YAML to values. Raises ConfigError with the line."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  (a SafeLoader)
    except RecursionError as error:
        raise ConfigError(
            "this is not YAML that anybody wrote: its brackets are nested too deep", where=where, fix=fix
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}, line {mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or error
        raise ConfigError(
            f"this is not YAML: {problem}", where=line, fix="mend the line or the one above it"
        ) from error


def lists_to_tuples(value: Any) -> Any:
    """Strict models want tuples where YAML has lists, and floats where YAML has whole numbers."""
    if isinstance(value, list):
        return tuple(lists_to_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: lists_to_tuples(item) for key, item in value.items()}
    return value


_MOST_TOLD = 5


def readable_error(error: ValidationError, where: str, module: str, fix: str) -> ConfigError:
    """The first few problems of a validation, each with its key and how to mend it; `fix` says what helps with all."""
    items = error.errors()
    inside = {item["loc"][:length] for item in items for length in range(len(item["loc"]))}
    # a list is not too short where an entry that it has is wrong
    problems = [
        _problem(item, module) for item in items if item["type"] != "too_short" or item["loc"] not in inside
    ]
    problems = list(dict.fromkeys(problems))
    more = len(problems) - _MOST_TOLD
    what = "\n".join(problems[:_MOST_TOLD]) + (f"\n... and {more} more" if more > 0 else "")
    return ConfigError(what, where=where, fix=fix)


def _problem(item: Any, module: str) -> str:
    *inner, last = item["loc"] or ("",)
    named = item["type"] == "extra_forbidden"  # the last part is then a key that stands in the file
    kinds = ("fashion-mnist", "manifest")
    parts = [str(part) for part in inner if part not in kinds and not _BRANCH.fullmatch(str(part))]
    parts += [str(last)] if named or not _BRANCH.fullmatch(str(last)) else []
    key = ".".join(part for part in parts if part)
    if named:
        known = sorted(_known_keys(module))
        if parts[-1] in known:
            return f"{key}: unknown key here; it belongs to another part of the file"
        nearest = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        return f"{key}: unknown key" + (f"; did you mean `{nearest[0]}`?" if nearest else "")
    if item["type"] == "missing":
        return f"{key}: missing; it has no default"
    bound = _BOUNDS.get(item["type"])
    message = item["msg"].removeprefix("Value error, ")
    if bound is not None:
        message = bound.format(**item["ctx"]) if item.get("ctx") else bound
    elif item["type"] == "value_error":
        named = f"{key}: " if key else ""  # what is wrong between several keys belongs to none
        return f"{named}{message}"  # a sentence of our own, which names what was given where it helps
    given = item.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) or given is None else ""
    return f"{key}: {message}{shown}"


_BRANCH = re.compile(r"(tuple|literal|function-[a-z]+|dict|list|nullable)\[.*\]|DpOn|DpOff")
"""What pydantic puts into the path of a value that may be of several kinds; it stands in no file."""

_BOUNDS = {
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
    "literal_error": "must be {expected}",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have no more than {max_length} entries",
    "string_too_short": "must have {min_length} letters or more",
    "string_too_long": "must have no more than {max_length} letters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "date_type": "must be a date, such as 2026-01-31",
    "invalid_key": "a key must be text",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
    "union_tag_not_found": "{discriminator} is missing",
}


def _known_keys(module: str) -> set[str]:
    """Of every model in that module, or in that package."""
    models = (each for each in Frozen.__subclasses__() if f"{each.__module__}.".startswith(f"{module}."))
    return {key for model in models for key in model.model_fields}
