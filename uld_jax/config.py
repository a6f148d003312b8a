"""From a config file to stages: reading, checking, building.

A config is a locked `ml_collections.ConfigDict`. `config.stages` names its stages in order; `config.<stage>` holds
`method` (module and class below `uld_jax.methods`), `steps`, `batch_size` and, where the method can, `accumulate_steps`
(0 for the config's), and that method's hyper-parameters by name. Values that all stages share (`k`, `frame_size`,
`dtype`, `weights`, ...) are handed to every method that has a field of that name.
"""

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from uld_jax import hyperparameters, legacy
from uld_jax.backbones import build
from uld_jax.errors import UserError
from uld_jax.lookup import find_class
from uld_jax.method import Method, Stage

Config = ml_collections.ConfigDict
KWARGS = "backbone_kwargs"  # section with hyper-parameters of another class
SHARED = ("k", "frame_size", "dtype", "accumulate_steps", "steps", "weights")


class UnknownArgument(UserError):
    """An argument after the colon that a config file does not take."""


class StageSpec(NamedTuple):
    """A stage, built; `batch_size` is the number of images in a step, over all devices together."""

    name: str
    steps: int
    batch_size: int
    method: Method


def folder() -> pathlib.Path:
    """Return the folder of the configs that ship with the package: the checkout's `configs/`, or the wheel's copy."""
    import uld_jax.configs

    return pathlib.Path(uld_jax.configs.__file__).parent


def shipped() -> list[str]:
    """List the names of the configs that ship with the package, such as `zeroshot` and `papers/cgb_mafl`."""
    root = folder()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py"))
    return sorted(
        (name for name in names if name != "common" and not name.endswith("__init__")), key=lambda n: ("/" in n, n)
    )


def resolve(spec: str) -> str:
    """Resolve `PATH.py[:arg]` or `NAME[:arg]` to an existing file with its argument.

    Raises UserError when there is no such file.
    """
    name, _, arg = spec.partition(":")
    if pathlib.Path(name).is_file():
        return f"{name}:{arg}"
    known = shipped()
    # A path below configs/ is understood in any working directory.
    wanted = name.removeprefix("configs/").removesuffix(".py") if name.endswith(".py") else name
    if wanted in known:
        return f"{folder() / wanted}.py:{arg}"
    raise UserError(f"--config={spec}: there is no config {name!r}; use a path or one of {', '.join(known)}")


def load(spec: str, **overrides) -> Config:
    """Load a config by file or name, in the form that `--config` takes.

    >>> load("zeroshot:dataset=synthetic,k=5,preset=tiny").k
    5
    """
    path, _, arg = resolve(spec).partition(":")
    module_spec = importlib.util.spec_from_file_location("uld_jax_config", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    config = module.get_config(arg)
    for key, value in overrides.items():
        *path, field = whole_key(config, key).split(".")
        part = config
        while path and isinstance(part.get(path[0]), Config):
            part = part[path.pop(0)]
        if path or field not in part:
            raise UserError(f"config has no key {key!r}; its keys are {', '.join(sorted(part.keys()))}")
        part[field] = value
    return config


def whole_key(config: Config, key: str) -> str:
    """Complete `STAGE.KEY` with the section that holds the key: `detector.width` becomes `detector.net.width`.

    The key must be in exactly one section. Other keys, known or not, stay as they are.
    """
    stage, _, rest = key.partition(".")
    part = config.get(stage)
    if "." in rest or not isinstance(part, Config) or rest in part:
        return key
    within = [name for name, one in part.items() if isinstance(one, Config) and name != KWARGS and rest in one]
    return f"{stage}.{within[0]}.{rest}" if len(within) == 1 else key


def update(stage: Config, **values) -> None:
    """Set hyper-parameters of a stage's part of a config, with or without their sections."""
    for key, value in values.items():
        *section, field = whole_key(Config({"stage": stage}), f"stage.{key}").split(".")[1:]
        part = stage[section[0]] if section else stage
        part[field] = value


def parse_flags(argv: list[str]) -> Config:
    """Parse `--config=SPEC` and `--config.KEY=VALUE` flags into a config, each value in the type of its key.

    Raises UserError for a flag, key or value that does not fit.
    """
    values = flags.FlagValues()
    argv = with_whole_keys(argv)
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except FLAG_ERRORS as error:
        raise flag_error(error) from error
    return values.config


def with_whole_keys(argv: Sequence[str]) -> list[str]:
    """Complete every `--config.STAGE.KEY` of a command line with the section of its key; see `whole_key`."""
    spec = next((a.partition("=")[2] for a in argv if re.match(r"--?config=", a)), None)
    flag = re.compile(r"(--?config\.)([\w.]+)(.*)", re.DOTALL)
    if spec is None or not any(map(flag.match, argv)):
        return list(argv)
    try:
        config = load(spec)
    except Exception:  # the parser reports the error
        return list(argv)
    found = []
    for word in argv:
        if match := flag.match(word):
            check_key(config, match[2])
            word = match[1] + whole_key(config, match[2]) + match[3]
        found.append(word)
    return found


UNKNOWN = "docs/configs.md and the stage's class name all keys"


def check_key(config: Config, key: str) -> None:
    """Check that a config has a key, which may leave out its section.

    Raises UserError, which says what the key may have been meant for.
    """
    part, path, missing = config, whole_key(config, key).split("."), ""
    for missing in path:
        if not isinstance(part, Config) or missing not in part:
            break
        part = part[missing]
    else:
        return
    if not isinstance(part, Config):
        return  # the parser says that there is nothing within a value
    named = path[: path.index(missing)]
    if near := difflib.get_close_matches(missing, _keys(part), 3):
        hint = f"did you mean {' or '.join('.'.join([*named, one]) for one in near)}?"
    elif others := [stage for stage, one in config.items() if isinstance(one, Config) and missing in _keys(one)]:
        hint = f"it is a key of {', '.join(sorted(others))}"
    else:
        hint = UNKNOWN
    raise UserError(f"the config has no key {key!r}; {hint}")


def _keys(part: Config) -> set[str]:
    """Keys of a part of a config, and of the sections in it."""
    sections = [one for name, one in part.items() if isinstance(one, Config) and name != KWARGS]
    return {*part.keys(), *(key for one in sections for key in one)}


def override(config: Config, changes: Sequence[str]) -> None:
    """Set `KEY=VALUE` in an unlocked config, each value in the type of its key.

    Raises UserError for a key or value that does not fit.
    """
    values = flags.FlagValues()
    keys = [change.partition("=") for change in changes]
    for key, _, _ in keys:
        check_key(config, key)
    argv = ["override", *(f"--config.{whole_key(config, key)}{eq}{value}" for key, eq, value in keys)]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except FLAG_ERRORS as error:
        raise flag_error(error) from error


FLAG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError)
_OURS = r"^uld_jax[.\w]*: "  # the class name of the package's own errors, before the message


def flag_error(error: Exception) -> UserError:
    """Make one sentence of an error that absl raises for a flag, or ml_collections for a config file or override."""
    if isinstance(error, flags.Error):
        return UserError(re.sub(_OURS, "", str(error).splitlines()[-1]))
    text = str(error.args[0] if error.args else error)
    if re.fullmatch(r"(['\"]).*\1", text):  # the text of a KeyError is quoted
        text = str(ast.literal_eval(text))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and lines[0].startswith("Error whilst parsing config file"):
        # A traceback follows; its last line holds the message.
        return UserError(re.sub(_OURS, "", lines[-1]))
    if isinstance(error, (AttributeError, KeyError)):
        key, *hint = (line.strip("'\"") for line in lines)
        return UserError(f"the config has no key {key!r}; {hint[0] if hint else UNKNOWN}")
    return UserError(f"config: {lines[-1] if lines else error}")


def stage(config: Config, name: str) -> StageSpec:
    """Build the stage `name`.

    Raises UserError for an unknown stage, method or hyper-parameter.
    """
    if name not in config.stages or name not in config:
        known = config.stages
        if name in known:  # the list names a stage that the config does not have
            known = [key for key, part in config.items() if isinstance(part, Config) and "method" in part]
        raise UserError(f"there is no stage {name!r} in this config; its stages are {', '.join(known)}")
    values = config[name].to_dict()
    steps, path = int(values.pop("steps")), values.pop("method")
    path, values = legacy.as_now(name, path, values)
    if steps < 0:
        raise UserError(f"config.{name}.steps is {steps}; use 0 or more")
    batch_size = batch_of(config, name)
    values.pop("batch_size", None)
    cls = find_class("uld_jax.methods", path, f"config.{name}.method")
    fields = {f.name for f in dataclasses.fields(cls)}
    if steps and config.accumulate_steps > 1 and "accumulate_steps" not in fields:
        raise UserError(f"stage {name} computes its batch at once; set accumulate_steps=1")
    usual = cls.backbone
    if values.get("backbone", usual) != usual:
        # After `--config.STAGE.backbone=OTHER` the hyper-parameters are still those of the default backbone.
        left = values.get("backbone_kwargs") == defaults("backbones", usual).to_dict()
        values |= {"backbone_kwargs": {}} if left else {}
    shared = {
        "k": config.k,
        "frame_size": config.data.frame_size,
        "dtype": config.dtype,
        "steps": steps,
        "weights": dict(config.get("weights", {})),  # runs of earlier versions lack the key
    }
    if "accumulate_steps" in fields:
        values["accumulate_steps"] = _pieces(config, name, batch_size)
    values = {k: v for k, v in shared.items() if k in fields} | values
    for key, value in values.items():
        section = key in hyperparameters.sections(cls)
        values[key] = {k: _hashable(v) for k, v in value.items()} if section else _hashable(value)
    try:
        method = hyperparameters.build(cls, **values)
    except UserError as error:
        raise UserError(f"config.{name}.{error}") from error
    if steps and cls.train_step is Stage.train_step:
        raise UserError(f"the stage {name} has nothing to train; set config.{name}.steps=0")
    if steps and method.needs_partner and not config.data.get("partner", False):
        raise UserError(f"the stage {name} learns from pairs of images; set config.data.partner=True")
    way = config.data.get("partner_by", "any")  # runs of earlier versions lack the key
    if steps and method.partner_by and way not in method.partner_by:
        raise UserError(
            f"the stage {name} takes partners by {' or '.join(method.partner_by)} and not by {way}; set "
            f"config.data.partner_by={method.partner_by[0]}"
        )
    return StageSpec(name, steps, batch_size, method)


def batch_of(config: Config, name: str) -> int:
    """Return the number of images in a step of the stage `name`, over all devices together.

    Raises UserError for a negative number.
    """
    own = int(config[name].get("batch_size", 0))  # runs of earlier versions lack the key
    if own < 0:
        raise UserError(f"config.{name}.batch_size is {own}; use 1 or more, or 0 for config.batch_size")
    return own or config.batch_size


def _pieces(config: Config, name: str, batch_size: int) -> int:
    """Return the number of pieces in which a stage with `accumulate_steps` computes its batch.

    Raises UserError for a number that does not divide the batch.
    """
    own = int(config[name].get("accumulate_steps", 0))
    pieces = own or config.accumulate_steps
    if pieces < 0 or batch_size % pieces:
        key = f"{name}." if own else ""
        raise UserError(
            f"config.{key}accumulate_steps is {pieces}, which does not cut the batch of {batch_size} of stage {name} "
            "into equal pieces; use a divisor"
        )
    return pieces


def defaults(package: str, path: str) -> Config:
    """Return the hyper-parameters of `module.Class` below `uld_jax.<package>` that have defaults and are not shared.

    For `module.Class+module.Class`, return one section for each class, named by its module.
    """
    if "+" in path:
        return Config({part.partition(".")[0]: defaults(package, part) for part in path.split("+")})
    cls = find_class(f"uld_jax.{package}", path, package.removesuffix("s"))
    found = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING and field.name not in SHARED:
            section = dataclasses.is_dataclass(field.default)
            found[field.name] = Config(dataclasses.asdict(field.default)) if section else field.default
    return Config(found)


def takes(package: str, path: str, name: str) -> bool:
    """Tell whether `module.Class` below `uld_jax.<package>` has the hyper-parameter `name`."""
    return name in {f.name for f in dataclasses.fields(find_class(f"uld_jax.{package}", path, "method"))}


def _hashable(value):
    """Turn lists into tuples and dicts into tuples of pairs, because jit hashes methods."""
    if isinstance(value, dict):
        return tuple(sorted((k, _hashable(v)) for k, v in value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def unread_weights(config: Config, stages) -> list[str]:
    """List the kinds of `config.weights` that are given but that none of the built stages looks for."""
    read = set()
    for stage in stages:
        read |= stage.method.weight_kinds
        if path := stage.method.backbone:
            read |= build.backbone_kinds(path, stage.method.backbone_kwargs)
    return [kind for kind, folder in sorted(config.weights.items()) if folder and kind not in read]


def check_weights_are_read(runs) -> None:
    """Raise UserError for given weights that no stage of any of the `runs`, (config, stages), looks for."""
    unread = set.intersection(*(set(unread_weights(config, stages)) for config, stages in runs))
    if unread:
        kind, (config, stages) = min(unread), runs[0]
        raise UserError(
            f"config.weights.{kind}={config.weights[kind]} is looked for by none of the stages "
            f"{', '.join(stage.name for stage in stages)} as they are set; leave it out, or choose what uses it"
        )
