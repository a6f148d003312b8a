"""The tables of the papers: what is quoted of each, how a run is measured for it, and which rows runs repeat.

`studies.paper_table` fills them with finished runs (`uld table`); `docs/papers.md` lists them. A row is repeated by a
stage of a run whose config has the row's values. The words of `Row.made` give a config of `configs/papers/` these
values.
"""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from uld_jax.errors import UserError

MEASURES = {  # titles of the columns
    "forward_nme": "forward, %",
    "backward_nme": "backward, %",
    "forward_yaw": "forward by yaw, %",
    "backward_yaw": "backward by yaw, %",
    "stability": "stability, px",
    "silhouette": "silhouette",
    "calinski_harabasz": "Calinski-Harabasz",
    "nmi": "NMI",
    "regression": "regression of all labels, %",
    "regression_few": "regression, %",
    "matching_same": "same, px",
    "matching_different": "another, px",
    "pck": "PCK at 0.1, %",
    "pck_category": "PCK at 0.1, %",
}
DIGITS = {"silhouette": 3, "nmi": 3}  # decimals of numbers; 2 for the other measures
ERRORS = "errors"  # name of the table that each paper has
LIST = "list"  # word in place of a name


class Row(NamedTuple):
    """A row of a paper that a stage of a run repeats.

    A value of `keys` and `whole` is what the key must be; True and False stand for a number that is above 0 or not,
    and a tuple for any of its values.

    Attributes:
      table: table of quotations that has the row.
      name: labels of the row, separated by commas.
      stage: name of the stage.
      keys: keys of the stage's section and their values.
      whole: keys of the whole config, such as `warmup.start`, and their values.
      made: words that make the row of a config of the paper, separated by blanks: `KEY=VALUE` goes behind the config's
        colon, and `SECTION.KEY=VALUE` is given as --config.SECTION.KEY=VALUE.
    """

    table: str
    name: str
    stage: str
    keys: Mapping[str, Any]
    whole: Mapping[str, Any] = types.MappingProxyType({})
    made: str = ""


class Table(NamedTuple):
    """A table of a paper, or one that the paper has as a figure or not at all.

    Attributes:
      of: its place in the paper.
      about: noun phrase that names what it compares.
      quoted: tables of quotations; none where the paper has no numbers.
      rows: rows that runs may repeat.
      configs: configs of `configs/papers/` that are trained for it.
      measured: commands that measure such a run, without `uld`.
      measures: measures of a table without quotations.
    """

    of: str
    about: str
    quoted: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    configs: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()


class Paper(NamedTuple):
    """The tables of a paper.

    Attributes:
      title: authors and year.
      methods: modules of the paper's stages. A run belongs to the paper if its last stage is one of them.
      tables: tables by their names; `ERRORS` is the first.
    """

    title: str
    methods: tuple[str, ...]
    tables: dict[str, Table]


def repeats(config: Mapping[str, Any], stage: str, row: Row) -> bool:
    """Tell whether a stage of a run, whose config is `config`, repeats a row of the paper."""
    values = [(config[stage], row.keys), (config, row.whole)]
    return stage == row.stage and all(_has(at, *pair) for at, wanted in values for pair in wanted.items())


def _has(section: Mapping[str, Any], key: str, wanted: Any) -> bool:
    """Tell whether a section has a key with the wanted value."""
    value: Any = section
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    if isinstance(wanted, bool):
        return (value > 0) == wanted
    return value in wanted if isinstance(wanted, tuple) else value == wanted


def words_of(row: Row) -> tuple[str, list[str]]:
    """The arguments behind the colon of a config, and its overrides, that make a row.

    >>> words_of(Row("a/b", "c", "cgb", {}, made="init=scratch cgb.bottleneck=fixed"))
    ('init=scratch', ['cgb.bottleneck=fixed'])
    """
    words = row.made.split()
    overrides = [word for word in words if "." in word.partition("=")[0]]
    return ",".join(word for word in words if word not in overrides), overrides


def chosen(paper: str, name: str) -> Table:
    """A table of a paper by its name, the errors by default. Raises UserError for an unknown paper or name."""
    if paper not in PAPERS:
        raise UserError(f"--paper is {paper!r}; use one of {', '.join(PAPERS)}")
    tables = PAPERS[paper].tables
    if (name or ERRORS) not in tables:
        raise UserError(
            f"--table is {name!r}; the tables of {paper} are {', '.join(tables)} (--table={LIST} tells what they are)"
        )
    return tables[name or ERRORS]


def told(paper: str) -> list[str]:
    """Lines that list the tables of a paper (`--table=list`)."""
    chosen(paper, "")
    lines = [f"Tables of {PAPERS[paper].title}:"]
    for name, table in PAPERS[paper].tables.items():
        lines += ["", f"  --table={name}  {table.of}: {table.about}"]
        lines += [f"      trained by papers/{', papers/'.join(table.configs)}"] if table.configs else []
        lines += [f"      uld {command}" for command in table.measured]
        lines += [f"      {row.name}: {' '.join(_made(row))}" for row in table.rows if row.made]
        lines += [] if table.quoted else ["      No number is quoted."]
    return lines


def _made(row: Row) -> list[str]:
    """What makes a row, as it is written on a command line."""
    argument, overrides = words_of(row)
    return [*([f"--config=...:{argument}"] if argument else []), *(f"--config.{word}" for word in overrides)]


def markdown(quoted: Callable[[str], Mapping[str, Any]]) -> str:
    """Format all tables of all papers as a table of Markdown, for `docs/papers.md`; `quoted` reads one."""
    titles = ("paper", "`--table=`", "what", "measured by", "rows by overrides", "protocols of the quotations")
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for paper, one in PAPERS.items():
        for name, table in one.tables.items():
            made = [f"{row.name}: {' '.join(f'`{word}`' for word in _made(row))}" for row in table.rows if row.made]
            short = [command.replace(f" {_RUN}", "").replace(" --data_dir=DATA", "") for command in table.measured]
            commands = "; ".join(f"`uld {command}`" for command in short) or "–"
            of = f"{table.of}: {table.about}"
            ids = "; ".join(_protocols(table.quoted, quoted)) if table.quoted else "no number is quoted"
            cells = (f"`{paper}`", f"`{name}`", of, commands, "; ".join(made) or "–", ids)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _protocols(names: Sequence[str], quoted: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """The ids under which the numbers of tables of quotations were measured; last the data without one."""
    known, unknown = {}, {}
    for data, protocol in (pair for name in names for pair in _measured(quoted(name))):
        (known if protocol else unknown)[f"`{protocol}`" if protocol else data] = None
    return [*known, *([f"not known for {', '.join(unknown)}"] if unknown else [])]


def _measured(table: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Data and protocol of the numbers of a table of quotations."""
    for record in table["records"]:
        for column in table["columns"]:
            if column["keys"][0] in record["numbers"]:
                yield column["data"], protocol_of(record, column)


def protocol_of(record: Mapping[str, Any], column: Mapping[str, Any]) -> str | None:
    """The id of a quoted number: that of its record before that of its column; None if it is not known."""
    return (column["protocol"] if record["protocol"] is None else record["protocol"]) or None


# The papers

_RUN = "--workdir=RUN"


def _evaluated(*datasets: str, more: str = "") -> tuple[str, ...]:
    """Commands of `uld evaluate`, one for each data set; an empty name is the run's own data."""
    on = {name: f" --dataset={name} --data_dir=DATA" if name else "" for name in datasets}
    return tuple(f"evaluate {_RUN}{where}{more}" for where in on.values())


_ALL_TURNED = " --config.eval.stability_images=0"
_CGB_CONFIGS = ("cgb_mafl", "cgb_aflw", "cgb_ls3d", "cgb_cats")
_STARTED = {"warmup.start": ("checkpoint", "zeroshot", "previous")}
_SCRATCH = {"warmup.start": "scratch"}
_FIXED = "cgb.bottleneck=fixed"


def _cgb(table: str, name: str, made: str = "", whole=_STARTED, **keys) -> Row:
    """A row of CGB; by default with the graph that gives its clusters."""
    usual = {"bottleneck": "adaptive", "clustering": ("gcn", "density")}
    return Row(f"cgb/{table}", name, "cgb", usual | keys, whole, made)


def _baseline(table: str, made: str = _FIXED, whole=_STARTED) -> Row:
    """The row of CGB's baseline, whose rounds change nothing."""
    return Row(f"cgb/{table}", "baseline", "cgb", {"bottleneck": "fixed"}, whole, made)


_CGB = Paper(
    "Awan et al. (CGB)",
    ("cgb",),
    {
        ERRORS: Table(
            "tables 1 to 3",
            "forward and backward errors",
            ("cgb/published",),
            (_baseline("published"), _cgb("published", "CGB")),
            _CGB_CONFIGS,
            _evaluated("mafl_cgb", ""),
        ),
        "others": Table("tables 1 to 3", "errors of other methods", ("cgb/published_others",)),
        "stability": Table(
            "table 4",
            "stability",
            ("cgb/published_stability",),
            (_baseline("published_stability"), _cgb("published_stability", "CGB")),
            (*_CGB_CONFIGS, "cgb_shoes"),
            _evaluated("mafl_cgb", "", more=_ALL_TURNED),
        ),
        "clusters": Table(
            "table 5",
            "separation of the clusters at epochs 65 and 110, which the training itself measures",
            ("cgb/published_clusters",),
            (
                _cgb("published_clusters", "k-means", "cgb.clustering=kmeans", clustering="kmeans"),
                _cgb("published_clusters", "graph", clustering="gcn"),
            ),
            ("cgb_aflw", "cgb_cats"),
        ),
        "scratch": Table(
            "table 6",
            "errors of a detector that starts from random weights",
            ("cgb/published_scratch",),
            (
                _baseline("published_scratch", f"init=scratch {_FIXED}", _SCRATCH),
                _cgb("published_scratch", "CGB", "init=scratch", _SCRATCH),
            ),
            ("cgb_mafl", "cgb_aflw", "cgb_cats"),
            _evaluated("mafl_cgb", ""),
        ),
        "kmeans": Table(
            "table 7",
            "errors with clusters of k-means",
            ("cgb/published_kmeans",),
            (
                _baseline("published_kmeans"),
                _cgb("published_kmeans", "CGB, k-means", "cgb.clustering=kmeans", clustering="kmeans"),
                _cgb("published_kmeans", "CGB, graph", clustering="gcn"),
            ),
            ("cgb_mafl", "cgb_cats", "cgb_ls3d"),
            _evaluated("mafl_cgb", ""),
        ),
        "neighbours": Table(
            "table 8",
            "errors with other numbers of neighbours in the graph",
            ("cgb/published_neighbours",),
            tuple(
                _cgb(
                    "published_neighbours",
                    f"{count}",
                    f"cgb.graph.neighbours={count}" if count != 80 else "",
                    **{"graph.neighbours": count},
                )
                for count in (40, 80, 120)
            ),
            ("cgb_aflw",),
            _evaluated(""),
        ),
        "yaw": Table(
            "figure 1, right",
            "errors by ranges of yaw",
            (),
            measures=("forward_yaw", "backward_yaw"),
            configs=("cgb_aflw",),
            measured=_evaluated("", more=" --group_by=yaw:0,30,60,90"),
        ),
    },
)

_FIRST = {"method": "self_training.Landmarks"}
_SELF_TRAINING = Paper(
    "Mallis et al. (NeurIPS 2020 and TPAMI 2024)",
    ("self_training", "self_training_extended"),
    {
        ERRORS: Table(
            "tables 1 to 3 of Awan et al., table 1 of Tourani et al.",
            "forward and backward errors of the first and of the extended version, as others quote them",
            ("self_training/published", "self_training/published_extended"),
            (
                Row("self_training/published", "self-training", "stage2", _FIRST),
                Row(
                    "self_training/published_extended",
                    "self-training, extended",
                    "stage2",
                    {"method": "self_training_extended.Landmarks"},
                    made="variant=extended",
                ),
            ),
            ("self_training_aflw", "self_training_ls3d"),
            _evaluated("mafl", ""),
        ),
        "keypoints": Table(
            "figure 2b",
            "errors from other initial keypoints",
            ("self_training/published_keypoints",),
            (
                Row(
                    "self_training/published_keypoints",
                    "SuperPoint",
                    "stage2",
                    _FIRST,
                    {"keypoints.generic.detector": "superpoint"},
                ),
            ),
            ("self_training_mafl", "self_training_aflw"),
            _evaluated("mafl", ""),
        ),
        "pairs": Table(
            "figure 2c",
            "agreement of clusters and landmarks where pairs are two views of one image",
            ("self_training/published_pairs",),
            (
                Row(
                    "self_training/published_pairs",
                    "augmented",
                    "stage1",
                    {"method": "self_training.Correspondence", "pairs": "augmented"},
                    made="stage1.pairs=augmented",
                ),
            ),
            ("self_training_aflw",),
            _evaluated("", more=" --stage=stage1"),
        ),
    },
)

_TOURANI = "Tourani et al. (CVPR 2024)"
_ZEROSHOT_CONFIGS = ("zeroshot_mafl", "zeroshot_aflw", "zeroshot_ls3d", "zeroshot_cats")
_ZEROSHOT_ROW = Row("zeroshot/published", "ZeroShot", "zeroshot", {})
_ZEROSHOT = Paper(
    f"{_TOURANI}, ZeroShot alone",
    ("zeroshot", "heatmap_detector"),
    {
        ERRORS: Table(
            "table 1",
            "forward and backward errors",
            ("zeroshot/published",),
            (_ZEROSHOT_ROW,),
            _ZEROSHOT_CONFIGS,
            _evaluated("mafl", "", more=" --stage=zeroshot"),
        ),
    },
)

_DULD_CONFIGS = ("duld_mafl", "duld_aflw", "duld_ls3d", "duld_cats")


def _clusters(dataset: str = "") -> str:
    where = f" --dataset={dataset} --data_dir=DATA" if dataset else ""
    return f"clusters {_RUN}{where} --split=test --most=10000 --clustering=landmark"


_DULD = Paper(
    _TOURANI,
    ("zeroshot", "heatmap_detector", "duld"),
    {
        ERRORS: Table(
            "tables 1 and 2",
            "forward and backward errors, and the ablation of D-ULD++",
            ("zeroshot/published", "duld/published"),
            (
                _ZEROSHOT_ROW,
                Row("duld/published", "D-ULD", "duld", {"train_clusters": 0}),
                Row("duld/published", "+ proxy", "proxy", {}),
                Row("duld/published", "+ full VAE", "duldpp", {"code_loss": "elbo"}, made="duldpp.code_loss=elbo"),
                Row("duld/published", "D-ULD++", "duldpp", {"code_loss": "contrast"}),
                Row(
                    "duld/published",
                    "Mallis et al. on these features",
                    "duld",
                    {"train_clusters": 100},
                    made="duld.train_clusters=100",
                ),
            ),
            (*_ZEROSHOT_CONFIGS, *_DULD_CONFIGS),
            _evaluated("mafl", ""),
        ),
        "others": Table("table 1", "errors of other methods", ("duld/published_others",)),
        "clusters": Table(
            "table 3",
            "separation of descriptors by landmark; ZeroShot has none that are stored",
            ("zeroshot/published_clusters", "duld/published_clusters"),
            tuple(
                Row(
                    "duld/published_clusters",
                    f"{name}, K = {k}",
                    stage,
                    keys,
                    {"k": k},
                    made="k=30" if k == 30 else "",
                )
                for name, stage, keys in (
                    ("D-ULD", "duld", {"train_clusters": 0}),
                    ("D-ULD++, Q = 10", "duldpp", {"code_loss": "contrast", "pose.pose_clusters": 10}),
                )
                for k in (10, 30)
            ),
            ("duld_mafl", "duld_aflw"),
            (_clusters("mafl"), _clusters()),
        ),
        "stability": Table(
            "table 4 of the supplement",
            "stability",
            ("duld/published_stability",),
            (Row("duld/published_stability", "D-ULD++", "duldpp", {"code_loss": "contrast"}),),
            _DULD_CONFIGS,
            _evaluated("mafl", "", more=_ALL_TURNED),
        ),
        "yaw": Table(
            "figure 3b",
            "errors by ranges of yaw",
            (),
            measures=("forward_yaw", "backward_yaw"),
            configs=("duld_aflw",),
            measured=_evaluated("", more=" --group_by=yaw:-90,-60,-30,30,60,90"),
        ),
    },
)

_C3_ALIGNED = "c3/published_alignment"
_C3 = Paper(
    "Xu et al. (2020, C3)",
    ("c3", "c3_pose"),
    {
        ERRORS: Table(
            "table 1",
            "forward errors",
            ("c3/published",),
            (Row("c3/published", "C3", "joint", {"losses.cycle": True, "losses.equivariance": True}),),
            ("c3_mafl", "c3_aflw"),
            _evaluated("mafl_imm", "aflw_r_imm"),
        ),
        "others": Table("table 1", "forward errors of other methods", ("c3/published_others",)),
        "ablation": Table(
            "table 2",
            "forward errors without the cycle and without the flow",
            ("c3/published_ablation",),
            tuple(
                Row(
                    "c3/published_ablation",
                    f"{word[cycle]}, {word[flow]}",
                    "joint",
                    {"losses.cycle": cycle, "losses.equivariance": flow},
                    made=f"cell={cell}",
                )
                for word in ({True: "yes", False: "no"},)
                for cell, cycle, flow in (
                    ("none", False, False),
                    ("flow", False, True),
                    ("cycle", True, False),
                    ("both", True, True),
                )
            ),
            ("c3_mafl",),
            _evaluated("mafl_imm"),
        ),
        "alignment": Table(
            "table 3",
            "semantic alignment",
            (_C3_ALIGNED,),
            (
                Row(
                    _C3_ALIGNED,
                    "NC-Net, as quoted",
                    "flow",
                    {"start": "ncnet"},
                    made="flow.start=ncnet flow.matcher.form=full flow.net.depth=101",
                ),
                Row(_C3_ALIGNED, "C3, the flow alone", "finetune", {"objective": "weak"}),
                Row(_C3_ALIGNED, "C3, with landmarks", "joint", {"losses.weak": True}, made="task=both"),
            ),
            ("c3_pf_pascal",),
            (f"align {_RUN}",),
        ),
        "categories": Table(
            "no table",
            "semantic alignment by categories",
            (),
            measures=("pck_category",),
            configs=("c3_pf_pascal",),
            measured=(f"align {_RUN}",),
        ),
    },
)

_BYOL, _MOCO, _DENSE = {"byol.method": "lead.Byol"}, {"moco.method": "lead.Moco"}, f"dense {_RUN}"
_DEEP = {"steps": True, "encoder.depth": 50}  # hypercolumns of 3,840 numbers


def _hypercolumns(table: str, of: str = "LEAD", suffix: str = "") -> Row:
    """The row of hypercolumns of stage 1, trained by LEAD's objective or by that of ContrastLandmarks."""
    stage, made = ("byol", "") if of == "LEAD" else ("moco", "stage1=moco")
    return Row(f"lead/{table}", f"{of}, {suffix}", stage, _DEEP, made=made)


def _compact(table: str, name: str, size: int = 64, head: int | None = None, start=_BYOL, learns="alignment") -> Row:
    """A row of features of a few numbers, with a head of 256 unless the row is of another one."""
    keys = {"method": "lead_compact.Compact", "size": size, "head": 256 if head is None else head, "objective": learns}
    words = {"stage1=moco": start is _MOCO, f"compact.size={size}": size != 64}
    words |= {f"compact.head={head}": head not in (None, 256), f"compact.objective={learns}": learns != "alignment"}
    return Row(f"lead/{table}", name, "compact", keys, start, " ".join(word for word, given in words.items() if given))


def _nmf(size: int) -> Row:
    """The row of non-negative factors of stage 1."""
    made = "compact=nmf" + (f" compact.size={size}" if size != 64 else "")
    keys = {"method": "lead_compact.Nmf", "size": size}
    return Row("lead/published_matching", f"BYOL + NMF, {size}", "compact", keys, _BYOL, made)


_SIZES = (64, 128, 256)
_RELEASED = Row(
    "lead/published_regression",
    "ContrastLandmarks, hypercolumns",
    "byol",
    {"start": "checkpoint", "steps": False},
    made="byol.start=checkpoint byol.steps=0",
)


def _dense(measure: str, *datasets: str, more: str = "") -> tuple[str, ...]:
    return tuple(f"{_DENSE} --dataset={name} --data_dir=DATA --measure={measure}{more}" for name in datasets)


_REGRESSED = (
    *_dense("regression", "mafl_dve", "w300_dve"),
    *_dense("regression", "aflw_m", "aflw_r_dve", more=" --epochs=45"),
)
_LEAD = Paper(
    "Karmali et al. (WACV 2022, LEAD)",
    ("lead", "lead_compact"),
    {
        ERRORS: Table(
            "tables 1, 2 and 4",
            "regression and matching by LEAD's features",
            ("lead/published",),
            (
                _hypercolumns("published", suffix="hypercolumns"),
                _compact("published", "LEAD, 64 numbers"),
            ),
            ("lead_celeba",),
            (*_REGRESSED, *_dense("matching", "mafl_dve")),
        ),
        "others": Table("table 2", "landmark regression by other methods", ("lead/published_others",)),
        "matching": Table(
            "table 1",
            "landmark matching by features of several sizes",
            ("lead/published_matching",),
            (
                *(_nmf(size) for size in (64, 256)),
                *(_compact("published_matching", f"LEAD, {size}", size) for size in (64, 256)),
                _hypercolumns("published_matching", "ContrastLandmarks", "3840"),
                _hypercolumns("published_matching", suffix="3840"),
            ),
            ("lead_celeba",),
            _dense("matching", "mafl_dve"),
        ),
        "regression": Table(
            "table 2",
            "landmark regression with all labels; rows of other methods by their own protocols",
            ("lead/published_regression",),
            (
                _hypercolumns("published_regression", suffix="hypercolumns"),
                _hypercolumns("published_regression", "ContrastLandmarks", "hypercolumns"),
                _RELEASED,
            ),
            ("lead_celeba",),
            (*_REGRESSED, *(f"{one} --protocol=contrast_landmarks2021" for one in _REGRESSED)),
        ),
        "head": Table(
            "table 3",
            "landmark matching with other projection heads",
            ("lead/published_head",),
            tuple(
                _compact("published_head", f"{size}, {head or 'none'}", size, head)
                for size, head in ((64, 0), (64, 64), (64, 256), (128, 256), (256, 256))
            ),
            ("lead_celeba",),
            _dense("matching", "mafl_dve"),
        ),
        "sizes": Table(
            "table 4",
            "landmark regression by features of several sizes",
            ("lead/published_sizes",),
            tuple(_compact("published_sizes", f"LEAD, {size}", size) for size in _SIZES),
            ("lead_celeba",),
            _REGRESSED,
        ),
        "few": Table(
            "table 5",
            "landmark regression with a few labels",
            ("lead/published_few",),
            (
                *(_compact("published_few", f"LEAD, {size}", size) for size in _SIZES),
                _hypercolumns("published_few", "ContrastLandmarks", "3840"),
                _hypercolumns("published_few", suffix="3840"),
            ),
            ("lead_celeba",),
            _dense("regression", "aflw_m", more=" --labels=1,5,10,20,50,100"),
        ),
        "objectives": Table(
            "table 6",
            "landmark regression by the objectives of both stages",
            ("lead/published_objectives",),
            tuple(
                _compact("published_objectives", f"{first}, {second}, {size}", size, start=start, learns=learns)
                for first, start in (("ContrastLandmarks", _MOCO), ("LEAD", _BYOL))
                for second, learns in (("ContrastLandmarks", "equivariance"), ("LEAD", "alignment"))
                for size in _SIZES
            ),
            ("lead_celeba",),
            _dense("regression", "aflw_m", more=" --epochs=45"),
        ),
    },
)

_IMM = Paper(
    "Jakab et al. (NeurIPS 2018, IMM)",
    ("imm",),
    {
        ERRORS: Table(
            "table 1 of Xu et al.",
            "forward errors",
            ("imm/published",),
            (Row("imm/published", "IMM", "imm", {}),),
            ("imm_mafl", "imm_aflw"),
            _evaluated("mafl_imm", ""),
        )
    },
)

PAPERS = {
    "imm": _IMM,
    "cgb": _CGB,
    "self_training": _SELF_TRAINING,
    "zeroshot": _ZEROSHOT,
    "duld": _DULD,
    "c3": _C3,
    "lead": _LEAD,
}
