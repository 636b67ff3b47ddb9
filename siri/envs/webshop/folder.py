"""Official product data as a folder: which of its files are the products, their attributes and their nouns."""

import sys
from pathlib import Path

from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue, load_catalogue
from siri.envs.webshop.stored import FOLDER_NAME, HEADER, fault, open_index

NAMES = {
    "products": ("items_shuffle.json", "items_shuffle_1000.json", "products.json"),
    "attributes": ("items_ins_v2.json", "items_ins_v2_1000.json", "attributes.json"),
    "title_nouns": ("title_nouns.json",),
    "human_goals": ("items_human_ins.json",),
}
_NEEDED = ("products", "attributes")


def find_files(path: str | Path) -> dict[str, Path]:
    """Kind -> file of the folder, those of `NAMES` that are there.

    Raises UserError where products or attributes are missing.
    """
    folder = Path(path).expanduser()
    found = {
        kind: next((folder / name for name in names if (folder / name).is_file()), None)
        for kind, names in NAMES.items()
    }
    for kind in _NEEDED:
        if found[kind] is None:
            raise UserError(
                f"{folder}: none of {', '.join(NAMES[kind])} is there; point to the folder with the official files"
            )
    return {kind: file for kind, file in found.items() if file is not None}


def indexed_files(found: dict[str, Path]) -> dict[str, Path]:
    """Those of the files that an index is made from."""
    return {kind: file for kind, file in found.items() if kind != "human_goals"}


def load_folder(path: str | Path) -> Catalogue:
    """The catalogue of a folder with the official files, all products or the 1000 of the small download, or with
    `products.json` and `attributes.json`; `title_nouns.json` beside them tells the nouns of the product names.

    An index of them that `siri data webshop` has made in the folder is opened in their place, unless they have changed
    since. The folder may also be such an index itself. Raises UserError where products or attributes are missing or
    cannot be read, and for an index that cannot be opened where there is nothing else.
    """
    folder = Path(path).expanduser()
    if (folder / HEADER).is_file():
        if problem := fault(folder):
            raise UserError(f"{folder}: this index cannot be opened, {problem}; make it anew with `siri data webshop`")
        return open_index(folder)
    sources = indexed_files(find_files(folder))
    index = folder / FOLDER_NAME
    if index.is_dir():
        problem = fault(index, sources)
        if problem is None:
            return open_index(index)
        print(f"{index}: not used, {problem}; `siri data webshop --dir {folder}` makes it anew", file=sys.stderr)
    return load_catalogue(sources["products"], sources["attributes"], title_nouns=sources.get("title_nouns"))
