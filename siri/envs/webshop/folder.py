"""Official product data as a folder: which of its files are the products, their attributes and their nouns."""

from pathlib import Path

from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue, load_catalogue

_NAMES = {
    "products": ("items_shuffle.json", "items_shuffle_1000.json", "products.json"),
    "attributes": ("items_ins_v2.json", "items_ins_v2_1000.json", "attributes.json"),
    "title_nouns": ("title_nouns.json",),
}


def load_folder(path: str | Path) -> Catalogue:
    """The catalogue of a folder with the official files, all products or the 1000 of the small download, or with
    `products.json` and `attributes.json`; `title_nouns.json` beside them tells the nouns of the product names.

    Raises UserError where products or attributes are missing or cannot be read.
    """
    folder = Path(path).expanduser()
    found = {
        kind: next((folder / name for name in names if (folder / name).is_file()), None)
        for kind, names in _NAMES.items()
    }
    products, attributes = found["products"], found["attributes"]
    if products is None or attributes is None:
        missing = "products" if products is None else "attributes"
        raise UserError(
            f"{folder}: none of {', '.join(_NAMES[missing])} is there; point to the folder with the official files"
        )
    return load_catalogue(products, attributes, title_nouns=found["title_nouns"])
