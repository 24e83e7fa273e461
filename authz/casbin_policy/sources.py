"""What `CasbinPolicy` documents point at, read once before they are compiled: files and stores.

The only part of this package that does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from casbin import Model
from casbin.persist import Adapter

from authz.casbin_policy.definition import Row
from authz.casbin_policy.documents import CasbinPolicy
from garrison.documents import Document

# 100,000 rows are about 5 MB.
MAX_SOURCE_BYTES = 64 * 1024 * 1024

AdapterFactory = Callable[[], Adapter]

# Section names under which an adapter may deliver rows, known to the model or not: what the model does not
# know must be reported, and pycasbin's loader drops it.
_ROW_KEYS = tuple(f"{section}{number}" for section in "pg" for number in ("", *map(str, range(2, 10))))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a source cannot be used."""

    message: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Texts by (document file, path as written), and rows by the name of their adapter.

    `paths` are the files that were read: a watcher watches them too. `content` is what a snapshot's version
    must cover beside the documents.
    """

    files: Mapping[tuple[str, str], str | Unreadable] = field(default_factory=dict)
    rows: Mapping[str, tuple[Row, ...] | Unreadable] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()

    @property
    def content(self) -> tuple[bytes, ...]:
        """Everything that was read, in a fixed order."""
        files = (f"{key}\n{self.files[key]}".encode("utf-8", "surrogatepass") for key in sorted(self.files))
        return (*files, *(_content(name, self.rows[name]) for name in sorted(self.rows)))


def load_sources(
    loaded: Iterable[tuple[CasbinPolicy, Document]], adapters: Mapping[str, AdapterFactory]
) -> Sources:
    """Read every file and adapter that the documents name; what cannot be read is `Unreadable`.

    Files are found relative to their document and must be below its folder: whoever writes policies does not
    thereby read this machine. Adapters are those of the settings, by name; documents cannot name a class.
    """
    files: dict[tuple[str, str], str | Unreadable] = {}
    rows: dict[str, tuple[Row, ...] | Unreadable] = {}
    paths: dict[Path, None] = {}
    for policy, document in loaded:
        for name in (policy.spec.modelFile, policy.spec.policyFile):
            if name is not None and (document.file, name) not in files:
                path = Path(document.file).parent / name
                files[document.file, name] = _read(path, Path(document.file).parent)
                paths[path] = None
        adapter = policy.spec.adapter
        if adapter is not None and adapter.name in adapters and adapter.name not in rows:
            rows[adapter.name] = _rows(adapters[adapter.name])
    return Sources(files, rows, tuple(paths))


def _content(name: str, rows: tuple[Row, ...] | Unreadable) -> bytes:
    lines = [repr(rows)] if isinstance(rows, Unreadable) else [f"{row.key} {row!r}" for row in rows]
    return "\n".join([name, *lines]).encode("utf-8", "surrogatepass")


def _read(path: Path, folder: Path) -> str | Unreadable:
    try:
        # Both resolved: a ConfigMap's files are links into a hidden folder beside them.
        if not path.resolve().is_relative_to(folder.resolve()):
            return Unreadable("is not below the folder of its document")
        with path.open("rb") as file:
            content = file.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        return Unreadable(f"cannot be read: {(error.strerror or str(error)).lower()}")
    except ValueError:
        return Unreadable("is not a path")
    if len(content) > MAX_SOURCE_BYTES:
        return Unreadable(f"has more than the {MAX_SOURCE_BYTES} bytes that are read")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Unreadable("is not valid UTF-8")


def _rows(factory: AdapterFactory) -> tuple[Row, ...] | Unreadable:
    model = Model()
    for key in _ROW_KEYS:
        model.add_def(key[0], key, "_, _")
    try:
        if factory().load_policy(model) is not None:
            return Unreadable("is an asynchronous adapter, which is not supported")
    except Exception as error:  # noqa: BLE001 - whatever a third party's store raises, the load has failed
        return Unreadable(f"cannot be read: {type(error).__name__}")
    rows: list[Row] = []
    for key in _ROW_KEYS:
        for values in model[key[0]][key].policy:
            rows.append(Row([str(value) for value in values], key, len(rows), 0))
    return tuple(rows)
