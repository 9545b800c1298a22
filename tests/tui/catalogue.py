"""The catalogue of the menu's words: what the source says, what the .po says, and the .mo made from it.

`python -m tests.tui.catalogue` adds new messages of the source to the .po (empty), drops those that are gone, compiles
the .mo, and lists what is still to be translated. Messages with the context `said` are sentences of the use cases; they
are found by their shape, so a place keeps the name that it has in the .po when a variable of the source is renamed.
"""

from __future__ import annotations

import io
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from tests.tui.spoken import shape_of, spoken
from tui.texts import SAID

TUI = Path(__file__).parents[2] / "tui"
PO = TUI / "texts" / "zh" / "LC_MESSAGES" / "ashore.po"
MO = PO.with_suffix(".mo")
_KEYWORDS = {"texts": None, "t": None, "mark": None, "_texts": None, "plural": (1, 2)}


def of_source() -> Catalog:
    """Every message that the source marks, and every sentence that its use cases say."""
    catalogue = Catalog(locale="zh")
    named = {shape_of(str(message.id)): str(message.id) for message in of_po() if message.context == SAID}
    for shape, template in spoken().items():
        catalogue.add(named.get(shape, template), context=SAID, flags=())
    for path in sorted(TUI.rglob("*.py")):
        for _, message, _, _ in extract_from_file("python", path, keywords=_KEYWORDS):
            if message:
                catalogue.add(message, flags=())
    return catalogue


def of_po() -> Catalog:
    return read_po(io.BytesIO(PO.read_bytes()), locale="zh")


def compiled(catalogue: Catalog) -> bytes:
    buffer = io.BytesIO()
    write_mo(buffer, catalogue)
    return buffer.getvalue()


def update() -> None:
    """Bring .po and .mo in step with the source."""
    old, new = of_po(), of_source()
    for message in new:
        known = old.get(message.id, message.context) if message.id else None
        if known is not None:
            message.string = known.string
    new.fuzzy = False
    new.project, new.version, new.header_comment = "Ashore", "0", "# The menu in Chinese."
    new.msgid_bugs_address = new.last_translator = new.language_team = "Ashore"
    new.copyright_holder = "Ashore"
    new.creation_date = new.revision_date = old.creation_date
    buffer = io.BytesIO()
    write_po(buffer, new, width=110, no_location=True, omit_header=False, sort_output=True)
    PO.write_bytes(buffer.getvalue())
    MO.write_bytes(compiled(of_po()))
    for message in of_po():
        if message.id and not any(message.string):
            print("to be translated:", message.id)


if __name__ == "__main__":
    update()
