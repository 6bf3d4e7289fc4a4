from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from ladle.data.files import DESCRIPTIONS, find_data_files, splits_of
from ladle.errors import UserError


def make_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")
    return folder


def names_of(folder: Path, split: str = "train", subset: str | None = None) -> list[str]:
    return [str(file.path.relative_to(folder)) for file in find_data_files([folder], split, subset)]


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-0.parquet"], "train",
         ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        (["b.jsonl.gz", "a.jsonl.zst", "notes.md"], "train", ["a.jsonl.zst", "b.jsonl.gz"]),
        (["dev.jsonl", "train.jsonl"], "validation", ["dev.jsonl"]),
        (["worked.jsonl", "facts.jsonl"], "worked", ["worked.jsonl"]),
        (["train.jsonl", "constraints.jsonl"], "train", ["train.jsonl"]),
        ([".cache/train.jsonl", "train.jsonl"], "train", ["train.jsonl"]),
        (["train.parquet", "train_2.parquet", "train_sft.parquet"], "train", ["train.parquet", "train_2.parquet"]),
        (["train.parquet", "train_sft.parquet"], "train_sft", ["train_sft.parquet"]),
        (["web_train.jsonl", "zh/train/0.jsonl"], "train", ["web_train.jsonl", "zh/train/0.jsonl"]),
        (["train.jsonl", "train.csv", "train.json"], "train", ["train.jsonl"]),
        (["test.jsonl", "train.csv", "record.json"], "train", ["train.csv"]),
        (["a.tsv.xz", "b.csv", "config.json"], "train", ["a.tsv.xz", "b.csv"]),
        (["a.jsonl", "b.ndjson.bz2", "dataset_infos.json"], "train", ["a.jsonl", "b.ndjson.bz2"]),
        (["a.JSONL", "b.Csv"], "train", ["a.JSONL"]),
        (["a.json", "dataset_infos.json", "record.json"], "train", ["a.json"]),
        (["wiki-01.jsonl", "eval-harness-docs.jsonl"], "train", ["eval-harness-docs.jsonl", "wiki-01.jsonl"]),
        (["code/0.parquet", "unit-test-cases/0.parquet"], "train", ["code/0.parquet", "unit-test-cases/0.parquet"]),
        (["wiki-01.jsonl", "eval-harness-docs.jsonl"], "eval-harness-docs", ["eval-harness-docs.jsonl"]),
        (["books-train.jsonl", "books-test.jsonl"], "test", ["books-test.jsonl"]),
        (["train-00000-of-00001-1a2b.parquet", "eval-x.parquet"], "train", ["train-00000-of-00001-1a2b.parquet"]),
    ],
)  # fmt: skip
def test_a_folder_is_searched_for_the_split(tmp_path: Path, names: list[str], split: str, found: list[str]):
    assert names_of(make_files(tmp_path, *names), split) == found


def test_a_subset_is_a_part_of_the_path(tmp_path: Path):
    folder = make_files(tmp_path, "zh/train/0000.parquet", "en/train/0000.parquet", "en/test/0000.parquet")
    assert names_of(folder, "train", "en") == ["en/train/0000.parquet"]
    with pytest.raises(UserError, match=r"no files of subset 'fr' \(it holds en, zh\)"):
        names_of(folder, "train", "fr")
    with pytest.raises(UserError, match="is one dataset and has no subset 'en'"):
        find_data_files([folder / "en" / "train" / "0000.parquet"], "train", "en")


def test_a_dataset_card_decides_where_it_lists_files(tmp_path: Path):
    folder = make_files(tmp_path, "x/first.jsonl", "y/second.jsonl")
    card = "configs:\n- config_name: main\n  data_files:\n  - split: train\n    path: y/*.jsonl\n"
    (folder / "README.md").write_text(f"---\n{card}---\n")
    assert names_of(folder, "train", "main") == ["y/second.jsonl"]
    with pytest.raises(UserError, match=r"no split 'test' \(it has train\)"):
        names_of(folder, "test", "main")
    with pytest.raises(UserError, match="subset"):
        names_of(folder, "train", "other")


@pytest.mark.parametrize(
    ("names", "split", "said"),
    [
        (["train.jsonl", "train_extra.jsonl"], "train", "is read from train.jsonl; left out: train_extra.jsonl"),
        (["train.jsonl", "extra.jsonl", "test.jsonl"], "train", "is read from train.jsonl; left out: extra.jsonl"),
        (["train.jsonl", "more.csv", "dataset_infos.json"], "train", "is read from train.jsonl; left out: more.csv"),
        (["train.csv", "wiki.jsonl"], "train", "is read from train.csv; left out: wiki.jsonl"),
        (["wiki.jsonl", "eval-docs.jsonl"], "train", "eval-docs.jsonl is read as train"),
        (["worked.jsonl", "facts.jsonl"], "worked", ""),
        (["a.jsonl", ".b.jsonl", "notes.md"], "train", ""),
    ],
)
def test_files_that_belong_to_no_split_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], split: str, said: str
):
    names_of(make_files(tmp_path, *names), split)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_a_folder_whose_other_files_name_a_split_says_what_belongs_to_none(tmp_path: Path):
    with pytest.raises(UserError, match=r"no split 'train' \(it has test; wiki.jsonl: of none\).*name its files"):
        names_of(make_files(tmp_path, "wiki.jsonl", "web_test.jsonl"))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.csv", "test.csv", "dataset_infos.json", "record.json"], ["test", "train"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "train_sft.parquet"], ["train", "train_sft"]),
        (["train.jsonl", "train_2.jsonl", "dev.csv", "gsm8k.json"], ["dev", "gsm8k", "train"]),
        (["wiki-01.jsonl", "eval-harness-docs.jsonl"], ["eval-harness-docs", "wiki"]),
    ],
)
def test_every_split_is_named_once_and_found(tmp_path: Path, names: list[str], splits: list[str]):
    folder = make_files(tmp_path, *names)
    assert sorted(splits_of([folder])) == splits
    read = [name for split in splits for name in names_of(folder, split)]
    assert sorted(read) == sorted(name for name in names if name not in DESCRIPTIONS)


def test_links_are_followed_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = make_files(tmp_path / "data", "a.jsonl", "x.jsonl/b.jsonl")
    (folder / "c.jsonl").symlink_to(folder / "a.jsonl")
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    assert names_of(folder) == ["a.jsonl", "c.jsonl", "x.jsonl/b.jsonl"]
    assert "linked is a link to a folder, and not searched" in caplog.text
    (folder / "d.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="d.jsonl is a link to a file that is not there"):
        names_of(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", b"---\nconfigs:\n- data_files: train.jsonl\n---\ncaf\xe9", "README.md lists cannot be found"),
        ("README.md", b"---\nconfigs: [\n---\n", "README.md lists cannot be found"),
        ("dataset_dict.json", b"[" * 9999, "dataset_dict.json does not list the splits"),
        ("dataset_dict.json", b"{}", "dataset_dict.json does not list the splits"),
    ],
)
def test_a_broken_description_is_refused(tmp_path: Path, name: str, content: bytes, message: str):
    (make_files(tmp_path, "train.jsonl") / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        names_of(tmp_path)


def test_a_readme_of_another_encoding_is_only_prose(tmp_path: Path):
    (make_files(tmp_path, "train.jsonl") / "README.md").write_bytes("café".encode("latin-1"))
    assert names_of(tmp_path) == ["train.jsonl"]


def test_a_folder_of_descriptions_alone_has_no_data(tmp_path: Path):
    with pytest.raises(UserError, match="holds no data files"):
        names_of(make_files(tmp_path, "config.json"))


def test_a_missing_split_names_those_there_are(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no split 'dev' \(it has test, train\)"):
        names_of(make_files(tmp_path, "train.jsonl", "test.jsonl"), "dev")


def test_files_are_taken_as_given(tmp_path: Path):
    folder = make_files(tmp_path, "b.jsonl", "a.jsonl")
    files = find_data_files([folder / "b.jsonl", folder / "a.jsonl"], "train", None)
    assert [file.path.name for file in files] == ["b.jsonl", "a.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"), [("a.txt", "format that cannot be read"), ("missing", "no file or folder")]
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, message: str):
    make_files(tmp_path, "a.txt")
    with pytest.raises(UserError, match=message):
        find_data_files([tmp_path / name], "train", None)


def test_saved_datasets_are_found_with_and_without_splits(tmp_path: Path):
    dataset = Dataset.from_dict({"text": ["x"]})
    dataset.save_to_disk(tmp_path / "plain")
    DatasetDict(train=dataset, test=dataset).save_to_disk(tmp_path / "split")
    assert find_data_files([tmp_path / "plain"], "train", None)[0].path == tmp_path / "plain"
    assert find_data_files([tmp_path / "split"], "test", None)[0].path == tmp_path / "split" / "test"
    with pytest.raises(UserError, match=r"no split 'dev' \(it has test, train\)"):
        find_data_files([tmp_path / "split"], "dev", None)
