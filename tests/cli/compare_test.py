"""`uld compare` as a user meets it: what it prints, and its one-sentence errors."""

import shutil

import pytest

from tests.studies import compared
from uld_jax.studies import compare


@pytest.fixture
def finished(monkeypatch):
    return compared.Finished(monkeypatch)


def test_compare_prints_its_table(finished, photos, tmp_path, uld_says, monkeypatch):
    record = {"files": ["sheet.png"]}
    monkeypatch.setattr(compare, "compare", lambda asked, say: (record | {"asked": print(asked)}, "| run |"))
    out = uld_says("compare", f"--runs={tmp_path}/a,~/b", f"--out={tmp_path}/out", "--order_by=yaw", "--images=3")
    assert f"runs=('{tmp_path}/a', '/" in out
    assert "~" not in out
    assert "order_by='yaw', images=3" in out
    assert f"| run |\nwritten to {tmp_path}/out: comparison.md, comparison.json, sheet.png" in out


def test_bad_input_is_one_sentence_before_any_compute(finished, photos, tmp_path, uld, monkeypatch):
    def never(*args, **more):
        raise AssertionError("something was computed")

    monkeypatch.setattr(compare, "_measured", never)
    a, b = (finished.make(tmp_path / name, photos) for name in "ab")
    out = tmp_path / "out"

    def refused(runs, *more, out=out):
        code, _, err = uld("compare", f"--runs={runs}", f"--out={out}", *more)
        assert code == 1, err
        assert len(err.strip().splitlines()) == 1, err
        assert not (tmp_path / "out").exists()
        return err

    assert f"--runs={a} is one run; give two or more" in refused(a)
    assert "--runs is missing" in refused("")
    assert f"the stage of {a}:detector twice" in refused(f"{a},{a}:detector")
    assert f"--runs={tmp_path}/c: {tmp_path}/c/config.json is missing" in refused(f"{a},{tmp_path}/c")
    assert f"{b} has no stage 'flow'; its stages are" in refused(f"{a},{b}:flow")
    waits = finished.make(tmp_path / "d", photos, finished=False)
    why = f"--runs={waits}: {waits} holds no finished stage 'detector'; give its `uld train`"
    assert why in refused(f"{a},{waits}")
    assert "--images is 0" in refused(f"{a},{b}", "--images=0")
    both = f"{a},{b}"
    assert "the test csv has no column 'age'; its columns are yaw" in refused(both, "--order_by=age")
    assert "has no split val" in refused(both, "--split=val")
    assert f"--out={a} is a folder of something else" in refused(both, out=a)
    assert "is a file" in refused(both, out=a / "config.json")
    large = finished.make(tmp_path / "e", photos, **{"data.frame_size": 48})
    why = "a and e do not see the same images of the split test (a 8 frames of 40 px, e 8 frames of 48 px)"
    assert why in refused(f"{a},{large}")
    fewer = shutil.copytree(photos, tmp_path / "fewer")
    lines = (fewer / "test.csv").read_text().splitlines()
    (fewer / "test.csv").write_text("\n".join(lines[:-1]) + "\n")
    finished.make(tmp_path / "f", fewer)
    assert "f 7 frames of 40 px" in refused(f"{a},{tmp_path}/f")
    assert "absent does not exist" in refused(both, f"--data_dir={tmp_path}/absent")
