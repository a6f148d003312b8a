"""The presets `paper` beside the papers: every constant that a paper states.

A row is (section, key, value). In `OURS` the value is the paper's and the preset has another, which the config's or the
method's docstring gives with its reason; where a paper says nothing there is no row. `code` is the authors' published
code, for what a text leaves open and for IMM, whose code is followed.
"""

import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax import hyperparameters
from uld_jax.methods import cgb, duld, imm, self_training, self_training_extended, shared

PAPER = {
    "cgb:preset=paper": [
        ("4, training details", "warmup.batch_size", 16),
        ("4, training details", "cgb.batch_size", 16),
        ("4, training details", "cgb.detector_rate", 1e-4),
        ("4, training details", "cgb.generator_rate", 1e-4),
        ("4, training details; code", "warmup.steps + cgb.steps", 145 * 2500),
        ("4, training details; code", "cgb.round_every", 5 * 2500),
        ("4, training details", "cgb.clustering", "gcn"),
        ("4, training details", "cgb.neighbours", 80),
        ("4, landmark detector network", "warmup.start", "checkpoint"),
        ("4, landmark detector network", "cgb.image_size / cgb.downsample", 32),
        ("4, landmark detector network", "cgb.width * 3", 768),
        ("4, landmark detector network", "cgb.descriptor_size", 256),
        ("4, landmark detector network", "cgb.projection", "trained"),
        ("4, footnote 2", "cgb.clusters", 80),
        ("4, stability analysis", "cgb.k", 10),
        ("3.4, eq. 3", "cgb.sigma", "paper"),
        ("3.4, eq. 4", "cgb.bottleneck", "adaptive"),
        ("3", "cgb.loss_window", 1.0),
        ("3", "cgb.generator_first", 0),
        ("code", "cgb.perceptual", 1.0),
        ("code", "warmup.steps", 10 * 2500),
        ("code", "warmup.bottleneck", "fixed"),
        ("code", "cgb.ring_every", 250),
        ("code", "cgb.image_size", 128),
        ("code", "cgb.generator_width", 32),
        ("code", "cgb.generator_blocks", 6),
    ],
    "imm:preset=paper": [
        ("code 1.1", "imm.image_size", 128),
        ("code 1.2", "imm.width", 32),
        ("code 1.4", "imm.gauss_std", 0.10),
        ("code 1.7", "imm.control", 10),
        ("code 1.8", "frame_size * imm.zoom", 128),
        ("code 1.8", "frame_size", 160),
        ("code 1.9", "imm.learning_rate", 1e-3),
        ("code 1.9", "imm.batch_size", 50),
    ],
    "lead:preset=paper": [
        ("4.1", "byol.depth", 50),
        ("4.1", "byol.image_size", 96),
        ("4.1", "byol.batch_size", 256),
        ("4.1", "byol.steps", 200 * (146_501 // 256)),
        ("4.1", "byol.learning_rate", 3e-2),
        ("4.1", "byol.schedule", "cosine"),
        ("4.1", "compact.batch_size", 256),
        ("4.1", "compact.steps", 20 * (146_501 // 256)),
        ("3.3", "compact.tau", 0.05),
        ("3.3", "compact.teacher_tau", 0.05),
        ("3.3", "compact.objective", "alignment"),
        ("4, table 2", "compact.size", 64),
        ("4, table 3", "compact.head", 256),
        ("code", "byol.area", 0.2),
        ("code", "byol.momentum", 0.99),
        ("code", "byol.l2", 1e-4),
    ],
    "lead:preset=paper,stage1=moco": [
        ("code", "moco.queue", 4096),
        ("code", "moco.projection", 128),
        ("code", "moco.temperature", 0.07),
        ("code", "moco.groups", 4),
        ("code", "moco.flip", 0.0),
    ],
    "c3:preset=paper": [
        ("4.1", "paired.depth", 50),
        ("4.1", "paired.start", "checkpoint"),
        ("4.1", "joint.image_size", 128),
        ("4.1", "joint.batch_size", 200),
        ("4.1", "joint.learning_rate", 5e-4),
        ("4.1", "joint.decay_at", (100 * (161_962 // 200), 150 * (161_962 // 200))),
        ("4.1", "joint.steps", 200 * (161_962 // 200)),
        ("appendix", "joint.l2", 1e-4),
        ("4.1", "joint.width", 256),
        ("appendix", "joint.least", 32),
        ("3.1", "joint.softmax", "2d"),
        ("3.2", "flow.form", "separable"),
        ("3.2", "joint.warp", "hard"),
        ("code of IMM", "joint.gauss_std", 0.10),
    ],
    "c3:preset=paper,dataset=pf_pascal,task=alignment": [
        ("appendix", "flow.learning_rate", 5e-4),
        ("appendix", "finetune.learning_rate", 1e-5),
        ("appendix", "finetune.features_learn", True),
        ("code of NC-Net", "flow.batch_size", 16),
        ("code of NC-Net", "flow.image_size", 400),
        ("code of NC-Net", "flow.kernel", 5),
        ("code of NC-Net", "flow.channels", (16, 16, 1)),
    ],
    "zeroshot:preset=paper": [
        ("3.1, feature aggregation", "zeroshot.backbone", "stable_diffusion.StableDiffusion"),
        ("3.1, clustering", "zeroshot.position", 0.0),
        ("3.1, clustering", "zeroshot.region", "box"),
        ("3.1, clustering", "zeroshot.dense", False),
        ("3.1, clustering", "zeroshot.candidates", 0),
        ("3.1, exemplar assignment", "zeroshot.place", "exemplar"),
        ("4, training details", "eval.repeats", 5),
        ("4.1", "zeroshot.k", 10),
    ],
    "duld:preset=paper": [
        ("3.1, feature aggregation", "bootstrap.backbone", "stable_diffusion.StableDiffusion"),
        ("3.2, bootstrapping", "bootstrap.mirror", True),
        ("3.2, bootstrapping", "bootstrap.scale", 0.0),
        ("3.2, bootstrapping", "bootstrap.shift", 0.0),
        ("3.2, bootstrapping", "bootstrap.colour", 0.0),
        ("3.2, self-training", "duld.train_clusters", 0),
        ("3.2, self-training", "duld.start", "clusters"),
        ("3.2, self-training", "duld.place", "exemplar"),
        ("3.2", "duld.position", 0.0),
        ("4, training details", "bootstrap.batch_size", 12),
        ("4, training details", "bootstrap.learning_rate", 1e-4),
        ("4, training details", "bootstrap.steps", 50_000),
        ("4, training details", "duld.steps", 100_000),
        ("4, training details", "duld.round_every", 5_000),
        ("4, training details", "proxy.learning_rate", 5e-5),
        ("4, training details", "proxy.steps", 50_000),
        ("4, training details", "duldpp.steps", 100_000),
        ("4, training details", "duldpp.round_every", 5_000),
        ("3.3.1", "proxy.latent", 64),
        ("3.3.2", "duldpp.code_loss", "contrast"),
        ("3.3.2", "duldpp.train_descriptors", False),
        ("5, table 3", "duldpp.pose_clusters", 10),
        ("4, training details", "eval.repeats", 5),
        ("4.1, table 1", "eval.fit_images", 300),
        ("4.1", "duld.k", 10),
    ],
    "self_training:preset=paper": [
        ("4, network architecture", "frame_size", 256),
        ("4, network architecture", "stage1.image_size", 256),
        ("4, network architecture", "stage1.image_size / stage1.downsample", 64),
        ("4, network architecture", "stage1.descriptor_size", 256),
        ("4, network architecture", "stage2.image_size / stage2.downsample", 64),
        ("4, training", "keypoints.detector", "superpoint"),
        ("4, training", "keypoints._detector.scales", (1.0, 1.3, 1.6)),
        ("4, training", "keypoints.region", "box"),
        ("4, training", "stage1.region", "none"),
        ("4, training", "stage1.warmup", 20_000),
        ("4, training", "stage1.round_every", 10_000),
        ("4, training", "stage1.steps", 300_000),
        ("4, training", "stage1.clusters", 100),
        ("4, training", "stage1.seeding", "previous"),
        ("4, training", "stage1.learning_rate", 5e-4),
        ("4, training", "stage1.schedule", "constant"),
        ("4, training", "stage1.batch_size", 16),
        ("4, training", "stage2.start", "previous"),
        ("4, training", "stage2.learning_rate", 5e-4),
        ("4, training", "stage2.schedule", "constant"),
        ("4, training", "stage2.batch_size", 64),
        ("3.2, eq. 2", "stage1.hinge", "squared"),
        ("3.2", "stage1.memory", "two_rounds"),
        ("3.2", "stage1.target", "gaussian"),
        ("3.3", "stage2.least_images", 0),
        ("4, evaluation", "eval.missing", "svt"),
        ("code", "keypoints.outliers", 0.4),
        ("code", "stage1.cut", 1.0),
        ("code", "stage2.steps", 80_000),
        ("code", "stage2.merge_from", 25_000),
    ],
    # Settings of one data set; the scripts of CGB count epochs of 2,500 steps.
    "papers/cgb_mafl": [
        ("code", "warmup.detector_rate", 1e-5),
        ("code", "cgb.detector_rate", 1e-5),
        ("code", "cgb.generator_rate", 1e-5),
        ("code", "cgb.decay_every", 70 * 2500),
        ("code", "cgb.decay", 0.1),
    ],
    "papers/cgb_aflw": [("code", "(cgb.detector_rate, cgb.decay_every, cgb.decay)", (1e-4, 30 * 2500, 0.1))],
    "papers/cgb_ls3d": [("code", "(cgb.detector_rate, cgb.decay_every, cgb.decay)", (1e-5, 80 * 2500, 0.1))],
    "papers/cgb_cats": [("code", "(cgb.detector_rate, cgb.decay_every, cgb.decay)", (1e-4, 80 * 2500, 0.5))],
    "papers/cgb_shoes": [("code", "(cgb.detector_rate, cgb.decay_every, cgb.decay)", (1e-5, 30 * 2500, 0.1))],
    "papers/lead_celeba": [
        ("4.1", "byol.steps", 200 * (162_770 // 256)),
        ("4.1", "compact.steps", 20 * (162_770 // 256)),
    ],
    "papers/self_training_human36m": [
        ("4, training", "stage1.clusters", 250),
        ("code", "keypoints.background", "clusters"),
        ("code", "keypoints.zoom", 1.0),
        ("code", "frame_size", 450),
        ("code", "round(1 / stage1.zoom, 6)", 1.4),
    ],
    "papers/self_training_bbc_pose": [("4, training", "stage2.clusters", 250)],
    "papers/imm_aflw": [("code", "imm.start", "previous")],
    "self_training:preset=paper,variant=extended": [  # the code alone; the text was not at hand
        ("code", "keypoints._detector.scales", (1.0,)),
        ("code", "keypoints.threshold", 0.15),
        ("code", "stage1.steps", 200_000),
        ("code", "stage1.warmup", 30_000),
        ("code", "stage1.round_every", 5_000),
        ("code", "stage1.learning_rate", 1e-4),
        ("code", "stage1.decay_at", (150_000, 180_000)),
        ("code", "stage1.batch_size", 16),
        ("code", "stage1.nms", 2),
        ("code", "stage1.threshold", 0.15),
        ("code", "stage1.restarts", 10),
        ("code", "stage2.steps", 200_000),
        ("code", "stage2.batch_size", 16),
        ("code", "stage2.learning_rate", 1e-5),
        ("code", "stage2.head_rate", 1e-4),
        ("code", "stage2.decay_at", (50_000, 70_000)),
        ("code", "stage2.cutout", 80 / 256),
    ],
}
OURS = {
    "cgb:preset=paper": [
        ("4, landmark detector network", "cgb.descriptor", "elementwise_max"),
        ("3.2", "cgb.link_space", "descriptor"),
    ],
    "duld:preset=paper": [
        ("supplement, eq. 4", "duld.squared", False),
        ("supplement, eq. 4", "duld.negatives", "cross"),
        ("4, training details", "duldpp.learning_rate", 5e-4),
    ],
}


def resolved(spec, **overrides):
    """Names of a key's expression: stages, with their batch and steps, and what they share."""
    config = config_lib.load(spec, **overrides)

    class Stage:
        def __init__(self, name):
            self._spec = config_lib.stage(config, name)

        def __getattr__(self, name):
            spec, method = self._spec, self._spec.method
            sections = [getattr(method, part) for part in hyperparameters.sections(type(method))]
            return getattr(next(one for one in (spec, method, *sections) if hasattr(one, name)), name)

    names = {name: Stage(name) for name in config.stages}
    return names | {"frame_size": config.data.frame_size, "eval": config.eval}


@pytest.mark.parametrize("spec", PAPER)
def test_a_preset_has_every_constant_of_its_paper(spec):
    names = resolved(spec)
    found = {(section, key): eval(key, {}, names) for section, key, _ in PAPER[spec]}
    assert found == {(section, key): value for section, key, value in PAPER[spec]}


@pytest.mark.parametrize(("spec", "key", "value"), [(s, key, v) for s, rows in OURS.items() for _, key, v in rows])
def test_what_is_not_the_papers_is_a_switch(spec, key, value):
    assert eval(key, {}, resolved(spec)) != value
    assert eval(key, {}, resolved(spec, **{key: value})) == value


@pytest.mark.parametrize("spec", [*tiny.SHIPPED, "cgb:init=zeroshot", "self_training:variant=extended"])
def test_no_preset_enlarges_its_frames_for_a_network_of_its_own(spec):
    """Stable Diffusion wants 512 pixels of whatever it is given; that is in its own file."""
    for preset in ("paper", "small", "tiny"):
        config = config_lib.load(f"{spec}{',' if ':' in spec else ':'}dataset=folder,preset={preset}")
        for name in config.stages:
            method = config_lib.stage(config, name).method
            assert getattr(method, "image_size", 0) <= config.data.frame_size * getattr(method, "zoom", 1.0), preset


CONSTANTS = [
    ("code", cgb.TAU, 0.8),
    ("code", cgb.TEMPERATURE, 0.1),
    ("code", cgb.FIXED_SIGMA, 0.5),
    ("code", cgb.ROTATION, 15.0),
    ("code", cgb.MAX_ROTATION, 40.0),
    ("code", cgb.BETAS, (0.0, 0.9)),
    ("code", cgb.L2, 5e-4),
    ("code", cgb.CLIP, 1.0),
    ("code 1.6", imm.FIRST_BALANCE, (100.0, 1.6, 2.3, 1.8, 2.8, 100.0)),
    ("code 1.6", imm.BALANCE_RATE, 0.01),
    ("code 1.6", imm.L2, 1e-5),
    ("code 1.7", imm.TARGET_WARP, (0.0, 0.0, 0.1, 0.001, 0.005)),
    ("code 1.7", imm.SOURCE_WARP, (5.0, 0.1, 0.1, 0.001, 0.01)),
    ("code 1.9", imm.DECAY, 0.95),
    ("code 1.9", imm.DECAY_EVERY, 100_000),
    ("code 1.9", imm.CLIP, 1.0),
    ("4, training details", duld.MARGIN, 0.8),
    ("4, training details", duld.CODE_MARGIN, 0.8),
    ("3.3.2, eq. 3", duld.CODE_SQUARED, False),
    ("4, training", shared.RMSPROP_L2, 1e-5),
    ("4, training", self_training.MERGE_SHARE, 0.7),
    ("4, training; code", 1 < self_training.MERGE_RADIUS < 2, True),
    ("code", self_training.MARGIN, 0.8),
    ("code", self_training.DESCRIPTOR_WEIGHT, 10.0),
    ("code", self_training.CUT, 1.0),
    ("code", self_training.THRESHOLD, 0.2),
    ("code", self_training.BACKGROUND_CLUSTERS, (100, 250)),
    ("code", self_training_extended.APART, 5.7),
]


@pytest.mark.parametrize(("found", "stated"), [row[1:] for row in CONSTANTS])
def test_constants_that_are_not_hyper_parameters(found, stated):
    assert found == stated


def test_what_learns_in_a_stage_is_the_papers():
    stage = resolved("duld:preset=paper")
    assert stage["bootstrap"].plan.trains == ("aggregator", "detector", "descriptor")  # 3.2, all but Stable Diffusion
    assert stage["proxy"].plan.keeps == stage["duldpp"].plan.keeps == ("aggregator", "descriptor")  # 4 and 3.3.2
