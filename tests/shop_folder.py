"""A folder with files of the official format: a few invented products, some of them awkward."""

import json
from pathlib import Path

from siri.envs.webshop.procedural import ProceduralAttributes, procedural_records


def write_files(folder: Path, number: int = 30, *, nouns: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    records = list(procedural_records(number))
    records[1]["full_description"] = "lone surrogate \ud83d, \u2028 line, \x00, 日本 ★"
    records[2]["small_description"] = []
    records[3]["customization_options"] = {"Color": [{"value": "a/b"}, {"value": "a/b"}], "size": []}
    records += [records[0], {"asin": "nan"}, {"asin": "B000000000X"}, {"asin": "BAD", "pricing": "cheap"}]
    (folder / "products.json").write_text(json.dumps(records))
    (folder / "attributes.json").write_text(json.dumps(dict(ProceduralAttributes(number))))
    if nouns:
        (folder / "title_nouns.json").write_text(json.dumps({"nouns": {records[0]["name"]: ["thing"]}}))
    return folder
