"""The command line as a whole: exit codes and one-sentence errors."""

import pytest

from uld_jax import sharding
from uld_jax.errors import UserError

SPEC = "--config=zeroshot:dataset=folder,k=4,preset=tiny"


def test_bad_input_is_one_sentence_before_any_compute(run, photos, tmp_path, uld):
    def refused(*args):
        code, out, err = uld(*args)
        assert code == 1, (args, out, err)
        assert len(err.strip().splitlines()) == 1, err
        assert "Traceback" not in err
        return err

    def folder(**files):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        path.mkdir()
        for name, content in files.items():
            target = path / name.replace("__", "/").replace("_csv", ".csv").replace("_png", ".png")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    image = (photos / "test/000.png").read_bytes()

    def training(data_dir, *more):
        where = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        error = refused("train", SPEC, f"--config.data_dir={data_dir}", f"--workdir={where}", *more)
        assert not where.exists(), "a refused run leaves nothing behind"
        return error

    other = ("train", SPEC, f"--config.data_dir={photos}", f"--workdir={run}", "--config.seed=5")
    assert "data_dir is not set; give the folder of" in refused("train", SPEC, f"--workdir={tmp_path / 'w'}")
    prepared = SPEC.replace("folder", "celeba")
    assert "dataset=celeba needs data_dir, the folder" in refused("train", prepared, f"--workdir={tmp_path / 'w'}")
    assert "a.png is a file; give the folder that holds" in training(folder(a_png=image) / "a.png")
    assert "does not exist" in training(tmp_path / "absent")
    assert "is empty" in training(folder())
    assert "holds no images" in training(folder(**{"note.txt": "hello"}))
    assert "absent.png" in training(folder(train_csv="file,x0,y0\nabsent.png,1,2\n", a_png=image))
    assert "line 2" in training(folder(train_csv="file,x0,y0\na.png,one,2\n", a_png=image))
    assert "outside" in training(folder(train_csv="file,x0,y0\na.png,900,2\n", a_png=image))
    assert "empty" in training(folder(a_png=b""))
    five = training(folder(**{f"{name}_png": image[:-30] for name in "abcde"}, f_png=image))
    assert "5 of 6 images" in five
    assert all(f"{name}.png (" in five for name in "abcde")
    assert "colour" in training(photos, "--config.colour=3")
    assert "wdith" in training(photos, "--config.detector.wdith=3")
    assert "multiple" in training(photos, "--config.detector.image_size=33")
    assert "config.stages is empty; name one stage" in training(photos, "--config.stages=()")
    assert "config.stages is empty; name one stage" in refused(*other, "--config.stages=()")
    assert "normaliser" in training(photos, "--config.data.normaliser=nose")
    assert "eval.label_counts holds 0; give whole" in training(photos, "--config.eval.label_counts=(5,0)")
    assert "eval.label_counts holds 25, but fits are on 24" in training(photos, "--config.eval.label_counts=(5,25)")
    synthetic = SPEC.replace("folder", "synthetic")
    for command in (
        ("train", synthetic, f"--config.data_dir={photos}", f"--workdir={tmp_path / 'w'}"),
        ("evaluate", f"--workdir={run}", "--dataset=synthetic", f"--data_dir={photos}"),
        ("prepare", "--dataset=synthetic", f"--src={photos}", f"--data_dir={tmp_path / 'w'}"),
    ):
        assert "is not read by" in refused(*command)
    assert "--src is empty; give the folder of photos of --dataset=mine" in refused(
        "prepare", "--dataset=mine", f"--data_dir={tmp_path / 'w'}"
    )
    assert "w is looked for by none of the stages zeroshot, detector" in training(photos, "--config.weights.fan=w")
    assert "--gcn_v=w is not read by --clustering=kmeans" in refused(
        "clusters", f"--workdir={run}", "--clustering=kmeans", "--gcn_v=w"
    )
    assert "preset" in refused("train", "--config=zeroshot:preset=huge", f"--workdir={tmp_path / 'w'}")
    assert "no config" in refused("train", "--config=nothing", f"--workdir={tmp_path / 'w'}")
    assert "config.json is missing" in refused("evaluate", f"--workdir={tmp_path / 'w'}")
    assert "use another --workdir" in refused(*other)
    assert "no stage 'last'" in refused("evaluate", f"--workdir={run}", "--stage=last")
    for counts, said in (
        ("5,few", "holds 'few'; give whole"),
        ("0", "holds '0'; give"),
        ("25", "holds 25, but fits are on"),
    ):
        assert f"--label_counts {said}" in refused("evaluate", f"--workdir={run}", f"--label_counts={counts}")
    assert "does not exist" in refused(
        "predict", f"--workdir={run}", f"--images={tmp_path / 'absent'}", f"--out={tmp_path}"
    )
    with pytest.raises(UserError, match="does not divide over 3 devices; use "):
        sharding.local_rows(type("Mesh", (), {"size": 3})(), 8)
