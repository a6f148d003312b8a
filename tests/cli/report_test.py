"""`uld report` as a user meets it: the page of a run in a browser, names and corrections that other commands take."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from uld_jax.data.open import open_split
from uld_jax.detector import Detector
from uld_jax.studies.page import gather, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# What a visitor does; the page's own elements are used, and the files that it would save are caught.
VISIT = r"""
(async () => {
  const done = { errors: [], saved: {} }, $ = (id) => document.getElementById(id);
  window.addEventListener("error", (event) => done.errors.push(event.message));
  const wait = (ms) => new Promise((go) => setTimeout(go, ms));
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const blobs = [];
  URL.createObjectURL = (blob) => (blobs.push(blob), "data:,");
  HTMLAnchorElement.prototype.click = function () { done.last = this.download; };
  const save = async (id) => { $(id).click(); done.saved[done.last] = await blobs.at(-1).text(); };
  await wait(300);
  done.title = document.title;
  done.tiles = document.querySelectorAll(".tile").length;
  const pixels = document.querySelector(".tile canvas").getContext("2d").getImageData(0, 0, 40, 40).data;
  done.drawn = new Set(pixels).size;
  document.querySelector("#landmarks li:nth-child(2) .dot").click();
  done.strip = $("status").textContent;
  done.cropped = !document.querySelector("#all").hidden;
  const name = document.querySelector("#landmarks li:nth-child(2) input");
  name.value = "left, eye";
  name.dispatchEvent(new Event("change"));
  await save("save-names");
  document.querySelector(".tile").click();
  done.open = $("photo").open && $("photo-name").textContent;
  const box = $("big").getBoundingClientRect();
  const to = { clientX: box.left + box.width / 4, clientY: box.top + box.height / 2 };
  $("big").setPointerCapture = () => {};
  const data = JSON.parse($("data").textContent);
  const at = new Int16Array(Uint8Array.from(atob(data.runs[0].xy), (c) => c.charCodeAt(0)).buffer);
  const row = data.photos.indexOf(done.open) * data.runs[0].k + 1;
  const px = (v, start, length) => start + ((v / data.fine + 0.5) / data.frame) * length;
  const from = { clientX: px(at[2 * row], box.left, box.width), clientY: px(at[2 * row + 1], box.top, box.height) };
  $("big").dispatchEvent(new PointerEvent("pointerdown", { ...from, pointerId: 1 }));
  done.dragged = document.querySelectorAll("#landmarks li.picked .dot")[0].textContent;
  $("big").dispatchEvent(new PointerEvent("pointermove", { ...to, pointerId: 1 }));
  $("big").dispatchEvent(new PointerEvent("pointerup", { ...to, pointerId: 1 }));
  press("ArrowRight");
  press("x");
  done.second = $("photo-name").textContent;
  $("close").click();
  await save("save-corrections");
  $("sort").value = "disagreement";
  $("sort").dispatchEvent(new Event("change"));
  $("filter").value = "nothing is called so";
  $("filter").dispatchEvent(new Event("input"));
  done.filtered = $("status").textContent;
  document.querySelector("[data-view=numbers]").click();
  done.numbers = $("numbers").textContent;
  document.querySelector("[data-view=about]").click();
  done.about = $("about").textContent;
  const told = document.createElement("pre");
  told.id = "visited";
  told.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(done))));
  document.body.append(told);
})();
"""


def data_of(page) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])


def unpacked(text: str, dtype) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_page_holds_photos_and_landmarks(run, photos, tmp_path, uld):
    code, out, err = uld("report", f"--workdir={run}", f"--data_dir={photos}")
    assert code == 0, err
    assert str(run / "report.html") in out
    page = data_of(run / "report.html")
    source, detector = open_split(tiny.short(photos), "test"), Detector.load(run)
    assert page["photos"] == source.names
    assert page["of"] == len(source)
    (shown,) = page["runs"]
    xy, score = detector.predict_frames(source.images())
    found = unpacked(shown["xy"], "<i2").reshape(len(source), detector.k, 2)
    there = score > 0
    assert ((found[..., 0] == page["absent"]) == ~there).all()
    np.testing.assert_allclose(found[there] / page["fine"], xy[there], atol=0.5 / page["fine"] + 1e-4)
    assert (unpacked(shown["score"], "u1").reshape(score.shape)[there] > 0).all()
    assert len(shown["errors"]) == len(source)
    assert len(shown["table"]) == len(page["colours"]) == detector.k
    # A sheet is read back as the photos.
    sheets = page["sheets"]
    sheet = Image.open(io.BytesIO(base64.b64decode(sheets["addresses"][0].partition(",")[2])))
    at = 3
    corner = at % sheets["across"] * sheets["side"], at // sheets["across"] * sheets["side"]
    small = np.asarray(sheet.crop((*corner, corner[0] + sheets["side"], corner[1] + sheets["side"])), float)
    assert np.abs(small - source.image(at)).mean() < 12  # of JPEG

    code, out, err = uld(
        "report",
        f"--workdir={run}",
        f"--data_dir={photos}",
        f"--out={tmp_path}/few.html",
        "--link",
        "--photos=3",
        f"--compare={run}:zeroshot",
    )
    assert code == 0, err
    page = data_of(tmp_path / "few.html")
    assert page["sheets"]["addresses"] == ["few_files/photos_000.jpg"]
    assert (tmp_path / "few_files/photos_000.jpg").exists()
    assert [one["stage"] for one in page["runs"]] == ["detector", "zeroshot"]
    assert len(page["photos"]) == 3
    # A page of fewer sheets takes away its own earlier ones, and nothing else in a folder of this name.
    (tmp_path / "few_files/photos_beach.jpg").touch()
    (tmp_path / "few_files/photos_007.jpg").touch()
    code, out, err = uld(
        "report", f"--workdir={run}", f"--data_dir={photos}", f"--out={tmp_path}/few.html", "--photos=2"
    )
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "few_files").iterdir()) == ["photos_007.jpg", "photos_beach.jpg"]
    (tmp_path / "names.txt").write_text("left eye\nright eye\n")
    names = f"--names={tmp_path}/names.txt"
    code, _, err = uld("report", f"--workdir={run}", f"--data_dir={photos}", f"--out={tmp_path}/few.html", names)
    assert code == 1
    assert f"there are 2 names for {detector.k} landmarks" in err
    code, _, err = uld("report", f"--workdir={run}", f"--data_dir={photos}", f"--out={tmp_path}/page.pdf")
    assert code == 1
    assert "give a name that ends in .html" in err
    code, _, err = uld("report", f"--workdir={run}", f"--data_dir={photos}", "--photos=-1")
    assert code == 1
    assert "--photos=-1 is negative" in err


def test_names_and_corrections_come_back_from_a_browser(run, photos, tmp_path, uld):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; Debian's package chromium brings it")
    code, _, err = uld("report", f"--workdir={run}", f"--data_dir={photos}", f"--out={tmp_path}/page.html")
    assert code == 0, err
    page = tmp_path / "page.html"
    page.write_text(page.read_text().replace("</body>", f"<script>{VISIT}</script></body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--window-size=1100,800", "--virtual-time-budget=20000", f"--user-data-dir={tmp_path}/profile"]
    asked = [CHROMIUM, *options, "--dump-dom", page.as_uri()]
    shown = subprocess.run(asked, capture_output=True, text=True, timeout=300)
    told = re.search(r'<pre id="visited">(.*?)</pre>', shown.stdout)
    assert told, shown.stderr[-2000:]
    done = json.loads(base64.b64decode(told[1]))
    assert done["errors"] == []
    source, detector = open_split(tiny.short(photos), "test"), Detector.load(run)
    assert done["title"].endswith(f": {detector.k} landmarks")
    assert done["tiles"] == len(source)
    assert done["drawn"] > 50
    assert done["cropped"]
    assert done["strip"].endswith(f"of {len(source)} photos")
    assert done["filtered"].startswith("left, eye on 0 of 0 photos")
    assert "forward error" in done["numbers"]
    assert "versions" in done["about"]

    names = json.loads(done["saved"]["names.json"])["names"]
    assert names == ["landmark0", "left, eye", *(f"landmark{k}" for k in range(2, detector.k))]
    rows = list(csv.DictReader(io.StringIO(done["saved"]["train.csv"])))
    assert {row["file"] for row in rows} == {done["open"], done["second"]}
    moved = next(row for row in rows if row["file"] == done["open"])
    k = int(done["dragged"])
    frame = np.array([source.frame_size / 4 - 0.5, source.frame_size / 2 - 0.5])
    place = source.frame_maps[source.names.index(done["open"])]
    got = [float(moved[f"{names[k]}_{c}"]) for c in "xy"]
    np.testing.assert_allclose(got, (frame - place[2:]) / place[:2], atol=0.3)
    absent = next(row for row in rows if row["file"] == done["second"])
    assert absent[f"{names[k]}_x"] == ""

    # `uld fit` takes the corrections, and `uld predict` the names.
    corrected = tmp_path / "corrected"
    shutil.copytree(photos, corrected, ignore=shutil.ignore_patterns("*.csv"))
    (corrected / "train.csv").write_text(done["saved"]["train.csv"])
    (tmp_path / "names.json").write_text(done["saved"]["names.json"])
    code, out, err = uld("fit", f"--workdir={run}", f"--data_dir={corrected}")
    assert code == 0, err
    assert "from 2 labelled images" in out
    assert f"names  {', '.join(names)}" in out
    where = f"--workdir={run}", f"--images={photos / 'test'}", f"--out={tmp_path}/found"
    code, _, err = uld("predict", *where, f"--names={tmp_path}/names.json")
    assert code == 0, err
    with (tmp_path / "found/landmarks.csv").open() as table:
        assert next(csv.reader(table))[4:7] == ["left, eye_x", "left, eye_y", "left, eye_score"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"names": ["a", "a"]}', "holds 'a' twice"),
        ('{"names": ["a"]}', "there are 1 names for"),
        ('{"names": "a"}', "holds no list of names"),
        ('["a", ""]', "has no name for landmark 1"),
        ('["a\\nb"]', "with a line break or another control character"),
        ('{"names": ', "begins as JSON and is none"),
        (None, "cannot be read (no such file or directory)"),
    ],
)
def test_names_that_cannot_be_used_are_told(run, photos, tmp_path, uld, content, said):
    if content is not None:
        (tmp_path / "names.json").write_text(content)
    where = f"--workdir={run}", f"--images={photos / 'test'}", f"--out={tmp_path}/found"
    code, _, err = uld("predict", *where, f"--names={tmp_path}/names.json")
    assert code == 1
    assert said in err
    assert not (tmp_path / "found").exists()


def test_what_a_page_is_made_of_may_hold_anything(photos):
    """Marks of the template, ends of scripts and cells that are no numbers, in names and columns."""
    source = open_split(tiny.short(photos), "test")
    rows = np.arange(3)
    empty = np.full((3, 1), np.nan)
    shown = gather.Shown(
        "/*SCRIPT*/", "s", np.ones((3, 1, 2)), np.ones((3, 1)), empty, None, [{}], {"split": "test"}, {}, {}, {}
    )
    columns = {"</script>": ["<!--", "/*DATA*/", ""], "number": ["1_0", "nan", ""]}
    text = write.page(gather.Gathered(source, rows, columns, [shown]), ["a"], ("/*STYLE*/",))
    found = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert found["columns"]["</script>"]["cells"] == columns["</script>"]
    assert found["columns"]["number"] == {"numeric": True, "cells": [10.0, None, None]}
    assert found["names"] == ["/*STYLE*/"]
    assert text.count("<script") == 2
    other = write.page(gather.Gathered(source, rows, columns, [shown._replace(xy=np.zeros((3, 1, 2)))]), ["a"])
    assert json.loads(re.search(r'id="data">(.*?)</script>', other, re.S)[1])["id"] != found["id"]
