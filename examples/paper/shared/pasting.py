"""Results on a page of docs: the text between two marks is replaced, pictures are copied beside."""

from collections.abc import Sequence
from pathlib import Path

from salmon import InputError
from salmon.files import write_atomically


def paste(page: Path, name: str, text: str, pictures: Sequence[Path]) -> None:
    """Replace what a page says of an experiment.

    Args:
        page: Markdown that holds the lines ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.
        name: Of the experiment.
        text: What to say between them.
        pictures: Files that are copied into ``images`` beside the page, and shown.

    Raises:
        InputError: If the page has no such lines.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise InputError(
            f"--write {page} has no part on {name}; the lines {begin} and {end} are needed, once "
            "each."
        )
    shown = []
    for picture in pictures:
        copy = page.parent / "images" / f"{name}-{picture.name}"
        content = picture.read_bytes()
        write_atomically(copy, lambda file, content=content: file.write(content))  # type: ignore[misc]
        shown.append(f"![{name}: {picture.stem}](images/{copy.name})")
    head, rest = old.split(begin)
    tail = rest.split(end)[1]
    body = "\n\n".join([begin, text, *shown, end])
    new = head + body + tail
    write_atomically(page, lambda file: file.write(new.encode()))
