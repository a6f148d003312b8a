"""Records of measured numbers: what may enter, and that the pages show what the records say."""

import json
import shutil

import pytest

from tests import tiny
from uld_jax.errors import UserError
from uld_jax.studies import results

NEW = dict.fromkeys(results.FIELDS) | dict(
    row=["D-ULD"],
    config="duld:k=10",
    overrides=[],
    seed=0,
    command="uld train --config=duld:k=10 --workdir=RUN",
    commit="0123abc",
    date="2026-11-29",
    device="2 CPU cores",
    busy=False,
    minutes=12.2,
    numbers={"forward": 6.23, "forward_std": 0.19, "backward": 6.2},
    protocol="folder_68_eyes",
    history=False,
    note="",
)
OLD = NEW | dict(command=None, commit=None, device=None, recorded_in="aff3a36", history=True, note=results.UNKNOWN)
TABLE = dict(
    labels=[""],
    columns=[
        dict(title="forward", keys=["forward"], digits=2, best="min"),
        dict(title="both", keys=["forward", "backward"], digits=1),
        dict(title="minutes", keys=["minutes"]),
    ],
    records=[NEW, NEW | dict(row=["mean shape"], numbers={"forward": 20.6}, minutes=None, digits=1)],
)


def refused(record, words):
    with pytest.raises(UserError, match=words):
        results.check_record(record, "here")


@pytest.mark.parametrize("key", results.NEEDED)
def test_new_record_needs_command_commit_device_date_and_whether_the_machine_was_busy(key):
    results.check_record(NEW, "here")
    refused(NEW | {key: None}, f"lacks {key}")


def test_new_record_with_errors_needs_a_protocol():
    refused(NEW | dict(protocol=None), "without a protocol")
    results.check_record(NEW | dict(protocol=None, numbers={"images": 3}), "here")


def test_record_has_all_fields_and_no_other():
    refused({key: value for key, value in NEW.items() if key != "note"}, "lacks field 'note'")
    refused(NEW | dict(colour="red"), "unknown field 'colour'")


@pytest.mark.parametrize("value", [float("nan"), "6.2", None, True, [1.0, "a"]])
def test_numbers_are_numbers(value):
    refused(NEW | dict(numbers={"forward": value}), "not a number")


def test_record_without_numbers_is_refused():
    refused(NEW | dict(numbers={}, minutes=None), "no numbers")


def test_history_may_lack_what_is_not_known_but_not_where_it_was_written_down():
    results.check_record(OLD, "here")
    refused(OLD | dict(recorded_in=None), "lacks recorded_in")
    refused(OLD | dict(note=""), "without a commit")
    refused(OLD | dict(recorded_in="yesterday"), "hexadecimal")


def test_quotation_has_a_source_instead():
    quoted = dict.fromkeys(results.FIELDS) | dict(row=["a"], numbers={"forward": 3.14}, source="A paper, table 1")
    results.check_record(quoted, "here")
    refused(quoted | dict(source=None), "lacks command")


def test_table_refuses_two_records_of_one_cell_and_columns_without_numbers():
    with pytest.raises(UserError, match="two records"):
        results.check(TABLE | dict(records=[NEW, NEW]), "a/b")
    with pytest.raises(UserError, match="no record has stability"):
        results.check(TABLE | dict(columns=[dict(title="px", keys=["stability"])]), "a/b")
    with pytest.raises(UserError, match="needs 2 labels"):
        results.check(TABLE | dict(labels=["", ""]), "a/b")


@pytest.fixture
def root(tmp_path):
    results.write("a/b", TABLE, tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("Before\n<!-- results: a/b -->\nold\n<!-- /results -->\nafter.\n")
    inside = "It is <!-- results: a/b | D-ULD | forward -->1<!-- /results --> here.\n"
    (tmp_path / "docs" / "page.md").write_text(inside)
    return tmp_path


def test_pages_are_filled_in_and_the_rest_is_left(root):
    changed = results.update(root)
    assert [path.name for path in changed] == ["README.md", "page.md"]
    assert results.update(root) == []
    lines = (root / "README.md").read_text().splitlines()
    assert lines[2:6] == [
        "|  | forward | both | minutes |",
        "|---|---|---|---|",
        "| D-ULD | **6.23 ± 0.19** | 6.2 ± 0.2 / 6.2 | 12.2 |",
        "| mean shape | 20.6 | 20.6 |  |",
    ]
    origin = "- 2 CPU cores, idle; 2026-11-29; commit 0123abc; seed 0; protocol `folder_68_eyes`."
    assert lines[7] == origin
    assert lines[0] == "Before"
    assert lines[-1] == "after."
    text = (root / "docs" / "page.md").read_text()
    assert text == "It is <!-- results: a/b | D-ULD | forward -->6.23 ± 0.19<!-- /results --> here.\n"


def test_rows_of_other_origin_are_named(root):
    results.add("a/b", OLD | dict(row=["old"], busy=True, device="1 GPU"), root)
    lines = results.markdown("a/b", root).splitlines()
    assert (
        lines[-2]
        == "- old: 1 GPU, busy with other work; 2026-11-29; recorded in aff3a36; seed 0; protocol `folder_68_eyes`."
    )
    assert lines[-1].startswith("- Other rows: 2 CPU cores, idle;")


def test_records_of_several_seeds_stand_in_one_row(root):
    columns = [dict(title=f"seed {i}", keys=["backward"], where={"seed": i}) for i in (0, 1)]
    results.write(
        "a/c", TABLE | dict(columns=columns, records=[NEW, NEW | dict(seed=1, numbers={"backward": 7})]), root
    )
    assert "| D-ULD | 6.2 | 7 |" in results.markdown("a/c", root)


def test_numbers_of_several_seeds_are_averaged(root):
    of_seed = lambda seed, forward: NEW | dict(seed=seed, numbers={"forward": forward, "backward": 5.0})
    results.write("a/c", TABLE | dict(records=[of_seed(0, 6.0), of_seed(1, 7.0), of_seed(2, 8.5)]), root)
    assert results.number("a/c", "D-ULD", ["forward", "backward"], root) == "7.17 / 5.00"


def test_rows_of_other_tables_stand_side_by_side(root):
    cell = dict(table="a/b", row="D-ULD", keys=["forward", "backward"])
    rows = [dict(row=["x"], cells=[cell, None], after=["[page](p.md)"])]
    columns = [dict(title="ours", keys=[]), dict(title="theirs", keys=[])]
    results.write("o/m", dict(labels=[""], columns=columns, after=["page"], rows=rows), root)
    assert results.markdown("o/m", root).splitlines()[-1] == "| x | 6.23 ± 0.19 / 6.20 | – | [page](p.md) |"
    cell["row"] = "nothing"
    results.write("o/m", dict(labels=[""], columns=columns, rows=rows), root)
    with pytest.raises(UserError, match="0 records of row 'nothing'"):
        results.markdown("o/m", root)


def run_folder(folder):
    """What a finished run leaves, as far as a record needs it."""
    (folder / "eval" / "test" / "first").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(seed=3, stages=["first", "second"])))
    devices = dict(count=2, kind="cpu", processes=1)
    (folder / "run.json").write_text(json.dumps(dict(devices=devices)))
    lines = [
        dict(step=0, stage="first", time=1.8e9, seconds=60.0),
        dict(step=9, stage="second", time=1.8e9, seconds=90),
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = dict(forward_nme=7.0, backward_nme=6.5, stability_px=None, protocol="folder_68_eyes")
    report["carried"] = dict(px=2.5, same_place_px=4.0)
    for where in ("", "first"):
        (folder / "eval" / "test" / where / "metrics.json").write_text(json.dumps(report))
    return folder


COMMAND = "uld train --config=duld:k=10,preset=small --config.seed=3 --config.data_dir='my photos' --workdir=RUN"


def test_finished_run_gives_a_record(tmp_path):
    run = run_folder(tmp_path / "run")
    record = results.record_of(run, ["D-ULD"], COMMAND, busy=True, commit="0123abc")
    assert record["config"] == "duld:k=10,preset=small"
    assert record["overrides"] == ["seed=3", "data_dir=my photos"]
    assert record["numbers"] == {"forward": 7.0, "backward": 6.5, "carried": 2.5, "moved": 4.0}
    assert (record["seed"], record["minutes"], record["device"], record["busy"]) == (3, 1.5, "2 x cpu", True)
    assert record["protocol"] == "folder_68_eyes"
    assert results.record_of(run, ["a"], COMMAND, busy=True, commit="0123abc", stage="first")["minutes"] == 1.0
    with pytest.raises(UserError, match="lacks command"):
        results.record_of(run, ["D-ULD"], "", busy=True, commit="0123abc")
    (run / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json is missing"):
        results.record_of(run, ["D-ULD"], COMMAND, busy=True, commit="0123abc")


def test_command_line_adds_a_run_and_fills_the_pages_in(root, capsys):
    run = run_folder(root / "run")
    arguments = [f"--root={root}", f"--add={run}", "--table=a/b", "--row=new", f"--command={COMMAND}"]
    assert results.main([f"--root={root}", "--check"]) == 1
    assert results.main([*arguments, "--commit=0123abc", "--busy"]) == 0
    assert "| new | 7.00 | 7.0 / 6.5 | 1.5 |" in (root / "README.md").read_text()
    assert results.main([f"--root={root}", "--check"]) == 0
    assert results.main([*arguments, "--commit=main"]) == 1
    assert "hexadecimal" in capsys.readouterr().err


def test_commit_of_a_changed_tree_is_refused(root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match="the code is no commit"):
        results.record_of(run_folder(root / "run"), ["new"], COMMAND, busy=False)


def test_the_first_record_enters_an_empty_table(root):
    results.check(TABLE | dict(records=[]), "a/b")
    (root / "results/a").mkdir(parents=True, exist_ok=True)
    results.write("a/new", TABLE | dict(records=[]), root)
    results.add("a/new", NEW, root)
    assert results.read("a/new", root)["records"] == [NEW]


def test_missing_table_and_torn_file_are_said(root):
    with pytest.raises(UserError, match="there is no table 'a/nothing'"):
        results.read("a/nothing", root)
    (root / "results" / "a" / "b.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        results.read("a/b", root)


def test_committed_tables_and_pages_agree(tmp_path):
    assert results.update(tiny.ROOT, write_files=False) == [], "run `make results` and commit what it writes"
    shutil.copytree(tiny.ROOT / "results", tmp_path / "results")
    for name in results.names(tmp_path):
        assert results.read(name, tmp_path), name
