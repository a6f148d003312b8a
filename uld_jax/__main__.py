"""The command line: `uld COMMAND --flags`. Each command is one function; flags become its arguments."""

import os
import signal
import sys
import warnings

from absl import flags
from ml_collections import config_flags

from uld_jax import files, interrupts
from uld_jax.engine import stopping
from uld_jax.errors import UserError, flag, shell_command

USAGE = """uld: unsupervised landmark discovery

  uld train    --config=configs/zeroshot.py:dataset=folder,k=10,preset=small --config.data_dir=PHOTOS --workdir=RUN
  uld sweep    --config=CONFIG --grid=KEY=A,B --grid=seed=0,1,2 --workdir=DIR [--columns=NAME,NAME]
  uld ablate   --figure=2a|2b|2c|2d|2e --config=self_training:dataset=synthetic,preset=small --workdir=DIR
               [--grid=NAME=A,B] [--landmarks=15] [--run=RUN]
  uld evaluate --workdir=RUN [--stage=NAME] [--split=test] [--dataset=NAME] [--data_dir=DIR] [--group_by=COLUMN[:edges]]
               [--scheme=NAME] [--label_counts=1,10,100,all] [--protocol=NAME] [--fit_images=300 --repeats=5]
               [--config.eval.KEY=VALUE] [--config.data.normaliser=NAME]
  uld predict  --workdir=RUN [--stage=NAME] --images=PHOTOS --out=OUT [--points=annotated] [--outside=clip]
  uld fit      --workdir=RUN [--stage=NAME] --data_dir=LABELLED_PHOTOS [--scheme=NAME]
  uld clusters --workdir=RUN [--stage=NAME] [--split=train] [--clustering=kmeans,gcn,density,landmark]
  uld features --config=CONFIG --out=DIR [--stage=NAME] [--split=train] [--what=maps] [--dtype=float16]
  uld prepare  --dataset=NAME [--src=DIR] [--scheme=NAME] [--on_bad_file=skip] --data_dir=OUT
  uld convert  --kind=KIND --src=FILE --dst=DIR [--core=FILE]
  uld gcn      --descriptors=FILE.npz|--synthetic --dst=DIR

`uld COMMAND --help` lists the flags of a command. Any key of a config can be set: --config.seed=3.
"""

OK, BAD_INPUT, SKIPPED = 0, 1, 3
SWEEPING = ("sweep", "ablate")
READ_LATER = (*SWEEPING, "evaluate")  # these parse --config.KEY=VALUE for each run
NAMED = 5  # files of a kind that a line names
STOPPING = ("train", *SWEEPING)  # they save what they have when they are told to stop


def _train(v: flags.FlagValues) -> int:
    from uld_jax.engine import loop
    from uld_jax.evaluation.report import summary

    profile = None
    if v.profile:
        profile = _pair(v.profile)
    try:
        found = loop.run(v.config, v.workdir, profile=profile)
    except stopping.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return OK
    if _first_process():
        count = found.report.get("landmarks", v.config.k)  # some methods find out how many there are
        print(f"{count} landmarks found; {summary(found.report)}".rstrip("; "))
        print(f"  pictures  {os.path.join(v.workdir, 'contact_sheet.png')}")
        print(f"  numbers   {os.path.join(v.workdir, 'eval')}")
        print(f"  use them  {shell_command('predict', workdir=v.workdir, images='DIR', out='DIR')}")
    return _told(found.skipped, os.path.join(v.workdir, "skipped.csv"))


def _told(skipped, where) -> int:
    """Says which files were skipped and where that is written; the exit code."""
    from uld_jax.data import listing

    if skipped and _first_process():
        print(listing.told(skipped, where), file=sys.stderr)
    return SKIPPED if skipped else OK


def _evaluate(v: flags.FlagValues) -> int:
    from uld_jax import sharding
    from uld_jax.engine import runs
    from uld_jax.evaluation.report import summary
    from uld_jax.evaluation.run import evaluate_run

    mesh = sharding.make_mesh()
    finished = runs.load(_stage_of(v), mesh)
    counts = [c if c == "all" else _integer(c, "--label_counts") for c in v.label_counts]
    report, folder = evaluate_run(
        finished,
        mesh,
        split=v.split,
        dataset=v.dataset,
        data_dir=v.data_dir,
        group_by=v.group_by,
        label_counts=counts,
        protocol=v.protocol,
        settings={key: v[key].value for key in ("fit_images", "repeats") if v[key].value is not None},
        reading={key: v[key].value for key in ("scheme", "normaliser") if v[key].value},
        overrides=v.override,
    )
    if _first_process():
        print(f"{finished.stage}: {summary(report)}")
        for column, groups in (report["groups"] or {}).items():
            for group in groups:
                print(f"  {column} {group['group']}: {_percent(group['forward_nme'])} forward, {group['n']} images")
        for row in report["label_counts"] or ():
            print(f"  {row['n']} labelled images: {_percent(row['forward_nme'])} +- {_percent(row['forward_nme_std'])}")
        print(f"  written to {folder}")
    return OK


def _predict(v: flags.FlagValues) -> int:
    from uld_jax.detector import Detector
    from uld_jax.predict import predict_folder

    first = _first_process()
    say = lambda done, of: print(f"predict {done}/{of}", file=sys.stderr) if first else None
    options = dict(points=v.points, outside=v.outside, report=say)
    done = predict_folder(Detector.load(_stage_of(v)), v.images, v.out, **options)
    if first:
        table, sheet = (os.path.join(v.out, name) for name in ("landmarks.csv", "contact_sheet.png"))
        print(f"{done.images} images: {table}, {sheet}")
        if done.beyond:
            now = "missing" if v.outside == "missing" else "given at its edge"
            print(f"{done.beyond} landmarks lay outside their photo, and each is {now}", file=sys.stderr)
        if done.empty:
            some = ", ".join(done.empty[:NAMED]) + (", ..." if len(done.empty) > NAMED else "")
            what = f"{len(done.empty)} of {done.images} images show nothing (all of one colour), and have no landmarks"
            print(files.one_line(f"warning: {what}: {some}"), file=sys.stderr)
    return _told(done.skipped, os.path.join(v.out, "skipped.csv"))


def _fit(v: flags.FlagValues) -> int:
    from uld_jax.detector import Detector, fit_folder

    detector = Detector.load(_stage_of(v))
    fitted, images = fit_folder(detector, v.data_dir, scheme=v.scheme)
    if _first_process():
        print(f"{len(fitted.strength)} annotated landmarks from {images} labelled images")
        print(f"  leave-one-out error  {detector.leave_one_out}")
        options = dict(workdir=v.workdir, stage=v.stage, images="DIR", out="DIR", points="annotated")
        print(f"  use them  {shell_command('predict', **options)}")
    return OK


def _prepare(v: flags.FlagValues) -> int:
    from uld_jax.data import listing, open_source
    from uld_jax.data.builders import prepared

    if v.dataset == "folder":
        raise UserError("--dataset=folder is read as it is; give the prepared data set a name of its own")
    name = "synthetic" if v.dataset == "synthetic" else "folder"
    if (name == "synthetic") == bool(v.src):
        what = f"--src={v.src} is not read by" if v.src else "--src is empty; give the folder of photos of"
        raise UserError(f"{what} --dataset={v.dataset}" + (", which is rendered; leave it out" if v.src else ""))
    reading = dict(data_dir=v.src, frame_size=v.frame_size, scheme=v.scheme, on_bad_file=v.on_bad_file)
    first = open_source(name, "train", **reading)
    sources = {"train": first}
    if "test" in first.spec.splits:
        sources["test"] = open_source(name, "test", **reading)
    written = prepared.prepare(v.dataset, sources, v.data_dir)
    print(f"written to {written}; use it with --config=...:dataset=folder {flag('config.data_dir', written)}")
    skipped = tuple(dict.fromkeys(one for source in sources.values() for one in source.skipped))
    listing.write_skipped(written / "skipped.csv", skipped)
    return _told(skipped, written / "skipped.csv")


def _convert(v: flags.FlagValues) -> int:
    from uld_jax import convert

    source = convert.convert(v.kind, v.src, v.dst, v.core)
    print(f"{source['entries']} entries, {source['parameters']} parameters; licence: {source['licence']}")
    print(f"written to {v.dst}; use it with {flag(f'config.weights.{v.kind}', v.dst)}")
    return OK


def _features(v: flags.FlagValues) -> int:
    from uld_jax import sharding
    from uld_jax.studies import features

    first = _first_process()
    say = lambda done, of: print(f"features {done}/{of}", file=sys.stderr) if first else None
    options = dict(stage=v.stage, split=v.split, what=v.what, dtype=v.dtype, batch_size=v.batch_size, report=say)
    found, stage = features.main(v.config, v.out, sharding.make_mesh(), **options)
    if first:
        for name, shape in found.taps:
            print(f"{name}  {found.rows} x {' x '.join(map(str, shape))}")
        size = found.rows * found.image_bytes / 1e6
        print(f"written to {v.out}, {size:.1f} MB; use it with {flag(f'config.{stage}.cache', v.out)}")
    return OK


def _gcn(v: flags.FlagValues) -> int:
    from uld_jax.studies import train_gcn

    if bool(v.descriptors) == v.synthetic:
        raise UserError("uld gcn learns from labelled descriptors; give either --descriptors=FILE.npz or --synthetic")
    say = lambda step, loss: print(f"gcn {step}/{v.steps}  loss {loss:.4g}", file=sys.stderr)
    source, measured = train_gcn.main(
        v.dst,
        descriptors=v.descriptors,
        npz=v.npz,
        report=say,
        **dict(steps=v.steps, k=v.neighbours, seed=v.seed),
        **dict(batch=v.batch, scale=v.scale, optimizer=v.optimizer, rate=v.rate),
    )
    for one in measured:
        print(f"held out: correlation with the target {one.gcn:.3f}, of the density {one.density:.3f}")
    print(f"{source['entries']} descriptors, {source['parameters']} parameters")
    print(f"written to {v.dst}; use it with {flag('config.weights.gcn_v', v.dst)}")
    return OK


def _stage_of(v: flags.FlagValues) -> str:
    return f"{v.workdir}:{v.stage}" if v.stage else v.workdir


def _sweep(v: flags.FlagValues) -> int:
    from uld_jax.studies import sweep

    try:
        table = sweep.run(v.config, v.grid, v.workdir, overrides=v.override, columns=v.columns)
    except stopping.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return OK
    if _first_process():
        print(table.markdown)
        print(f"written to {', '.join(table.files)} in {v.workdir}; a folder for each run")
    return BAD_INPUT if table.failed else OK


def _ablate(v: flags.FlagValues) -> int:
    from uld_jax.studies import mallis_figure2

    options = dict(grids=v.grid, overrides=v.override, landmarks=v.landmarks, finished=v.run)
    try:
        table = mallis_figure2.run(v.figure, v.config, v.workdir, **options)
    except stopping.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return OK
    if _first_process():
        print(table.markdown)
        print(f"written to {os.path.join(v.workdir, 'figure.md')}, figure.json, figure.png")
    return BAD_INPUT if table.failed else OK


def _clusters(v: flags.FlagValues) -> int:
    from uld_jax import sharding, weights
    from uld_jax.engine import runs
    from uld_jax.studies import clusters as clusters_study

    if v.gcn_v and v.clustering and "gcn" not in v.clustering:
        raise UserError(f"--gcn_v={v.gcn_v} is not read by --clustering={','.join(v.clustering)}; add gcn to it")
    mesh = sharding.make_mesh()
    params = weights.load(v.gcn_v, "gcn_v") if v.gcn_v else None
    records, folder = clusters_study.report(
        runs.load(_stage_of(v), mesh),
        mesh,
        split=v.split,
        ways=v.clustering,
        most=v.most,
        clusters=v.clusters,
        neighbours=v.neighbours,
        tau=v.tau,
        params=params,
    )
    if _first_process():
        print(clusters_study.table(records))
        print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return OK


def _pair(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    first, last = _integer(first, "--profile"), _integer(last, "--profile")
    if not 0 <= first < last:
        raise UserError(f"--profile={text}: give START:STOP with 0 <= START < STOP")
    return first, last


def _integer(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{flag}: {text!r} is not a whole number") from error


def _percent(value) -> str:
    return "not measured" if value is None else f"{value:.2f} %"


def _first_process() -> bool:
    import jax

    return jax.process_index() == 0


def _define(command: str) -> flags.FlagValues:
    """The flags of one command, apart from absl's global ones."""
    v = flags.FlagValues()

    def text(name, default, meaning):
        flags.DEFINE_string(name, default, meaning, flag_values=v, required=default is None)

    def number(name, default, meaning):
        flags.DEFINE_integer(name, default, meaning, flag_values=v)

    flags.DEFINE_bool("help", False, "Shows these flags.", short_name="h", flag_values=v)
    text("coordinator", "", "HOST:PORT of process 0, for several processes.")
    number("num_processes", None, "How many processes there are.")
    number("process_id", None, "Number of this process.")
    if command not in ("features", "prepare", "convert", "gcn"):
        text("workdir", None, "Folder of the run, local or gs://.")
    if command in ("train", "features"):
        meaning = "Config file or name, with :key=value,... after it."
        config_flags.DEFINE_config_file("config", None, meaning, flag_values=v)
        flags.mark_flag_as_required("config", flag_values=v)
    if command == "train":
        text("profile", "", "START:STOP, the steps of a JAX trace written to WORKDIR/profile.")
    if command == "sweep":
        text("config", None, "Config file or name, with :key=value,... after it.")
        many = "KEY=VALUE,VALUE,... of a config's key or argument; again for another one."
        flags.DEFINE_multi_string("grid", [], many, flag_values=v)
        flags.DEFINE_multi_string("override", [], "KEY=VALUE, the same as --config.KEY=VALUE.", flag_values=v)
        flags.DEFINE_list("columns", [], "Metrics of the table, in place of the usual ones.", flag_values=v)
    if command == "ablate":
        meaning = (
            "Of Mallis et al., NeurIPS 2020: 2a t-SNE of initial and learned descriptors; 2b detectors of the initial "
            "keypoints; 2c clustering or equivariance; 2d keypoints that are landmarks among random points; 2e numbers "
            "of clusters."
        )
        text("figure", None, meaning)
        text("config", "", "Config file or name of self-training, with :key=value,... after it.")
        text("run", "", "For 2a: a finished run of self-training, in place of training one by --config.")
        many = (
            "NAME=VALUE,VALUE,... in place of a figure's own values; again for another one. 2b: detector; 2c: pairs; "
            "2d, 2e: clusters, true, share; all: seed."
        )
        flags.DEFINE_multi_string("grid", [], many, flag_values=v)
        flags.DEFINE_multi_string("override", [], "KEY=VALUE, the same as --config.KEY=VALUE.", flag_values=v)
        meaning = "For 2d and 2e: how many annotated landmarks true points are drawn from, or their numbers, 0,3,7."
        text("landmarks", "15", meaning)
    if command in ("evaluate", "predict", "fit", "clusters"):
        text("stage", "", "Stage of the run; the last one by default.")
    if command == "evaluate":
        from uld_jax.evaluation import protocol

        text("split", "test", "Split to measure on.")
        text("dataset", "", "Another data set than the run's; the regressors are fitted on its train split.")
        text("data_dir", "", "Its folder.")
        text("scheme", "", "What the annotated points are, in place of the run's data.scheme.")
        text("normaliser", "", "What errors are divided by, in place of the run's data.normaliser.")
        meaning = "KEY=VALUE, the same as --config.KEY=VALUE: of eval, data.scheme, data.normaliser and data.sides."
        flags.DEFINE_multi_string("override", [], meaning, flag_values=v)
        text("group_by", "", "COLUMN or COLUMN:edge,edge,... of the csv.")
        flags.DEFINE_list("label_counts", [], "Numbers of labelled images to fit with, and `all`.", flag_values=v)
        meaning = "That of a paper, in place of the run's own: " + ", ".join(protocol.PAPERS) + "."
        text("protocol", "", meaning)
        number("fit_images", None, "Training images that each fit draws; 0: all.")
        number("repeats", None, "So many fits, each on --fit_images others; errors are means, with their spread.")
    if command == "clusters":
        text("split", "train", "Split whose images' descriptors are clustered.")
        meaning = "Ways to cluster: kmeans, gcn, density, landmark (the stage's own); by default all that fit."
        flags.DEFINE_list("clustering", [], meaning, flag_values=v)
        number("most", 8000, "Descriptors at most.")
        number("clusters", 80, "Clusters of k-means.")
        number("neighbours", 80, "Neighbours of a row in the graph.")
        flags.DEFINE_float("tau", 0.8, "Rows link above this cosine.", flag_values=v)
        text("gcn_v", "", "Folder of a converted or trained GCN-V; by default the one that ships.")
    if command == "predict":
        meaning = "Folder of images, nested or not; or an image, or a pattern; again for another one."
        flags.DEFINE_multi_string("images", None, meaning, flag_values=v, required=True)
        text("out", None, "Folder for landmarks.csv, overlays and the contact sheet.")
        choices = ["discovered", "annotated"]
        flags.DEFINE_enum("points", "discovered", choices, "Which landmarks to write.", flag_values=v)
        meaning = "What becomes of landmarks beyond their photo: missing, or moved to its edge."
        flags.DEFINE_enum("outside", "missing", ["missing", "clip"], meaning, flag_values=v)
    if command == "fit":
        text("data_dir", None, "Folder with train.csv: file,x0,y0,...")
        text("scheme", "none", "What the annotated points are, as data.scheme.")
    if command == "features":
        text("out", None, "Folder to make; one that a killed writer left is finished.")
        text("stage", "", "Stage whose backbone is looked through; by default the first that has one.")
        text("split", "train", "Split whose images are described; runs read those of `train`.")
        meaning = "The maps, or the latents of Stable Diffusion, which are small and leave the UNet to be computed."
        flags.DEFINE_enum("what", "maps", ["maps", "latents"], meaning, flag_values=v)
        choices = ["float16", "bfloat16", "float32"]
        flags.DEFINE_enum("dtype", "float16", choices, "Of the features on disk.", flag_values=v)
        number("batch_size", 0, "Images at a time; 0: config.eval.batch_size.")
    if command == "prepare":
        text("dataset", None, "Its name; `synthetic` is rendered, others are read from --src.")
        text("src", "", "Folder of photos, with or without train.csv and test.csv.")
        text("scheme", "none", "What the annotated points are, as data.scheme.")
        meaning = (
            "What becomes of photos that cannot be read: all are named and nothing is written, or they are left out."
        )
        flags.DEFINE_enum("on_bad_file", "error", ["error", "skip"], meaning, flag_values=v)
        number("frame_size", 128, "Side of the synthetic images in pixels.")
        text("data_dir", None, "Folder to write ArrayRecord files to.")
    if command == "convert":
        text("kind", None, "What the weights are of; it names the key config.weights.KIND.")
        text("src", None, "The published checkpoint: a PyTorch, safetensors or HDF5 file.")
        text("dst", None, "Folder to make.")
        text("core", "", "The core network's file, for SAIC's incremental FAN checkpoints.")
    if command == "gcn":
        text("descriptors", "", "File of NumPy arrays: descriptors [N,D], labels [N].")
        flags.DEFINE_bool("synthetic", False, "Descriptors of the built-in heads' landmarks instead.", flag_values=v)
        text("dst", None, "Folder to make.")
        text("npz", "", "Also writes the weights to this file, in half precision.")
        number("steps", 400, "Updates.")
        number("neighbours", 80, "Neighbours of a row in the graph.")
        number("batch", 2048, "Rows of a graph, drawn at random; 0: all rows of a set.")
        flags.DEFINE_enum("scale", "paper", ["paper", "max"], "Of the target; `max` as in the code.", flag_values=v)
        flags.DEFINE_enum("optimizer", "adam", ["adam", "sgd"], "`sgd` as in the code, at --rate=0.1.", flag_values=v)
        flags.DEFINE_float("rate", 2e-5, "The first learning rate.", flag_values=v)
        number("seed", 0, "Of everything that is drawn.")
    return v


def _start_processes(v: flags.FlagValues) -> None:
    """Joins the other processes, and says which devices there are."""
    from uld_jax import processes

    processes.start(v.coordinator, v.num_processes, v.process_id)
    processes.announce()


COMMANDS = {
    "train": _train,
    "sweep": _sweep,
    "ablate": _ablate,
    "evaluate": _evaluate,
    "predict": _predict,
    "fit": _fit,
    "clusters": _clusters,
    "features": _features,
    "prepare": _prepare,
    "convert": _convert,
    "gcn": _gcn,
}


def main() -> int:
    """The console script; returns the exit code: 0 done, 1 bad input, 3 done but files were skipped."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        print(USAGE, file=sys.stdout if command in ("", "-h", "--help", "help") else sys.stderr)
        return OK if command in ("", "-h", "--help", "help") else BAD_INPUT
    warnings.showwarning = lambda message, category, *_: print(f"{category.__name__}: {message}", file=sys.stderr)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    return interrupts.leave(_answered(command))


def _answered(command: str) -> int:
    """Exit code of a command; errors that a user can mend, and Ctrl-C, become a sentence."""
    try:
        return _run(command, [f"uld {command}", *sys.argv[2:]])
    except UserError as error:
        print(files.one_line(f"uld {command}: {error}"), file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        said = f"uld {command}: {error.filename or ''} {error.strerror or error}".replace("  ", " ")
        print(files.one_line(said), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        left = {"predict": "the rows so far are in landmarks.partial.csv"}
        left |= dict.fromkeys(("train", *SWEEPING), "the same command goes on from its last checkpoint")
        print("; ".join(filter(None, (f"uld {command}: interrupted", left.get(command)))), file=sys.stderr)
        return 128 + signal.SIGINT


def _run(command: str, argv: list[str]) -> int:
    from uld_jax import config as config_lib

    v = _define(command)
    for i, arg in enumerate(() if command in READ_LATER else argv):
        if arg.startswith("--config="):
            argv[i] = "--config=" + config_lib.resolve(arg.partition("=")[2])
        elif arg == "--config" and i + 1 < len(argv):
            argv[i + 1] = config_lib.resolve(argv[i + 1])
    if {"--help", "-h"} & set(argv):
        print(f"{USAGE}\nflags of uld {command}:{v.get_help(prefix='  ')}")
        return OK
    if command in READ_LATER:
        argv = [arg.replace("--config.", "--override=", 1) if arg.startswith("--config.") else arg for arg in argv]
    try:
        rest = v(argv)
    except config_lib.FLAG_ERRORS as error:
        raise config_lib.flag_error(error) from error
    if command == "predict":
        v["images"].value = [*v.images, *rest[1:]]  # a shell puts them there for `--images *.jpg`
    elif len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not understood; flags are written --name=value")
    for name in ("workdir", "run", "out", "data_dir", "src", "dst", "core", "descriptors", "npz"):
        if name in v and v[name].value is not None:
            v[name].value = os.path.expanduser(v[name].value)
    for name in ("workdir", "images", "out", "dst"):
        if name in v and (not v[name].value or v[name].value == [""]):
            raise UserError(f"--{name} is empty; give a folder")
    _start_processes(v)
    if command in STOPPING:
        return COMMANDS[command](v)
    return interrupts.attended(lambda: COMMANDS[command](v))  # so that Ctrl-C is answered at once


if __name__ == "__main__":
    sys.exit(main())
