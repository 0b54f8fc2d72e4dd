"""One planted mistake: which text of which file it replaces, who made it, and who must catch it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from secure_triplay.config import Name
from secure_triplay.errors import ConfigError
from secure_triplay.schema import Frozen, lists_to_tuples, read_mapping, readable_error

FOLDER = Path(__file__).parent
_FIX = "the files in secure_triplay/attacks/planted/ are examples"


class Edit(Frozen):
    """Replace `before`, which stands exactly once in the file, by `after`."""

    file: Annotated[str, Field(pattern=r"^secure_triplay/[\w/]+\.py$")]
    before: Annotated[str, Field(min_length=8)]
    after: str

    def apply(self, text: str) -> str:
        """The text with the mistake in it. Raises ConfigError where `before` is not there exactly once."""
        found = text.count(self.before)
        if found != 1:
            raise ConfigError(
                f"the text to replace stands {found} times in it, not once:\n{self.before}",
                where=self.file,
                fix="bring the planted mistake up to the code of today",
            )
        return text.replace(self.before, self.after)


class Patch(Frozen):
    """A mistake. `caught_by` are pytest node ids, each of which must fail on it."""

    name: Name
    mistake: Annotated[str, Field(min_length=10, description="what the planted code does, in a sentence")]
    made_by: Annotated[str, Field(min_length=5, description="where somebody made it")]
    edits: Annotated[tuple[Edit, ...], Field(min_length=1)]
    caught_by: Annotated[
        tuple[Annotated[str, Field(pattern=r"^tests/[\w/]+\.py::\w+$")], ...], Field(min_length=1)
    ]

    def planted(self, root: Path) -> dict[Path, str]:
        """Every file that changes -> its text with the mistake; nothing is written.

        Raises ConfigError where the code below `root` is not what the patch was written for.
        """
        texts: dict[Path, str] = {}
        for edit in self.edits:
            path = root / edit.file
            if not path.is_file():
                raise ConfigError("there is no such file", where=edit.file, fix=_FIX)
            texts[path] = edit.apply(texts.get(path, path.read_text(encoding="utf-8")))
        return texts


def load_patch(path: Path) -> Patch:
    """The mistake of one file. Raises ConfigError that names key and reason."""
    try:
        patch = Patch.model_validate(lists_to_tuples(read_mapping(path, "a planted mistake", _FIX)))
    except ValidationError as error:
        raise readable_error(error, str(path), __name__, _FIX) from error
    if patch.name != path.stem:
        raise ConfigError(
            f"the mistake calls itself {patch.name!r}", where=str(path), fix="name it like its file"
        )
    return patch


def load_patches(only: Iterable[str] | None = None) -> tuple[Patch, ...]:
    """All planted mistakes by name, or those named. Raises ConfigError for a name that there is none of."""
    patches = tuple(load_patch(path) for path in sorted(FOLDER.glob("*.yaml")))
    if only is None:
        return patches
    wanted, known = tuple(only), {patch.name: patch for patch in patches}
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"no mistake is called {name!r}", where="--only", fix=f"choose from {', '.join(known)}"
            )
    return tuple(known[name] for name in wanted)
