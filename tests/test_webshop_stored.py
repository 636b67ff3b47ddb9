"""A catalogue indexed on disk: equal to the loaded one, and used only while it stands for its files."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from conftest import shared_path
from shop_folder import write_files

from siri.engine.errors import UserError
from siri.envs.webshop import Catalogue, WebShopEnv, load_catalogue
from siri.envs.webshop.folder import find_files, indexed_files, load_folder
from siri.envs.webshop.source import ShopTasks
from siri.envs.webshop.splits import winnable_goals
from siri.envs.webshop.stored import FOLDER_NAME, StoredProducts, fault, write_index


def from_files(folder: Path) -> Catalogue:
    files = find_files(folder)
    return load_catalogue(files["products"], files["attributes"], title_nouns=files.get("title_nouns"))


def index_of(folder: Path) -> Catalogue:
    return write_index(indexed_files(find_files(folder)), folder / FOLDER_NAME)


def assert_equal(opened: Catalogue, loaded: Catalogue) -> None:
    assert tuple(opened.products) == loaded.products  # prices are fields of products
    assert [opened.products[p] for p in range(len(opened.products))] == list(loaded.products)
    assert opened.products[-3:] == list(loaded.products[-3:])
    assert list(opened.goals) == list(loaded.goals)  # weights are fields of goals
    assert (opened.number, opened.skipped) == (loaded.number, loaded.skipped)
    names = [product.title for product in loaded.products]
    assert list(map(opened.nouns, names)) == list(map(loaded.nouns, names))
    goals = Random(0).sample(list(loaded.goals), min(60, len(loaded.goals)))
    for query in [*(goal.instruction.lower() for goal in goals), "red", "nowhere-found", "★", "★ shoe shoe"]:
        assert opened.index.search(query) == loaded.index.search(query)


def test_an_index_gives_the_catalogue_of_its_files(tmp_path: Path) -> None:
    folder = write_files(tmp_path)
    loaded = load_folder(folder)
    assert not isinstance(loaded.products, StoredProducts)
    assert loaded.skipped.malformed == loaded.skipped.repeated == 1
    index_of(folder)
    opened = load_folder(folder)
    assert isinstance(opened.products, StoredProducts)
    assert_equal(opened, loaded)
    assert opened.nouns(opened.products[0].title) == ["thing"]


def test_an_index_of_real_products(tmp_path: Path) -> None:
    folder = shared_path("data", "webshop")
    loaded = from_files(folder)
    write_index(indexed_files(find_files(folder)), tmp_path / "index")
    opened = load_folder(tmp_path / "index")
    assert_equal(opened, loaded)
    assert winnable_goals(opened, range(600)) == winnable_goals(loaded, range(600))
    assert ShopTasks(opened).split_hash("test", 50) == ShopTasks(loaded).split_hash("test", 50)


def test_an_opened_shop_is_shopped_in(tmp_path: Path) -> None:
    folder = write_files(tmp_path)
    catalogue = index_of(folder)
    won = []
    for goal in catalogue.goals[:20]:
        env = WebShopEnv(catalogue, goal)
        env.reset()
        env.step(f"search[{goal.name}]")
        for thing in (goal.asin, *(option[1] for option in goal.options)):
            assert env.step(f"click[{thing}]").action_valid
        won.append(env.step("click[buy now]").success)
    assert sum(won) >= 15  # of the title_nouns of this folder, one product's are of nothing in its title


def touch(folder: Path) -> None:
    file = folder / "attributes.json"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def append(folder: Path) -> None:
    (folder / "products.json").open("a").write("\n")


def rewrite_header(folder: Path, **changes: object) -> None:
    path = folder / FOLDER_NAME / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (touch, "have changed"),
    (append, "have changed"),
    (lambda folder: (folder / "title_nouns.json").unlink(), "have changed"),
    (lambda folder: (folder / "products.json").rename(folder / "items_shuffle.json"), "have changed"),
    (lambda folder: rewrite_header(folder, format=0), "it has format 0"),
    (lambda folder: rewrite_header(folder, limit=5), "the first 5 records only"),
    (lambda folder: rewrite_header(folder, files=3), "it is damaged"),
    (lambda folder: (folder / FOLDER_NAME / "index.json").write_text("[]"), "it is damaged"),
    (lambda folder: (folder / FOLDER_NAME / "index.json").write_text("{"), "it is damaged"),
    (lambda folder: (folder / FOLDER_NAME / "index.json").unlink(), "it is damaged"),
    (lambda folder: (folder / FOLDER_NAME / "impact.npy").unlink(), "it is damaged"),
    (lambda folder: os.truncate(folder / FOLDER_NAME / "products.jsonl", 100), "products.jsonl does not have the size"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_an_index_that_does_not_stand_for_the_files_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], reason: str
) -> None:
    folder = write_files(tmp_path)
    index_of(folder)
    assert fault(folder / FOLDER_NAME, indexed_files(find_files(folder))) is None
    change(folder)
    loaded = load_folder(folder)
    assert not isinstance(loaded.products, StoredProducts)
    assert tuple(loaded.products) == from_files(folder).products
    message = capsys.readouterr().err
    assert reason in message
    assert f"`siri data webshop --dir {folder}` makes it anew" in message
    index_of(folder)  # over what is there, whatever it is
    assert isinstance(load_folder(folder).products, StoredProducts)


def test_an_index_elsewhere_knows_its_files(tmp_path: Path) -> None:
    folder, index = write_files(tmp_path / "data"), tmp_path / "deep" / "index"
    write_index(indexed_files(find_files(folder)), index)
    assert len(load_folder(index).products) == 30
    touch(folder)
    with pytest.raises(UserError, match=r"cannot be opened, the files that it was made from have changed; make it"):
        load_folder(index)
    for file in folder.iterdir():
        file.unlink()
    assert len(load_folder(index).products) == 30  # on a machine without the files it is all there is


def test_nothing_but_an_index_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path / "data")
    files = indexed_files(find_files(folder))
    with pytest.raises(UserError, match=r"holds other files and no index\.json"):
        write_index(files, folder)
    monkeypatch.chdir(folder)
    for index in (Path("."), Path("/")):  # neither has a name
        with pytest.raises(UserError, match=r"holds other files and no index\.json"):
            write_index(files, index)
    (tmp_path / "file").write_text("")
    for index in (tmp_path / "file" / "index", tmp_path / "file"):
        with pytest.raises(UserError, match=r"index: '.*' cannot be written"):
            write_index(files, index)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file"]
    assert sorted(path.name for path in folder.iterdir()) == ["attributes.json", "products.json", "title_nouns.json"]


def test_bad_files_leave_the_former_index(tmp_path: Path) -> None:
    folder = write_files(tmp_path)
    index_of(folder)
    before = (folder / FOLDER_NAME / "index.json").read_bytes()
    for text, message in (("[]", "none of the records is a product"), ("[{}", "is not the JSON it must be")):
        (folder / "products.json").write_text(text)
        with pytest.raises(UserError, match=message):
            index_of(folder)
    assert (folder / FOLDER_NAME / "index.json").read_bytes() == before
    assert len(list(folder.iterdir())) == 4


def test_format_is_counted_up_when_the_content_changes(tmp_path: Path) -> None:
    """If this fails, an index made before would be taken for one made now: count up stored.FORMAT, then the digest."""
    write_files(tmp_path, nouns=False)
    index_of(tmp_path)
    digest = hashlib.sha256()
    for name in ("products.jsonl", "words.json", "documents.npy", "goal_product.npy", "goal_limit.npy"):
        digest.update((tmp_path / FOLDER_NAME / name).read_bytes())
    header = json.loads((tmp_path / FOLDER_NAME / "index.json").read_text())
    assert (header["format"], digest.hexdigest()[:16]) == (1, "0f48fd704a2a65dd")
