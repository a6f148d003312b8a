"""The registry of published protocols: one row for each measurement whose numbers a paper or its program gives.

A row holds the data, the number of fitted images, the regressor, the normaliser and the metric. Its id stands for all
of these, so a number has a bare id only if it was measured on the row's data under the row's choices. What departs is
written behind the id (`chosen.py`):

  mafl_5_full                       Mallis et al. 2024 and Tourani et al. on MAFL: all images, ridge 0.001 and 0.1
  mafl_5_full+ridge=0.1             both ridges of strength 0.1
  mafl_68_300+data=folder           the same choices on photos of a folder

`uld evaluate` has the ids of `Protocol`; ids of `dense` are those that `uld dense` writes, and `uld align` writes the
split and the part of the pairs behind its ids (`pf_pascal_ncnet+test+all_pairs`). Measures of no annotation have ids of
the data and the measure (`plain`): stability, `mafl_cgb+turned_15_px_128`, and the separation of clusters, that of
`uld clusters` (`mafl+landmark_10000`) and of a training's rounds (`cats_cgb+rounds_8000`). If a paper and its published
program differ, both have a row. The table in `docs/evaluation.md` is made from this one by `make results`.
"""

from typing import NamedTuple

from uld_jax.data.schemes import NO_SCHEME
from uld_jax.errors import UserError
from uld_jax.evaluation import protocol as papers
from uld_jax.evaluation.protocol import PAPERS, Protocol

AUTO = "auto"


class RowData(NamedTuple):
    """Data and normaliser of a published protocol.

    Attributes:
      name: name of the data set.
      scheme: scheme of the annotated points (`data.schemes.SCHEMES`), or `none`.
      landmarks: L, number of annotated points; 0 for pairs of images with any number of keypoints.
      normaliser: length that errors are divided by, as `data.normaliser` names it.
      train: images that regressors are fitted on, in words.
      train_images: number of images of the training split; 0 if no source gives it.
      test: images that are measured, in words.
      test_images: number of measured images, or pairs; 0 if no source gives it.
      sides: meaning of left and right of a body's joints (`data.sides`).
    """

    name: str
    scheme: str
    landmarks: int
    normaliser: str
    train: str
    train_images: int
    test: str
    test_images: int
    sides: str = "object"


class Row(NamedTuple):
    """A published protocol.

    Attributes:
      id: id of its numbers.
      papers: names of the papers that measure so: in `protocol.PAPERS`, in `dense.protocols.PRESETS`, or `rocco2018`.
        `auto` takes the first row of the run's paper for the run's data.
      table: table of the paper; empty if only a program has the numbers, or if the table is not known.
      data: data and normaliser.
      choices: `Protocol` of errors; for `dense` the name of a preset, for `align` that of a protocol of
        `alignment.pck`, and the measure's own id for measures of no annotation.
      metric: what is measured.
      source: section of a paper, or published program and its file, and what of the row is ours.
      often: True if numbers are over the landmarks that are found often (`Protocol.min_found`).
      command: `uld` command that measures it.
    """

    id: str
    papers: tuple[str, ...]
    table: str
    data: RowData
    choices: Protocol | str
    metric: str
    source: str
    often: bool = False
    command: str = "evaluate"

    @property
    def errors(self) -> bool:
        """Whether the row is of the forward and backward errors of `uld evaluate`."""
        return isinstance(self.choices, Protocol)

    @property
    def fitted(self) -> int:
        """Number of images of one fit; 0 if no source gives it."""
        if not self.errors:
            return self.data.train_images
        return self.choices.fit_images or self.choices.pool_images or self.data.train_images


# Numbers of images are those of the published lists; the programs of Sanchez and of Awan et al. leave three out.
_MAFL = RowData("mafl", "eyes_nose_mouth5", 5, "eyes", "MAFL training list", 19_000, "MAFL test list", 1000)
_MAFL_CGB = _MAFL._replace(
    name="mafl_cgb", train="MAFL training list without 031524, 139803 and 179577", train_images=18_997
)
_MAFL_SAIC = _MAFL_CGB._replace(name="mafl_saic")
_MAFL_DVE = _MAFL._replace(name="mafl_dve")
_MAFL_IMM = _MAFL._replace(name="mafl_imm", train="MAFL training list without its last tenth", train_images=17_100)
_MAFL_68 = _MAFL._replace(scheme="ibug68", landmarks=68, normaliser="41-46")  # points that a detector has found
_AFLW = RowData("aflw_r", "eyes_nose_mouth5", 5, "eyes", "AFLW training list", 10_122, "AFLW test list", 2991)
_AFLW_CGB, _AFLW_SAIC, _AFLW_DVE = (_AFLW._replace(name=f"aflw_r_{rule}") for rule in ("cgb", "saic", "dve"))
_AFLW_IMM = _AFLW._replace(name="aflw_r_imm", train="AFLW training list without its last tenth", train_images=9110)
_AFLW_M = _AFLW._replace(name="aflw_m", train="AFLW training crops", test="AFLW test list of MTFL", test_images=2995)
_LS3D = RowData("ls3d", "ibug68", 68, "box", "300W-LP", 61_225, "LS3D-W balanced", 7200)
_LS3D_CGB = _LS3D._replace(name="ls3d_cgb", test="first 870 of LS3D-W", test_images=870)
_LS3D_MALLIS = _LS3D._replace(name="ls3d_mallis")
_W300_DVE = RowData("w300_dve", "ibug68", 68, "eyes", "300-W, 3,148 images", 3148, "300-W, 689 images", 689)
_CATS = RowData("cats", "cat9", 9, "box", "first three quarters", 7497, "the other images", 2500)
_CATS_CGB = _CATS._replace(name="cats_cgb")
_HUMAN36M = RowData(
    "human36m", "human36m_32", 32, "shoulders", "frames of S1, S5, S6, S7, S8, S9", 0, "frames of S11", 0, "image"
)
_BBC_POSE = RowData("bbc_pose", "bbc_pose7", 7, "shoulders", "training videos", 0, "annotated test frames", 1000)
_SHOES = RowData("shoes", NO_SCHEME, 0, "none", "first three quarters", 0, "the other images", 0)
_PF_PASCAL = RowData("pf_pascal", NO_SCHEME, 0, "image", "none", 0, "pairs of the test list", 299)

_BOTH, _FORWARD = "forward and backward NME", "forward NME"
_ALL, _FEW = "regression, all labels", "regression, a few labels"
_MATCHING, _PERCENT = "matching, canonical pixels", "matching, percent"
_STABILITY, _SEPARATION = "stability", "silhouette and Calinski-Harabasz index of descriptors"
_ALL_2024 = papers.MALLIS_2024._replace(fit_images=0, repeats=1)
_LISTED_2020 = {"pool_from": "first", "backward_draw": "first"}  # of the program of 2020
_CGB = "CGB_ULD @ 2b572a7, test.py"
_SAIC = "SAIC-Unsupervised-landmark-detection-NeurIPS2019 @ 64e8dae, test.py"
_P2020, _C2020 = "Mallis et al., NeurIPS 2020, section 4", "UnsupervisedLandmarks @ 86caabf, evaluation.py"
_P2024, _C2024 = "Mallis et al., TPAMI 2024, evaluation", "KeypointsToLandmarks @ 3b18231"
_TOURANI = "Tourani et al., section 4 and table 1"
_CL = "ContrastLandmark @ 5b2c6b3, its scripts of face regression; the last state, not the best on the test images"
_DVE = "DVE @ 2085144, its configs of face regression"
_SQUARED = "LEAD, section 3.4, with the squared error that it names; all else as ContrastLandmark"
_TURNED = (
    "angles, and pixels of a view of 128, of Sanchez and Tzimiropoulos, NeurIPS 2019; turns without sizes are ours"
)
_CGB_TURNED, _TOURANI_TURNED = (
    f"{paper}; {_TURNED}" for paper in ("Awan et al., stability analysis", "Tourani et al., supplement, section 8")
)
_CGB_ROUNDS = "Awan et al., section 4; that these are the 8,000 descriptors of a round (CGB_ULD @ 2b572a7) is ours"
_TOURANI_CLUSTERS = "Tourani et al., section 5; descriptors of the test images, and at most 10,000 of them, are ours"

# fmt: off
ROWS = (
    Row("mafl_5_full", ("mallis2024", "tourani2024"), "1 of Tourani et al.", _MAFL, _ALL_2024, _FORWARD,
        f"{_C2024}, Evaluators/evalCelebA.py, whose ten draws of all images are one, and whose backward error is from "
        "68 points; Tourani et al., caption of table 1; the backward error from 5 points is ours"),
    Row("mafl_5_awan", ("awan2023",), "1", _MAFL, papers.AWAN_2023, _BOTH, f"Awan et al., evaluation; {_CGB}"),
    Row("mafl_5_awan_code", ("awan2023",), "1", _MAFL_CGB, papers.AWAN_2023, _BOTH, f"{_CGB}, and its lists"),
    Row("mafl_5_sanchez", ("sanchez2019",), "", _MAFL_SAIC, papers.SANCHEZ_2019, _BOTH,
        f"{_SAIC}, with the strength of README.md and its default crop"),
    Row("mafl_5_sanchez_default", ("sanchez2019",), "", _MAFL_SAIC,
        papers.SANCHEZ_2019._replace(ridge_forward=1e-5, ridge_backward=1e-5), _BOTH,
        f"{_SAIC}, with its default strength and crop"),
    Row("mafl_5_imm", ("jakab2018",), "", _MAFL_IMM, papers.JAKAB_2018, _FORWARD, "imm @ 0fee6b2, scripts/test.py"),
    Row("mafl_5_imm_bias", ("jakab2018",), "", _MAFL_IMM, papers.JAKAB_2018._replace(intercept=True), _FORWARD,
        "imm @ 0fee6b2, scripts/test.py --bias"),
    Row("mafl_68_300", ("mallis2024",), "", _MAFL_68, papers.MALLIS_2024, _BOTH,
        f"{_P2024}; {_C2024}, Evaluators/evalCelebA.py, for the ridges"),
    Row("mafl_68_301_code", ("mallis2024",), "", _MAFL_68, papers.MALLIS_2024._replace(fit_images=301), _BOTH,
        f"{_C2024}, utils.py, whose slice to n + 1 draws 301 images"),
    Row("mafl_68_300x5", ("tourani2024",), "1", _MAFL_68, papers.TOURANI_2024, _BOTH, f"{_TOURANI}; {_P2024}"),
    Row("mafl_68_2020", ("mallis2020",), "", _MAFL_68, papers.MALLIS_2020, _BOTH,
        f"{_P2020}; a pool that is spread over the list is ours", often=True),
    Row("mafl_68_2020_code", ("mallis2020",), "", _MAFL_68, papers.MALLIS_2020._replace(**_LISTED_2020), _BOTH,
        _C2020, often=True),
    Row("aflw_5_full", ("mallis2024", "tourani2024"), "1 of Tourani et al.", _AFLW, _ALL_2024, _BOTH,
        f"{_TOURANI}; no program has AFLW, and the ridges are those of MAFL (ours)"),
    Row("aflw_5_2020", ("mallis2020",), "", _AFLW, papers.MALLIS_2020, _BOTH,
        f"{_P2020}; the program has no AFLW, and the numbers of images are those of MAFL (ours)", often=True),
    Row("aflw_5_awan", ("awan2023",), "1", _AFLW, papers.AWAN_2023, _BOTH, f"Awan et al., evaluation; {_CGB}"),
    Row("aflw_5_awan_code", ("awan2023",), "1", _AFLW_CGB, papers.AWAN_2023, _BOTH, f"{_CGB}, and its crops"),
    Row("aflw_5_sanchez", ("sanchez2019",), "", _AFLW_SAIC, papers.SANCHEZ_2019, _BOTH,
        f"{_SAIC}, with the strength of README.md and its default crop"),
    Row("aflw_5_imm", ("jakab2018",), "", _AFLW_IMM, papers.JAKAB_2018, _FORWARD, "imm @ 0fee6b2, scripts/test.py"),
    Row("ls3d_68_300", ("mallis2024", "mallis2024_ls3d"), "", _LS3D, papers.MALLIS_2024_LS3D, _BOTH,
        f"{_P2024}; {_C2024}, Evaluators/evalLS3D.py, for the ridges; a pool that is spread over 300W-LP is ours"),
    Row("ls3d_68_301_code", ("mallis2024", "mallis2024_ls3d"), "", _LS3D_MALLIS,
        papers.MALLIS_2024_LS3D._replace(fit_images=301, pool_from="first"), _BOTH,
        f"{_C2024}, Evaluators/evalLS3D.py, its curves"),
    Row("ls3d_68_1000_code", ("mallis2024", "mallis2024_ls3d"), "", _LS3D_MALLIS,
        papers.MALLIS_2024_LS3D._replace(fit_images=0, repeats=1, pool_from="first"), _FORWARD,
        f"{_C2024}, Evaluators/evalLS3D.py, the error that it logs"),
    Row("ls3d_68_300x5", ("tourani2024", "tourani2024_ls3d"), "1", _LS3D, papers.TOURANI_2024_LS3D, _BOTH,
        f"{_TOURANI}; {_P2024}"),
    Row("ls3d_68_2020", ("mallis2020",), "", _LS3D, papers.MALLIS_2020, _BOTH,
        f"{_P2020}; a pool that is spread over 300W-LP is ours", often=True),
    Row("ls3d_68_2020_code", ("mallis2020",), "", _LS3D_MALLIS, papers.MALLIS_2020._replace(**_LISTED_2020), _BOTH,
        _C2020, often=True),
    Row("ls3d_68_awan", ("awan2023",), "2", _LS3D, papers.AWAN_2023, _BOTH, f"Awan et al., evaluation; {_CGB}"),
    Row("ls3d_68_awan_code", ("awan2023",), "2", _LS3D_CGB,
        papers.AWAN_2023._replace(pool_images=11_970, pool_from="first"), _BOTH,
        f"{_CGB}, whose order is that of the file system"),
    Row("cat_9_300", ("tourani2024",), "1", _CATS, papers.TOURANI_2024, _BOTH,
        f"{_TOURANI}; no program has cats, and the ridges are those of MAFL (ours)"),
    Row("cat_9_awan", ("awan2023",), "2", _CATS, papers.AWAN_2023, _BOTH,
        "Awan et al., evaluation; our split is of the sorted list"),
    Row("cat_9_awan_code", ("awan2023",), "2", _CATS_CGB, papers.AWAN_2023, _BOTH,
        f"{_CGB}, and its crops; it splits an unsorted list, ours is sorted"),
    Row("human36m_32_800", ("mallis2020", "mallis2020_bodies"), "", _HUMAN36M, papers.MALLIS_2020_BODIES, _BOTH,
        f"{_P2020}; a pool that is spread over the frames is ours", often=True),
    Row("human36m_32_800_code", ("mallis2020", "mallis2020_bodies"), "", _HUMAN36M,
        papers.MALLIS_2020_BODIES._replace(**_LISTED_2020), _BOTH, _C2020, often=True),
    Row("bbc_pose_7_800", ("mallis2020", "mallis2020_bodies"), "", _BBC_POSE, papers.MALLIS_2020_BODIES, _BOTH,
        f"{_P2020}; the program has no BBC Pose, and the numbers of images and the normaliser are those of Human3.6M "
        "(ours)", often=True),
    # Measures of no annotation: their ids are those of `plain`.
    *(Row(f"{data.name}+turned_15_px_128", (paper,), "4", data, "turned_15_px_128", _STABILITY, source)
      for paper, source, every in (
          ("awan2023", _CGB_TURNED, (_MAFL_CGB, _AFLW_CGB, _CATS_CGB, _LS3D_CGB, _SHOES)),
          ("tourani2024", _TOURANI_TURNED, (_MAFL, _AFLW, _CATS, _LS3D)))
      for data in every),
    *(Row(f"{data.name}+rounds_8000", ("awan2023",), "5", data, "rounds_8000", _SEPARATION, _CGB_ROUNDS,
          command="train") for data in (_AFLW_CGB, _CATS_CGB)),
    *(Row(f"{data.name}+landmark_10000", ("tourani2024",), "3", data, "landmark_10000", _SEPARATION,
          _TOURANI_CLUSTERS, command="clusters") for data in (_MAFL, _AFLW)),
    # The ids are those that `uld dense` writes.
    Row("mafl_dve_5_eyes+lead2022+matching", ("lead2022",), "1", _MAFL_DVE, "lead2022", _MATCHING,
        "LEAD, table 1, whose numbers are of DVE's unit; cells of one pixel are ours", command="dense"),
    Row("mafl_dve_5_eyes+lead2022+matching_percent", ("lead2022",), "1", _MAFL_DVE, "lead2022", _PERCENT,
        "LEAD, caption of table 1; cells of one pixel are ours", command="dense"),
    Row("mafl_dve_5_eyes+lead2022+regression_120_epochs", ("lead2022",), "2", _MAFL_DVE, "lead2022", _ALL,
        f"LEAD, section 3.4: as {_CL}", command="dense"),
    Row("aflw_m_5_eyes+lead2022+regression_45_epochs", ("lead2022",), "2", _AFLW_M, "lead2022", _ALL,
        f"LEAD, section 3.4: as {_CL}; --epochs=45", command="dense"),
    Row("aflw_r_dve_5_eyes+lead2022+regression_45_epochs", ("lead2022",), "2", _AFLW_DVE, "lead2022", _ALL,
        f"LEAD, section 3.4: as {_CL}; --epochs=45", command="dense"),
    Row("w300_dve_68_eyes+lead2022+regression_80_epochs", ("lead2022",), "2", _W300_DVE, "lead2022", _ALL,
        f"LEAD, section 3.4: as {_CL}", command="dense"),
    Row("aflw_m_5_eyes+lead2022+regression_1000_epochs_x5", ("lead2022",), "5", _AFLW_M, "lead2022", _FEW,
        f"LEAD, section 4: as {_CL}; five draws are ours", command="dense"),
    Row("mafl_dve_5_eyes+lead2022+squared+regression_120_epochs", ("lead2022",), "2", _MAFL_DVE, "lead2022", _ALL,
        f"{_SQUARED}; --loss=squared", command="dense"),
    Row("aflw_m_5_eyes+lead2022+squared+regression_45_epochs", ("lead2022",), "2", _AFLW_M, "lead2022", _ALL,
        f"{_SQUARED}; --loss=squared --epochs=45", command="dense"),
    Row("aflw_r_dve_5_eyes+lead2022+squared+regression_45_epochs", ("lead2022",), "2", _AFLW_DVE, "lead2022", _ALL,
        f"{_SQUARED}; --loss=squared --epochs=45", command="dense"),
    Row("w300_dve_68_eyes+lead2022+squared+regression_80_epochs", ("lead2022",), "2", _W300_DVE, "lead2022", _ALL,
        f"{_SQUARED}; --loss=squared", command="dense"),
    Row("aflw_m_5_eyes+lead2022+squared+regression_1000_epochs_x5", ("lead2022",), "5", _AFLW_M, "lead2022", _FEW,
        f"{_SQUARED}; --loss=squared; five draws are ours", command="dense"),
    Row("mafl_dve_5_eyes+contrast_landmarks2021+regression_120_epochs", ("contrast_landmarks2021",), "", _MAFL_DVE,
        "contrast_landmarks2021", _ALL, _CL, command="dense"),
    Row("aflw_m_5_eyes+contrast_landmarks2021+regression_45_epochs", ("contrast_landmarks2021",), "", _AFLW_M,
        "contrast_landmarks2021", _ALL, f"{_CL}; --epochs=45", command="dense"),
    Row("aflw_r_dve_5_eyes+contrast_landmarks2021+regression_45_epochs", ("contrast_landmarks2021",), "", _AFLW_DVE,
        "contrast_landmarks2021", _ALL, f"{_CL}; --epochs=45", command="dense"),
    Row("w300_dve_68_eyes+contrast_landmarks2021+regression_80_epochs", ("contrast_landmarks2021",), "", _W300_DVE,
        "contrast_landmarks2021", _ALL, _CL, command="dense"),
    Row("aflw_m_5_eyes+contrast_landmarks2021+regression_1000_epochs_x5", ("contrast_landmarks2021",), "", _AFLW_M,
        "contrast_landmarks2021", _FEW, f"{_CL}; five draws are ours", command="dense"),
    Row("mafl_dve_5_eyes+dve2019+matching", ("dve2019",), "", _MAFL_DVE, "dve2019", _MATCHING,
        "DVE @ 2085144, test_matching.py; our draws of pairs", command="dense"),
    Row("mafl_dve_5_eyes+dve2019+regression_300_epochs", ("dve2019",), "", _MAFL_DVE, "dve2019", _ALL, _DVE,
        command="dense"),
    Row("aflw_m_5_eyes+dve2019+regression_300_epochs", ("dve2019",), "", _AFLW_M, "dve2019", _ALL, _DVE,
        command="dense"),
    Row("aflw_r_dve_5_eyes+dve2019+regression_300_epochs", ("dve2019",), "", _AFLW_DVE, "dve2019", _ALL, _DVE,
        command="dense"),
    Row("w300_dve_68_eyes+dve2019+regression_300_epochs", ("dve2019",), "", _W300_DVE, "dve2019", _ALL, _DVE,
        command="dense"),
    Row("aflw_m_5_eyes+dve2019+regression_50_epochs_x3", ("dve2019",), "", _AFLW_M, "dve2019", _FEW,
        f"{_DVE} of few annotations, whose cached descriptors cancel the warps", command="dense"),
    Row("aflw_m_5_eyes+dve2019+warped+regression_50_epochs_x3", ("dve2019",), "", _AFLW_M, "dve2019", _FEW,
        f"{_DVE} of few annotations, with the warps that they name; --warped", command="dense"),
    # `uld align` writes split and part behind these.
    Row("pf_pascal_ncnet", ("rocco2018",), "", _PF_PASCAL, "pf_pascal_ncnet", "PCK at 0.1",
        "ncnet @ 116a914, lib/pf_dataset.py, procedure `scnet`", command="align"),
    Row("pf_pascal_box", ("rocco2018",), "", _PF_PASCAL._replace(normaliser="box"), "pf_pascal_box", "PCK at 0.1",
        "ncnet @ 116a914, lib/pf_dataset.py, procedure `pf`", command="align"),
)
# fmt: on

BY_ID = {row.id: row for row in ROWS}
EVALUATED = tuple(row.id for row in ROWS if row.errors)


def published(name: str, field: str = "protocol") -> Protocol:
    """The choices of a paper, by its name in `PAPERS`, or of a row, by its id.

    Raises UserError, naming `field`, for an unknown name and for a row that `uld evaluate` does not measure.
    """
    return PAPERS[name] if name in PAPERS else row_of(name, field, PAPERS).choices


def row_of(name: str, field: str, known=("auto",)) -> Row:
    """The row of an id, one that `uld evaluate` measures.

    Raises UserError, naming `field` and the other words that it takes, `known`, for any other id.
    """
    row = BY_ID.get(name)
    if row is None:
        raise UserError(
            f"{field} is {name!r}; use one of {', '.join(known)}, or an id of docs/evaluation.md: "
            f"{', '.join(EVALUATED)}"
        )
    if not row.errors:
        what = f"is measured by `uld {row.command}`" if row.command != "evaluate" else f"is an id of {row.metric} alone"
        raise UserError(f"{field}={name} {what}; use an id such as {EVALUATED[0]}")
    return row


def of_paper(paper: str, data: str, scheme: str, landmarks: int | None) -> Row | None:
    """The first row of a paper for a data set and its points; None if there is none.

    `paper` is a name in `PAPERS`, or an id, which stands for the papers of its row.

    >>> of_paper("tourani2024", "mafl", "ibug68", 68).id, of_paper("awan2023", "folder", "ibug68", 68)
    ('mafl_68_300x5', None)
    """
    names = BY_ID[paper].papers if paper in BY_ID else (paper,)
    for row in ROWS:
        same = row.errors and row.data[:3] == (data, scheme, landmarks)
        if same and set(names) & set(row.papers):
            return row
    return None


def counts(data: RowData, train_images: int | None, test_images: int) -> list[str]:
    """Tell numbers of images that are not those of a row's data; None is a number that does not matter.

    >>> counts(BY_ID["mafl_5_full"].data, 19_000, 30)
    ['test_images=30']
    """
    given = (("train_images", data.train_images, train_images), ("test_images", data.test_images, test_images))
    return [f"{key}={count}" for key, wanted, count in given if wanted and count not in (None, wanted)]


def counted(name: str, train_images: int | None, test_images: int) -> str:
    """An id that `uld dense` has composed, with the `counts` behind it if it is that of a row.

    >>> counted("mafl_dve_5_eyes+dve2019+matching", None, 30), counted("folder_5_eyes+dve2019+matching", None, 30)
    ('mafl_dve_5_eyes+dve2019+matching+test_images=30', 'folder_5_eyes+dve2019+matching')
    """
    return "+".join([name, *(counts(BY_ID[name].data, train_images, test_images) if name in BY_ID else [])])


def plain(data: str, measure: str, images: int, of: int, split: str = "test") -> str:
    """The id of a measure of no annotation, on `images` of the `of` images of a data set's split.

    The number of images is told where it is not that of the registry's row, or only a part of the split.

    >>> plain("mafl_cgb", "turned_15_px_128", 1000, 1000), plain("mafl_cgb", "turned_15_px_128", 30, 30)
    ('mafl_cgb+turned_15_px_128', 'mafl_cgb+turned_15_px_128+images=30')
    >>> plain("shoes", "turned_15_px_128", 200, 900), plain("folder", "turned_15_px_128", 9, 9, "train")
    ('shoes+turned_15_px_128+images=200', 'folder+turned_15_px_128+split=train')
    """
    name = f"{data}+{measure}"
    known = name in BY_ID and BY_ID[name].data.test_images
    part = [f"images={images}"] if images < of or (known and images != known) else []
    return "+".join([name, *part, *([f"split={split}"] if split != "test" else [])])


def fill(config, name: str, field: str) -> None:
    """Give `config.eval` the protocol `name`, a paper of `protocol.PAPERS` or an id, and all its choices.

    `config` is a whole config, unlocked (`configs/common.py`).

    Raises UserError, naming `field`, for an unknown name.
    """
    config.eval.update(published(name, field).asdict())
    config.eval.paper = name
    config.eval.protocol = name if name in BY_ID else AUTO


def markdown() -> str:
    """Format the registry as a table of Markdown, for `docs/evaluation.md`."""
    titles = (
        "id", "paper", "table", "data", "fitted on", "images a fit", "fits", "ridge forward, backward", "intercept",
        "divided by", "missing points", "measured", "source",
    )  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return "\n".join([*lines, *("| " + " | ".join(_cells(row)) + " |" for row in ROWS)])


def _cells(row: Row) -> list[str]:
    """The cells of a row's line in `markdown`."""
    data, choices = row.data, row.choices
    points = f"`{data.name}`" + (f", {data.landmarks} points, `{data.scheme}`" if data.landmarks else "")
    where = f"{points}; {data.test}" + (f" ({data.test_images:,})" if data.test_images else "")
    cells = [f"`{row.id}`", ", ".join(f"`{name}`" for name in row.papers), row.table or "–", where]
    cells.append("none" if row.metric in (_MATCHING, _PERCENT, _STABILITY, _SEPARATION) else data.train)
    if not row.errors:
        fitted = f"{row.fitted:,}" if row.metric == _ALL else "–"
        regressor = [fitted, "–", f"`uld {row.command}`", "–"]
        missing = "–"
    else:
        strengths = f"{choices.ridge_forward:g}, {choices.ridge_backward:g}"
        fits = f"{choices.repeats}" + (", backward one" if choices.backward_draw == "first" else "")
        regressor = [f"{row.fitted:,}" if row.fitted else "all", fits, strengths, "yes" if choices.intercept else "no"]
        missing = f"`{choices.missing}`" + (f", found above {choices.min_found:g}" if row.often else "")
    sides = ", left in the image" if data.sides == "image" else ""
    length = "–" if row.metric in (_STABILITY, _SEPARATION) else f"`{data.normaliser}`{sides}"
    return [*cells, *regressor, length, missing, row.metric, row.source]
