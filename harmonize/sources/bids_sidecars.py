"""Which JSON files say something of an image: the one beside it, and in BIDS those that its folders share.

BIDS calls it the inheritance principle: ``task-rest_bold.json`` or ``T1w.json``, in an image's folder or in one above,
is about every image with the same suffix and at least these entities. Where two say different things, the nearest
counts, and of one folder's the one with most entities.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harmonize.raw_tree import Folder
from harmonize.sources.sidecars import Content, Sidecar, content_of, sidecar_of

_ENTITY = re.compile(r"[A-Za-z0-9]+-[^_-]+")
_SUFFIX = re.compile(r"[A-Za-z0-9]+")


@dataclass(frozen=True)
class _Shared:
    """A sidecar that may be about several images."""

    path: Path
    entities: frozenset[str]

    @cached_property
    def content(self) -> Content:
        """Read once, however many images it is about."""
        return content_of(self.path)


@dataclass(slots=True)
class Sidecars:
    """The JSON files of a tree.

    Attributes:
        own: By the path of their image without suffix, relative to the root.
        shared: By folder relative to the root, and suffix; those of one folder with fewest entities first.
    """

    own: dict[str, Path] = field(default_factory=dict)
    shared: dict[tuple[str, str], list[_Shared]] = field(default_factory=dict)
    _used: set[Path] = field(default_factory=set)

    def take(self, folder: Folder, name: str, *, beside: bool) -> bool:
        """Whether a JSON file is, or by its name may be, a sidecar.

        Args:
            folder: Where it lies.
            name: Of the file.
            beside: Whether an image of the same name lies there; then it is about that image alone.
        """
        stem = name[: -len(".json")]
        if beside:
            self.own[folder.key(stem)] = folder.path / name
            return True
        found = entities_of(stem)
        if found is None:
            return False
        entities, suffix = found
        there = self.shared.setdefault((folder.relative, suffix), [])
        there.append(_Shared(folder.path / name, entities))
        there.sort(key=lambda one: (len(one.entities), one.path.name))
        return True

    def of(self, key: str) -> Sidecar:
        """What the sidecars of an image say.

        Args:
            key: Its path relative to the root, without suffix.
        """
        contents = [one.content for one in self._inherited(key)]
        if key in self.own:
            contents.append(content_of(self.own[key]))
        return sidecar_of(contents)

    def unused(self) -> Iterator[Path]:
        """Files with names of sidecars that were about no image that `of` was asked about."""
        for there in self.shared.values():
            yield from (one.path for one in there if one.path not in self._used)

    def _inherited(self, key: str) -> Iterator[_Shared]:
        """Those of the folders of an image, from the root down."""
        *folders, stem = key.split("/")
        found = entities_of(stem)
        if found is None or not any(entity.startswith("sub-") for entity in found[0]):
            return
        entities, suffix = found
        for depth in range(len(folders) + 1):
            for one in self.shared.get(("/".join(folders[:depth]), suffix), ()):
                if one.entities <= entities:
                    self._used.add(one.path)
                    yield one


def entities_of(stem: str) -> tuple[frozenset[str], str] | None:
    """Entities and suffix of a BIDS name, or None where it is none.

    Example:
        >>> entities, suffix = entities_of("sub-01_task-rest_bold")
        >>> sorted(entities), suffix
        (['sub-01', 'task-rest'], 'bold')
        >>> entities_of("T1w"), entities_of("my_notes")
        ((frozenset(), 'T1w'), None)
    """
    *entities, suffix = stem.split("_")
    if _SUFFIX.fullmatch(suffix) is None or not all(map(_ENTITY.fullmatch, entities)):
        return None
    return frozenset(entities), suffix
